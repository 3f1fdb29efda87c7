//! What is said while a sweep runs: a line for every run that begins or ends, and the whole with the time left.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::train::progress::duration;

/// Away from a terminal the whole is told so often.
const EVERY: Duration = Duration::from_secs(30);

/// Tells of a sweep on standard error.
pub struct Display {
    quiet: bool,
    bar: Option<ProgressBar>,
    total: usize,
    told: Instant,
}

impl Display {
    /// For `total` runs; `quiet` says nothing.
    pub fn new(total: usize, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let bar = (!quiet && !dumb && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("sweep {bar:20} {pos}/{len} runs {wide_msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Display { quiet, bar, total, told: Instant::now() }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        // A closed stream is no reason to end the runs.
        let tell = || drop(writeln!(std::io::stderr(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(tell),
            None => tell(),
        }
    }

    /// The whole: `ended` runs, what runs now, and seconds left where they can be told.
    pub fn whole(&mut self, ended: usize, left: Option<f64>, running: &[String]) {
        let mut parts = Vec::new();
        parts.extend(left.map(|seconds| format!("about {} left", duration(seconds))));
        parts.extend(running.iter().cloned());
        let text = parts.join("; ");
        if let Some(bar) = &self.bar {
            bar.set_position(ended as u64);
            bar.set_message(text);
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            self.line(&format!("sweep {ended}/{} runs; {text}", self.total));
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
