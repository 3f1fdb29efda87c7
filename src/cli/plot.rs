//! `ddim-engine plot`.

use ddim_engine::error::{Error, Result};

/// Draw figures
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
