//! Many runs from one grid of settings: planned and checked before anything is written, carried out by child processes, resumable.
//!
//! | module | what |
//! |---|---|
//! | [`grid`] | the keys and values of the grid; their product; names of runs |
//! | [`plan`] | shared settings and grid to one checked configuration a run; `sweep.toml` |
//! | [`state`] | what is there of a run, and so what is to be done |
//! | [`execute`] | the processes: started, watched, stopped |
//! | [`display`] | what is said meanwhile |
//!
//! A sweep's folder has `sweep.toml`, `logs/NAME.log`, and a run directory for every combination.

pub mod display;
pub mod execute;
pub mod grid;
pub mod plan;
pub mod state;

pub use execute::{Options, Outcome, default_dir, run};
pub use plan::{Plan, Planned};
pub use state::{State, inspect};
