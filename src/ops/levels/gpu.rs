//! Levels on devices with kernels: launches of `kernels/levels.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Levels, LevelsOutput, table_steps};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

const OP: &str = "levels";
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LevelsArgs {
    table: DevicePtr,
    times: DevicePtr,
    rates: DevicePtr,
    timesteps: DevicePtr,
    weights: DevicePtr,
    steps: u32,
    n: u32,
}

impl<L: Launcher> Levels for Gpu<L> {
    fn gather_levels(&self, table: GpuSlice<'_>, times: GpuSlice<'_>, out: LevelsOutput<'_, Self>) -> Result<()> {
        let (steps, n) = (table_steps(table.len())?, times.len());
        expect_f32(OP, "table", table, table.len())?;
        expect_f32(OP, "times", times, n)?;
        expect_f32(OP, "rates", out.rates.shared(), 2 * n)?;
        expect_f32(OP, "timesteps", out.timesteps.shared(), n)?;
        expect_f32(OP, "weights", out.weights.shared(), n)?;
        let args = LevelsArgs {
            table: table.ptr(),
            times: times.ptr(),
            rates: out.rates.ptr(),
            timesteps: out.timesteps.ptr(),
            weights: out.weights.ptr(),
            steps: steps as u32,
            n: n as u32,
        };
        self.launch(&kernels::LEVELS_GATHER_F32, [blocks(n, THREADS as usize), 1, 1], [THREADS, 1, 1], 0, &args)
    }
}
