//! Launches of upsampling: `kernels/resample.cu`, by way of pooling's `Gpu::resample`.

use super::{ResampleDims, Upsample2};
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_len;
use crate::ops::pool::cpu::check_even;
use crate::ops::pool::gpu::{Kernels, Views};

const OP: &str = "upsample";

impl<L: Launcher> Upsample2 for Gpu<L> {
    fn upsample_forward(
        &self,
        dims: &ResampleDims,
        x: GpuSlice<'_>,
        y: GpuSliceMut<'_>,
        stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "x", x.len(), dims.small())?;
        expect_len(OP, "y", y.len(), dims.large())?;
        if let Some(stats) = &stats {
            expect_len(OP, "stats", stats.len(), (dims.n * dims.c * 2) as usize)?;
        }
        let kernels =
            Kernels { f32: &kernels::UPSAMPLE_FWD_F32, bf16: &kernels::UPSAMPLE_FWD_BF16, values_per_pixel: 4 };
        self.resample(OP, &kernels, dims, Views { x, add: None, y, stats, offset: 0 })
    }

    fn upsample_backward(&self, dims: &ResampleDims, dy: GpuSlice<'_>, dx: GpuSliceMut<'_>) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "dy", dy.len(), dims.large())?;
        expect_len(OP, "dx", dx.len(), dims.small())?;
        let kernels =
            Kernels { f32: &kernels::UPSAMPLE_BWD_F32, bf16: &kernels::UPSAMPLE_BWD_BF16, values_per_pixel: 1 };
        self.resample(OP, &kernels, dims, Views { x: dy, add: None, y: dx, stats: None, offset: 0 })
    }
}
