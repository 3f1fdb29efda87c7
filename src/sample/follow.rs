//! Pictures on their way from noise, for those who show it.

use super::load::Ready;
use super::start::Start;
use super::{Model, Request, sampler, to_pictures};
use crate::diffusion::sampler::Way;
use crate::error::Result;
use crate::ops::Backend;
use crate::tensor::Tensor;
use crate::train::picture::Picture;

/// Which pictures are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Follow {
    /// Pictures.
    pub count: usize,
    /// Number of the first one in the seed's sequence.
    pub first: usize,
    /// Seed of the noise.
    pub seed: u64,
}

/// A batch behind a step.
pub(crate) struct Stage<'s, B: Backend> {
    backend: &'s B,
    model: &'s Model<'s>,
    x: &'s Tensor<B>,
    image: &'s Tensor<B>,
}

impl<B: Backend> Stage<'_, B> {
    /// The pictures with the noise that is left in them.
    pub fn on_the_way(&self) -> Result<Vec<Picture>> {
        to_pictures(self.backend, self.model, self.x)
    }

    /// The pictures as predicted.
    pub fn predicted(&self) -> Result<Vec<Picture>> {
        to_pictures(self.backend, self.model, self.image)
    }
}

/// Draws one batch, the pictures that `sample` makes with the same seed, and shows it to `on_step` after every step.
pub(crate) fn follow<B: Backend>(
    backend: &B,
    ready: &mut Ready<B>,
    way: &Way,
    wanted: &Follow,
    on_step: &mut dyn FnMut(usize, Stage<'_, B>) -> Result<()>,
) -> Result<Vec<Picture>> {
    let (model, weights, config) = ready.parts();
    let request = Request {
        count: wanted.count,
        first: wanted.first,
        steps: way.steps(),
        seed: wanted.seed,
        image_size: config.image_size,
        channels: config.channels,
    };
    let mut sampler = sampler(backend, &model, weights, &request, way)?;
    Start::plain().prepare(backend, &mut sampler, &request)?;
    sampler.run_watched(|step, x, image| on_step(step, Stage { backend, model: &model, x, image }))?;
    to_pictures(backend, &model, &sampler.into_result())
}
