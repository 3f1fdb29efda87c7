//! A run directory as it lies on disk, read without a device: what the table of runs, the figures and the report know of a run.
//!
//! Reading is cheap enough for thousands of runs: of `metrics.jsonl` only the end is read until [`RunRecord::metrics`] asks for all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::metrics::Evaluation;
use crate::train::metrics_log::{self, Record, Split};
use crate::train::run_dir::{self, RunDir};

/// Bytes of the end of `metrics.jsonl` that the last records are looked for in; a record has less than 300.
const TAIL: u64 = 16 << 10;

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It ended: `summary.json` is there.
    Finished,
    /// A process holds its lock.
    Running,
    /// It stopped before its end and can go on.
    Stopped,
}

impl Status {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Status::Finished => "finished",
            Status::Running => "running",
            Status::Stopped => "stopped",
        }
    }
}

/// A run.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// Its folder, as found.
    pub root: PathBuf,
    /// The folder's name.
    pub name: String,
    /// Every key of its configuration with its value as TOML writes it (strings without quotes); options of unet2d as `unet.NAME`.
    pub settings: BTreeMap<String, String>,
    /// How far it has come.
    pub status: Status,
    /// When `config.toml` was written, or written anew by a resume.
    pub begun: Option<SystemTime>,
    /// The last record of training steps.
    pub train: Option<Record>,
    /// The last record of a validation.
    pub valid: Option<Record>,
    /// `summary.json`, where the run has ended: preset, device, parameters, steps, epochs, seconds, images_per_second, ...
    pub summary: Option<serde_json::Value>,
    /// `evaluation.json`, where it was evaluated.
    pub evaluation: Option<Evaluation>,
}

impl RunRecord {
    /// Reads the run that `path` is, or lies in.
    ///
    /// # Errors
    /// [`Error::Input`]: no run, or a file of it that is damaged, by name.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(&RunDir::root_of(path)?)
    }

    fn read(root: &Path) -> Result<Self> {
        let config_path = root.join("config.toml");
        let text = fs::read_to_string(&config_path).map_err(Error::io(&config_path, "read the configuration"))?;
        let table: toml::Table = text.parse().map_err(|why: toml::de::Error| {
            let what = why.message().lines().next().unwrap_or_default().to_string();
            Error::input(&config_path, format!("not TOML: {what}; expected what `ddim-engine train` wrote"))
        })?;
        let summary = read_json(&root.join("summary.json"))?;
        let evaluation = match read_json(&root.join(Evaluation::FILE))? {
            None => None,
            Some(value) => Some(serde_json::from_value(value).map_err(|why| {
                let what = format!("not an evaluation: {why}; make it again with `ddim-engine evaluate`");
                Error::input(root.join(Evaluation::FILE), what)
            })?),
        };
        let status = match &summary {
            // A run that is extended still has the summary of its first end.
            _ if run_dir::is_locked(root) => Status::Running,
            Some(_) => Status::Finished,
            None => Status::Stopped,
        };
        let (train, valid) = last_records(&root.join("metrics.jsonl"))?;
        let whole = fs::canonicalize(root).unwrap_or_else(|_| root.to_path_buf());
        let name = whole.file_name().map_or_else(|| root.display().to_string(), |n| n.to_string_lossy().into_owned());
        let begun = fs::metadata(&config_path).and_then(|meta| meta.modified()).ok();
        let root = root.to_path_buf();
        Ok(RunRecord { root, name, settings: flat(&table), status, begun, train, valid, summary, evaluation })
    }

    /// Optimiser steps done, as far as the records and the summary tell.
    pub fn steps(&self) -> u64 {
        let logged = self.train.iter().chain(&self.valid).map(|record| record.step).max().unwrap_or(0);
        let summed = self.summary.as_ref().and_then(|s| s.get("steps")?.as_u64()).unwrap_or(0);
        logged.max(summed)
    }

    /// Steps of the whole run; None where only the pictures could tell, as no epoch has ended yet.
    pub fn total_steps(&self) -> Option<u64> {
        let number = |key: &str| self.settings.get(key).and_then(|text| text.parse::<u64>().ok());
        if let Some(steps) = number("steps").filter(|steps| *steps > 0) {
            return Some(steps);
        }
        if self.status == Status::Finished {
            return self.summary.as_ref().and_then(|s| s.get("steps")?.as_u64());
        }
        // The validation at the end of an epoch, not one within, has its steps.
        let within = |step: u64| number("eval_every").is_some_and(|every| every > 0 && step.is_multiple_of(every));
        let end = self
            .valid
            .filter(|valid| !within(valid.step) && valid.epoch > 0 && valid.step.is_multiple_of(valid.epoch))?;
        number("epochs").map(|epochs| epochs * (end.step / end.epoch))
    }

    /// The whole configuration.
    ///
    /// # Errors
    /// It is not one of this version.
    pub fn config(&self) -> Result<Config> {
        Config::from_file(&self.root.join("config.toml"))
    }

    /// All records of `metrics.jsonl`, in order.
    ///
    /// # Errors
    /// [`Error::Input`] where there are none, or a line is damaged.
    pub fn metrics(&self) -> Result<Vec<Record>> {
        let path = self.root.join("metrics.jsonl");
        if !path.is_file() {
            let what = "has no metrics.jsonl: nothing has been trained in it yet; expected the folder of a run that has trained";
            return Err(Error::input(&self.root, what));
        }
        let records = metrics_log::read(&path)?;
        if records.is_empty() {
            let what = "metrics.jsonl has no records yet: they come every 10 steps and after every epoch";
            return Err(Error::input(&self.root, what));
        }
        Ok(records)
    }

    /// The sample grids with their epochs, in order.
    ///
    /// # Errors
    /// The folder cannot be read; a run without samples has none.
    pub fn samples(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.root.join("samples");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "list the samples"))? {
            let path = entry.map_err(Error::io(&folder, "list the samples"))?.path();
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let png = path.extension().is_some_and(|e| e == "png");
            if let Some(epoch) = stem.strip_prefix("epoch-").and_then(|n| n.parse().ok()).filter(|_| png) {
                found.push((epoch, path));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// The runs that a path stands for: the run itself, or all runs in a folder and its subfolders (not those within a run), by name.
///
/// Damaged runs are not left out silently: each comes with why it cannot be read.
///
/// # Errors
/// There is no such folder.
pub fn find(path: &Path) -> Result<Vec<(PathBuf, Result<RunRecord>)>> {
    if !path.is_dir() {
        let what = if path.exists() { "is not a folder" } else { "there is no such folder" };
        return Err(Error::input(path, format!("{what}; expected a run, or a folder of runs such as runs/")));
    }
    let mut roots = Vec::new();
    let mut walk = walkdir::WalkDir::new(path).max_depth(4).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let Ok(entry) = entry else { continue };
        if !entry.file_type().is_dir() {
            continue;
        }
        if entry.path().join("config.toml").is_file() {
            roots.push(entry.path().to_path_buf());
            walk.skip_current_dir();
        }
    }
    Ok(roots.into_par_iter().map(|root| (root.clone(), RunRecord::read(&root))).collect())
}

/// A table of keys, that of `[unet]` laid flat.
fn flat(table: &toml::Table) -> BTreeMap<String, String> {
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut settings = BTreeMap::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) => {
                settings.extend(inner.iter().map(|(option, value)| (format!("{name}.{option}"), text(value))));
            }
            value => drop(settings.insert(name.clone(), text(value))),
        }
    }
    settings
}

fn read_json(path: &Path) -> Result<Option<serde_json::Value>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|why| Error::input(path, format!("not JSON: {why}; remove it, or make it again"))),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(Error::io(path, "read")(why)),
    }
}

/// The last records of training and validation, from the end of the file.
fn last_records(path: &Path) -> Result<(Option<Record>, Option<Record>)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok((None, None)),
        Err(why) => return Err(Error::io(path, "read the metrics file")(why)),
    };
    let failed = || Error::io(path, "read the metrics file");
    let len = file.metadata().map_err(failed())?.len();
    let (mut train, mut valid) = (None, None);
    for tail in [TAIL, u64::MAX] {
        let from = len.saturating_sub(tail);
        file.seek(SeekFrom::Start(from)).map_err(failed())?;
        let mut bytes = Vec::new();
        file.by_ref().take(len - from).read_to_end(&mut bytes).map_err(failed())?;
        let mut lines: Vec<_> = bytes.split_inclusive(|&b| b == b'\n').collect();
        if from > 0 && !lines.is_empty() {
            lines.remove(0); // most likely the end of a line
        }
        (train, valid) = (None, None);
        for line in lines {
            // A last line without its line feed was torn by a crash, or is being written.
            let Some(record) = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Record>(line).ok())
            else {
                continue;
            };
            match record.split {
                Split::Train => train = Some(record),
                Split::Valid => valid = Some(record),
            }
        }
        if from == 0 || (train.is_some() && valid.is_some()) {
            break;
        }
    }
    Ok((train, valid))
}
