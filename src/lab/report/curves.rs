//! The numbers of a run as curves that a page can hold: at most so many points each, with every peak kept.

use serde::Serialize;

use crate::train::metrics_log::{Record, Split};

/// A quantity over the steps. JSON: `{"step": [...], "value": [...]}`; what is not finite is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// Optimiser steps, rising.
    pub step: Vec<u64>,
    /// As many values, in six significant digits.
    pub value: Vec<Option<f64>>,
}

/// The curves of one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curves {
    /// The training loss.
    pub loss: Series,
    /// Mean absolute error of the noise.
    pub noise_loss: Series,
    /// Mean absolute error of the picture.
    pub image_loss: Series,
    /// Learning rate.
    pub lr: Series,
    /// Pictures a second.
    pub images_per_second: Series,
    /// Norm of the gradients; empty where they are not clipped.
    pub grad_norm: Series,
    /// Seconds of training so far.
    pub seconds: Series,
    /// Epoch, from 1.
    pub epoch: Series,
}

impl Curves {
    /// Those of the records of `split`, each thinned to at most `most` points.
    pub fn of(records: &[Record], split: Split, most: usize) -> Self {
        let records: Vec<&Record> = records.iter().filter(|record| record.split == split).collect();
        let series = |value: fn(&Record) -> Option<f64>| {
            let points: Vec<_> = records.iter().filter_map(|record| Some((record.step, value(record)?))).collect();
            Series::thinned(&points, most)
        };
        Curves {
            loss: series(|r| Some(r.loss)),
            noise_loss: series(|r| Some(r.noise_loss)),
            image_loss: series(|r| Some(r.image_loss)),
            lr: series(|r| Some(r.lr)),
            images_per_second: series(|r| Some(r.images_per_second)),
            grad_norm: series(|r| r.grad_norm),
            seconds: series(|r| Some(r.seconds)),
            epoch: series(|r| Some(r.epoch as f64)),
        }
    }
}

impl Series {
    /// At most `most` (from 4) of the points, in order: the first and the last, and of every stretch between the least and the greatest
    /// value, so that a drawn line has the envelope of all points. A stretch with a value that is not finite keeps one of these too.
    pub fn thinned(points: &[(u64, f64)], most: usize) -> Self {
        let mut kept = Series::default();
        if points.len() <= most.max(4) {
            points.iter().for_each(|&point| kept.push(point));
            return kept;
        }
        let gaps = points.iter().any(|(_, value)| !value.is_finite());
        let (inner, each) = (&points[1..points.len() - 1], if gaps { 3 } else { 2 });
        let stretches = ((most.max(4) - 2) / each).max(1);
        kept.push(points[0]);
        for stretch in 0..stretches {
            let bound = |k: usize| k * inner.len() / stretches;
            let part = &inner[bound(stretch)..bound(stretch + 1)];
            let finite = |i: &usize| part[*i].1.is_finite();
            let least = (0..part.len()).filter(finite).min_by(|&a, &b| part[a].1.total_cmp(&part[b].1));
            let most = (0..part.len()).filter(finite).max_by(|&a, &b| part[a].1.total_cmp(&part[b].1));
            let gap = (0..part.len()).find(|i| !finite(i));
            let mut chosen: Vec<usize> = [least, most, gap].into_iter().flatten().collect();
            chosen.sort_unstable();
            chosen.dedup();
            chosen.into_iter().for_each(|i| kept.push(part[i]));
        }
        kept.push(points[points.len() - 1]);
        kept
    }

    fn push(&mut self, (step, value): (u64, f64)) {
        self.step.push(step);
        self.value.push(short(value));
    }
}

/// In six significant digits; nothing where it is not finite.
pub fn short(value: f64) -> Option<f64> {
    value.is_finite().then(|| format!("{value:.5e}").parse().unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_stay() {
        let points: Vec<_> = (0..2000).map(|i| (i, i as f64)).collect();
        let series = Series::thinned(&points, 2000);
        assert_eq!(series.step, (0..2000).collect::<Vec<_>>());
        assert_eq!(Series::thinned(&[], 2000), Series::default());
    }

    #[test]
    fn peaks_ends_and_gaps_survive_thinning() {
        let mut points: Vec<_> = (0..100_000u64).map(|i| (10 * i, 1.0 + (i as f64 * 0.37).sin() * 0.1)).collect();
        points[40_001].1 = 9.0;
        points[70_007].1 = -3.0;
        for with_gap in [false, true] {
            if with_gap {
                points[55_555].1 = f64::NAN;
            }
            let series = Series::thinned(&points, 2000);
            assert!(series.step.len() <= 2000 && series.step.len() > 1300, "{}", series.step.len());
            assert!(series.step.windows(2).all(|w| w[0] < w[1]));
            assert_eq!((series.step[0], *series.step.last().unwrap()), (0, 999_990));
            let at = |step| series.value[series.step.iter().position(|&s| s == step).unwrap()];
            assert_eq!(at(400_010), Some(9.0));
            assert_eq!(at(700_070), Some(-3.0));
            assert_eq!(series.value.iter().filter(|v| v.is_none()).count(), usize::from(with_gap));
        }
    }

    #[test]
    fn numbers_are_short_and_nan_is_null() {
        let series = Series::thinned(&[(1, 0.123456789), (2, f64::INFINITY)], 10);
        assert_eq!(serde_json::to_string(&series).unwrap(), r#"{"step":[1,2],"value":[0.123457,null]}"#);
        assert_eq!(short(123456.7), Some(123457.0));
        assert_eq!(short(2e-7), Some(2e-7));
    }
}
