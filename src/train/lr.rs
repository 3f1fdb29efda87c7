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
    kind: Kind,
    lr: f64,
    least: f64,
    warmup: u64,
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Scheduled(LrSchedule),
    /// By equal factors, from `least` up to `lr`: the learning-rate finder.
    Exponential,
}

impl LrPlan {
    /// From `from` at the first of `steps` steps to `to` at the last, by equal factors.
    pub fn exponential(from: f64, to: f64, steps: u64) -> Self {
        LrPlan { kind: Kind::Exponential, lr: to, least: from, warmup: 0, total: steps.saturating_sub(1) }
    }

    /// Of a run of `total` steps, which a constant rate does not look at.
    pub fn new(config: &Config, total: u64) -> Self {
        let kind = Kind::Scheduled(config.lr_schedule);
        LrPlan { kind, lr: config.lr, least: config.lr_min, warmup: config.lr_warmup as u64, total }
    }

    /// The rate of the step after `done` steps.
    pub fn at(&self, done: u64) -> f64 {
        if done < self.warmup {
            return self.lr * ((done + 1) as f64 / self.warmup as f64);
        }
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let u = ((done - self.warmup) as f64 / length).min(1.0);
        match self.kind {
            Kind::Exponential => self.least * (self.lr / self.least).powf(u),
            Kind::Scheduled(LrSchedule::Constant) => self.lr,
            Kind::Scheduled(LrSchedule::Cosine) => {
                self.least + (self.lr - self.least) * (0.5 * (1.0 + (std::f64::consts::PI * u).cos()))
            }
            Kind::Scheduled(LrSchedule::Linear) => self.lr + (self.least - self.lr) * u,
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
    fn the_finder_goes_by_equal_factors() {
        let plan = LrPlan::exponential(1e-6, 1e-2, 5);
        for (t, want) in [(0, 1e-6), (1, 1e-5), (2, 1e-4), (3, 1e-3), (4, 1e-2), (5, 1e-2)] {
            assert!((plan.at(t) / want - 1.0).abs() < 1e-12, "{t}: {}", plan.at(t));
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_all_there_is() {
        let plan = plan(LrSchedule::Cosine, 10, 5);
        assert!((0..5).all(|t| plan.at(t) < 0.5 && plan.at(t) > 0.0));
        assert_eq!(plan.at(10), 0.5);
    }
}
