//! Figures that need no model.

use std::path::PathBuf;

use ddim_engine::data::{self, DataSpec};
use ddim_engine::error::{Error, Result};
use ddim_engine::lab::plot::curves::{Curves as Look, Metric};
use ddim_engine::lab::plot::forward::Forward;
use ddim_engine::lab::plot::{Drawing, Format, embedding};
use ddim_engine::lab::record::{self, RunRecord};

use crate::cli::print;

/// Writes a figure and says so.
pub(super) fn save(drawing: &Drawing, out: &std::path::Path) -> Result<()> {
    drawing.save(out)?;
    print::stdout(&format!("figure      {}\n", out.display()))
}

/// Pictures under each schedule, and its rates over time
#[derive(clap::Args)]
pub struct Schedules {
    /// Source of the picture: procedural, flowers, pets, debug, a folder or a .tar
    #[arg(long, value_name = "SOURCE", default_value = "procedural")]
    data: String,

    /// Where `flowers` and `pets` are looked for
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Number of the picture in its source
    #[arg(long, value_name = "N", default_value_t = 0)]
    picture: usize,

    /// Height and width that the picture is brought to
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=512))]
    image_size: u16,

    /// Schedules: cosine, linear, linear_unclipped, scaled_linear, squaredcos_cap_v2, sigmoid, edm
    #[arg(long, value_name = "NAMES", default_value = "linear,cosine", value_delimiter = ',')]
    schedule: Vec<String>,

    /// Least and greatest signal rate of linear and cosine
    #[arg(long, value_name = "MIN,MAX", default_value = "0.02,0.95", value_delimiter = ',')]
    signal_rates: Vec<f64>,

    /// Columns, from time 0 to 1
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u8).range(2..=64))]
    columns: u8,

    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Figure to write, .png or .svg
    #[arg(long, value_name = "FILE", default_value = "schedules.png")]
    out: PathBuf,
}

impl Schedules {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Format::of(&self.out)?;
        let signal_rates = match self.signal_rates[..] {
            [min, max] if 0.0 < min && min < max && max < 1.0 => [min, max],
            _ => {
                let found = self.signal_rates.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
                let what = "expected two numbers between 0 and 1, the lesser first, such as 0.02,0.95";
                return Err(Error::Usage(format!("--signal-rates {found}: {what}")));
            }
        };
        let spec = DataSpec { data_dir: self.data_dir, ..DataSpec::new(self.data, usize::from(self.image_size)) };
        let dataset = data::load(&spec, &data::Silent)?;
        let figure = Forward {
            schedules: self.schedule,
            signal_rates,
            picture: self.picture,
            columns: usize::from(self.columns),
            seed: self.seed,
            side: 64.0,
        };
        save(&figure.drawing(&dataset)?, &self.out)
    }
}

/// The embedding of the noise level, as a heat map
#[derive(clap::Args)]
pub struct Embedding {
    /// Channels of the embedding; even
    #[arg(long, value_name = "N", default_value_t = 32)]
    embedding_dim: usize,

    /// Figure to write, .png or .svg
    #[arg(long, value_name = "FILE", default_value = "embedding.png")]
    out: PathBuf,
}

impl Embedding {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Format::of(&self.out)?;
        save(&embedding::drawing(self.embedding_dim)?, &self.out)
    }
}

/// Losses of one or several runs over their steps
#[derive(clap::Args)]
pub struct Curves {
    /// Runs, or folders of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// loss, noise_loss, image_loss, lr or images_per_second
    #[arg(long, value_name = "METRIC", default_value = "loss")]
    metric: String,

    /// Which pictures: train, valid or both
    #[arg(long, value_name = "SPLIT", default_value = "both", value_parser = ["train", "valid", "both"])]
    split: String,

    /// Share of the average of training that stays from record to record; 0: no smoothing
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    smooth: f64,

    /// A logarithmic vertical axis
    #[arg(long)]
    log: bool,

    /// Figure to write, .png or .svg
    #[arg(long, value_name = "FILE", default_value = "curves.png")]
    out: PathBuf,
}

impl Curves {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Format::of(&self.out)?;
        let metric = Metric::parse(&self.metric)?;
        let runs = find_runs(&self.runs)?;
        let shown = |split: &str| self.split == split || self.split == "both";
        // Speed and learning rate of validations say nothing.
        let losses = matches!(metric, Metric::Loss | Metric::NoiseLoss | Metric::ImageLoss);
        let look = Look {
            metric,
            train: shown("train") || !losses,
            valid: shown("valid") && losses,
            smoothing: if metric == Metric::Lr { 0.0 } else { self.smooth },
            log: self.log,
        };
        let named: Vec<_> = runs.into_iter().map(|run| (run.name.clone(), run)).collect();
        save(&look.chart(&named)?.size(680.0, 400.0).drawing()?, &self.out)
    }
}

/// The runs that the paths stand for: a run itself, or all runs in a folder.
fn find_runs(paths: &[PathBuf]) -> Result<Vec<RunRecord>> {
    let mut runs = Vec::new();
    for path in paths {
        let found = record::find(path)?;
        if found.is_empty() {
            return Err(Error::input(path, "no run in this folder; expected what `ddim-engine train` or `sweep` made"));
        }
        for (_, run) in found {
            runs.push(run?);
        }
    }
    Ok(runs)
}
