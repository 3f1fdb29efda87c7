//! `ddim-engine sweep`.

use std::path::PathBuf;

use ddim_engine::config::Precision;
use ddim_engine::error::{Error, Result};
use ddim_engine::lab::sweep::{self, Options, Outcome, Plan, State};
use ddim_engine::train::interrupt::Interrupt;

use super::device::{Chosen, DeviceArgs, Prefer, cores};
use super::train::Settings;
use super::{print, runs};

const EXAMPLES: &str = "\
Examples
  ddim-engine sweep --grid lr=0.001,0.002 --epochs 2      two runs
  ddim-engine sweep --grid loss=mae,mse --grid predict=noise,image \\
      --grid schedule=cosine,linear --data FOLDER         eight runs
  ddim-engine sweep --grid 'widths=32,64|32,64,96'        values that are lists
  ddim-engine sweep --grid seed=0,1,2 --jobs 2            two at a time
  ddim-engine sweep my.toml --dry-run                     what would be done
  ddim-engine sweep --resume runs/sweep-loss              go on

my.toml has the keys of train --config, and the grid (options of the
family unet2d in quotes):
  preset = \"quick\"
  epochs = 2
  [grid]
  lr = [0.001, 0.002]
  widths = [[32, 64], [32, 64, 96]]

Every combination becomes a run of its own in the sweep's folder, such as
runs/sweep-lr/lr=0.001. The same command again skips runs that are finished
and goes on with those that stopped; values added to the grid add runs.
Ctrl-C lets the runs save. ddim-engine runs FOLDER compares them.";

/// Train a grid of settings, one run for each combination
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A TOML file of settings with a table [grid]
    #[arg(value_name = "FILE.toml")]
    file: Option<PathBuf>,

    /// A key and its values; may be repeated, every combination is run. Values that are lists: 32,64|64,128 or [32,64],[64,128]
    #[arg(long, value_name = "KEY=A,B", allow_negative_numbers = true)]
    grid: Vec<String>,

    #[command(flatten)]
    settings: Settings,

    /// Folder of the sweep, made if missing [default: runs/sweep-FILE, or runs/sweep-KEYS]
    #[arg(long, value_name = "DIR")]
    sweep_dir: Option<PathBuf>,

    /// Go on with the sweep in this folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["file", "grid", "sweep_dir", "preset", "config", "set", "data",
        "precision", "epochs", "steps", "seed"])]
    resume: Option<PathBuf>,

    /// Runs at a time; they share the cores, and a GPU. The results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,

    /// Where `flowers` and `pets` are looked for [default: $DDIM_DATA_DIR, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// After a run that failed, go on with the others
    #[arg(long)]
    keep_going: bool,

    /// List the runs and what would be done; write nothing
    #[arg(long)]
    dry_run: bool,

    /// Only errors, and the table at the end
    #[arg(long, short)]
    quiet: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let (plan, dir) = match &self.resume {
            Some(dir) => (Plan::open(dir)?, dir.clone()),
            None => {
                let plan = Plan::new(self.file.as_deref(), &self.settings.layers(), &self.grid)?;
                let dir = self.sweep_dir.clone().unwrap_or_else(|| sweep::default_dir(self.file.as_deref(), &plan));
                (plan, dir)
            }
        };
        let jobs = usize::from(self.jobs);
        let threads = match (self.device.threads(0), jobs) {
            (0, 1) => None,
            (0, jobs) => Some((cores() / jobs).max(1)),
            (all, jobs) => Some((all / jobs).max(1)),
        };
        let devices = devices(&self.device, &plan, threads.unwrap_or(0))?;
        let states = sweep::inspect(&dir, &plan)?;
        if self.dry_run {
            return dry_run(&plan, &states, &dir);
        }
        if !self.quiet {
            devices.iter().for_each(|device| print::stderr(&device.line));
            let on = if devices.iter().any(Chosen::is_gpu) { ", which share the GPU" } else { "" };
            let each = threads.map_or(String::new(), |n| format!(", {n} thread{} each", if n == 1 { "" } else { "s" }));
            let at_once = if jobs == 1 { "one at a time".into() } else { format!("{jobs} at a time{each}{on}") };
            print::stderr(&format!("sweep   {} runs, {at_once}; {}", plan.runs.len(), dir.display()));
        }
        let mut arguments = vec!["--device".to_string(), self.device.name().to_string()];
        arguments.extend(threads.into_iter().flat_map(|n| ["--threads".to_string(), n.to_string()]));
        if let Some(data_dir) = &self.data_dir {
            arguments.extend(["--data-dir".to_string(), data_dir.display().to_string()]);
        }
        let program = std::env::current_exe().map_err(Error::io("ddim-engine", "find this program"))?;
        let options =
            Options { program, dir: dir.clone(), jobs, arguments, keep_going: self.keep_going, quiet: self.quiet };
        let outcome = sweep::run(&plan, &options, &Interrupt::install()?)?;
        if outcome.interrupted {
            let go_on = format!("go on with: ddim-engine sweep --resume {}", dir.display());
            return Err(Error::Interrupted(format!(
                "stopped with {} of {} runs finished; {go_on}",
                outcome.finished,
                plan.runs.len()
            )));
        }
        runs::print_table(&dir)?;
        ended(&plan, &outcome, &dir, self.keep_going)
    }
}

/// The devices that the runs compute on, one for each precision.
fn devices(args: &DeviceArgs, plan: &Plan, threads: usize) -> Result<Vec<Chosen>> {
    let mut precisions: Vec<Precision> = Vec::new();
    for run in &plan.runs {
        if !precisions.contains(&run.config.precision) {
            precisions.push(run.config.precision);
        }
    }
    precisions.into_iter().map(|precision| args.choose(threads, precision, Prefer::Speed)).collect()
}

fn dry_run(plan: &Plan, states: &[State], dir: &std::path::Path) -> Result<()> {
    let width = plan.runs.iter().map(|run| run.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (run, state) in plan.runs.iter().zip(states) {
        text.push_str(&format!("{:<width$}  {}\n", run.name, state.text()));
    }
    let finished = states.iter().filter(|state| **state == State::Finished).count();
    let runs = plan.runs.len();
    text.push_str(&format!("{runs} runs in {}, {} to do; nothing was written\n", dir.display(), runs - finished));
    print::stdout(&text)
}

/// What is said at the end.
fn ended(plan: &Plan, outcome: &Outcome, dir: &std::path::Path, keep_going: bool) -> Result<()> {
    let Some((name, why)) = outcome.failed.first() else { return Ok(()) };
    let not_begun = match outcome.left {
        0 => String::new(),
        n => format!("; {n} not begun (--keep-going begins them all the same)"),
    };
    let more = match outcome.failed.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    let keep = if keep_going { " --keep-going" } else { "" };
    Err(Error::Failed(format!(
        "{} of {} runs failed: {name}: {why}{more}{not_begun}; go on with: ddim-engine sweep --resume {}{keep}",
        outcome.failed.len(),
        plan.runs.len(),
        dir.display()
    )))
}
