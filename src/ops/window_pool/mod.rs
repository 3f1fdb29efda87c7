//! Largest or mean value of a square window, with stride and padding, forward only. A window as large as the picture, without padding, is
//! global pooling.
//!
//! ```text
//! y[n,i,j,c0+c] = max or mean over (r, s) in the window of x[n, i T + r - P, j T + s - P, c]
//! ```
//!
//! The maximum is that of the elements inside x. The mean divides by the elements inside (TensorFlow's way), or by all R R of the window, as if
//! x were zero outside (PyTorch's `count_include_pad`). The outputs are C of the channels of a tensor that may have more, from c0 on; the other
//! channels stay as they are. **There is no backward**; the 2x2 pooling that is trained is [`super::pool`]. Everything is float32 on every
//! device; a value that is not a number makes its windows such.

pub mod cpu;
mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use super::conv2d::out_extent;
use crate::device::Memory;
use crate::error::{Error, Result};

const OP: &str = "window_pool";

/// What is made of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Its largest element inside the picture.
    Max,
    /// The sum of its elements inside the picture, over their number.
    MeanInside,
    /// The sum of its elements inside the picture, over those of the whole window.
    MeanAll,
}

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct WindowPoolDims {
    /// Images.
    pub n: u32,
    /// Rows of x.
    pub h: u32,
    /// Columns of x.
    pub w: u32,
    /// Channels of x.
    pub c: u32,
    /// Rows and columns of the window.
    pub kernel: u32,
    /// Distance of windows.
    pub stride: u32,
    /// Rows and columns outside on every side: less than `kernel`.
    pub pad: u32,
    /// Channels of y.
    pub y_channels: u32,
    /// The channel of y that channel 0 of x becomes.
    pub y_first: u32,
}

impl WindowPoolDims {
    /// Rows of y.
    pub fn out_h(&self) -> usize {
        out_extent(self.h, self.kernel, self.stride, self.pad)
    }
    /// Columns of y.
    pub fn out_w(&self) -> usize {
        out_extent(self.w, self.kernel, self.stride, self.pad)
    }
    /// Elements of x.
    pub fn x_len(&self) -> usize {
        [self.n, self.h, self.w, self.c].iter().map(|&e| e as usize).product()
    }
    /// Elements of y, all its channels.
    pub fn y_len(&self) -> usize {
        self.n as usize * self.out_h() * self.out_w() * self.y_channels as usize
    }

    /// Refuses extents that make no pooling (every window must reach into the picture), views of another length, and more than 2^31 elements.
    pub(crate) fn check(&self, x: usize, y: usize) -> Result<()> {
        let some = [self.n, self.h, self.w, self.c, self.kernel, self.stride];
        let fits = !some.contains(&0)
            && self.pad < self.kernel
            && self.h + 2 * self.pad >= self.kernel
            && self.w + 2 * self.pad >= self.kernel
            && self.inside(self.h, self.out_h())
            && self.inside(self.w, self.out_w())
            && self.y_first.checked_add(self.c).is_some_and(|end| end <= self.y_channels)
            && [self.x_len(), self.y_len()].iter().all(|&len| len < 1 << 31);
        if !fits {
            return Err(Error::Shape { op: OP, what: format!("unusable extents {self:?}") });
        }
        super::expect_len(OP, "x", x, self.x_len())?;
        super::expect_len(OP, "y", y, self.y_len())
    }

    /// The last window begins within the picture.
    fn inside(&self, extent: u32, windows: usize) -> bool {
        (windows - 1) * (self.stride as usize) < extent as usize + self.pad as usize
    }
}

/// Pooling of a device over windows, forward only.
pub trait WindowPool: Memory {
    /// Channels c0..c0+C of y [N, H', W', channels of y] from x [N, H, W, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn window_pool(
        &self,
        dims: &WindowPoolDims,
        pooling: Pooling,
        x: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
    ) -> Result<()>;
}
