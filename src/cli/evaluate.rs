//! `ddim-engine evaluate`.

use ddim_engine::error::{Error, Result};

/// Measure a model: losses by noise level, KID, FID
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
