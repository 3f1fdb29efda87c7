//! Floor 5: what people do around a model.
//!
//! | module | what |
//! |---|---|
//! | [`record`] | a run directory as it lies on disk: settings, last losses, samples, evaluation |
//! | [`find_lr`] | a sweep of the learning rate within one short training, and what it suggests |
//! | [`sweep`] | many runs from one grid of settings, sequential or side by side, resumable |
//! | [`runs`] | the table of all runs, and the difference of two |
//! | [`plot`] | figures as PNG and SVG |
//! | [`report`] | one self-contained page about runs; [`watch`] serves it while a run trains |

pub mod find_lr;
pub mod plot;
pub mod record;
pub mod report;
pub mod runs;
pub mod sweep;
pub mod watch;
