//! Floor 3: what makes a network a diffusion model: schedule and embedding of times, objective, normaliser, sampler.

pub mod levels;
pub mod normalizer;
pub mod sampler;
pub mod samplers;

use crate::config::{Config, LossKind, Predict, ScheduleKind};
use crate::device::Memory;
use crate::error::Result;
use crate::model::Act;
use crate::ops::Backend;
use crate::ops::loss::LossDims;
use crate::ops::schedule::{ScheduleDims, ScheduleOutput};
use crate::tensor::{Shape, Tensor};

/// The schedule and the objective of a run.
#[derive(Clone, Copy, Debug)]
pub struct Diffusion {
    schedule: ScheduleDims,
    /// What the network predicts.
    pub predict: Predict,
    /// Training loss.
    pub loss: LossKind,
}

/// What the times of a batch mean: rates [N, 2] and the embedding, [N, 1, 1, E].
pub struct Condition<M: Memory> {
    /// Signal rate and noise rate of each image.
    pub rates: M::Buffer,
    /// What the network sees.
    pub embedding: Act<M>,
}

impl Diffusion {
    /// From a run's configuration.
    pub fn new(config: &Config) -> Self {
        let schedule = ScheduleDims {
            min_signal: config.min_signal_rate,
            max_signal: config.max_signal_rate,
            n: 0,
            e: config.embedding_dim as u32,
            linear: u32::from(config.schedule == ScheduleKind::Linear),
            // The network sees signal^2 when it predicts images, noise^2 otherwise.
            embed_signal: u32::from(config.predict == Predict::Image),
            single: 0,
            reserved: 0,
        };
        Diffusion { schedule, predict: config.predict, loss: config.loss }
    }

    /// Rates and embedding of `times` `[N]`, each in [0, 1].
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn condition<B: Backend>(&self, backend: &B, times: &B::Buffer) -> Result<Condition<B>> {
        let (n, e) = (B::buffer_len(times), self.schedule.e as usize);
        let mut rates = backend.alloc(2 * n)?;
        let mut tensor = Tensor::new(backend, Shape::new(n, 1, 1, e))?;
        let mut stats = backend.alloc(n * e * 2)?;
        let out = ScheduleOutput {
            rates: B::all_mut(&mut rates),
            embedding: tensor.view_mut(),
            stats: B::all_mut(&mut stats),
        };
        backend.schedule(&ScheduleDims { n: n as u32, ..self.schedule }, B::all(times), out)?;
        Ok(Condition { rates, embedding: Act { tensor, stats: Some(stats) } })
    }

    /// The same, with the schedule in float32, as samplers compute it.
    pub fn in_single(mut self) -> Self {
        self.schedule.single = 1;
        self
    }

    /// The loss of a batch of this shape.
    pub fn loss_dims(&self, s: Shape) -> LossDims {
        LossDims::new(s.n, s.h * s.w * s.c, self.predict, self.loss)
    }
}
