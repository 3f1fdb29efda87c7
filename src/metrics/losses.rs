//! Losses of pictures, over all noise levels and by noise level.
//!
//! *All levels together*: picture i of the list has the noise and the time that a run's own validation gives it, so the figures are those of
//! the run's last validation where the weights are the same.
//!
//! *By level*: the times of [0, 1] are cut into [`BINS`] bins, and every bin has every picture. Within a bin the times are stratified: of n
//! equal pieces each picture has one, by chance, and lies in it by chance. So bins differ by their level, hardly by luck.

use super::LevelLoss;
use crate::config::{Config, Family};
use crate::data::{self, Dataset, Labels};
use crate::diffusion::levels::Levels;
use crate::diffusion::{Diffusion, normalizer::Normalizer};
use crate::error::{Error, Result};
use crate::model::params::Weights;
use crate::model::{Mode, Net};
use crate::ops::Backend;
use crate::ops::loss::{LossInput, LossValues};
use crate::ops::noise::{NoiseKey, step_word};
use crate::rng::{Purpose, Stream};
use crate::sample::Ready;
use crate::tensor::Tensor;
use crate::train::batches::{draw, normalized};
use crate::train::progress::Task;
use crate::train::window::Window;

/// Bins of diffusion time.
pub const BINS: usize = 10;

/// The pictures to measure on.
pub(super) struct Pictures<'a> {
    pub dataset: &'a Dataset,
    pub labels: Option<&'a Labels>,
    pub indices: &'a [u32],
    /// Pictures at once.
    pub batch: usize,
}

/// What is the same for all batches.
struct Scorer<'a, B: Backend> {
    backend: &'a B,
    net: &'a Net,
    weights: &'a mut Weights<B>,
    diffusion: &'a Diffusion,
    table: Option<B::Buffer>,
    normalizer: Normalizer,
    losses: B::Buffer,
}

/// Noise and times of a batch.
struct Drawn<B: Backend> {
    noise: Tensor<B>,
    times: B::Buffer,
}

impl<B: Backend> Scorer<'_, B> {
    /// Normalised pictures of a batch.
    fn images(&self, pictures: &Pictures<'_>, indices: &[u32]) -> Result<Tensor<B>> {
        let mut pixels = vec![0; indices.len() * pictures.dataset.image_bytes()];
        data::fill_batch(pictures.dataset, indices, None, &mut pixels);
        normalized(self.backend, &self.normalizer, pictures.dataset, &pixels)
    }

    /// Losses of a batch, in evaluation mode.
    fn score(&mut self, images: &Tensor<B>, drawn: &Drawn<B>, labels: &[f32]) -> Result<LossValues> {
        let backend = self.backend;
        let mut condition = self.diffusion.condition(backend, self.table.as_ref(), &drawn.times)?;
        if !labels.is_empty() {
            let mut on_device = backend.alloc(labels.len())?;
            backend.upload(labels, B::all_mut(&mut on_device))?;
            condition.labels = Some(on_device);
        }
        let mut noisy = Tensor::new(backend, images.shape)?;
        backend.q_sample(images.view(), drawn.noise.view(), B::all(&condition.rates), noisy.view_mut())?;
        let (pred, _) = self.net.forward(backend, self.weights, Mode::Eval, &noisy, &mut condition, None)?;
        let input = LossInput {
            pred: pred.view(),
            noisy: noisy.view(),
            images: images.view(),
            noise: drawn.noise.view(),
            rates: B::all(&condition.rates),
            weights: condition.weights.as_ref().map(B::all),
        };
        backend.loss(&self.diffusion.loss_dims(images.shape), input, None, B::all_mut(&mut self.losses))?;
        let mut slots = [0.0; 3];
        backend.download(B::all(&self.losses), &mut slots)?;
        let values = LossValues::from_slots(&slots);
        if [values.loss, values.noise_loss, values.image_loss].iter().all(|v| v.is_finite()) {
            return Ok(values);
        }
        let what = format!("the losses are {}, {}, {}", values.loss, values.noise_loss, values.image_loss);
        Err(Error::Failed(format!("{what}: the model's weights are damaged; take an earlier checkpoint")))
    }
}

/// Losses over all levels, and by level. `task` hears of every picture scored: `1 + BINS` times the pictures.
pub(super) fn measure<B: Backend>(
    backend: &B,
    ready: &mut Ready<B>,
    pictures: &Pictures<'_>,
    task: &Task,
) -> Result<(LossValues, Vec<LevelLoss>)> {
    let normalizer = ready.normalizer();
    let Ready { config, net, weights, diffusion, .. } = ready;
    let table = diffusion.table(backend)?;
    let losses = backend.alloc(3)?;
    let mut scorer = Scorer { backend, net, weights, diffusion, table, normalizer, losses };
    let seed = config.seed;
    let all = over(&mut scorer, pictures, task, |shape, first| {
        let key = |purpose| NoiseKey { seed, purpose, first_image: first as u64 };
        let mut step = backend.alloc(1)?;
        backend.upload(&[step_word(0)], B::all_mut(&mut step))?;
        let (noise, times) = draw(backend, shape, B::all(&step), key(Purpose::ValidNoise), key(Purpose::ValidTimes))?;
        Ok(Drawn { noise, times })
    })?;
    let edges = edges(config, scorer.diffusion.levels.as_deref());
    let mut levels = Vec::new();
    for (bin, noise_rate) in edges.into_iter().enumerate() {
        let times = times_of_bin(seed, bin, pictures.indices.len());
        let mean = over(&mut scorer, pictures, task, |shape, first| {
            let mut step = backend.alloc(1)?;
            backend.upload(&[step_word(bin as u64)], B::all_mut(&mut step))?;
            let key = NoiseKey { seed, purpose: Purpose::LevelNoise, first_image: first as u64 };
            let mut noise = Tensor::new(backend, shape)?;
            backend.fill_normal(key, B::all(&step), shape.h * shape.w * shape.c, noise.view_mut())?;
            let mut on_device = backend.alloc(shape.n)?;
            backend.upload(&times[first..first + shape.n], B::all_mut(&mut on_device))?;
            Ok(Drawn { noise, times: on_device })
        })?;
        levels.push(LevelLoss {
            time: [bin as f64 / BINS as f64, (bin + 1) as f64 / BINS as f64],
            noise_rate,
            count: pictures.indices.len(),
            noise_loss: mean.noise_loss,
            image_loss: mean.image_loss,
        });
    }
    Ok((all, levels))
}

/// Means over all pictures, with what `drawn` gives to each batch: of its shape and the place of its first picture.
fn over<B: Backend>(
    scorer: &mut Scorer<'_, B>,
    pictures: &Pictures<'_>,
    task: &Task,
    drawn: impl Fn(crate::tensor::Shape, usize) -> Result<Drawn<B>>,
) -> Result<LossValues> {
    let batch = pictures.batch.max(1);
    let mut window = Window::default();
    for (i, indices) in pictures.indices.chunks(batch).enumerate() {
        let images = scorer.images(pictures, indices)?;
        let label = |&index: &u32| pictures.labels.map(|labels| labels.of()[index as usize] as f32);
        let labels: Vec<f32> = indices.iter().filter_map(label).collect();
        let drawn = drawn(images.shape, i * batch)?;
        window.add(&scorer.score(&images, &drawn, &labels)?, indices.len());
        task.advance(indices.len() as u64);
    }
    Ok(window.mean())
}

/// Times of `n` pictures in a bin, in [0, 1).
fn times_of_bin(seed: u64, bin: usize, n: usize) -> Vec<f32> {
    let mut pieces: Vec<usize> = (0..n).collect();
    // A stream of no picture.
    Stream::new(seed, Purpose::LevelTimes, bin as u64, u64::from(u32::MAX)).reader().shuffle(&mut pieces);
    let time = |(i, piece): (usize, usize)| {
        let within = Stream::new(seed, Purpose::LevelTimes, bin as u64, i as u64).uniform4(0)[0];
        let time = (bin as f64 + (piece as f64 + f64::from(within)) / n as f64) / BINS as f64;
        (time as f32).min(1.0f32.next_down())
    };
    pieces.into_iter().enumerate().map(time).collect()
}

/// Noise rates at the first and last time of every bin.
fn edges(config: &Config, levels: Option<&Levels>) -> Vec<[f64; 2]> {
    match (config.family, levels) {
        (Family::Unet2d, Some(levels)) => {
            let steps = levels.len();
            let first = |bin: usize| levels.at(bin * steps / BINS).noise;
            let last = |bin: usize| levels.at(((bin + 1) * steps).div_ceil(BINS) - 1).noise;
            (0..BINS).map(|bin| [first(bin), last(bin)]).collect()
        }
        _ => {
            let (least, most) = (config.min_signal_rate, config.max_signal_rate);
            let points = Levels::seed_times(config.schedule, least, most, BINS + 1);
            (0..BINS).map(|bin| [points.at(bin).noise, points.at(bin + 1).noise]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_a_bin_has_one_picture() {
        for (bin, n) in [(0, 1), (3, 7), (9, 1000)] {
            let mut times = times_of_bin(5, bin, n);
            assert_eq!(times, times_of_bin(5, bin, n));
            times.sort_by(f32::total_cmp);
            for (i, time) in times.iter().enumerate() {
                let piece = (f64::from(*time) * BINS as f64 - bin as f64) * n as f64 - i as f64;
                assert!((-1e-3..1.001).contains(&piece), "bin {bin}: {time} is not in piece {i} of {n}");
            }
            assert!(times.iter().all(|&t| t < 1.0));
        }
        assert_ne!(times_of_bin(5, 3, 7), times_of_bin(6, 3, 7));
    }
}
