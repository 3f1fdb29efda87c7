//! What is in the data directory, and whether it is as it was.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{MARK, SUMS};
use crate::data::{Progress, archive, folder, source};
use crate::error::{Error, Result};

/// A set in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its folder or archive.
    pub path: PathBuf,
    /// Whether it was fetched whole: there are checksums, labels and, for some, a split.
    pub fetched: bool,
}

/// The first place at which pictures of `name` would be found for large pictures, if any.
pub fn held(name: &str, data_dir: &Path) -> Option<Held> {
    let path = source::places(name, usize::MAX).into_iter().map(|place| data_dir.join(place)).find(|p| p.exists())?;
    Some(Held { fetched: path.join(MARK).is_file(), path })
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Pictures that are there.
    pub pictures: usize,
    /// Whether there were checksums to compare with.
    pub has_sums: bool,
    /// Pictures that are gone.
    pub missing: Vec<String>,
    /// Pictures that are not as they were, or cannot be read.
    pub changed: Vec<String>,
    /// Pictures without a checksum.
    pub added: Vec<String>,
}

impl Verified {
    /// Whether all is as it was, as far as can be told.
    pub fn is_right(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.added.is_empty()
    }
}

/// Compares the pictures at `path`, a folder or an archive, with the checksums that `fetch` left there; without them, counts.
///
/// # Errors
/// [`Error::Input`] for a place without pictures, or checksums that cannot be read.
pub fn verify(path: &Path, progress: &dyn Progress) -> Result<Verified> {
    if path.is_file() {
        let len = fs::metadata(path).map_err(Error::io(path, "read"))?.len();
        let members = archive::list(path, len, progress)?;
        return Ok(Verified { pictures: members.len(), ..Verified::default() });
    }
    let entries = folder::list(path, progress)?;
    let sums = path.join(SUMS);
    if !sums.is_file() {
        return Ok(Verified { pictures: entries.len(), ..Verified::default() });
    }
    let text = fs::read_to_string(&sums).map_err(Error::io(&sums, "read the checksums"))?;
    let wanted: Option<Vec<(&str, &str)>> = text.lines().map(|line| line.split_once("  ")).collect();
    let wanted = wanted.ok_or_else(|| Error::input(&sums, "is no list of checksums and names; fetch the set again"))?;
    progress.start(&format!("checking {}", path.display()), Some(wanted.len() as u64));
    let states: Vec<(&str, State)> = wanted
        .par_iter()
        .map(|(sum, name)| {
            let state = state(&path.join(name), sum);
            progress.advance(1);
            (*name, state)
        })
        .collect();
    progress.finish();
    let of = |state: State| states.iter().filter(|(_, s)| *s == state).map(|(name, _)| name.to_string()).collect();
    let known: std::collections::HashSet<&str> = wanted.iter().map(|(_, name)| *name).collect();
    let added = entries.iter().map(|entry| entry.name.clone()).filter(|name| !known.contains(name.as_str())).collect();
    Ok(Verified {
        pictures: entries.len(),
        has_sums: true,
        missing: of(State::Missing),
        changed: of(State::Changed),
        added,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Right,
    Missing,
    Changed,
}

fn state(path: &Path, sum: &str) -> State {
    let Ok(mut file) = File::open(path) else { return State::Missing };
    let mut hash = Sha256::new();
    match std::io::copy(&mut file, &mut hash) {
        Ok(_) if format!("{:x}", hash.finalize()) == sum => State::Right,
        _ => State::Changed,
    }
}
