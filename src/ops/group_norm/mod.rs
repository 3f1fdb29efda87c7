//! Group norm (Wu and He 2018) with what stands around it in a residual block: the modulation by a time embedding, SiLU, dropout.
//!
//! The input is one tensor [N, P, C0] or two that stand for their concatenation, [N, P, C0] and [N, P, C1]; C = C0 + C1 channels lie in G
//! groups of C/G, which may cross the border between the two. Per image and group, over M = P C/G values:
//!
//! ```text
//! m, v       mean and biased variance        r = 1 / sqrt(v + eps)        xhat = r (x - m)
//! norm       gamma xhat + beta
//! modulated  u = norm (1 + s) + t            s, t [N, C], where given ("scale_shift" of a time embedding; AdaGN)
//! y          drop( silu?(u) )                drop: zero with probability p, else / (1 - p), in training
//! ```
//!
//! Forward has no pass of its own where a convolution follows: [`GroupNorm::group_norm_coefficients`] turns the statistics that producers
//! leave per image and channel ([`conv::Output::stats`]) into `scale`, `shift` [N, C], u = scale x + shift, which the convolution applies
//! in its prologue. [`GroupNorm::group_norm_apply`] writes y where something else follows.
//!
//! Backward, from g = dL/dy, with d = drop(g) silu'(u) recomputed from x, per channel A = sum_p d, B = sum_p d xhat, E = sum_p xhat:
//!
//! ```text
//! dgamma[c] += sum_n (1 + s) B       dbeta[c] += sum_n (1 + s) A
//! dt[n,c]    = A                     ds[n,c]   = gamma B + beta A
//! a = mean over the group of gamma (1+s) d  = sum_c gamma (1+s) A / M        b = the same with d xhat = sum_c gamma (1+s) B / M
//! dx = scale d - r a - r b xhat  +  gradients of other uses of x
//! sum_p of the first three terms = scale A - r a P - r b E               (dL/d of what was added to x per image and channel)
//! ```
//!
//! Two passes over x and g: one for the sums, one for dx.
//!
//! Gradients: `dgamma`, `dbeta` accumulate; all others are overwritten.
//!
//! [`conv::Output::stats`]: super::conv::Output::stats

pub mod cpu;
mod gpu;
mod lengths;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use super::noise::NoiseKey;
use crate::device::Memory;
use crate::error::Result;

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct GroupNormDims {
    /// Added to the variance.
    pub eps: f64,
    /// Images.
    pub n: u32,
    /// P: pixels of an image.
    pub pixels: u32,
    /// Channels of the first input.
    pub c0: u32,
    /// Channels of the second input, or 0.
    pub c1: u32,
    /// G; divides C0 + C1.
    pub groups: u32,
    /// 1: SiLU after the norm.
    pub silu: u32,
}

impl GroupNormDims {
    /// All channels.
    pub fn c(&self) -> usize {
        (self.c0 + self.c1) as usize
    }
    /// Channels of a group.
    pub fn group_channels(&self) -> usize {
        self.c() / (self.groups as usize).max(1)
    }
    /// Elements of the first input.
    pub fn len0(&self) -> usize {
        self.n as usize * self.pixels as usize * self.c0 as usize
    }
    /// Elements of the second input.
    pub fn len1(&self) -> usize {
        self.n as usize * self.pixels as usize * self.c1 as usize
    }
    /// Elements of the coefficients: `scale` [N, C], `shift` [N, C], then (m, r) [N, G, 2].
    pub fn coefficients_len(&self) -> usize {
        2 * self.affine_len() + 2 * self.n as usize * self.groups as usize
    }
    /// Elements of `scale`, and of `shift` after it.
    pub fn affine_len(&self) -> usize {
        self.n as usize * self.c()
    }
}

/// Learned parameters, `[C]` each, and the modulation.
pub struct NormParams<'a, M: Memory> {
    /// Weight.
    pub gamma: M::Slice<'a>,
    /// Bias.
    pub beta: M::Slice<'a>,
    /// [N, 2 C]: s, then t, of each image; float32.
    pub modulation: Option<M::Slice<'a>>,
}

impl<M: Memory> Clone for NormParams<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for NormParams<'_, M> {}

/// The input: one tensor, or two that stand for their concatenation.
pub struct NormInput<'a, M: Memory> {
    /// [N, P, C0].
    pub x0: M::Slice<'a>,
    /// [N, P, C1].
    pub x1: Option<M::Slice<'a>>,
    /// What [`GroupNorm::group_norm_coefficients`] wrote.
    pub coefficients: M::Slice<'a>,
}

impl<M: Memory> Clone for NormInput<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for NormInput<'_, M> {}

/// Dropout of the result. Element e (NHWC order, within its image) of image i is kept where the number that Philox draws for (seed,
/// purpose, step, first_image + i, e), uniform in [0, 1), is at least `p`.
pub struct Dropout<'a, M: Memory> {
    /// Probability of zero, in [0, 1).
    pub p: f32,
    /// Which random numbers; the `purpose` differs from layer to layer by [`Dropout::layer`].
    pub key: NoiseKey,
    /// Which layer: added to the number of the purpose.
    pub layer: u32,
    /// `[1]`, see [`super::noise::step_word`].
    pub step: M::Slice<'a>,
}

impl<M: Memory> Clone for Dropout<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for Dropout<'_, M> {}

/// What [`GroupNorm::group_norm_backward`] adds to the gradients of the inputs: gradients of their other uses.
pub struct OtherGradients<'a, M: Memory> {
    /// To dx0, [N, P, C0].
    pub to0: [Option<M::Slice<'a>>; 2],
    /// To dx1, [N, P, C1].
    pub to1: Option<M::Slice<'a>>,
}

impl<M: Memory> Default for OtherGradients<'_, M> {
    fn default() -> Self {
        OtherGradients { to0: [None, None], to1: None }
    }
}

/// What [`GroupNorm::group_norm_backward`] writes.
pub struct NormGradients<'a, M: Memory> {
    /// [N, P, C0].
    pub dx0: M::SliceMut<'a>,
    /// [N, P, C1].
    pub dx1: Option<M::SliceMut<'a>>,
    /// `[C]`, accumulates.
    pub dgamma: M::SliceMut<'a>,
    /// `[C]`, accumulates.
    pub dbeta: M::SliceMut<'a>,
    /// [N, 2 C]: ds, then dt, of each image; given exactly where there is a modulation.
    pub dmodulation: Option<M::SliceMut<'a>>,
    /// [N, C]: sum over pixels of dx without the other gradients.
    pub sums: Option<M::SliceMut<'a>>,
}

/// Group norm of a device.
pub trait GroupNorm: Memory {
    /// Coefficients (see [`GroupNormDims::coefficients_len`]), float32, from the statistics [N, C0, 2] and [N, C1, 2] of the inputs.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn group_norm_coefficients(
        &self,
        dims: &GroupNormDims,
        stats0: Self::Slice<'_>,
        stats1: Option<Self::Slice<'_>>,
        params: NormParams<'_, Self>,
        coefficients: Self::SliceMut<'_>,
    ) -> Result<()>
    where
        Self: Sized;

    /// y [N, P, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn group_norm_apply(
        &self,
        dims: &GroupNormDims,
        input: NormInput<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        y: Self::SliceMut<'_>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Gradients from `g` [N, P, C], the gradient of y.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    #[allow(clippy::too_many_arguments)] // each is a group of operands of its own
    fn group_norm_backward(
        &self,
        dims: &GroupNormDims,
        input: NormInput<'_, Self>,
        params: NormParams<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        g: Self::Slice<'_>,
        other: OtherGradients<'_, Self>,
        out: NormGradients<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;
}
