//! Training: the loop and what surrounds it. Nothing here but the loop itself knows a device.
//!
//! | module | what |
//! |---|---|
//! | [`run_dir`] | the folder of a run: its paths, its lock, files written whole or not at all |
//! | [`feed`] | the pictures and classes of every step |
//! | [`lr`] | the learning rate of every step |
//! | [`checkpoint`] | save, verify, find and prune checkpoints; [`tensor_file`] reads and writes their safetensors |
//! | [`metrics_log`], [`tensorboard`] | numbers and pictures of a run, for programs and for people |
//! | [`progress`], [`interrupt`] | what is said on the terminal, and Ctrl-C |
//! | [`picture`] | grids, PNG files and GIF animations |

pub mod batches;
pub mod checkpoint;
pub(crate) mod checks;
pub mod feed;
pub mod first;
pub mod interrupt;
pub mod lr;
pub mod metrics_log;
mod palette;
pub mod picture;
pub mod progress;
pub mod run_dir;
pub mod state;
pub mod stepper;
pub mod tensor_file;
pub mod tensorboard;
pub mod trainer;
pub(crate) mod window;
