//! Losses between two training records.

use serde::{Deserialize, Serialize};

use crate::ops::loss::LossValues;

/// Sums of losses since the last training record, weighted by images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(super) images: f64,
    loss: f64,
    noise_loss: f64,
    image_loss: f64,
    #[serde(default)]
    pub(super) grad_norm: f64,
}

impl Window {
    /// `slots` as [`super::state::TrainState::losses`] has them.
    pub(super) fn add_step(&mut self, v: &LossValues, slots: &[f32], images: usize) {
        self.add(v, images);
        self.grad_norm += slots.get(3).map_or(0.0, |norm| f64::from(*norm) * images as f64);
    }
    /// Losses of a batch.
    pub(crate) fn add(&mut self, v: &LossValues, images: usize) {
        let n = images as f64;
        self.images += n;
        self.loss += v.loss * n;
        self.noise_loss += v.noise_loss * n;
        self.image_loss += v.image_loss * n;
    }
    /// Their means.
    pub(crate) fn mean(&self) -> LossValues {
        let of = |sum: f64| sum / self.images;
        LossValues { loss: of(self.loss), noise_loss: of(self.noise_loss), image_loss: of(self.image_loss) }
    }
}
