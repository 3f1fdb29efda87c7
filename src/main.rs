//! The program `ddim-engine`. Everything is in the library; the command line is in `cli/`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
