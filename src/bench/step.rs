//! Steps of training: their time, and what it is spent on.

use std::time::Instant;

use super::probe::{Kind, Probe, Seen, Watch};
use super::timing::Samples;
use crate::config::Config;
use crate::device::{MemoryUse, ReadBack, nvtx};
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::loss::LossValues;
use crate::rng::{Purpose, Stream};
use crate::tensor::Shape;
use crate::train::state::TrainState;
use crate::train::stepper::Stepper;

/// Steps that are carried out before any is measured.
pub const WARMUP: usize = 2;
/// Steps whose operations are timed one by one.
const WATCHED: usize = 3;

/// A network in training on pixels of noise.
pub struct Training<B: Backend> {
    /// The network.
    pub state: TrainState<B>,
    stepper: Stepper<B>,
    normalizer: Normalizer,
    shape: Shape,
    pixels: Vec<u8>,
    labels: Vec<f32>,
}

impl<B: Backend> Training<B> {
    /// Of a configuration.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, config: &Config) -> Result<Self> {
        let state = TrainState::<B>::new(backend, config)?;
        let stepper = Stepper::new(backend, config.channels, config.seed)?;
        let shape = Shape::new(config.batch_size, config.image_size, config.image_size, config.channels);
        let mut words = Stream::new(config.seed, Purpose::Picture, 0, 0).reader();
        let pixels: Vec<u8> = (0..shape.len()).map(|_| words.word() as u8).collect();
        let mut normalizer = Normalizer::new(config.channels, 1);
        normalizer.gather(&pixels);
        let labels = vec![0.0; config.class_embeds().map_or(0, |_| config.batch_size)];
        Ok(Training { state, stepper, normalizer, shape, pixels, labels })
    }

    /// Asks for one step.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn begin(&mut self, backend: &B) -> Result<B::ReadBack> {
        let Training { state, stepper, normalizer, shape, pixels, labels } = self;
        stepper.step_of_classes(backend, state, normalizer, *shape, pixels, labels)
    }

    /// One step: its seconds, from handing over the batch to having its loss.
    ///
    /// # Errors
    /// Out of memory; the device failed; the loss is not a number.
    pub fn step(&mut self, backend: &B) -> Result<f64> {
        let began = Instant::now();
        let losses = self.begin(backend)?;
        let wait = nvtx::range(c"wait");
        let losses = losses.wait()?;
        drop(wait);
        let loss = LossValues::from_slots(&losses).loss;
        if !loss.is_finite() {
            return Err(Error::Failed(format!("the loss is {loss} at step {}", self.state.step)));
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

/// Times of steps.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Of each step, after [`WARMUP`] that do not count.
    pub seconds: Samples,
    /// From making the network to the loss of its first step.
    pub first: f64,
    /// Of the arena.
    pub memory: MemoryUse,
}

/// Times `repeat` steps.
///
/// # Errors
/// Out of memory; the device failed; the loss is not a number.
pub fn time<B: Backend>(backend: &B, config: &Config, repeat: usize) -> Result<Steps> {
    let began = Instant::now();
    let mut training = Training::new(backend, config)?;
    training.step(backend)?;
    let first = began.elapsed().as_secs_f64();
    for _ in 1..WARMUP {
        training.step(backend)?;
    }
    let seconds = (0..repeat).map(|_| training.step(backend)).collect::<Result<Vec<f64>>>()?;
    Ok(Steps { seconds: Samples::new(seconds), first, memory: backend.memory_use() })
}

/// What a step is spent on, each operation waited for.
#[derive(Clone, Debug)]
pub struct Breakdown {
    /// Steps that were watched.
    pub steps: usize,
    /// Seconds of a step in the mean, as watched.
    pub seconds: f64,
    /// By purpose, the longest first.
    pub parts: Vec<Part>,
    /// By operation, extents and options, for all steps together.
    pub calls: Vec<Seen>,
    /// Kernels launched in a step; `None` where the device has none.
    pub launches: Option<usize>,
}

/// A line of a breakdown; all for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// What for.
    pub kind: Kind,
    /// Seconds.
    pub seconds: f64,
    /// Operations.
    pub calls: f64,
    /// Multiply-adds of products times two.
    pub flops: f64,
    /// Bytes of operands.
    pub bytes: f64,
}

/// Times the operations of a few steps, at most `repeat`.
///
/// # Errors
/// Out of memory; the device failed; the loss is not a number.
pub fn breakdown<B: Backend>(backend: &B, config: &Config, repeat: usize) -> Result<Breakdown> {
    let probe = Probe::new(backend)?;
    let mut training = Training::new(&probe, config)?;
    for _ in 0..WARMUP {
        training.step(&probe)?;
    }
    backend.note_plans(true);
    training.step(&probe)?;
    let launches = backend.note_plans(false).len();
    let steps = repeat.clamp(1, WATCHED);
    probe.set(Watch::Time);
    let mut seconds = 0.0;
    for _ in 0..steps {
        seconds += training.step(&probe)?;
    }
    let calls = probe.seen();
    let parts = parts(&calls, steps as f64);
    let launches = B::LAUNCHES.then_some(launches);
    Ok(Breakdown { steps, seconds: seconds / steps as f64, parts, calls, launches })
}

/// Sums by purpose, for one of `steps`.
pub fn parts(calls: &[Seen], steps: f64) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for seen in calls {
        let count = seen.count as f64 / steps;
        let more = Part {
            kind: seen.call.kind,
            seconds: seen.seconds / steps,
            calls: count,
            flops: seen.call.flops as f64 * count,
            bytes: seen.call.bytes as f64 * count,
        };
        match parts.iter_mut().find(|part| part.kind == more.kind) {
            Some(part) => {
                part.seconds += more.seconds;
                part.calls += more.calls;
                part.flops += more.flops;
                part.bytes += more.bytes;
            }
            None => parts.push(more),
        }
    }
    parts.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.kind.cmp(&b.kind)));
    parts
}
