//! Pictures from a trained model: grids, single files, the animation of the denoising.
//!
//! Sample i draws its noise from the stream (seed, i), and every picture of a batch is computed for itself, so the same seed gives
//! the same pictures whatever the batch.

use std::path::{Path, PathBuf};

use crate::config::{Config, Layers};
use crate::diffusion::Diffusion;
use crate::diffusion::sampler::Sampler;
use crate::error::{Error, Result};
use crate::interop;
use crate::model::Net;
use crate::model::params::Weights;
use crate::ops::Backend;
use crate::ops::noise::{NoiseKey, step_word};
use crate::rng::Purpose;
use crate::tensor::{Shape, Tensor};
use crate::train::checkpoint;
use crate::train::picture::{self, Picture};
use crate::train::progress::Progress;
use crate::train::run_dir::RunDir;
use crate::train::state::import_model;
use crate::train::tensor_file::NamedTensor;
use crate::train::trainer::{NORMALIZER_MEAN, NORMALIZER_STD};

/// Most pictures in the frames of an animation.
const GIF_PICTURES: usize = 36;

/// Which weights to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// The moving average where there is one, else as trained.
    Auto,
    /// The moving average.
    Ema,
    /// As trained.
    Raw,
}

/// What to sample, and where to.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// A run, a checkpoint or a model file.
    pub source: PathBuf,
    /// Pictures.
    pub count: usize,
    /// Points of the time grid; one network call fewer.
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
    pub weights: WeightKind,
}

/// A network with what turns its output into pictures.
pub struct Model<'a> {
    /// The network.
    pub net: &'a Net,
    /// Schedule and objective.
    pub diffusion: &'a Diffusion,
    /// The normaliser's mean per channel.
    pub mean: Vec<f32>,
    /// The normaliser's deviation per channel.
    pub std: Vec<f32>,
}

/// A batch of pictures to draw.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Pictures.
    pub count: usize,
    /// Number of the first one in the seed's sequence.
    pub first: usize,
    /// Points of the time grid.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of a picture.
    pub image_size: usize,
    /// Channels of a picture.
    pub channels: usize,
}

/// Is shown the pictures as predicted after each network call, with the number of the call.
pub type Watch<'w> = &'w mut dyn FnMut(usize, Vec<Picture>) -> Result<()>;

/// Draws one batch.
///
/// # Errors
/// The device failed, or the network made numbers that are not finite; what `watch` returns.
pub fn draw<B: Backend>(
    backend: &B,
    model: &Model<'_>,
    weights: &mut Weights<B>,
    request: &Request,
    watch: Option<Watch<'_>>,
) -> Result<Vec<Picture>> {
    let mut sampler = sampler(backend, model, weights, request)?;
    noise(backend, &mut sampler, request)?;
    let image = match watch {
        Some(watch) => sampler.run(|call, image| watch(call, to_pictures(backend, model, image)?))?,
        None => sampler.run(|_, _| Ok(()))?,
    };
    to_pictures(backend, model, image)
}

fn sampler<'a, B: Backend>(
    backend: &'a B,
    model: &Model<'a>,
    weights: &'a mut Weights<B>,
    request: &Request,
) -> Result<Sampler<'a, B>> {
    let shape = Shape::new(request.count, request.image_size, request.image_size, request.channels);
    Sampler::new(backend, model.net, weights, model.diffusion, shape, request.steps)
}

/// The noise of a batch, into its sampler.
fn noise<B: Backend>(backend: &B, sampler: &mut Sampler<'_, B>, request: &Request) -> Result<()> {
    let s = sampler.shape();
    let key = NoiseKey { seed: request.seed, purpose: Purpose::Sample, first_image: request.first as u64 };
    let mut step = backend.alloc(1)?;
    backend.upload(&[step_word(0)], B::all_mut(&mut step))?;
    backend.fill_normal(key, B::all(&step), s.h * s.w * s.c, sampler.noise())
}

fn to_pictures<B: Backend>(backend: &B, model: &Model<'_>, image: &Tensor<B>) -> Result<Vec<Picture>> {
    let s = image.shape;
    let mut copy = Tensor::from_slice(backend, s, &image.to_vec(backend)?)?;
    let mut mean_std = backend.alloc(2 * s.c)?;
    backend.upload(&[&model.mean[..], &model.std].concat(), B::all_mut(&mut mean_std))?;
    backend.denormalize(B::all(&mean_std), copy.view_mut())?;
    let (pictures, not_numbers) = Picture::batch_from_unit_f32(&copy.to_vec(backend)?, s.w, s.h, s.c)?;
    if not_numbers > 0 {
        let what = format!("the model made {not_numbers} values that are not numbers: its weights are damaged");
        return Err(Error::Failed(format!("{what}; take an earlier checkpoint")));
    }
    Ok(pictures)
}

/// A model as read from disk.
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) tensors: Vec<NamedTensor>,
    pub(crate) averaged: bool,
}

/// Reads a run, a checkpoint, a model file or a folder of the diffusers library, and picks the weights.
pub(crate) fn load(source: &Path, kind: WeightKind, progress: &Progress) -> Result<Loaded> {
    if interop::folder::is_folder(source) {
        if kind == WeightKind::Ema {
            let what =
                "a folder of the diffusers library holds one set of weights, no moving average; use --weights auto";
            return Err(Error::input(source, what));
        }
        let model = interop::load_folder(source, &Layers::default())?;
        model.notes.iter().for_each(|note| progress.line(note));
        let path = source.to_path_buf();
        return Ok(Loaded { path, config: model.config, tensors: model.tensors, averaged: false });
    }
    let bare = source.is_file();
    let bad = |what: String| Error::input(source, what);
    let (path, config, mut model, optimizer) = if bare {
        let file = checkpoint::load_model_file(source)?;
        let config = file.config_toml.ok_or_else(|| bad("carries no configuration of this program".into()))?;
        (file.path, config, file.tensors, Vec::new())
    } else {
        let is_one = source.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
        let path = if is_one {
            source.to_path_buf()
        } else {
            let root = RunDir::root_of(source)?;
            let latest = checkpoint::latest(&root)?;
            let latest = latest.ok_or_else(|| bad("has no checkpoint yet; train it first".into()))?;
            latest.skipped.iter().for_each(|damaged| progress.line(&damaged.passed_over()));
            latest.path
        };
        let c = checkpoint::load(&path)?;
        (path, c.config_toml, c.model, c.optimizer)
    };
    let config = Config::from_toml(&config)?;
    config.validate()?;
    let averages = optimizer.iter().any(|t| t.name.starts_with("ema."));
    if kind == WeightKind::Ema && !averages {
        let why = if bare { "a model file holds the weights as trained" } else { "ema_decay is 0" };
        return Err(bad(format!("has no moving average ({why}); use --weights raw")));
    }
    let averaged = averages && kind != WeightKind::Raw;
    if averaged {
        for tensor in optimizer {
            if let Some(name) = tensor.name.strip_prefix("ema.")
                && let Some(raw) = model.iter_mut().find(|t| t.name == name)
            {
                raw.data = tensor.data;
            }
        }
    }
    Ok(Loaded { path, config, tensors: model, averaged })
}

fn normalizer(tensors: &[NamedTensor], name: &str, channels: usize, path: &Path) -> Result<Vec<f32>> {
    match tensors.iter().find(|t| t.name == name) {
        Some(t) if t.data.len() == channels => Ok(t.data.clone()),
        _ => Err(Error::input(path, format!("tensor `{name}` is missing or not of {channels} channels"))),
    }
}

/// Samples and writes what was asked for; returns lines that say what was written.
///
/// # Errors
/// A source that is no model, files that cannot be written, a failing device.
pub fn run<B: Backend>(backend: &B, options: &SampleOptions, progress: &Progress) -> Result<Vec<String>> {
    let loaded = load(&options.source, options.weights, progress)?;
    let config = &loaded.config;
    let net = Net::new(config)?;
    let mut weights = Weights::init(backend, net.layout(), 0)?;
    import_model(backend, &mut weights, &loaded.tensors)?;
    let diffusion = Diffusion::new(config)?;
    let c = config.channels;
    let model = Model {
        net: &net,
        diffusion: &diffusion,
        mean: normalizer(&loaded.tensors, NORMALIZER_MEAN, c, &loaded.path)?,
        std: normalizer(&loaded.tensors, NORMALIZER_STD, c, &loaded.path)?,
    };
    let kind = if loaded.averaged { "moving average" } else { "weights as trained" };
    progress.line(&format!("model   {} ({kind})", loaded.path.display()));

    let calls = options.steps.saturating_sub(1);
    let task = progress.task("sampling", (options.count * calls) as u64, "network calls");
    let (mut pictures, mut frames): (Vec<Picture>, Vec<Vec<Picture>>) = (Vec::new(), vec![Vec::new(); calls]);
    let batch = options.batch.max(1);
    let request = |first: usize| Request {
        count: batch.min(options.count - first),
        first,
        steps: options.steps,
        seed: options.seed,
        image_size: config.image_size,
        channels: c,
    };
    // Whole batches all run the same loop: worth recording where there are several and nobody watches.
    if options.gif.is_none() && options.count >= 2 * batch {
        let mut sampler = sampler(backend, &model, &mut weights, &request(0))?;
        while options.count - pictures.len() >= batch {
            noise(backend, &mut sampler, &request(pictures.len()))?;
            pictures.extend(to_pictures(backend, &model, sampler.run_recorded()?)?);
            task.advance((batch * calls) as u64);
        }
    }
    while pictures.len() < options.count {
        let request = request(pictures.len());
        let mut watch = |call: usize, now: Vec<Picture>| {
            task.advance(request.count as u64);
            let frame = &mut frames[call - 1];
            let room = GIF_PICTURES.saturating_sub(frame.len());
            frame.extend(now.into_iter().take(room));
            Ok(())
        };
        let watched = options.gif.is_some();
        let watch: Option<Watch<'_>> = if watched { Some(&mut watch) } else { None };
        pictures.extend(draw(backend, &model, &mut weights, &request, watch)?);
        if !watched {
            task.advance((request.count * calls) as u64);
        }
    }
    task.finish();
    write_all(options, &pictures, &frames, config.image_size)
}

fn write_all(
    options: &SampleOptions,
    pictures: &[Picture],
    frames: &[Vec<Picture>],
    image_size: usize,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let upscale = (64 / image_size).max(1);
    let grid = |p: &[Picture]| Ok::<_, Error>(picture::grid(p, None, picture::PADDING)?.upscale(upscale));
    grid(pictures)?.save_png(&options.out)?;
    lines.push(format!("{} pictures in {}", pictures.len(), options.out.display()));
    if let Some(folder) = &options.individual {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder for single pictures"))?;
        let digits = pictures.len().saturating_sub(1).to_string().len().max(4);
        for (i, p) in pictures.iter().enumerate() {
            p.save_png(&folder.join(format!("{i:0digits$}.png")))?;
        }
        lines.push(format!("{} single pictures in {}", pictures.len(), folder.display()));
    }
    if let Some(path) = &options.gif {
        let frames: Vec<Picture> = frames.iter().map(|f| grid(f)).collect::<Result<_>>()?;
        picture::save_gif(path, &frames, 120, 2000)?;
        lines.push(format!("{} frames in {}", frames.len(), path.display()));
    }
    Ok(lines)
}
