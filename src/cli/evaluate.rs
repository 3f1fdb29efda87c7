//! `ddim-engine evaluate`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use ddim_engine::config::Precision;
use ddim_engine::diffusion::samplers::{Method, Spacing, Wishes};
use ddim_engine::error::{Error, Result};
use ddim_engine::metrics::evaluate::{self, EvaluateOptions, Outcome, Part, Protocol, what_is_missing};
use ddim_engine::metrics::features::{Extractor, InceptionOn};
use ddim_engine::metrics::inception::Variant;
use ddim_engine::metrics::{Evaluation, Quality};
use ddim_engine::ops::Backend;
use ddim_engine::train::progress::{Kind, Progress};
use ddim_engine::train::run_dir::write_atomic;

use super::device::{DeviceArgs, Prefer, Work};
use super::{print, run};

const EXAMPLES: &str = "\
Examples
  ddim-engine evaluate runs/NAME                       losses by noise level
  ddim-engine evaluate runs/NAME --inception model.safetensors      and KID
  ddim-engine evaluate runs/NAME --inception model.safetensors --fid --split all
  ddim-engine evaluate runs/NAME --inception FILE --kid-protocol seed
  ddim-engine evaluate runs/NAME --inception FILE --generated PICTURES

Weights of Inception-v3: model.safetensors of timm/inception_v3.tv_in1k on the
Hugging Face hub. Figures of different protocols, variants, numbers of
pictures or steps do not compare. What is found is kept in evaluation.json in
the run's folder.";

/// Which pictures.
#[derive(Clone, Copy, ValueEnum)]
enum SplitArg {
    Valid,
    All,
}

/// How KID is taken.
#[derive(Clone, Copy, ValueEnum)]
enum ProtocolArg {
    Engine,
    Seed,
}

/// Which Inception-v3.
#[derive(Clone, Copy, ValueEnum)]
enum VariantArg {
    Auto,
    Torchvision,
    Fid,
}

/// Measure a model: losses by noise level, KID, FID
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run (its newest checkpoint is taken), or of one checkpoint
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    source: PathBuf,

    /// Pictures to measure on [default: those of the run]
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,

    /// Where `flowers` and `pets` are looked for, and features cached [default: $DDIM_DATA_DIR, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The pictures that the run held back (valid), or all
    #[arg(long, value_enum, value_name = "WHICH", default_value = "valid", hide_possible_values = true)]
    split: SplitArg,

    /// Weights: their moving average (ema), as trained (raw), or the average where there is one (auto)
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = run::Weights::Auto, hide_possible_values = true)]
    weights: run::Weights,

    /// Also write what is found here
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,

    /// Pictures at once [default: the run's batch for losses, 64 for drawing, 32 for features]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,

    /// Kernel inception distance; --inception alone asks for it too
    #[arg(long, help_heading = "Generated pictures against real ones")]
    kid: bool,

    /// Frechet inception distance as well
    #[arg(long, help_heading = "Generated pictures against real ones")]
    fid: bool,

    /// Weights of Inception-v3 with torchvision's names
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Generated pictures against real ones")]
    inception: Option<PathBuf>,

    /// torchvision, fid (the network that FID is computed with: other poolings), or what the file is for (auto)
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Generated pictures against real ones"
    )]
    inception_variant: VariantArg,

    /// engine: subsets of all pictures; seed: batches of 128, 4 network calls, as "De-noising Diffusion with torch" has it
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        default_value = "engine",
        hide_possible_values = true,
        help_heading = "Generated pictures against real ones"
    )]
    kid_protocol: ProtocolArg,

    /// Pictures made elsewhere, in place of ones drawn here
    #[arg(long, value_name = "DIR_OR_TAR", help_heading = "Generated pictures against real ones")]
    generated: Option<PathBuf>,

    /// Pictures to draw [default: as many as the real ones, at most 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000), help_heading = "Generated pictures against real ones")]
    count: Option<u32>,

    /// Steps, as of `sample` [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000), help_heading = "Generated pictures against real ones")]
    steps: Option<u32>,

    /// ddim, ddpm, dpm++2m or heun [default: as the model was trained or imported to]
    #[arg(long, value_name = "NAME", help_heading = "Generated pictures against real ones")]
    sampler: Option<String>,

    /// Noise that ddim adds on the way, as of `sample`
    #[arg(long, value_name = "SHARE", help_heading = "Generated pictures against real ones")]
    eta: Option<f64>,

    /// Points of the schedule, as of `sample`
    #[arg(long, value_name = "NAME", help_heading = "Generated pictures against real ones")]
    spacing: Option<String>,

    /// Random subsets that KID is the mean of [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Generated pictures against real ones")]
    subsets: Option<u32>,

    /// Pictures of a subset [default: 1000, or half of them where there are fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000), help_heading = "Generated pictures against real ones")]
    subset_size: Option<u32>,

    /// Seed of the pictures drawn and of the subsets
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Generated pictures against real ones")]
    seed: u64,

    #[command(flatten)]
    device: DeviceArgs,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    precision: String,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let precision = Precision::parse(&self.precision)?;
        let device = self.device.choose(self.device.threads(0), precision, Prefer::Pictures)?;
        if !self.source.exists() {
            let what =
                "there is no such run or checkpoint; expected a folder made by `ddim-engine train`, such as runs/NAME";
            return Err(Error::input(&self.source, what));
        }
        let wishes = Wishes {
            method: self.sampler.as_deref().map(Method::parse).transpose()?,
            eta: self.eta,
            spacing: self.spacing.as_deref().map(Spacing::parse).transpose()?,
            ..Wishes::default()
        };
        print::stderr(&device.line);
        let options = EvaluateOptions {
            source: self.source,
            data: self.data,
            data_dir: self.data_dir,
            part: match self.split {
                SplitArg::Valid => Part::Valid,
                SplitArg::All => Part::All,
            },
            weights: self.weights.into(),
            fid: self.fid,
            protocol: match self.kid_protocol {
                ProtocolArg::Engine => Protocol::Engine,
                ProtocolArg::Seed => Protocol::Seed,
            },
            generated: self.generated,
            count: self.count.map(|n| n as usize),
            steps: self.steps.map(|n| n as usize),
            wishes,
            subsets: self.subsets.map(|n| n as usize),
            subset_size: self.subset_size.map(|n| n as usize),
            seed: self.seed,
            batch: self.batch.map(|n| n as usize),
            device: device.line.trim_start_matches("device: ").to_string(),
        };
        let variant = match self.inception_variant {
            VariantArg::Auto => None,
            VariantArg::Torchvision => Some(Variant::Torchvision),
            VariantArg::Fid => Some(Variant::Fid),
        };
        let arithmetic = device.arithmetic().to_string();
        let inception = self.inception.as_deref();
        let outcome = device.run(Evaluate { options: &options, inception, variant, arithmetic })?;
        if let Some(path) = &self.json {
            write_atomic(path, evaluate::json(&outcome.evaluation)?.as_bytes())?;
        }
        let asked = self.kid || self.fid || options.generated.is_some();
        print::stdout(&told(&outcome, self.json.as_deref()))?;
        match inception {
            None if asked => Err(Error::Usage(format!("{}; the losses above were measured", what_is_missing()))),
            _ => Ok(()),
        }
    }
}

struct Evaluate<'a> {
    options: &'a EvaluateOptions,
    inception: Option<&'a Path>,
    variant: Option<Variant>,
    arithmetic: String,
}

impl Work for Evaluate<'_> {
    type Output = Outcome;
    fn run<B: Backend>(self, backend: &B) -> Result<Outcome> {
        let load = |path| InceptionOn::load(backend, path, self.variant, &self.arithmetic);
        let mut inception = self.inception.map(load).transpose()?;
        let extractor = inception.as_mut().map(|net| net as &mut dyn Extractor);
        evaluate::run(backend, self.options, extractor, &Progress::new(Kind::Auto))
    }
}

/// Cells of the longest bar.
const BAR: usize = 24;

/// What is printed.
fn told(outcome: &Outcome, json: Option<&Path>) -> String {
    let e = &outcome.evaluation;
    let mut text = format!(
        "step        {} ({})\npictures    {} ({}): {}\nloss        {:.4}\nnoise_loss  {:.4}\nimage_loss  {:.4}\n\n",
        e.step, e.weights, e.pictures, e.split, e.data, e.loss, e.noise_loss, e.image_loss
    );
    text.push_str(&levels(e));
    match &e.quality {
        Some(quality) => text.push_str(&format!("\n{}", distances(quality))),
        None => text.push_str(
            "\nKID, FID    need the weights of Inception-v3: --inception FILE (evaluate --help says where from)\n",
        ),
    }
    outcome.notes.iter().for_each(|note| text.push_str(&format!("note        {note}\n")));
    let written = [outcome.written.as_deref(), json];
    written.into_iter().flatten().for_each(|path| text.push_str(&format!("written     {}\n", path.display())));
    text
}

/// A line for every bin of times, with a bar as long as its noise loss.
fn levels(e: &Evaluation) -> String {
    let most = e.levels.iter().map(|l| l.noise_loss).fold(0.0, f64::max);
    let mut text = String::from("time        noise rate     noise_loss  image_loss\n");
    for l in &e.levels {
        let cells = if most > 0.0 { (l.noise_loss / most * BAR as f64).round() as usize } else { 0 };
        text.push_str(&format!(
            "{:.1} to {:.1}  {:.3} to {:.3}  {:>10.4}  {:>10.4}  {}\n",
            l.time[0],
            l.time[1],
            l.noise_rate[0],
            l.noise_rate[1],
            l.noise_loss,
            l.image_loss,
            "#".repeat(cells)
        ));
    }
    text
}

/// What Inception-v3 says.
fn distances(q: &Quality) -> String {
    let [subsets, size] = q.kid_subsets;
    let unit = if q.protocol == "seed" { "batches" } else { "subsets" };
    let mut text =
        format!("KID         {:.5} +- {:.5} ({subsets} {unit} of {size}; protocol {})\n", q.kid, q.kid_std, q.protocol);
    if let Some(fid) = q.fid {
        text.push_str(&format!("FID         {fid:.3}\n"));
    }
    if let (Some(precision), Some(recall)) = (q.precision, q.recall) {
        text.push_str(&format!("precision   {precision:.3}\nrecall      {recall:.3}\n"));
    }
    let how = match q.steps {
        0 => q.sampler.clone(),
        steps => format!("{}, {steps} steps, network calls: {}", q.sampler, q.network_calls),
    };
    text.push_str(&format!("compared    {} real, {} generated: {how}\n", q.pictures[0], q.pictures[1]));
    text.push_str(&format!("inception   {}\n", q.inception));
    text
}
