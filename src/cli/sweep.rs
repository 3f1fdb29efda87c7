//! `ddim-engine sweep`.

use ddim_engine::error::{Error, Result};

/// Train a grid of settings
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
