//! Pixel conversion on the CPU.

use super::Images;
use crate::device::cpu::{Cpu, PIECE};
use crate::error::{Error, Result};
use crate::ops::expect_len;

/// Means and deviations, for pixels of `len` elements in all.
fn split<'a>(op: &'static str, mean_std: &'a [f32], len: usize) -> Result<(&'a [f32], &'a [f32])> {
    let c = mean_std.len() / 2;
    if c == 0 || mean_std.len() != 2 * c || !len.is_multiple_of(c) {
        let what = format!("means and deviations of {} and {len} elements do not fit", mean_std.len());
        return Err(Error::Shape { op, what });
    }
    Ok(mean_std.split_at(c))
}

impl Images for Cpu {
    fn normalize(&self, bytes: &Vec<u8>, mean_std: &[f32], x: &mut [f32]) -> Result<()> {
        expect_len("normalize", "bytes", bytes.len(), x.len())?;
        let (mean, std) = split("normalize", mean_std, x.len())?;
        let c = mean.len();
        // 256 values a channel: a table, computed once, is exact and needs no division per pixel.
        let table: Vec<f32> = (0..256 * c)
            .map(|i| (((i / c) as f64 / 255.0 - f64::from(mean[i % c])) / f64::from(std[i % c])) as f32)
            .collect();
        let piece = PIECE / c * c;
        let jobs: Vec<_> = x.chunks_mut(piece).zip(bytes.chunks(piece)).collect();
        self.for_each(jobs, |(x, bytes)| {
            for (x, bytes) in x.chunks_exact_mut(c).zip(bytes.chunks_exact(c)) {
                for i in 0..c {
                    x[i] = table[usize::from(bytes[i]) * c + i];
                }
            }
        });
        Ok(())
    }

    fn denormalize(&self, mean_std: &[f32], x: &mut [f32]) -> Result<()> {
        let (mean, std) = split("denormalize", mean_std, x.len())?;
        let c = mean.len();
        for pixel in x.chunks_exact_mut(c) {
            for i in 0..c {
                // `max` and `min` would turn a NaN into a bound and hide it.
                let v = pixel[i] * std[i] + mean[i];
                pixel[i] = v.clamp(0.0, 1.0);
            }
        }
        Ok(())
    }
}
