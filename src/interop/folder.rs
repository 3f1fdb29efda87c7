//! A folder of the diffusers library: which files it has, and their JSON.
//!
//! ```text
//! model_index.json                                 the pipeline's class, and those of its parts
//! unet/config.json                                 options of the network
//! unet/diffusion_pytorch_model.safetensors         its weights
//! scheduler/scheduler_config.json                  noise schedule and sampler
//! ```
//!
//! The network's two files may also lie at the top, with `scheduler_config.json` beside them, as in the first public models.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Names of the files.
pub const INDEX: &str = "model_index.json";
/// Options of the network.
pub const UNET_CONFIG: &str = "config.json";
/// Weights of the network.
pub const UNET_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// Noise schedule and sampler.
pub const SCHEDULER_CONFIG: &str = "scheduler_config.json";

/// Largest JSON file that is read.
const LARGEST_JSON: u64 = 1 << 20;

/// The files of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Options of the network.
    pub unet_config: PathBuf,
    /// Its weights.
    pub weights: PathBuf,
    /// Noise schedule and sampler, where the folder has them.
    pub scheduler: Option<PathBuf>,
}

/// Whether `path` looks like a folder of the diffusers library, whole or not.
pub fn is_folder(path: &Path) -> bool {
    let has = |name: &str| path.join(name).is_file();
    has(INDEX) || has(&format!("unet/{UNET_CONFIG}")) || (has(UNET_CONFIG) && !has("config.toml"))
}

/// Finds the files of a folder.
///
/// # Errors
/// A file that is needed is missing, or lies there in a form that cannot be read.
pub fn find(root: &Path) -> Result<Files> {
    let home = if root.join("unet").is_dir() { root.join("unet") } else { root.to_path_buf() };
    let unet_config = home.join(UNET_CONFIG);
    if !unet_config.is_file() {
        let what =
            format!("no {UNET_CONFIG} in {}; expected a folder that diffusers' save_pretrained made", home.display());
        return Err(Error::input(root, what));
    }
    let weights = find_weights(&home)?;
    let scheduler =
        [root.join("scheduler").join(SCHEDULER_CONFIG), home.join(SCHEDULER_CONFIG), root.join(SCHEDULER_CONFIG)];
    Ok(Files { unet_config, weights, scheduler: scheduler.into_iter().find(|file| file.is_file()) })
}

/// The weights among the files of `home`; a variant such as `diffusion_pytorch_model.fp16.safetensors` where there are no others.
fn find_weights(home: &Path) -> Result<PathBuf> {
    let whole = home.join(UNET_WEIGHTS);
    if whole.is_file() {
        return Ok(whole);
    }
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(home).map_err(Error::io(home, "list the folder"))? {
        let entry = entry.map_err(Error::io(home, "list the folder"))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names.iter().any(|name| name.ends_with(".safetensors.index.json")) {
        let what = "its weights are split over several files, which is not supported; load and save the model with diffusers, with \
                    save_pretrained(FOLDER, max_shard_size=\"100GB\")";
        return Err(Error::input(home, what));
    }
    let variants: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    match variants[..] {
        [only] => return Ok(home.join(only)),
        [] => {}
        _ => {
            let what =
                format!("several weights ({variants:?}) and no {UNET_WEIGHTS}; leave or rename the one that is meant");
            return Err(Error::input(home, what));
        }
    }
    if let Some(pickle) =
        names.iter().find(|name| name.ends_with(".bin") || name.ends_with(".ckpt") || name.ends_with(".pt"))
    {
        let what = format!(
            "found only {pickle}, a pickle that can run any code when it is read; expected {UNET_WEIGHTS}. Convert it once where \
             diffusers is installed: python -c \"from diffusers import UNet2DModel as M; M.from_pretrained('{0}').save_pretrained('{0}')\"",
            home.display()
        );
        return Err(Error::input(home, what));
    }
    Err(Error::input(home, format!("no {UNET_WEIGHTS} beside {UNET_CONFIG}")))
}

/// Reads a file that holds one JSON object.
///
/// # Errors
/// The file cannot be read, is too large, or holds something else.
pub fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(Error::io(path, "read the file"))?;
    let read = file.take(LARGEST_JSON + 1).read_to_string(&mut text);
    if let Err(why) = read {
        return match why.kind() {
            std::io::ErrorKind::InvalidData => Err(Error::input(path, "is not text; expected JSON")),
            _ => Err(Error::io(path, "read the file")(why)),
        };
    }
    if text.len() as u64 > LARGEST_JSON {
        return Err(Error::input(path, "is larger than 1 MiB; expected the JSON of a few options"));
    }
    // Python writes numbers that JSON does not have, such as `lambda_min_clipped` of a scheduler.
    let text = text.replace(": -Infinity", ": null").replace(": Infinity", ": null").replace(": NaN", ": null");
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "a list",
                _ => "a single value",
            };
            Err(Error::input(path, format!("holds {kind}; expected a JSON object of options")))
        }
        Err(why) => Err(Error::input(path, format!("is not JSON: {why}"))),
    }
}

/// Writes a JSON object as diffusers does: two spaces, a line end behind.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, map: &Map<String, Value>) -> Result<()> {
    let text = serde_json::to_string_pretty(map)
        .map_err(|why| Error::Failed(format!("{}: cannot write the options: {why}", path.display())))?;
    fs::write(path, format!("{text}\n")).map_err(Error::io(path, "write the options"))
}
