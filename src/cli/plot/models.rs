//! Figures that a model draws.

use ddim_engine::error::{Error, Result};

/// A picture that dissolves in noise, and what a model draws from the same noise
#[derive(clap::Args)]
pub struct Reverse {}

impl Reverse {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}

/// A row of pictures for each of several runs, from the same noise
#[derive(clap::Args)]
pub struct Samples {}

impl Samples {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}

/// A row of pictures for each number of sampling steps, from the same noise
#[derive(clap::Args)]
pub struct Steps {}

impl Steps {
    /// Draws it.
    pub fn run(self) -> Result<()> {
        Err(Error::Failed("not built yet".into()))
    }
}
