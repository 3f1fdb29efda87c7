//! Rows of pictures from a model.

use crate::diffusion::sampler::Way;
use crate::error::Result;
use crate::ops::Backend;
use crate::sample::{Follow, Ready, Stage, follow};
use crate::train::picture::Picture;
use crate::train::progress::Task;

/// Pictures drawn at once.
const BATCH: usize = 16;

/// The first `count` pictures of a seed; `task` counts their steps.
pub(super) fn draw<B: Backend>(
    backend: &B,
    ready: &mut Ready<B>,
    way: &Way,
    count: usize,
    seed: u64,
    task: &Task,
) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    while pictures.len() < count {
        let wanted = Follow { count: BATCH.min(count - pictures.len()), first: pictures.len(), seed };
        let mut told = |_: usize, _: Stage<'_, B>| {
            task.advance(wanted.count as u64);
            Ok(())
        };
        pictures.extend(follow(backend, ready, way, &wanted, &mut told)?);
    }
    Ok(pictures)
}

/// Side of a picture of `size` pixels in a figure: about 64, and a whole number of pixels of the PNG for each of its own.
pub(super) fn side(size: usize) -> f64 {
    let pixels = (128.0 / size as f64).round().max(1.0) * size as f64;
    // Of large pictures a PNG shows as many pixels as there is room for.
    (pixels / super::raster::DENSITY).min(256.0)
}
