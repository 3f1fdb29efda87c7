//! Convolution with any window, stride and padding, forward only: what networks need that are read and never trained here.
//!
//! ```text
//! y[n,i,j,k0+k] = f( b[k] + sum_{r,s,c} w[k,c,r,s] x[n, i T + r - P, j T + s - Q, c] )      f = identity or max(0, .)
//! ```
//!
//! T is the stride; x is zero outside, P rows above and below, Q columns left and right. The outputs are K of the channels of a tensor that may
//! have more, from k0 on: branches write their parts of a concatenation, and leave the other channels as they are. **There is no backward**;
//! the 3x3 and 1x1 convolutions that are trained are [`super::conv`]. Activations, filter and bias are float32 on every device. On a GPU
//! the products are as accurate as float32 where its arithmetic is fp32, and have factors rounded to tf32 where it is tf32 or bf16.

pub mod cpu;
mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

const OP: &str = "conv2d";

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Conv2dDims {
    /// Images.
    pub n: u32,
    /// Rows of x.
    pub h: u32,
    /// Columns of x.
    pub w: u32,
    /// Channels of x.
    pub c: u32,
    /// Output channels of this convolution.
    pub k: u32,
    /// Rows of the window.
    pub kernel_h: u32,
    /// Columns of the window.
    pub kernel_w: u32,
    /// Distance of windows, in both directions.
    pub stride: u32,
    /// Rows of zeros above and below.
    pub pad_h: u32,
    /// Columns of zeros left and right.
    pub pad_w: u32,
    /// Channels of y.
    pub y_channels: u32,
    /// The channel of y that output channel 0 is.
    pub y_first: u32,
    /// 1: negative results become 0.
    pub relu: u32,
}

impl Conv2dDims {
    /// Rows of y.
    pub fn out_h(&self) -> usize {
        out_extent(self.h, self.kernel_h, self.stride, self.pad_h)
    }
    /// Columns of y.
    pub fn out_w(&self) -> usize {
        out_extent(self.w, self.kernel_w, self.stride, self.pad_w)
    }
    /// Products of an output: window times channels.
    pub fn depth(&self) -> usize {
        self.kernel_h as usize * self.kernel_w as usize * self.c as usize
    }
    /// Elements of x.
    pub fn x_len(&self) -> usize {
        [self.n, self.h, self.w, self.c].iter().map(|&e| e as usize).product()
    }
    /// Elements of y, all its channels.
    pub fn y_len(&self) -> usize {
        self.n as usize * self.out_h() * self.out_w() * self.y_channels as usize
    }
    /// Elements of w as in files, [K, C, R, S].
    pub fn w_len(&self) -> usize {
        self.k as usize * self.depth()
    }
    /// Multiplications and additions, two for one product.
    pub fn flops(&self) -> f64 {
        2.0 * self.n as f64 * self.out_h() as f64 * self.out_w() as f64 * self.w_len() as f64
    }

    /// Refuses extents that make no convolution, or more than 2^31 elements.
    pub(crate) fn validate(&self) -> Result<()> {
        let some = [self.n, self.h, self.w, self.c, self.k, self.kernel_h, self.kernel_w, self.stride];
        let fits = !some.contains(&0)
            && self.relu <= 1
            && self.pad_h < self.kernel_h
            && self.pad_w < self.kernel_w
            && self.h + 2 * self.pad_h >= self.kernel_h
            && self.w + 2 * self.pad_w >= self.kernel_w
            && self.y_first.checked_add(self.k).is_some_and(|end| end <= self.y_channels)
            && [self.x_len(), self.y_len(), self.w_len()].iter().all(|&len| len < 1 << 31);
        if fits { Ok(()) } else { Err(Error::Shape { op: OP, what: format!("unusable extents {self:?}") }) }
    }
}

/// Windows that fit into an extent with padding on both sides.
pub(crate) fn out_extent(extent: u32, kernel: u32, stride: u32, pad: u32) -> usize {
    (extent as usize + 2 * pad as usize).saturating_sub(kernel as usize) / stride.max(1) as usize + 1
}

/// Convolutions of a device, forward only.
pub trait Conv2d: Memory {
    /// The filter w [K, C, R, S], from the host, in the order in which this device reads it; done once.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where `w` does not fit; out of memory.
    fn conv2d_filter(&self, dims: &Conv2dDims, w: &[f32]) -> Result<Self::Buffer>;

    /// Channels k0..k0+K of y [N, H', W', channels of y] from x [N, H, W, C], the filter that [`Conv2d::conv2d_filter`] made, and bias `[K]`.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn conv2d(
        &self,
        dims: &Conv2dDims,
        x: Self::Slice<'_>,
        filter: Self::Slice<'_>,
        bias: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
    ) -> Result<()>;
}
