//! Convolution, 3x3 with zero padding 1 or 1x1, stride 1, fused with what stands before and after it.
//!
//! Mathematics. With T taps (1 or 9), input channels c of the concatenation of `x0` and `x1`, output channels k:
//!
//! ```text
//! z[p,c]  = silu?( scale[c] * x[p,c] + shift[c] )                      prologue; 0 outside the picture, AFTER the norm
//!                                                                     (scale, shift, biases may also differ per image)
//! u[p,k]  = sum_{t,c} z[p+t,c] W[t,c,k]  +  sum_r res[p,r] R[r,k]      main product and 1x1 residual as extra K
//! u      += bias[k] + bias_res[k]
//! u      *= silu'(h[p,k])                                              epilogue of a dgrad through silu
//! u      += a[k] * v[p,k] + b[k]                                       epilogue of a dgrad through batch norm
//! y[p,k]  = u + add[p,k]                                               joins gradients of several uses
//! stats[n,k] = (mean, sum of squared deviations) of y over the pixels of image n
//! ```
//!
//! The gradient with respect to the input is the same operation with the filter turned by 180 degrees and its channels
//! exchanged ([`Direction::Dgrad`]), so one kernel serves both. The gradient with respect to the weights is [`Conv::conv_wgrad`].
//!
//! Filters lie in memory as [T, C, K] (K fastest); [`Conv::conv_pack`] brings them into the order that the device's kernel reads.
//!
//! Gradients: `dw`, `dw_res`, `db` accumulate; `border_sums` and activations are overwritten.

pub mod cpu;
mod gpu;
mod lengths;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

/// Extents of a convolution. `c1`, `r0`, `r1` are 0 where there is no second input or no residual.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ConvDims {
    /// Images.
    pub n: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
    /// Channels of the first main input.
    pub c0: u32,
    /// Channels of the second main input.
    pub c1: u32,
    /// Channels of the first residual input.
    pub r0: u32,
    /// Channels of the second residual input.
    pub r1: u32,
    /// Output channels.
    pub k: u32,
    /// 1 or 3: side of the filter of the main product.
    pub side: u32,
}

impl ConvDims {
    /// Input channels of the main product.
    pub fn c(&self) -> usize {
        (self.c0 + self.c1) as usize
    }
    /// Input channels of the residual product.
    pub fn r(&self) -> usize {
        (self.r0 + self.r1) as usize
    }
    /// Taps of the filter.
    pub fn taps(&self) -> usize {
        (self.side * self.side) as usize
    }
    /// Pixels of all images.
    pub fn pixels(&self) -> usize {
        self.n as usize * self.h as usize * self.w as usize
    }
    /// Multiply-adds times two.
    pub fn flops(&self) -> u64 {
        2 * self.pixels() as u64 * (self.taps() * self.c() + self.r()) as u64 * u64::from(self.k)
    }
    /// Refuses empty extents and filters other than 1x1 and 3x3.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn validate(&self) -> Result<()> {
        let positive = self.n > 0 && self.h > 0 && self.w > 0 && self.c0 > 0 && self.k > 0;
        if positive && matches!(self.side, 1 | 3) && (self.r0 > 0 || self.r1 == 0) {
            return Ok(());
        }
        Err(Error::Shape { op: "conv", what: format!("unusable extents {self:?}") })
    }
}

/// One operand of a product: one tensor, or two that stand for their concatenation along channels.
pub struct Operand<'a, M: Memory> {
    /// [N, H, W, C0].
    pub x0: M::Slice<'a>,
    /// [N, H, W, C1], or [N, C1] where `x1_constant`: then float32 whatever the activations are.
    pub x1: Option<M::Slice<'a>>,
    /// `x1` is the same at every pixel of an image (the noise embedding).
    pub x1_constant: bool,
}

impl<M: Memory> Clone for Operand<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for Operand<'_, M> {}

impl<'a, M: Memory> Operand<'a, M> {
    /// A single tensor.
    pub fn one(x0: M::Slice<'a>) -> Self {
        Operand { x0, x1: None, x1_constant: false }
    }
}

/// What happens to the main operand on its way into the product.
pub struct Prologue<'a, M: Memory> {
    /// Scale and shift per channel, [C0 + C1] each, or per image and channel, [N, C0 + C1] (a group norm).
    pub affine: Option<(M::Slice<'a>, M::Slice<'a>)>,
    /// SiLU after the affine.
    pub silu: bool,
}

impl<M: Memory> Clone for Prologue<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for Prologue<'_, M> {}

impl<M: Memory> Prologue<'_, M> {
    /// Nothing happens.
    pub fn none() -> Self {
        Prologue { affine: None, silu: false }
    }
    /// SiLU alone.
    pub fn silu() -> Self {
        Prologue { affine: None, silu: true }
    }
}

/// What happens to the product on its way out, in the order of the module's mathematics.
pub struct Epilogue<'a, M: Memory> {
    /// `[K]`, or [N, K]: one for each image.
    pub bias: Option<M::Slice<'a>>,
    /// `[K]`, of the residual product, or [N, K] (a time embedding).
    pub bias_res: Option<M::Slice<'a>>,
    /// h, [N, H, W, K]: multiply by silu'(h).
    pub silu_grad: Option<M::Slice<'a>>,
    /// Add `a[k]` * v + `b[k]`; v may be two tensors, split like the output. (v, a, b), a and b of `[K]`.
    pub affine: Option<(Operand<'a, M>, M::Slice<'a>, M::Slice<'a>)>,
    /// Add to the first output, [N, H, W, K0].
    pub add0: Option<M::Slice<'a>>,
    /// Add to the second output, [N, H, W, K1].
    pub add1: Option<M::Slice<'a>>,
}

impl<M: Memory> Default for Epilogue<'_, M> {
    fn default() -> Self {
        Epilogue { bias: None, bias_res: None, silu_grad: None, affine: None, add0: None, add1: None }
    }
}

/// Where the result goes.
pub struct Output<'a, M: Memory> {
    /// [N, H, W, K0]: the first K0 output channels.
    pub y0: M::SliceMut<'a>,
    /// [N, H, W, K - K0]: the rest. Absent where K0 = K.
    pub y1: Option<M::SliceMut<'a>>,
    /// K0.
    pub k0: usize,
    /// [N, K, 2]: mean and sum of squared deviations from it, per image and channel.
    pub stats: Option<M::SliceMut<'a>>,
}

/// Which product the packed filter serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// y from x. `dims` are the convolution's own.
    Forward,
    /// dx from dy. `dims` are those of the dgrad product: `c0` is the forward's K, `k` the (first) forward input channels.
    Dgrad,
}

/// A filter to pack.
pub struct Filter<'a, M: Memory> {
    /// [T, C, K] of the forward convolution.
    pub w: M::Slice<'a>,
    /// [R, K]: the 1x1 residual.
    pub w_res: Option<M::Slice<'a>>,
    /// Input channels of the forward filter (`w` and `w_res` agree in it where both are transposed); dgrad may use only the
    /// first `dims.k` of them.
    pub forward_c: usize,
    /// Dgrad only: factor per forward input channel, for the main filter, not for the residual.
    pub scale: Option<M::Slice<'a>>,
}

/// Results of [`Conv::conv_wgrad`].
pub struct WeightGradients<'a, M: Memory> {
    /// [T, C, K], accumulates.
    pub dw: M::SliceMut<'a>,
    /// [R, K], accumulates.
    pub dw_res: Option<M::SliceMut<'a>>,
    /// `[K]`: sum of dy over pixels; accumulates.
    pub db: Option<M::SliceMut<'a>>,
    /// `[K]`: the same sum for the residual's bias; accumulates.
    pub db_res: Option<M::SliceMut<'a>>,
    /// [T, K]: for each tap the sum of dy over the pixels whose tap lies inside the picture; overwritten.
    pub border_sums: Option<M::SliceMut<'a>>,
}

/// The convolution of a device.
pub trait Conv: Memory {
    /// Elements of a packed filter.
    fn conv_packed_len(&self, dims: &ConvDims) -> usize;

    /// Brings a filter into the kernel's order.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn conv_pack(
        &self,
        dims: &ConvDims,
        direction: Direction,
        filter: Filter<'_, Self>,
        packed: Self::SliceMut<'_>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The fused convolution; see the module's mathematics.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    #[allow(clippy::too_many_arguments)] // four groups of operands, two filters, two directions: each is a type of its own
    fn conv<'a>(
        &self,
        dims: &ConvDims,
        input: Operand<'a, Self>,
        prologue: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        packed: Self::Slice<'a>,
        epilogue: Epilogue<'a, Self>,
        out: Output<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Gradients of the weights from the (prologued) input and the output's gradient `dy` [N, H, W, K]:
    /// `dW[t,c,k]` += sum_p `z[p+t,c]` `dy[p,k]`, `dR[r,k]` += sum_p `res[p,r]` `dy[p,k]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn conv_wgrad<'a>(
        &self,
        dims: &ConvDims,
        input: Operand<'a, Self>,
        prologue: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        dy: Self::Slice<'a>,
        out: WeightGradients<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;
}
