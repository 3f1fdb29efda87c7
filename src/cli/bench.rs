//! `ddim-engine bench`: how fast, and by what measure.

use std::path::PathBuf;

use clap::Subcommand;
use ddim_engine::bench::plan::gpus::GpuSpec;
use ddim_engine::bench::timing::Effort;
use ddim_engine::bench::{compare, kernels, ladder, plan};
use ddim_engine::config::{Config, Layers, PRESETS, Precision};
use ddim_engine::error::{Error, Result};

use super::bench_ops::BenchOps;
use super::bench_run;
use super::device::{Chosen, DeviceArgs, Prefer};
use super::print;
use super::train::Settings;

const EXAMPLES: &str = "\
Examples
  ddim-engine bench step --preset seed --breakdown         a training step, and its parts
  ddim-engine bench kernels --preset seed --json A.json    every operation of it
  ddim-engine bench kernels --preset all --list            which operations there are
  ddim-engine bench kernels --only wgrad --batch 16
  ddim-engine bench kernels --ladder --device cuda         convolution, norm and attention from naive to final
  ddim-engine bench sample --preset seed --images 64       pictures from noise
  ddim-engine bench plan --preset seed --gpu h200          what a GPU would be asked for; needs none
  ddim-engine bench --compare A.json B.json";

/// Measure speed: operations against the machine's roofline, training steps, sampling
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Args {
    /// Set two results of --json side by side: the ratio of each row, marked where it is beyond the spread of both
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"])]
    compare: Vec<PathBuf>,

    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    Kernels(KernelArgs),
    Step(StepArgs),
    Sample(SampleArgs),
    Plan(PlanArgs),
    Ops(OpsArgs),
}

/// Every operation of the presets' networks, measured in place
#[derive(clap::Args)]
pub struct KernelArgs {
    /// Preset whose operations are measured; may be repeated; all: seed and the unet2d presets [default: seed]
    #[arg(long, value_name = "PRESET")]
    preset: Vec<String>,

    /// Set a key in all of them, such as widths=32,64,96; may be repeated
    #[arg(long, value_name = "KEY=VALUE", allow_negative_numbers = true)]
    set: Vec<String>,

    /// Images at once [default: the preset's batch_size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,

    /// Only operations whose name, purpose or shape contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Samples of each
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Seconds of each after which three samples are enough, hot and cold apart
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, allow_negative_numbers = true)]
    budget: f64,

    /// Not with empty caches
    #[arg(long)]
    hot_only: bool,

    /// Only list the operations, with their bytes, multiply-adds and predicted time
    #[arg(long)]
    list: bool,

    /// Instead: the kernels of the ladder, three operations from naive to final (docs/ladder.md); on a GPU or the simulator, in bf16
    #[arg(long, conflicts_with_all = ["preset", "set"])]
    ladder: bool,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "PRECISION", default_value = "auto")]
    precision: String,

    #[command(flatten)]
    device: DeviceArgs,

    /// Also write the result as JSON; -: to standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A training step: its time, its memory, and with --breakdown what it is spent on
#[derive(clap::Args)]
pub struct StepArgs {
    #[command(flatten)]
    settings: Box<Settings>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Then up to three more steps whose operations are timed one by one
    #[arg(long)]
    breakdown: bool,

    /// Also write the result as JSON; -: to standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Pictures from noise by a fresh network
#[derive(clap::Args)]
pub struct SampleArgs {
    #[command(flatten)]
    settings: Box<Settings>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Pictures
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    images: u32,

    /// Pictures at once [default: all, at most 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,

    /// Steps of the sampler, as `sample --steps` counts them
    #[arg(long = "sample-steps", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    sample_steps: u32,

    /// Times that all pictures are drawn, after once that does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Also write the result as JSON; -: to standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The launches of a step on a GPU, with registers, occupancy, bytes and a predicted time; needs no GPU and measures nothing
#[derive(clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    settings: Box<Settings>,

    /// GPU: h200, h100, a100 or rtx4090
    #[arg(long, value_name = "GPU", default_value = "h200")]
    gpu: String,

    /// Not a training step but a network call of sampling
    #[arg(long)]
    sampling: bool,

    /// A line for every kernel and extents, too
    #[arg(long)]
    kernels: bool,

    /// Also write the result as JSON; -: to standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Time of group norm and attention alone, and the bytes that they move
#[derive(clap::Args)]
#[command(hide = true)]
pub struct OpsArgs {
    #[command(flatten)]
    device: DeviceArgs,

    /// Images
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,

    /// Measurements of each operation
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "PRECISION", default_value = "auto")]
    precision: String,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match (self.what, &self.compare[..]) {
            (Some(What::Kernels(args)), _) => args.run(),
            (Some(What::Step(args)), _) => args.run(),
            (Some(What::Sample(args)), _) => args.run(),
            (Some(What::Plan(args)), _) => args.run(),
            (Some(What::Ops(args)), _) => args.run(),
            (None, [a, b]) => print::stdout(&compare::compare(a, b)?),
            (None, _) => Err(Error::Usage("bench: expected kernels, step, sample, or --compare A.json B.json".into())),
        }
    }
}

impl KernelArgs {
    fn run(self) -> Result<()> {
        if !self.budget.is_finite() || self.budget < 0.0 {
            return Err(Error::Usage(format!("--budget {}: expected seconds from 0", self.budget)));
        }
        let precision = Precision::parse(&self.precision)?;
        let effort =
            Effort { repeat: self.repeat as usize, budget: self.budget, cold: !self.hot_only, ..Effort::default() };
        let device = self.device.choose(self.device.threads(0), precision, Prefer::Speed)?;
        if self.ladder {
            print::stderr(&device.line);
            return self.ladder(&device, effort);
        }
        let options = kernels::Options { presets: self.presets()?, only: self.only.clone(), effort, list: self.list };
        print::stderr(&device.line);
        bench_run::kernels(&device, &options, self.json.as_deref())
    }

    /// The kernels of the ladder.
    fn ladder(&self, device: &Chosen, effort: Effort) -> Result<()> {
        // On the simulator a call takes seconds where a GPU takes microseconds: small extents, each once, no caches to empty.
        let small = !device.is_gpu() && !self.list;
        let once = Effort { repeat: 1, sample_seconds: 0.0, cold: false, ..effort };
        let (only, effort) = (self.only.clone(), if small { once } else { effort });
        let options = ladder::Options { only, effort, small, batch: self.batch };
        bench_run::ladder(device, &options, self.list, self.json.as_deref())
    }

    /// The configurations by name, with the batch that was asked for.
    fn presets(&self) -> Result<Vec<(String, Config)>> {
        let mut names: Vec<String> = Vec::new();
        let seed = ["seed".to_string()];
        for name in if self.preset.is_empty() { &seed[..] } else { &self.preset } {
            if name == "all" {
                names.extend(PRESETS.iter().map(|(name, _)| name.to_string()).filter(|name| name != "quick"));
            } else {
                names.push(name.clone());
            }
        }
        let resolve = |name: String| {
            let layers = Layers { preset: Some(name.clone()), sets: self.set.clone(), ..Layers::default() };
            let mut config = Config::resolve(&layers)?;
            if let Some(batch) = self.batch {
                (config.batch_size, config.accumulate) = (batch as usize, 1);
            }
            Ok((name, config))
        };
        names.into_iter().map(resolve).collect()
    }
}

impl StepArgs {
    fn run(self) -> Result<()> {
        let config = Config::resolve(&self.settings.layers())?;
        let threads = self.device.threads(config.workers);
        let device = self.device.choose(threads, config.precision, Prefer::Speed)?;
        print::stderr(&device.line);
        bench_run::step(&device, &config, self.repeat as usize, self.breakdown, self.json.as_deref())
    }
}

impl SampleArgs {
    fn run(self) -> Result<()> {
        let mut config = Config::resolve(&self.settings.layers())?;
        config.batch_size = self.batch.unwrap_or(self.images.min(64)) as usize;
        let threads = self.device.threads(config.workers);
        let device = self.device.choose(threads, config.precision, Prefer::Pictures)?;
        print::stderr(&device.line);
        let what = bench_run::Pictures {
            images: self.images as usize,
            steps: self.sample_steps as usize,
            repeat: self.repeat as usize,
        };
        bench_run::sample(&device, &config, what, self.json.as_deref())
    }
}

impl PlanArgs {
    fn run(self) -> Result<()> {
        let config = Config::resolve(&self.settings.layers())?;
        let gpu = GpuSpec::named(&self.gpu)?;
        let what = if self.sampling { plan::What::Sample } else { plan::What::Step };
        let prefer = if self.sampling { Prefer::Pictures } else { Prefer::Speed };
        let plan = plan::plan(&config, gpu, prefer.arithmetic_of(config.precision), what)?;
        bench_run::plan(&plan, &config, what, self.kernels, self.json.as_deref())
    }
}

impl OpsArgs {
    fn run(self) -> Result<()> {
        let precision = Precision::parse(&self.precision)?;
        let device = self.device.choose(self.device.threads(0), precision, Prefer::Speed)?;
        print::stderr(&device.line);
        let element = device.activation_bytes();
        let operations = device.run(BenchOps { batch: self.batch, repeat: self.repeat as usize, element })?;
        let result = serde_json::json!({
            "what": "operations",
            "device": device.line.trim_start_matches("device: "),
            "precision": device.arithmetic().to_string(),
            "operations": operations,
        });
        print::stdout(&format!("{result:#}\n"))
    }
}
