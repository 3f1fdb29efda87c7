//! Bilinear upsampling by 2 with half-pixel centres (PyTorch's `interpolate(scale_factor=2, mode="bilinear",
//! align_corners=False)`).
//!
//! In one dimension, with x clamped at the ends: `y[2i] = x[i-1]/4 + 3 x[i]/4`, `y[2i+1] = 3 x[i]/4 + x[i+1]/4`; in two
//! dimensions the product of both. Backward is its transpose: `dx[i]` collects from `y[2i-1]`, `y[2i]`, `y[2i+1]`, `y[2i+2]` with
//! weights 1/4, 3/4, 3/4, 1/4, and the border keeps what the clamp sent to it. Activations' gradients overwrite.

pub mod cpu;
pub mod gpu;
pub mod reference;

use crate::device::Memory;
use crate::error::Result;

pub use super::pool::ResampleDims;

/// Bilinear upsampling of a device.
pub trait Upsample2: Memory {
    /// y [N, H, W, C] from x [N, H/2, W/2, C]; `stats` [N, C, 2] of y as in [`super::conv::Output::stats`].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or an extent is odd.
    fn upsample_forward(
        &self,
        dims: &ResampleDims,
        x: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
        stats: Option<Self::SliceMut<'_>>,
    ) -> Result<()>;

    /// dx [N, H/2, W/2, C] from dy [N, H, W, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or an extent is odd.
    fn upsample_backward(&self, dims: &ResampleDims, dy: Self::Slice<'_>, dx: Self::SliceMut<'_>) -> Result<()>;
}
