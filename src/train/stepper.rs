//! Training steps as a device repeats them: pixels in, losses on their way out, everything between recorded once for each number of
//! images in a batch and then replayed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Instant;

use crate::config::Config;
use crate::device::ReadBack;
use crate::diffusion::normalizer::Normalizer;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::loss::LossValues;
use crate::ops::noise::NoiseKey;
use crate::rng::Purpose;
use crate::tensor::{Shape, Tensor};
use crate::train::batches::draw;
use crate::train::state::{Batch, Part, TrainState};

/// Where the pixels of a batch of one size go, and the recorded step that reads them there.
struct Plan<B: Backend> {
    pixels: B::Bytes,
    graph: Option<B::Graph>,
}

/// Runs training steps.
pub struct Stepper<B: Backend> {
    seed: u64,
    /// The normaliser as the device has it, and as the host last sent it.
    mean_std: B::Buffer,
    sent: Vec<f32>,
    plans: BTreeMap<usize, Plan<B>>,
}

impl<B: Backend> Stepper<B> {
    /// For pictures of `channels` channels; `seed` is that of the noise.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, channels: usize, seed: u64) -> Result<Self> {
        let mean_std = backend.alloc(2 * channels)?;
        Ok(Stepper { seed, mean_std, sent: Vec::new(), plans: BTreeMap::new() })
    }

    /// Asks for one step on `pixels`, which have `shape`. The losses come later.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn step(
        &mut self,
        backend: &B,
        state: &mut TrainState<B>,
        normalizer: &Normalizer,
        shape: Shape,
        pixels: &[u8],
    ) -> Result<B::ReadBack> {
        let mean_std = normalizer.mean_std();
        if mean_std != self.sent {
            backend.upload(&mean_std, B::all_mut(&mut self.mean_std))?;
            self.sent = mean_std;
        }
        let Plan { pixels: on_device, graph } = match self.plans.entry(shape.n) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(Plan { pixels: backend.alloc_bytes(pixels.len())?, graph: None }),
        };
        state.begin_step(backend)?;
        backend.upload_bytes(pixels, on_device)?;
        match graph {
            Some(graph) => backend.replay(graph)?,
            None => {
                let (seed, mean_std) = (self.seed, &self.mean_std);
                *graph = backend.record(&mut || on_the_device(backend, state, seed, mean_std, shape, on_device))?;
            }
        }
        // A replay changes the weights as well.
        state.weights.touch();
        backend.read_back(state.losses())
    }
}

/// Everything of a step that happens on the device.
fn on_the_device<B: Backend>(
    backend: &B,
    state: &mut TrainState<B>,
    seed: u64,
    mean_std: &B::Buffer,
    shape: Shape,
    pixels: &B::Bytes,
) -> Result<()> {
    // The recording packs filters for itself.
    state.weights.touch();
    let mut images = Tensor::new(backend, shape)?;
    backend.normalize(pixels, B::all(mean_std), images.view_mut())?;
    let part = state.part.min(shape.n);
    for first in (0..shape.n).step_by(part) {
        let shape = Shape { n: part.min(shape.n - first), ..shape };
        let piece = if shape == images.shape { None } else { Some(part_of(backend, &images, first, shape)?) };
        let images_of_part = piece.as_ref().unwrap_or(&images);
        // Times and noise of an image depend on its place in the whole batch.
        let key = |purpose| NoiseKey { seed, purpose, first_image: first as u64 };
        let (noise, times) = draw(backend, shape, state.step_slot(), key(Purpose::Noise), key(Purpose::Times))?;
        let batch = Batch { images: images_of_part, noise: &noise, times: &times, labels: None, dropout: None };
        state.differentiate_part(backend, &batch, Part { of: images.shape.n, first: first == 0 })?;
    }
    state.finish_step(backend)
}

/// A copy of the images from `first` on, as many as `shape` has.
fn part_of<B: Backend>(backend: &B, images: &Tensor<B>, first: usize, shape: Shape) -> Result<Tensor<B>> {
    let mut part = Tensor::new(backend, shape)?;
    let begin = first * (shape.len() / shape.n);
    backend.copy(B::slice(&images.data, begin..begin + shape.len()), part.view_mut())?;
    Ok(part)
}

/// Times training steps of a configuration on pixels of noise: seconds of each of `repeat`, after two that are not counted.
///
/// # Errors
/// Out of memory, or the device failed.
pub fn bench_step<B: Backend>(backend: &B, config: &Config, repeat: usize) -> Result<Vec<f64>> {
    let mut state = TrainState::<B>::new(backend, config)?;
    let mut stepper = Stepper::new(backend, config.channels, config.seed)?;
    let shape = Shape::new(config.batch_size, config.image_size, config.image_size, config.channels);
    let mut words = crate::rng::Stream::new(config.seed, Purpose::Picture, 0, 0).reader();
    let pixels: Vec<u8> = (0..shape.len()).map(|_| words.word() as u8).collect();
    let mut normalizer = Normalizer::new(config.channels, 1);
    normalizer.gather(&pixels);
    let mut seconds = Vec::new();
    for step in 0..repeat + 2 {
        let began = Instant::now();
        let losses = stepper.step(backend, &mut state, &normalizer, shape, &pixels)?.wait()?;
        let loss = LossValues::from_slots(&losses).loss;
        if !loss.is_finite() {
            return Err(crate::error::Error::Failed(format!("the loss is {loss} at step {}", step + 1)));
        }
        if step >= 2 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}
