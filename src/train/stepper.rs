//! Training steps as a device repeats them: pixels in, losses on their way out, everything between recorded once for each number of
//! images in a batch and then replayed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::device::nvtx;
use crate::diffusion::normalizer::Normalizer;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::noise::NoiseKey;
use crate::rng::Purpose;
use crate::tensor::{Shape, Tensor};
use crate::train::batches::draw;
use crate::train::state::{Batch, Part, TrainState};

/// Where the pixels of a batch of one size go, and the recorded step that reads them there.
struct Plan<B: Backend> {
    pixels: B::Bytes,
    /// Classes of the images, where the network knows classes.
    labels: Option<B::Buffer>,
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
        self.step_of_classes(backend, state, normalizer, shape, pixels, &[])
    }

    /// The same for a network that knows classes: `labels` `[N]` are those of the images; empty where it knows none.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn step_of_classes(
        &mut self,
        backend: &B,
        state: &mut TrainState<B>,
        normalizer: &Normalizer,
        shape: Shape,
        pixels: &[u8],
        labels: &[f32],
    ) -> Result<B::ReadBack> {
        let _range = nvtx::range(c"step");
        let upload = nvtx::range(c"upload");
        let mean_std = normalizer.mean_std();
        if mean_std != self.sent {
            backend.upload(&mean_std, B::all_mut(&mut self.mean_std))?;
            self.sent = mean_std;
        }
        let plan = match self.plans.entry(shape.n) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => {
                let labels = if labels.is_empty() { None } else { Some(backend.alloc(labels.len())?) };
                place.insert(Plan { pixels: backend.alloc_bytes(pixels.len())?, labels, graph: None })
            }
        };
        let Plan { pixels: on_device, labels: labels_on_device, graph } = plan;
        state.begin_step(backend)?;
        backend.upload_bytes(pixels, on_device)?;
        if let Some(on_device) = labels_on_device {
            backend.upload(labels, B::all_mut(on_device))?;
        }
        drop(upload);
        match graph {
            Some(graph) => backend.replay(graph)?,
            None => {
                let (seed, mean_std) = (self.seed, &self.mean_std);
                let input = Input { mean_std, shape, pixels: on_device, labels: labels_on_device.as_ref() };
                *graph = backend.record(&mut || on_the_device(backend, state, seed, &input))?;
            }
        }
        // A replay changes the weights as well.
        state.weights.touch();
        backend.read_back(state.losses())
    }
}

/// What a step finds on the device.
struct Input<'a, B: Backend> {
    mean_std: &'a B::Buffer,
    shape: Shape,
    pixels: &'a B::Bytes,
    labels: Option<&'a B::Buffer>,
}

/// Everything of a step that happens on the device.
fn on_the_device<B: Backend>(backend: &B, state: &mut TrainState<B>, seed: u64, input: &Input<'_, B>) -> Result<()> {
    let shape = input.shape;
    // The recording packs filters for itself.
    state.weights.touch();
    let mut images = Tensor::new(backend, shape)?;
    {
        let _range = nvtx::range(c"normalize");
        backend.normalize(input.pixels, B::all(input.mean_std), images.view_mut())?;
    }
    let part = state.part.min(shape.n);
    for first in (0..shape.n).step_by(part) {
        let shape = Shape { n: part.min(shape.n - first), ..shape };
        let piece = if shape == images.shape { None } else { Some(part_of(backend, &images, first, shape)?) };
        let images_of_part = piece.as_ref().unwrap_or(&images);
        // Times and noise of an image depend on its place in the whole batch.
        let key = |purpose| NoiseKey { seed, purpose, first_image: first as u64 };
        let range = nvtx::range(c"noise");
        let (mut noise, times) = draw(backend, shape, state.step_slot(), key(Purpose::Noise), key(Purpose::Times))?;
        if state.offset_noise > 0.0 {
            let picture = [shape.pixels(), shape.c];
            let offset = key(Purpose::Offset);
            backend.offset_noise(offset, state.step_slot(), state.offset_noise, picture, noise.view_mut())?;
        }
        drop(range);
        let labels = input.labels.map(|labels| labels_of_part(backend, labels, first, shape.n)).transpose()?;
        let dropout = state.net.has_dropout().then(|| key(Purpose::Dropout));
        let batch = Batch { images: images_of_part, noise: &noise, times: &times, labels: labels.as_ref(), dropout };
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

/// A copy of the labels of the images of a part.
fn labels_of_part<B: Backend>(backend: &B, labels: &B::Buffer, first: usize, n: usize) -> Result<B::Buffer> {
    let mut part = backend.alloc(n)?;
    backend.copy(B::slice(labels, first..first + n), B::all_mut(&mut part))?;
    Ok(part)
}
