//! `ddim-engine find-lr`.

use ddim_engine::error::{Error, Result};

/// Find a learning rate
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
