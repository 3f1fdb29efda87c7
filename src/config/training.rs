//! Settings of training that do not fit each other: each refusal names both, and what would do.

use super::keys::number;
use super::{Config, Family, LrSchedule, Predict, ScheduleKind};

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
        self.check_objective()
    }

    /// Schedule and objective.
    fn check_objective(&self) -> std::result::Result<(), String> {
        let schedule = self.get("schedule").replace('"', "");
        if self.family == Family::Seed {
            if !matches!(self.schedule, ScheduleKind::Linear | ScheduleKind::Cosine) {
                return Err(format!(
                    "schedule {schedule} with family seed: that family's times are continuous; expected schedule linear or cosine, or \
                     family unet2d"
                ));
            }
            let neutral = Config::seed_preset();
            let foreign =
                ["beta_start", "beta_end", "train_timesteps", "zero_snr", "min_snr_gamma", "labels", "label_dropout"];
            if let Some((key, ours, default)) = self.differences(&neutral, &foreign).first() {
                return Err(format!(
                    "{key} {ours} with family seed: that family has no use for it; expected {key} {default}, or family unet2d"
                ));
            }
            return Ok(());
        }
        if self.label_dropout > 0.0 && self.labels_path().is_none() {
            return Err(format!(
                "label_dropout {} with labels none: there are no labels to leave out; expected label_dropout 0, or a file of labels",
                number(self.label_dropout)
            ));
        }
        if self.labels_path().is_some() && self.class_embeds().is_none() {
            return Err(format!(
                "labels {} without unet.num_class_embeds: the network knows no classes; set unet.num_class_embeds to the number of \
                 classes (and one more where label_dropout is above 0), or labels to none",
                super::keys::shown(&self.labels)
            ));
        }
        if self.beta_start > self.beta_end {
            return Err(format!(
                "beta_start {} and beta_end {}: the noise grows from the first to the last; expected beta_start of at most beta_end",
                number(self.beta_start),
                number(self.beta_end)
            ));
        }
        if self.zero_snr && !self.schedule.is_betas() {
            return Err(format!(
                "zero_snr true with schedule {schedule}: only schedules of betas can be stretched; expected zero_snr false, or schedule \
                 linear, scaled_linear, squaredcos_cap_v2 or sigmoid"
            ));
        }
        if self.zero_snr && self.predict == Predict::Noise {
            return Err("predict noise with zero_snr true: at the last step the picture is all noise, and no picture can be found from \
                 it by dividing by a signal rate of 0; expected predict velocity or image, or zero_snr false"
                .into());
        }
        Ok(())
    }
}
