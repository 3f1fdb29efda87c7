//! Models as they lie on disk, made ready to draw.

use std::path::{Path, PathBuf};

use super::{Model, WeightKind};
use crate::config::{Config, Layers};
use crate::diffusion::Diffusion;
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::interop;
use crate::model::Net;
use crate::model::params::Weights;
use crate::ops::Backend;
use crate::train::checkpoint;
use crate::train::progress::Progress;
use crate::train::run_dir::RunDir;
use crate::train::state::import_model;
use crate::train::tensor_file::NamedTensor;
use crate::train::trainer::{NORMALIZER_MEAN, NORMALIZER_STD};

/// A model as read from disk.
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    pub(crate) config: Config,
    pub(crate) tensors: Vec<NamedTensor>,
    pub(crate) averaged: bool,
    /// Steps of training; 0 where the model does not tell.
    pub(crate) step: u64,
    /// Of the pictures that it was trained on; empty where the model does not tell.
    pub(crate) fingerprint: String,
}

impl Loaded {
    /// Mean and deviation of every channel, as the network saw its pictures.
    ///
    /// # Errors
    /// They are missing.
    pub(crate) fn mean_std(&self) -> Result<[Vec<f32>; 2]> {
        let of = |name| normalizer(&self.tensors, name, self.config.channels, &self.path);
        Ok([of(NORMALIZER_MEAN)?, of(NORMALIZER_STD)?])
    }
}

/// Reads a run, a checkpoint, a model file or a folder of the diffusers library, and picks the weights.
pub(crate) fn load(source: &Path, kind: WeightKind, progress: &Progress) -> Result<Loaded> {
    if interop::folder::is_folder(source) {
        if kind == WeightKind::Ema {
            let what =
                "a folder of the diffusers library holds one set of weights, no moving average; use --weights auto";
            return Err(Error::input(source, what));
        }
        let model = interop::load_folder(source, &Layers::default())?;
        model.notes.iter().for_each(|note| progress.line(note));
        let path = source.to_path_buf();
        let (config, tensors, fingerprint) = (model.config, model.tensors, String::new());
        return Ok(Loaded { path, config, tensors, averaged: false, step: 0, fingerprint });
    }
    let bare = source.is_file();
    let bad = |what: String| Error::input(source, what);
    let (path, config, mut model, optimizer, (step, state)) = if bare {
        let file = checkpoint::load_model_file(source)?;
        let config = file.config_toml.ok_or_else(|| bad("carries no configuration of this program".into()))?;
        (file.path, config, file.tensors, Vec::new(), file.step_and_state.unwrap_or_default())
    } else {
        let is_one = source.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
        let path = if is_one {
            source.to_path_buf()
        } else {
            let root = RunDir::root_of(source)?;
            let latest = checkpoint::latest(&root)?;
            let latest = latest.ok_or_else(|| bad("has no checkpoint yet; train it first".into()))?;
            latest.skipped.iter().for_each(|damaged| progress.line(&damaged.passed_over()));
            latest.path
        };
        let c = checkpoint::load(&path)?;
        (path, c.config_toml, c.model, c.optimizer, (c.step, c.state))
    };
    let config = Config::from_toml(&config)?;
    config.validate()?;
    let averages = optimizer.iter().any(|t| t.name.starts_with("ema."));
    if kind == WeightKind::Ema && !averages {
        let why = if bare { "a model file holds the weights as trained" } else { "ema_decay is 0" };
        return Err(bad(format!("has no moving average ({why}); use --weights raw")));
    }
    let averaged = averages && kind != WeightKind::Raw;
    if averaged {
        for tensor in optimizer {
            if let Some(name) = tensor.name.strip_prefix("ema.")
                && let Some(raw) = model.iter_mut().find(|t| t.name == name)
            {
                raw.data = tensor.data;
            }
        }
    }
    let fingerprint = state["fingerprint"].as_str().unwrap_or_default().to_string();
    Ok(Loaded { path, config, tensors: model, averaged, step, fingerprint })
}

fn normalizer(tensors: &[NamedTensor], name: &str, channels: usize, path: &Path) -> Result<Vec<f32>> {
    match tensors.iter().find(|t| t.name == name) {
        Some(t) if t.data.len() == channels => Ok(t.data.clone()),
        _ => Err(Error::input(path, format!("tensor `{name}` is missing or not of {channels} channels"))),
    }
}

/// A model on a device.
pub(crate) struct Ready<B: Backend> {
    pub config: Config,
    pub net: Net,
    pub weights: Weights<B>,
    pub diffusion: Diffusion,
    /// As [`Loaded`] has them.
    pub averaged: bool,
    pub step: u64,
    pub fingerprint: String,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl<B: Backend> Ready<B> {
    /// Reads a model, brings it to the device, and says which it is.
    pub fn new(backend: &B, source: &Path, kind: WeightKind, progress: &Progress) -> Result<Self> {
        let loaded = load(source, kind, progress)?;
        let [mean, std] = loaded.mean_std()?;
        let Loaded { path, config, tensors, averaged, step, fingerprint } = loaded;
        let net = Net::new(&config)?;
        let mut weights = Weights::init(backend, net.layout(), 0)?;
        import_model(backend, &mut weights, &tensors)?;
        let kind = if averaged { "moving average" } else { "weights as trained" };
        progress.line(&format!("model   {} ({kind})", path.display()));
        let diffusion = Diffusion::new(&config)?;
        Ok(Ready { config, net, weights, diffusion, averaged, step, fingerprint, mean, std })
    }

    /// The normaliser.
    pub fn normalizer(&self) -> Normalizer {
        Normalizer::frozen(&self.mean, &self.std)
    }

    /// What draws, and the weights.
    pub fn parts(&mut self) -> (Model<'_>, &mut Weights<B>, &Config) {
        let (mean, std) = (self.mean.clone(), self.std.clone());
        (Model { net: &self.net, diffusion: &self.diffusion, mean, std }, &mut self.weights, &self.config)
    }
}
