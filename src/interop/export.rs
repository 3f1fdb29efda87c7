//! Writing models for other programs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{Config, Family};
use crate::error::{Error, Result};
use crate::interop::import::{CONFIG_KEY, expected};
use crate::interop::{folder, scheduler, weights};
use crate::sample::{self, WeightKind};
use crate::train::progress::Progress;
use crate::train::tensor_file::{self, NamedTensor};
use crate::train::trainer::{NORMALIZER_MEAN, NORMALIZER_STD};

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// A run, a checkpoint or a model file.
    pub source: PathBuf,
    /// A new folder for the diffusers library, or a file that ends in `.safetensors`.
    pub out: PathBuf,
    /// Which weights.
    pub weights: WeightKind,
    /// Write a folder even where the library would show the pictures in other colours.
    pub allow_normalizer: bool,
}

/// Writes a model: a folder that the diffusers library loads (family `unet2d`), or one file of its tensors (any family).
///
/// Returns lines that say what was written.
///
/// # Errors
/// No such model; a family, schedule or normaliser that the library does not have, with what to do; files that cannot be written.
pub fn export(options: &ExportOptions, progress: &Progress) -> Result<Vec<String>> {
    let loaded = sample::load(&options.source, options.weights, progress)?;
    let kind = if loaded.averaged { "moving average of the weights" } else { "weights as trained" };
    let (pixels, tensors): (Vec<NamedTensor>, Vec<NamedTensor>) =
        loaded.tensors.into_iter().partition(|t| t.name == NORMALIZER_MEAN || t.name == NORMALIZER_STD);
    let tensors = weights::fit(&loaded.path, tensors, &expected(&loaded.config)?)?;
    let out = &options.out;
    if out.extension() == Some(OsStr::new("safetensors")) {
        let config = (CONFIG_KEY.to_string(), loaded.config.to_toml());
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string()), config]);
        let count = tensors.len();
        tensor_file::write(out, &metadata, &[tensors, pixels].concat())?;
        return Ok(vec![format!("{count} tensors ({kind}) and the normaliser in {}", out.display())]);
    }
    let mut lines = Vec::new();
    if let Some(colours) = other_colours(&pixels) {
        let told = format!(
            "the model's pixels are normalised by {colours}, and the library's models see [-1, 1] (normalize = fixed)"
        );
        if !options.allow_normalizer {
            return Err(Error::input(
                &loaded.path,
                format!(
                    "{told}: its pictures would come out in other colours; --allow-normalizer writes it all the same"
                ),
            ));
        }
        lines.push(format!("{told}: pixel = mean + deviation * sample, instead of 0.5 + 0.5 * sample"));
    }
    lines.extend(write_folder(out, &loaded.path, &loaded.config, &tensors)?);
    lines.push(format!("{} tensors ({kind}) in {}", tensors.len(), out.display()));
    Ok(lines)
}

/// Mean and deviation as text, where they are not 0.5.
fn other_colours(pixels: &[NamedTensor]) -> Option<String> {
    let near = |t: &NamedTensor| t.data.iter().all(|v| (v - 0.5).abs() < 1e-6);
    if pixels.len() == 2 && pixels.iter().all(near) {
        return None;
    }
    let of = |name: &str| pixels.iter().find(|t| t.name == name).map(|t| format!("{:?}", t.data)).unwrap_or_default();
    Some(format!("mean {} and deviation {}", of(NORMALIZER_MEAN), of(NORMALIZER_STD)))
}

fn write_folder(out: &Path, source: &Path, config: &Config, tensors: &[NamedTensor]) -> Result<Vec<String>> {
    let unet = match (config.family, &config.unet) {
        (Family::Unet2d, Some(unet)) => unet,
        _ => {
            let what = "is of the family seed, which the diffusers library does not have; its weights travel as a file: \
                        --out NAME.safetensors";
            return Err(Error::input(source, what));
        }
    };
    let written = scheduler::write(config).map_err(|what| Error::input(source, what))?;
    if out.exists() && !fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(Error::input(out, "exists and is not an empty folder; expected a new one (--out)"));
    }
    let (network, schedule) = (out.join("unet"), out.join("scheduler"));
    for folder in [&network, &schedule] {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
    }
    let mut options = unet.to_diffusers(config.image_size, config.channels);
    options.insert("_diffusers_version".into(), json!(scheduler::DIFFUSERS));
    folder::write_json(&network.join(folder::UNET_CONFIG), &options)?;
    folder::write_json(&schedule.join(folder::SCHEDULER_CONFIG), &written.json)?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    tensor_file::write(&network.join(folder::UNET_WEIGHTS), &metadata, tensors)?;
    // Last: without it, the folder is none.
    let mut index = Map::new();
    let mut put = |name: &str, value: Value| index.insert(name.into(), value);
    put("_class_name", json!(written.pipeline));
    put("_diffusers_version", json!(scheduler::DIFFUSERS));
    put("scheduler", json!(["diffusers", written.class]));
    put("unet", json!(["diffusers", "UNet2DModel"]));
    folder::write_json(&out.join(folder::INDEX), &index)?;
    Ok(written.notes)
}
