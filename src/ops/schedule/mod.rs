//! Times to rates, and the sinusoidal embedding of the squared rate that the network sees.
//!
//! ```text
//! cosine   angle = acos(max) + t (acos(min) - acos(max));  signal = cos, noise = sin       (Nichol and Dhariwal 2021, as in Keras)
//! linear   bar = alpha_bars[floor(t * 999)];  signal = sqrt(bar), noise = sqrt(1 - bar)    (Ho et al. 2020)
//! v        noise^2, or signal^2 where the network predicts images
//! f_i      exp(i ln(1000) / (e/2 - 1)), i = 0 .. e/2-1
//! emb      [ sin(2 pi f_i v) | cos(2 pi f_i v) ]
//! ```
//!
//! Computed in float64 inside: the angles reach 2 pi 1000, where the rounding of v in float32 would show. No backward: times are
//! not learned.

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::Result;

/// Schedule and embedding, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct ScheduleDims {
    /// Lowest signal rate (cosine) or alpha-bar (linear).
    pub min_signal: f64,
    /// Highest signal rate (cosine) or alpha-bar (linear).
    pub max_signal: f64,
    /// Images.
    pub n: u32,
    /// Embedding channels; even.
    pub e: u32,
    /// 0 cosine, 1 linear.
    pub linear: u32,
    /// 0: the embedding is of noise^2; 1: of signal^2.
    pub embed_signal: u32,
    /// 1: angle, rates and v are rounded to float32 at each step, as PyTorch's sampler does on its float32 grid of times.
    pub single: u32,
    /// Keeps the struct free of padding.
    pub reserved: u32,
}

/// Steps of the linear schedule.
pub const LINEAR_STEPS: usize = 1000;

/// Results of [`Schedule::schedule`].
pub struct ScheduleOutput<'a, M: Memory> {
    /// [N, 2]: signal rate, noise rate.
    pub rates: M::SliceMut<'a>,
    /// [N, E], float32 on every device.
    pub embedding: M::SliceMut<'a>,
    /// [N, E, 2]: the embedding as a picture that is constant over its pixels has itself as mean and no deviation.
    pub stats: M::SliceMut<'a>,
}

/// The schedule of a device.
pub trait Schedule: Memory {
    /// Rates and embedding of `times` `[N]`, each in [0, 1].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit or `e` is odd.
    fn schedule(&self, dims: &ScheduleDims, times: Self::Slice<'_>, out: ScheduleOutput<'_, Self>) -> Result<()>
    where
        Self: Sized;
}
