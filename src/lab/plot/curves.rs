//! Curves of one or several runs over their steps.

use super::{Axis, Chart, Look, Series};
use crate::error::{Error, Result};
use crate::lab::record::RunRecord;
use crate::train::metrics_log::{Record, Split};

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The training loss.
    Loss,
    /// Mean absolute error of the noise.
    NoiseLoss,
    /// Mean absolute error of the picture.
    ImageLoss,
    /// The learning rate.
    Lr,
    /// Speed.
    ImagesPerSecond,
}

impl Metric {
    /// By the name that `metrics.jsonl` has for it.
    ///
    /// # Errors
    /// No such metric.
    pub fn parse(name: &str) -> Result<Self> {
        let all = [Metric::Loss, Metric::NoiseLoss, Metric::ImageLoss, Metric::Lr, Metric::ImagesPerSecond];
        all.into_iter().find(|metric| metric.name() == name).ok_or_else(|| {
            let names = all.map(Metric::name).join(", ");
            Error::Usage(format!("--metric {name}: no such metric; expected one of {names}"))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::NoiseLoss => "noise_loss",
            Metric::ImageLoss => "image_loss",
            Metric::Lr => "lr",
            Metric::ImagesPerSecond => "images_per_second",
        }
    }

    fn of(self, record: &Record) -> f64 {
        match self {
            Metric::Loss => record.loss,
            Metric::NoiseLoss => record.noise_loss,
            Metric::ImageLoss => record.image_loss,
            Metric::Lr => record.lr,
            Metric::ImagesPerSecond => record.images_per_second,
        }
    }
}

/// How curves are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curves {
    /// What.
    pub metric: Metric,
    /// Of training steps.
    pub train: bool,
    /// Of validations.
    pub valid: bool,
    /// Share of the average that stays from record to record of training, in [0, 1).
    pub smoothing: f64,
    /// A logarithmic vertical axis.
    pub log: bool,
}

impl Curves {
    /// The chart of these runs, each with its name in the legend; training pale behind its smoothed curve, validation with dots.
    ///
    /// # Errors
    /// A run without metrics; nothing to draw.
    pub fn chart(&self, runs: &[(String, RunRecord)]) -> Result<Chart> {
        if !(0.0..1.0).contains(&self.smoothing) {
            return Err(Error::Usage(format!("--smooth {}: expected at least 0 and below 1", self.smoothing)));
        }
        let metric = self.metric.name().replace('_', " ");
        let mut chart = Chart::new(if runs.len() == 1 { runs[0].0.clone() } else { metric.clone() })
            .x(Axis::linear("step"))
            .y(Axis::of(metric, self.log));
        for (i, (name, run)) in runs.iter().enumerate() {
            let records = run.metrics()?;
            let points = |split: Split| -> Vec<(f64, f64)> {
                let of_split = records.iter().filter(|record| record.split == split);
                of_split.map(|record| (record.step as f64, self.metric.of(record))).collect()
            };
            let (train, valid) = (points(Split::Train), points(Split::Valid));
            let both = self.train && self.valid && !valid.is_empty();
            let named = |what: &str| match (runs.len(), both) {
                (1, _) => what.to_string(),
                (_, true) => format!("{name}, {what}"),
                (_, false) => name.clone(),
            };
            // Several runs have a colour each; one run has one for either curve.
            let valid_colour = if runs.len() == 1 { 1 } else { i };
            if self.train && !train.is_empty() {
                if self.smoothing > 0.0 {
                    chart = chart
                        .series(Series::new("", train.clone(), Look::Faint).colour(i))
                        .series(Series::line(named("train"), smoothed(&train, self.smoothing)).colour(i));
                } else {
                    chart = chart.series(Series::line(named("train"), train).colour(i));
                }
            }
            if self.valid && !valid.is_empty() {
                let look = if both && runs.len() > 1 { Look::Dashed } else { Look::Dots };
                chart = chart.series(Series::new(named("valid"), valid, look).colour(valid_colour));
            }
        }
        Ok(chart)
    }
}

/// Averages of what came lately, without the bias of their start; what is no number is passed over.
fn smoothed(points: &[(f64, f64)], beta: f64) -> Vec<(f64, f64)> {
    let (mut average, mut weight) = (0.0, 1.0);
    let step = |&(x, y): &(f64, f64)| {
        if !y.is_finite() {
            return (x, y);
        }
        average = beta * average + (1.0 - beta) * y;
        weight *= beta;
        (x, average / (1.0 - weight))
    };
    points.iter().map(step).collect()
}
