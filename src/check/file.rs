//! The `config` of a reference file: what the file's numbers were made with, for both families.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Reference;
use crate::config::{Config, Family, LossKind, Predict, ScheduleKind, UnetConfig};
use crate::error::{Error, Result};
use crate::interop::scheduler;
use crate::model::params::Spec;

/// Family seed.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedFile {
    #[allow(dead_code)] // read to be accepted; the caller dispatches on it
    family: String,
    channels: usize,
    image_size: usize,
    embedding_dim: usize,
    widths: Vec<usize>,
    block_depth: usize,
    schedule: ScheduleKind,
    min_signal_rate: f64,
    max_signal_rate: f64,
    predict: Predict,
    loss: LossKind,
    batch: usize,
    train_steps: usize,
    lr: f64,
    weight_decay: f64,
    sample_steps: usize,
    samples: usize,
}

/// Family unet2d.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Unet2dFile {
    #[allow(dead_code)] // read to be accepted; the caller dispatches on it
    family: String,
    channels: usize,
    image_size: usize,
    loss: LossKind,
    batch: usize,
    train_steps: usize,
    lr: f64,
    weight_decay: f64,
    sample_steps: usize,
    samples: usize,
    /// Keys of the library's `UNet2DModel`.
    unet: serde_json::Map<String, Value>,
    /// Keys of its `DDIMScheduler`.
    scheduler: serde_json::Map<String, Value>,
}

/// What a file's numbers were made with.
pub(super) struct Case {
    pub config: Config,
    pub batch: usize,
    pub train_steps: usize,
    pub sample_steps: usize,
    pub samples: usize,
}

impl Case {
    /// Reads the metadata.
    pub fn read(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let format = metadata.get("format").map_or("", String::as_str);
        if format != "ddim-engine-reference/1" {
            let what = format!("its metadata `format` is `{format}`, expected `ddim-engine-reference/1`");
            return Err(Error::input(path, format!("not a reference file: {what}")));
        }
        let text = metadata.get("config").ok_or_else(|| Error::input(path, "its metadata has no `config`"))?;
        let bad = |e: String| Error::input(path, format!("its `config` cannot be used: {e}"));
        let family = serde_json::from_str::<Value>(text).map_err(|e| bad(e.to_string()))?;
        let case = match family.get("family").and_then(|f| f.as_str()) {
            Some("seed") => seed(serde_json::from_str(text).map_err(|e| bad(e.to_string()))?),
            Some("unet2d") => unet2d(serde_json::from_str(text).map_err(|e| bad(e.to_string()))?),
            other => {
                let what =
                    format!("family {} is not known; this version knows seed and unet2d", other.unwrap_or("(none)"));
                return Err(Error::input(path, what));
            }
        };
        let case = case.map_err(bad)?;
        if case.batch == 0 || case.samples == 0 {
            return Err(bad("batch and samples must be at least 1".into()));
        }
        Ok(case)
    }

    /// What stands before a parameter's name: what is not learned is a buffer, but for the frequencies of a fourier embedding, which the
    /// library counts among the parameters.
    pub fn prefix(&self, spec: &Spec) -> &'static str {
        if spec.learned || self.config.family == Family::Unet2d { "param" } else { "buffer" }
    }

    /// The diffusion times of the batch, in [0, 1].
    pub fn times(&self, r: &mut Reference<'_>) -> Result<Vec<f32>> {
        if self.config.family == Family::Seed {
            return r.take("input.times", &[self.batch]);
        }
        // The middle of the share of [0, 1) that means the timestep.
        let steps = self.config.train_timesteps as f32;
        Ok(r.take("input.timesteps", &[self.batch])?.into_iter().map(|t| (t + 0.5) / steps).collect())
    }

    /// The network knows classes.
    pub fn has_labels(&self) -> bool {
        self.config.unet.as_ref().is_some_and(|unet| unet.num_class_embeds.is_some())
    }

    /// The tensors that hold signal and noise rates.
    pub fn rates(&self) -> &'static [&'static str] {
        match self.config.family {
            Family::Seed => &["expect.signal_rates", "expect.noise_rates"],
            Family::Unet2d => &[],
        }
    }
}

fn seed(f: SeedFile) -> std::result::Result<Case, String> {
    let config = Config {
        channels: f.channels,
        image_size: f.image_size,
        embedding_dim: f.embedding_dim,
        widths: f.widths.clone(),
        block_depth: f.block_depth,
        schedule: f.schedule,
        min_signal_rate: f.min_signal_rate,
        max_signal_rate: f.max_signal_rate,
        predict: f.predict,
        loss: f.loss,
        lr: f.lr,
        weight_decay: f.weight_decay,
        ..Config::seed_preset()
    };
    let levels = f.widths.len();
    let fits = (1..=16).contains(&levels)
        && f.image_size > 0
        && f.image_size.is_multiple_of(1 << levels)
        && f.embedding_dim > 0
        && f.embedding_dim.is_multiple_of(2)
        && f.block_depth > 0
        && f.channels > 0
        && f.sample_steps > 1
        && f.widths.iter().all(|&w| w > 0);
    if !fits {
        return Err("it describes no usable network".into());
    }
    Ok(Case { config, batch: f.batch, train_steps: f.train_steps, sample_steps: f.sample_steps, samples: f.samples })
}

fn unet2d(f: Unet2dFile) -> std::result::Result<Case, String> {
    // The library's channels come from the file, not from the keys of its network.
    let mut keys = f.unet;
    for name in ["in_channels", "out_channels"] {
        keys.insert(name.into(), f.channels.into());
    }
    let unet = UnetConfig::from_diffusers(&keys).map_err(|why| format!("`unet`: {why}"))?.unet;
    let size = 1 << unet.halvings();
    if f.image_size == 0 || !f.image_size.is_multiple_of(size) {
        return Err(format!("`image_size` {} must be a multiple of {size}", f.image_size));
    }
    let mut config = Config {
        family: Family::Unet2d,
        channels: f.channels,
        image_size: f.image_size,
        loss: f.loss,
        lr: f.lr,
        weight_decay: f.weight_decay,
        unet: Some(unet),
        ..Config::seed_preset()
    };
    scheduler::read(&f.scheduler, &mut config).map_err(|why| format!("`scheduler`: {why}"))?;
    Ok(Case { config, batch: f.batch, train_steps: f.train_steps, sample_steps: f.sample_steps, samples: f.samples })
}
