//! What a network is told besides the noisy picture: embeddings of timesteps and of classes. Float32 on every device; frequencies and
//! positional angles are rounded to float32, as PyTorch rounds them, and all else is taken in float64 inside.
//!
//! ```text
//! positional   f_i = exp(-ln(10000) i / (C/2 - freq_shift)), i = 0 .. C/2-1        emb = [sin(t f) | cos(t f)], the halves exchanged
//!              where flip; a last zero where C is odd                              (Vaswani et al. 2017; Ho et al. 2020)
//! fourier      angles 2 pi w_i ln(t), w [C/2] fixed random numbers                 emb = [sin | cos]  (Song et al. 2021)
//! class        emb[n] += table[label[n]]                                           dtable[label[n]] += demb[n], in the order of n
//! over t       y[n] = x[n] / t[n]                                                  the output of a fourier network, and its gradient
//! ```
//!
//! Times are not learned: no backward for them.

pub mod cpu;
mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::Result;

/// Extents and kind of a timestep embedding, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TimestepDims {
    /// Images.
    pub n: u32,
    /// Channels of the embedding.
    pub c: u32,
    /// 1: cosines first (positional only).
    pub flip: u32,
    /// Subtracted from C/2 where frequencies are spread (positional only).
    pub freq_shift: u32,
}

/// Embeddings of a device.
pub trait Embed: Memory {
    /// emb [N, C] of `timesteps` `[N]`; positional where no `frequencies` `[C/2]` are given, else fourier.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn embed_timesteps(
        &self,
        dims: &TimestepDims,
        timesteps: Self::Slice<'_>,
        frequencies: Option<Self::Slice<'_>>,
        emb: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// emb [N, C] += `table[label]`, `table` [K, C], `labels` `[N]` whole numbers; one outside 0..K makes its row NaN.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn embed_classes(&self, labels: Self::Slice<'_>, table: Self::Slice<'_>, emb: Self::SliceMut<'_>) -> Result<()>;

    /// dtable [K, C] accumulates from demb [N, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn embed_classes_backward(
        &self,
        labels: Self::Slice<'_>,
        demb: Self::Slice<'_>,
        dtable: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// x [N, per image] (float32) divided by `timesteps` `[N]`, in place.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn divide_by_timesteps(&self, timesteps: Self::Slice<'_>, x: Self::SliceMut<'_>) -> Result<()>;
}
