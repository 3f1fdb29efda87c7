//! 2x2 average pooling, stride 2, per channel: `y[i,j] = (x[2i,2j] + x[2i,2j+1] + x[2i+1,2j] + x[2i+1,2j+1]) / 4`.
//!
//! Backward: `dx[2i+a,2j+b] = dy[i,j] / 4` (+ `add`, the gradient of the tensor's other use). Activations' gradients overwrite.

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::Result;
use crate::tensor::Shape;

/// Extents of the side with full resolution (x): h and w even.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ResampleDims {
    /// Images.
    pub n: u32,
    /// Rows of the large side.
    pub h: u32,
    /// Columns of the large side.
    pub w: u32,
    /// Channels.
    pub c: u32,
}

impl ResampleDims {
    /// Elements of the large side.
    pub fn large(&self) -> usize {
        self.n as usize * self.h as usize * self.w as usize * self.c as usize
    }
    /// Elements of the small side.
    pub fn small(&self) -> usize {
        self.large() / 4
    }
}

impl From<Shape> for ResampleDims {
    /// Of the large side.
    fn from(large: Shape) -> Self {
        let [n, h, w, c] = [large.n, large.h, large.w, large.c].map(|extent| extent as u32);
        ResampleDims { n, h, w, c }
    }
}

/// 2x2 average pooling of a device.
pub trait AvgPool2: Memory {
    /// y [N, H/2, W/2, C] from x [N, H, W, C]; `stats` [N, C, 2] of y as in [`super::conv::Output::stats`].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or an extent is odd.
    fn avg_pool_forward(
        &self,
        dims: &ResampleDims,
        x: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
        stats: Option<Self::SliceMut<'_>>,
    ) -> Result<()>;

    /// dx [N, H, W, C] from dy [N, H/2, W/2, C], plus `add` [N, H, W, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or an extent is odd.
    fn avg_pool_backward(
        &self,
        dims: &ResampleDims,
        dy: Self::Slice<'_>,
        add: Option<Self::Slice<'_>>,
        dx: Self::SliceMut<'_>,
    ) -> Result<()>;
}
