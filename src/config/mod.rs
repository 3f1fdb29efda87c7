//! The resolved configuration of a training run: flat keys, the same in TOML and in `--set key=value`.
//!
//! Layers, later ones winning: a preset (which is complete), `--config FILE`, `--set`, the named options of the command line. They are
//! put together by [`Config::resolve`]. One table, [`KEYS`], says for every key what it means and which values it takes; errors,
//! `train --help` and the comments of a written `config.toml` all come from it. A new key is a field here, its value in the
//! presets, and a row there.

mod keys;
mod presets;
mod resolve;
mod sampling;
pub mod setting;
mod text;
mod training;
pub mod unet;

pub(crate) use keys::nearest;
pub use keys::{KEYS, Key, Kind};
pub use presets::PRESETS;
pub use resolve::{Layers, RESUME_OPTIONS};
pub use sampling::{Normalize, SamplerKind, SpacingKind, VarianceKind};
pub use unet::UnetConfig;

use serde::{Deserialize, Serialize};

/// Model family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// The network of "De-noising Diffusion with torch": batch norm, no attention.
    Seed,
    /// The `UNet2DModel` of the public diffusers library: group norm, time embedding, attention.
    Unet2d,
}

/// Diffusion schedule: how signal and noise rates follow the time. The family seed has the first two, at continuous times in [0, 1];
/// the family unet2d has all, at [`Config::train_timesteps`] points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Seed: betas linspace(1e-4, 0.02, 1000), alpha-bar clipped to the rates. unet2d: betas linspace(beta_start, beta_end), as the
    /// public library's `linear`.
    Linear,
    /// Angles between acos(max) and acos(min) of the signal rates.
    Cosine,
    /// Betas whose roots are evenly spaced.
    ScaledLinear,
    /// Betas of a squared cosine, capped (Nichol and Dhariwal 2021).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// Betas along a sigmoid.
    Sigmoid,
    /// The noise levels of EDM's training distribution (Karras et al. 2022).
    Edm,
}

impl ScheduleKind {
    /// It is made of betas from `beta_start` to `beta_end` (which the squared cosine does not look at).
    pub fn is_betas(self) -> bool {
        !matches!(self, ScheduleKind::Cosine | ScheduleKind::Edm)
    }
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Predict {
    /// The noise in the picture.
    Noise,
    /// The clean picture.
    Image,
    /// signal_rate * noise - noise_rate * image (Salimans and Ho 2022).
    Velocity,
}

/// Training loss between prediction and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Mean absolute error.
    Mae,
    /// Mean squared error.
    Mse,
    /// Huber loss with delta 1 (PyTorch's `smooth_l1` with beta 1).
    Huber,
}

/// Optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Decoupled weight decay.
    AdamW,
    /// Weight decay added to the gradient.
    Adam,
}

/// How the learning rate follows the steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// `lr` throughout, after the warm-up.
    Constant,
    /// From `lr` to `lr_min` along half a cosine.
    Cosine,
    /// From `lr` to `lr_min` along a line.
    Linear,
}

/// Arithmetic of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// What the device does best: fp32 on a CPU, bf16 for training on a GPU.
    Auto,
    /// Single precision throughout.
    Fp32,
    /// Single precision with factors of convolutions rounded to tf32; on a GPU.
    Tf32,
    /// Activations and factors in bfloat16, sums, statistics, weights and optimiser in single precision. On a CPU the factors of 3x3
    /// convolutions alone, where the processor gains by it ([`crate::device::cpu::Products`]).
    Bf16,
}

/// Everything that determines a run's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Model family.
    pub family: Family,
    /// Height and width of the square pictures, in pixels; a multiple of 2^levels.
    pub image_size: usize,
    /// Channels of the pictures: 1 (grey), 3 (RGB) or 4 (RGBA).
    pub channels: usize,
    /// Channels of each level, from the full resolution down.
    pub widths: Vec<usize>,
    /// Residual blocks in each level.
    pub block_depth: usize,
    /// Channels of the first convolution, and of the noise embedding; even.
    pub embedding_dim: usize,
    /// Diffusion schedule.
    pub schedule: ScheduleKind,
    /// The first beta of the schedules of the family unet2d.
    pub beta_start: f64,
    /// The last.
    pub beta_end: f64,
    /// Points of the schedule of the family unet2d.
    pub train_timesteps: usize,
    /// Stretches the schedule of the family unet2d so that nothing of the picture is left at its last point (Lin et al. 2024).
    pub zero_snr: bool,
    /// Signal rate at time 1.
    pub min_signal_rate: f64,
    /// Signal rate at time 0.
    pub max_signal_rate: f64,
    /// What the network predicts.
    pub predict: Predict,
    /// Training loss.
    pub loss: LossKind,
    /// Bound of the ratio of signal to noise in the weight of an image's loss (Hang et al. 2023); 0: all images weigh the same.
    pub min_snr_gamma: f64,
    /// Strength of the noise that is the same over a channel of a picture, added to that of its pixels in training; 0: none.
    pub offset_noise: f64,
    /// Optimiser.
    pub optimizer: OptimizerKind,
    /// Learning rate.
    pub lr: f64,
    /// Learning rate over the run.
    pub lr_schedule: LrSchedule,
    /// Steps in which the learning rate rises, along a line, to `lr`.
    pub lr_warmup: usize,
    /// Where `lr_schedule` ends, if it is not constant.
    pub lr_min: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together, above which they are scaled down to it; 0 switches it off.
    pub grad_clip: f64,
    /// Images in a step.
    pub batch_size: usize,
    /// Parts that a batch is computed in, one after the other, to need less memory; divides `batch_size`.
    pub accumulate: usize,
    /// Passes over the training images; ignored where `steps` is set.
    pub epochs: usize,
    /// Total optimiser steps; 0 leaves it to `epochs`.
    pub steps: usize,
    /// Seed of weights, order, times and noise.
    pub seed: u64,
    /// Arithmetic.
    pub precision: Precision,
    /// Source of pictures: `procedural`, `flowers`, `pets`, `debug`, a folder or a .tar.
    pub data: String,
    /// CSV file of picture names and class labels ([`crate::data::Labels`]), [`crate::data::AUTO`] or [`NO_LABELS`].
    pub labels: String,
    /// Share of the training images that are shown as of no class, the last of `unet.num_class_embeds`; for guidance.
    pub label_dropout: f64,
    /// Times every training picture appears in an epoch (the seed: 5 for flowers, 3 for pets).
    pub repeat: usize,
    /// Random horizontal flips of training pictures.
    pub flip: bool,
    /// Share of the pictures kept for validation.
    pub valid_fraction: f64,
    /// How pixels are brought to the network's range.
    pub normalize: Normalize,
    /// Batches over which the normaliser gathers mean and deviation before it freezes.
    pub normalize_batches: usize,
    /// Decay of the exponential moving average of the weights; 0 switches it off.
    pub ema_decay: f64,
    /// The average over t steps decays by at most (1 + t) / (10 + t), so that the first weights are forgotten soon.
    pub ema_warmup: bool,
    /// Steps between validations; 0 validates at the end of each epoch.
    pub eval_every: usize,
    /// Pictures in the sample grid after every epoch.
    pub sample_count: usize,
    /// Grid points of the sampler, network calls plus one.
    pub sample_steps: usize,
    /// Sampler of the family unet2d.
    pub sampler: SamplerKind,
    /// Where it calls the network.
    pub sample_spacing: SpacingKind,
    /// Added to the points of leading spacing.
    pub sample_offset: usize,
    /// Predicted pictures are clamped to this distance from 0; 0 leaves them as they are.
    pub sample_clip: f64,
    /// They are clamped to, and divided by, this quantile of their own; 0 does neither.
    pub sample_quantile: f64,
    /// The most that the quantile may be.
    pub sample_quantile_max: f64,
    /// Noise of the sampler `ddpm`.
    pub sample_variance: VarianceKind,
    /// The last step ends at a clean picture, not at the schedule's first point.
    pub sample_to_clean: bool,
    /// Worker threads; 0 is one per core. Does not change results.
    pub workers: usize,
    /// Options of the network of the family `unet2d`; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet: Option<UnetConfig>,
}

/// The value of the key `labels` where there are none.
pub const NO_LABELS: &str = "none";

/// Keys that came after the first version: where a complete file (a run's `config.toml`) lacks one, it means the preset `seed`'s value,
/// which is what the version that wrote the file did.
pub const LATER_KEYS: &[&str] = &[
    "beta_start",
    "beta_end",
    "train_timesteps",
    "zero_snr",
    "min_snr_gamma",
    "offset_noise",
    "lr_schedule",
    "lr_warmup",
    "lr_min",
    "grad_clip",
    "accumulate",
    "labels",
    "label_dropout",
    "ema_warmup",
    "normalize",
    "sampler",
    "sample_spacing",
    "sample_offset",
    "sample_clip",
    "sample_quantile",
    "sample_quantile_max",
    "sample_variance",
    "sample_to_clean",
];

/// The keys that determine the shapes of the parameters, and the size of the pictures. A checkpoint fits a configuration that agrees in
/// these (see [`Config::differences`]).
pub const MODEL_KEYS: &[&str] = &["family", "image_size", "channels", "widths", "block_depth", "embedding_dim", "unet"];

impl Config {
    /// Times that the network halves the picture.
    pub fn levels(&self) -> usize {
        match &self.unet {
            Some(unet) => unet.halvings(),
            None => self.widths.len(),
        }
    }

    /// The file of class labels, where there is one.
    pub fn labels_path(&self) -> Option<&std::path::Path> {
        (self.labels != NO_LABELS).then(|| std::path::Path::new(&self.labels))
    }

    /// Classes that the network knows.
    pub fn class_embeds(&self) -> Option<usize> {
        self.unet.as_ref().and_then(|unet| unet.num_class_embeds)
    }

    /// The keys that determine the parameter shapes, with their values, in one line; equal for configurations whose checkpoints fit each
    /// other.
    pub fn model_key(&self) -> String {
        let present = MODEL_KEYS.iter().map(|key| (key, self.get(key))).filter(|(_, value)| !value.is_empty());
        present.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// Those of `keys` in which `self` and `other` differ, with both values: (key, ours, theirs).
    pub fn differences(&self, other: &Config, keys: &[&'static str]) -> Vec<(&'static str, String, String)> {
        let both = keys.iter().map(|&key| (key, self.get(key), other.get(key)));
        both.filter(|(_, ours, theirs)| ours != theirs).collect()
    }
}
