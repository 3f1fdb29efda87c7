//! The DDIM update on the CPU.

use super::{DdimDims, DdimStep};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::ops::expect_len;
use crate::ops::loss::check_codes;
use crate::ops::loss::cpu::split;

const OP: &str = "ddim_step";

impl DdimStep for Cpu {
    fn ddim_step(
        &self,
        dims: &DdimDims,
        pred: &[f32],
        rates_now: &[f32],
        rates_next: &[f32],
        x: &mut [f32],
        pred_image: Option<&mut [f32]>,
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_codes(OP, dims.predict, 0)?;
        expect_len(OP, "pred", pred.len(), n * per)?;
        expect_len(OP, "x", x.len(), n * per)?;
        expect_len(OP, "rates_now", rates_now.len(), 2 * n)?;
        expect_len(OP, "rates_next", rates_next.len(), 2 * n)?;
        let images: Vec<&mut [f32]> = match pred_image {
            Some(images) => {
                expect_len(OP, "pred_image", images.len(), n * per)?;
                images.chunks_mut(per.max(1)).collect()
            }
            None => (0..n).map(|_| &mut [][..]).collect(),
        };
        let jobs: Vec<_> = x.chunks_mut(per.max(1)).zip(images).enumerate().collect();
        self.for_each_vectorized(jobs, |(image, (x, out))| {
            let (signal, noise_rate) = (rates_now[2 * image], rates_now[2 * image + 1]);
            let (next_signal, next_noise) = (rates_next[2 * image], rates_next[2 * image + 1]);
            for (i, x) in x.iter_mut().enumerate() {
                let (noise, clean) = split(dims.predict, pred[image * per + i], *x, signal, noise_rate);
                *x = next_signal * clean + next_noise * noise;
                if !out.is_empty() {
                    out[i] = clean;
                }
            }
        });
        Ok(())
    }
}
