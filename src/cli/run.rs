//! From parsed options to the library: the device is made here, and here what was done is told.

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use ddim_engine::check;
use ddim_engine::config::{Config, Precision};
use ddim_engine::device::Memory;
use ddim_engine::device::cpu::Cpu;
use ddim_engine::error::{Error, Result};
use ddim_engine::sample::{self, SampleOptions, WeightKind};
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::progress::{Kind, Progress};
use ddim_engine::train::stepper;
use ddim_engine::train::trainer::{self, TrainOptions};

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

/// What `check` is to do.
pub struct CheckOptions {
    /// Reference files.
    pub files: Vec<PathBuf>,
    /// Arithmetic; fp32 is all that a CPU has.
    pub precision: Precision,
    /// Worker threads; 0 is one per core.
    pub threads: usize,
}

/// What `bench step` is to do.
pub struct BenchOptions {
    /// The configuration.
    pub config: Config,
    /// Worker threads; 0 is one per core.
    pub threads: usize,
    /// Steps that are timed.
    pub repeat: usize,
    /// File for the result, `-` for standard output.
    pub json: Option<PathBuf>,
}

/// Trains, and says what was left where and what to do next.
pub fn train(options: TrainOptions, threads: usize) -> Result<()> {
    let cpu = Cpu::new(threads)?;
    let interrupt = Interrupt::install()?;
    let summary = trainer::run(&cpu, &options, &interrupt)?;
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
         next\n  ddim-engine sample {run}\n  ddim-engine sample {run} --count 9 --gif denoising.gif\n  \
         ddim-engine train --resume {run} --epochs {}\n",
        summary.checkpoint.display(),
        2 * summary.epochs
    ));
    print::stdout(&text)
}

/// Samples, and says what was written.
pub fn sample(options: &SampleOptions, threads: usize) -> Result<()> {
    let cpu = Cpu::new(threads)?;
    let lines = sample::run(&cpu, options, &Progress::new(Kind::Auto))?;
    print::stdout(&format!("{}\n", lines.join("\n")))
}

/// Checks the files one after the other and prints a table for each.
pub fn check(options: &CheckOptions) -> Result<()> {
    match options.precision {
        Precision::Auto | Precision::Fp32 => {}
    }
    let cpu = Cpu::new(options.threads)?;
    let mut failed = Vec::new();
    for file in &options.files {
        let report = check::check(&cpu, file)?;
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
        print::stdout(&text)?;
        if !report.passed() {
            failed.push(file.display().to_string());
        }
    }
    if failed.is_empty() {
        return print::stdout(&format!("{} of {} files pass\n", options.files.len(), options.files.len()));
    }
    Err(Error::Failed(format!("{} of {} files fail: {}", failed.len(), options.files.len(), failed.join(", "))))
}

/// Peak resident memory of this process in MiB (`VmHWM`), where the system tells.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// Times a training step.
pub fn bench_step(options: &BenchOptions) -> Result<()> {
    let cpu = Cpu::new(options.threads)?;
    let began = Instant::now();
    let mut seconds = stepper::bench_step(&cpu, &options.config, options.repeat)?;
    let total = began.elapsed().as_secs_f64();
    seconds.sort_by(f64::total_cmp);
    let (least, median) = (seconds[0], seconds[seconds.len() / 2]);
    let images = options.config.batch_size as f64;
    let json = serde_json::json!({
        "what": "training step",
        "seconds_per_step_min": least,
        "seconds_per_step_median": median,
        "images_per_second": images / median,
        "peak_rss_mib": peak_rss_mib(),
        "arena_peak_mib": cpu.memory_use().peak as f64 / (1 << 20) as f64,
        "device": "cpu",
        "isa": cpu.isa().to_string(),
        "threads": cpu.threads(),
        "batch_size": options.config.batch_size,
        "image_size": options.config.image_size,
        "steps": seconds.len(),
        "seconds_total": total,
    });
    let text = format!("{json:#}\n");
    match &options.json {
        Some(path) if path.as_os_str() == "-" => print::stdout(&text),
        Some(path) => ddim_engine::train::run_dir::write_atomic(path, text.as_bytes()),
        None => print::stdout(&format!(
            "step {least:.3} s at least, {median:.3} s in the median of {}; {:.0} images/s\n",
            seconds.len(),
            images / median
        )),
    }
}
