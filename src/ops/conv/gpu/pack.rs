//! The packed filter: for every 32 output channels the chunks of input channels with their taps, units of 16 bytes. Its layout depends
//! on the channels, the side and the element type alone, so all kernels read the same one, whatever the batch and the picture.

use bytemuck::{Pod, Zeroable};

use super::super::{ConvDims, Direction, Filter};
use super::{expect_dtype, ptr, shape_error};
use crate::device::gpu::{Arithmetic, Dtype, Gpu, GpuSliceMut};
use crate::device::launcher::{DevicePtr, Launcher};
use crate::error::Result;
use crate::kernels::{
    CONV_CHUNK_UNITS, CONV_PACK_BF16, CONV_PACK_CHANNELS, CONV_PACK_F32, CONV_PACK_TF32, CONV_PACK_THREADS,
    CONV_UNIT_BYTES,
};

/// Mirror of the kernel's parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ConvPackArgs {
    w: DevicePtr,
    w_res: DevicePtr,
    scale: DevicePtr,
    packed: DevicePtr,
    c: u32,
    r: u32,
    k: u32,
    taps: u32,
    forward_c: u32,
    dgrad: u32,
}

/// Elements of a unit.
fn unit(dtype: Dtype) -> usize {
    CONV_UNIT_BYTES as usize / dtype.size()
}

/// Chunks of the main product and of the residual.
pub(super) fn chunks(dtype: Dtype, d: &ConvDims) -> (usize, usize) {
    let chunk = CONV_CHUNK_UNITS as usize * unit(dtype);
    (d.c().div_ceil(chunk), d.r().div_ceil(chunk))
}

/// Bytes of one tap of a chunk for one pack of output channels.
pub(super) const TAP_BYTES: usize = (CONV_CHUNK_UNITS * CONV_PACK_CHANNELS * CONV_UNIT_BYTES) as usize;

fn units(dtype: Dtype, d: &ConvDims) -> usize {
    let (main, residual) = chunks(dtype, d);
    let packs = (d.k as usize).div_ceil(CONV_PACK_CHANNELS as usize);
    packs * (main * d.taps() + residual) * TAP_BYTES / CONV_UNIT_BYTES as usize
}

/// Elements of a packed filter.
pub(super) fn packed_len(dtype: Dtype, d: &ConvDims) -> usize {
    units(dtype, d) * unit(dtype)
}

/// The kernels read it in units.
pub(super) fn check_packed(packed: DevicePtr, got: Dtype, want: Dtype) -> Result<()> {
    if got != want || !packed.0.is_multiple_of(u64::from(CONV_UNIT_BYTES)) {
        return shape_error(format!(
            "a packed filter is {want:?} at a multiple of {CONV_UNIT_BYTES} bytes, not {got:?} at {packed:?}"
        ));
    }
    Ok(())
}

/// Packs a filter whose lengths have been checked.
pub(super) fn pack<L: Launcher>(
    gpu: &Gpu<L>,
    d: &ConvDims,
    direction: Direction,
    filter: Filter<'_, Gpu<L>>,
    packed: GpuSliceMut<'_>,
) -> Result<()> {
    let dtype = gpu.activation_dtype();
    expect_dtype("filter", &[Some(filter.w), filter.w_res, filter.scale], Dtype::F32)?;
    check_packed(packed.ptr(), packed.dtype(), dtype)?;
    let kernel = match gpu.arithmetic() {
        Arithmetic::Fp32 => &CONV_PACK_F32,
        Arithmetic::Tf32 => &CONV_PACK_TF32,
        Arithmetic::Bf16 => &CONV_PACK_BF16,
    };
    let dgrad = direction == Direction::Dgrad;
    let args = ConvPackArgs {
        w: filter.w.ptr(),
        w_res: ptr(filter.w_res),
        scale: ptr(filter.scale.filter(|_| dgrad)),
        packed: packed.ptr(),
        c: d.c() as u32,
        r: d.r() as u32,
        k: d.k,
        taps: d.taps() as u32,
        forward_c: filter.forward_c as u32,
        dgrad: u32::from(dgrad),
    };
    let blocks = crate::device::gpu::blocks(units(dtype, d), CONV_PACK_THREADS as usize);
    gpu.launch(kernel, [blocks, 1, 1], [CONV_PACK_THREADS, 1, 1], 0, &args)
}
