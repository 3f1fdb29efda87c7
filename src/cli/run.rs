//! From parsed options to the library: the device is made here, and here what was done is told.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use ddim_engine::check::{self, Report, Tolerances};
use ddim_engine::config::{Config, LrSchedule};
use ddim_engine::device::gpu::Arithmetic;
use ddim_engine::error::{Error, Result};
use ddim_engine::ops::Backend;
use ddim_engine::sample::{self, EncodeOptions, SampleOptions, WeightKind};
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::progress::{Kind, Progress};
use ddim_engine::train::stepper;
use ddim_engine::train::trainer::{self, TrainOptions, TrainSummary};

use super::device::{Chosen, Work};
use super::print;

/// Which weights `sample` uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// The moving average where there is one, else as trained.
    Auto,
    /// The moving average.
    Ema,
    /// As trained.
    Raw,
}

impl From<Weights> for WeightKind {
    fn from(w: Weights) -> Self {
        match w {
            Weights::Auto => WeightKind::Auto,
            Weights::Ema => WeightKind::Ema,
            Weights::Raw => WeightKind::Raw,
        }
    }
}

struct Train<'a> {
    options: &'a TrainOptions,
    interrupt: &'a Interrupt,
}

impl Work for Train<'_> {
    type Output = TrainSummary;
    fn run<B: Backend>(self, backend: &B) -> Result<TrainSummary> {
        trainer::run(backend, self.options, self.interrupt)
    }
}

/// Trains, and says what was left where and what to do next.
pub fn train(device: &Chosen, options: TrainOptions) -> Result<()> {
    let interrupt = Interrupt::install()?;
    let summary = device.run(Train { options: &options, interrupt: &interrupt })?;
    let run = summary.run_dir.display();
    let mut text = format!(
        "trained {} steps in {:.0} s, {:.0} images/s\n",
        summary.steps, summary.seconds, summary.images_per_second
    );
    if let Some(samples) = &summary.samples {
        text.push_str(&format!("samples      {}\n", samples.display()));
    }
    text.push_str(&format!(
        "checkpoint   {}\nmetrics      {run}/metrics.jsonl (TensorBoard: tensorboard --logdir {run})\n\
         next\n  ddim-engine sample {run}\n  ddim-engine sample {run} --count 9 --gif denoising.gif\n",
        summary.checkpoint.display(),
    ));
    // A learning rate that falls to its end has come to it.
    if options.config.lr_schedule == LrSchedule::Constant {
        text.push_str(&format!("  ddim-engine train --resume {run} --epochs {}\n", 2 * summary.epochs));
    }
    print::stdout(&text)
}

struct Sample<'a>(&'a SampleOptions);

impl Work for Sample<'_> {
    type Output = Vec<String>;
    fn run<B: Backend>(self, backend: &B) -> Result<Vec<String>> {
        sample::run(backend, self.0, &Progress::new(Kind::Auto))
    }
}

/// Samples, and says what was written.
pub fn sample(device: &Chosen, options: &SampleOptions) -> Result<()> {
    let lines = device.run(Sample(options))?;
    print::stdout(&format!("{}\n", lines.join("\n")))
}

struct Encode<'a>(&'a EncodeOptions);

impl Work for Encode<'_> {
    type Output = Vec<String>;
    fn run<B: Backend>(self, backend: &B) -> Result<Vec<String>> {
        sample::encode(backend, self.0, &Progress::new(Kind::Auto))
    }
}

/// Encodes pictures, and says how close they come back.
pub fn encode(device: &Chosen, options: &EncodeOptions) -> Result<()> {
    let lines = device.run(Encode(options))?;
    print::stdout(&format!("{}\n", lines.join("\n")))
}

struct Check<'a> {
    files: &'a [PathBuf],
    arithmetic: Arithmetic,
}

impl Work for Check<'_> {
    type Output = Vec<String>;

    /// The files that fail.
    fn run<B: Backend>(self, backend: &B) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        for file in self.files {
            let report = check::check(backend, file, &Tolerances::of(self.arithmetic))?;
            print_report(file, &report)?;
            if !report.passed() {
                failed.push(file.display().to_string());
            }
        }
        Ok(failed)
    }
}

fn print_report(file: &Path, report: &Report) -> Result<()> {
    let width = report.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
    let mut text = format!("{}\n  {:<width$}  absolute  relative  tolerance\n", file.display(), "quantity");
    for row in &report.rows {
        let verdict = if row.passed() { "" } else { "  FAILED" };
        text.push_str(&format!(
            "  {:<width$}  {:>8.1e}  {:>8.1e}  {:>9.0e}{verdict}\n",
            row.name, row.absolute, row.relative, row.tolerance
        ));
    }
    if !report.dead.is_empty() {
        text.push_str(&format!("  only rounding in the gradients of: {}\n", report.dead.join(", ")));
    }
    print::stdout(&text)
}

/// Checks the files one after the other and prints a table for each.
pub fn check(device: &Chosen, files: &[PathBuf]) -> Result<()> {
    let failed = device.run(Check { files, arithmetic: device.arithmetic() })?;
    if failed.is_empty() {
        return print::stdout(&format!("{} of {} files pass\n", files.len(), files.len()));
    }
    Err(Error::Failed(format!("{} of {} files fail: {}", failed.len(), files.len(), failed.join(", "))))
}

/// Peak resident memory of this process in MiB (`VmHWM`), where the system tells.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

struct Bench<'a> {
    config: &'a Config,
    repeat: usize,
}

impl Work for Bench<'_> {
    /// Seconds of each step, and the bytes that the arena held at most.
    type Output = (Vec<f64>, usize);
    fn run<B: Backend>(self, backend: &B) -> Result<(Vec<f64>, usize)> {
        let seconds = stepper::bench_step(backend, self.config, self.repeat)?;
        Ok((seconds, backend.memory_use().peak))
    }
}

/// Times a training step.
pub fn bench_step(device: &Chosen, config: &Config, repeat: usize, json: Option<&Path>) -> Result<()> {
    let began = Instant::now();
    let (mut seconds, arena) = device.run(Bench { config, repeat })?;
    let total = began.elapsed().as_secs_f64();
    seconds.sort_by(f64::total_cmp);
    let (least, median) = (seconds[0], seconds[seconds.len() / 2]);
    let images = config.batch_size as f64;
    let result = serde_json::json!({
        "what": "training step",
        "seconds_per_step_min": least,
        "seconds_per_step_median": median,
        "images_per_second": images / median,
        "peak_rss_mib": peak_rss_mib(),
        "arena_peak_mib": arena as f64 / (1 << 20) as f64,
        "device": device.line.trim_start_matches("device: "),
        "precision": device.arithmetic().to_string(),
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "steps": seconds.len(),
        "seconds_total": total,
    });
    let text = format!("{result:#}\n");
    match json {
        Some(path) if path.as_os_str() == "-" => print::stdout(&text),
        Some(path) => ddim_engine::train::run_dir::write_atomic(path, text.as_bytes()),
        None => print::stdout(&format!(
            "step {:.3} ms at least, {:.3} ms in the median of {}; {:.0} images/s\n",
            1e3 * least,
            1e3 * median,
            seconds.len(),
            images / median
        )),
    }
}
