//! Random numbers on the device, and the forward diffusion (q-sample): noisy = signal * image + noise_rate * noise.
//!
//! Image i of the batch draws from the stream (seed, purpose, step, first_image + i), so the numbers do not depend on how images
//! are cut into batches. Normal numbers follow NHWC order within an image. No backward: the network's input is not learned.

pub mod cpu;
pub mod gpu;
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
    /// Index of the first image; image i uses `first_image + i`.
    pub first_image: u64,
}

/// The number of a step as the operations read it from device memory: its low 32 bits, as the bits of one float32 slot.
pub fn step_word(step: u64) -> f32 {
    f32::from_bits(step as u32)
}

/// Random numbers of a device. `step`: `[1]`, see [`step_word`].
pub trait Noise: Memory {
    /// Standard normal numbers, `per_image` for each image of `out`.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where `out` is not a whole number of images.
    fn fill_normal(
        &self,
        key: NoiseKey,
        step: Self::Slice<'_>,
        per_image: usize,
        out: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// One number uniform in [0, 1) for each image.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where `step` is not one slot.
    fn fill_uniform(&self, key: NoiseKey, step: Self::Slice<'_>, out: Self::SliceMut<'_>) -> Result<()>;

    /// noise += `strength` * z[n, c] with standard normal numbers z, one for each image and channel: `noise` [N, pixels, channels], z
    /// the elements 0 .. channels of the stream of `key`. So the mean of a picture is noisy too, and learned
    /// (Guttenberg 2023, "Diffusion with Offset Noise").
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where `noise` is not a whole number of images of `shape` = [pixels, channels].
    fn offset_noise(
        &self,
        key: NoiseKey,
        step: Self::Slice<'_>,
        strength: f32,
        shape: [usize; 2],
        noise: Self::SliceMut<'_>,
    ) -> Result<()>;

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
