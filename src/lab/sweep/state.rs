//! How far the runs of a sweep have come, from what lies in their folders.

use std::fs;
use std::path::{Path, PathBuf};

use super::plan::{self, Plan, Planned};
use crate::config::{Config, KEYS};
use crate::error::{Error, Result};
use crate::lab::record;
use crate::train::{checkpoint, run_dir};

/// What is to be done about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is there yet.
    New,
    /// It ended.
    Finished,
    /// It stopped after this step, and goes on.
    GoOn(u64),
    /// It cannot go on, for this reason: what is there is moved aside.
    Anew(String),
}

impl State {
    /// For the list of `--dry-run`.
    pub fn text(&self) -> String {
        match self {
            State::New => "new".into(),
            State::Finished => "finished: left as it is".into(),
            State::GoOn(step) => format!("goes on after step {step}"),
            State::Anew(why) => format!("begins anew: {why}"),
        }
    }
}

/// Why a run cannot go on, most often.
const EARLY: &str = "it stopped before its first checkpoint";
/// Folder of the children's output in the sweep's folder.
pub const LOGS: &str = "logs";

/// The states of all runs, in order. Nothing is written.
///
/// # Errors
/// The folder is a run itself or of another sweep, a run was made with other settings, or trains in another process; by name.
pub fn inspect(dir: &Path, plan: &Plan) -> Result<Vec<State>> {
    if dir.exists() && !dir.is_dir() {
        return Err(Error::input(dir, "is not a folder; expected one for a sweep, which is made if missing"));
    }
    if dir.join("config.toml").exists() {
        return Err(Error::input(dir, "is a run itself (it has a config.toml); give another --sweep-dir"));
    }
    if dir.join(plan::FILE).is_file() {
        let (theirs, ours) = (Plan::open(dir)?.base(), plan.base());
        let differs = ours
            .iter()
            .find_map(|(key, ours)| theirs.get(key).filter(|theirs| *theirs != ours).map(|t| (key, ours, t)));
        if let Some((key, ours, theirs)) = differs.filter(|(key, ..)| *key != "workers") {
            return Err(Error::input(
                dir.join(plan::FILE),
                format!(
                    "is of a sweep with {key} {theirs}, and this one has {key} {ours}; give another --sweep-dir, or the settings of that \
                     sweep (its grid may change)"
                ),
            ));
        }
    }
    plan.runs.iter().map(|run| state(&dir.join(&run.name), run)).collect()
}

fn state(root: &Path, run: &Planned) -> Result<State> {
    if !root.exists() {
        return Ok(State::New);
    }
    if run_dir::is_locked(root) {
        return Err(Error::Usage(format!(
            "{}: another process is training in this run; wait for it, or stop it",
            root.display()
        )));
    }
    if !root.join("config.toml").is_file() {
        return Ok(if is_empty(root)? { State::New } else { State::Anew(EARLY.into()) });
    }
    let there = Config::from_file(&root.join("config.toml"))?;
    let keys: Vec<_> = KEYS.iter().map(|key| key.name).filter(|name| *name != "workers").chain(["unet"]).collect();
    if let Some((key, ours, theirs)) = run.config.differences(&there, &keys).into_iter().next() {
        return Err(Error::input(
            root,
            format!(
                "its config.toml has {key} {theirs}, and the sweep asks for {key} {ours}; give another --sweep-dir, or remove that run"
            ),
        ));
    }
    if root.join("summary.json").is_file() {
        return Ok(State::Finished);
    }
    // Found as a resume will find it: every byte verified.
    Ok(match checkpoint::latest(root) {
        Ok(Some(latest)) => State::GoOn(latest.step),
        Ok(None) => State::Anew(EARLY.into()),
        Err(why) => State::Anew(why.to_string()),
    })
}

/// Whether there is nothing but a lock in a folder.
fn is_empty(root: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(root).map_err(Error::io(root, "list the run directory"))?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == ".lock")))
}

/// Moves what a run left that cannot go on to `logs/NAME.remains-1`, where it is no run any more; returns where.
///
/// # Errors
/// The file system refuses.
pub fn move_aside(dir: &Path, name: &str) -> Result<PathBuf> {
    let (root, logs) = (dir.join(name), dir.join(LOGS));
    fs::create_dir_all(&logs).map_err(Error::io(&logs, "create the folder"))?;
    let mut number = 1;
    let target = loop {
        let target = logs.join(format!("{name}.remains-{number}"));
        if !target.exists() {
            break target;
        }
        number += 1;
    };
    fs::rename(&root, &target).map_err(Error::io(&root, "move the remains of the run aside"))?;
    let config = target.join("config.toml");
    if config.is_file() {
        let old = target.join("config.toml.old");
        fs::rename(&config, &old).map_err(Error::io(&config, "rename the configuration of the remains"))?;
    }
    Ok(target)
}

/// Steps done of a run, of how many (where that is known), and what it says of its losses.
pub fn progress(root: &Path, config: &Config) -> (u64, Option<u64>, String) {
    // While it begins there may be no run yet, or half a file: the next look will find it.
    let Ok(run) = record::RunRecord::open(root) else { return (0, steps(config), String::new()) };
    let mut text = String::new();
    for (name, record) in [("train", &run.train), ("valid", &run.valid)] {
        if let Some(record) = record {
            text.push_str(&format!(", {name} {:.4}", record.loss));
        }
    }
    (run.steps(), run.total_steps().or(steps(config)), text)
}

fn steps(config: &Config) -> Option<u64> {
    (config.steps > 0).then_some(config.steps as u64)
}

/// How much of a run is done, from 0 to 1.
pub fn fraction(root: &Path, config: &Config) -> f64 {
    match progress(root, config) {
        (done, Some(total), _) if total > 0 => (done as f64 / total as f64).min(1.0),
        _ => 0.0,
    }
}
