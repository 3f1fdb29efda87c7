//! The pictures in a folder: recursive, sorted by name, links followed but not in circles.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::{Progress, Skipped, source};
use crate::error::{Error, Result};

/// A file that calls itself a picture.
#[derive(Debug)]
pub(super) struct Entry {
    /// Path within the folder, with `/`.
    pub name: String,
    /// Where to open it.
    pub path: PathBuf,
    /// Size and time, or why it cannot be read.
    pub stamp: std::result::Result<String, String>,
}

/// Whether a name says picture. Hidden files (`._x.jpg` is what macOS leaves in archives) do not count.
pub(super) fn is_picture_name(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name);
    let Some((stem, extension)) = base.rsplit_once('.') else { return false };
    !base.starts_with('.')
        && !stem.is_empty()
        && ["jpg", "jpeg", "jpe", "jfif", "png", "gif"].iter().any(|e| extension.eq_ignore_ascii_case(e))
}

/// Lists the pictures below `root`.
pub(super) fn list(root: &Path, progress: &dyn Progress) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut others = 0usize;
    for step in WalkDir::new(root).follow_links(true) {
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                let path = error.path().unwrap_or(root).to_path_buf();
                if error.loop_ancestor().is_some() {
                    progress.note(&format!("{}: a link back to a folder above it; not followed", path.display()));
                    continue;
                }
                let reason = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                if path == root {
                    return Err(Error::input(root, format!("cannot be listed: {reason}")));
                }
                // A folder that may not be read, or a link that leads nowhere: counts as unreadable rather than as not there.
                let name = relative(root, &path);
                if is_picture_name(&name) || path.is_dir() {
                    entries.push(Entry { name, path, stamp: Err(reason) });
                }
                continue;
            }
        };
        if step.file_type().is_dir() {
            continue;
        }
        let name = relative(root, step.path());
        if !is_picture_name(&name) {
            others += 1;
            continue;
        }
        // Asking a named pipe for its bytes would wait for ever.
        let stamp = match step.metadata() {
            Ok(meta) if meta.is_file() => Ok(source::stamp(&meta)),
            Ok(_) => Err("not a plain file".to_string()),
            Err(error) => Err(error.to_string()),
        };
        entries.push(Entry { name, path: step.into_path(), stamp });
    }
    if entries.is_empty() {
        let found = match others {
            0 => "the folder is empty".to_string(),
            1 => "the one file in the folder is not a picture".to_string(),
            n => format!("none of the {n} files in the folder is a picture"),
        };
        return Err(Error::input(
            root,
            format!("{found}; expected .jpg, .jpeg, .png or .gif files, also in folders below"),
        ));
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn relative(root: &Path, path: &Path) -> String {
    let path = path.strip_prefix(root).unwrap_or(path);
    path.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Digest of names, sizes and times: differs when a picture came, went or changed.
pub(super) fn state(entries: &[Entry]) -> String {
    let mut hash = Sha256::new();
    for entry in entries {
        hash.update(entry.name.as_bytes());
        hash.update([0]);
        hash.update(entry.stamp.as_deref().unwrap_or("unreadable"));
        hash.update([0]);
    }
    format!("{} files {:x}", entries.len(), hash.finalize())
}

impl Entry {
    /// The bytes of the file, or why not.
    pub fn read(&self) -> std::result::Result<Vec<u8>, String> {
        self.stamp.as_ref().map_err(Clone::clone)?;
        std::fs::read(&self.path).map_err(|error| format!("cannot be read: {error}"))
    }

    /// This picture as a skipped one.
    pub fn skipped(&self, reason: String) -> Skipped {
        Skipped { name: self.name.clone(), reason }
    }
}
