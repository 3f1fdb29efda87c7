//! From parsed options to the library: the device is made here, and here what was done is told.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use ddim_engine::check::{self, Report, Tolerances};
use ddim_engine::config::LrSchedule;
use ddim_engine::device::gpu::Arithmetic;
use ddim_engine::error::{Error, Result};
use ddim_engine::ops::Backend;
use ddim_engine::sample::{self, EncodeOptions, SampleOptions, WeightKind};
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::progress::{Kind, Progress};
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
