//! The presets: complete configurations to start from.

use super::sampling::*;
use super::{
    Config, Family, LossKind, LrSchedule, NO_LABELS, Normalize, OptimizerKind, Precision, Predict, ScheduleKind,
    UnetConfig, keys, unet,
};
use crate::error::{Error, Result};

/// The presets, and what each is for.
pub const PRESETS: &[(&str, &str)] = &[
    ("quick", "32x32 pictures made by the program; minutes on a CPU, nothing to download"),
    ("seed", "the settings of \"De-noising Diffusion with torch\": flowers at 64x64, 50 epochs"),
    ("unet2d-tiny", "diffusers' UNet2DModel, small, at 32x32; minutes on a CPU"),
    ("unet2d-32", "the same of the size of DDPM's for CIFAR-10, at 32x32; for a GPU"),
    ("unet2d-64", "the same at 64x64; for a GPU"),
];

impl Config {
    /// The seed's settings (preset `seed`): flowers at 64x64, 3,562,211 parameters.
    pub fn seed_preset() -> Self {
        Config {
            family: Family::Seed,
            image_size: 64,
            channels: 3,
            widths: vec![32, 64, 96, 128],
            block_depth: 2,
            embedding_dim: 32,
            schedule: ScheduleKind::Cosine,
            beta_start: 1e-4,
            beta_end: 0.02,
            train_timesteps: 1000,
            zero_snr: false,
            min_signal_rate: 0.02,
            max_signal_rate: 0.95,
            predict: Predict::Noise,
            loss: LossKind::Mae,
            min_snr_gamma: 0.0,
            offset_noise: 0.0,
            optimizer: OptimizerKind::AdamW,
            lr: 1e-3,
            lr_schedule: LrSchedule::Constant,
            lr_warmup: 0,
            lr_min: 0.0,
            weight_decay: 1e-4,
            grad_clip: 0.0,
            batch_size: 64,
            accumulate: 1,
            epochs: 50,
            steps: 0,
            seed: 0,
            precision: Precision::Auto,
            data: "flowers".into(),
            labels: NO_LABELS.into(),
            label_dropout: 0.0,
            repeat: 5,
            flip: false,
            valid_fraction: 0.2,
            normalize: Normalize::Measured,
            normalize_batches: 55,
            ema_decay: 0.0,
            ema_warmup: true,
            eval_every: 0,
            sample_count: 36,
            sample_steps: 20,
            sampler: SamplerKind::Ddim,
            sample_spacing: SpacingKind::Leading,
            sample_offset: 0,
            sample_clip: 0.0,
            sample_quantile: 0.0,
            sample_quantile_max: 1.0,
            sample_variance: VarianceKind::Small,
            sample_to_clean: true,
            workers: 0,
            unet: None,
        }
    }
    /// The preset for a machine without a GPU: small, procedural pictures, minutes on two cores.
    pub fn quick_preset() -> Self {
        Config {
            image_size: 32,
            widths: vec![32, 64, 96],
            block_depth: 1,
            lr: 2e-3,
            batch_size: 32,
            epochs: 8,
            data: "procedural".into(),
            repeat: 1,
            flip: true,
            normalize_batches: 20,
            ema_decay: 0.995,
            ..Config::seed_preset()
        }
    }

    /// A small network of the family unet2d that two cores train in minutes (preset `unet2d-tiny`): 32x32, attention at 8x8.
    pub fn unet2d_tiny_preset() -> Self {
        Config {
            family: Family::Unet2d,
            image_size: 32,
            schedule: ScheduleKind::SquaredcosCapV2,
            predict: Predict::Velocity,
            loss: LossKind::Mse,
            lr: 1e-3,
            lr_warmup: 100,
            grad_clip: 1.0,
            batch_size: 32,
            epochs: 4,
            data: "procedural".into(),
            repeat: 1,
            flip: true,
            valid_fraction: 0.1,
            normalize: Normalize::Fixed,
            ema_decay: 0.995,
            sample_spacing: SpacingKind::Trailing,
            sample_clip: 1.0,
            unet: Some(UnetConfig::default()),
            ..Config::seed_preset()
        }
    }

    /// A network of the family unet2d of the size of DDPM's for CIFAR-10 (preset `unet2d-32`), for one GPU.
    pub fn unet2d_32_preset() -> Self {
        use unet::{DownBlock, UpBlock};
        Config {
            lr: 2e-4,
            lr_schedule: LrSchedule::Cosine,
            lr_warmup: 500,
            batch_size: 128,
            epochs: 500,
            data: "flowers".into(),
            ema_decay: 0.9999,
            unet: Some(UnetConfig {
                block_out_channels: vec![128, 256, 256, 256],
                layers_per_block: 2,
                down_block_types: vec![
                    DownBlock::DownBlock2D,
                    DownBlock::AttnDownBlock2D,
                    DownBlock::DownBlock2D,
                    DownBlock::DownBlock2D,
                ],
                up_block_types: vec![
                    UpBlock::UpBlock2D,
                    UpBlock::UpBlock2D,
                    UpBlock::AttnUpBlock2D,
                    UpBlock::UpBlock2D,
                ],
                attention_head_dim: Some(64),
                norm_num_groups: 32,
                dropout: 0.1,
                ..UnetConfig::default()
            }),
            ..Config::unet2d_tiny_preset()
        }
    }

    /// The same for pictures of 64x64, with attention at 16x16 and 8x8 (preset `unet2d-64`), for one GPU.
    pub fn unet2d_64_preset() -> Self {
        use unet::{DownBlock, UpBlock};
        Config {
            image_size: 64,
            batch_size: 64,
            epochs: 300,
            unet: Some(UnetConfig {
                block_out_channels: vec![128, 256, 384, 512],
                layers_per_block: 2,
                down_block_types: vec![
                    DownBlock::DownBlock2D,
                    DownBlock::DownBlock2D,
                    DownBlock::AttnDownBlock2D,
                    DownBlock::AttnDownBlock2D,
                ],
                up_block_types: vec![
                    UpBlock::AttnUpBlock2D,
                    UpBlock::AttnUpBlock2D,
                    UpBlock::UpBlock2D,
                    UpBlock::UpBlock2D,
                ],
                attention_head_dim: Some(64),
                norm_num_groups: 32,
                ..UnetConfig::default()
            }),
            ..Config::unet2d_32_preset()
        }
    }

    /// How often the preset called `preset` shows the pictures of `data` in an epoch, where that is not its key `repeat`.
    pub(super) fn repeat_for(preset: &str, data: &str) -> Option<usize> {
        (preset == "seed" && data == "pets").then_some(3)
    }

    /// The preset that runs where none is named.
    pub fn default_preset_name() -> &'static str {
        "quick"
    }

    /// The preset called `name`.
    ///
    /// # Errors
    /// There is none; the message lists those that exist.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "quick" => Ok(Config::quick_preset()),
            "seed" => Ok(Config::seed_preset()),
            "unet2d-tiny" => Ok(Config::unet2d_tiny_preset()),
            "unet2d-32" => Ok(Config::unet2d_32_preset()),
            "unet2d-64" => Ok(Config::unet2d_64_preset()),
            _ => Err(Error::Usage(unknown_preset(name))),
        }
    }
}

/// What to say about a preset that does not exist.
fn unknown_preset(name: &str) -> String {
    let nearest = keys::nearest(name, PRESETS.iter().map(|(preset, _)| *preset));
    let hint = nearest.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    let mut text = format!("unknown preset `{}`{hint}", keys::shown(name));
    text.push_str("\npresets:");
    for (preset, about) in PRESETS {
        text.push_str(&format!("\n  {preset:<11} {about}"));
    }
    text
}
