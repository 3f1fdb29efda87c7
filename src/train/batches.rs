//! Pictures on their way into a step: loading, normalising, noise and times; and a step for measurement.

use std::path::Path;
use std::time::Instant;

use crate::config::Config;
use crate::data::{self, DataSpec, Dataset};
use crate::diffusion::normalizer::Normalizer;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::noise::NoiseKey;
use crate::rng::Purpose;
use crate::tensor::{Shape, Tensor};
use crate::train::progress::{Progress, Task};
use crate::train::state::{Batch, TrainState};

/// Lets the data module speak through the run's progress.
struct DataProgress<'p> {
    progress: &'p Progress,
    task: std::sync::Mutex<Option<Task>>,
}

impl data::Progress for DataProgress<'_> {
    fn start(&self, what: &str, total: Option<u64>) {
        if let (Some(total), Ok(mut task)) = (total, self.task.lock()) {
            *task = Some(self.progress.task(what, total, "pictures"));
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
    data::load(&spec, &DataProgress { progress, task: std::sync::Mutex::new(None) })
}

/// Normalised pictures on the device.
pub(super) fn normalized<B: Backend>(
    backend: &B,
    n: &Normalizer,
    dataset: &Dataset,
    pixels: &[u8],
) -> Result<Tensor<B>> {
    let (size, c) = (dataset.image_size(), dataset.channels());
    let mut images = Tensor::new(backend, Shape::new(pixels.len() / dataset.image_bytes(), size, size, c))?;
    let bytes = backend.upload_bytes(pixels)?;
    backend.normalize(&bytes, &n.mean(), &n.std(), images.view_mut())?;
    Ok(images)
}

/// Noise and times of a batch.
pub(super) fn draw<B: Backend>(
    backend: &B,
    shape: Shape,
    noise: NoiseKey,
    times: NoiseKey,
) -> Result<(Tensor<B>, B::Buffer)> {
    let mut tensor = Tensor::new(backend, shape)?;
    backend.fill_normal(noise, shape.h * shape.w * shape.c, tensor.view_mut())?;
    let mut buffer = backend.alloc(shape.n)?;
    backend.fill_uniform(times, B::all_mut(&mut buffer))?;
    Ok((tensor, buffer))
}

/// Everything that a step needs but pictures: for measuring one.
///
/// # Errors
/// Out of memory, or the device failed.
pub fn bench_step<B: Backend>(backend: &B, config: &Config, repeat: usize) -> Result<Vec<f64>> {
    let mut state = TrainState::<B>::new(backend, config)?;
    let shape = Shape::new(config.batch_size, config.image_size, config.image_size, config.channels);
    let key = |purpose, step| NoiseKey { seed: config.seed, purpose, step, first_image: 0 };
    let (images, _) = draw(backend, shape, key(Purpose::Picture, 0), key(Purpose::Times, 0))?;
    let mut seconds = Vec::new();
    for step in 0..repeat as u64 + 2 {
        let began = Instant::now();
        let (noise, times) = draw(backend, shape, key(Purpose::Noise, step), key(Purpose::Times, step))?;
        state.train_step(backend, &Batch { images: &images, noise: &noise, times: &times })?;
        if step >= 2 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}
