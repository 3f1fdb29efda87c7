//! Times to the levels of a discrete schedule: what each image of a batch holds of signal and noise, what its network is told, and what
//! its loss weighs. The schedule is a table on the device, so that every schedule and every weighting is one operation.
//!
//! ```text
//! i           min(floor(u T), T - 1), u in [0, 1) in float32
//! rates_n     table[i, 0..2]       timestep_n  table[i, 2]       weight_n  table[i, 3]
//! ```
//!
//! No backward: times are not learned.

pub mod cpu;
pub mod gpu;
pub mod reference;

use crate::device::Memory;
use crate::error::{Error, Result};

/// Numbers of a level in the table: signal rate, noise rate, timestep, weight.
pub const COLUMNS: usize = 4;

/// Results of [`Levels::gather_levels`].
pub struct LevelsOutput<'a, M: Memory> {
    /// [N, 2]: signal rate, noise rate.
    pub rates: M::SliceMut<'a>,
    /// `[N]`: what the network is told.
    pub timesteps: M::SliceMut<'a>,
    /// `[N]`: weight of the image in the loss.
    pub weights: M::SliceMut<'a>,
}

/// Levels of a device.
pub trait Levels: Memory {
    /// The levels of `times` `[N]`, each in [0, 1), from `table` [T, 4].
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit, or the table is empty.
    fn gather_levels(&self, table: Self::Slice<'_>, times: Self::Slice<'_>, out: LevelsOutput<'_, Self>) -> Result<()>
    where
        Self: Sized;
}

/// T of a table of `len` numbers.
fn table_steps(len: usize) -> Result<usize> {
    if len == 0 || !len.is_multiple_of(COLUMNS) {
        let what = format!("`table` has {len} elements; expected a multiple of {COLUMNS} above 0");
        return Err(Error::Shape { op: "levels", what });
    }
    Ok(len / COLUMNS)
}
