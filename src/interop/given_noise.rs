//! Samples from noise that is given, as numbers: for comparisons with other programs.
//!
//! Both are safetensors files of one float tensor, NCHW as everywhere in files: `noise` [N, C, H, W], what the sampler starts from, and
//! `images` [N, C, H, W], where it ends. Nothing is clipped or brought to pixels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::diffusion::Diffusion;
use crate::diffusion::sampler::{Sampler, Way};
use crate::diffusion::samplers::Wishes;
use crate::error::{Error, Result};
use crate::model::Net;
use crate::model::params::Weights;
use crate::ops::Backend;
use crate::sample::{self, WeightKind};
use crate::tensor::{Shape, nchw_to_nhwc, nhwc_to_nchw};
use crate::train::progress::Progress;
use crate::train::state::import_model;
use crate::train::tensor_file::{self, NamedTensor};

/// What to sample from what.
#[derive(Clone, Debug)]
pub struct GivenNoise {
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Which weights.
    pub weights: WeightKind,
    /// File of the tensor `noise`.
    pub noise: PathBuf,
    /// File that the tensor `images` goes to.
    pub raw: PathBuf,
    /// Steps, as [`Way::new`] counts them.
    pub steps: usize,
    /// Seed of noise that is added on the way.
    pub seed: u64,
    /// Settings of the sampler beyond the model's own.
    pub wishes: Wishes,
}

/// Samples from the noise of a file, and writes where the sampler ends; returns lines that say what was written.
///
/// # Errors
/// A source that is no model, a file of noise that does not fit it, files that cannot be written, a failing device.
pub fn sample<B: Backend>(backend: &B, options: &GivenNoise, progress: &Progress) -> Result<Vec<String>> {
    let loaded = sample::load(&options.source, options.weights, progress)?;
    let config = &loaded.config;
    let (size, c) = (config.image_size, config.channels);
    let noise = read_noise(&options.noise, [c, size, size])?;
    let net = Net::new(config)?;
    let mut weights = Weights::init(backend, net.layout(), 0)?;
    import_model(backend, &mut weights, &loaded.tensors)?;
    let diffusion = Diffusion::new(config)?;
    let shape = Shape::new(noise.shape[0], size, size, c);
    let way = Way::new(&diffusion, &options.wishes, options.steps)?;
    let mut sampler = Sampler::with_way(backend, &net, &mut weights, &diffusion, shape, way)?;
    sampler.set_seed(options.seed);
    backend.upload(&nchw_to_nhwc(&noise.data, shape), sampler.noise())?;
    let images = sampler.run(|_, _| Ok(()))?.to_vec(backend)?;
    let images = NamedTensor { name: "images".into(), shape: noise.shape, data: nhwc_to_nchw(&images, shape) };
    if images.data.iter().any(|v| !v.is_finite()) {
        return Err(Error::Failed("the model made numbers that are not finite: its weights are damaged".into()));
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    tensor_file::write(&options.raw, &metadata, &[images])?;
    Ok(vec![format!("{} samples, as numbers, in {}", shape.n, options.raw.display())])
}

/// The tensor `noise` of a file.
fn read_noise(path: &Path, image: [usize; 3]) -> Result<NamedTensor> {
    let tensors = tensor_file::read_any_float(path)?.tensors;
    let found: Vec<String> = tensors.iter().map(|t| format!("{} {:?}", t.name, t.shape)).collect();
    match tensors.into_iter().find(|t| t.name == "noise") {
        Some(t) if t.shape.len() == 4 && t.shape[0] > 0 && t.shape[1..] == image => Ok(t),
        _ => {
            let [c, h, w] = image;
            let what = format!("holds {}; expected a tensor `noise` of shape [N, {c}, {h}, {w}]", found.join(", "));
            Err(Error::input(path, what))
        }
    }
}
