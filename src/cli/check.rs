//! `ddim-engine check`.

use std::path::PathBuf;

use ddim_engine::config::Precision;
use ddim_engine::error::{Error, Result};

use super::device::{DeviceArgs, Prefer};
use super::{print, run};

const EXAMPLES: &str = "\
Example
  ddim-engine check tests/fixtures/reference/*.safetensors

A line per quantity: largest absolute error, relative error, tolerance.
Exit code 1: a tolerance is exceeded; 2: a file cannot be used.";

/// Compare with PyTorch, by reference files
///
/// Replays reference files (a network, its inputs, and what PyTorch makes of them) and prints how far the results are off.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Reference files
    #[arg(value_name = "REFERENCE.safetensors", required = true)]
    files: Vec<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "PRECISION", default_value = "auto")]
    precision: String,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let precision = Precision::parse(&self.precision)?;
        let threads = self.device.threads(0);
        let device = self.device.choose(threads, precision, Prefer::Exactness)?;
        if let Some(file) = self.files.iter().find(|file| !file.is_file()) {
            let what = if file.exists() { "is not a file" } else { "there is no such file" };
            return Err(Error::input(file, format!("{what}; expected a reference file (.safetensors)")));
        }
        print::stderr(&device.line);
        run::check(&device, &self.files)
    }
}
