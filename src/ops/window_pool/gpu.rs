//! Launches of `kernels/window_pool.cu`.

use bytemuck::{Pod, Zeroable};

use super::{OP, Pooling, WindowPool, WindowPoolDims};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

/// `WindowPoolArgs` of `kernels/window_pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WindowPoolArgs {
    x: DevicePtr,
    y: DevicePtr,
    pixels: u32,
    h: u32,
    w: u32,
    c: u32,
    out_h: u32,
    out_w: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    y_channels: u32,
    y_first: u32,
    pooling: u32,
}

impl<L: Launcher> WindowPool for Gpu<L> {
    fn window_pool(&self, d: &WindowPoolDims, pooling: Pooling, x: GpuSlice<'_>, y: GpuSliceMut<'_>) -> Result<()> {
        d.check(x.len(), y.len())?;
        expect_f32(OP, "x", x, d.x_len())?;
        expect_f32(OP, "y", y.shared(), d.y_len())?;
        let pixels = d.n as usize * d.out_h() * d.out_w();
        let args = WindowPoolArgs {
            x: x.ptr(),
            y: y.ptr(),
            pixels: pixels as u32,
            h: d.h,
            w: d.w,
            c: d.c,
            out_h: d.out_h() as u32,
            out_w: d.out_w() as u32,
            kernel: d.kernel,
            stride: d.stride,
            pad: d.pad,
            y_channels: d.y_channels,
            y_first: d.y_first,
            pooling: match pooling {
                Pooling::Max => kernels::WINDOW_POOL_MAX,
                Pooling::MeanInside => kernels::WINDOW_POOL_INSIDE,
                Pooling::MeanAll => kernels::WINDOW_POOL_ALL,
            },
        };
        let grid = [blocks(pixels * d.c as usize, kernels::WINDOW_POOL_THREADS as usize), 1, 1];
        self.launch(&kernels::WINDOW_POOL_F32, grid, [kernels::WINDOW_POOL_THREADS, 1, 1], 0, &args)
    }
}
