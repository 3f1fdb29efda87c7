//! `ddim-engine import` and `ddim-engine export`.

use std::path::PathBuf;

use ddim_engine::error::Result;
use ddim_engine::interop::{self, ExportOptions, ImportOptions};
use ddim_engine::train::progress::{Kind, Progress};

use super::train::Settings;
use super::{print, run};

const IMPORT_EXAMPLES: &str = "\
Examples
  ddim-engine import FOLDER --out runs/public
  ddim-engine sample runs/public                       pictures (sample FOLDER does without import)
  ddim-engine import FOLDER --out runs/mine --data MY_PICTURES --set lr=0.00005
  ddim-engine train --resume runs/mine                 training goes on, at step 0
  ddim-engine import weights.safetensors --out runs/seed --preset seed

FOLDER is what diffusers' save_pretrained wrote for a DDPMPipeline or DDIMPipeline.";

/// Make a run of a diffusers folder (UNet2DModel) or of a safetensors file
///
/// The run can be sampled and trained. Settings of training are given here, as for train; those of the network are the source's own.
#[derive(clap::Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub struct ImportArgs {
    /// A folder of the diffusers library, or a safetensors file of weights
    #[arg(value_name = "FOLDER_OR_FILE")]
    source: PathBuf,

    /// Folder for the run; a new one
    #[arg(long, value_name = "RUN_DIR")]
    out: PathBuf,

    #[command(flatten)]
    settings: Settings,
}

impl ImportArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let run = self.out.display().to_string();
        let options = ImportOptions { source: self.source, out: self.out, layers: self.settings.layers() };
        let lines = interop::import(&options)?;
        print::stdout(&format!(
            "{}\nnext\n  ddim-engine sample {run}\n  ddim-engine train --resume {run}\n",
            lines.join("\n")
        ))
    }
}

const EXPORT_EXAMPLES: &str = "\
Examples
  ddim-engine export runs/NAME --out my-model               a folder for diffusers:
      DDIMPipeline.from_pretrained(\"my-model\")
  ddim-engine export runs/NAME --out weights.safetensors    the tensors alone, of either family";

/// Write a model as a diffusers folder (family unet2d) or as a safetensors file
#[derive(clap::Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArgs {
    /// Folder of a run (its newest checkpoint is taken), of one checkpoint, or a model file
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    source: PathBuf,

    /// A new folder, or a file that ends in .safetensors
    #[arg(long, value_name = "FOLDER_OR_FILE")]
    out: PathBuf,

    /// Weights: their moving average (ema), as trained (raw), or the average where there is one (auto)
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = run::Weights::Auto, hide_possible_values = true)]
    weights: run::Weights,

    /// Write a folder even where the library would show the pictures in other colours
    #[arg(long)]
    allow_normalizer: bool,
}

impl ExportArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let options = ExportOptions {
            source: self.source,
            out: self.out,
            weights: self.weights.into(),
            allow_normalizer: self.allow_normalizer,
        };
        let lines = interop::export(&options, &Progress::new(Kind::Auto))?;
        print::stdout(&format!("{}\n", lines.join("\n")))
    }
}
