//! `ddim-engine report`.

use std::path::PathBuf;

use ddim_engine::error::{Error, Result};
use ddim_engine::lab::report::{self, Page};
use ddim_engine::lab::watch::{Address, Watch};
use ddim_engine::train::run_dir::write_atomic;

use super::print;

const EXAMPLES: &str = "\
Examples
  ddim-engine report runs/NAME                      report.html
  ddim-engine report runs/A runs/B --out both.html  two runs, compared
  ddim-engine report runs --title Sweep             all runs in a folder
  ddim-engine report runs/NAME --serve              live, on 127.0.0.1:8600

The page is one file that loads nothing: it can be mailed and opened anywhere.";

/// Write a page about runs: curves, samples through the epochs, settings, how to reproduce
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of runs, or folders with runs in them
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// The page
    #[arg(long, value_name = "FILE.html", default_value = "report.html", conflicts_with = "serve")]
    out: PathBuf,

    /// What the page is called [default: the name of the run]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,

    /// Sample grids within the page, in MB at most; of more epochs an even part is taken
    #[arg(long, value_name = "MB", default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=1024), conflicts_with = "serve")]
    pictures: u32,

    /// Do not write the page but serve it, following the runs, until Ctrl-C; 127.0.0.1:8600 unless told
    #[arg(long, value_name = "[ADDR:]PORT", num_args = 0..=1, default_missing_value = "8600", allow_negative_numbers = true)]
    serve: Option<String>,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let ending = self.out.extension().map(|e| e.to_string_lossy().to_lowercase());
        if !matches!(ending.as_deref(), Some("html" | "htm")) {
            let out = self.out.display();
            return Err(Error::Usage(format!("--out {out}: expected a file name that ends in .html")));
        }
        let address = self.serve.as_deref().map(|text| Address::parse("--serve", text)).transpose()?;
        let (runs, notes) = report::find_runs(&self.runs)?;
        for note in &notes {
            print::stderr(&format!("warning: {note}"));
        }
        if let Some(address) = address {
            let watch = Watch::bind(address)?;
            if let Some(warning) = watch.warning() {
                print::stderr(&warning);
            }
            let watch = watch.serve(runs.into_iter().map(|run| run.root).collect(), self.title, None)?;
            print::stderr(&format!("report  {} (Ctrl-C ends it)", watch.url()));
            watch.wait();
            return Ok(());
        }
        let page = Page::of(&runs, self.title.as_deref(), notes, (self.pictures as usize) << 20)?;
        let html = page.html()?;
        write_atomic(&self.out, html.as_bytes())?;
        let (grids, total) = page
            .runs
            .iter()
            .fold((0, 0), |(grids, total), run| (grids + run.samples.frames.len(), total + run.samples.total));
        let of = if grids < total { format!(" of {total}") } else { String::new() };
        print::stdout(&format!(
            "report      {} ({:.1} MB: {} run{}, {grids}{of} sample grids)\n",
            self.out.display(),
            html.len() as f64 / 1e6,
            runs.len(),
            if runs.len() == 1 { "" } else { "s" },
        ))
    }
}
