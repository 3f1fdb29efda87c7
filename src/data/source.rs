//! From the name of a source to a list of pictures: where `flowers` and `pets` are looked for, what is said when nothing is there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::archive::{self, Member};
use super::folder::{self, Entry};
use super::{DataSpec, Progress, parquet, procedural};
use crate::error::{Error, Result};

/// Seed of the two pictures of `debug`: fixed, so that debugging runs compare.
const DEBUG_SEED: u64 = 0;

/// Pictures, found but not yet decoded.
#[derive(Debug)]
pub(super) enum Source {
    /// Made by the program.
    Procedural { name: &'static str, seed: u64, count: usize },
    /// Files below a folder.
    Folder { root: PathBuf, entries: Vec<Entry> },
    /// Rows of parquet files.
    Parquet(parquet::Table),
    /// Members of a tar archive.
    Tar { path: PathBuf, stamp: String, members: Vec<Member> },
}

impl Source {
    /// Number of pictures, readable or not.
    pub fn len(&self) -> usize {
        match self {
            Source::Procedural { count, .. } => *count,
            Source::Folder { entries, .. } => entries.len(),
            Source::Parquet(table) => table.names.len(),
            Source::Tar { members, .. } => members.len(),
        }
    }

    /// Path of each picture within the folder or archive, in order; empty where they are procedural.
    pub fn names(&self) -> Vec<String> {
        match self {
            Source::Procedural { .. } => Vec::new(),
            Source::Folder { entries, .. } => entries.iter().map(|entry| entry.name.clone()).collect(),
            Source::Parquet(table) => table.names.clone(),
            Source::Tar { members, .. } => members.iter().map(|member| member.name.clone()).collect(),
        }
    }

    /// The path that errors are about.
    pub fn path(&self) -> PathBuf {
        match self {
            Source::Procedural { name, .. } => PathBuf::from(name),
            Source::Folder { root, .. } => root.clone(),
            Source::Parquet(table) => table.path.clone(),
            Source::Tar { path, .. } => path.clone(),
        }
    }

    /// A short name for descriptions and cache files.
    pub fn label(&self) -> String {
        match self {
            Source::Procedural { name, .. } => (*name).to_string(),
            Source::Folder { root: path, .. }
            | Source::Tar { path, .. }
            | Source::Parquet(parquet::Table { path, .. }) => match path.file_name() {
                Some(name) => name.to_string_lossy().into_owned(),
                None => path.display().to_string(),
            },
        }
    }

    /// Whether making the pictures is faster than a cache is worth: the small procedural ones.
    pub fn is_quick(&self, spec: &DataSpec) -> bool {
        matches!(self, Source::Procedural { .. }) && self.len() * spec.image_size * spec.image_size <= 16 << 20
    }

    /// Everything that decides the pixels, as text: source, its state, preprocessing. The first line is the identity of the source, by
    /// which the cache file is named; a change in the others replaces that file.
    pub fn cache_key(&self, spec: &DataSpec) -> String {
        let (what, state) = match self {
            Source::Procedural { seed, count, .. } => {
                (format!("procedural seed {seed} count {count}"), format!("recipe {}", procedural::VERSION))
            }
            Source::Folder { root, entries } => (format!("folder {}", real(root).display()), folder::state(entries)),
            Source::Parquet(table) => (format!("parquet {}", real(&table.path).display()), table.stamp()),
            Source::Tar { path, stamp, .. } => (format!("tar {}", real(path).display()), stamp.clone()),
        };
        format!(
            "{what} size {} channels {}\n{state}\npreprocessing {}",
            spec.image_size,
            spec.channels,
            super::decode::VERSION
        )
    }
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Size and time of the last change of a file: tells whether a cache is stale.
pub(super) fn stamp(meta: &fs::Metadata) -> String {
    let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    format!("{} bytes changed {changed}", meta.len())
}

/// The user's cache folder for this program: `$XDG_CACHE_HOME/ddim-engine`, else `~/.cache/ddim-engine`.
pub fn default_data_dir() -> Option<PathBuf> {
    // The XDG specification says that a relative path is to be ignored.
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let cache =
        cache.or_else(|| env::var_os("HOME").filter(|h| !h.is_empty()).map(|h| PathBuf::from(h).join(".cache")))?;
    Some(cache.join("ddim-engine"))
}

/// The data directory, where the one of the options is `named`, and in words where it comes from.
pub fn data_dir(named: Option<&Path>) -> (Option<PathBuf>, &'static str) {
    if let Some(dir) = named {
        return (Some(dir.to_path_buf()), "--data-dir");
    }
    if let Some(dir) = env::var_os("DDIM_DATA_DIR").filter(|d| !d.is_empty()) {
        return (Some(PathBuf::from(dir)), "DDIM_DATA_DIR");
    }
    (default_data_dir(), "the user's cache folder")
}

/// Folders for the cache, the preferred one first.
pub(super) fn cache_dirs(spec: &DataSpec) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let (dir, from) = data_dir(spec.data_dir.as_deref());
    // A data directory that was named but is not there is not made: it may be a slip of the pen.
    if let Some(dir) = dir.filter(|d| from == "the user's cache folder" || d.is_dir()) {
        dirs.push(dir.join("cache"));
    }
    if let Some(dir) = default_data_dir().map(|d| d.join("cache"))
        && !dirs.contains(&dir)
    {
        dirs.push(dir);
    }
    dirs
}

/// Finds the pictures that `spec` names.
pub(super) fn resolve(spec: &DataSpec, progress: &dyn Progress) -> Result<Source> {
    match spec.source.as_str() {
        "procedural" => {
            let count = spec.procedural_count;
            if !(2..=1 << 24).contains(&count) {
                return Err(Error::Usage(format!("procedural_count is {count}; expected 2 to {}", 1 << 24)));
            }
            Ok(Source::Procedural { name: "procedural", seed: spec.procedural_seed, count })
        }
        "debug" => Ok(Source::Procedural { name: "debug", seed: DEBUG_SEED, count: 2 }),
        "flowers" | "pets" => open(&find_known(spec)?, progress),
        "" => Err(Error::Usage(format!("the data source is empty; expected {EXPECTED}"))),
        path => open(Path::new(path), progress),
    }
}

const EXPECTED: &str = "procedural, flowers, pets, debug, a folder of pictures, a .tar or a .parquet of them";

/// Places of a known set within the data directory, in the order of looking.
pub(super) fn places(name: &str, image_size: usize) -> Vec<&'static str> {
    // The 64-pixel copies decode in a second, but only the originals serve larger pictures.
    let (small, full): (&[&str], &[&str]) = match name {
        "flowers" => (
            &["flowers64.tar", "flowers64-jpeg95.tar"],
            &["flowers.tar", "flowers", "102flowers.tar", "102flowers", "flowers-102/jpg", "jpg"],
        ),
        _ => (&["pets64.tar"], &["pets.tar", "pets", "oxford-iiit-pet/images", "images"]),
    };
    if image_size <= 64 { [&full[..2], small, &full[2..]].concat() } else { [full, small].concat() }
}

fn find_known(spec: &DataSpec) -> Result<PathBuf> {
    let name = spec.source.as_str();
    let archive = if name == "flowers" { "102flowers.tgz" } else { "images.tar.gz" };
    let remedy = format!(
        "`ddim-engine data fetch {name}` brings them; or put a folder or a .tar of them there as `{name}` or `{name}.tar`; or name a folder \
         with --data FOLDER; or use --data procedural, which needs nothing"
    );
    let (Some(dir), from) = data_dir(spec.data_dir.as_deref()) else {
        return Err(Error::input(
            name,
            format!(
                "there is no data directory (HOME and XDG_CACHE_HOME are unset): set --data-dir or DDIM_DATA_DIR. {remedy}"
            ),
        ));
    };
    let places = places(name, spec.image_size);
    if let Some(found) = places.iter().map(|p| dir.join(p)).find(|p| p.exists()) {
        return Ok(found);
    }
    let state = if dir.is_dir() { "" } else { ", which does not exist" };
    let looked = places.join(", ");
    let mut what = format!(
        "the `{name}` pictures are not in this data directory (from {from}){state}; looked for {looked}. {remedy}"
    );
    if dir.join(archive).is_file() {
        what = format!(
            "{archive} is here, but packed: unpack it (tar xzf {archive}), or see --mirror of `data fetch`. {what}"
        );
    }
    Err(Error::input(&dir, what))
}

/// Opens a folder or a tar archive.
fn open(path: &Path, progress: &dyn Progress) -> Result<Source> {
    let meta = fs::metadata(path).map_err(|error| missing(path, &error))?;
    if meta.is_dir() {
        let why = match folder::list(path, progress) {
            Ok(entries) => return Ok(Source::Folder { root: path.to_path_buf(), entries }),
            Err(why) => why,
        };
        return match parquet::shards(path) {
            shards if shards.is_empty() => Err(why),
            shards => Ok(Source::Parquet(parquet::list(path, shards)?)),
        };
    }
    if parquet::is_parquet_name(path) {
        return Ok(Source::Parquet(parquet::list(path, vec![path.to_path_buf()])?));
    }
    let members = archive::list(path, meta.len(), progress)?;
    Ok(Source::Tar { path: path.to_path_buf(), stamp: stamp(&meta), members })
}

fn missing(path: &Path, error: &std::io::Error) -> Error {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Error::input(path, format!("cannot be opened: {error}"));
    }
    let text = path.to_string_lossy();
    let close = ["procedural", "flowers", "pets", "debug"]
        .into_iter()
        .find(|name| !text.contains('/') && strsim::damerau_levenshtein(name, &text) <= 2);
    let hint = close.map(|name| format!(". Did you mean `{name}`?")).unwrap_or_default();
    Error::input(path, format!("there is no such file or folder; expected {EXPECTED}{hint}"))
}
