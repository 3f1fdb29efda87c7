//! Models that travel: to and from folders of the public diffusers library, and plain safetensors files.
//!
//! A diffusers folder holds the network's options and weights ([`folder`]), whose names are ours ([`weights`]), and a scheduler, which
//! becomes keys of the configuration ([`scheduler`]). Its models see pixels in [-1, 1], which here is `normalize` = `fixed`.
//!
//! [`load_folder`] and [`load_file`] read; [`import`] makes a run of what they read, at step 0; [`export`] writes.

pub mod folder;
pub mod scheduler;
pub mod weights;

mod export;
mod import;

pub use export::{ExportOptions, export};
pub use import::{ImportOptions, Imported, import, load_file, load_folder};
