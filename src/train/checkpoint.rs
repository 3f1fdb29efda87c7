//! Checkpoints: saved beside and renamed into place, verified byte by byte, found, pruned. Knows no device.
//!
//! A checkpoint is a folder `checkpoints/step-00000500` of three files: `model.safetensors` (what sampling needs),
//! `state.safetensors` (what training needs besides) and, written last, `manifest.json` with the size and SHA-256 of both and a
//! checksum of itself. A crash at any moment leaves either no folder of that name or a whole one. The same content gives the same
//! bytes: tensors are sorted by name and nothing tells the time.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::train::run_dir::sync_dir;
use crate::train::tensor_file::{self, Contents, Digested};

pub use crate::train::tensor_file::NamedTensor;

const FORMAT: &str = "ddim-engine checkpoint";
const VERSION: u64 = 1;
const MODEL: &str = "model.safetensors";
const STATE: &str = "state.safetensors";
const MANIFEST: &str = "manifest.json";
/// Key of the configuration in the metadata of `model.safetensors`.
const CONFIG_KEY: &str = "ddim_engine.config";
/// Precedes the manifest's checksum of everything before this text.
const SEAL: &str = ",\n  \"manifest_sha256\": \"";
/// Folders being written or removed.
const TEMPORARY: &str = ".tmp-";
/// A checkpoint moved aside while one of the same step takes its place, on filesystems that cannot exchange two folders.
const REPLACED: &str = ".old-";

/// Everything that training goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The resolved configuration.
    pub config_toml: String,
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs begun.
    pub epoch: u64,
    /// Small values: normaliser, best loss, fingerprint of the data. Floats come back exactly; JSON has no NaN.
    pub state: serde_json::Value,
    /// The tensors of `model.safetensors`; sorted by name when loaded.
    pub model: Vec<NamedTensor>,
    /// The tensors of `state.safetensors` (averages, moments); sorted by name when loaded.
    pub optimizer: Vec<NamedTensor>,
}

/// A model for sampling: what [`load_model_file`] found.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// The file that was read.
    pub path: PathBuf,
    /// The configuration, where the file carries one (files of other programs do not).
    pub config_toml: Option<String>,
    /// Step and state, where a manifest lies beside the file.
    pub step_and_state: Option<(u64, serde_json::Value)>,
    /// The tensors.
    pub tensors: Vec<NamedTensor>,
}

/// A checkpoint folder as [`list`] finds it, without reading its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The folder.
    pub path: PathBuf,
    /// The step that its name tells.
    pub step: u64,
    /// What is wrong with it; None where manifest and sizes agree.
    pub problem: Option<String>,
}

impl Entry {
    /// What to tell the user where a damaged one is not used.
    pub fn passed_over(&self) -> String {
        format!("passed over {}: {}", self.path.display(), self.problem.as_deref().unwrap_or("damaged"))
    }
}

/// The newest valid checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The folder.
    pub path: PathBuf,
    /// Its step.
    pub step: u64,
    /// Newer ones that are damaged, newest first: worth telling the user.
    pub skipped: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u64,
    step: u64,
    epoch: u64,
    config: String,
    state: serde_json::Value,
    files: BTreeMap<String, FileInfo>,
}

#[derive(Serialize, Deserialize)]
struct FileInfo {
    bytes: u64,
    sha256: String,
}

/// Saves into the folder `checkpoints` (made if missing) and returns the checkpoint's path, `step-00000500` for step 500.
///
/// Saving a step again replaces it; one of the two is whole at any moment. What dead runs left half written is removed. When
/// saving fails, a full disk included, earlier checkpoints are untouched.
pub fn save(checkpoints: &Path, checkpoint: &Checkpoint) -> Result<PathBuf> {
    fs::create_dir_all(checkpoints).map_err(Error::io(checkpoints, "create the folder of checkpoints"))?;
    clean(checkpoints);
    let target = checkpoints.join(folder_name(checkpoint.step));
    let (temporary, lock) = temporary_folder(checkpoints, checkpoint.step)?;
    let saved = write_folder(&temporary, checkpoint).and_then(|()| {
        move_into_place(&temporary, &target)
            .and_then(|()| sync_dir(checkpoints))
            .map_err(Error::io(&target, "move the checkpoint into place"))
    });
    drop(lock);
    if let Err(e) = saved {
        // The space is needed more than the rest of a failed save.
        let _ = fs::remove_dir_all(&temporary);
        return Err(explain_failed_save(e, checkpoints, &temporary, &target));
    }
    Ok(target)
}

/// Loads a checkpoint folder and verifies all of it.
///
/// A damaged one is refused: the message names the file, what was found and expected, and the previous valid checkpoint if there is
/// one.
pub fn load(path: &Path) -> Result<Checkpoint> {
    if !path.is_dir() {
        return Err(Error::input(path, "no such checkpoint folder"));
    }
    load_unadvised(path).map_err(|e| advise(e, path))
}

fn load_unadvised(path: &Path) -> Result<Checkpoint> {
    let manifest = read_manifest(path)?;
    check_sizes(path, &manifest)?;
    let model = read_verified(path, MODEL, &manifest)?;
    let optimizer = read_verified(path, STATE, &manifest)?;
    Ok(Checkpoint {
        config_toml: manifest.config,
        step: manifest.step,
        epoch: manifest.epoch,
        state: manifest.state,
        model: model.tensors,
        optimizer: optimizer.tensors,
    })
}

/// The checkpoints of a run, oldest first, damaged ones included. `run` is a run directory or its `checkpoints` folder.
///
/// Reads manifests and sizes, no tensors.
pub fn list(run: &Path) -> Result<Vec<Entry>> {
    let folder = checkpoints_of(run);
    let action = "list the checkpoints";
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(&folder, action)(e)),
    };
    let mut found: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(Error::io(&folder, action))?.path();
        if let Some(step) = step_of(&path) {
            found.insert(step, path);
        } else if let Some(step) = strip(&path, REPLACED).and_then(|n| step_of(Path::new(n))) {
            // A crash came between moving the old one aside and the new one in: the old one still counts.
            found.entry(step).or_insert(path);
        }
    }
    let entry = |(step, path): (u64, PathBuf)| {
        let problem = cheap_check(&path, step).err().map(|e| e.to_string());
        Entry { path, step, problem }
    };
    Ok(found.into_iter().map(entry).collect())
}

/// The newest valid checkpoint, every byte of it verified; None where there are no checkpoints at all.
///
/// Fails where there are some but all are damaged. `run` is a run directory or its `checkpoints` folder.
pub fn latest(run: &Path) -> Result<Option<Latest>> {
    let (found, skipped) = newest_valid(list(run)?);
    match found {
        Some(entry) => Ok(Some(Latest { path: entry.path, step: entry.step, skipped })),
        None if skipped.is_empty() => Ok(None),
        None => {
            let reasons: Vec<&str> = skipped.iter().filter_map(|e| e.problem.as_deref()).collect();
            let what = format!("no valid checkpoint among {}; {}", skipped.len(), reasons.join("; "));
            Err(Error::input(checkpoints_of(run), what))
        }
    }
}

/// Removes all but the newest `keep` checkpoints (at least one) and returns the removed paths.
///
/// Damaged ones do not count, and go when they are older than a valid one. The newest whose every byte is verified stays in any case.
pub fn prune(run: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let entries = list(run)?;
    let (Some(newest), _) = newest_valid(entries.clone()) else { return Ok(Vec::new()) };
    let mut kept = 0;
    let mut removed = Vec::new();
    for entry in entries.into_iter().rev() {
        if entry.step >= newest.step {
            kept += usize::from(entry.step == newest.step);
        } else if entry.problem.is_none() && kept < keep.max(1) {
            kept += 1;
        } else {
            // Renamed first: a removal that stops half way must not look like a checkpoint.
            let name = entry.path.file_name().unwrap_or(OsStr::new("checkpoint")).to_string_lossy().into_owned();
            let gone = entry.path.with_file_name(format!("{TEMPORARY}pruned-{name}"));
            fs::rename(&entry.path, &gone)
                .and_then(|()| fs::remove_dir_all(&gone))
                .map_err(Error::io(&entry.path, "remove the old checkpoint"))?;
            removed.push(entry.path);
        }
    }
    Ok(removed)
}

/// The model file that `path` stands for: a `.safetensors` file itself, a checkpoint folder, or a run directory (its newest valid
/// checkpoint).
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        if path.extension() == Some(OsStr::new("safetensors")) {
            return Ok(path.to_path_buf());
        }
        return Err(Error::input(
            path,
            "not a model: expected a .safetensors file, a checkpoint folder or a run directory",
        ));
    }
    if !path.is_dir() {
        return Err(Error::input(path, "no such file or folder"));
    }
    if path.join(MANIFEST).is_file() || path.join(MODEL).is_file() {
        return Ok(path.join(MODEL));
    }
    match latest(path)? {
        Some(latest) => Ok(latest.path.join(MODEL)),
        None => Err(Error::input(
            path,
            "holds no checkpoint; expected a run directory (with checkpoints/step-...), a checkpoint folder or a .safetensors file",
        )),
    }
}

/// Loads what [`resolve`] finds. Where a manifest lies beside the file, the file must match it.
pub fn load_model_file(path: &Path) -> Result<ModelFile> {
    let file = resolve(path)?;
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let in_checkpoint = file.file_name() == Some(OsStr::new(MODEL)) && folder.join(MANIFEST).is_file();
    let (contents, step_and_state) = if in_checkpoint {
        let load = || {
            let manifest = read_manifest(&folder)?;
            let contents = read_verified(&folder, MODEL, &manifest)?;
            Ok((contents, Some((manifest.step, manifest.state))))
        };
        load().map_err(|e| advise(e, &folder))?
    } else {
        (tensor_file::read(&file)?, None)
    };
    let config_toml = contents.metadata.get(CONFIG_KEY).cloned();
    Ok(ModelFile { path: file, config_toml, step_and_state, tensors: contents.tensors })
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step in a folder's name; None for names that `folder_name` does not make.
fn step_of(path: &Path) -> Option<u64> {
    let step = strip(path, "step-")?.parse().ok()?;
    (path.file_name()? == OsStr::new(&folder_name(step))).then_some(step)
}

fn strip<'a>(path: &'a Path, prefix: &str) -> Option<&'a str> {
    path.file_name()?.to_str()?.strip_prefix(prefix)
}

fn checkpoints_of(run: &Path) -> PathBuf {
    let inner = run.join("checkpoints");
    if inner.is_dir() { inner } else { run.to_path_buf() }
}

/// Makes a folder to write in and locks it, which tells [`clean`] that its writer lives: process numbers are used again, in
/// containers at once, and would not.
fn temporary_folder(checkpoints: &Path, step: u64) -> Result<(PathBuf, Option<File>)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY}{}-{}-{count}", folder_name(step), std::process::id());
        let path = checkpoints.join(name);
        match fs::create_dir(&path) {
            // No locks on this filesystem, no harm: `clean` then leaves folders alone that it cannot lock.
            Ok(()) => return Ok((path.clone(), File::open(&path).ok().filter(|folder| folder.try_lock().is_ok()))),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(Error::io(&path, "create a folder for the checkpoint")(e)),
        }
    }
}

/// Removes what dead processes left behind, and brings back a checkpoint that was moved aside and never replaced. Failing to do so
/// is no reason not to save.
fn clean(checkpoints: &Path) {
    for path in fs::read_dir(checkpoints).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if strip(&path, TEMPORARY).is_some() {
            // The lock is free when its writer is gone.
            if File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()) {
                let _ = fs::remove_dir_all(&path);
            }
        } else if let Some(name) = strip(&path, REPLACED) {
            let home = checkpoints.join(name);
            let _ = if home.exists() { fs::remove_dir_all(&path) } else { fs::rename(&path, &home) };
        }
    }
}

/// Writes the three files and makes them last.
fn write_folder(folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let config = (CONFIG_KEY.to_string(), checkpoint.config_toml.clone());
    let format = ("format".to_string(), "pt".to_string());
    let model = tensor_file::write(&folder.join(MODEL), &BTreeMap::from([config, format.clone()]), &checkpoint.model)?;
    let state = tensor_file::write(&folder.join(STATE), &BTreeMap::from([format]), &checkpoint.optimizer)?;
    let info = |digest: Digested| FileInfo { bytes: digest.bytes, sha256: digest.sha256 };
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        step: checkpoint.step,
        epoch: checkpoint.epoch,
        config: checkpoint.config_toml.clone(),
        state: checkpoint.state.clone(),
        files: BTreeMap::from([(MODEL.into(), info(model)), (STATE.into(), info(state))]),
    };
    let path = folder.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|e| Error::Failed(format!("{}: cannot write the manifest: {e}", path.display())))?;
    let text = seal(text.strip_suffix("\n}").unwrap_or(&text));
    let write = || -> io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        sync_dir(folder)
    };
    write().map_err(Error::io(&path, "write the manifest"))
}

/// Closes a manifest with the checksum of its `body`, over bytes rather than values so that any edit shows.
fn seal(body: &str) -> String {
    format!("{body}{SEAL}{:x}\"\n}}\n", Sha256::digest(body.as_bytes()))
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::input(&path, "missing: not a checkpoint, or one that was never finished"));
        }
        Err(e) => return Err(Error::io(&path, "read the manifest")(e)),
    };
    // Format and version first: a newer one may be sealed in another way.
    let unsealed: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::input(&path, format!("torn or edited: not JSON: {e}")))?;
    let (format, version) = (&unsealed["format"], &unsealed["version"]);
    if format.as_str() != Some(FORMAT) {
        return Err(Error::input(&path, format!("its format is {format}, expected \"{FORMAT}\"")));
    }
    if version.as_u64() != Some(VERSION) {
        return Err(Error::input(&path, format!("its version is {version}, this program reads version {VERSION}")));
    }
    let sealed = text.rfind(SEAL).is_some_and(|end| seal(&text[..end]) == text);
    if !sealed {
        let what = "torn or edited: its text does not match its own manifest_sha256";
        return Err(Error::input(&path, what));
    }
    serde_json::from_str(&text).map_err(|e| Error::input(&path, format!("not a manifest of this version: {e}")))
}

fn file_info<'a>(folder: &Path, name: &str, manifest: &'a Manifest) -> Result<&'a FileInfo> {
    manifest.files.get(name).ok_or_else(|| Error::input(folder.join(MANIFEST), format!("does not list {name}")))
}

fn check_sizes(folder: &Path, manifest: &Manifest) -> Result<()> {
    for name in [MODEL, STATE] {
        let expected = file_info(folder, name, manifest)?.bytes;
        let path = folder.join(name);
        match fs::metadata(&path) {
            Ok(found) if found.len() == expected => {}
            Ok(found) => {
                let what = format!("torn: found {} bytes, expected {expected} by its manifest", found.len());
                return Err(Error::input(&path, what));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::input(&path, "missing from its checkpoint"));
            }
            Err(e) => return Err(Error::io(&path, "look at the file")(e)),
        }
    }
    Ok(())
}

fn check_digest(path: &Path, found: &Digested, expected: &FileInfo) -> Result<()> {
    if found.bytes == expected.bytes && found.sha256 == expected.sha256 {
        return Ok(());
    }
    let what = format!(
        "changed since it was saved: found SHA-256 {} over {} bytes, expected {} over {} bytes by its manifest",
        found.sha256, found.bytes, expected.sha256, expected.bytes
    );
    Err(Error::input(path, what))
}

fn read_verified(folder: &Path, name: &str, manifest: &Manifest) -> Result<Contents> {
    let path = folder.join(name);
    let expected = file_info(folder, name, manifest)?;
    match tensor_file::read(&path) {
        Ok(contents) => check_digest(&path, &contents.digest, expected).map(|()| contents),
        // Damage that also broke the format is better named as damage.
        Err(e) => {
            Err(tensor_file::digest(&path).and_then(|found| check_digest(&path, &found, expected)).err().unwrap_or(e))
        }
    }
}

/// Manifest, sizes and name; no tensors.
fn cheap_check(folder: &Path, step: u64) -> Result<()> {
    let manifest = read_manifest(folder)?;
    if manifest.step != step {
        let what = format!("its manifest is of step {}, its folder is named for step {step}", manifest.step);
        return Err(Error::input(folder, what));
    }
    check_sizes(folder, &manifest)
}

fn full_check(entry: &Entry) -> Result<()> {
    cheap_check(&entry.path, entry.step)?;
    let manifest = read_manifest(&entry.path)?;
    for name in [MODEL, STATE] {
        let path = entry.path.join(name);
        check_digest(&path, &tensor_file::digest(&path)?, file_info(&entry.path, name, &manifest)?)?;
    }
    Ok(())
}

/// The newest whose bytes are all as saved, and the newer ones that are not, newest first.
fn newest_valid(entries: Vec<Entry>) -> (Option<Entry>, Vec<Entry>) {
    let mut skipped = Vec::new();
    for mut entry in entries.into_iter().rev() {
        if entry.problem.is_none() {
            match full_check(&entry) {
                Ok(()) => return (Some(entry), skipped),
                Err(e) => entry.problem = Some(e.to_string()),
            }
        }
        skipped.push(entry);
    }
    (None, skipped)
}

/// Adds to an error about the checkpoint at `path` which one to take instead.
fn advise(error: Error, path: &Path) -> Error {
    let Error::Input { path: file, what } = error else { return error };
    let this = step_of(path).unwrap_or(u64::MAX);
    let others = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let mut entries = others.and_then(|folder| list(folder).ok()).unwrap_or_default();
    entries.retain(|entry| entry.step < this && entry.path != path);
    let advice = match newest_valid(entries).0 {
        Some(entry) => format!("resume from {0} with --resume {0}", entry.path.display()),
        None => "there is no earlier valid checkpoint beside it".into(),
    };
    Error::Input { path: file, what: format!("{what}; {advice}") }
}

/// An error of saving, with the temporary path replaced by the one that was to be, and with what is left to resume from.
fn explain_failed_save(error: Error, checkpoints: &Path, temporary: &Path, target: &Path) -> Error {
    let Error::Io { path, action, source } = error else { return error };
    let path = match path.strip_prefix(temporary) {
        Ok(name) => target.join(name),
        Err(_) => path,
    };
    let newest = list(checkpoints).unwrap_or_default().into_iter().rev().find(|entry| entry.problem.is_none());
    let action = match newest {
        Some(entry) => format!("{action} (the earlier checkpoint {} is untouched)", entry.path.display()),
        None => action,
    };
    Error::Io { path, action, source }
}

fn move_into_place(temporary: &Path, target: &Path) -> io::Result<()> {
    if !target.exists() {
        return fs::rename(temporary, target);
    }
    if exchange(temporary, target).is_ok() {
        // The one that was replaced; `clean` removes it later if this fails.
        let _ = fs::remove_dir_all(temporary);
        return Ok(());
    }
    // Between the two renames the old one counts under its other name, see `list`.
    let name = target.file_name().unwrap_or(OsStr::new("checkpoint")).to_string_lossy();
    let aside = target.with_file_name(format!("{REPLACED}{name}"));
    fs::rename(target, &aside)?;
    if let Err(e) = fs::rename(temporary, target) {
        fs::rename(&aside, target)?;
        return Err(e);
    }
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// Exchanges two folders in one step, where system and filesystem can.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let a = std::ffi::CString::new(a.as_os_str().as_bytes())?;
    let b = std::ffi::CString::new(b.as_os_str().as_bytes())?;
    // SAFETY: renameat2 reads two zero-terminated paths, which live until it returns, and keeps neither.
    let status = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
