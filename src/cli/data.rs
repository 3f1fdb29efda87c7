//! `ddim-engine data`.

use ddim_engine::error::{Error, Result};

/// Fetch, list and verify sets of pictures
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
