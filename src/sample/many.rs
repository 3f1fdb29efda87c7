//! Many pictures of a model, batch after batch, for those who measure them.

use super::load::Ready;
use super::start::Start;
use super::{Request, draw_from, sampler, to_pictures};
use crate::config::{Config, Family};
use crate::diffusion::sampler::Way;
use crate::diffusion::samplers::{Method, Wishes};
use crate::error::Result;
use crate::ops::Backend;
use crate::train::progress::Progress;

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many {
    /// Pictures.
    pub count: usize,
    /// Steps, as users count them.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Pictures at once.
    pub batch: usize,
    /// Sampler, where it is not the model's own.
    pub wishes: Wishes,
}

/// Pictures, and how they were drawn.
pub(crate) struct Drawn {
    /// Bytes of all pictures, NHWC.
    pub pixels: Vec<u8>,
    /// Name of the sampler.
    pub sampler: &'static str,
    /// Network calls for a picture.
    pub network_calls: usize,
}

/// What the sampler is called.
pub(crate) fn sampler_name(config: &Config, wishes: &Wishes) -> &'static str {
    let own = if config.family == Family::Seed { Method::Ddim } else { config.sampler.into() };
    wishes.method.unwrap_or(own).name()
}

/// Draws: the pictures that `sample` makes with the same seed, classes in turn where the network knows classes.
pub(crate) fn draw_many<B: Backend>(
    backend: &B,
    ready: &mut Ready<B>,
    many: &Many,
    progress: &Progress,
) -> Result<Drawn> {
    let (model, weights, config) = ready.parts();
    let way = Way::new(model.diffusion, &many.wishes, many.steps)?;
    let start = Start::plain();
    let network_calls = way.network_calls();
    let name = sampler_name(config, &many.wishes);
    let (count, batch) = (many.count, many.batch.max(1));
    let request = |first: usize| Request {
        count: batch.min(count - first),
        first,
        steps: many.steps,
        seed: many.seed,
        image_size: config.image_size,
        channels: config.channels,
    };
    let task = progress.task("drawing", count as u64, "pictures");
    let mut pixels = Vec::new();
    let mut done = 0;
    // Whole batches all run the same loop: worth recording where there are several.
    if count >= 2 * batch {
        let mut sampler = sampler(backend, &model, weights, &request(0), &way)?;
        while count - done >= batch {
            start.prepare(backend, &mut sampler, &request(done))?;
            let pictures = to_pictures(backend, &model, sampler.run_recorded()?)?;
            pixels.extend(pictures.into_iter().flat_map(|p| p.pixels));
            done += batch;
            task.advance(batch as u64);
        }
    }
    while done < count {
        let request = request(done);
        let image = draw_from(backend, &model, weights, &request, &way, &start, None)?;
        pixels.extend(to_pictures(backend, &model, &image)?.into_iter().flat_map(|p| p.pixels));
        done += request.count;
        task.advance(request.count as u64);
    }
    task.finish();
    Ok(Drawn { pixels, sampler: name, network_calls })
}
