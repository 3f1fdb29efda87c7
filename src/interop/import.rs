//! Reading models of other programs, and runs made of them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Config, Family, Layers, LossKind, MODEL_KEYS, Normalize, UnetConfig};
use crate::device::cpu::Cpu;
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::interop::weights::Expected;
use crate::interop::{folder, scheduler, weights};
use crate::model::Net;
use crate::train::checkpoint;
use crate::train::first;
use crate::train::run_dir::RunDir;
use crate::train::tensor_file::{self, NamedTensor};
use crate::train::trainer::{NORMALIZER_MEAN, NORMALIZER_STD};

/// Key of the configuration in the metadata of our own model files.
pub(super) const CONFIG_KEY: &str = "ddim_engine.config";

/// A model as it was read.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its configuration, with settings of training that a user may change.
    pub config: Config,
    /// Weights and normaliser, under the names and in the order of our model files.
    pub tensors: Vec<NamedTensor>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// What to import, and where to.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// A folder of the diffusers library, or a safetensors file.
    pub source: PathBuf,
    /// The run's folder, which is made.
    pub out: PathBuf,
    /// Settings on top of what the source says.
    pub layers: Layers,
}

/// Settings of training for a model that is imported: those of a preset, with the objective of the models that the library trains.
fn base() -> Config {
    Config {
        family: Family::Unet2d,
        unet: Some(UnetConfig::default()),
        loss: LossKind::Mse,
        lr: 1e-4,
        normalize: Normalize::Fixed,
        ema_decay: 0.9999,
        ..Config::quick_preset()
    }
}

/// Reads a folder of the diffusers library. `layers` (but for its preset) are put on top of what the folder says.
///
/// # Errors
/// Files that are missing or damaged, options that are not supported, weights that do not fit the options; each by name.
pub fn load_folder(path: &Path, layers: &Layers) -> Result<Imported> {
    let files = folder::find(path)?;
    let options = folder::read_json(&files.unet_config)?;
    let read = UnetConfig::from_diffusers(&options).map_err(|what| Error::input(&files.unet_config, what))?;
    let mut notes = Vec::new();
    let mut config = Config { channels: read.channels, unet: Some(read.unet), ..base() };
    match &files.scheduler {
        Some(file) => {
            let json = folder::read_json(file)?;
            scheduler::read(&json, &mut config).map_err(|what| Error::input(file, what))?;
        }
        None => {
            scheduler::read(&serde_json::Map::new(), &mut config).map_err(|what| Error::input(path, what))?;
            let what = format!("no {}; DDIM's defaults are taken: linear betas, epsilon", folder::SCHEDULER_CONFIG);
            notes.push(format!("{}: {what}", path.display()));
        }
    }
    let given = |key: &str| layers.sets.iter().any(|set| set.trim_start().starts_with(&format!("{key}=")));
    match read.image_size {
        Some(size) => config.image_size = size,
        None if given("image_size") => {}
        None => {
            let what = "`sample_size` is not given, so the size of the pictures is not known; give it: import FOLDER --set image_size=32";
            return Err(Error::input(&files.unet_config, what));
        }
    }
    // Before the user's settings: what does not fit is then the folder's.
    if read.image_size.is_some() {
        config.validate().map_err(|why| Error::input(path, why.to_string()))?;
    }
    let config = overlaid(&config, layers, path, read.image_size.is_some())?;
    let (found, more) = weights::read(&files.weights)?;
    notes.extend(more);
    let mut tensors = weights::fit(&files.weights, found, &expected(&config)?)?;
    tensors.extend(first::normalizer_tensors(&Normalizer::fixed(config.channels)));
    Ok(Imported { config, tensors, notes })
}

/// Reads a safetensors file of weights under our names (for the family `seed`, those of the published network; for `unet2d`, the
/// library's). The configuration is the file's own, or else that of `layers`.
///
/// # Errors
/// The file is damaged, or its tensors do not fit the configuration.
pub fn load_file(path: &Path, layers: &Layers) -> Result<Imported> {
    let contents = tensor_file::read_any_float(path)?;
    let mut notes = Vec::new();
    let mut config = match contents.metadata.get(CONFIG_KEY) {
        Some(text) => overlaid(&Config::from_toml(text)?, layers, path, true)?,
        None => {
            notes.push(format!(
                "{}: carries no configuration; that of the preset {} with your settings is taken",
                path.display(),
                layers.preset_name()
            ));
            Config::resolve(layers)?
        }
    };
    let (mut found, mut pixels) = (contents.tensors, Vec::new());
    for name in [NORMALIZER_MEAN, NORMALIZER_STD] {
        if let Some(i) = found.iter().position(|t| t.name == name) {
            pixels.push(found.remove(i));
        }
    }
    let mut tensors = weights::fit(path, found, &expected(&config)?)?;
    match &pixels[..] {
        [mean, std] => {
            if let Some(wrong) = [mean, std].into_iter().find(|t| t.shape != [config.channels]) {
                let what =
                    format!("tensor `{}` has shape {:?}, expected [{}]", wrong.name, wrong.shape, config.channels);
                return Err(Error::input(path, what));
            }
            tensors.extend(pixels);
        }
        _ => {
            config.normalize = Normalize::Fixed;
            tensors.extend(first::normalizer_tensors(&Normalizer::fixed(config.channels)));
            let names = format!("{NORMALIZER_MEAN} and {NORMALIZER_STD}");
            notes.push(format!("{}: no {names}: its pixels are taken to lie in [-1, 1]", path.display()));
        }
    }
    Ok(Imported { config, tensors, notes })
}

/// `layers` on top of a configuration that is the source's: what the source says of the network stays.
fn overlaid(own: &Config, layers: &Layers, path: &Path, sized: bool) -> Result<Config> {
    let config = own.with(layers)?;
    let fixed: Vec<&str> = MODEL_KEYS.iter().copied().filter(|key| sized || *key != "image_size").collect();
    match config.differences(own, &fixed).first() {
        None => Ok(config),
        Some((key, ours, theirs)) => Err(Error::Usage(format!(
            "{key} is {ours} in your settings, and {} says {theirs}: a network's shape cannot be changed; leave {key} out",
            path.display()
        ))),
    }
}

/// Names and shapes of the tensors of a configuration's network.
pub(super) fn expected(config: &Config) -> Result<Vec<Expected>> {
    let net = Net::new(config)?;
    Ok(net.layout().specs().iter().map(|spec| (spec.name.clone(), spec.shape.file_shape())).collect())
}

/// Makes a run of a model: its configuration and a checkpoint at step 0, from which samples are drawn and training goes on.
///
/// Returns lines that say what was made.
///
/// # Errors
/// As for [`load_folder`] and [`load_file`]; the run's folder is not empty or cannot be written.
pub fn import(options: &ImportOptions) -> Result<Vec<String>> {
    let source = &options.source;
    let model = if source.is_dir() {
        if !folder::is_folder(source) {
            let what = "not a folder of the diffusers library: neither model_index.json nor unet/config.json nor config.json in it";
            return Err(Error::input(source, what));
        }
        load_folder(source, &options.layers)?
    } else if source.is_file() {
        load_file(source, &options.layers)?
    } else {
        return Err(Error::input(source, "no such file or folder"));
    };
    if options.out.is_dir() && fs::read_dir(&options.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(&options.out, "is not empty; expected a new folder for the run (--out)"));
    }
    let values = |name: &str| {
        let tensor = model.tensors.iter().find(|t| t.name == name);
        tensor.map(|t| &t.data[..]).ok_or_else(|| Error::input(source, format!("tensor `{name}` is missing")))
    };
    let normalizer = Normalizer::frozen(values(NORMALIZER_MEAN)?, values(NORMALIZER_STD)?);
    let cpu = Cpu::new(1)?;
    let origin = format!("import of {}", source.display());
    let first = first::checkpoint(&cpu, &model.config, &model.tensors, normalizer, &origin)?;
    let run = RunDir::create(Some(&options.out), "import")?;
    run.write_config(&model.config.to_toml())?;
    let saved = checkpoint::save(&run.checkpoints(), &first)?;
    let parameters: usize = model.tensors.iter().map(|t| t.data.len()).sum::<usize>() - 2 * model.config.channels;
    let mut lines = model.notes;
    lines.push(format!("{} tensors, {parameters} numbers, in {}", model.tensors.len() - 2, saved.display()));
    Ok(lines)
}
