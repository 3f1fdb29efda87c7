//! `ddim-engine data`.

use std::path::PathBuf;

use ddim_engine::data;
use ddim_engine::data::fetch::{self, FetchOptions, Held, KnownSet, Rules};
use ddim_engine::error::{Error, Result};
use ddim_engine::train::batches::DataProgress;
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::progress::{Kind, Progress, grouped};

use super::print;

const EXAMPLES: &str = "\
Examples
  ddim-engine data list                          what there is, and where
  ddim-engine data fetch flowers                 download, check, unpack
  ddim-engine data fetch pets --mirror URL       the same files from elsewhere
  ddim-engine data verify                        every picture as it was?
  ddim-engine train --data flowers --epochs 20   then

Ctrl-C keeps what has come; the same command goes on from there.";

/// Fetch, list and verify sets of pictures
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Download a set of pictures: flowers or pets
    Fetch(Fetch),
    /// Which sets there are, how large, and where they lie
    List(List),
    /// Compare the pictures that are here with their recorded checksums
    Verify(Verify),
}

#[derive(clap::Args)]
struct Place {
    /// The data directory [default: $DDIM_DATA_DIR, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
struct Fetch {
    /// flowers (345 MB) or pets (811 MB)
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    place: Place,

    /// Take the files of the same names from here: http(s)://HOST/FOLDER, or a folder
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,

    /// Keep the archives, in archives/NAME of the data directory
    #[arg(long)]
    keep_archives: bool,

    /// No progress, only errors
    #[arg(long, short)]
    quiet: bool,
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct Verify {
    /// flowers or pets [default: those that are here]
    #[arg(value_name = "NAME")]
    name: Option<String>,

    #[command(flatten)]
    place: Place,

    /// No progress, only the result
    #[arg(long, short)]
    quiet: bool,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Fetch(args) => args.run(),
            Command::List(args) => args.run(),
            Command::Verify(args) => args.run(),
        }
    }
}

impl Place {
    fn find(&self) -> Result<(PathBuf, &'static str)> {
        match data::data_dir(self.data_dir.as_deref()) {
            (Some(dir), from) => Ok((dir, from)),
            (None, _) => Err(Error::Usage(
                "there is no data directory (HOME and XDG_CACHE_HOME are unset): set --data-dir or DDIM_DATA_DIR"
                    .into(),
            )),
        }
    }
}

fn progress(quiet: bool) -> Progress {
    Progress::new(if quiet { Kind::Quiet } else { Kind::Auto })
}

impl Fetch {
    fn run(self) -> Result<()> {
        let set = fetch::known_set(&self.name)?;
        let (data_dir, _) = self.place.find()?;
        let interrupt = Interrupt::install_saying("stopping (press Ctrl-C again to stop at once)")?;
        let progress = progress(self.quiet);
        progress.line(&format!("{}: {}, into {}", set.title, megabytes(set.bytes()), data_dir.display()));
        let stop = || interrupt.requested();
        let options = FetchOptions {
            data_dir,
            mirror: self.mirror,
            keep_archives: self.keep_archives,
            rules: Rules::default(),
            stop: &stop,
        };
        let fetched = fetch::fetch(&set, &options, &DataProgress::new(&progress))?;
        let state = if fetched.was_here { "already here" } else { "here now" };
        print::stdout(&format!(
            "{}: {} pictures {state}, in {}\nnext: ddim-engine train --data {}{}\n",
            set.name,
            grouped(set.pictures as u64),
            fetched.path.display(),
            set.name,
            match &self.place.data_dir {
                Some(dir) => format!(" --data-dir {}", dir.display()),
                None => String::new(),
            }
        ))
    }
}

impl List {
    fn run(self) -> Result<()> {
        let (dir, from) = self.place.find()?;
        let mut rows = vec![["set", "pictures", "download", "where"].map(String::from)];
        for set in fetch::known_sets() {
            let place = match fetch::held(&set.name, &dir) {
                Some(Held { path, fetched: true }) => path.display().to_string(),
                Some(Held { path, fetched: false }) => format!("{} (put there by hand)", path.display()),
                None => format!("not here: ddim-engine data fetch {}", set.name),
            };
            rows.push([set.name.clone(), grouped(set.pictures as u64), megabytes(set.bytes()), place]);
        }
        for (name, pictures) in [("procedural", "4,096"), ("debug", "2")] {
            rows.push([name, pictures, "-", "made by the program"].map(String::from));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        let mut text = format!("data directory: {} (from {from})\n\n", dir.display());
        for [name, pictures, download, place] in &rows {
            let [a, b, c] = widths;
            text.push_str(&format!("{name:<a$}  {pictures:>b$}  {download:>c$}  {place}\n"));
        }
        print::stdout(&text)
    }
}

impl Verify {
    fn run(self) -> Result<()> {
        let (dir, _) = self.place.find()?;
        let sets = match &self.name {
            Some(name) => vec![fetch::known_set(name)?],
            None => fetch::known_sets(),
        };
        let here: Vec<(KnownSet, Held)> =
            sets.into_iter().filter_map(|set| fetch::held(&set.name, &dir).map(|held| (set, held))).collect();
        if here.is_empty() {
            let name = self.name.as_deref().unwrap_or("flowers");
            let what = match &self.name {
                Some(name) => format!("there is no {name} in this data directory"),
                None => "there is no known set in this data directory".to_string(),
            };
            return Err(Error::input(&dir, format!("{what}; `ddim-engine data fetch {name}` brings it")));
        }
        let progress = progress(self.quiet);
        let mut wrong = Vec::new();
        for (set, held) in &here {
            let line = check(set, held, &progress)?;
            match line {
                Ok(right) => print::stdout(&format!("{right}\n"))?,
                Err(why) => wrong.push(why),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::Failed(wrong.join("\n"))) }
    }
}

/// Checks one set: a line that says it is right, or one that says what is wrong.
fn check(set: &KnownSet, held: &Held, progress: &Progress) -> Result<std::result::Result<String, String>> {
    let found = fetch::verify(&held.path, &DataProgress::new(progress))?;
    let place = held.path.display();
    if !found.has_sums {
        return Ok(Ok(format!(
            "{}: {} pictures of {}, no recorded checksums (not from `data fetch`), in {place}",
            set.name,
            grouped(found.pictures as u64),
            grouped(set.pictures as u64)
        )));
    }
    if found.is_right() {
        let pictures = grouped(found.pictures as u64);
        return Ok(Ok(format!("{}: {pictures} pictures, all checksums right, in {place}", set.name)));
    }
    let parts: Vec<String> =
        [("missing", &found.missing), ("changed", &found.changed), ("not of the set", &found.added)]
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| {
                let more = if names.len() > 3 { ", ..." } else { "" };
                let first: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
                format!("{} {what} ({}{more})", names.len(), first.join(", "))
            })
            .collect();
    Ok(Err(format!(
        "{}: {}, in {place}. Remove the folder and call `ddim-engine data fetch {}` again",
        set.name,
        parts.join("; "),
        set.name
    )))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
