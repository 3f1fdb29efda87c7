//! Runs as child processes of this program, one or several at a time: a crash ends its own run only.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::display::Display;
use super::plan::{self, Plan};
use super::state::{self, LOGS, State};
use crate::error::{Error, Result};
use crate::train::checkpoint;
use crate::train::interrupt::Interrupt;
use crate::train::progress::duration;
use crate::train::run_dir::write_atomic;

/// Children are looked at so often, and their metrics so often.
const LOOK: Duration = Duration::from_millis(20);
const READ: Duration = Duration::from_secs(1);

/// How the runs are carried out.
#[derive(Clone, Debug)]
pub struct Options {
    /// This program.
    pub program: PathBuf,
    /// Folder of the sweep.
    pub dir: PathBuf,
    /// Runs at a time, at least 1.
    pub jobs: usize,
    /// Arguments that every `train` gets, such as `--device cpu`.
    pub arguments: Vec<String>,
    /// After a run that failed, begin others.
    pub keep_going: bool,
    /// Say nothing.
    pub quiet: bool,
}

/// What came of a sweep.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Runs that have ended as they should, earlier ones included.
    pub finished: usize,
    /// Runs that failed, and why.
    pub failed: Vec<(String, String)>,
    /// Runs that have not begun, or can go on.
    pub left: usize,
    /// Whether it was interrupted.
    pub interrupted: bool,
}

struct Job {
    index: usize,
    child: Child,
    began: Instant,
    /// Where this session's part of the log begins.
    log_from: u64,
    state: State,
    told: String,
}

/// Carries out a sweep: writes its plan, and runs what [`state::inspect`] says is to be done.
///
/// # Errors
/// The folder cannot be written, another sweep runs in it, or a child cannot be started. Runs that fail are part of the [`Outcome`].
pub fn run(plan: &Plan, options: &Options, interrupt: &Interrupt) -> Result<Outcome> {
    let dir = &options.dir;
    fs::create_dir_all(dir.join(LOGS)).map_err(Error::io(dir, "create the folder of the sweep"))?;
    let _lock = lock(dir)?;
    let states = state::inspect(dir, plan)?;
    write_atomic(&dir.join(plan::FILE), plan.to_toml().as_bytes())?;
    Sweep::new(plan, options, &states).run(interrupt)
}

/// Held while a sweep runs; the system lets go of it however the process ends.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::io(&path, "open the lock of the sweep"))?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            let what = "another process runs a sweep in this folder; wait for it, stop it, or give another --sweep-dir";
            Err(Error::Usage(format!("{}: {what}", dir.display())))
        }
        // Some network file systems have no locks; sweeping there must still be possible.
        _ => Ok(file),
    }
}

struct Sweep<'a> {
    plan: &'a Plan,
    options: &'a Options,
    waiting: VecDeque<(usize, State)>,
    running: Vec<Job>,
    display: Display,
    outcome: Outcome,
    began: Instant,
    /// Runs done at the start, in parts of runs.
    done_before: f64,
    /// Runs done by this session and before, without those that run now.
    done: f64,
}

impl<'a> Sweep<'a> {
    fn new(plan: &'a Plan, options: &'a Options, states: &[State]) -> Self {
        let mut outcome = Outcome::default();
        let mut waiting = VecDeque::new();
        let mut done_before = 0.0;
        for (index, state) in states.iter().enumerate() {
            let run = &plan.runs[index];
            match state {
                State::Finished => {
                    outcome.finished += 1;
                    done_before += 1.0;
                }
                state => {
                    if matches!(state, State::GoOn(_)) {
                        done_before += state::fraction(&options.dir.join(&run.name), &run.config);
                    }
                    waiting.push_back((index, state.clone()));
                }
            }
        }
        let done = outcome.finished as f64;
        let display = Display::new(plan.runs.len(), options.quiet);
        Sweep {
            plan,
            options,
            waiting,
            running: Vec::new(),
            display,
            outcome,
            began: Instant::now(),
            done_before,
            done,
        }
    }

    fn run(mut self, interrupt: &Interrupt) -> Result<Outcome> {
        let total = self.plan.runs.len();
        if self.outcome.finished > 0 {
            let text = format!("{} of {total} runs are finished already", self.outcome.finished);
            self.display.line(&text);
        }
        let mut asked = false;
        let mut read = Instant::now();
        loop {
            if interrupt.requested() && !asked {
                asked = true;
                self.running.iter().for_each(|job| ask_to_stop(&job.child));
            }
            let stopping = asked || (!self.outcome.failed.is_empty() && !self.options.keep_going);
            while !stopping && self.running.len() < self.options.jobs {
                let Some((index, state)) = self.waiting.pop_front() else { break };
                let started = self.start(index, state);
                if let Err(why) = started {
                    return Err(self.abandon(why));
                }
            }
            let mut i = 0;
            while i < self.running.len() {
                match self.running[i].child.try_wait() {
                    Ok(None) => i += 1,
                    Ok(Some(status)) => {
                        let job = self.running.remove(i);
                        self.ended(&job, status, asked);
                        read = Instant::now() - READ;
                    }
                    Err(why) => {
                        let why = Error::Failed(format!("cannot wait for a run's process: {why}"));
                        return Err(self.abandon(why));
                    }
                }
            }
            if self.running.is_empty() && (stopping || self.waiting.is_empty()) {
                break;
            }
            if read.elapsed() >= READ {
                read = Instant::now();
                self.tell();
            }
            std::thread::sleep(LOOK);
        }
        self.outcome.left += self.waiting.len();
        self.outcome.interrupted = asked;
        Ok(self.outcome)
    }

    /// Starts a run.
    fn start(&mut self, index: usize, state: State) -> Result<()> {
        let run = &self.plan.runs[index];
        let root = self.options.dir.join(&run.name);
        let place = format!("[{}/{}]", index + 1, self.plan.runs.len());
        let mut arguments = vec!["train".to_string()];
        let path = |path: &Path| path.display().to_string();
        let what = match &state {
            State::GoOn(step) => {
                arguments.extend(["--resume".into(), path(&root)]);
                format!("goes on after step {step}")
            }
            other => {
                if let State::Anew(why) = other {
                    let aside = state::move_aside(&self.options.dir, &run.name)?;
                    self.display.line(&format!("{place} {}: {why}; its remains are now {}", run.name, path(&aside)));
                }
                arguments.extend(self.plan.arguments(run)?);
                arguments.extend(["--run-dir".into(), path(&root)]);
                "begins".into()
            }
        };
        arguments.extend(self.options.arguments.iter().cloned());
        let log_path = self.log(&run.name);
        let failed = || Error::io(&log_path, "write the log of the run");
        let mut log = OpenOptions::new().create(true).append(true).open(&log_path).map_err(failed())?;
        let quoted: Vec<_> = arguments.iter().map(|argument| quote(argument)).collect();
        writeln!(log, "$ ddim-engine {}", quoted.join(" ")).map_err(failed())?;
        let log_from = log.metadata().map_err(failed())?.len();
        let error_log = log.try_clone().map_err(failed())?;
        let mut command = Command::new(&self.options.program);
        command.args(&arguments).stdin(Stdio::null()).stdout(log).stderr(error_log);
        // A terminal's Ctrl-C reaches all processes of its group: a child would get two signals, and stop without saving.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        #[cfg(target_os = "linux")]
        end_with_parent(&mut command);
        let child = command.spawn().map_err(Error::io(&self.options.program, "start a run"))?;
        self.display.line(&format!("{place} {what:<8} {}", run.name));
        self.running.push(Job { index, child, began: Instant::now(), log_from, state, told: String::new() });
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.options.dir.join(LOGS).join(format!("{name}.log"))
    }

    /// A run has ended, in whichever way.
    fn ended(&mut self, job: &Job, status: ExitStatus, asked: bool) {
        let run = &self.plan.runs[job.index];
        let root = self.options.dir.join(&run.name);
        let place = format!("[{}/{}]", job.index + 1, self.plan.runs.len());
        let (steps, total, losses) = state::progress(&root, &run.config);
        if status.success() && root.join("summary.json").is_file() {
            self.outcome.finished += 1;
            self.done += 1.0;
            let seconds = duration(job.began.elapsed().as_secs_f64());
            let of = if let State::GoOn(before) = job.state { steps.saturating_sub(before) } else { steps };
            self.display.line(&format!("{place} done     {}: {of} steps in {seconds}{losses}", run.name));
            return;
        }
        if asked && status.code() == Some(130) {
            self.outcome.left += 1;
            let of = total.map_or(String::new(), |total| format!(" of {total}"));
            // Its last record may be older than what it saved.
            let saved = checkpoint::list(&root).ok().and_then(|all| all.last().map(|entry| entry.step));
            let steps = saved.unwrap_or(steps);
            self.display.line(&format!("{place} stopped  {}: after step {steps}{of}", run.name));
            return;
        }
        let log = self.log(&run.name);
        let why = last_error(&log, job.log_from).unwrap_or_else(|| how(status));
        self.display.line(&format!("{place} FAILED   {}: {why} (see {})", run.name, log.display()));
        self.outcome.failed.push((run.name.clone(), why));
    }

    /// Tells how far the whole is.
    fn tell(&mut self) {
        let mut done = self.done;
        for job in &mut self.running {
            let run = &self.plan.runs[job.index];
            let (steps, total, losses) = state::progress(&self.options.dir.join(&run.name), &run.config);
            let of = total.map_or(String::new(), |total| format!("/{total}"));
            job.told = format!("{} {steps}{of}{losses}", run.name);
            done += total.filter(|total| *total > 0).map_or(0.0, |total| (steps as f64 / total as f64).min(1.0));
        }
        // Those that failed are no work any more.
        let all = (self.plan.runs.len() - self.outcome.failed.len()) as f64;
        // Waiting runs that go on have a part behind them.
        let waiting: f64 = self
            .waiting
            .iter()
            .filter(|(_, state)| matches!(state, State::GoOn(_)))
            .map(|(index, _)| {
                let run = &self.plan.runs[*index];
                state::fraction(&self.options.dir.join(&run.name), &run.config)
            })
            .sum();
        let (done, seconds) = (done + waiting, self.began.elapsed().as_secs_f64());
        let gained = done - self.done_before;
        let left = (gained > 0.01 && seconds > 2.0).then(|| (all - done).max(0.0) * seconds / gained);
        let ended = self.outcome.finished + self.outcome.failed.len();
        let running: Vec<_> = self.running.iter().map(|job| job.told.clone()).collect();
        self.display.whole(ended, left, &running);
    }

    /// Something other than a run failed: the children save and end, and `why` is returned.
    fn abandon(&mut self, why: Error) -> Error {
        self.running.iter().for_each(|job| ask_to_stop(&job.child));
        for job in &mut self.running {
            // Nothing more can be done about one that cannot be waited for.
            let _ = job.child.wait();
        }
        why
    }
}

/// Asks a child to save and end.
fn ask_to_stop(child: &Child) {
    #[cfg(unix)]
    if let Ok(id) = libc::pid_t::try_from(child.id()) {
        // SAFETY: a plain system call; the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
}

/// Lets the system ask the child to save and end when this process dies without having done so.
#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    let ask = || {
        // SAFETY: prctl may be called between fork and exec; it takes numbers only.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call that is safe after fork; it allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, ask) };
}

/// How a process ended that said nothing.
fn how(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("was ended by signal {signal}");
    }
    match status.code() {
        Some(0) => "ended without a summary".into(),
        Some(130) => "was interrupted".into(),
        code => format!("ended with exit code {}", code.unwrap_or(-1)),
    }
}

/// The last `error: ` line of a log, behind `from`.
fn last_error(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(len.saturating_sub(64 << 10)))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find_map(|line| line.strip_prefix("error: ").map(String::from))
}

/// An argument as a shell takes it.
fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+=,:/@%".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.into(),
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    }
}

/// The folder of a sweep without `--sweep-dir`: the same for the same file or grid keys, so that the same command goes on.
pub fn default_dir(file: Option<&Path>, plan: &Plan) -> PathBuf {
    let stem = file.and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
    let keys = || plan.axes.iter().map(|axis| axis.key.as_str()).collect::<Vec<_>>().join("-");
    let mut name: String = stem.unwrap_or_else(keys);
    name =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).take(100).collect();
    let name = name.trim_start_matches("sweep-");
    Path::new(crate::train::run_dir::DEFAULT_BASE).join(format!("sweep-{name}"))
}
