//! The pictures and classes of every training step: a function of the configuration, the pictures and the step's number.

use crate::config::Config;
use crate::data::{self, Dataset, FlipKey, Labels};
use crate::rng::{Purpose, Stream};
use crate::tensor::Shape;
use crate::train::checks::steps_per_epoch;

/// Feeds training steps.
pub struct Feed<'a> {
    config: &'a Config,
    dataset: &'a Dataset,
    labels: Option<Labels>,
    train: Vec<u32>,
    /// The order of the epoch that was asked for last.
    order: (Option<u64>, Vec<u32>),
    pixels: Vec<u8>,
}

/// The batch of a step.
pub struct Fed<'f> {
    /// [N, H, W, C].
    pub shape: Shape,
    /// 8-bit pixels of that shape.
    pub pixels: &'f [u8],
    /// Classes of the images; empty where there are none.
    pub labels: Vec<f32>,
}

impl<'a> Feed<'a> {
    /// Of the pictures `train` of a dataset.
    pub fn new(config: &'a Config, dataset: &'a Dataset, labels: Option<Labels>, train: Vec<u32>) -> Self {
        Feed { config, dataset, labels, train, order: (None, Vec::new()), pixels: Vec::new() }
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        steps_per_epoch(self.config, self.train.len())
    }

    /// Pictures to train on.
    pub fn pictures(&self) -> usize {
        self.train.len()
    }

    /// The classes, where there are any.
    pub fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    /// The batch of the step after `done` steps.
    pub fn step(&mut self, done: u64) -> Fed<'_> {
        let per_epoch = self.steps_per_epoch();
        let (epoch, within) = (done / per_epoch, done % per_epoch);
        if self.order.0 != Some(epoch) {
            let order = data::epoch_order(&self.train, self.config.repeat, self.config.seed, epoch);
            self.order = (Some(epoch), order);
        }
        let position = within as usize * self.config.batch_size;
        let end = (position + self.config.batch_size).min(self.order.1.len());
        let flip =
            self.config.flip.then_some(FlipKey { seed: self.config.seed, epoch, first_position: position as u64 });
        let indices = &self.order.1[position..end];
        self.pixels.resize(indices.len() * self.dataset.image_bytes(), 0);
        data::fill_batch(self.dataset, indices, flip, &mut self.pixels);
        let size = self.dataset.image_size();
        let shape = Shape::new(end - position, size, size, self.dataset.channels());
        let labels = self.labels_of(indices, Some(done));
        Fed { shape, pixels: &self.pixels, labels }
    }

    /// Classes of pictures, by their indices; empty where there are no labels. Training at a step leaves some out.
    pub fn labels_of(&self, indices: &[u32], step: Option<u64>) -> Vec<f32> {
        let Some(labels) = &self.labels else { return Vec::new() };
        let none = labels.classes().len() as f32;
        let left_out = |image: usize, step: u64| {
            let stream = Stream::new(self.config.seed, Purpose::LabelDrop, step, image as u64);
            f64::from(stream.uniform4(0)[0]) < self.config.label_dropout
        };
        let of = |(image, &index): (usize, &u32)| match step {
            Some(step) if left_out(image, step) => none,
            _ => labels.of()[index as usize] as f32,
        };
        indices.iter().enumerate().map(of).collect()
    }
}
