//! Batch norm as coefficients: it has no pass of its own over the pixels.
//!
//! Forward. Producers leave (mean, sum of squared deviations) per image and channel ([`conv::Output::stats`]); Chan's merge over
//! images gives the batch's mean m and biased variance v (Ioffe and Szegedy 2015), and with r = 1/sqrt(v + eps)
//!
//! ```text
//! scale = gamma r        shift = beta - m gamma r         xhat = r x - m r
//! running_mean += momentum (m - running_mean)             running_var += momentum (v M/(M-1) - running_var)
//! ```
//!
//! which the next convolution applies in its prologue. M = N H W; where M = 1 the running variance takes v itself.
//!
//! Backward, of y = conv(gamma xhat + beta) with zero padding after the norm. Let g = dgrad of the convolution. Batch norm needs
//! two sums over pixels, S1 = sum g and S2 = sum g xhat per channel c. Both follow from the weight gradient, before g exists:
//!
//! ```text
//! D[t,c,k] = sum_p xhat[p+t,c] dy[p,k]   (wgrad against xhat)      B[t,k] = sum_p dy[p,k] over pixels whose tap is inside
//! S1[c] = sum_{t,k} W[t,c,k] B[t,k]                                S2[c] = sum_{t,k} W[t,c,k] D[t,c,k]
//! dW = gamma D + beta B      dgamma = S2      dbeta = S1
//! dx = scale g - (scale/M) S1 - (scale/M) S2 xhat  =  scale g + a x + b
//! a = -scale r S2 / M        b = -scale S1 / M + scale r m S2 / M
//! ```
//!
//! so the dgrad convolution, with its filter scaled per channel, writes the final dx (a and b are its epilogue).
//!
//! Gradients: `dw`, `dgamma`, `dbeta` accumulate; `coefficients` and `ab` are overwritten.
//!
//! [`conv::Output::stats`]: super::conv::Output::stats

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::Result;

/// PyTorch's default, added to the variance.
pub const EPS: f64 = 1e-5;
/// PyTorch's default, weight of the new batch in the running statistics.
pub const MOMENTUM: f64 = 0.1;

/// Extents: the norm of the concatenation of two tensors of c0 and c1 channels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BatchNormDims {
    /// Images.
    pub n: u32,
    /// Pixels of an image.
    pub pixels: u32,
    /// Channels of the first input.
    pub c0: u32,
    /// Channels of the second input, or 0.
    pub c1: u32,
}

impl BatchNormDims {
    /// All channels.
    pub fn c(&self) -> usize {
        (self.c0 + self.c1) as usize
    }
}

/// Rows of the coefficient block [5, C].
pub mod row {
    /// Mean of the batch (or running mean).
    pub const MEAN: usize = 0;
    /// 1 / sqrt(variance + eps).
    pub const RSTD: usize = 1;
    /// gamma * rstd.
    pub const SCALE: usize = 2;
    /// beta - mean * scale.
    pub const SHIFT: usize = 3;
    /// -mean * rstd: xhat = rstd * x + this.
    pub const XHAT_SHIFT: usize = 4;
    /// Number of rows.
    pub const COUNT: usize = 5;
}

/// Learned parameters, `[C]` each.
pub struct AffineParams<'a, M: Memory> {
    /// Weight.
    pub gamma: M::Slice<'a>,
    /// Bias.
    pub beta: M::Slice<'a>,
}

impl<M: Memory> Clone for AffineParams<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for AffineParams<'_, M> {}

/// Running statistics, `[C]` each, updated in training.
pub struct RunningMut<'a, M: Memory> {
    /// Running mean.
    pub mean: M::SliceMut<'a>,
    /// Running variance (unbiased).
    pub var: M::SliceMut<'a>,
}

/// What [`BatchNorm::batch_norm_backward`] reads.
pub struct BackwardInput<'a, M: Memory> {
    /// The convolution's filter, [T, C, K].
    pub w: M::Slice<'a>,
    /// D: its weight gradient against xhat, [T, C, K].
    pub dw_hat: M::Slice<'a>,
    /// B: [T, K].
    pub border_sums: M::Slice<'a>,
    /// Coefficients of the forward pass, [5, C].
    pub coefficients: M::Slice<'a>,
    /// Learned parameters.
    pub params: AffineParams<'a, M>,
    /// Taps of the convolution.
    pub taps: usize,
    /// Its output channels.
    pub k: usize,
}

/// What [`BatchNorm::batch_norm_backward`] writes.
pub struct BackwardOutput<'a, M: Memory> {
    /// [T, C, K], accumulates.
    pub dw: M::SliceMut<'a>,
    /// `[C]`, accumulates.
    pub dgamma: M::SliceMut<'a>,
    /// `[C]`, accumulates.
    pub dbeta: M::SliceMut<'a>,
    /// [2, C]: a, then b; overwritten.
    pub ab: M::SliceMut<'a>,
}

/// Batch norm of a device.
pub trait BatchNorm: Memory {
    /// Training: coefficients [5, C] from the batch's statistics [N, C0, 2] and [N, C1, 2]; updates the running statistics.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn batch_norm_train(
        &self,
        dims: &BatchNormDims,
        stats0: Self::Slice<'_>,
        stats1: Option<Self::Slice<'_>>,
        params: AffineParams<'_, Self>,
        running: RunningMut<'_, Self>,
        coefficients: Self::SliceMut<'_>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Evaluation: coefficients [5, C] from the running statistics.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn batch_norm_eval(
        &self,
        dims: &BatchNormDims,
        params: AffineParams<'_, Self>,
        running_mean: Self::Slice<'_>,
        running_var: Self::Slice<'_>,
        coefficients: Self::SliceMut<'_>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Backward of (batch norm in training, then convolution); see the module's mathematics.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn batch_norm_backward(
        &self,
        dims: &BatchNormDims,
        input: BackwardInput<'_, Self>,
        out: BackwardOutput<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;
}
