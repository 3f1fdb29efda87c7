//! The learning-rate finder (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3; the seed's
//! `luz::lr_finder`): one short training in which the learning rate grows by equal factors, and what its loss says.
//!
//! ```text
//! lr_i   = from (to / from)^(i / (n - 1))                       the rate of step i
//! avg_i  = beta avg_(i-1) + (1 - beta) loss_i                   smoothed_i = avg_i / (1 - beta^(i+1))
//! stop     where smoothed_i > 4 min(smoothed), or the loss is not finite
//! suggest  steepest: the rate where the smoothed loss falls fastest over log lr, by a least-squares line through nearby points
//!          minimum / 10: a tenth of the rate of the least smoothed loss
//! ```
//!
//! It works on a network and a normaliser of its own, which end with it: a run that it starts from is only read. (In the seed the
//! finder's batches also counted in the statistics of the normaliser that the training then used.)

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::plot::{Axis, Chart, Look, Series};
use crate::config::Config;
use crate::data::Labels;
use crate::device::ReadBack;
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::loss::LossValues;
use crate::sample::{WeightKind, load};
use crate::train::batches::load_pictures;
use crate::train::checks::{check_classes, check_trainable};
use crate::train::feed::Feed;
use crate::train::interrupt::Interrupt;
use crate::train::lr::LrPlan;
use crate::train::progress::Progress;
use crate::train::run_dir::write_atomic;
use crate::train::state::{TrainState, import_model};
use crate::train::stepper::Stepper;

/// The sweep ends where the smoothed loss exceeds its least by this factor.
pub const DIVERGED: f64 = 4.0;
/// Points that are never a suggestion: their average has seen too little.
const WARM_UP: usize = 5;
/// Share of the points on either side that the slope at a point is of.
const REACH: f64 = 0.05;

/// What to sweep.
#[derive(Clone, Debug)]
pub struct FindLrOptions {
    /// The configuration, whose `lr` and learning-rate schedule are not used.
    pub config: Config,
    /// A run, checkpoint or model to start from, instead of a fresh network. It is only read.
    pub start: Option<PathBuf>,
    /// Where known sets of pictures are looked for.
    pub data_dir: Option<PathBuf>,
    /// The first and the last learning rate.
    pub rates: [f64; 2],
    /// Steps.
    pub steps: usize,
    /// Share of the average that stays at every step, in [0, 1).
    pub smoothing: f64,
}

/// A step of the sweep; a line of the JSONL file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// From 1.
    pub step: usize,
    /// Its learning rate.
    pub lr: f64,
    /// Training loss of its batch, before the step.
    pub loss: f64,
    /// Average of the losses so far, without the bias of its start.
    pub smoothed: f64,
}

/// What a sweep says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// Where the loss falls fastest.
    pub steepest: f64,
    /// A tenth of the rate of the least loss.
    pub tenth_of_minimum: f64,
    /// The rate of the least smoothed loss.
    pub minimum: f64,
}

/// A sweep that was run.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Its points, in order.
    pub points: Vec<Point>,
    /// Why it ended before its last step, if it did.
    pub stopped: Option<String>,
    /// What it says; nothing where the loss never fell.
    pub suggestion: Option<Suggestion>,
    /// How long it took.
    pub seconds: f64,
}

impl Suggestion {
    /// The rate to begin with: of the two rules the more careful one.
    pub fn suggested(&self) -> f64 {
        self.steepest.min(self.tenth_of_minimum)
    }
}

impl FindLrOptions {
    /// Refuses a sweep that cannot be.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the option.
    pub fn check(&self) -> Result<()> {
        let [from, to] = self.rates;
        if !(from > 0.0 && from < to && to <= 10.0) {
            return Err(Error::Usage(format!(
                "--from {from} --to {to}: expected 0 < from < to <= 10, such as --from 1e-7 --to 1e-1"
            )));
        }
        if self.steps < 10 {
            let what = "a sweep of fewer than 10 steps says nothing";
            return Err(Error::Usage(format!("--steps {}: {what}; expected 10 or more, such as 100", self.steps)));
        }
        if !(0.0..1.0).contains(&self.smoothing) {
            return Err(Error::Usage(format!(
                "--smoothing {}: expected at least 0 (none) and below 1, such as 0.9",
                self.smoothing
            )));
        }
        self.config.validate()?;
        check_trainable(&self.config)
    }
}

/// Runs the sweep.
///
/// # Errors
/// Bad options or input; the device failed; interrupted (nothing is kept then).
pub fn run<B: Backend>(
    backend: &B,
    options: &FindLrOptions,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Sweep> {
    options.check()?;
    let began = Instant::now();
    let mut config = options.config.clone();
    let start = options.start.as_deref().map(|path| load(path, WeightKind::Raw, progress)).transpose()?;
    let mut normalizer = Normalizer::of(&config);
    if let Some(start) = &start {
        let [mean, std] = start.mean_std()?;
        normalizer = Normalizer::frozen(&mean, &std);
    }
    config.ema_decay = 0.0; // nobody draws with these weights
    let dataset = load_pictures(&config, options.data_dir.as_deref(), progress)?;
    let labels = config.labels_path().map(|path| Labels::load(path, &dataset)).transpose()?;
    check_classes(&config, labels.as_ref())?;
    let split = dataset.split(config.valid_fraction, config.seed)?;
    let mut state = TrainState::new(backend, &config)?;
    if let Some(start) = &start {
        import_model(backend, &mut state.weights, &start.tensors)?;
        progress.line(&format!("model   {} (only read)", start.path.display()));
    }
    let [from, to] = options.rates;
    state.set_lr_plan(LrPlan::exponential(from, to, options.steps as u64));
    let mut feed = Feed::new(&config, &dataset, labels, split.train);
    let mut stepper = Stepper::new(backend, config.channels, config.seed)?;
    progress.line(&format!("data    {}", dataset.description()));
    progress.line(&format!("sweep   {} steps of {} images, lr {from:e} to {to:e}", options.steps, config.batch_size));
    let task = progress.task("find-lr", options.steps as u64, "steps");
    let mut smoother = Smoother::new(options.smoothing);
    let (mut points, mut stopped) = (Vec::with_capacity(options.steps), None);
    for step in 0..options.steps {
        let fed = feed.step(step as u64);
        normalizer.gather(fed.pixels);
        let losses =
            stepper.step_of_classes(backend, &mut state, &normalizer, fed.shape, fed.pixels, &fed.labels)?.wait()?;
        let (loss, lr) = (LossValues::from_slots(&losses).loss, state.lr());
        if !loss.is_finite() {
            stopped = Some(format!("the loss is {loss} at lr {lr:.2e} (step {})", step + 1));
            break;
        }
        let smoothed = smoother.add(loss);
        points.push(Point { step: step + 1, lr, loss, smoothed });
        task.message(&format!("lr {lr:.1e} loss {smoothed:.4}"));
        task.advance(1);
        if smoother.diverged() {
            stopped = Some(format!(
                "the smoothed loss {smoothed:.4} is over {DIVERGED} times its least at lr {lr:.2e} (step {})",
                step + 1
            ));
            break;
        }
        if interrupt.requested() {
            return Err(Error::Interrupted(format!(
                "stopped after {} of {} steps; nothing kept",
                step + 1,
                options.steps
            )));
        }
    }
    task.finish();
    let suggestion = suggest(&points);
    Ok(Sweep { points, stopped, suggestion, seconds: began.elapsed().as_secs_f64() })
}

/// An average of what came lately.
struct Smoother {
    beta: f64,
    average: f64,
    weight: f64,
    least: f64,
    last: f64,
    seen: usize,
}

impl Smoother {
    fn new(beta: f64) -> Self {
        Smoother { beta, average: 0.0, weight: 1.0, least: f64::INFINITY, last: 0.0, seen: 0 }
    }

    fn add(&mut self, loss: f64) -> f64 {
        self.average = self.beta * self.average + (1.0 - self.beta) * loss;
        self.weight *= self.beta;
        self.last = self.average / (1.0 - self.weight);
        self.least = self.least.min(self.last);
        self.seen += 1;
        self.last
    }

    fn diverged(&self) -> bool {
        self.seen > WARM_UP && self.last > DIVERGED * self.least
    }
}

/// What the points say: nothing where there are too few of them, or the loss never fell.
pub fn suggest(points: &[Point]) -> Option<Suggestion> {
    let n = points.len();
    if n < 2 * WARM_UP {
        return None;
    }
    let at = (WARM_UP..n).min_by(|&a, &b| points[a].smoothed.total_cmp(&points[b].smoothed))?;
    let minimum = points[at].lr;
    let reach = ((n as f64 * REACH).round() as usize).max(2);
    // Beyond the least loss nothing is to be gained.
    let slopes = (WARM_UP..=at).filter_map(|i| {
        let near = &points[i.saturating_sub(reach).max(1)..(i + reach + 1).min(n)];
        Some((i, slope(near)?))
    });
    let (steepest, slope) = slopes.min_by(|a, b| a.1.total_cmp(&b.1))?;
    (slope < 0.0).then_some(Suggestion { steepest: points[steepest].lr, tenth_of_minimum: minimum / 10.0, minimum })
}

/// Slope of the smoothed loss over the logarithm of the learning rate, by least squares.
fn slope(points: &[Point]) -> Option<f64> {
    let n = points.len() as f64;
    let x = |p: &Point| p.lr.ln();
    let (mx, my) = (points.iter().map(x).sum::<f64>() / n, points.iter().map(|p| p.smoothed).sum::<f64>() / n);
    let xy: f64 = points.iter().map(|p| (x(p) - mx) * (p.smoothed - my)).sum();
    let xx: f64 = points.iter().map(|p| (x(p) - mx).powi(2)).sum();
    (xx > 0.0).then_some(xy / xx)
}

impl Sweep {
    /// Writes `<stem>.jsonl`, `<stem>.svg` and `<stem>.png`, and returns their paths.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, stem: &Path, title: &str) -> Result<[PathBuf; 3]> {
        // Not with_extension: `lr.flowers` is a stem, too.
        let with = |ending: &str| PathBuf::from(format!("{}.{ending}", stem.display()));
        let mut lines = String::new();
        for point in &self.points {
            let line =
                serde_json::to_string(point).map_err(|why| Error::Failed(format!("cannot write a point: {why}")))?;
            lines.push_str(&line);
            lines.push('\n');
        }
        let jsonl = with("jsonl");
        write_atomic(&jsonl, lines.as_bytes())?;
        let chart = self.chart(title);
        let [svg, png] = ["svg", "png"].map(with);
        chart.save(&svg)?;
        chart.save(&png)?;
        Ok([jsonl, svg, png])
    }

    /// The plot: losses over learning rates, with the suggestion.
    pub fn chart(&self, title: &str) -> Chart {
        let of = |value: fn(&Point) -> f64| self.points.iter().map(|p| (p.lr, value(p))).collect();
        // A loss that explodes at the end must not press the fall before it flat.
        let losses = || self.points.iter().map(|p| p.loss.min(p.smoothed));
        let (least, first) = (losses().fold(f64::INFINITY, f64::min), self.points.first().map_or(1.0, |p| p.smoothed));
        let fall = (first - least).max(0.02 * first.abs());
        let mut chart = Chart::new(title)
            .x(Axis::log("learning rate"))
            .y(Axis::linear("training loss").range(least - 0.1 * fall, first + 0.5 * fall))
            .series(Series::new("loss of a batch", of(|p| p.loss), Look::Faint).colour(0))
            .series(Series::line("smoothed", of(|p| p.smoothed)).colour(0));
        if let Some(found) = &self.suggestion {
            chart = chart
                .mark_x(found.steepest, format!("steepest {:.1e}", found.steepest))
                .mark_x(found.minimum, format!("least {:.1e}", found.minimum));
        }
        chart
    }
}
