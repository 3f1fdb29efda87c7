//! Floor 5: how fast it is, and by what measure. Behind `ddim-engine bench`.
//!
//! [`probe`] is a device that watches another, so that what is measured is what the models ask for; [`kernels`] makes a row of every
//! operation, [`step`] and [`sample`] time the whole and its parts, [`ladder`] the kernels of `kernels/ladder/` from naive to final.
//! [`ceilings`] says what the machine could do at best, measured in the same run; [`machine`] in what state it was; [`compare`] sets two
//! results side by side.
//!
//! The method: every row has the median, the 20th and the 80th percentile of its samples and their number, with warm caches (one call after
//! the other on the same operands, as inside a network, where a producer leaves its result in the cache) and with cold ones (after twice
//! 64 MiB were read and written). Predicted is the larger of multiply-adds over the measured peak and bytes over the measured bandwidth of
//! main memory, the share of the roofline is predicted over measured: with warm caches it may exceed 1 where the operands fit into them.

pub mod ceilings;
pub mod compare;
pub mod kernels;
pub mod ladder;
pub mod machine;
pub mod plan;
pub mod probe;
pub mod sample;
pub mod step;
pub mod table;
pub mod timing;

/// The format of the result files.
pub const FORMAT: &str = "ddim-engine-bench/1";
