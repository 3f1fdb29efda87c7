//! Launches of `kernels/bilinear.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Bilinear, BilinearDims, OP};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

/// `BilinearArgs` of `kernels/bilinear.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BilinearArgs {
    x: DevicePtr,
    y: DevicePtr,
    elements: u32,
    h: u32,
    w: u32,
    c: u32,
    out_h: u32,
    out_w: u32,
}

impl<L: Launcher> Bilinear for Gpu<L> {
    fn bilinear(&self, d: &BilinearDims, x: GpuSlice<'_>, y: GpuSliceMut<'_>) -> Result<()> {
        d.check(x.len(), y.len())?;
        expect_f32(OP, "x", x, d.x_len())?;
        expect_f32(OP, "y", y.shared(), d.y_len())?;
        let BilinearDims { h, w, c, out_h, out_w, .. } = *d;
        let args = BilinearArgs { x: x.ptr(), y: y.ptr(), elements: d.y_len() as u32, h, w, c, out_h, out_w };
        let grid = [blocks(d.y_len(), kernels::BILINEAR_THREADS as usize), 1, 1];
        self.launch(&kernels::BILINEAR_F32, grid, [kernels::BILINEAR_THREADS, 1, 1], 0, &args)
    }
}
