//! Floor 3: what makes a network a diffusion model: schedule and embedding of times, objective, normaliser, samplers.

pub mod levels;
pub mod normalizer;
pub mod sampler;
pub mod samplers;

use std::rc::Rc;

use crate::config::{Config, Family, LossKind, Predict, ScheduleKind};
use crate::error::Result;
use crate::model::{Act, Condition};
use crate::ops::Backend;
use crate::ops::levels::{COLUMNS, LevelsOutput};
use crate::ops::loss::LossDims;
use crate::ops::schedule::{ScheduleDims, ScheduleOutput};
use crate::tensor::{Shape, Tensor};
use levels::{BetaSchedule, Betas, Levels};
use samplers::Sampling;

/// The schedule and the objective of a run.
#[derive(Clone, Debug)]
pub struct Diffusion {
    schedule: ScheduleDims,
    /// The points of the family unet2d's schedule; absent for the family seed, whose times are continuous.
    pub levels: Option<Rc<Levels>>,
    /// What the network predicts.
    pub predict: Predict,
    /// Training loss.
    pub loss: LossKind,
    /// Bound of the ratio of signal to noise in the weight of an image's loss; 0: all weigh the same.
    min_snr_gamma: f64,
    /// How pictures are drawn.
    pub sampling: Sampling,
}

impl Diffusion {
    /// From a run's configuration.
    ///
    /// # Errors
    /// A schedule that cannot be.
    pub fn new(config: &Config) -> Result<Self> {
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
        Ok(Diffusion {
            schedule,
            levels: discrete_levels(config)?.map(Rc::new),
            predict: config.predict,
            loss: config.loss,
            min_snr_gamma: config.min_snr_gamma,
            sampling: Sampling::new(config),
        })
    }

    /// The points of the schedule as [`crate::ops::levels`] reads them, [T, 4]; `None` where times are continuous.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn table<B: Backend>(&self, backend: &B) -> Result<Option<B::Buffer>> {
        let Some(levels) = &self.levels else { return Ok(None) };
        let rows = levels.all().iter().flat_map(|level| {
            let weight = self.weight(level.signal, level.noise);
            [level.signal as f32, level.noise as f32, level.timestep, weight as f32]
        });
        let rows: Vec<f32> = rows.collect();
        let mut table = backend.alloc(levels.len() * COLUMNS)?;
        backend.upload(&rows, B::all_mut(&mut table))?;
        Ok(Some(table))
    }

    /// What the loss of an image weighs at these rates: min(snr, gamma) in units of the picture's error, in which the errors of noise and
    /// velocity are 1/snr and 1/(snr + 1) (Hang et al. 2023, "Min-SNR Weighting Strategy").
    fn weight(&self, signal: f64, noise: f64) -> f64 {
        if self.min_snr_gamma == 0.0 {
            return 1.0;
        }
        let snr = (signal / noise).powi(2);
        let bounded = snr.min(self.min_snr_gamma);
        match self.predict {
            Predict::Noise => bounded / snr,
            Predict::Image => bounded,
            Predict::Velocity => bounded / (snr + 1.0),
        }
    }

    /// What `times` `[N]`, each in [0, 1], mean to the network and to the loss; `table` is [`Diffusion::table`]'s.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn condition<B: Backend>(
        &self,
        backend: &B,
        table: Option<&B::Buffer>,
        times: &B::Buffer,
    ) -> Result<Condition<B>> {
        let (n, e) = (B::buffer_len(times), self.schedule.e as usize);
        let mut rates = backend.alloc(2 * n)?;
        if let Some(table) = table {
            let (mut timesteps, mut weights) = (backend.alloc(n)?, backend.alloc(n)?);
            let out = LevelsOutput {
                rates: B::all_mut(&mut rates),
                timesteps: B::all_mut(&mut timesteps),
                weights: B::all_mut(&mut weights),
            };
            backend.gather_levels(B::all(table), B::all(times), out)?;
            let weights = (self.min_snr_gamma != 0.0).then_some(weights);
            return Ok(Condition { rates, embedding: None, timesteps: Some(timesteps), labels: None, weights });
        }
        let mut tensor = Tensor::new(backend, Shape::new(n, 1, 1, e))?;
        let mut stats = backend.alloc(n * e * 2)?;
        let out = ScheduleOutput {
            rates: B::all_mut(&mut rates),
            embedding: tensor.view_mut(),
            stats: B::all_mut(&mut stats),
        };
        backend.schedule(&ScheduleDims { n: n as u32, ..self.schedule }, B::all(times), out)?;
        let embedding = Some(Act { tensor, stats: Some(stats) });
        Ok(Condition { rates, embedding, timesteps: None, labels: None, weights: None })
    }

    /// The seed family's schedule at `points` equally spaced times; the network is told the time.
    fn levels_of_times(&self, points: usize) -> Levels {
        let ScheduleDims { min_signal, max_signal, linear, .. } = self.schedule;
        let kind = if linear == 0 { ScheduleKind::Cosine } else { ScheduleKind::Linear };
        Levels::seed_times(kind, min_signal, max_signal, points)
    }

    /// The same, with the seed family's schedule in float32, as samplers compute it.
    pub fn in_single(mut self) -> Self {
        self.schedule.single = 1;
        self
    }

    /// The loss of a batch of this shape.
    pub fn loss_dims(&self, s: Shape) -> LossDims {
        LossDims::new(s.n, s.h * s.w * s.c, self.predict, self.loss)
    }
}

/// The points of a configuration's schedule, where they are points.
fn discrete_levels(config: &Config) -> Result<Option<Levels>> {
    if config.family == Family::Seed {
        return Ok(None);
    }
    let betas = |schedule: BetaSchedule| {
        Levels::of_betas(&Betas {
            schedule,
            start: config.beta_start,
            end: config.beta_end,
            steps: config.train_timesteps,
            zero_terminal_snr: config.zero_snr,
        })
    };
    let levels = match config.schedule {
        ScheduleKind::Linear => betas(BetaSchedule::Linear)?,
        ScheduleKind::ScaledLinear => betas(BetaSchedule::ScaledLinear)?,
        ScheduleKind::SquaredcosCapV2 => betas(BetaSchedule::SquaredcosCapV2)?,
        ScheduleKind::Sigmoid => betas(BetaSchedule::Sigmoid)?,
        ScheduleKind::Edm => Levels::edm(config.train_timesteps),
        ScheduleKind::Cosine => {
            let (least, most) = (config.min_signal_rate, config.max_signal_rate);
            Levels::seed(ScheduleKind::Cosine, least, most, config.train_timesteps)
        }
    };
    Ok(Some(levels))
}
