//! `ddim-engine runs`.

use ddim_engine::error::{Error, Result};

/// List and compare runs
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
