//! Settings of training that do not fit each other: each refusal names both, and what would do.

use super::keys::number;
use super::{Config, LrSchedule};

impl Config {
    /// Settings of the optimiser that do not fit each other.
    pub(super) fn check_training(&self) -> std::result::Result<(), String> {
        if self.lr_schedule == LrSchedule::Constant && self.lr_min != 0.0 {
            return Err(format!(
                "lr_min {} with lr_schedule constant: a constant learning rate has no end; expected lr_min 0, or lr_schedule cosine \
                 or linear",
                number(self.lr_min)
            ));
        }
        if self.lr_min > self.lr {
            return Err(format!(
                "lr_min {} and lr {}: the learning rate falls from lr to lr_min; expected lr_min of at most lr",
                number(self.lr_min),
                number(self.lr)
            ));
        }
        if !self.batch_size.is_multiple_of(self.accumulate) {
            return Err(format!(
                "batch_size {} and accumulate {}: a batch is computed in equal parts; expected a batch_size that accumulate divides, \
                 such as {}",
                self.batch_size,
                self.accumulate,
                self.batch_size.next_multiple_of(self.accumulate)
            ));
        }
        Ok(())
    }
}
