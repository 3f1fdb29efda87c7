//! Sets of pictures by name: from the web to the data directory.
//!
//! [`fetch`] downloads the archives of a [`KnownSet`] into `DATA_DIR/archives/NAME/`, checks them, unpacks into a folder of its own and
//! renames that to `DATA_DIR/NAME` at the end: a set is there whole or not at all. Beside the pictures it writes
//!
//! | file | what |
//! |---|---|
//! | `labels.csv` | `file,label` and more: see [`super::Labels`] |
//! | `split.csv` | `file,split`: the official division into `train` and `valid`, where the set is trained by it |
//! | `SHA256SUMS` | of the pictures; `sha256sum -c` and [`verify`] read it |
//! | `source.json` | where it came from; marks a set that is complete |

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde_json::json;

mod annotate;
mod catalog;
mod download;
mod holdings;
mod mat;
mod meter;
mod unpack;

pub use catalog::{Archive, Holds, KnownSet, known_set, known_sets};
pub use download::Rules;
pub use holdings::{Held, Verified, held, verify};
pub use mat::{MatArray, read_mat};

use super::Progress;
use crate::error::{Error, Result};
use download::{Download, check_md5};
use meter::size;

/// Marks the folder of a set that was fetched whole.
pub(super) const MARK: &str = "source.json";
/// Checksums of the pictures of a set.
const SUMS: &str = "SHA256SUMS";
/// Classes of the pictures of a set.
pub(super) const LABELS: &str = "labels.csv";
/// The official split of a set.
pub(super) const SPLIT: &str = "split.csv";

/// Where to fetch from and to, and how.
pub struct FetchOptions<'a> {
    /// The data directory; made if missing.
    pub data_dir: PathBuf,
    /// In place of the official hosts: an address (`https://HOST/FOLDER`) or a folder under which the files have their own names.
    pub mirror: Option<String>,
    /// Keep the archives in `DATA_DIR/archives/NAME` once they are unpacked.
    pub keep_archives: bool,
    /// Patience.
    pub rules: Rules,
    /// Asked often; true ends the work, which goes on from there when called again.
    pub stop: &'a dyn Fn() -> bool,
}

/// What [`fetch`] left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The folder of the set.
    pub path: PathBuf,
    /// Whether it had been there before.
    pub was_here: bool,
}

/// Brings `set` into the data directory.
///
/// # Errors
/// [`Error::Failed`] for a server that refuses, breaks off too often or gives another file, with what to do; [`Error::Input`] for a folder
/// that is in the way, an archive with members that are refused, a lock of another process; [`Error::Interrupted`] where `stop` said so.
pub fn fetch(set: &KnownSet, options: &FetchOptions<'_>, progress: &dyn Progress) -> Result<Fetched> {
    let dir = &options.data_dir;
    let target = dir.join(&set.name);
    let archives = dir.join("archives").join(&set.name);
    fs::create_dir_all(&archives).map_err(Error::io(&archives, "make the folder for archives"))?;
    let lock = lock(dir, &set.name)?;
    let here = Fetched { path: target.clone(), was_here: true };
    if target.join(MARK).is_file() {
        tidy(&archives, options.keep_archives);
        return Ok(here);
    }
    if fs::symlink_metadata(&target).is_ok() {
        let what = format!(
            "is in the way: it was not made by `data fetch`. Move it away, or use it as it is: --data {} takes it from there",
            set.name
        );
        tidy(&archives, options.keep_archives);
        return Err(Error::input(&target, what));
    }
    check_space(dir, set, &archives)?;
    let mut files = Vec::new();
    for archive in &set.archives {
        files.push(bring(archive, &archives, options, progress)?);
    }
    let staging = dir.join(format!(".unpacking-{}", set.name));
    clear(&staging)?;
    let outcome = unpack_into(set, &files, &staging, options, progress);
    if let Err(error) = outcome {
        let _ = clear(&staging); // the error that is told is the one that came first
        return Err(error);
    }
    fs::rename(&staging, &target).map_err(Error::io(&target, "move the pictures into place"))?;
    if let Ok(folder) = File::open(dir) {
        let _ = folder.sync_all(); // not every file system can; the pictures are there all the same
    }
    if !options.keep_archives {
        for archive in &set.archives {
            let _ = fs::remove_file(archives.join(&archive.file)); // one that stays costs space only
        }
    }
    tidy(&archives, options.keep_archives);
    drop(lock);
    Ok(Fetched { path: target, was_here: false })
}

/// Downloads one archive, or finds it at a mirror that is a folder.
fn bring(archive: &Archive, folder: &Path, options: &FetchOptions<'_>, progress: &dyn Progress) -> Result<PathBuf> {
    let url = match &options.mirror {
        None => archive.url.clone(),
        Some(mirror) if mirror.starts_with("http://") || mirror.starts_with("https://") => {
            format!("{}/{}", mirror.trim_end_matches('/'), archive.file)
        }
        Some(mirror) => {
            let path = Path::new(mirror.strip_prefix("file://").unwrap_or(mirror)).join(&archive.file);
            if mirror.contains("://") && !mirror.starts_with("file://") {
                return Err(Error::Usage(format!(
                    "--mirror {mirror}: expected http://, https:// or file://, or a folder, with {} in it",
                    archive.file
                )));
            }
            if !path.is_file() {
                return Err(Error::input(
                    &path,
                    "there is no such file; --mirror names the address or folder that it lies in",
                ));
            }
            return match check_md5(&path, archive, progress)? {
                None => Ok(path),
                Some(why) => Err(Error::input(&path, format!("{why}; give a mirror that has the right file"))),
            };
        }
    };
    Download { archive, url, folder, rules: options.rules, stop: options.stop, progress }.run()
}

/// Makes the whole folder of the set.
fn unpack_into(
    set: &KnownSet,
    files: &[PathBuf],
    staging: &Path,
    options: &FetchOptions<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    fs::create_dir_all(staging).map_err(Error::io(staging, "make a folder for pictures"))?;
    let mut sums = std::collections::BTreeMap::new();
    for (archive, file) in set.archives.iter().zip(files) {
        if archive.holds == Holds::Pictures {
            sums = unpack::pictures(file, staging, set.pictures, options.stop, progress)?;
        }
    }
    let pictures: Vec<&str> = sums.keys().map(String::as_str).collect();
    let file_of = |name: &str| {
        let at = set.archives.iter().position(|archive| archive.file == name);
        at.and_then(|at| files.get(at)).cloned().unwrap_or_default()
    };
    let tables = annotate::tables(set, file_of, &pictures, options.stop)?;
    let write = |name: &str, text: &str| {
        let path = staging.join(name);
        fs::write(&path, text).map_err(Error::io(&path, "write what is known of the pictures"))
    };
    if let Some(labels) = &tables.labels {
        write(LABELS, labels)?;
    }
    if let Some(split) = &tables.split {
        write(SPLIT, split)?;
    }
    write(SUMS, &sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect::<String>())?;
    let archives: Vec<_> =
        set.archives.iter().map(|a| json!({ "file": a.file, "url": a.url, "md5": a.md5, "bytes": a.bytes })).collect();
    let mark = json!({
        "name": set.name,
        "title": set.title,
        "pictures": set.pictures,
        "mirror": options.mirror,
        "archives": archives,
    });
    write(MARK, &format!("{mark:#}\n"))
}

/// One process at a time for each set.
fn lock(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(format!(".fetching-{name}"));
    let file = File::create(&path).map_err(Error::io(&path, "make a lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::input(
            dir,
            format!("another process is fetching {name} into this data directory; let it finish"),
        )),
        // Some network file systems have no locks; that is no reason to fetch nothing.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Removes the folder of archives where it is empty.
fn tidy(archives: &Path, keep: bool) {
    if !keep && fs::remove_dir(archives).is_ok() {
        archives.parent().map(fs::remove_dir);
    }
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(folder, "remove what an earlier attempt left")(why))
        }
        _ => Ok(()),
    }
}

/// Refuses to begin what the disk has no room for.
fn check_space(dir: &Path, set: &KnownSet, archives: &Path) -> Result<()> {
    let Some(free) = free_space(dir) else { return Ok(()) };
    let here = |archive: &Archive| {
        let names = [archive.file.clone(), format!("{}.part", archive.file)];
        let lengths = names.iter().filter_map(|name| fs::metadata(archives.join(name)).ok()).map(|meta| meta.len());
        lengths.max().unwrap_or(0).min(archive.bytes)
    };
    let missing: u64 = set.archives.iter().map(|archive| archive.bytes - here(archive)).sum();
    // Pictures are compressed already: unpacked they need what the archive needs, and a little for the ends of blocks.
    let needed = missing + set.bytes() + set.bytes() / 20;
    if free >= needed {
        return Ok(());
    }
    Err(Error::input(
        dir,
        format!(
            "{} are free, but {} need {} (archives and unpacked pictures); make room, or name another place with --data-dir",
            size(free),
            set.name,
            size(needed)
        ),
    ))
}

/// Bytes that this user may write to the file system of `dir`; None where nobody knows.
#[cfg(unix)]
fn free_space(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a value of this plain C structure, and the call only writes to it.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a string that ends in a zero and outlives the call; `stat` is valid for writing.
    let code = unsafe { libc::statvfs(path.as_ptr(), &mut stat) };
    (code == 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_space(_dir: &Path) -> Option<u64> {
    None
}
