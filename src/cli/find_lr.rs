//! `ddim-engine find-lr`.

use std::path::PathBuf;

use ddim_engine::config::{Config, Layers};
use ddim_engine::error::{Error, Result};
use ddim_engine::lab::find_lr::{self, FindLrOptions, Sweep};
use ddim_engine::ops::Backend;
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::progress::{Kind, Progress};
use ddim_engine::train::run_dir::RunDir;

use super::device::{DeviceArgs, Prefer, Work};
use super::print;

const EXAMPLES: &str = "\
Examples
  ddim-engine find-lr                              of the preset quick
  ddim-engine find-lr --preset seed --data flowers --set batch_size=32
  ddim-engine find-lr --from 1e-5 --to 1 --steps 200 --out lr/wide
  ddim-engine find-lr --run runs/NAME              from the weights of a run, which is only read

Writes find-lr.png, find-lr.svg and find-lr.jsonl.";

/// Find a learning rate: a short training in which it grows, and what the loss says
///
/// The rate grows by equal factors from --from to --to. The network and its normaliser are thrown away.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// First learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-7)]
    from: f64,

    /// Last learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-1)]
    to: f64,

    /// Steps of the sweep; it ends earlier where the loss diverges
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,

    /// Share of the average loss that stays at every step: 0 is no smoothing
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    smoothing: f64,

    /// Files to write: STEM.png, STEM.svg and STEM.jsonl
    #[arg(long, value_name = "STEM", default_value = "find-lr")]
    out: PathBuf,

    /// Start from the weights and the settings of a run or checkpoint, which is only read
    #[arg(long, value_name = "RUN_OR_CHECKPOINT", conflicts_with_all = ["preset", "config", "set", "seed"])]
    run: Option<PathBuf>,

    /// Settings to start from, as for train [default: quick]
    #[arg(long, value_name = "PRESET")]
    preset: Option<String>,

    /// A TOML file of keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Set a key, such as batch_size=32; may be repeated
    #[arg(long, value_name = "KEY=VALUE", allow_negative_numbers = true)]
    set: Vec<String>,

    /// Pictures: procedural, flowers, pets, debug, a folder or a .tar
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,

    /// Where `flowers` and `pets` are looked for
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "PRECISION")]
    precision: Option<String>,

    /// Seed of weights, order, times and noise
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<String>,

    #[command(flatten)]
    device: DeviceArgs,
}

struct Find<'a> {
    options: &'a FindLrOptions,
    progress: &'a Progress,
    interrupt: &'a Interrupt,
}

impl Work for Find<'_> {
    type Output = Sweep;
    fn run<B: Backend>(self, backend: &B) -> Result<Sweep> {
        find_lr::run(backend, self.options, self.progress, self.interrupt)
    }
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let layers = Layers {
            preset: self.preset,
            file: self.config,
            sets: self.set,
            data: self.data,
            precision: self.precision,
            seed: self.seed,
            ..Layers::default()
        };
        let config = match &self.run {
            None => Config::resolve(&layers)?,
            Some(run) => Config::from_file(&RunDir::root_of(run)?.join("config.toml"))?.with(&layers)?,
        };
        let options = FindLrOptions {
            config,
            start: self.run,
            data_dir: self.data_dir,
            rates: [self.from, self.to],
            steps: self.steps as usize,
            smoothing: self.smoothing,
        };
        options.check()?;
        let config = &options.config;
        let device = self.device.choose(self.device.threads(config.workers), config.precision, Prefer::Speed)?;
        print::stderr(&device.line);
        let (progress, interrupt) = (Progress::new(Kind::Auto), Interrupt::install()?);
        let sweep = device.run(Find { options: &options, progress: &progress, interrupt: &interrupt })?;
        if sweep.points.is_empty() {
            let why = sweep.stopped.unwrap_or_default();
            return Err(Error::Failed(format!("{why}: the sweep has no points; begin with a smaller --from")));
        }
        let objective = ["predict", "loss", "schedule"].map(|key| config.get(key).replace('"', "")).join(" ");
        let data = config.data.rsplit('/').next().unwrap_or_default();
        let title = format!("Learning-rate finder: {data} at {0}x{0}, {objective}", config.image_size);
        let files = sweep.write(&self.out, &title)?;
        let mut text = format!("{} steps in {:.0} s\n", sweep.points.len(), sweep.seconds);
        if let Some(why) = &sweep.stopped {
            text.push_str(&format!("stopped early: {why}\n"));
        }
        match &sweep.suggestion {
            Some(found) => text.push_str(&format!(
                "steepest fall of the loss   lr {:.2e}\na tenth of the least loss's  lr {:.2e}  (least at {:.2e})\n\
                 suggestion                  --set lr={:.1e}\n",
                found.steepest,
                found.tenth_of_minimum,
                found.minimum,
                found.suggested()
            )),
            None => text.push_str(
                "no suggestion: the loss does not fall anywhere; sweep more steps, or other rates (--steps, --from, --to)\n",
            ),
        }
        let [jsonl, svg, png] = files.map(|path| path.display().to_string());
        text.push_str(&format!("plot        {png}, {svg}\npoints      {jsonl}\n"));
        print::stdout(&text)
    }
}
