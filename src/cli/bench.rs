//! `ddim-engine bench`: hidden until there is more to measure than a step.

use std::path::PathBuf;

use clap::Subcommand;
use ddim_engine::config::Config;
use ddim_engine::error::Result;

use super::device::{DeviceArgs, Prefer};
use super::train::Settings;
use super::{print, run};

/// Measure speed
#[derive(clap::Args)]
#[command(hide = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time of a training step, and the memory that it takes
    Step {
        #[command(flatten)]
        settings: Box<Settings>,

        #[command(flatten)]
        device: DeviceArgs,

        /// Steps that are timed, after a few that are not
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        repeat: u32,

        /// Also write the result as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let What::Step { settings, device, repeat, json } = self.what;
        let config = Config::resolve(&settings.layers())?;
        let threads = device.threads(config.workers);
        let device = device.choose(threads, config.precision, Prefer::Speed)?;
        print::stderr(&device.line);
        run::bench_step(&device, &config, repeat as usize, json.as_deref())
    }
}
