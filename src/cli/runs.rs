//! `ddim-engine runs`.

use std::path::{Path, PathBuf};

use ddim_engine::error::{Error, Result};
use ddim_engine::lab::runs::filter::Filter;
use ddim_engine::lab::runs::render::{self, View};
use ddim_engine::lab::runs::{Runs, columns, diff};
use ddim_engine::train::run_dir::DEFAULT_BASE;

use super::print;

const EXAMPLES: &str = "\
Examples
  ddim-engine runs                                all runs in runs/
  ddim-engine runs runs/sweep-loss --sort valid_loss --limit 10
  ddim-engine runs --filter status=finished --filter 'kid<0.1'
  ddim-engine runs --columns name,lr,loss,valid_loss
  ddim-engine runs --csv > runs.csv               --json has everything
  ddim-engine runs diff runs/A runs/B             where two runs part
  ddim-engine runs show runs/A                    one run

Columns: name status step total_steps epoch train_loss valid_loss
noise_loss image_loss kid fid seconds images_per_second device begun preset
parameters path, and the keys of train --help.
Without --columns the table has those settings in which the runs differ.";

/// List and compare runs
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    list: List,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The settings and results in which two runs differ, and the first step where their losses do
    Diff {
        /// A run
        #[arg(value_name = "RUN_A")]
        a: PathBuf,
        /// Another
        #[arg(value_name = "RUN_B")]
        b: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Settings, results and files of one run
    Show {
        /// The run
        #[arg(value_name = "RUN")]
        run: PathBuf,
    },
}

#[derive(clap::Args)]
struct List {
    /// Folders of runs, or runs [default: runs]
    #[arg(value_name = "DIR")]
    folders: Vec<PathBuf>,

    /// Sort by a column, by its name or heading, or by a setting
    #[arg(long, value_name = "KEY")]
    sort: Option<String>,

    /// The other way round
    #[arg(long)]
    reverse: bool,

    /// Only runs with key=value, or !=, <, <=, >, >=, ~ (contains); may be repeated
    #[arg(long, value_name = "CONDITION")]
    filter: Vec<String>,

    /// These columns, with commas between them
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    columns: Vec<String>,

    /// Full texts, and all settings
    #[arg(long)]
    all: bool,

    /// The first N runs
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// As JSON, everything that is known of each run
    #[arg(long, conflicts_with = "csv")]
    json: bool,

    /// As CSV
    #[arg(long)]
    csv: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.command {
            None => self.list.run(),
            Some(Command::Diff { a, b, json }) => {
                let diff = diff::diff(&a, &b)?;
                print::stdout(&if json { format!("{:#}\n", diff.json()) } else { diff.text() })
            }
            Some(Command::Show { run }) => print::stdout(&diff::show(&run)?),
        }
    }
}

impl List {
    fn run(self) -> Result<()> {
        let filters = self.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>>>()?;
        let folders = if self.folders.is_empty() { vec![PathBuf::from(DEFAULT_BASE)] } else { self.folders };
        if folders == [PathBuf::from(DEFAULT_BASE)] && !folders[0].exists() {
            let what =
                "there is no such folder here yet; `ddim-engine train` makes it, or name another: ddim-engine runs DIR";
            return Err(Error::input(&folders[0], what));
        }
        let mut runs = Runs::find(&folders)?;
        let chosen: Vec<_> = self.columns.iter().map(|key| columns::named(key).to_string()).collect();
        chosen.iter().try_for_each(|key| columns::check(key, &runs))?;
        runs.filter(&filters)?;
        match &self.sort {
            Some(key) => runs.sort(key, self.reverse)?,
            None if self.reverse => runs.rows.reverse(),
            None => {}
        }
        let columns = (!chosen.is_empty()).then_some(chosen);
        let view = View { columns, all: self.all, limit: self.limit, width: if self.all { None } else { width() } };
        if self.csv {
            for (path, why) in &runs.damaged {
                print::stderr(&format!("left out, as it is damaged: {}: {why}", path.display()));
            }
            return print::stdout(&render::csv(&runs, &view));
        }
        if self.json {
            return print::stdout(&format!("{:#}\n", render::json(&runs, &view)));
        }
        print::stdout(&render::table(&runs, &view))
    }
}

/// Columns of the terminal; None where standard output is none.
fn width() -> Option<usize> {
    let term = console::Term::stdout();
    term.features().is_attended().then(|| term.size_checked()).flatten().map(|(_, columns)| usize::from(columns))
}

/// The table of a folder, as it is without options.
pub fn print_table(folder: &Path) -> Result<()> {
    let runs = Runs::find(&[folder.to_path_buf()])?;
    print::stdout(&render::table(&runs, &View { width: width(), ..View::default() }))
}
