//! Pictures from a trained model: grids, single files, the animation of the denoising.
//!
//! Sample i draws its noise from the stream (seed, i), and every picture of a batch is computed for itself, so the same seed gives
//! the same pictures whatever the batch.

mod encode;
mod follow;
mod load;
mod many;
mod start;

use std::path::PathBuf;

pub use encode::{EncodeOptions, encode};
pub(crate) use follow::{Follow, Stage, follow};
pub(crate) use load::{Ready, load};
pub(crate) use many::{Many, draw_many, sampler_name};
pub use start::Interpolate;
pub(crate) use start::noise_of_seed;

use crate::config::Config;
use crate::diffusion::Diffusion;
use crate::diffusion::sampler::{Sampler, Way};
use crate::diffusion::samplers::{Method, Plan, Wishes};
use crate::error::{Error, Result};
use crate::model::Net;
use crate::model::params::Weights;
use crate::ops::Backend;
use crate::tensor::{Shape, Tensor};
use crate::train::picture::{self, Picture};
use crate::train::progress::Progress;
use encode::{BothWays, noise_of};
use start::{KnownPicture, Noise, Start};

/// Most pictures in the frames of an animation.
const GIF_PICTURES: usize = 36;

/// Network calls for each step of the way from a picture to its noise, where pictures are interpolated.
pub const INVERSION_ROUNDS: usize = 3;

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
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Pictures; as many as the file of noise holds, where there is one.
    pub count: usize,
    /// Steps: points of the time grid for the family seed, one network call fewer.
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
    /// Sampler, where it is not the model's own.
    pub wishes: Wishes,
    /// Classes, taken in turn; empty: all.
    pub classes: Vec<usize>,
    /// Weight of classifier-free guidance.
    pub guidance: Option<f64>,
    /// Pictures between two.
    pub interpolate: Option<Interpolate>,
    /// Picture to begin with.
    pub init_image: Option<PathBuf>,
    /// How much of the way from noise is gone with it.
    pub strength: Option<f64>,
    /// White where the picture is drawn anew.
    pub mask: Option<PathBuf>,
    /// File of the noise to begin with: tensor `noise` [N, C, H, W].
    pub noise: Option<PathBuf>,
    /// File for the pictures as the network sees them, not clipped: tensor `images` [N, C, H, W].
    pub raw: Option<PathBuf>,
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
    /// Steps, as [`SampleOptions`] counts them.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of a picture.
    pub image_size: usize,
    /// Channels of a picture.
    pub channels: usize,
}

/// Is shown the pictures as predicted after each step, with its number.
pub type Watch<'w> = &'w mut dyn FnMut(usize, Vec<Picture>) -> Result<()>;

/// Draws one batch, by the sampler that the model's configuration names.
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
    let way = Way::new(model.diffusion, &Wishes::default(), request.steps)?;
    let image = draw_from(backend, model, weights, request, &way, &Start::plain(), watch)?;
    to_pictures(backend, model, &image)
}

/// Draws one batch by any way; normalised.
fn draw_from<B: Backend>(
    backend: &B,
    model: &Model<'_>,
    weights: &mut Weights<B>,
    request: &Request,
    way: &Way,
    start: &Start,
    watch: Option<Watch<'_>>,
) -> Result<Tensor<B>> {
    let mut sampler = sampler(backend, model, weights, request, way)?;
    start.prepare(backend, &mut sampler, request)?;
    match watch {
        Some(watch) => sampler.run(|step, image| watch(step, to_pictures(backend, model, image)?))?,
        None => sampler.run(|_, _| Ok(()))?,
    };
    Ok(sampler.into_result())
}

fn sampler<'a, B: Backend>(
    backend: &'a B,
    model: &Model<'a>,
    weights: &'a mut Weights<B>,
    request: &Request,
    way: &Way,
) -> Result<Sampler<'a, B>> {
    let shape = Shape::new(request.count, request.image_size, request.image_size, request.channels);
    let mut sampler = Sampler::with_way(backend, model.net, weights, model.diffusion, shape, way.clone())?;
    sampler.set_seed(request.seed);
    Ok(sampler)
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

/// The way from noise to pictures, and what it begins with.
fn plan<B: Backend>(
    backend: &B,
    model: &Model<'_>,
    weights: &mut Weights<B>,
    options: &SampleOptions,
    config: &Config,
) -> Result<(Way, Start, usize)> {
    let refuse = |what: String| Err(Error::Usage(what));
    let (diffusion, mut count) = (model.diffusion, options.count);
    let mut start = Start { classes: options.classes.clone(), ..Start::plain() };
    let mut way = Way::new(diffusion, &options.wishes, options.steps)?;
    if let Some(class) = options.classes.iter().find(|_| diffusion.sampling.classes.is_none()) {
        return refuse(format!("--class {class}: the network knows no classes; leave --class out"));
    }
    if let Some(weight) = options.guidance {
        if !weight.is_finite() {
            return refuse(format!("--guidance {weight}: expected a number, such as 3"));
        }
        start.guidance = match diffusion.sampling.null_class {
            Some(null) => Some((null, weight)).filter(|_| weight != 1.0),
            None => {
                let what = "the network has not learned to draw without a class; train with a label_dropout above 0";
                return refuse(format!("--guidance {weight} and label_dropout 0: {what}"));
            }
        };
    }
    if let Some(path) = &options.noise {
        let noise = start::read_noise(path, config)?;
        count = noise.len() / start::shape(config, 1).len();
        start.noise = Noise::Given(noise);
    }
    if let Some(ends) = &options.interpolate {
        if let Way::Plan(plan) = &way
            && plan.is_stochastic()
        {
            let what = "noise on the way hides what lies between; take a sampler without it (--eta 0, not ddpm)";
            return refuse(format!("--interpolate and --sampler with noise: {what}"));
        }
        let per = start::shape(config, 1).len();
        start.noise = Noise::Given(match ends {
            Interpolate::Seeds(a, b) => {
                start::slerp(&start::noise_of_seed(*a, per), &start::noise_of_seed(*b, per), count)
            }
            Interpolate::Pictures(a, b) => {
                let wishes = Wishes { method: None, eta: None, ..options.wishes };
                if options.wishes.method.is_some_and(|m| m != Method::Ddim) || wishes != Wishes::default() {
                    let what = "pictures are led to their noise and back by ddim without a threshold";
                    return refuse(format!(
                        "--interpolate of pictures with another sampler: {what}; leave its options out"
                    ));
                }
                let both = BothWays::new(model, options.steps, INVERSION_ROUNDS)?;
                let mut pictures = start::normalized(&start::picture_bytes(a, config)?, model);
                pictures.extend(start::normalized(&start::picture_bytes(b, config)?, model));
                let ends = noise_of(backend, model, weights, &both.to_noise, config, &pictures)?;
                way = both.to_pictures;
                start::slerp(&ends[..per], &ends[per..], count)
            }
        });
    }
    match (&options.init_image, &options.mask, options.strength) {
        (None, Some(_), _) => {
            return refuse("--mask without --init-image: there is no picture to keep a part of".into());
        }
        (None, None, Some(s)) => {
            return refuse(format!("--strength {s} without --init-image: there is no picture to change"));
        }
        (None, None, None) => {}
        (Some(path), mask, strength) => {
            let strength = strength.unwrap_or(if mask.is_some() { 1.0 } else { 0.6 });
            if !(strength > 0.0 && strength <= 1.0) {
                return refuse(format!("--strength {strength}: expected above 0 and at most 1"));
            }
            let picture = start::normalized(&start::picture_bytes(path, config)?, model);
            let mask = mask.as_ref().map(|path| start::mask(path, config)).transpose()?;
            let calls = Way::calls(diffusion, options.steps)?;
            let skip = calls - (calls as f64 * strength).floor() as usize;
            let (levels, sampler) = diffusion.sampler_options(&options.wishes, calls, skip)?;
            way = Way::Plan(Plan::new(&levels, &sampler)?);
            let begin = mask.is_none() || strength < 1.0;
            start.known = Some(KnownPicture { picture, mask, begin });
        }
    }
    Ok((way, start, count))
}

/// Samples and writes what was asked for; returns lines that say what was written.
///
/// # Errors
/// A source that is no model, options that do not go together, files that cannot be read or written, a failing device.
pub fn run<B: Backend>(backend: &B, options: &SampleOptions, progress: &Progress) -> Result<Vec<String>> {
    let mut ready = Ready::new(backend, &options.source, options.weights, progress)?;
    let (model, weights, config) = ready.parts();
    let (way, start, count) = plan(backend, &model, weights, options, config)?;
    let steps = way.steps();
    let task = progress.task("sampling", (count * steps) as u64, "steps");
    let (mut pictures, mut frames): (Vec<Picture>, Vec<Vec<Picture>>) = (Vec::new(), vec![Vec::new(); steps]);
    let mut raw: Vec<f32> = Vec::new();
    let batch = options.batch.max(1);
    let request = |first: usize| Request {
        count: batch.min(count - first),
        first,
        steps: options.steps,
        seed: options.seed,
        image_size: config.image_size,
        channels: config.channels,
    };
    let mut keep = |pictures: &mut Vec<Picture>, image: &Tensor<B>| {
        if options.raw.is_some() {
            raw.extend(image.to_vec(backend)?);
        }
        pictures.extend(to_pictures(backend, &model, image)?);
        Ok::<_, Error>(())
    };
    // Whole batches all run the same loop: worth recording where there are several and nobody watches.
    if options.gif.is_none() && count >= 2 * batch {
        let mut sampler = sampler(backend, &model, weights, &request(0), &way)?;
        while count - pictures.len() >= batch {
            start.prepare(backend, &mut sampler, &request(pictures.len()))?;
            keep(&mut pictures, sampler.run_recorded()?)?;
            task.advance((batch * steps) as u64);
        }
    }
    while pictures.len() < count {
        let request = request(pictures.len());
        let mut watch = |step: usize, now: Vec<Picture>| {
            task.advance(request.count as u64);
            let frame = &mut frames[step - 1];
            let room = GIF_PICTURES.saturating_sub(frame.len());
            frame.extend(now.into_iter().take(room));
            Ok(())
        };
        let watched = options.gif.is_some();
        let watch: Option<Watch<'_>> = if watched { Some(&mut watch) } else { None };
        keep(&mut pictures, &draw_from(backend, &model, weights, &request, &way, &start, watch)?)?;
        if !watched {
            task.advance((request.count * steps) as u64);
        }
    }
    task.finish();
    let mut lines = write_all(options, &pictures, &frames, config.image_size)?;
    if let Some(path) = &options.raw {
        start::write_tensor(path, "images", &raw, config)?;
        lines.push(format!("as the network sees them in {}", path.display()));
    }
    Ok(lines)
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
