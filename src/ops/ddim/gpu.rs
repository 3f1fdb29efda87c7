//! The DDIM update on devices with kernels: launches of `kernels/ddim.cu`.

use bytemuck::{Pod, Zeroable};

use super::{DdimDims, DdimStep};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;
use crate::ops::loss::check_codes;

const OP: &str = "ddim_step";
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DdimArgs {
    pred: DevicePtr,
    rates_now: DevicePtr,
    rates_next: DevicePtr,
    x: DevicePtr,
    pred_image: DevicePtr,
    per_image: u32,
    predict: u32,
}

impl<L: Launcher> DdimStep for Gpu<L> {
    fn ddim_step(
        &self,
        dims: &DdimDims,
        pred: GpuSlice<'_>,
        rates_now: GpuSlice<'_>,
        rates_next: GpuSlice<'_>,
        x: GpuSliceMut<'_>,
        pred_image: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_codes(OP, dims.predict, 0)?;
        expect_f32(OP, "pred", pred, n * per)?;
        expect_f32(OP, "x", x.shared(), n * per)?;
        expect_f32(OP, "rates_now", rates_now, 2 * n)?;
        expect_f32(OP, "rates_next", rates_next, 2 * n)?;
        if let Some(images) = &pred_image {
            expect_f32(OP, "pred_image", images.shared(), n * per)?;
        }
        let args = DdimArgs {
            pred: pred.ptr(),
            rates_now: rates_now.ptr(),
            rates_next: rates_next.ptr(),
            x: x.ptr(),
            pred_image: pred_image.as_ref().map_or(DevicePtr::NULL, GpuSliceMut::ptr),
            per_image: dims.per_image,
            predict: dims.predict,
        };
        let grid = [blocks(per.div_ceil(4), THREADS as usize), dims.n, 1];
        self.launch(&kernels::DDIM_STEP_F32, grid, [THREADS, 1, 1], 0, &args)
    }
}
