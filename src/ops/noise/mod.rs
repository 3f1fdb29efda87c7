//! Random numbers on the device, and the forward diffusion (q-sample): noisy = signal * image + noise_rate * noise.
//!
//! Image i of the batch draws from the stream (seed, purpose, step, first_image + i), so the numbers do not depend on how images
//! are cut into batches. Normal numbers follow NHWC order within an image. No backward: the network's input is not learned.

pub mod cpu;
pub mod reference;

use crate::device::Memory;
use crate::error::Result;
use crate::rng::Purpose;

/// Which random numbers: see [`crate::rng::Stream`].
#[derive(Clone, Copy, Debug)]
pub struct NoiseKey {
    /// Seed of the run.
    pub seed: u64,
    /// What they are for.
    pub purpose: Purpose,
    /// Training step.
    pub step: u64,
    /// Index of the first image; image i uses `first_image + i`.
    pub first_image: u64,
}

/// Random numbers of a device.
pub trait Noise: Memory {
    /// Standard normal numbers, `per_image` for each image of `out`.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where `out` is not a whole number of images.
    fn fill_normal(&self, key: NoiseKey, per_image: usize, out: Self::SliceMut<'_>) -> Result<()>;

    /// One number uniform in [0, 1) for each image.
    ///
    /// # Errors
    /// The device failed.
    fn fill_uniform(&self, key: NoiseKey, out: Self::SliceMut<'_>) -> Result<()>;

    /// noisy = `rates[n,0]` * images + `rates[n,1]` * noise; all [N, per image], rates [N, 2].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn q_sample(
        &self,
        images: Self::Slice<'_>,
        noise: Self::Slice<'_>,
        rates: Self::Slice<'_>,
        noisy: Self::SliceMut<'_>,
    ) -> Result<()>;
}
