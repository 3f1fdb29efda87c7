//! Pictures on their way into the network: loading, normalising, noise and times.

use std::path::Path;

use crate::config::Config;
use crate::data::{self, DataSpec, Dataset};
use crate::diffusion::normalizer::Normalizer;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::noise::NoiseKey;
use crate::tensor::{Shape, Tensor};
use crate::train::progress::{Progress, Task};

/// Lets the data module speak through a [`Progress`].
pub struct DataProgress<'p> {
    progress: &'p Progress,
    task: std::sync::Mutex<Option<Task>>,
}

impl<'p> DataProgress<'p> {
    /// Speaks through `progress`.
    pub fn new(progress: &'p Progress) -> Self {
        DataProgress { progress, task: std::sync::Mutex::new(None) }
    }
}

impl data::Progress for DataProgress<'_> {
    fn start(&self, what: &str, total: Option<u64>) {
        self.start_units(what, total, "pictures");
    }
    fn start_units(&self, what: &str, total: Option<u64>, unit: &str) {
        if let (Some(total), Ok(mut task)) = (total, self.task.lock()) {
            *task = Some(self.progress.task(what, total, unit));
        }
    }
    fn advance(&self, n: u64) {
        if let Ok(task) = self.task.lock()
            && let Some(task) = &*task
        {
            task.advance(n);
        }
    }
    fn note(&self, line: &str) {
        self.progress.line(line);
    }
    fn finish(&self) {
        if let Ok(mut task) = self.task.lock() {
            task.take();
        }
    }
}

/// Loads the pictures of a configuration.
///
/// # Errors
/// As [`data::load`].
pub fn load_pictures(config: &Config, data_dir: Option<&Path>, progress: &Progress) -> Result<Dataset> {
    let spec = DataSpec {
        channels: config.channels,
        data_dir: data_dir.map(Path::to_path_buf),
        ..DataSpec::new(config.data.clone(), config.image_size)
    };
    data::load(&spec, &DataProgress::new(progress))
}

/// Normalised pictures on the device.
pub(crate) fn normalized<B: Backend>(
    backend: &B,
    n: &Normalizer,
    dataset: &Dataset,
    pixels: &[u8],
) -> Result<Tensor<B>> {
    let (size, c) = (dataset.image_size(), dataset.channels());
    let mut images = Tensor::new(backend, Shape::new(pixels.len() / dataset.image_bytes(), size, size, c))?;
    let mut bytes = backend.alloc_bytes(pixels.len())?;
    backend.upload_bytes(pixels, &mut bytes)?;
    let mut mean_std = backend.alloc(2 * c)?;
    backend.upload(&n.mean_std(), B::all_mut(&mut mean_std))?;
    backend.normalize(&bytes, B::all(&mean_std), images.view_mut())?;
    Ok(images)
}

/// Noise and times of a batch at a step (`[1]`, see [`crate::ops::noise::step_word`]).
pub(crate) fn draw<B: Backend>(
    backend: &B,
    shape: Shape,
    step: B::Slice<'_>,
    noise: NoiseKey,
    times: NoiseKey,
) -> Result<(Tensor<B>, B::Buffer)> {
    let mut tensor = Tensor::new(backend, shape)?;
    backend.fill_normal(noise, step, shape.h * shape.w * shape.c, tensor.view_mut())?;
    let mut buffer = backend.alloc(shape.n)?;
    backend.fill_uniform(times, step, B::all_mut(&mut buffer))?;
    Ok((tensor, buffer))
}
