//! The command line, thin: parse arguments, resolve the configuration, call a library function, print.
//!
//! Exit codes: 0 done, 1 a check or run failed, 2 bad arguments or input, 130 interrupted.

mod bench;
mod bench_ops;
mod bench_run;
mod check;
mod data;
mod device;
mod doctor;
mod evaluate;
mod find_lr;
mod interop;
mod plot;
mod print;
mod report;
mod run;
mod runs;
mod sample;
mod sweep;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ddim_engine::error::Result;

const WELCOME: &str = "\
Trains and samples denoising diffusion models (DDIM) with hand-written kernels.

First command to try: learns to draw flowers, in minutes, with nothing to download
  ddim-engine train

Then
  ddim-engine sample runs/NAME      pictures from the model that it made
  ddim-engine train --help          all settings, and the presets
  ddim-engine doctor                what this machine has, and what to do about what is missing
  ddim-engine --help                all commands
";

const AFTER_HELP: &str = "\
First command to try (minutes on a CPU, nothing to download):
  ddim-engine train

The next three:
  ddim-engine sample runs/NAME --gif flowers.gif   pictures from what it learned
  ddim-engine train --data FOLDER                  learn from your own pictures
  ddim-engine doctor                               what this machine has

Exit codes: 0 done, 1 a check or run failed, 2 bad arguments or input,
130 interrupted (after saving).";

/// Trains and samples denoising diffusion models (DDIM) with hand-written kernels.
#[derive(Parser)]
#[command(name = "ddim-engine", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Sample(sample::Args),
    Encode(sample::EncodeArgs),
    Evaluate(evaluate::Args),
    FindLr(find_lr::Args),
    Sweep(sweep::Args),
    Runs(runs::Args),
    Plot(plot::Args),
    Report(report::Args),
    Data(data::Args),
    Import(interop::ImportArgs),
    Export(interop::ExportArgs),
    Check(check::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(why) => {
            why.print().ok(); // a closed stream: there is nobody to tell
            return ExitCode::from(u8::try_from(why.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            print::stderr(&format!("error: {why}"));
            ExitCode::from(why.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        None => print::stdout(WELCOME),
        Some(Command::Train(args)) => args.run(),
        Some(Command::Sample(args)) => args.run(),
        Some(Command::Encode(args)) => args.run(),
        Some(Command::Evaluate(args)) => args.run(),
        Some(Command::FindLr(args)) => args.run(),
        Some(Command::Sweep(args)) => args.run(),
        Some(Command::Runs(args)) => args.run(),
        Some(Command::Plot(args)) => args.run(),
        Some(Command::Report(args)) => args.run(),
        Some(Command::Data(args)) => args.run(),
        Some(Command::Import(args)) => args.run(),
        Some(Command::Export(args)) => args.run(),
        Some(Command::Check(args)) => args.run(),
        Some(Command::Doctor(args)) => args.run(),
        Some(Command::Bench(args)) => args.run(),
    }
}
