//! The norm on devices with kernels: launches of `kernels/grad_norm.cu`.

use bytemuck::{Pod, Zeroable};

use super::GradNorm;
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

const OP: &str = "grad_norm";
const THREADS: [u32; 3] = [kernels::GRAD_NORM_THREADS, 1, 1];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GradNormArgs {
    grads: DevicePtr,
    partial: DevicePtr,
    out: DevicePtr,
    n: u64,
    pieces: u32,
    limit: f32,
}

impl<L: Launcher> GradNorm for Gpu<L> {
    fn grad_norm(&self, limit: f32, grads: GpuSlice<'_>, out: GpuSliceMut<'_>) -> Result<()> {
        let n = grads.len();
        expect_f32(OP, "grads", grads, n)?;
        expect_f32(OP, "out", out.shared(), 2)?;
        let pieces = blocks(n, kernels::GRAD_NORM_PIECE as usize);
        // A float64 sum for each piece, in float32 slots.
        let mut partial = self.alloc(2 * pieces.max(1) as usize)?;
        let partial = Self::all_mut(&mut partial).ptr();
        let args = GradNormArgs { grads: grads.ptr(), partial, out: out.ptr(), n: n as u64, pieces, limit };
        if pieces > 0 {
            self.launch(&kernels::GRAD_NORM_PIECES_F32, [pieces, 1, 1], THREADS, 0, &args)?;
        }
        self.launch(&kernels::GRAD_NORM_REDUCE_F32, [1, 1, 1], THREADS, 0, &args)
    }
}
