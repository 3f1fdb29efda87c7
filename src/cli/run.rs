//! The seam to the library: one function per command. Each stands in for a library function until that is merged.
#![expect(dead_code, reason = "the options are read by the library functions that replace these")]

use std::path::PathBuf;

use clap::ValueEnum;
use ddim_engine::config::{Config, Precision};
use ddim_engine::error::{Error, Result};

/// What `train` is to do.
pub struct TrainOptions {
    /// The configuration; with `resume`, the run's own with the changes that are allowed.
    pub config: Config,
    /// The preset that it started from.
    pub preset_name: String,
    /// Folder for the run; a new one in `runs/` where it is missing.
    pub run_dir: Option<PathBuf>,
    /// Run to go on with.
    pub resume: Option<PathBuf>,
    /// Where known sets of pictures are looked for.
    pub data_dir: Option<PathBuf>,
    /// No progress.
    pub quiet: bool,
    /// Worker threads; 0 is one per core.
    pub threads: usize,
}

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

/// What `sample` is to do.
pub struct SampleOptions {
    /// A run or a checkpoint.
    pub source: PathBuf,
    /// Pictures.
    pub count: usize,
    /// Points of the time grid.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// File of the grid.
    pub out: PathBuf,
    /// Folder for single pictures.
    pub individual: Option<PathBuf>,
    /// File of the animation.
    pub gif: Option<PathBuf>,
    /// Pictures at once.
    pub batch: usize,
    /// Which weights.
    pub weights: Weights,
    /// Worker threads; 0 is one per core.
    pub threads: usize,
}

/// What `check` is to do.
pub struct CheckOptions {
    /// Reference files.
    pub files: Vec<PathBuf>,
    /// Arithmetic.
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
    /// File for the result.
    pub json: Option<PathBuf>,
}

fn absent(command: &str) -> Error {
    Error::Failed(format!("{command} is not in this build yet"))
}

/// Becomes `ddim_engine::train::run`.
pub fn train(_options: TrainOptions) -> Result<()> {
    Err(absent("train"))
}

/// Becomes `ddim_engine::sample::run`.
pub fn sample(_options: SampleOptions) -> Result<()> {
    Err(absent("sample"))
}

/// Becomes `ddim_engine::check::run`.
pub fn check(_options: CheckOptions) -> Result<()> {
    Err(absent("check"))
}

/// Becomes the measurement of a step.
pub fn bench_step(_options: BenchOptions) -> Result<()> {
    Err(absent("bench step"))
}
