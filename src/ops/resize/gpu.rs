//! Launches of the resizes: `kernels/resample.cu`, by way of pooling's `Gpu::resample`.

use super::cpu::check;
use super::{ResampleDims, Resize};
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_len;
use crate::ops::pool::gpu::{Kernels, Views};

const OP: &str = "resize";

fn expect_stats(d: &ResampleDims, stats: Option<&GpuSliceMut<'_>>) -> Result<()> {
    stats.map_or(Ok(()), |stats| expect_len(OP, "stats", stats.len(), 2 * d.n as usize * d.c as usize))
}

impl<L: Launcher> Resize for Gpu<L> {
    fn double_forward(
        &self,
        d: &ResampleDims,
        x: GpuSlice<'_>,
        y: GpuSliceMut<'_>,
        stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        check(d, 0)?;
        expect_len(OP, "x", x.len(), d.small())?;
        expect_len(OP, "y", y.len(), d.large())?;
        expect_stats(d, stats.as_ref())?;
        let kernels = Kernels {
            f32: &kernels::RESIZE_DOUBLE_FWD_F32,
            bf16: &kernels::RESIZE_DOUBLE_FWD_BF16,
            values_per_pixel: 4,
        };
        self.resample(OP, &kernels, d, Views { x, add: None, y, stats, offset: 0 })
    }

    fn double_backward(
        &self,
        d: &ResampleDims,
        dy: GpuSlice<'_>,
        add: Option<GpuSlice<'_>>,
        dx: GpuSliceMut<'_>,
    ) -> Result<()> {
        check(d, 0)?;
        expect_len(OP, "dy", dy.len(), d.large())?;
        expect_len(OP, "dx", dx.len(), d.small())?;
        if let Some(add) = &add {
            expect_len(OP, "add", add.len(), d.small())?;
        }
        let kernels = Kernels {
            f32: &kernels::RESIZE_DOUBLE_BWD_F32,
            bf16: &kernels::RESIZE_DOUBLE_BWD_BF16,
            values_per_pixel: 1,
        };
        self.resample(OP, &kernels, d, Views { x: dy, add, y: dx, stats: None, offset: 0 })
    }

    fn keep_forward(
        &self,
        d: &ResampleDims,
        offset: u32,
        x: GpuSlice<'_>,
        y: GpuSliceMut<'_>,
        stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        check(d, offset)?;
        expect_len(OP, "x", x.len(), d.large())?;
        expect_len(OP, "y", y.len(), d.small())?;
        expect_stats(d, stats.as_ref())?;
        let kernels =
            Kernels { f32: &kernels::RESIZE_KEEP_FWD_F32, bf16: &kernels::RESIZE_KEEP_FWD_BF16, values_per_pixel: 1 };
        self.resample(OP, &kernels, d, Views { x, add: None, y, stats, offset })
    }

    fn keep_backward(&self, d: &ResampleDims, offset: u32, dy: GpuSlice<'_>, dx: GpuSliceMut<'_>) -> Result<()> {
        check(d, offset)?;
        expect_len(OP, "dy", dy.len(), d.small())?;
        expect_len(OP, "dx", dx.len(), d.large())?;
        let kernels =
            Kernels { f32: &kernels::RESIZE_KEEP_BWD_F32, bf16: &kernels::RESIZE_KEEP_BWD_BF16, values_per_pixel: 4 };
        self.resample(OP, &kernels, d, Views { x: dy, add: None, y: dx, stats: None, offset })
    }
}
