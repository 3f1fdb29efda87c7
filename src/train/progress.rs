//! What is told of long work: a bar on a terminal, a line every few seconds elsewhere, or nothing. All of it goes to standard error.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The rate is that of the last so many seconds: the warm-up, or a pause, should not colour it for long.
const WINDOW: Duration = Duration::from_secs(10);
/// Readings of the rate window are at least so far apart, which bounds their number.
const READING: Duration = Duration::from_millis(100);
/// Plain lines are at least so far apart, the last one apart.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How progress is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bar where standard error is a terminal, plain lines elsewhere.
    Auto,
    /// Nothing; [`Progress::line`] is silent too.
    Quiet,
    /// Plain lines.
    Plain,
}

/// 3562211 as "3,562,211".
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Where the plain lines go; a terminal's bar draws itself.
type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

#[derive(Clone)]
enum Mode {
    Quiet,
    Plain(Sink),
    Bar,
}

/// Tells of tasks, one after another. May be shared between threads.
#[derive(Clone)]
pub struct Progress {
    mode: Mode,
    /// The bar on the screen, which lines must step around.
    shown: Arc<Mutex<Option<ProgressBar>>>,
}

impl Progress {
    /// Progress of the given kind.
    pub fn new(kind: Kind) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match kind {
            Kind::Quiet => Self::with_mode(Mode::Quiet),
            Kind::Auto if std::io::stderr().is_terminal() && !dumb => Self::with_mode(Mode::Bar),
            Kind::Auto | Kind::Plain => Self::plain_to(Box::new(std::io::stderr())),
        }
    }

    /// Plain lines into `sink`.
    pub fn plain_to(sink: Box<dyn Write + Send>) -> Self {
        Self::with_mode(Mode::Plain(Arc::new(Mutex::new(sink))))
    }

    fn with_mode(mode: Mode) -> Self {
        Progress { mode, shown: Arc::new(Mutex::new(None)) }
    }

    /// Begins a task of `total` units ("images"), of which the rate is told.
    pub fn task(&self, what: &str, total: u64, unit: &str) -> Task {
        let bar = matches!(self.mode, Mode::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            // A template that cannot be read would be a slip of this file; the crate's own style does then.
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {wide_msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(what.to_string());
            bar.tick();
            *lock(&self.shown) = Some(bar.clone());
            bar
        });
        let now = Instant::now();
        let state = State {
            done: 0,
            message: String::new(),
            readings: VecDeque::from([(now, 0)]),
            began: now,
            told: now,
            finished: false,
        };
        Task { progress: self.clone(), bar, what: what.into(), unit: unit.into(), total, state: Mutex::new(state) }
    }

    /// Prints a line, above the bar if there is one. Not in quiet mode.
    pub fn line(&self, text: &str) {
        match &self.mode {
            Mode::Quiet => {}
            Mode::Plain(sink) => tell(sink, text),
            Mode::Bar => match lock(&self.shown).as_ref().filter(|bar| !bar.is_finished()) {
                Some(bar) => bar.suspend(|| tell_stderr(text)),
                None => tell_stderr(text),
            },
        }
    }
}

/// One piece of long work. Dropping it takes its bar away.
pub struct Task {
    progress: Progress,
    bar: Option<ProgressBar>,
    what: String,
    unit: String,
    total: u64,
    state: Mutex<State>,
}

struct State {
    done: u64,
    message: String,
    /// Moments of the window with what was done by then, oldest first.
    readings: VecDeque<(Instant, u64)>,
    began: Instant,
    /// When the last plain line was told.
    told: Instant,
    finished: bool,
}

impl Task {
    /// `n` more units are done.
    pub fn advance(&self, n: u64) {
        self.advance_at(n, Instant::now());
    }

    /// As if `advance` were called at `now`; tests have no time to wait.
    fn advance_at(&self, n: u64, now: Instant) {
        let mut state = lock(&self.state);
        state.done += n;
        state.read(now);
        if let Some(bar) = &self.bar {
            bar.set_position(state.done);
            bar.set_message(self.tail(&state, now));
        } else if let Mode::Plain(sink) = &self.progress.mode
            && now.duration_since(state.told) >= LINE_EVERY
            && state.done < self.total
        {
            state.told = now;
            tell(sink, &self.plain(&state, now));
        }
    }

    /// Something to tell beside the numbers, such as "loss 0.1234".
    pub fn message(&self, text: &str) {
        let mut state = lock(&self.state);
        state.message = text.into();
        if let Some(bar) = &self.bar {
            bar.set_message(self.tail(&state, Instant::now()));
        }
    }

    /// Units a second over the recent window; None before there is one.
    pub fn rate(&self) -> Option<f64> {
        lock(&self.state).rate()
    }

    /// Ends the task; tells how long it took.
    pub fn finish(self) {
        self.finish_at(Instant::now());
    }

    fn finish_at(&self, now: Instant) {
        let mut state = lock(&self.state);
        state.finished = true;
        let seconds = now.duration_since(state.began).as_secs_f64();
        let mut text = format!("{}: {} {} in {}", self.what, state.done, self.unit, duration(seconds));
        if seconds > 0.0 {
            text.push_str(&format!(" ({} {}/s)", number(state.done as f64 / seconds), self.unit));
        }
        if !state.message.is_empty() {
            text.push_str(&format!(", {}", state.message));
        }
        drop(state);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.progress.line(&text);
    }

    /// "312 images/s, 45 s left, loss 0.1234".
    fn tail(&self, state: &State, now: Instant) -> String {
        let mut parts = Vec::new();
        if let Some(rate) = state.rate() {
            parts.push(format!("{} {}/s", number(rate), self.unit));
            if state.done < self.total && rate > 0.0 {
                // Counted down between readings too.
                let since =
                    state.readings.back().map_or(0.0, |&(at, _)| now.saturating_duration_since(at).as_secs_f64());
                let left = ((self.total - state.done) as f64 / rate - since).max(0.0);
                parts.push(format!("{} left", duration(left)));
            }
        }
        if !state.message.is_empty() {
            parts.push(state.message.clone());
        }
        parts.join(", ")
    }

    fn plain(&self, state: &State, now: Instant) -> String {
        let tail = self.tail(state, now);
        let comma = if tail.is_empty() { "" } else { ", " };
        format!("{}: {}/{} {}{comma}{tail}", self.what, state.done, self.total, self.unit)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.as_ref().filter(|_| !lock(&self.state).finished) {
            bar.finish_and_clear();
        }
    }
}

impl State {
    fn read(&mut self, now: Instant) {
        // The first reading is the start and stays as it is.
        let fresh = |last: &(Instant, u64)| now.saturating_duration_since(last.0) < READING;
        if self.readings.len() < 2 || !self.readings.back().is_some_and(fresh) {
            self.readings.push_back((now, self.done));
        }
        // One reading from before the window stays, so that slow work has a rate too.
        while self.readings.len() > 2 && self.readings.get(1).is_some_and(|r| now.duration_since(r.0) >= WINDOW) {
            self.readings.pop_front();
        }
    }

    fn rate(&self) -> Option<f64> {
        let (first, last) = (self.readings.front()?, self.readings.back()?);
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        (seconds > 0.0).then(|| (last.1 - first.1) as f64 / seconds)
    }
}

/// Nothing in these values can be left half changed, so one thread's panic must not silence the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A closed pipe is no reason to end the work, so errors of telling are passed over.
fn tell(sink: &Sink, text: &str) {
    let mut sink = lock(sink);
    let _ = writeln!(sink, "{text}").and_then(|()| sink.flush());
}

fn tell_stderr(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// "45 s", "2 min 05 s", "1 h 02 min".
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds.round() as u64;
    match seconds {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {:02} s", s / 60, s % 60),
        s => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<Vec<u8>>>);

    impl Write for Pipe {
        fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
            lock(&self.0).extend_from_slice(buffer);
            Ok(buffer.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Pipe {
        fn lines(&self) -> Vec<String> {
            String::from_utf8_lossy(&lock(&self.0)).lines().map(String::from).collect()
        }
    }

    #[test]
    fn shared_between_threads() {
        fn needs<T: Send + Sync>() {}
        needs::<Progress>();
        needs::<Task>();
    }

    #[test]
    fn plain_lines_are_few_and_the_last_is_told() {
        let pipe = Pipe::default();
        let progress = Progress::plain_to(Box::new(pipe.clone()));
        let task = progress.task("epoch 1", 640, "images");
        let began = lock(&task.state).began;
        task.message("loss 0.5");
        // One batch of 64 a second, for ten seconds.
        for second in 1..=10 {
            task.advance_at(64, began + Duration::from_secs(second));
        }
        task.finish_at(began + Duration::from_secs(10));
        assert_eq!(
            pipe.lines(),
            [
                "epoch 1: 320/640 images, 64.0 images/s, 5.0 s left, loss 0.5",
                "epoch 1: 640 images in 10 s (64.0 images/s), loss 0.5"
            ]
        );
    }

    #[test]
    fn the_rate_forgets_a_slow_start() {
        let task = Progress::new(Kind::Quiet).task("epoch 1", 10_000, "images");
        let began = lock(&task.state).began;
        task.advance_at(10, began + Duration::from_secs(30));
        assert!((task.rate().unwrap() - 1.0 / 3.0).abs() < 1e-9);
        for tenth in 1..=200 {
            task.advance_at(10, began + Duration::from_secs(30) + Duration::from_millis(100 * tenth));
        }
        assert!((task.rate().unwrap() - 100.0).abs() < 1e-6, "{:?}", task.rate());
        assert!(lock(&task.state).readings.len() < 110);
    }

    #[test]
    fn times_and_numbers_read_well() {
        assert_eq!(
            [0.04, 9.96, 59.0, 125.0, 3720.0].map(duration),
            ["0.0 s", "10 s", "59 s", "2 min 05 s", "1 h 02 min"]
        );
        assert_eq!([1234.4, 99.96, 12.34, 0.5].map(number), ["1234", "100.0", "12.3", "0.50"]);
    }

    #[test]
    fn quiet_says_nothing_and_still_counts() {
        let task = Progress::new(Kind::Quiet).task("x", 2, "steps");
        task.advance(2);
        assert_eq!(lock(&task.state).done, 2);
        task.finish();
    }
}
