//! The same noise in few and in many steps.

use std::path::PathBuf;

use super::rows::{draw, side};
use super::{Drawing, Row, Sheet};
use crate::diffusion::sampler::Way;
use crate::diffusion::samplers::{Method, Wishes};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::sample::{Ready, WeightKind, sampler_name};
use crate::train::progress::Progress;

/// Numbers of steps where none are asked for.
pub const STEPS: [usize; 7] = [2, 3, 5, 10, 20, 50, 100];

/// What to draw.
#[derive(Clone, Debug)]
pub struct StepsFigure {
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Numbers of steps, a row each, as `sample` counts them; empty: those of [`STEPS`] that the model's schedule has room for.
    pub steps: Vec<usize>,
    /// Pictures in a row.
    pub count: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Sampler, where it is not the model's own.
    pub sampler: Option<Method>,
    /// Which weights.
    pub weights: WeightKind,
}

impl StepsFigure {
    /// Draws it.
    ///
    /// # Errors
    /// A source that is no model, steps that its sampler cannot take, nothing to draw, a failing device.
    pub fn drawing<B: Backend>(&self, backend: &B, progress: &Progress) -> Result<Drawing> {
        let mut ready = Ready::new(backend, &self.source, self.weights, progress)?;
        let wishes = Wishes { method: self.sampler, ..Wishes::default() };
        let way = |steps: usize| Way::new(&ready.diffusion, &wishes, steps).map(|way| (steps, way));
        let ways: Vec<(usize, Way)> = if self.steps.is_empty() {
            STEPS.into_iter().filter_map(|steps| way(steps).ok()).collect()
        } else {
            let named = |steps: usize| {
                way(steps).map_err(|why| match why {
                    Error::Usage(what) if !what.contains("--steps") => Error::Usage(format!("--steps {steps}: {what}")),
                    other => other,
                })
            };
            self.steps.iter().map(|&steps| named(steps)).collect::<Result<_>>()?
        };
        let all: usize = ways.iter().map(|(_, way)| way.steps()).sum();
        let task = progress.task("drawing", (self.count * all) as u64, "steps");
        let mut rows = Vec::new();
        for (steps, way) in &ways {
            let pictures = draw(backend, &mut ready, way, self.count, self.seed, &task)?;
            let label = vec![counted(*steps, "step"), counted(way.network_calls(), "network call")];
            rows.push(Row { label, pictures });
        }
        task.finish();
        let title = format!("The same noise in few and many steps ({})", sampler_name(&ready.config, &wishes));
        Sheet { title, columns: Vec::new(), rows, side: side(ready.config.image_size) }.drawing()
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
