//! Ctrl-C and SIGTERM: the first asks the run to stop after this step and save, the second ends the process at once.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};

/// A request to stop, shared by its clones.
#[derive(Clone, Debug)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
}

/// The flag of the installed handler: a process has one handler for its life.
static INSTALLED: Mutex<Option<Interrupt>> = Mutex::new(None);

impl Interrupt {
    /// Takes over Ctrl-C, SIGTERM and SIGHUP. Installing again gives the same flag, lowered.
    pub fn install() -> Result<Self> {
        Self::install_saying("finishing this step, then saving (press Ctrl-C again to stop at once)")
    }

    /// As [`Interrupt::install`], with what is said at the first Ctrl-C; the first call of a process decides.
    pub fn install_saying(words: &'static str) -> Result<Self> {
        // The value cannot be left half changed, so a panic elsewhere while holding it does no harm.
        let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(interrupt) = installed.as_ref() {
            interrupt.requested.store(false, Ordering::SeqCst);
            return Ok(interrupt.clone());
        }
        let interrupt = Self::manual();
        let flag = interrupt.requested.clone();
        ctrlc::set_handler(move || on_signal(&flag, words))
            .map_err(|e| Error::Failed(format!("cannot handle Ctrl-C (the run could not save on it): {e}")))?;
        *installed = Some(interrupt.clone());
        Ok(interrupt)
    }

    /// A flag that no signal raises, only [`Interrupt::request`]; for tests and for programs with their own handler.
    pub fn manual() -> Self {
        Interrupt { requested: Arc::new(AtomicBool::new(false)) }
    }

    /// Raises the flag.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether someone asked to stop.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

/// Runs in the handler's own thread, not in the signal's context, so printing is allowed.
fn on_signal(flag: &AtomicBool, words: &str) {
    // Errors are passed over: the terminal may be what went away.
    if flag.swap(true, Ordering::SeqCst) {
        let _ = writeln!(std::io::stderr(), "\nstopped at once");
        std::process::exit(130);
    }
    let _ = writeln!(std::io::stderr(), "\n{words}");
}
