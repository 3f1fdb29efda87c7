//! The seed's normaliser: per-channel mean and deviation, gathered over the first batches of training and then frozen.
//!
//! It reads bytes on the host, where the sums of a batch are exact integers, so its state does not depend on devices or threads.
//! Batches are merged by Chan's formula (Chan, Golub, LeVeque 1979) with the unbiased variance, as the seed does.

use serde::{Deserialize, Serialize};

use crate::config::{Config, Normalize};

/// Running statistics of pixels in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalizer {
    /// Batches gathered so far.
    pub batches: usize,
    /// Batches after which it is frozen.
    pub limit: usize,
    count: f64,
    mean: Vec<f64>,
    m2: Vec<f64>,
}

/// Deviations below this (pictures of one colour) are taken as 1, so that nothing is divided by zero.
const MIN_STD: f64 = 1e-6;

impl Normalizer {
    /// Nothing gathered yet; frozen after `limit` batches.
    pub fn new(channels: usize, limit: usize) -> Self {
        Normalizer { batches: 0, limit, count: 0.0, mean: vec![0.0; channels], m2: vec![0.0; channels] }
    }

    /// Pixels to [-1, 1], frozen from the start: mean 0.5 and deviation 0.5.
    pub fn fixed(channels: usize) -> Self {
        Normalizer::frozen(&vec![0.5; channels], &vec![0.5; channels])
    }

    /// Frozen from the start, with these means and deviations.
    pub fn frozen(mean: &[f32], std: &[f32]) -> Self {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        // With nothing counted the deviation is the root of `m2`.
        let m2 = wide(std).into_iter().map(|s| s * s).collect();
        Normalizer { batches: 0, limit: 0, count: 0.0, mean: wide(mean), m2 }
    }

    /// The one that a configuration asks for, at the start of a run.
    pub fn of(config: &Config) -> Self {
        match config.normalize {
            Normalize::Measured => Normalizer::new(config.channels, config.normalize_batches),
            Normalize::Fixed => Normalizer::fixed(config.channels),
        }
    }

    /// Takes a batch [.., C] into account, unless frozen.
    pub fn gather(&mut self, pixels: &[u8]) {
        let c = self.mean.len();
        if self.batches >= self.limit || pixels.is_empty() {
            return;
        }
        let n = (pixels.len() / c) as f64;
        for i in 0..c {
            let (mut sum, mut squares) = (0u64, 0u64);
            for &p in pixels[i..].iter().step_by(c) {
                sum += u64::from(p);
                squares += u64::from(p) * u64::from(p);
            }
            let mean = sum as f64 / n / 255.0;
            // Exact integers: n * squares - sum^2 does not cancel in u128.
            let spread = u128::from(squares) * (n as u128) - u128::from(sum) * u128::from(sum);
            let m2 = spread as f64 / n / (255.0 * 255.0);
            let total = self.count + n;
            let delta = mean - self.mean[i];
            self.mean[i] += delta * n / total;
            self.m2[i] += m2 + delta * delta * self.count * n / total;
        }
        self.count += n;
        self.batches += 1;
    }

    /// Mean of each channel.
    pub fn mean(&self) -> Vec<f32> {
        self.mean.iter().map(|&m| m as f32).collect()
    }

    /// Means, then deviations, as [`crate::ops::images::Images`] reads them.
    pub fn mean_std(&self) -> Vec<f32> {
        [self.mean(), self.std()].concat()
    }

    /// Standard deviation of each channel (unbiased variance); 1 before anything was gathered.
    pub fn std(&self) -> Vec<f32> {
        let of = |m2: f64| (m2 / (self.count - 1.0).max(1.0)).sqrt();
        self.m2.iter().map(|&m2| if of(m2) < MIN_STD { 1.0 } else { of(m2) as f32 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_batches_is_the_same_as_one_pass() {
        let pixels: Vec<u8> = (0..3000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut n = Normalizer::new(3, 10);
        pixels.chunks(600).for_each(|b| n.gather(b));
        for c in 0..3 {
            let values: Vec<f64> = pixels[c..].iter().step_by(3).map(|&p| f64::from(p) / 255.0).collect();
            let mean = values.iter().sum::<f64>() / 1000.0;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 999.0;
            assert!((f64::from(n.mean()[c]) - mean).abs() < 1e-7);
            assert!((f64::from(n.std()[c]) - var.sqrt()).abs() < 1e-7);
        }
    }

    #[test]
    fn the_fixed_one_maps_pixels_to_minus_one_to_one() {
        let mut n = Normalizer::fixed(3);
        n.gather(&[9; 30]);
        assert_eq!((n.mean(), n.std()), (vec![0.5; 3], vec![0.5; 3]));
    }

    #[test]
    fn it_freezes_and_survives_flat_pictures() {
        let mut n = Normalizer::new(1, 2);
        n.gather(&[7; 16]);
        assert_eq!(n.std(), [1.0]);
        n.gather(&[9; 16]);
        let frozen = n.clone();
        n.gather(&[200; 16]);
        assert_eq!(n, frozen);
    }
}
