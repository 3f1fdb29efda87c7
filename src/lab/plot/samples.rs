//! A row of pictures for each of several runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::rows::{draw, side};
use super::{Drawing, Row, Sheet};
use crate::diffusion::sampler::Way;
use crate::diffusion::samplers::{Method, Wishes};
use crate::error::{Error, Result};
use crate::interop;
use crate::lab::record::{self, RunRecord, Status};
use crate::lab::runs::Row as Listed;
use crate::lab::runs::columns::{Cell, differing, plain, setting};
use crate::ops::Backend;
use crate::sample::{Ready, WeightKind};
use crate::train::progress::Progress;
use crate::train::run_dir::RunDir;

/// Settings that do not change what a model learns.
const IGNORED: &[&str] = &["workers", "eval_every", "sample_count", "sample_steps"];
/// Settings whose value is a place: its last part says enough.
const PLACES: &[&str] = &["data", "labels"];
/// Most lines of a label.
const LINES: usize = 6;
/// Most characters of a line.
const WIDTH: usize = 36;

/// A model and how its row is labelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Lines of the label.
    pub label: Vec<String>,
}

/// The models that paths stand for, and lines about runs in folders that are passed over: those that are not finished, or damaged.
///
/// # Errors
/// There is nothing there, no finished run in a folder, or a run that was named is damaged.
pub fn entries(paths: &[PathBuf]) -> Result<(Vec<Entry>, Vec<String>)> {
    let (mut found, mut notes, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut add = |source: &Path, name: String, run: Option<RunRecord>| {
        if seen.insert(fs::canonicalize(source).unwrap_or_else(|_| source.to_path_buf())) {
            found.push((source.to_path_buf(), name, run));
        }
    };
    for path in paths {
        if path.is_file() || interop::folder::is_folder(path) {
            let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
            add(path, name, None);
        } else if path.exists() && RunDir::root_of(path).is_ok() {
            let run = RunRecord::open(path)?;
            add(path, run.name.clone(), Some(run));
        } else {
            let mut none = true;
            for (root, run) in record::find(path)? {
                match run {
                    Ok(run) if run.status == Status::Finished => {
                        none = false;
                        add(&root, run.name.clone(), Some(run));
                    }
                    Ok(run) => notes.push(format!("passed over: {} ({})", root.display(), run.status.name())),
                    Err(why) => notes.push(format!("passed over: {}: {why}", root.display())),
                }
            }
            if none {
                let what = "has no finished run; name a run itself to draw with its newest checkpoint";
                return Err(Error::input(path, [&[what.to_string()], &notes[..]].concat().join("\n")));
            }
        }
    }
    Ok((labelled(found), notes))
}

/// Labels each with the settings in which it may differ from the others.
fn labelled(found: Vec<(PathBuf, String, Option<RunRecord>)>) -> Vec<Entry> {
    let rows: Vec<Option<Listed>> = found
        .iter()
        .map(|(_, name, run)| run.clone().map(|run| Listed { name: name.clone(), run: shortened(run) }))
        .collect();
    let runs: Vec<Listed> = rows.iter().flatten().cloned().collect();
    let keys: Vec<String> = differing(&runs).into_iter().filter(|key| !IGNORED.contains(&key.as_str())).collect();
    let lines = |row: &Listed| -> Vec<String> {
        let line = |key: &String| match setting(row, key) {
            Cell::Nothing => None,
            cell => Some(cut(&format!("{key} {}", plain(&cell)))),
        };
        let mut lines: Vec<String> = keys.iter().filter_map(line).collect();
        if lines.len() > LINES {
            let more = lines.len() - (LINES - 1);
            lines.truncate(LINES - 1);
            lines.push(format!("and {more} settings more"));
        }
        lines
    };
    let mut labels: Vec<Vec<String>> = rows.iter().map(|row| row.as_ref().map(lines).unwrap_or_default()).collect();
    // The name where settings do not tell runs apart.
    let plain = labels.clone();
    for (i, label) in labels.iter_mut().enumerate() {
        if plain[i].is_empty() || plain.iter().filter(|other| **other == plain[i]).count() > 1 {
            label.insert(0, cut(&found[i].1));
        }
    }
    found.into_iter().zip(labels).map(|((source, _, _), label)| Entry { source, label }).collect()
}

/// With values as short as a label has room for.
fn shortened(mut run: RunRecord) -> RunRecord {
    for (key, value) in &mut run.settings {
        if PLACES.contains(&key.as_str()) {
            *value = value.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_string();
        } else if value.starts_with('[') {
            *value = value.chars().filter(|c| !"[] \"".contains(*c)).collect();
        }
    }
    run
}

fn cut(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_string();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

/// What to draw.
#[derive(Clone, Debug)]
pub struct SamplesFigure {
    /// The models.
    pub entries: Vec<Entry>,
    /// Pictures in a row.
    pub count: usize,
    /// Steps, as `sample` counts them.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Sampler, where it is not the models' own.
    pub sampler: Option<Method>,
    /// Which weights.
    pub weights: WeightKind,
}

impl SamplesFigure {
    /// Draws it.
    ///
    /// # Errors
    /// A source that is no model, steps that its sampler cannot take, nothing to draw, a failing device.
    pub fn drawing<B: Backend>(&self, backend: &B, progress: &Progress) -> Result<Drawing> {
        let wishes = Wishes { method: self.sampler, ..Wishes::default() };
        let (mut rows, mut largest) = (Vec::new(), 0.0f64);
        for (i, entry) in self.entries.iter().enumerate() {
            let mut ready = Ready::new(backend, &entry.source, self.weights, progress)?;
            let way = Way::new(&ready.diffusion, &wishes, self.steps)?;
            let what = format!("drawing {}/{}", i + 1, self.entries.len());
            let task = progress.task(&what, (self.count * way.steps()) as u64, "steps");
            let pictures = draw(backend, &mut ready, &way, self.count, self.seed, &task)?;
            task.finish();
            largest = largest.max(side(ready.config.image_size));
            rows.push(Row { label: entry.label.clone(), pictures });
        }
        let of = if self.entries.len() == 1 { "Pictures" } else { "Pictures from the same noise" };
        let title = format!("{of} in {} steps", self.steps);
        Sheet { title, columns: Vec::new(), rows, side: largest }.drawing()
    }
}
