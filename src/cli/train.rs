//! `ddim-engine train`.

use std::path::{Path, PathBuf};

use ddim_engine::config::{Config, Layers, PRESETS};
use ddim_engine::error::{Error, Result};
use ddim_engine::lab::watch::{Address, Running, Watch};
use ddim_engine::train::run_dir::{DEFAULT_BASE, RunDir};
use ddim_engine::train::trainer::TrainOptions;

use super::device::{DeviceArgs, Prefer};
use super::{print, run};

const EXAMPLES: &str = "\
Examples
  ddim-engine train                                        minutes, no download
  ddim-engine train --data FOLDER --epochs 20              your own pictures
  ddim-engine train --preset seed --steps 500              the larger network
  ddim-engine train --resume runs/NAME --epochs 40         go on with a run
  ddim-engine train --preset seed --print-config > my.toml
  ddim-engine train --config my.toml --set lr=0.0005       settings of your own
  ddim-engine train --watch                                curves and samples live

Ctrl-C saves and says how to go on. A run's folder holds config.toml,
metrics.jsonl, samples/ and checkpoints/.";

/// Train a model
///
/// Settings come from a preset, then --config, then --set, then the named options; later ones win.
#[derive(clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n--help lists all keys of --set."), after_long_help = long_help())]
pub struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Where `flowers` and `pets` are looked for [default: $DDIM_DATA_DIR, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Folder for the run, made if missing [default: a new one in runs/]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// Go on with a run (or one of its checkpoints), bit for bit as if it had not stopped; --epochs or --steps extend it
    #[arg(long, value_name = "RUN_DIR")]
    resume: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// A live page of the run on this machine, 127.0.0.1:8600 unless told; port 0: any that is free
    #[arg(long, value_name = "[ADDR:]PORT", num_args = 0..=1, default_missing_value = "8600", allow_negative_numbers = true)]
    watch: Option<String>,

    /// No progress, only errors
    #[arg(long, short)]
    quiet: bool,

    /// Print the resolved configuration as TOML, and stop
    #[arg(long)]
    print_config: bool,
}

/// Options that make a configuration.
#[derive(clap::Args)]
pub struct Settings {
    /// Settings to start from: quick, seed, unet2d-tiny, unet2d-32 or unet2d-64 [default: quick]
    #[arg(long, value_name = "PRESET")]
    preset: Option<String>,

    /// A TOML file of keys, such as the config.toml of a run
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Set a key, such as lr=0.0005 or widths=32,64,96; may be repeated
    #[arg(long, value_name = "KEY=VALUE", allow_negative_numbers = true)]
    set: Vec<String>,

    /// Pictures: procedural, flowers, pets, debug, a folder or a .tar
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,

    /// Arithmetic: auto, fp32, bf16, and on a GPU tf32
    #[arg(long, value_name = "PRECISION")]
    precision: Option<String>,

    /// Passes over the training pictures
    #[arg(long, value_name = "N", conflicts_with = "steps", allow_negative_numbers = true)]
    epochs: Option<String>,

    /// Steps in all, instead of epochs
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<String>,

    /// Seed of weights, order, times and noise
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<String>,
}

impl Settings {
    /// As the layers of a configuration.
    pub fn layers(self) -> Layers {
        Layers {
            preset: self.preset,
            file: self.config,
            sets: self.set,
            data: self.data,
            precision: self.precision,
            epochs: self.epochs,
            steps: self.steps,
            seed: self.seed,
        }
    }
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let layers = self.settings.layers();
        let config = match &self.resume {
            None => Config::resolve(&layers)?,
            Some(_) if self.run_dir.is_some() => {
                return Err(Error::Usage(
                    "--run-dir cannot be changed with --resume: a run goes on in its own folder".into(),
                ));
            }
            Some(run) => {
                layers.check_resume()?;
                Config::resume(&run_config(run)?, &layers)?
            }
        };
        let threads = self.device.threads(config.workers);
        let device = self.device.choose(threads, config.precision, Prefer::Speed)?;
        if self.print_config {
            return print::stdout(&config.to_toml());
        }
        if !self.quiet {
            print::stderr(&device.line);
        }
        // Taken before anything is made: a port in use must not cost a run.
        let address = self.watch.as_deref().map(|text| Address::parse("--watch", text)).transpose()?;
        let watch = address.map(Watch::bind).transpose()?;
        let mut options = TrainOptions {
            preset_name: layers.preset_name().to_string(),
            config,
            run_dir: self.run_dir,
            resume: self.resume,
            data_dir: self.data_dir,
            quiet: self.quiet,
            device: device.line.trim_start_matches("device: ").to_string(),
        };
        let Some(watch) = watch else { return run::train(&device, options) };
        let watch = serve(watch, &mut options)?;
        let root = options.run_dir.clone();
        let result = run::train(&device, options);
        watch.finish();
        if let (Err(_), Some(root)) = (&result, root) {
            RunDir::remove_unused(&root);
        }
        result
    }
}

/// Serves the page of the run that these options are about, whose folder is made here where it is not named.
fn serve(watch: Watch, options: &mut TrainOptions) -> Result<Running> {
    let root = match (&options.resume, &options.run_dir) {
        (Some(run), _) => RunDir::root_of(run)?,
        (None, Some(root)) => root.clone(),
        (None, None) => {
            let root = RunDir::create_under(Path::new(DEFAULT_BASE), &options.preset_name)?.root().to_path_buf();
            options.run_dir = Some(root.clone());
            root
        }
    };
    if let Some(warning) = watch.warning() {
        print::stderr(&warning);
    }
    let watch = watch.serve(vec![root], None, Some(&options.device))?;
    print::stderr(&format!("watch   {} shows this run while it trains", watch.url()));
    Ok(watch)
}

/// The configuration of the run that `path` is, or lies in.
fn run_config(path: &Path) -> Result<Config> {
    let wanted = "expected the folder of a run, such as runs/NAME, with config.toml and checkpoints/ in it";
    if !path.is_dir() {
        let what = if path.exists() { "is not a folder" } else { "there is no such folder" };
        return Err(Error::input(path, format!("{what}; {wanted}")));
    }
    Config::from_file(&RunDir::root_of(path)?.join("config.toml"))
}

fn long_help() -> String {
    let mut text = format!("{EXAMPLES}\n\nPresets\n");
    for (name, about) in PRESETS {
        text.push_str(&format!("  {name:<11} {about}\n"));
    }
    text.push_str("\nKeys of --config and --set, with their values in each preset\n");
    text.push_str(&Config::describe_keys());
    text
}
