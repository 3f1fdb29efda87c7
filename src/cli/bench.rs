//! `ddim-engine bench`: for developers, hidden.

use std::path::PathBuf;

use clap::Subcommand;
use ddim_engine::config::{Config, Precision};
use ddim_engine::error::Result;

use super::bench_ops::BenchOps;
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
    /// Time of group norm and attention alone, and the bytes that they move
    Ops {
        #[command(flatten)]
        device: DeviceArgs,

        /// Images
        #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
        batch: u32,

        /// Measurements of each operation
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        repeat: u32,

        /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
        #[arg(long, value_name = "PRECISION", default_value = "auto")]
        precision: String,
    },
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Step { settings, device, repeat, json } => {
                let config = Config::resolve(&settings.layers())?;
                let threads = device.threads(config.workers);
                let device = device.choose(threads, config.precision, Prefer::Speed)?;
                print::stderr(&device.line);
                run::bench_step(&device, &config, repeat as usize, json.as_deref())
            }
            What::Ops { device, batch, repeat, precision } => {
                let device = device.choose(device.threads(0), Precision::parse(&precision)?, Prefer::Speed)?;
                print::stderr(&device.line);
                let element = device.activation_bytes();
                let operations = device.run(BenchOps { batch, repeat: repeat as usize, element })?;
                let result = serde_json::json!({
                    "what": "operations",
                    "device": device.line.trim_start_matches("device: "),
                    "precision": device.arithmetic().to_string(),
                    "operations": operations,
                });
                print::stdout(&format!("{result:#}\n"))
            }
        }
    }
}
