//! The one error type of the crate, with the exit code that each kind means.
//!
//! Nothing panics on what a user, a file or a device can cause; such things become an [`Error`] whose text names the file or
//! option, what was found, what was expected and what to do.

use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, by who can mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bad option, key, value or combination. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A file or folder that cannot be used as what it was given for. Exit code 2.
    #[error("{}: {what}", path.display())]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        what: String,
    },
    /// The operating system refused a read or write. Exit code 1.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase ("write the checkpoint").
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A check or a run failed (a loss that is not a number, a tolerance exceeded). Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Tensors of shapes that do not fit an operation: a defect of the caller, reported rather than panicking. Exit code 1.
    #[error("{op}: {what}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// Both shapes, by name.
        what: String,
    },
    /// Interrupted by the user, after saving. Exit code 130.
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    /// An [`Error::Input`] about `path`.
    pub fn input(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Input { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// Wraps an [`std::io::Error`]; use as `.map_err(Error::io(path, "create the folder"))`.
    pub fn io(path: impl AsRef<Path>, action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let (path, action) = (path.as_ref().to_path_buf(), action.into());
        move |source| Error::Io { path, action, source }
    }

    /// The process exit code: 1 a check or run failed, 2 bad arguments or input, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Input { .. } => 2,
            Error::Io { .. } | Error::Failed(_) | Error::Shape { .. } => 1,
            Error::Interrupted(_) => 130,
        }
    }
}
