//! Prediction to (noise, image), the training loss with its gradient, and the two metrics.
//!
//! With s, q the signal and noise rates and p the network's output:
//!
//! ```text
//! predict noise     pred_noise = p                    pred_image = (noisy - q p) / s        target noise
//! predict image     pred_noise = (noisy - s p) / q    pred_image = p                        target image
//! predict velocity  pred_noise = q noisy + s p        pred_image = s noisy - q p            target s noise - q image
//! loss  mean over all elements of w_n f(p - target):  mae |d|   mse d^2   huber d^2/2 where |d| < 1 else |d| - 1/2
//! dp    w_n f'(d) / elements   mae sign(d) (0 at 0)   mse 2 d   huber clamp(d, -1, 1)
//! noise_loss = mean |pred_noise - noise|      image_loss = mean |pred_image - image|
//! ```
//!
//! w_n, the weight of an image, is 1 where none are given; the metrics have no weights. A batch may be a part of a larger one: the means
//! are then over the elements of [`LossDims::of`] images, and the values of the parts are added up.
//!
//! Sums are taken per image in a fixed order, in float64, then over images. `dp` is overwritten.

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::config::{LossKind, Predict};
use crate::device::Memory;
use crate::error::{Error, Result};

/// Extents and kind, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LossDims {
    /// Images.
    pub n: u32,
    /// Elements of an image.
    pub per_image: u32,
    /// 0 noise, 1 image, 2 velocity.
    pub predict: u32,
    /// 0 mae, 1 mse, 2 huber.
    pub loss: u32,
    /// Images that the means are taken over: `n`, or those of the larger batch of which this one is a part.
    pub of: u32,
    /// 1: the values are added to what `out` holds.
    pub add: u32,
}

impl LossDims {
    /// From the configuration's names; the means are over the batch itself.
    pub fn new(n: usize, per_image: usize, predict: Predict, loss: LossKind) -> Self {
        let loss = match loss {
            LossKind::Mae => 0,
            LossKind::Mse => 1,
            LossKind::Huber => 2,
        };
        let (n, per_image) = (n as u32, per_image as u32);
        LossDims { n, per_image, predict: predict_code(predict), loss, of: n, add: 0 }
    }
}

/// The code of a prediction kind in dims structs.
pub fn predict_code(predict: Predict) -> u32 {
    match predict {
        Predict::Noise => 0,
        Predict::Image => 1,
        Predict::Velocity => 2,
    }
}

/// Refuses codes that no kernel knows.
pub(crate) fn check_codes(op: &'static str, predict: u32, loss: u32) -> Result<()> {
    if predict < 3 && loss < 3 {
        return Ok(());
    }
    Err(Error::Shape { op, what: format!("unknown prediction kind {predict} or loss {loss}") })
}

/// Operands of the loss, each [N, per image] but `rates` [N, 2] and `weights` `[N]`.
pub struct LossInput<'a, M: Memory> {
    /// The network's output.
    pub pred: M::Slice<'a>,
    /// Its input.
    pub noisy: M::Slice<'a>,
    /// The clean, normalised pictures.
    pub images: M::Slice<'a>,
    /// The noise in them.
    pub noise: M::Slice<'a>,
    /// Signal rate, noise rate.
    pub rates: M::Slice<'a>,
    /// `[N]`: the weight of each image in the loss.
    pub weights: Option<M::Slice<'a>>,
}

/// Loss and metrics of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossValues {
    /// The training loss.
    pub loss: f64,
    /// Mean absolute error of the predicted noise.
    pub noise_loss: f64,
    /// Mean absolute error of the predicted image.
    pub image_loss: f64,
}

impl LossValues {
    /// From the slots that [`Loss::loss`] writes; what is missing is NaN.
    pub fn from_slots(slots: &[f32]) -> Self {
        let at = |i: usize| f64::from(slots.get(i).copied().unwrap_or(f32::NAN));
        LossValues { loss: at(0), noise_loss: at(1), image_loss: at(2) }
    }
}

/// The loss of a device.
pub trait Loss: Memory {
    /// Writes (or adds) loss, noise_loss and image_loss to `out` `[3]` and, where asked, the gradient dp.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn loss(
        &self,
        dims: &LossDims,
        input: LossInput<'_, Self>,
        dp: Option<Self::SliceMut<'_>>,
        out: Self::SliceMut<'_>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Splits the network's output into predicted noise and predicted image. `pred`, `noisy`: [N, per image].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn split_prediction(
        &self,
        dims: &LossDims,
        pred: Self::Slice<'_>,
        noisy: Self::Slice<'_>,
        rates: Self::Slice<'_>,
        pred_noise: Self::SliceMut<'_>,
        pred_image: Self::SliceMut<'_>,
    ) -> Result<()>;
}
