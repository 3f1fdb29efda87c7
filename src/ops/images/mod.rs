//! Pixels to normalised floats and back: x = (byte / 255 - `mean[c]`) / `std[c]`, and byte / 255 = clip(x `std[c]` + `mean[c]`, 0, 1).

pub mod cpu;
pub mod gpu;
pub mod reference;

use crate::device::Memory;
use crate::error::Result;

/// Pixel conversion of a device.
pub trait Images: Memory {
    /// x [N, H, W, C] (float32) from bytes of the same shape; `mean_std` `[2 C]`: the means, then the deviations.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn normalize(&self, bytes: &Self::Bytes, mean_std: Self::Slice<'_>, x: Self::SliceMut<'_>) -> Result<()>;

    /// In place: x <- clip(x std + mean, 0, 1).
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn denormalize(&self, mean_std: Self::Slice<'_>, x: Self::SliceMut<'_>) -> Result<()>;
}
