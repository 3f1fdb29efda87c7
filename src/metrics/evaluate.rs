//! A model measured: losses of pictures that it has not learned from, and, with a network of features, how far its own pictures are from
//! real ones.
//!
//! *Protocols of the kernel distance.* `engine`: all real pictures of the split against as many drawn ones, mean and deviation over random
//! subsets. `seed`: that of "De-noising Diffusion with torch": the held-back pictures in batches of 128, as many drawn for each with 4
//! network calls, and the mean of the estimates of the batches. The two do not compare with each other: with 4 calls pictures are worse.

use std::path::PathBuf;
use std::time::Instant;

use super::features::{Extractor, Pixels, WEIGHTS, extract, extract_cached};
use super::kid::Kid;
use super::losses::{self, BINS, Pictures};
use super::matrix::Features;
use super::{Evaluation, Quality, fid, kid, neighbours};
use crate::config::Config;
use crate::data::{self, Dataset, Labels};
use crate::diffusion::samplers::Wishes;
use crate::error::{Error, Result};
use crate::interop;
use crate::ops::Backend;
use crate::sample::{Many, Ready, WeightKind, draw_many};
use crate::train::batches::load_pictures;
use crate::train::checks::check_classes;
use crate::train::progress::Progress;
use crate::train::run_dir::{self, RunDir};

/// Pictures drawn, where nothing is asked for, are as many as the real ones and at most so many.
const MOST_DRAWN: usize = 10_000;
/// Pictures drawn at once, where nothing is asked for.
const DRAW_BATCH: usize = 64;
/// Pictures of a batch of the protocol `seed`.
const SEED_BATCH: usize = 128;
/// Its network calls for a picture.
const SEED_CALLS: usize = 4;

/// Which pictures are measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that the run held back.
    Valid,
    /// All.
    All,
}

impl Part {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Part::Valid => "valid",
            Part::All => "all",
        }
    }
}

/// How the kernel distance is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// All pictures, random subsets of them.
    Engine,
    /// As "De-noising Diffusion with torch" has it.
    Seed,
}

impl Protocol {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Engine => "engine",
            Protocol::Seed => "seed",
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Pictures, where they are not those of the run.
    pub data: Option<String>,
    /// Where known sets of pictures are looked for.
    pub data_dir: Option<PathBuf>,
    /// Which of them.
    pub part: Part,
    /// Which weights.
    pub weights: WeightKind,
    /// The Frechet distance too, where there is a network of features.
    pub fid: bool,
    /// How the kernel distance is taken.
    pub protocol: Protocol,
    /// Pictures that were generated elsewhere, in place of ones drawn here.
    pub generated: Option<PathBuf>,
    /// Pictures to draw.
    pub count: Option<usize>,
    /// Steps, as users count them.
    pub steps: Option<usize>,
    /// Sampler, where it is not the model's own.
    pub wishes: Wishes,
    /// Subsets of the kernel distance.
    pub subsets: Option<usize>,
    /// Pictures of a subset.
    pub subset_size: Option<usize>,
    /// Seed of the pictures drawn and of the subsets.
    pub seed: u64,
    /// Pictures at once.
    pub batch: Option<usize>,
    /// What the evaluation calls the device.
    pub device: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures.
    pub evaluation: Evaluation,
    /// Where they were written: `evaluation.json` in the run's folder, where the model lies in one.
    pub written: Option<PathBuf>,
    /// What the person should know.
    pub notes: Vec<String>,
}

/// Measures. Without `extractor` there are losses only.
///
/// # Errors
/// A source that is no model, pictures that are not there or too few, options that do not go together, a failing device.
pub fn run<B: Backend>(
    backend: &B,
    options: &EvaluateOptions,
    extractor: Option<&mut dyn Extractor>,
    progress: &Progress,
) -> Result<Outcome> {
    let began = Instant::now();
    check(options)?;
    let mut ready = Ready::new(backend, &options.source, options.weights, progress)?;
    let mut notes = Vec::new();
    let (dataset, indices) = pictures(options, &ready.config, progress)?;
    if options.part == Part::Valid && !ready.fingerprint.is_empty() && ready.fingerprint != dataset.fingerprint() {
        notes.push(
            "these are not the pictures that the run was trained on: `valid` is a share of them by the run's seed"
                .into(),
        );
    }
    let labels = ready.config.labels_path().map(|path| Labels::load(path, &dataset)).transpose()?;
    check_classes(&ready.config, labels.as_ref())?;

    let what = format!("losses at all levels and in {BINS} bins");
    let task = progress.task(&what, ((1 + BINS) * indices.len()) as u64, "pictures");
    let batch = options.batch.unwrap_or(ready.config.batch_size);
    let on = Pictures { dataset: &dataset, labels: labels.as_ref(), indices: &indices, batch };
    let (all, levels) = losses::measure(backend, &mut ready, &on, &task)?;
    task.finish();

    let quality = match extractor {
        Some(extractor) => {
            Some(quality(backend, options, &mut ready, &dataset, &indices, extractor, &mut notes, progress)?)
        }
        None => None,
    };
    let mut evaluation = Evaluation {
        step: ready.step,
        weights: if ready.averaged { "moving average" } else { "as trained" }.into(),
        data: dataset.description().to_string(),
        split: options.part.name().into(),
        pictures: indices.len(),
        loss: all.loss,
        noise_loss: all.noise_loss,
        image_loss: all.image_loss,
        levels,
        quality,
        device: options.device.clone(),
        seconds: began.elapsed().as_secs_f64(),
    };
    let written = write(options, &mut evaluation, &mut notes)?;
    Ok(Outcome { evaluation, written, notes })
}

/// Options that do not go together.
fn check(options: &EvaluateOptions) -> Result<()> {
    let refuse = |what: String| Err(Error::Usage(what));
    if options.generated.is_some()
        && (options.count.is_some() || options.steps.is_some() || options.wishes != Wishes::default())
    {
        return refuse(
            "--generated with --count, --steps or --sampler: no pictures are drawn then; leave them out".into(),
        );
    }
    if options.protocol == Protocol::Seed {
        let fixed = [
            ("--count", options.count.is_some()),
            ("--steps", options.steps.is_some()),
            ("--subsets", options.subsets.is_some()),
            ("--subset-size", options.subset_size.is_some()),
            ("--sampler", options.wishes != Wishes::default()),
        ];
        if let Some((option, _)) = fixed.iter().find(|(_, given)| *given) {
            let what =
                "that protocol draws as many pictures as are held back, with 4 network calls, and takes batches of 128";
            return refuse(format!("{option} with --kid-protocol seed: {what}; leave {option} out"));
        }
    }
    Ok(())
}

/// The pictures, and which of them are measured on.
fn pictures(options: &EvaluateOptions, config: &Config, progress: &Progress) -> Result<(Dataset, Vec<u32>)> {
    if options.data.is_none() && interop::folder::is_folder(&options.source) {
        let what =
            "a folder of the diffusers library does not say which pictures it was trained on; name some with --data";
        return Err(Error::input(&options.source, what));
    }
    let mut wanted = config.clone();
    if let Some(data) = &options.data {
        wanted.data = data.clone();
    }
    let dataset = load_pictures(&wanted, options.data_dir.as_deref(), progress).map_err(|why| match why {
        Error::Input { path, what } if options.data.is_none() => Error::Input {
            path,
            what: format!("{what}. The run was trained on these; name them with --data where they lie now"),
        },
        other => other,
    })?;
    let indices = match options.part {
        Part::All => (0..dataset.len() as u32).collect(),
        Part::Valid => dataset.split(config.valid_fraction, config.seed)?.valid,
    };
    if indices.is_empty() {
        return Err(Error::Usage(
            "valid_fraction is 0: the run held no pictures back; use --split all, which measures on what it learned from".into(),
        ));
    }
    Ok((dataset, indices))
}

#[allow(clippy::too_many_arguments)] // all of them come from `run`
fn quality<B: Backend>(
    backend: &B,
    options: &EvaluateOptions,
    ready: &mut Ready<B>,
    dataset: &Dataset,
    indices: &[u32],
    extractor: &mut dyn Extractor,
    notes: &mut Vec<String>,
    progress: &Progress,
) -> Result<Quality> {
    if indices.len() < 2 {
        let what = format!("{} real picture: KID and FID compare sets of at least 2", indices.len());
        return Err(Error::Usage(format!("{what}; use --split all, or more pictures")));
    }
    let (size, channels) = (dataset.image_size(), dataset.channels());
    let drawn = generated(backend, options, ready, indices.len(), progress)?;
    let mut bytes = vec![0; indices.len() * dataset.image_bytes()];
    data::fill_batch(dataset, indices, None, &mut bytes);
    let batch = options.batch.unwrap_or(usize::MAX);
    let folder = data::cache_folder(options.data_dir.as_deref());
    let of = |bytes| Pixels { bytes, size, channels };
    let real = extract_cached(extractor, of(&bytes), batch, folder.as_deref(), progress)?;
    let made = extract(extractor, of(&drawn.pixels), "generated", batch, progress)?;
    let (distance, kid_subsets) = kernel_distance(options, &real, &made, progress)?;
    let few = real.n.min(made.n);
    if options.protocol == Protocol::Engine && options.subset_size.is_none() && few < kid::SUBSET_SIZE {
        let size = kid_subsets[1];
        notes.push(format!("with {few} pictures KID takes subsets of {size}, not of {}", kid::SUBSET_SIZE));
    }
    let fid = if options.fid {
        progress.line("FID: seconds for hundreds of pictures, half a minute for thousands");
        Some(fid::distance(&real, &made)?)
    } else {
        None
    };
    let balls = if few > neighbours::K {
        Some(neighbours::precision_recall(&real, &made, neighbours::K)?)
    } else {
        notes.push(format!("precision and recall need more than {} pictures of each kind", neighbours::K));
        None
    };
    Ok(Quality {
        protocol: options.protocol.name().into(),
        inception: extractor.name(),
        pictures: [real.n, made.n],
        sampler: drawn.sampler,
        steps: drawn.steps,
        network_calls: drawn.network_calls,
        kid: distance.mean,
        kid_std: distance.std,
        kid_subsets,
        fid,
        precision: balls.map(|b| b.precision),
        recall: balls.map(|b| b.recall),
    })
}

/// Pictures to compare with real ones.
struct Generated {
    pixels: Vec<u8>,
    sampler: String,
    steps: usize,
    network_calls: usize,
}

/// Pictures from a folder or archive, or drawn here: as many as `real` where no number is given.
fn generated<B: Backend>(
    backend: &B,
    options: &EvaluateOptions,
    ready: &mut Ready<B>,
    real: usize,
    progress: &Progress,
) -> Result<Generated> {
    if let Some(path) = &options.generated {
        let config = Config { data: path.display().to_string(), ..ready.config.clone() };
        let set = load_pictures(&config, options.data_dir.as_deref(), progress)?;
        if options.protocol == Protocol::Seed && set.len() < real {
            let what =
                format!("has {} pictures; --kid-protocol seed needs as many as are held back, {real}", set.len());
            return Err(Error::input(path, what));
        }
        let pixels = (0..set.len()).flat_map(|i| set.image(i)).copied().collect();
        let sampler = format!("pictures of {}", path.display());
        return Ok(Generated { pixels, sampler, steps: 0, network_calls: 0 });
    }
    let (count, steps) = match options.protocol {
        // The seed family counts points of its grid, of which there is one more.
        Protocol::Seed => (real, SEED_CALLS + usize::from(ready.diffusion.levels.is_none())),
        Protocol::Engine => (options.count.unwrap_or(real.min(MOST_DRAWN)), options.steps.unwrap_or(20)),
    };
    if count < 2 {
        return Err(Error::Usage(format!("--count {count}: KID and FID compare sets of at least 2 pictures")));
    }
    let batch = options.batch.unwrap_or(DRAW_BATCH);
    let many = Many { count, steps, seed: options.seed, batch, wishes: options.wishes };
    let drawn = draw_many(backend, ready, &many, progress)?;
    let (sampler, network_calls) = (drawn.sampler.to_string(), drawn.network_calls);
    Ok(Generated { pixels: drawn.pixels, sampler, steps, network_calls })
}

/// The kernel distance by the protocol; subsets, and pictures of each.
fn kernel_distance(
    options: &EvaluateOptions,
    real: &Features,
    made: &Features,
    progress: &Progress,
) -> Result<(Kid, [usize; 2])> {
    if options.protocol == Protocol::Seed {
        let all: Vec<u32> = (0..real.n as u32).collect();
        // A last batch of one picture has no estimate.
        let batches = all.chunks(SEED_BATCH).filter(|batch| batch.len() > 1);
        let estimates: Vec<f64> =
            batches.map(|batch| kid::estimate(&real.rows(batch), &made.rows(batch))).collect::<Result<_>>()?;
        return Ok((Kid::of(&estimates), [estimates.len(), SEED_BATCH.min(real.n)]));
    }
    let size = options.subset_size.unwrap_or(kid::default_subset_size(real.n, made.n));
    let count = options.subsets.unwrap_or(kid::SUBSETS);
    let subsets = kid::subsets(real.n, made.n, count, size, options.seed)?;
    let task = progress.task("KID", count as u64, "subsets");
    let distance = kid::over_subsets(real, made, &subsets, &mut || task.advance(1))?;
    task.finish();
    Ok((distance, [count, size]))
}

/// Writes `evaluation.json` into the run that the model lies in. Distances that an earlier evaluation of the same weights and pictures found
/// stay where this one has none.
fn write(options: &EvaluateOptions, evaluation: &mut Evaluation, notes: &mut Vec<String>) -> Result<Option<PathBuf>> {
    if interop::folder::is_folder(&options.source) {
        return Ok(None);
    }
    let Ok(root) = RunDir::root_of(&options.source) else { return Ok(None) };
    let path = root.join(Evaluation::FILE);
    let earlier = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Evaluation>(&bytes).ok());
    if let (None, Some(earlier)) = (&evaluation.quality, earlier) {
        let of = |e: &Evaluation| (e.step, e.weights.clone(), e.data.clone(), e.split.clone());
        if earlier.quality.is_some() && of(&earlier) == of(evaluation) {
            evaluation.quality = earlier.quality;
            notes.push("KID and FID are those of an earlier evaluation of the same weights and pictures".into());
        }
    }
    run_dir::write_atomic(&path, json(evaluation)?.as_bytes())?;
    Ok(Some(path))
}

/// An evaluation as text for a file.
///
/// # Errors
/// Never, unless a figure cannot be written as JSON.
pub fn json(evaluation: &Evaluation) -> Result<String> {
    let text = serde_json::to_string_pretty(evaluation);
    Ok(text.map_err(|why| Error::Failed(format!("cannot write the evaluation: {why}")))? + "\n")
}

/// What the distances need, for those who asked for them without it.
pub fn what_is_missing() -> String {
    format!("KID and FID need the weights of Inception-v3: --inception FILE, {WEIGHTS}")
}
