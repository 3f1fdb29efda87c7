//! 3x3 convolution, zero padding 1, that changes the resolution by 2: after doubling every pixel, or keeping every fourth of its outputs
//! (a stride of 2). The operations of [`super::resize`] and [`super::conv`] as one.
//!
//! ```text
//! Double   y[p,k] = sum_{t,c} x[(p+t-1)/2, c] W[t,c,k] + bias[k]                        p on the large side, division rounds down
//! Keep     y[q,k] = sum_{t,c} x[2q+o+t-1, c] W[t,c,k] + bias[k]                         q on the small side, o = 0 or 1
//! ```
//!
//! Pixels, taps t and o are pairs (row, column); x is 0 outside the picture. `h` and `w` of the dims are those of the large side, which must be even.
//!
//! Composed, both compute 36 products for each pixel of the small side and pair of channels. 9 suffice, in every direction. For `Keep` they are those of
//! the pixels that are kept. `Double` is the transpose of a `Keep` with o = 0 and the filter turned by 180 degrees, followed by a sum over 2x2 windows:
//!
//! ```text
//! y[p] = sum_{d in {0,1}^2} u[p-d]      u[m] = sum_{q,t: m = 2q+1-t} x[q] W[t]
//! dx[q] = sum_t W[t]^T s[2q+1-t]        dW[t] = sum_q x[q]^T s[2q+1-t]        s[m] = sum_{d in {0,1}^2} dy[m+d]
//! ```
//!
//! The GPU kernels are composed (`gpu.rs`); the CPU's do the 9.
//!
//! Gradients: `dw` and `db` accumulate, `dx` is overwritten.

pub mod cpu;
mod gpu;
pub mod reference;

use super::conv::{ConvDims, Direction};
use super::pool::ResampleDims;
use crate::device::Memory;
use crate::error::{Error, Result};

/// What happens to the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Every pixel of the input is doubled in both directions before the convolution.
    Double,
    /// Of every 2x2 outputs that at (`offset`, `offset`) is kept: 0 for a stride of 2 with zeros on all sides, 1 for zeros only on the right and below.
    Keep {
        /// 0 or 1.
        offset: u32,
    },
}

/// Extents. Not handed to a device as they are: the composed methods turn them into those of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResampleConvDims {
    /// Images.
    pub n: u32,
    /// Rows of the large side.
    pub h: u32,
    /// Columns of the large side.
    pub w: u32,
    /// Input channels.
    pub c: u32,
    /// Output channels.
    pub k: u32,
    /// Which side is the large one, and how it comes about.
    pub resampling: Resampling,
}

impl ResampleConvDims {
    /// Pixels of the large side, of all images.
    pub fn large(&self) -> usize {
        self.n as usize * self.h as usize * self.w as usize
    }
    /// Pixels of the small side, of all images.
    pub fn small(&self) -> usize {
        self.large() / 4
    }
    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.c as usize * if self.resampling == Resampling::Double { self.small() } else { self.large() }
    }
    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.k as usize * if self.resampling == Resampling::Double { self.large() } else { self.small() }
    }
    /// The convolution of stride 1 on the large side, as composed methods run it; for [`Direction::Dgrad`] its product of backward.
    pub fn conv(&self, direction: Direction) -> ConvDims {
        let (c0, k) = match direction {
            Direction::Forward => (self.c, self.k),
            Direction::Dgrad => (self.k, self.c),
        };
        ConvDims { n: self.n, h: self.h, w: self.w, c0, c1: 0, r0: 0, r1: 0, k, side: 3 }
    }
    /// The change of resolution of a tensor of `c` channels.
    pub fn resize(&self, c: u32) -> ResampleDims {
        ResampleDims { n: self.n, h: self.h, w: self.w, c }
    }
    /// Refuses empty extents, odd sides and offsets other than 0 and 1.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn validate(&self) -> Result<()> {
        let positive = self.n > 0 && self.h > 0 && self.w > 0 && self.c > 0 && self.k > 0;
        let even = self.h.is_multiple_of(2) && self.w.is_multiple_of(2);
        if positive && even && !matches!(self.resampling, Resampling::Keep { offset: 2.. }) {
            return Ok(());
        }
        let what = format!("extents must be positive, height and width even, the offset 0 or 1: {self:?}");
        Err(Error::Shape { op: "resample_conv", what })
    }
}

/// Results of [`ResampleConv::resample_conv_backward`].
pub struct ResampleConvGradients<'a, M: Memory> {
    /// The input's: [N, H/2, W/2, C] after doubling, [N, H, W, C] where pixels were kept; overwritten.
    pub dx: M::SliceMut<'a>,
    /// [9, C, K], accumulates.
    pub dw: M::SliceMut<'a>,
    /// `[K]`, accumulates.
    pub db: M::SliceMut<'a>,
}

/// The convolutions of a device that change the resolution.
pub trait ResampleConv: Memory {
    /// Elements of a packed filter.
    fn resample_conv_packed_len(&self, dims: &ResampleConvDims, direction: Direction) -> usize;

    /// Brings the filter `w` [9, C, K] into the order of the product of `direction`. `dims` are the convolution's own in both directions.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn resample_conv_pack(
        &self,
        dims: &ResampleConvDims,
        direction: Direction,
        w: Self::Slice<'_>,
        packed: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// y from x: [N, H, W, K] from [N, H/2, W/2, C] with doubling, [N, H/2, W/2, K] from [N, H, W, C] where pixels are kept. `biases` are added up, each of `[K]` or
    /// [N, K]; `stats` [N, K, 2] of y as in [`super::conv::Output::stats`].
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit, out of memory, a failing device.
    fn resample_conv<'a>(
        &self,
        dims: &ResampleConvDims,
        x: Self::Slice<'a>,
        packed: Self::Slice<'a>,
        biases: [Option<Self::Slice<'a>>; 2],
        y: Self::SliceMut<'_>,
        stats: Option<Self::SliceMut<'_>>,
    ) -> Result<()>;

    /// All gradients from that of the output, `dy`. `packed` is the filter of [`Direction::Dgrad`]; `add`, of the extents of `dx`, joins it.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit, out of memory, a failing device.
    fn resample_conv_backward<'a>(
        &self,
        dims: &ResampleConvDims,
        x: Self::Slice<'a>,
        packed: Self::Slice<'a>,
        dy: Self::Slice<'a>,
        add: Option<Self::Slice<'a>>,
        out: ResampleConvGradients<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;
}
