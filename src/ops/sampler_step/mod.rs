//! One update of any sampler, in one pass over the pictures; and the two mixes around it.
//!
//! ```text
//! x0  = threshold(cx x + cp pred)
//! x  <- a x + b kept + c pred + d x0 + e last_x0 + f noise
//! last_x0 <- x0,  and where asked  kept <- the x from before
//! ```
//!
//! Every sampler here is a list of such coefficients ([`crate::diffusion::samplers`]). They are passed by value: a sampling loop is recorded
//! as a whole. The noise is drawn inside, from the stream (seed, [`crate::rng::Purpose::SampleStep`], call, number of the image).
//!
//! ```text
//! threshold   none; clamp to [-r, r]; or dynamic (Saharia et al. 2022, section 2.3): with s the q-quantile of |x0| over a picture
//!             (linear between neighbours), limited to [1, most], clamp to [-s, s] and divide by s
//! combine     out = a x + b y                                       scaled inputs; classifier-free guidance
//! blend       x <- mask x + (1 - mask) (signal known + noise_rate noise)        inpainting: what is known, at the noise of this step
//! ```
//!
//! An operand whose coefficient is 0 is not read: it may hold anything. No backward: sampling is not trained through.

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct StepDims {
    /// Images.
    pub n: u32,
    /// Elements of an image.
    pub per_image: u32,
}

/// What becomes of a predicted picture before it is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Nothing.
    None,
    /// Clamped to this distance from 0.
    Clamp(f32),
    /// Clamped to a quantile of each picture, and divided by it.
    Dynamic {
        /// Share of the elements that lie within, from 0 to 1.
        quantile: f64,
        /// The most that the quantile may be; at least 1.
        most: f32,
    },
}

/// Factors of an update, as its formula names them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coefficients {
    /// Of x in the predicted picture.
    pub cx: f32,
    /// Of the prediction in the predicted picture.
    pub cp: f32,
    /// Of x.
    pub a: f32,
    /// Of what was kept.
    pub b: f32,
    /// Of the prediction.
    pub c: f32,
    /// Of the predicted picture.
    pub d: f32,
    /// Of the picture predicted before.
    pub e: f32,
    /// Of fresh noise.
    pub f: f32,
    /// The x from before is kept.
    pub keep: bool,
}

/// Where an update's noise comes from.
pub struct StepNoise<'a, M: Memory> {
    /// Seed of the samples.
    pub seed: u64,
    /// Number of the network call, which keeps the noise of different updates apart.
    pub call: u32,
    /// `[1]`: the number of the first image, as [`crate::ops::noise::step_word`] writes it. It changes between replays.
    pub first_image: M::Slice<'a>,
}

/// What an update works on, all [N, per image] float32.
pub struct StepState<'a, M: Memory> {
    /// The pictures on their way.
    pub x: M::SliceMut<'a>,
    /// The pictures predicted last.
    pub x0: M::SliceMut<'a>,
    /// What was kept; needed where the coefficients say so.
    pub kept: Option<M::SliceMut<'a>>,
}

/// The updates of samplers on a device.
pub trait SamplerStep: Memory {
    /// One update from the prediction [N, per image] for `state.x`.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit, or an operand with a coefficient is missing.
    fn sampler_step(
        &self,
        dims: &StepDims,
        coefficients: &Coefficients,
        threshold: Threshold,
        pred: Self::Slice<'_>,
        noise: Option<StepNoise<'_, Self>>,
        state: StepState<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;

    /// out = a x + b y, element by element; without `y` the first term alone.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn combine(
        &self,
        a: f32,
        x: Self::Slice<'_>,
        b: f32,
        y: Option<Self::Slice<'_>>,
        out: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// x <- mask x + (1 - mask) (signal known + noise_rate noise), element by element; `rates`: signal and noise rate. Where the mask is
    /// 0 and the rates are 1 and 0, x is what is known, to the bit.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn blend(
        &self,
        rates: [f32; 2],
        mask: Self::Slice<'_>,
        known: Self::Slice<'_>,
        noise: Self::Slice<'_>,
        x: Self::SliceMut<'_>,
    ) -> Result<()>;
}

/// Refuses missing operands and thresholds that are none.
pub(crate) fn check_operands(c: &Coefficients, threshold: Threshold, noise: bool, kept: bool) -> Result<()> {
    const OP: &str = "sampler_step";
    let refuse = |what: String| Err(Error::Shape { op: OP, what });
    if c.f != 0.0 && !noise {
        return refuse("the noise has a coefficient, but no key is given".into());
    }
    if (c.b != 0.0 || c.keep) && !kept {
        return refuse("what is kept is needed, but no view of it is given".into());
    }
    match threshold {
        Threshold::Clamp(range) if range.is_nan() || range <= 0.0 => {
            refuse(format!("clamp to {range}; expected above 0"))
        }
        Threshold::Dynamic { quantile, most } if !(0.0..=1.0).contains(&quantile) || most.is_nan() || most < 1.0 => {
            refuse(format!("quantile {quantile} of at most {most}; expected 0 to 1, and at least 1"))
        }
        _ => Ok(()),
    }
}

/// The place of a quantile among `len` numbers in ascending order: the number below it, and the share of the one above.
pub(crate) fn quantile_place(quantile: f64, len: usize) -> (usize, f32) {
    let place = quantile * len.saturating_sub(1) as f64;
    let below = place.floor();
    (below as usize, (place - below) as f32)
}
