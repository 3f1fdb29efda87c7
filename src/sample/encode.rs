//! Pictures to their noise and back: DDIM inversion, and what sampling makes of it.

use std::path::{Path, PathBuf};

use super::load::Ready;
use super::start::{self, Noise, Start, normalized, picture_bytes, shape};
use super::{Model, Request, WeightKind, draw_from, to_pictures};
use crate::config::Config;
use crate::diffusion::sampler::{Sampler, Way};
use crate::diffusion::samplers::{Inversion, Method, Plan, Wishes, invert};
use crate::error::Result;
use crate::model::params::Weights;
use crate::ops::Backend;
use crate::train::picture::{self, Picture};
use crate::train::progress::Progress;

/// What to encode, and where to.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Picture files.
    pub pictures: Vec<PathBuf>,
    /// Steps, as `sample` counts them.
    pub steps: usize,
    /// Network calls for each step of the way to the noise.
    pub rounds: usize,
    /// File of the grid: each picture and what is made of its noise.
    pub out: PathBuf,
    /// File for the noise, which `sample --noise` takes.
    pub noise: Option<PathBuf>,
    /// Which weights.
    pub weights: WeightKind,
}

/// The two ways between pictures and noise: deterministic DDIM without a threshold, which can be undone.
pub(super) struct BothWays {
    pub to_noise: Way,
    pub to_pictures: Way,
}

impl BothWays {
    pub fn new(model: &Model<'_>, steps: usize, rounds: usize) -> Result<Self> {
        let wishes = Wishes { method: Some(Method::Ddim), clip: Some(0.0), ..Wishes::default() };
        let calls = Way::calls(model.diffusion, steps)?;
        let (levels, options) = model.diffusion.sampler_options(&wishes, calls, 0)?;
        let to_noise = Way::Plan(invert(&levels, &options, Inversion { rounds })?);
        Ok(BothWays { to_noise, to_pictures: Way::Plan(Plan::new(&levels, &options)?) })
    }
}

/// The noise of pictures, NHWC both, the pictures normalised.
pub(super) fn noise_of<B: Backend>(
    backend: &B,
    model: &Model<'_>,
    weights: &mut Weights<B>,
    way: &Way,
    config: &Config,
    pictures: &[f32],
) -> Result<Vec<f32>> {
    let per = shape(config, 1).len();
    let mut all = Vec::with_capacity(pictures.len());
    for batch in pictures.chunks(16 * per) {
        let shape = shape(config, batch.len() / per);
        let mut sampler = Sampler::with_way(backend, model.net, weights, model.diffusion, shape, way.clone())?;
        backend.fill(sampler.noise(), 0.0)?;
        sampler.set_known(batch, true, None)?;
        all.extend(sampler.run(|_, _| Ok(()))?.to_vec(backend)?);
    }
    Ok(all)
}

/// Encodes pictures, decodes them again, and writes both side by side; returns lines that say how close they are.
///
/// # Errors
/// A source that is no model, pictures that cannot be read, files that cannot be written, a failing device.
pub fn encode<B: Backend>(backend: &B, options: &EncodeOptions, progress: &Progress) -> Result<Vec<String>> {
    let mut ready = Ready::new(backend, &options.source, options.weights, progress)?;
    let (model, weights, config) = ready.parts();
    let (mut bytes, mut pictures) = (Vec::new(), Vec::new());
    for path in &options.pictures {
        let picture = picture_bytes(path, config)?;
        pictures.extend(normalized(&picture, &model));
        bytes.push(picture);
    }
    let ways = BothWays::new(&model, options.steps, options.rounds)?;
    let noise = noise_of(backend, &model, weights, &ways.to_noise, config, &pictures)?;
    let per = shape(config, 1).len();
    let start = Start { noise: Noise::Given(noise.clone()), ..Start::plain() };
    let mut back: Vec<Picture> = Vec::new();
    while back.len() < bytes.len() {
        let request = Request {
            count: 16.min(bytes.len() - back.len()),
            first: back.len(),
            steps: options.steps,
            seed: 0,
            image_size: config.image_size,
            channels: config.channels,
        };
        let tensor = draw_from(backend, &model, weights, &request, &ways.to_pictures, &start, None)?;
        back.extend(to_pictures(backend, &model, &tensor)?);
    }
    let mut lines = Vec::new();
    let mut both = Vec::new();
    for (i, (bytes, decoded)) in bytes.iter().zip(&back).enumerate() {
        lines.push(line(&options.pictures[i], bytes, &decoded.pixels, &noise[i * per..][..per]));
        both.push(Picture::new(decoded.width, decoded.height, decoded.channels, bytes.clone())?);
        both.push(decoded.clone());
    }
    let columns = if both.len() > 8 { 8 } else { 2 };
    let grid = picture::grid(&both, Some(columns), picture::PADDING)?.upscale((64 / config.image_size).max(1));
    grid.save_png(&options.out)?;
    lines.push(format!("{} pictures and what is made of their noise in {}", back.len(), options.out.display()));
    if let Some(path) = &options.noise {
        start::write_tensor(path, "noise", &noise, config)?;
        lines.push(format!("noise in {}", path.display()));
    }
    Ok(lines)
}

/// How close a picture came back, and how much like noise its noise is.
fn line(path: &Path, bytes: &[u8], decoded: &[u8], noise: &[f32]) -> String {
    let n = bytes.len() as f64;
    let distances = bytes.iter().zip(decoded).map(|(a, b)| f64::from(a.abs_diff(*b)));
    let (sum, squares) = distances.fold((0.0, 0.0), |(sum, squares), d| (sum + d, squares + d * d));
    let psnr = match squares / n {
        0.0 => "equal".to_string(),
        mean => format!("{:.1} dB", 10.0 * (255.0f64 * 255.0 / mean).log10()),
    };
    let mean = noise.iter().map(|&z| f64::from(z)).sum::<f64>() / noise.len() as f64;
    let variance = noise.iter().map(|&z| (f64::from(z) - mean).powi(2)).sum::<f64>() / noise.len() as f64;
    format!(
        "{}: back within {:.2} of 255 in the mean ({psnr}); its noise has mean {mean:.3} and deviation {:.3}",
        path.display(),
        sum / n,
        variance.sqrt()
    )
}
