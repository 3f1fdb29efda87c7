//! The learning rate of every step: a warm-up, then constant, half a cosine or a line down to the end of the run.
//!
//! ```text
//! t steps done, W warm-up, T steps in all
//! t < W    lr (t + 1) / W
//! else     u = (t - W) / (T - W)     constant lr     cosine lr_min + (lr - lr_min) (1 + cos(pi u)) / 2     linear lr + (lr_min - lr) u
//! ```

use crate::config::{Config, LrSchedule};

/// The learning rate as a function of the steps done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrPlan {
    kind: LrSchedule,
    lr: f64,
    least: f64,
    warmup: u64,
    total: u64,
}

impl LrPlan {
    /// Of a run of `total` steps, which a constant rate does not look at.
    pub fn new(config: &Config, total: u64) -> Self {
        LrPlan { kind: config.lr_schedule, lr: config.lr, least: config.lr_min, warmup: config.lr_warmup as u64, total }
    }

    /// The rate of the step after `done` steps.
    pub fn at(&self, done: u64) -> f64 {
        if done < self.warmup {
            return self.lr * ((done + 1) as f64 / self.warmup as f64);
        }
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let u = ((done - self.warmup) as f64 / length).min(1.0);
        match self.kind {
            LrSchedule::Constant => self.lr,
            LrSchedule::Cosine => {
                self.least + (self.lr - self.least) * (0.5 * (1.0 + (std::f64::consts::PI * u).cos()))
            }
            LrSchedule::Linear => self.lr + (self.least - self.lr) * u,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: LrSchedule, warmup: usize, total: u64) -> LrPlan {
        let config = Config { lr: 0.5, lr_min: 0.1, lr_schedule: kind, lr_warmup: warmup, ..Config::seed_preset() };
        LrPlan::new(&config, total)
    }

    #[test]
    fn a_warm_up_is_a_line_that_ends_at_the_rate() {
        for kind in [LrSchedule::Constant, LrSchedule::Cosine, LrSchedule::Linear] {
            let plan = plan(kind, 5, 25);
            let rates: Vec<f64> = (0..6).map(|t| plan.at(t)).collect();
            for (rate, want) in rates.iter().zip([0.1, 0.2, 0.3, 0.4, 0.5, 0.5]) {
                assert!((rate - want).abs() < 1e-15, "{rates:?}");
            }
        }
    }

    #[test]
    fn each_kind_ends_where_it_should() {
        for (kind, middle, end) in
            [(LrSchedule::Constant, 0.5, 0.5), (LrSchedule::Cosine, 0.3, 0.1), (LrSchedule::Linear, 0.3, 0.1)]
        {
            let plan = plan(kind, 4, 24);
            assert_eq!(plan.at(4), 0.5);
            for (t, want) in [(14, middle), (24, end), (1000, end)] {
                assert!((plan.at(t) - want).abs() < 1e-15, "{kind:?} at {t}: {}", plan.at(t));
            }
            assert!((4..30).all(|t| plan.at(t + 1) <= plan.at(t)));
        }
        // A quarter of the way: (1 + cos(pi / 4)) / 2.
        assert!((plan(LrSchedule::Cosine, 0, 4).at(1) - (0.1 + 0.4 * 0.853_553_390_593_273_8)).abs() < 1e-15);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_all_there_is() {
        let plan = plan(LrSchedule::Cosine, 10, 5);
        assert!((0..5).all(|t| plan.at(t) < 0.5 && plan.at(t) > 0.0));
        assert_eq!(plan.at(10), 0.5);
    }
}
