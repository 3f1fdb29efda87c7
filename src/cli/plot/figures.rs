//! Figures that need no model.

use ddim_engine::error::{Error, Result};

/// Pictures under each schedule, and its rates over time
#[derive(clap::Args)]
pub struct Schedules {}

impl Schedules {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}

/// The embedding of the noise level, as a heat map
#[derive(clap::Args)]
pub struct Embedding {}

impl Embedding {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}

/// Losses of one or several runs over their steps
#[derive(clap::Args)]
pub struct Curves {}

impl Curves {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
