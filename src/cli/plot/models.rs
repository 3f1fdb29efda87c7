//! Figures that a model draws.

use std::path::{Path, PathBuf};

use ddim_engine::config::Precision;
use ddim_engine::diffusion::samplers::Method;
use ddim_engine::error::Result;
use ddim_engine::lab::plot::reverse::ReverseFigure;
use ddim_engine::lab::plot::samples::{self, SamplesFigure};
use ddim_engine::lab::plot::steps::StepsFigure;
use ddim_engine::lab::plot::{Drawing, Format};
use ddim_engine::ops::Backend;
use ddim_engine::train::progress::{Kind, Progress};

use super::figures;
use crate::cli::device::{Chosen, DeviceArgs, Prefer, Work};
use crate::cli::{print, run};

/// Options of all figures that a model draws.
#[derive(clap::Args)]
struct Common {
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Weights: their moving average (ema), as trained (raw), or the average where there is one (auto)
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = run::Weights::Auto, hide_possible_values = true)]
    weights: run::Weights,

    #[command(flatten)]
    device: DeviceArgs,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    precision: String,
}

impl Common {
    /// Checks the name of the file, and chooses the device.
    fn begin(&self, out: &Path) -> Result<Chosen> {
        Format::of(out)?;
        let precision = Precision::parse(&self.precision)?;
        self.device.choose(self.device.threads(0), precision, Prefer::Pictures)
    }
}

/// A figure to draw.
enum Figure {
    Reverse(ReverseFigure),
    Samples(SamplesFigure),
    Steps(StepsFigure),
}

struct Draw<'a> {
    figure: &'a Figure,
    progress: &'a Progress,
}

impl Work for Draw<'_> {
    type Output = Drawing;
    fn run<B: Backend>(self, backend: &B) -> Result<Drawing> {
        match self.figure {
            Figure::Reverse(figure) => figure.drawing(backend, self.progress),
            Figure::Samples(figure) => figure.drawing(backend, self.progress),
            Figure::Steps(figure) => figure.drawing(backend, self.progress),
        }
    }
}

/// Draws a figure on the device, and writes it.
fn draw(device: &Chosen, figure: &Figure, out: &Path) -> Result<()> {
    print::stderr(&device.line);
    let progress = Progress::new(Kind::Auto);
    let drawing = device.run(Draw { figure, progress: &progress })?;
    figures::save(&drawing, out)
}

const REVERSE_EXAMPLES: &str = "\
Examples
  ddim-engine plot reverse runs/NAME
  ddim-engine plot reverse runs/NAME --picture 3 --seed 7 --out reverse.svg
  ddim-engine plot reverse runs/NAME --data FOLDER --columns 6

Columns are at equal steps of the model's time. The way back is ddim's,
whatever the model's own sampler.";

/// A picture that dissolves in noise, and what a model draws from the same noise
#[derive(clap::Args)]
#[command(after_help = REVERSE_EXAMPLES)]
pub struct Reverse {
    /// Folder of a run (its newest checkpoint is taken), or of one checkpoint
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    source: PathBuf,

    /// Pictures: procedural, flowers, pets, debug, a folder or a .tar [default: those of the run]
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,

    /// Where `flowers` and `pets` are looked for
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Which picture of those that the run held back; of all, where these are not the run's pictures
    #[arg(long, value_name = "N", default_value_t = 0)]
    picture: u32,

    /// Columns, from the picture to noise
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u8).range(2..=64))]
    columns: u8,

    /// Figure to write, .png or .svg
    #[arg(long, value_name = "FILE", default_value = "reverse.png")]
    out: PathBuf,

    #[command(flatten)]
    common: Common,
}

impl Reverse {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        let device = self.common.begin(&self.out)?;
        let figure = ReverseFigure {
            source: self.source,
            data: self.data,
            data_dir: self.data_dir,
            picture: self.picture as usize,
            columns: usize::from(self.columns),
            seed: self.common.seed,
            weights: self.common.weights.into(),
        };
        draw(&device, &Figure::Reverse(figure), &self.out)
    }
}

const SAMPLES_EXAMPLES: &str = "\
Examples
  ddim-engine plot samples runs/A runs/B
  ddim-engine plot samples runs/SWEEP --count 12 --out samples.svg

A folder stands for the finished runs in it. Rows are labelled with the
settings in which the runs differ.";

/// A row of pictures for each of several runs, from the same noise
#[derive(clap::Args)]
#[command(after_help = SAMPLES_EXAMPLES)]
pub struct Samples {
    /// Runs, checkpoints, and folders of runs
    #[arg(value_name = "RUN_OR_FOLDER", required = true)]
    paths: Vec<PathBuf>,

    /// Pictures in a row
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=100))]
    count: u8,

    /// Steps; for the family seed the points of its time grid: the network is called once less
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    steps: u32,

    /// ddim, ddpm (ancestral), dpm++2m or heun [default: each model's own]
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,

    /// Figure to write, .png or .svg
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,

    #[command(flatten)]
    common: Common,
}

impl Samples {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        let device = self.common.begin(&self.out)?;
        let sampler = self.sampler.as_deref().map(Method::parse).transpose()?;
        let (entries, notes) = samples::entries(&self.paths)?;
        notes.iter().for_each(|note| print::stderr(note));
        let figure = SamplesFigure {
            entries,
            count: usize::from(self.count),
            steps: self.steps as usize,
            seed: self.common.seed,
            sampler,
            weights: self.common.weights.into(),
        };
        draw(&device, &Figure::Samples(figure), &self.out)
    }
}

const STEPS_EXAMPLES: &str = "\
Examples
  ddim-engine plot steps runs/NAME
  ddim-engine plot steps runs/NAME --steps 4,8,16 --sampler dpm++2m --out steps.svg";

/// A row of pictures for each number of sampling steps, from the same noise
#[derive(clap::Args)]
#[command(after_help = STEPS_EXAMPLES)]
pub struct Steps {
    /// Folder of a run (its newest checkpoint is taken), or of one checkpoint
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    source: PathBuf,

    /// Numbers of steps, counted as `sample` does [default: 2,3,5,10,20,50,100]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: Vec<u32>,

    /// Pictures in a row
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=100))]
    count: u8,

    /// ddim, ddpm (ancestral), dpm++2m or heun [default: the model's own]
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,

    /// Figure to write, .png or .svg
    #[arg(long, value_name = "FILE", default_value = "steps.png")]
    out: PathBuf,

    #[command(flatten)]
    common: Common,
}

impl Steps {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        let device = self.common.begin(&self.out)?;
        let figure = StepsFigure {
            source: self.source,
            steps: self.steps.into_iter().map(|steps| steps as usize).collect(),
            count: usize::from(self.count),
            seed: self.common.seed,
            sampler: self.sampler.as_deref().map(Method::parse).transpose()?,
            weights: self.common.weights.into(),
        };
        draw(&device, &Figure::Steps(figure), &self.out)
    }
}
