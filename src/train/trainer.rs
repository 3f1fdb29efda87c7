//! The training loop: batches in, steps, validation, samples, metrics, checkpoints; interruption and resume.
//!
//! A step is a function of the configuration, the pictures and its number: order, times and noise come from counters. A run that
//! was interrupted anywhere therefore goes on to the same bytes.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data::{self, Dataset, Labels};
use crate::device::ReadBack;
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::loss::LossValues;
use crate::ops::noise::{NoiseKey, step_word};
use crate::rng::Purpose;
use crate::train::batches::{draw, load_pictures, normalized};
use crate::train::checkpoint::{self, Checkpoint, NamedTensor};
use crate::train::checks::{check_classes, check_same, check_trainable, find_checkpoint, total_steps};
use crate::train::feed::Feed;
use crate::train::interrupt::Interrupt;
use crate::train::metrics_log::{MetricsLog, Record, Split as LogSplit};
use crate::train::picture;
use crate::train::progress::{Kind, Progress, grouped};
use crate::train::run_dir::RunDir;
use crate::train::state::{Batch, TrainState, import_model};
use crate::train::stepper::Stepper;
use crate::train::tensorboard::EventWriter;
use crate::train::window::Window;

/// Steps over which a training record averages.
const LOG_EVERY: u64 = 10;
/// Steps that a device may be asked for before the losses of the first are looked at.
const RUN_AHEAD: usize = 4;
/// Long epochs are saved within as well.
const SAVE_EVERY: Duration = Duration::from_secs(600);
/// Checkpoints kept.
const KEEP: usize = 3;
/// Names of the normaliser's tensors in `model.safetensors`.
pub const NORMALIZER_MEAN: &str = "normalizer.mean";
/// Standard deviation.
pub const NORMALIZER_STD: &str = "normalizer.std";

/// What to train, and where.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The configuration; with `resume`, the run's own with the changes that are allowed.
    pub config: Config,
    /// The preset that it started from.
    pub preset_name: String,
    /// Folder for the run; a new one in `runs/` where it is missing.
    pub run_dir: Option<PathBuf>,
    /// Run (or checkpoint) to go on with.
    pub resume: Option<PathBuf>,
    /// Where known sets of pictures are looked for.
    pub data_dir: Option<PathBuf>,
    /// No progress.
    pub quiet: bool,
    /// What the summary calls the device.
    pub device: String,
}

/// What a finished run left.
#[derive(Clone, Debug, Serialize)]
pub struct TrainSummary {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Preset.
    pub preset: String,
    /// Device.
    pub device: String,
    /// Learned parameters.
    pub parameters: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Epochs begun.
    pub epochs: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// Images a second over the steps of this session.
    pub images_per_second: f64,
    /// The last validation, if there was one.
    pub valid: Option<[f64; 3]>,
    /// The last sample grid, if there was one.
    pub samples: Option<PathBuf>,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

/// The small values of a checkpoint.
#[derive(Serialize, Deserialize)]
pub(crate) struct Resumable {
    pub(crate) preset: String,
    /// Of the pictures; empty where the model comes from elsewhere and has seen none.
    pub(crate) fingerprint: String,
    pub(crate) seconds: f64,
    pub(crate) normalizer: Normalizer,
    pub(crate) window: Window,
    /// Of the class labels, where there are any.
    #[serde(default)]
    pub(crate) labels: Option<String>,
    /// Of the official split, where that is used.
    #[serde(default)]
    pub(crate) split: Option<String>,
}

/// Trains. Reports on standard error unless quiet.
///
/// # Errors
/// Bad input, a device or disk that fails, a loss that is not a number (the last good checkpoint stays);
/// [`Error::Interrupted`] after saving where `interrupt` was raised.
pub fn run<B: Backend>(backend: &B, options: &TrainOptions, interrupt: &Interrupt) -> Result<TrainSummary> {
    let progress = Progress::new(if options.quiet { Kind::Quiet } else { Kind::Auto });
    options.config.validate()?;
    check_trainable(&options.config)?;
    let dataset = load_pictures(&options.config, options.data_dir.as_deref(), &progress)?;
    let labels = options.config.labels_path().map(|path| Labels::load(path, &dataset)).transpose()?;
    check_classes(&options.config, labels.as_ref())?;
    Trainer::open(backend, options, &dataset, labels, progress)?.run(interrupt)
}

struct Trainer<'a, B: Backend> {
    backend: &'a B,
    options: &'a TrainOptions,
    config: &'a Config,
    dataset: &'a Dataset,
    feed: Feed<'a>,
    /// Pictures held back.
    valid_pictures: Vec<u32>,
    state: TrainState<B>,
    stepper: Stepper<B>,
    /// Steps whose losses are on their way: number, images, losses.
    pending: VecDeque<(u64, usize, B::ReadBack)>,
    normalizer: Normalizer,
    window: Window,
    run_dir: RunDir,
    metrics: MetricsLog,
    events: EventWriter,
    progress: Progress,
    preset: String,
    /// Seconds of earlier sessions.
    seconds_before: f64,
    started: Instant,
    images_this_session: u64,
    /// Time in steps of this session, without validation, samples and saving.
    stepping: Duration,
    /// `stepping` and `images_this_session` at the last training record.
    logged: (Duration, u64),
    valid: Option<[f64; 3]>,
    samples: Option<PathBuf>,
    saved: (Option<PathBuf>, Instant),
    pixels: Vec<u8>,
}

impl<'a, B: Backend> Trainer<'a, B> {
    fn open(
        backend: &'a B,
        options: &'a TrainOptions,
        dataset: &'a Dataset,
        labels: Option<Labels>,
        progress: Progress,
    ) -> Result<Self> {
        let config = &options.config;
        let split = dataset.split(config.valid_fraction, config.seed)?;
        let resumed = options.resume.as_deref().map(|path| find_checkpoint(path, &progress)).transpose()?;
        let mut state = TrainState::new(backend, config)?;
        let mut normalizer = Normalizer::of(config);
        let (mut window, mut seconds_before) = (Window::default(), 0.0);
        let mut preset = options.preset_name.clone();
        let (run_dir, metrics, events);
        let mut resumed_from = None;
        if let Some((path, checkpoint)) = resumed {
            let saved: Resumable = serde_json::from_value(checkpoint.state)
                .map_err(|e| Error::input(&path, format!("its state cannot be used: {e}")))?;
            check_same(config, &checkpoint.config_toml, &path, split.train.len())?;
            if !saved.fingerprint.is_empty() && saved.fingerprint != dataset.fingerprint() {
                let what = "its pictures are not those of `data`: the same pictures are needed to go on exactly";
                return Err(Error::input(&path, format!("{what} (data = {})", config.data)));
            }
            if !saved.fingerprint.is_empty() && saved.labels != labels.as_ref().map(Labels::fingerprint) {
                let what = "its class labels are not those of `labels`: the same labels are needed to go on exactly";
                return Err(Error::input(&path, format!("{what} (labels = {})", config.labels)));
            }
            if !saved.fingerprint.is_empty() && saved.split != dataset.official_split(config.valid_fraction) {
                let what = "the pictures that it held back are not those of `data` here: one of them has an official split (split.csv \
                            beside the pictures, with source.json) and the other has not, or another; give the folder that it was trained on";
                return Err(Error::input(&path, format!("{what} (data = {})", config.data)));
            }
            import_model(backend, &mut state.weights, &checkpoint.model)?;
            state.import_optimizer(backend, &checkpoint.optimizer, checkpoint.step)?;
            (normalizer, window, seconds_before, preset) =
                (saved.normalizer, saved.window, saved.seconds, saved.preset);
            run_dir = RunDir::resume(&path)?;
            metrics = MetricsLog::resume(&run_dir.metrics_path(), checkpoint.step)?;
            events = EventWriter::resume(run_dir.root(), checkpoint.step)?;
            progress.line(&format!("resumed from {} (step {})", path.display(), checkpoint.step));
            resumed_from = Some(path);
        } else {
            run_dir = RunDir::create(options.run_dir.as_deref(), &preset)?;
            metrics = MetricsLog::create(&run_dir.metrics_path())?;
            events = EventWriter::create(run_dir.root())?;
        }
        run_dir.write_config(&config.to_toml())?;
        if let Some(labels) = &labels {
            run_dir.write_classes(labels.classes())?;
        }
        state.plan(config, total_steps(config, split.train.len()));
        let now = Instant::now();
        Ok(Trainer {
            backend,
            options,
            config,
            dataset,
            feed: Feed::new(config, dataset, labels, split.train),
            valid_pictures: split.valid,
            stepper: Stepper::new(backend, config.channels, config.seed)?,
            pending: VecDeque::new(),
            state,
            normalizer,
            window,
            run_dir,
            metrics,
            events,
            progress,
            preset,
            seconds_before,
            started: now,
            images_this_session: 0,
            stepping: Duration::ZERO,
            logged: (Duration::ZERO, 0),
            valid: None,
            samples: None,
            saved: (resumed_from, now),
            pixels: Vec::new(),
        })
    }

    fn steps_per_epoch(&self) -> u64 {
        self.feed.steps_per_epoch()
    }

    fn total_steps(&self) -> u64 {
        total_steps(self.config, self.feed.pictures())
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// What is about to happen, in a few aligned lines.
    fn announce(&self) {
        let c = self.config;
        let (train, valid) = (self.feed.pictures(), self.valid_pictures.len());
        let objective = format!("{} {}, {} schedule", c.get("predict"), c.get("loss"), c.get("schedule"));
        let objective = objective.replace('"', "");
        let by = if self.dataset.official_split(c.valid_fraction).is_some() { " by the official split" } else { "" };
        self.progress
            .line(&format!("data    {} ({train} to train, {valid} held back{by})", self.dataset.description()));
        let parameters = grouped(self.state.net.layout().parameter_count() as u64);
        let (family, widths, depth) = match &c.unet {
            None => ("seed", &c.widths, c.block_depth),
            Some(unet) => ("unet2d", &unet.block_out_channels, unet.layers_per_block),
        };
        let classes = self.feed.labels().map_or(String::new(), |l| format!(", {} classes", l.classes().len()));
        self.progress.line(&format!(
            "model   {family} family, {parameters} parameters, widths {widths:?}, depth {depth}{classes}; {objective}"
        ));
        self.progress.line(&format!(
            "plan    {} steps of {} images, {} steps an epoch; run {}",
            grouped(self.total_steps()),
            c.batch_size,
            grouped(self.steps_per_epoch()),
            self.run_dir.root().display()
        ));
    }

    fn run(mut self, interrupt: &Interrupt) -> Result<TrainSummary> {
        self.announce();
        let (total, per_epoch) = (self.total_steps(), self.steps_per_epoch());
        // A run that was killed between its last checkpoint and its summary lacks nothing else.
        if self.state.step == total && !self.run_dir.summary_path().exists() {
            return self.finish();
        }
        if self.state.step >= total {
            return Err(Error::Usage(format!(
                "the run has {} steps already, {total} are asked for; give more with --epochs or --steps",
                self.state.step
            )));
        }
        while self.state.step < total {
            let epoch = self.state.step / per_epoch;
            let end = ((epoch + 1) * per_epoch).min(total);
            let images = (end - self.state.step) * self.config.batch_size as u64;
            let task = self.progress.task(&format!("epoch {}", epoch + 1), images, "images");
            while self.state.step < end {
                let began = Instant::now();
                let images = self.step()?;
                let due = self.state.step.is_multiple_of(LOG_EVERY) || self.state.step == end;
                self.settle(if due { 0 } else { RUN_AHEAD })?;
                self.stepping += began.elapsed();
                self.images_this_session += images as u64;
                if self.window.images > 0.0 {
                    task.message(&format!("loss {:.4}", self.window.mean().loss));
                }
                task.advance(images as u64);
                if self.state.step.is_multiple_of(LOG_EVERY) || self.state.step == total {
                    self.log_training(epoch)?;
                }
                let eval_every = self.config.eval_every as u64;
                if eval_every > 0 && self.state.step.is_multiple_of(eval_every) && self.state.step < end {
                    self.validate(epoch)?;
                }
                if interrupt.requested() && self.state.step < end {
                    return self.stop(epoch);
                }
                if self.saved.1.elapsed() > SAVE_EVERY {
                    self.save(epoch)?;
                }
            }
            task.finish();
            self.validate(epoch)?;
            self.draw_samples(epoch)?;
            self.save(epoch)?;
            if interrupt.requested() && self.state.step < total {
                return self.stop(epoch);
            }
        }
        self.finish()
    }

    /// Asks for one training step; the number of its images. Its losses come with [`Trainer::settle`].
    fn step(&mut self) -> Result<usize> {
        let fed = self.feed.step(self.state.step);
        self.normalizer.gather(fed.pixels);
        let (state, normalizer) = (&mut self.state, &self.normalizer);
        let losses =
            self.stepper.step_of_classes(self.backend, state, normalizer, fed.shape, fed.pixels, &fed.labels)?;
        self.pending.push_back((self.state.step, fed.shape.n, losses));
        Ok(fed.shape.n)
    }

    /// Takes in the losses of steps that are done, in order, and waits where more than `ahead` are not.
    fn settle(&mut self, ahead: usize) -> Result<()> {
        while let Some((_, _, losses)) = self.pending.front() {
            if self.pending.len() <= ahead && !losses.is_ready()? {
                break;
            }
            let Some((step, images, losses)) = self.pending.pop_front() else { break };
            let slots = losses.wait()?;
            let values = LossValues::from_slots(&slots);
            if !values.loss.is_finite() {
                return Err(self.diverged(&format!("the loss is {} at step {step}", values.loss)));
            }
            if let Some(norm) = slots.get(3).filter(|norm| !norm.is_finite()) {
                return Err(self.diverged(&format!("the norm of the gradients is {norm} at step {step}")));
            }
            self.window.add_step(&values, &slots, images);
        }
        Ok(())
    }

    /// Why numbers that are not finite end the run, where it can go on from, and what to try.
    fn diverged(&self, what: &str) -> Error {
        let kept = match &self.saved.0 {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "no checkpoint had been saved".into(),
        };
        let lr = self.config.lr;
        Error::Failed(format!("{what}; training stopped and {kept}. Try a smaller learning rate (lr = {lr})"))
    }

    fn record(&self, epoch: u64, split: LogSplit, v: &LossValues, images_per_second: f64) -> Record {
        Record {
            step: self.state.step,
            epoch: epoch + 1,
            split,
            loss: v.loss,
            noise_loss: v.noise_loss,
            image_loss: v.image_loss,
            lr: self.state.lr(),
            images_per_second,
            seconds: self.seconds(),
            grad_norm: None,
        }
    }

    fn log(&mut self, prefix: &str, record: &Record) -> Result<()> {
        self.metrics.append(record)?;
        for (name, value) in
            [("loss", record.loss), ("noise_loss", record.noise_loss), ("image_loss", record.image_loss)]
        {
            self.events.scalar(&format!("{name}/{prefix}"), record.step, value)?;
        }
        if prefix == "train" {
            self.events.scalar("images_per_second", record.step, record.images_per_second)?;
            self.events.scalar("lr", record.step, record.lr)?;
            if let Some(norm) = record.grad_norm {
                self.events.scalar("grad_norm", record.step, norm)?;
            }
        }
        Ok(())
    }

    fn log_training(&mut self, epoch: u64) -> Result<()> {
        let (time, images) = (self.stepping, self.images_this_session);
        let rate = (images - self.logged.1) as f64 / (time - self.logged.0).as_secs_f64().max(1e-9);
        self.logged = (time, images);
        let mut record = self.record(epoch, LogSplit::Train, &self.window.mean(), rate);
        record.grad_norm = (self.config.grad_clip > 0.0).then(|| self.window.grad_norm / self.window.images);
        // A last record within a window is extra: the window goes on in a run that is extended.
        if self.state.step.is_multiple_of(LOG_EVERY) {
            self.window = Window::default();
        }
        self.log("train", &record)
    }

    /// Losses of the pictures held back, always with the same times and noise.
    fn validate(&mut self, epoch: u64) -> Result<()> {
        let valid = std::mem::take(&mut self.valid_pictures);
        let result = self.validate_on(&valid, epoch);
        self.valid_pictures = valid;
        result
    }

    fn validate_on(&mut self, valid: &[u32], epoch: u64) -> Result<()> {
        if valid.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let mut window = Window::default();
        let mut step = self.backend.alloc(1)?;
        self.backend.upload(&[step_word(0)], B::all_mut(&mut step))?;
        for (i, indices) in valid.chunks(self.config.batch_size).enumerate() {
            self.pixels.resize(indices.len() * self.dataset.image_bytes(), 0);
            data::fill_batch(self.dataset, indices, None, &mut self.pixels);
            let images = normalized(self.backend, &self.normalizer, self.dataset, &self.pixels)?;
            let first_image = (i * self.config.batch_size) as u64;
            let key = |purpose| NoiseKey { seed: self.config.seed, purpose, first_image };
            let (noise, times) = (key(Purpose::ValidNoise), key(Purpose::ValidTimes));
            let (noise, times) = draw(self.backend, images.shape, B::all(&step), noise, times)?;
            let labels = self.feed.labels_of(indices, None);
            let labels = if labels.is_empty() {
                None
            } else {
                let mut on_device = self.backend.alloc(labels.len())?;
                self.backend.upload(&labels, B::all_mut(&mut on_device))?;
                Some(on_device)
            };
            let labels = labels.as_ref();
            let batch = Batch { images: &images, noise: &noise, times: &times, labels, dropout: None };
            window.add(&self.state.evaluate(self.backend, &batch)?, indices.len());
        }
        let mean = window.mean();
        let rate = valid.len() as f64 / began.elapsed().as_secs_f64().max(1e-9);
        let record = self.record(epoch, LogSplit::Valid, &mean, rate);
        self.valid = Some([mean.loss, mean.noise_loss, mean.image_loss]);
        self.progress.line(&format!(
            "step {:>6}  valid  noise_loss {:.4}  image_loss {:.4}",
            self.state.step, mean.noise_loss, mean.image_loss
        ));
        self.log("valid", &record)
    }

    /// A grid of samples from noise that is the same at every epoch.
    fn draw_samples(&mut self, epoch: u64) -> Result<()> {
        let count = self.config.sample_count;
        if count == 0 {
            return Ok(());
        }
        let mut weights = self.state.sampling_weights(self.backend)?;
        let request = crate::sample::Request {
            count,
            first: 0,
            steps: self.config.sample_steps,
            seed: self.config.seed,
            image_size: self.config.image_size,
            channels: self.config.channels,
        };
        let model = crate::sample::Model {
            net: &self.state.net,
            diffusion: &self.state.diffusion,
            mean: self.normalizer.mean(),
            std: self.normalizer.std(),
        };
        let pictures = crate::sample::draw(self.backend, &model, &mut weights, &request, None);
        let pictures = pictures.map_err(|e| match e {
            Error::Failed(what) => self.diverged(&format!("samples at step {}: {what}", self.state.step)),
            other => other,
        })?;
        let grid = picture::grid(&pictures, None, picture::PADDING)?;
        let grid = grid.upscale((64 / self.config.image_size).max(1));
        let path = self.run_dir.sample_path(epoch + 1);
        let png = grid.png_bytes()?;
        crate::train::run_dir::write_atomic(&path, &png)?;
        self.events.image_png("samples", self.state.step, grid.width, grid.height, &png)?;
        self.events.flush()?;
        self.samples = Some(path);
        Ok(())
    }

    fn save(&mut self, epoch: u64) -> Result<()> {
        self.settle(0)?;
        let state = Resumable {
            preset: self.preset.clone(),
            fingerprint: self.dataset.fingerprint().into(),
            seconds: self.seconds(),
            normalizer: self.normalizer.clone(),
            window: self.window,
            labels: self.feed.labels().map(Labels::fingerprint),
            split: self.dataset.official_split(self.config.valid_fraction),
        };
        let state =
            serde_json::to_value(&state).map_err(|e| Error::Failed(format!("cannot write the run's state: {e}")))?;
        let mut model = self.state.export_model(self.backend)?;
        let shape = vec![self.config.channels];
        let (mean, std) = (self.normalizer.mean(), self.normalizer.std());
        model.push(NamedTensor { name: NORMALIZER_MEAN.into(), shape: shape.clone(), data: mean });
        model.push(NamedTensor { name: NORMALIZER_STD.into(), shape, data: std });
        let optimizer = self.state.export_optimizer(self.backend)?;
        // The loss of a step says nothing of the weights after it: they may have left the range of their numbers in it, and a
        // checkpoint of them would take the place of a good one.
        if let Some(bad) = model.iter().chain(&optimizer).find(|t| t.data.iter().any(|v| !v.is_finite())) {
            return Err(self.diverged(&format!("`{}` is not finite at step {}", bad.name, self.state.step)));
        }
        let checkpoint = Checkpoint {
            config_toml: self.config.to_toml(),
            step: self.state.step,
            epoch: epoch + 1,
            state,
            model,
            optimizer,
        };
        self.events.flush()?;
        let path = checkpoint::save(&self.run_dir.checkpoints(), &checkpoint)?;
        checkpoint::prune(self.run_dir.root(), KEEP)?;
        self.saved = (Some(path), Instant::now());
        Ok(())
    }

    /// Saves and says how to go on.
    fn stop(mut self, epoch: u64) -> Result<TrainSummary> {
        self.save(epoch)?;
        Err(Error::Interrupted(format!(
            "stopped after step {} of {}, saved; go on with\n  ddim-engine train --resume {}",
            self.state.step,
            self.total_steps(),
            self.run_dir.root().display()
        )))
    }

    fn finish(self) -> Result<TrainSummary> {
        let summary = TrainSummary {
            run_dir: self.run_dir.root().to_path_buf(),
            preset: self.preset.clone(),
            device: self.options.device.clone(),
            parameters: self.state.net.layout().parameter_count(),
            steps: self.state.step,
            epochs: self.state.step.div_ceil(self.steps_per_epoch()),
            seconds: self.seconds(),
            images_per_second: self.images_this_session as f64 / self.stepping.as_secs_f64().max(1e-9),
            valid: self.valid,
            samples: self.samples.clone(),
            checkpoint: self.saved.0.clone().unwrap_or_default(),
        };
        let json = serde_json::to_value(&summary)
            .map_err(|e| Error::Failed(format!("cannot write the run's summary: {e}")))?;
        self.run_dir.write_summary(&json)?;
        Ok(summary)
    }
}
