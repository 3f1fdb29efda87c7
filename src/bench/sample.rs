//! Pictures from noise: how long a batch takes.

use std::time::Instant;

use super::timing::Samples;
use crate::config::Config;
use crate::device::{MemoryUse, nvtx};
use crate::diffusion::Diffusion;
use crate::diffusion::sampler::Sampler;
use crate::error::Result;
use crate::model::Net;
use crate::model::params::Weights;
use crate::ops::Backend;
use crate::ops::noise::{NoiseKey, step_word};
use crate::rng::Purpose;
use crate::tensor::Shape;

/// Times of sampling.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Of all pictures together, after once that does not count.
    pub seconds: Samples,
    /// From making the network to the first pictures.
    pub first: f64,
    /// Of the arena.
    pub memory: MemoryUse,
}

/// A sampler of a fresh network, and what it draws into.
pub(super) struct Pictures<'a, B: Backend> {
    sampler: Sampler<'a, B>,
    step: B::Buffer,
    result: Vec<f32>,
}

impl<B: Backend> Pictures<'_, B> {
    /// Draws a batch.
    pub fn draw(&mut self, backend: &B) -> Result<()> {
        let _range = nvtx::range(c"pictures");
        let shape = self.sampler.shape();
        let key = NoiseKey { seed: 1, purpose: Purpose::Sample, first_image: 0 };
        backend.fill_normal(key, B::all(&self.step), shape.h * shape.w * shape.c, self.sampler.noise())?;
        let image = self.sampler.run_recorded()?;
        backend.download(image.view(), &mut self.result)
    }
}

/// Calls `work` with a sampler of `batch` pictures in `steps` steps.
pub(super) fn with_pictures<B: Backend, T>(
    backend: &B,
    config: &Config,
    batch: usize,
    steps: usize,
    work: impl FnOnce(&mut Pictures<'_, B>) -> Result<T>,
) -> Result<T> {
    let net = Net::new(config)?;
    let mut weights = Weights::init(backend, net.layout(), config.seed)?;
    let diffusion = Diffusion::new(config)?;
    let shape = Shape::new(batch, config.image_size, config.image_size, config.channels);
    let sampler = Sampler::new(backend, &net, &mut weights, &diffusion, shape, steps)?;
    let mut step = backend.alloc(1)?;
    backend.upload(&[step_word(0)], B::all_mut(&mut step))?;
    work(&mut Pictures { sampler, step, result: vec![0.0; shape.len()] })
}

/// Times `repeat` times `images` pictures in `steps` steps, `config.batch_size` at once, by a fresh network: of noise on the device to
/// normalised pictures on the host.
///
/// # Errors
/// Too few steps; out of memory; the device failed.
pub fn time<B: Backend>(backend: &B, config: &Config, images: usize, steps: usize, repeat: usize) -> Result<Sampling> {
    let began = Instant::now();
    let batch = config.batch_size.min(images);
    with_pictures(backend, config, batch, steps, |pictures| {
        let mut all = || (0..images.div_ceil(batch)).try_for_each(|_| pictures.draw(backend));
        all()?;
        let first = began.elapsed().as_secs_f64();
        let mut seconds = Vec::new();
        for _ in 0..repeat {
            let began = Instant::now();
            all()?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        Ok(Sampling { seconds: Samples::new(seconds), first, memory: backend.memory_use() })
    })
}
