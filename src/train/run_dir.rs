//! The folder of a run: where everything lies, a lock against two processes in one folder, and files that are written whole or not
//! at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// The folder that runs are made in when none is named.
pub const DEFAULT_BASE: &str = "runs";

const LOCK: &str = ".lock";

/// A run directory that this process holds: no other process can train in it while this value lives.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// Holds the lock; the system lets go of it when the process ends, however it ends. None where the filesystem has no locks.
    _lock: Option<File>,
}

impl RunDir {
    /// Makes a directory for a new run: `given`, or `runs/<yyyymmdd-hhmmss>-<name>` with a number behind where that exists.
    ///
    /// A `given` directory may exist but must be empty: a run never overwrites another.
    pub fn create(given: Option<&Path>, name: &str) -> Result<Self> {
        match given {
            Some(path) => {
                fs::create_dir_all(path).map_err(Error::io(path, "create the run directory"))?;
                let run = Self::lock(path)?;
                if let Some(found) = first_entry(path)? {
                    return Err(Error::Usage(format!(
                        "--run-dir {0}: already holds {found}; give a new directory, or go on with that run by --resume {0}",
                        path.display()
                    )));
                }
                Ok(run)
            }
            None => Self::create_under(Path::new(DEFAULT_BASE), name),
        }
    }

    /// Makes `<base>/<yyyymmdd-hhmmss>-<name>`, with `-2`, `-3`, ... behind where that exists.
    pub fn create_under(base: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(base).map_err(Error::io(base, "create the folder of runs"))?;
        let stem = format!("{}-{}", local_timestamp(), file_name_part(name));
        for attempt in 1u32.. {
            let path = base.join(if attempt == 1 { stem.clone() } else { format!("{stem}-{attempt}") });
            match fs::create_dir(&path) {
                Ok(()) => return Self::lock(&path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(&path, "create the run directory")(e)),
            }
        }
        Err(Error::Failed(format!("{}: no free name for a run", base.display())))
    }

    /// Removes a directory that a run was to be made in, if nothing but the lock has come into it.
    pub fn remove_unused(root: &Path) {
        if !is_locked(root) && matches!(first_entry(root), Ok(None)) {
            // What cannot be removed is an empty folder: no reason to hide why there is no run in it.
            let _ = fs::remove_file(root.join(LOCK)).and_then(|()| fs::remove_dir(root));
        }
    }

    /// Opens the directory of an earlier run to go on with it. `path` may also be its `checkpoints` folder or one checkpoint in it.
    pub fn resume(path: &Path) -> Result<Self> {
        let root = Self::root_of(path)?;
        Self::lock(&root)
    }

    /// The run directory that `path` is, or lies in: the run itself, its `checkpoints` folder, a checkpoint or a file of one.
    pub fn root_of(path: &Path) -> Result<PathBuf> {
        if !path.exists() {
            return Err(Error::input(path, "no such run directory or checkpoint"));
        }
        // Made absolute, so that `.` inside a run has parents too.
        let whole = fs::canonicalize(path).map_err(Error::io(path, "find the run directory"))?;
        // At most a file in a checkpoint in `checkpoints`: three up.
        let Some(root) = whole.ancestors().take(4).find(|folder| folder.join("config.toml").is_file()) else {
            let what = "not a run directory: no config.toml in it or above it; expected what `ddim-engine train` made";
            return Err(Error::input(path, what));
        };
        // Where it is the same folder, the path as the user gave it reads better in messages than the absolute one.
        let given = path.ancestors().find(|&folder| fs::canonicalize(folder).is_ok_and(|folder| folder == root));
        Ok(given.unwrap_or(root).to_path_buf())
    }

    fn lock(root: &Path) -> Result<Self> {
        let path = root.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path, "open the lock of the run"))?;
        match Self::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Only for the message; the lock itself is the system's.
                let _ = file.read_to_string(&mut owner);
                let owner = if owner.trim().is_empty() {
                    "another process".into()
                } else {
                    format!("process {}", owner.trim())
                };
                return Err(Error::Usage(format!(
                    "{}: {owner} is training in this run directory; wait for it, stop it, or give another --run-dir",
                    root.display()
                )));
            }
            // Some network filesystems have no locks: training there must still be possible.
            Err(TryLockError::Error(_)) => return Ok(RunDir { root: root.to_path_buf(), _lock: None }),
        }
        let note = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        // Who holds it is a courtesy to the reader of a message; failing to say so is no reason not to train.
        let _ = note(&mut file);
        Ok(RunDir { root: root.to_path_buf(), _lock: Some(file) })
    }

    /// Takes the lock. Who looks whether a run is held ([`is_locked`]) holds it for a moment: that is no reason to refuse.
    fn try_lock(file: &File) -> std::result::Result<(), TryLockError> {
        for _ in 0..5 {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(20)),
                decided => return decided,
            }
        }
        file.try_lock()
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.toml`: the resolved configuration, re-runnable.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `summary.json`.
    pub fn summary_path(&self) -> PathBuf {
        self.root.join("summary.json")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The folder of sample pictures.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// `samples/epoch-0001.png`; the folder is made by whoever writes there, see [`write_atomic`].
    pub fn sample_path(&self, epoch: u64) -> PathBuf {
        self.samples().join(format!("epoch-{epoch:04}.png"))
    }

    /// Writes `config.toml`.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        write_atomic(&self.config_path(), toml.as_bytes())
    }

    /// `classes.txt`: the names of the classes of a network that knows classes.
    pub fn classes_path(&self) -> PathBuf {
        self.root.join("classes.txt")
    }

    /// Writes `classes.txt`, a class a line, from class 0 on.
    pub fn write_classes(&self, classes: &[String]) -> Result<()> {
        let text: String = classes.iter().map(|class| format!("{class}\n")).collect();
        write_atomic(&self.classes_path(), text.as_bytes())
    }

    /// Reads `config.toml`.
    pub fn read_config(&self) -> Result<String> {
        let path = self.config_path();
        fs::read_to_string(&path).map_err(Error::io(&path, "read the configuration of the run"))
    }

    /// Writes `summary.json`, indented.
    pub fn write_summary(&self, summary: &serde_json::Value) -> Result<()> {
        write_atomic(&self.summary_path(), format!("{summary:#}\n").as_bytes())
    }
}

/// Whether a process holds the lock of a run directory, that is, trains in it.
pub fn is_locked(root: &Path) -> bool {
    // Shared, so that two who look at the same time do not see each other.
    let Ok(file) = File::open(root.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Writes a file so that a reader, or a crash, sees the old content or the new and never a part. Makes missing folders.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
    let write = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tmp-");
        // Temporary files are private by default; what is renamed into place should have the usual permissions (umask applies).
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(parent)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync_dir(parent)
    };
    write().map_err(Error::io(path, "write the file"))
}

/// Makes renames and new names in a folder last through a power cut.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// The name of something in `path` other than the lock, the least in order so that messages repeat.
fn first_entry(path: &Path) -> Result<Option<String>> {
    let mut least: Option<String> = None;
    for entry in fs::read_dir(path).map_err(Error::io(path, "list the run directory"))? {
        let name = entry.map_err(Error::io(path, "list the run directory"))?.file_name().to_string_lossy().into_owned();
        if name != LOCK && least.as_ref().is_none_or(|l| name < *l) {
            least = Some(name);
        }
    }
    Ok(least)
}

/// `name` with everything but letters, digits, dots, dashes and underscores turned into dashes.
fn file_name_part(name: &str) -> String {
    let part: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let part = part.trim_matches('-');
    if part.is_empty() { "run".into() } else { part.into() }
}

/// The local time as `yyyymmdd-hhmmss`.
fn local_timestamp() -> String {
    let now = SystemTime::now();
    match local_time(now) {
        Some([year, month, day, hour, minute, second]) => {
            format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
        }
        None => format!("{}", now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())),
    }
}

/// Year, month, day, hour, minute and second of the local time at a moment; None where the system cannot tell.
pub(crate) fn local_time(at: SystemTime) -> Option<[i32; 6]> {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) as libc::time_t;
    // SAFETY: `tm` is plain numbers and a pointer that is never followed here; all zeroes is a valid value.
    let mut t: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live, aligned values of the types that localtime_r asks for.
    let converted = unsafe { !libc::localtime_r(&seconds, &mut t).is_null() };
    converted.then_some([t.tm_year + 1900, t.tm_mon + 1, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec])
}
