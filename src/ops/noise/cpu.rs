//! Random numbers and q-sample on the CPU.

use super::{Noise, NoiseKey};
use crate::device::cpu::{Cpu, PIECE};
use crate::error::{Error, Result};
use crate::ops::expect_len;
use crate::rng::Stream;

impl NoiseKey {
    /// The stream of image `i` of the batch at a step.
    pub fn stream(&self, step: u64, i: usize) -> Stream {
        Stream::new(self.seed, self.purpose, step, self.first_image + i as u64)
    }
}

fn read_step(op: &'static str, step: &[f32]) -> Result<u64> {
    expect_len(op, "step", step.len(), 1)?;
    Ok(u64::from(step[0].to_bits()))
}

impl Noise for Cpu {
    fn fill_normal(&self, key: NoiseKey, step: &[f32], per_image: usize, out: &mut [f32]) -> Result<()> {
        let step = read_step("fill_normal", step)?;
        if per_image == 0 || !out.len().is_multiple_of(per_image) {
            let what = format!("{} elements are no whole number of images of {per_image}", out.len());
            return Err(Error::Shape { op: "fill_normal", what });
        }
        let jobs: Vec<_> = out.chunks_exact_mut(per_image).enumerate().collect();
        self.for_each(jobs, |(i, out)| key.stream(step, i).fill_normal(out));
        Ok(())
    }

    fn fill_uniform(&self, key: NoiseKey, step: &[f32], out: &mut [f32]) -> Result<()> {
        let step = read_step("fill_uniform", step)?;
        for (i, out) in out.iter_mut().enumerate() {
            *out = key.stream(step, i).uniform4(0)[0];
        }
        Ok(())
    }

    fn offset_noise(
        &self,
        key: NoiseKey,
        step: &[f32],
        strength: f32,
        [pixels, channels]: [usize; 2],
        noise: &mut [f32],
    ) -> Result<()> {
        const OP: &str = "offset_noise";
        let step = read_step(OP, step)?;
        let per_image = pixels * channels;
        if per_image == 0 || !noise.len().is_multiple_of(per_image) {
            let what = format!("{} elements are no whole number of images of {per_image}", noise.len());
            return Err(Error::Shape { op: OP, what });
        }
        let jobs: Vec<_> = noise.chunks_exact_mut(per_image).enumerate().collect();
        self.for_each(jobs, |(i, image)| {
            let mut offsets = vec![0.0; channels];
            key.stream(step, i).fill_normal(&mut offsets);
            for pixel in image.chunks_exact_mut(channels) {
                for (value, offset) in pixel.iter_mut().zip(&offsets) {
                    *value += strength * offset;
                }
            }
        });
        Ok(())
    }

    fn q_sample(&self, images: &[f32], noise: &[f32], rates: &[f32], noisy: &mut [f32]) -> Result<()> {
        const OP: &str = "q_sample";
        let n = rates.len() / 2;
        if rates.is_empty() || !rates.len().is_multiple_of(2) || !noisy.len().is_multiple_of(n) {
            let what = format!("rates of {} and images of {} elements do not fit", rates.len(), noisy.len());
            return Err(Error::Shape { op: OP, what });
        }
        expect_len(OP, "images", images.len(), noisy.len())?;
        expect_len(OP, "noise", noise.len(), noisy.len())?;
        let per_image = noisy.len() / n;
        let jobs: Vec<_> = noisy.chunks_mut(PIECE).enumerate().map(|(i, out)| (i * PIECE, out)).collect();
        self.for_each_vectorized(jobs, |(first, out)| {
            for (i, out) in out.iter_mut().enumerate() {
                let at = first + i;
                let image = at / per_image;
                *out = rates[2 * image] * images[at] + rates[2 * image + 1] * noise[at];
            }
        });
        Ok(())
    }
}
