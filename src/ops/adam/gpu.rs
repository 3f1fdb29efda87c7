//! Adam on devices with kernels: launches of `kernels/adam.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Adam, AdamScalars, AdamState};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

const OP: &str = "adam";
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdamArgs {
    params: DevicePtr,
    grads: DevicePtr,
    m: DevicePtr,
    v: DevicePtr,
    ema: DevicePtr,
    scalars: DevicePtr,
    guard: DevicePtr,
    clip: DevicePtr,
    n: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmaArgs {
    src: DevicePtr,
    ema: DevicePtr,
    scalars: DevicePtr,
    guard: DevicePtr,
    n: u64,
}

/// Addresses of scalars and guard.
fn control(scalars: GpuSlice<'_>, guard: Option<GpuSlice<'_>>) -> Result<(DevicePtr, DevicePtr)> {
    expect_f32(OP, "scalars", scalars, AdamScalars::LEN)?;
    if let Some(guard) = guard {
        expect_f32(OP, "guard", guard, 1)?;
    }
    Ok((scalars.ptr(), guard.map_or(DevicePtr::NULL, |guard| guard.ptr())))
}

impl<L: Launcher> Adam for Gpu<L> {
    fn adam_step(
        &self,
        scalars: GpuSlice<'_>,
        guard: Option<GpuSlice<'_>>,
        state: AdamState<'_, '_, Self>,
    ) -> Result<()> {
        let n = state.params.len();
        expect_f32(OP, "params", state.params.shared(), n)?;
        expect_f32(OP, "grads", state.grads, n)?;
        expect_f32(OP, "m", state.m.shared(), n)?;
        expect_f32(OP, "v", state.v.shared(), n)?;
        if let Some(ema) = &state.ema {
            expect_f32(OP, "ema", ema.shared(), n)?;
        }
        if let Some(clip) = state.clip {
            expect_f32(OP, "clip", clip, 1)?;
        }
        let (scalars, guard) = control(scalars, guard)?;
        let args = AdamArgs {
            params: state.params.ptr(),
            grads: state.grads.ptr(),
            m: state.m.ptr(),
            v: state.v.ptr(),
            ema: state.ema.as_ref().map_or(DevicePtr::NULL, GpuSliceMut::ptr),
            scalars,
            guard,
            clip: state.clip.map_or(DevicePtr::NULL, |clip| clip.ptr()),
            n: n as u64,
        };
        let grid = blocks(n.div_ceil(4), THREADS as usize);
        self.launch(&kernels::ADAM_STEP_F32, [grid, 1, 1], [THREADS, 1, 1], 0, &args)
    }

    fn ema_update(
        &self,
        scalars: GpuSlice<'_>,
        guard: Option<GpuSlice<'_>>,
        src: GpuSlice<'_>,
        ema: GpuSliceMut<'_>,
    ) -> Result<()> {
        let n = ema.len();
        expect_f32(OP, "src", src, n)?;
        expect_f32(OP, "ema", ema.shared(), n)?;
        let (scalars, guard) = control(scalars, guard)?;
        let args = EmaArgs { src: src.ptr(), ema: ema.ptr(), scalars, guard, n: n as u64 };
        self.launch(&kernels::ADAM_EMA_F32, [blocks(n, THREADS as usize), 1, 1], [THREADS, 1, 1], 0, &args)
    }
}
