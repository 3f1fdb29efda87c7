//! Launches of `kernels/conv2d.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Conv2d, Conv2dDims, OP};
use crate::device::Memory;
use crate::device::gpu::{Arithmetic, DevicePtr, Gpu, GpuBuffer, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::{expect_f32, expect_len};

/// `Conv2dArgs` of `kernels/conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dArgs {
    x: DevicePtr,
    filter: DevicePtr,
    bias: DevicePtr,
    y: DevicePtr,
    pixels: u32,
    h: u32,
    w: u32,
    c: u32,
    out_h: u32,
    out_w: u32,
    k: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride: u32,
    pad_h: u32,
    pad_w: u32,
    y_channels: u32,
    y_first: u32,
    relu: u32,
    pitch: u32,
    vector: u32,
    unused: u32,
}

/// Distance of the filter's rows: a multiple of 16 bytes.
fn pitch(d: &Conv2dDims) -> usize {
    d.depth().next_multiple_of(4)
}

impl<L: Launcher> Conv2d for Gpu<L> {
    fn conv2d_filter(&self, d: &Conv2dDims, w: &[f32]) -> Result<GpuBuffer<L>> {
        d.validate()?;
        expect_len(OP, "w", w.len(), d.w_len())?;
        let (c, taps, pitch) = (d.c as usize, (d.kernel_h * d.kernel_w) as usize, pitch(d));
        let mut rows = vec![0.0; d.k as usize * pitch];
        for (row, w) in rows.chunks_exact_mut(pitch).zip(w.chunks_exact(c * taps)) {
            for (i, out) in row[..c * taps].iter_mut().enumerate() {
                *out = w[i % c * taps + i / c];
            }
        }
        let mut filter = self.alloc(rows.len())?;
        self.upload(&rows, Self::all_mut(&mut filter))?;
        Ok(filter)
    }

    fn conv2d(
        &self,
        d: &Conv2dDims,
        x: GpuSlice<'_>,
        filter: GpuSlice<'_>,
        bias: GpuSlice<'_>,
        y: GpuSliceMut<'_>,
    ) -> Result<()> {
        d.validate()?;
        expect_f32(OP, "x", x, d.x_len())?;
        expect_f32(OP, "filter", filter, d.k as usize * pitch(d))?;
        expect_f32(OP, "bias", bias, d.k as usize)?;
        expect_f32(OP, "y", y.shared(), d.y_len())?;
        let pixels = d.n as usize * d.out_h() * d.out_w();
        let aligned = x.ptr().0.is_multiple_of(16) && filter.ptr().0.is_multiple_of(16);
        let args = Conv2dArgs {
            x: x.ptr(),
            filter: filter.ptr(),
            bias: bias.ptr(),
            y: y.ptr(),
            pixels: pixels as u32,
            h: d.h,
            w: d.w,
            c: d.c,
            out_h: d.out_h() as u32,
            out_w: d.out_w() as u32,
            k: d.k,
            kernel_h: d.kernel_h,
            kernel_w: d.kernel_w,
            stride: d.stride,
            pad_h: d.pad_h,
            pad_w: d.pad_w,
            y_channels: d.y_channels,
            y_first: d.y_first,
            relu: d.relu,
            pitch: pitch(d) as u32,
            vector: u32::from(aligned && d.c.is_multiple_of(4)),
            unused: 0,
        };
        let kernel = match self.arithmetic() {
            Arithmetic::Fp32 => &kernels::CONV2D_F32,
            Arithmetic::Tf32 | Arithmetic::Bf16 => &kernels::CONV2D_TF32,
        };
        let grid =
            [blocks(pixels, kernels::CONV2D_TILE as usize), blocks(d.k as usize, kernels::CONV2D_TILE as usize), 1];
        self.launch(kernel, grid, [kernels::CONV2D_THREADS, 1, 1], kernels::CONV2D_SHARED, &args)
    }
}
