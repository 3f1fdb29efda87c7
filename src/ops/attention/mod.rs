//! Multi-head self-attention over the pixels of an image (Vaswani et al. 2017), whole rows.
//!
//! Per image and head, with T tokens (pixels) and D channels of a head, z = 1/sqrt(D):
//!
//! ```text
//! S[i,j] = z q[i] . k[j]        lse[i] = ln sum_j exp(S[i,j])        P = exp(S - lse)        y[i] = sum_j P[i,j] v[j]
//! ```
//!
//! q, k and v lie side by side for each token: `qkv` [N, T, 3, heads, D], as one 1x1 convolution writes them.
//!
//! Backward, from dy, with P recomputed from `lse` (as FlashAttention does, Dao et al. 2022):
//!
//! ```text
//! delta[i] = y[i] . dy[i]       dS = P (dy[i] . v[j] - delta[i])
//! dv[j] = sum_i P[i,j] dy[i]    dq[i] = z sum_j dS[i,j] k[j]         dk[j] = z sum_i dS[i,j] q[i]
//! ```
//!
//! All gradients are overwritten.

pub mod cpu;
mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AttentionDims {
    /// Images.
    pub n: u32,
    /// T: tokens of an image.
    pub tokens: u32,
    /// Heads.
    pub heads: u32,
    /// D: channels of a head.
    pub head_dim: u32,
}

impl AttentionDims {
    /// Channels of all heads.
    pub fn c(&self) -> usize {
        self.heads as usize * self.head_dim as usize
    }
    /// Elements of y and dy, [N, T, heads, D].
    pub fn len(&self) -> usize {
        self.n as usize * self.tokens as usize * self.c()
    }
    /// True where any extent is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Elements of `lse`, [N, heads, T].
    pub fn lse_len(&self) -> usize {
        self.n as usize * self.heads as usize * self.tokens as usize
    }
    /// z.
    pub fn scale(&self) -> f64 {
        1.0 / f64::from(self.head_dim).sqrt()
    }
    /// Multiply-adds times two of the two products of forward (backward: five of the same size).
    pub fn flops(&self) -> u64 {
        4 * self.len() as u64 * u64::from(self.tokens)
    }
}

/// Refuses empty extents and views of the wrong length: `views` are (name, found, expected).
pub(crate) fn check(d: &AttentionDims, views: &[(&str, usize, usize)]) -> Result<()> {
    if d.is_empty() {
        return Err(Error::Shape { op: "attention", what: format!("unusable extents {d:?}") });
    }
    views.iter().try_for_each(|&(name, got, want)| super::expect_len("attention", name, got, want))
}

/// Self-attention of a device.
pub trait Attention: Memory {
    /// y [N, T, heads, D] and `lse` [N, heads, T] (float32) from `qkv` [N, T, 3, heads, D].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn attention(
        &self,
        dims: &AttentionDims,
        qkv: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
        lse: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// `dqkv` [N, T, 3, heads, D] from what forward read and wrote, and `dy` [N, T, heads, D].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn attention_backward(
        &self,
        dims: &AttentionDims,
        qkv: Self::Slice<'_>,
        y: Self::Slice<'_>,
        lse: Self::Slice<'_>,
        dy: Self::Slice<'_>,
        dqkv: Self::SliceMut<'_>,
    ) -> Result<()>;
}
