//! `ddim-engine sample`.

use std::path::{Path, PathBuf};

use ddim_engine::config::Precision;
use ddim_engine::diffusion::samplers::{Method, Spacing, Wishes};
use ddim_engine::error::{Error, Result};
use ddim_engine::sample::{EncodeOptions, INVERSION_ROUNDS, Interpolate, SampleOptions};

use super::device::{DeviceArgs, Prefer};
use super::{print, run};

const EXAMPLES: &str = "\
Examples
  ddim-engine sample runs/NAME                           samples.png: a grid
  ddim-engine sample runs/NAME --count 4 --gif out.gif   noise to picture
  ddim-engine sample runs/NAME --count 500 --individual DIR   single PNGs
  ddim-engine sample runs/NAME --sampler dpm++2m --steps 15   another sampler
  ddim-engine sample runs/NAME --interpolate 3:7 --count 8    from seed 3 to 7
  ddim-engine sample runs/NAME --init-image a.png --mask m.png   draw the white

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

    /// Steps; for the family seed the points of its time grid: the network is called once less
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

    /// ddim, ddpm (ancestral), dpm++2m or heun [default: as the model was trained or imported to]
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    sampler: Option<String>,

    /// Noise that ddim adds on the way: 0 none, 1 as much as ddpm
    #[arg(long, value_name = "SHARE", help_heading = "Sampler")]
    eta: Option<f64>,

    /// Points of the schedule: leading, trailing, linspace, quadratic or karras
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    spacing: Option<String>,

    /// Clamp predicted pictures, as the network sees them, to +-RANGE; 0: do not
    #[arg(long, value_name = "RANGE", help_heading = "Sampler")]
    clip: Option<f64>,

    /// Clamp them to a quantile of their own and divide by it, such as 0.995
    #[arg(long, value_name = "QUANTILE", help_heading = "Sampler")]
    dynamic_threshold: Option<f64>,

    /// Classes to draw, in turn, of a network that knows classes [default: all]
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = "What is drawn")]
    class: Vec<usize>,

    /// Classifier-free guidance: 1 none; 2 to 7 draw more typical pictures
    #[arg(long, value_name = "WEIGHT", help_heading = "What is drawn")]
    guidance: Option<f64>,

    /// From one picture to another: two seeds, or two files
    #[arg(long, value_name = "A:B", help_heading = "What is drawn", conflicts_with_all = ["init_image", "noise"])]
    interpolate: Option<String>,

    /// Begin with this picture and some noise
    #[arg(long, value_name = "FILE", help_heading = "What is drawn")]
    init_image: Option<PathBuf>,

    /// How much of it is drawn anew, from 0 to 1 [default: 0.6; with --mask 1]
    #[arg(long, value_name = "SHARE", help_heading = "What is drawn")]
    strength: Option<f64>,

    /// Draw anew only what is white in this picture
    #[arg(long, value_name = "FILE", help_heading = "What is drawn")]
    mask: Option<PathBuf>,

    /// Begin with this noise: tensor `noise`, N,C,H,W; makes N pictures
    #[arg(long, value_name = "FILE.safetensors", help_heading = "What is drawn", conflicts_with = "count")]
    noise: Option<PathBuf>,

    /// Also write the pictures as the network sees them: tensor `images`
    #[arg(long, value_name = "FILE.safetensors")]
    raw: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
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
        expect_ending("--raw", self.raw.as_deref(), "safetensors")?;
        let wishes = Wishes {
            method: self.sampler.as_deref().map(Method::parse).transpose()?,
            eta: self.eta,
            spacing: self.spacing.as_deref().map(Spacing::parse).transpose()?,
            clip: self.clip,
            dynamic_threshold: self.dynamic_threshold,
        };
        let interpolate = self.interpolate.as_deref().map(Interpolate::parse).transpose()?;
        expect_source(&self.source)?;
        print::stderr(&device.line);
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
            wishes,
            classes: self.class,
            guidance: self.guidance,
            interpolate,
            init_image: self.init_image,
            strength: self.strength,
            mask: self.mask,
            noise: self.noise,
            raw: self.raw,
        };
        run::sample(&device, &options)
    }
}

/// Refuses a model that is not there.
fn expect_source(source: &Path) -> Result<()> {
    if source.exists() {
        return Ok(());
    }
    let what = "there is no such run or checkpoint; expected a folder made by `ddim-engine train`, such as runs/NAME";
    Err(Error::input(source, what))
}

const ENCODE_EXAMPLES: &str = "\
Examples
  ddim-engine encode runs/NAME a.png b.jpg               how close they come back
  ddim-engine encode runs/NAME a.png --noise a.safetensors
  ddim-engine sample runs/NAME --noise a.safetensors --sampler ddim --clip 0 --steps 50";

/// Find the noise of pictures (DDIM inversion), and show what is made of it
#[derive(clap::Args)]
#[command(after_help = ENCODE_EXAMPLES)]
pub struct EncodeArgs {
    /// Folder of a run (its newest checkpoint is taken), or of one checkpoint
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    source: PathBuf,

    /// Picture files
    #[arg(value_name = "PICTURE", required = true)]
    pictures: Vec<PathBuf>,

    /// Steps, as of `sample`
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    steps: u32,

    /// Network calls for each step to the noise; more steps come closer, more calls not always
    #[arg(long, value_name = "N", default_value_t = INVERSION_ROUNDS as u32, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// The pictures, each beside what is made of its noise
    #[arg(long, value_name = "FILE.png", default_value = "encoded.png")]
    out: PathBuf,

    /// Also write the noise: tensor `noise`, N,C,H,W
    #[arg(long, value_name = "FILE.safetensors")]
    noise: Option<PathBuf>,

    /// Weights: their moving average (ema), as trained (raw), or the average where there is one (auto)
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = run::Weights::Auto, hide_possible_values = true)]
    weights: run::Weights,

    #[command(flatten)]
    device: DeviceArgs,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    precision: String,
}

impl EncodeArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let precision = Precision::parse(&self.precision)?;
        let device = self.device.choose(self.device.threads(0), precision, Prefer::Pictures)?;
        expect_ending("--out", Some(&self.out), "png")?;
        expect_ending("--noise", self.noise.as_deref(), "safetensors")?;
        expect_source(&self.source)?;
        print::stderr(&device.line);
        let options = EncodeOptions {
            source: self.source,
            pictures: self.pictures,
            steps: self.steps as usize,
            rounds: self.rounds as usize,
            out: self.out,
            noise: self.noise,
            weights: self.weights.into(),
        };
        run::encode(&device, &options)
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
