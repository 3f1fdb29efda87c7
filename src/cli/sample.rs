//! `ddim-engine sample`.

use std::path::{Path, PathBuf};

use ddim_engine::config::Precision;
use ddim_engine::diffusion::samplers::Wishes;
use ddim_engine::error::{Error, Result};
use ddim_engine::interop::given_noise::GivenNoise;
use ddim_engine::sample::SampleOptions;

use super::device::{DeviceArgs, Prefer};
use super::{print, run};

const EXAMPLES: &str = "\
Examples
  ddim-engine sample runs/NAME                           samples.png: a grid
  ddim-engine sample runs/NAME --count 4 --gif out.gif   noise to picture
  ddim-engine sample runs/NAME --count 500 --individual DIR   single PNGs

The same --seed gives the same pictures, whatever --batch and --threads.";

/// Make pictures with a trained model
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run (its newest checkpoint is taken), or of one checkpoint
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    source: PathBuf,

    /// Pictures to make
    #[arg(long, value_name = "N", default_value_t = 36, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,

    /// Points of the time grid; the network is called once less
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    steps: u32,

    /// Seed of the noise that the pictures start from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The grid of all pictures
    #[arg(long, value_name = "FILE.png", default_value = "samples.png")]
    out: PathBuf,

    /// Also write each picture as a PNG into this folder
    #[arg(long, value_name = "DIR")]
    individual: Option<PathBuf>,

    /// Also write the way from noise to pictures as an animation
    #[arg(long, value_name = "FILE.gif")]
    gif: Option<PathBuf>,

    /// Pictures that are made at once; more takes more memory
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,

    /// Weights: their moving average (ema), as trained (raw), or the average where there is one (auto)
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = run::Weights::Auto, hide_possible_values = true)]
    weights: run::Weights,

    /// Start from this noise: tensor `noise` [N, C, H, W] (with --raw)
    #[arg(long, value_name = "FILE.safetensors", requires = "raw")]
    noise: Option<PathBuf>,

    /// Write only the numbers that come of --noise, neither clipped nor as pixels: tensor `images` [N, C, H, W]
    #[arg(long, value_name = "FILE.safetensors", requires = "noise")]
    raw: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Arithmetic: auto, fp32, and on a GPU tf32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    precision: String,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let threads = self.device.threads(0);
        let precision = Precision::parse(&self.precision)?;
        let device = self.device.choose(threads, precision, Prefer::Pictures)?;
        expect_ending("--out", Some(&self.out), "png")?;
        expect_ending("--gif", self.gif.as_deref(), "gif")?;
        if !self.source.exists() {
            let what =
                "there is no such run or checkpoint; expected a folder made by `ddim-engine train`, such as runs/NAME";
            return Err(Error::input(&self.source, what));
        }
        print::stderr(&device.line);
        if let (Some(noise), Some(raw)) = (self.noise, self.raw) {
            let options = GivenNoise {
                source: self.source,
                weights: self.weights.into(),
                noise,
                raw,
                steps: self.steps as usize,
                seed: self.seed,
                wishes: Wishes::default(),
            };
            return run::sample_given_noise(&device, &options);
        }
        let options = SampleOptions {
            source: self.source,
            count: self.count as usize,
            steps: self.steps as usize,
            seed: self.seed,
            out: self.out,
            individual: self.individual,
            gif: self.gif,
            batch: self.batch as usize,
            weights: self.weights.into(),
        };
        run::sample(&device, &options)
    }
}

/// Refuses a file name that promises another format than the one written.
fn expect_ending(option: &str, file: Option<&Path>, ending: &str) -> Result<()> {
    match file {
        Some(file) if !file.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending)) => {
            Err(Error::Usage(format!("{option} {}: expected a file name that ends in .{ending}", file.display())))
        }
        _ => Ok(()),
    }
}
