//! `ddim-engine plot`.

mod figures;
mod models;

use ddim_engine::error::Result;

const EXAMPLES: &str = "\
Examples
  ddim-engine plot schedules --out schedules.png
  ddim-engine plot embedding --out embedding.svg
  ddim-engine plot curves runs/A runs/B --out curves.png
  ddim-engine plot reverse runs/NAME --out reverse.png
  ddim-engine plot samples runs/A runs/B --out samples.png
  ddim-engine plot steps runs/NAME --out steps.png

The ending of --out, .png or .svg, decides the format.";

/// Draw figures, as PNG or SVG: schedules, embedding, loss curves, samples
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Schedules(figures::Schedules),
    Embedding(figures::Embedding),
    Curves(figures::Curves),
    Reverse(models::Reverse),
    Samples(models::Samples),
    Steps(models::Steps),
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Schedules(args) => args.run(),
            What::Embedding(args) => args.run(),
            What::Curves(args) => args.run(),
            What::Reverse(args) => args.run(),
            What::Samples(args) => args.run(),
            What::Steps(args) => args.run(),
        }
    }
}
