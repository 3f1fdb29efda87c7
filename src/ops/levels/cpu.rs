//! Levels on the CPU: a few numbers per image.

use super::{COLUMNS, Levels, LevelsOutput, table_steps};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::ops::expect_len;

const OP: &str = "levels";

impl Levels for Cpu {
    fn gather_levels(&self, table: &[f32], times: &[f32], out: LevelsOutput<'_, Self>) -> Result<()> {
        let (steps, n) = (table_steps(table.len())?, times.len());
        expect_len(OP, "rates", out.rates.len(), 2 * n)?;
        expect_len(OP, "timesteps", out.timesteps.len(), n)?;
        expect_len(OP, "weights", out.weights.len(), n)?;
        for (i, &u) in times.iter().enumerate() {
            // A negative time or one that is no number becomes 0.
            let row = ((u * steps as f32) as usize).min(steps - 1) * COLUMNS;
            out.rates[2 * i] = table[row];
            out.rates[2 * i + 1] = table[row + 1];
            out.timesteps[i] = table[row + 2];
            out.weights[i] = table[row + 3];
        }
        Ok(())
    }
}
