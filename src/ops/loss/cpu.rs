//! The loss on the CPU; an image is a unit of work, its sums are in float64.

use super::{Loss, LossDims, LossInput, check_codes};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::ops::expect_len;

const OP: &str = "loss";

/// (pred_noise, pred_image) of one element.
#[inline(always)]
pub(crate) fn split(predict: u32, pred: f32, noisy: f32, signal: f32, noise_rate: f32) -> (f32, f32) {
    match predict {
        0 => (pred, (noisy - noise_rate * pred) / signal),
        1 => ((noisy - signal * pred) / noise_rate, pred),
        _ => (noise_rate * noisy + signal * pred, signal * noisy - noise_rate * pred),
    }
}

impl Loss for Cpu {
    fn loss(&self, dims: &LossDims, input: LossInput<'_, Self>, dp: Option<&mut [f32]>, out: &mut [f32]) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_codes(OP, dims.predict, dims.loss)?;
        let LossInput { pred, noisy, images, noise, rates, weights } = input;
        for (name, view) in [("pred", pred), ("noisy", noisy), ("images", images), ("noise", noise)] {
            expect_len(OP, name, view.len(), n * per)?;
        }
        expect_len(OP, "rates", rates.len(), 2 * n)?;
        expect_len(OP, "out", out.len(), 3)?;
        if let Some(weights) = weights {
            expect_len(OP, "weights", weights.len(), n)?;
        }
        let mut sums = vec![[0.0f64; 3]; n];
        let dp: Vec<&mut [f32]> = match dp {
            Some(dp) => {
                expect_len(OP, "dp", dp.len(), n * per)?;
                dp.chunks_mut(per.max(1)).collect()
            }
            None => (0..n).map(|_| &mut [][..]).collect(),
        };
        let elements = dims.of as usize * per;
        let scale = 1.0 / elements as f32;
        let jobs: Vec<_> = dp.into_iter().zip(&mut sums).enumerate().collect();
        self.for_each_vectorized(jobs, |(image, (dp, sums))| {
            let (signal, noise_rate) = (rates[2 * image], rates[2 * image + 1]);
            let weight = weights.map_or(1.0, |weights| weights[image]);
            let scale = scale * weight;
            for i in 0..per {
                let at = image * per + i;
                let p = pred[at];
                let (pred_noise, pred_image) = split(dims.predict, p, noisy[at], signal, noise_rate);
                let target = match dims.predict {
                    0 => noise[at],
                    1 => images[at],
                    _ => signal * noise[at] - noise_rate * images[at],
                };
                let d = p - target;
                let (value, slope) = match dims.loss {
                    // The subgradient at 0 is 0, as PyTorch has it.
                    0 => (
                        d.abs(),
                        if d > 0.0 {
                            1.0
                        } else if d < 0.0 {
                            -1.0
                        } else {
                            d * 0.0
                        },
                    ),
                    1 => (d * d, 2.0 * d),
                    _ if d.abs() < 1.0 => (0.5 * d * d, d),
                    _ => (d.abs() - 0.5, d.clamp(-1.0, 1.0)),
                };
                sums[0] += f64::from(value);
                sums[1] += f64::from((pred_noise - noise[at]).abs());
                sums[2] += f64::from((pred_image - images[at]).abs());
                if !dp.is_empty() {
                    dp[i] = slope * scale;
                }
            }
            sums[0] *= f64::from(weight);
        });
        for (i, out) in out.iter_mut().enumerate() {
            let mean = (sums.iter().map(|s| s[i]).sum::<f64>() / elements as f64) as f32;
            *out = if dims.add == 1 { *out + mean } else { mean };
        }
        Ok(())
    }

    fn split_prediction(
        &self,
        dims: &LossDims,
        pred: &[f32],
        noisy: &[f32],
        rates: &[f32],
        pred_noise: &mut [f32],
        pred_image: &mut [f32],
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_codes(OP, dims.predict, dims.loss)?;
        expect_len(OP, "pred", pred.len(), n * per)?;
        expect_len(OP, "noisy", noisy.len(), n * per)?;
        expect_len(OP, "rates", rates.len(), 2 * n)?;
        expect_len(OP, "pred_noise", pred_noise.len(), n * per)?;
        expect_len(OP, "pred_image", pred_image.len(), n * per)?;
        for at in 0..n * per {
            let image = at / per;
            (pred_noise[at], pred_image[at]) =
                split(dims.predict, pred[at], noisy[at], rates[2 * image], rates[2 * image + 1]);
        }
        Ok(())
    }
}
