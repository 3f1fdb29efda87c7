//! Changes of resolution by 2 that are not averages or interpolations: doubling every pixel, and keeping every fourth.
//!
//! ```text
//! double     y[i,j] = x[i/2, j/2]                     dx[i,j] = sum of the four dy above it (+ add)
//! keep       y[i,j] = x[2i+o, 2j+o], o = 0 or 1       dx[2i+o, 2j+o] = dy[i,j], zero elsewhere
//! ```
//!
//! A 3x3 convolution of stride 2 is one of stride 1 of which every fourth pixel is kept: with zeros on all sides o = 0, with zeros only on the
//! right and below o = 1 (diffusers' `downsample_padding` 1 and 0). [`super::resample_conv`] are both as one operation.
//!
//! The forward operations leave the statistics (mean, sum of squared deviations) per image and channel where asked. Gradients are overwritten.

pub mod cpu;
mod gpu;
pub mod reference;

use super::pool::ResampleDims;
use crate::device::Memory;
use crate::error::Result;

/// Resizes of a device. `dims` hold the extents of the large side, which must be even.
pub trait Resize: Memory {
    /// y [N, H, W, C] from x [N, H/2, W/2, C]; `stats` [N, C, 2].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or a side is odd.
    fn double_forward(
        &self,
        dims: &ResampleDims,
        x: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
        stats: Option<Self::SliceMut<'_>>,
    ) -> Result<()>;

    /// dx [N, H/2, W/2, C] from dy [N, H, W, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or a side is odd.
    fn double_backward(
        &self,
        dims: &ResampleDims,
        dy: Self::Slice<'_>,
        add: Option<Self::Slice<'_>>,
        dx: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// y [N, H/2, W/2, C] from x [N, H, W, C]; `offset` 0 or 1; `stats` [N, C, 2].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit, a side is odd, or `offset` is another.
    fn keep_forward(
        &self,
        dims: &ResampleDims,
        offset: u32,
        x: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
        stats: Option<Self::SliceMut<'_>>,
    ) -> Result<()>;

    /// dx [N, H, W, C] from dy [N, H/2, W/2, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit, a side is odd, or `offset` is another.
    fn keep_backward(
        &self,
        dims: &ResampleDims,
        offset: u32,
        dy: Self::Slice<'_>,
        dx: Self::SliceMut<'_>,
    ) -> Result<()>;
}
