//! Updates of samplers on devices with kernels: launches of `kernels/sampler.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Coefficients, SamplerStep, StepDims, StepNoise, StepState, Threshold, check_operands, quantile_place};
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;
use crate::rng::Purpose;

const OP: &str = "sampler_step";

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SamplerStepArgs {
    pred: DevicePtr,
    x: DevicePtr,
    x0: DevicePtr,
    kept: DevicePtr,
    limits: DevicePtr,
    first_image: DevicePtr,
    cx: f32,
    cp: f32,
    a: f32,
    b: f32,
    c: f32,
    d: f32,
    e: f32,
    f: f32,
    range: f32,
    per_image: u32,
    seed_low: u32,
    seed_high: u32,
    call: u32,
    purpose: u32,
    keep: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SamplerQuantileArgs {
    pred: DevicePtr,
    x: DevicePtr,
    limits: DevicePtr,
    cx: f32,
    cp: f32,
    share: f32,
    most: f32,
    below: u32,
    per_image: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SamplerCombineArgs {
    x: DevicePtr,
    y: DevicePtr,
    out: DevicePtr,
    a: f32,
    b: f32,
    n: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SamplerBlendArgs {
    mask: DevicePtr,
    known: DevicePtr,
    noise: DevicePtr,
    x: DevicePtr,
    signal: f32,
    noise_rate: f32,
    n: u64,
}

/// Blocks of four elements a thread.
fn pieces(elements: usize) -> u32 {
    blocks(elements.div_ceil(4), kernels::SAMPLER_THREADS as usize)
}

impl<L: Launcher> SamplerStep for Gpu<L> {
    fn sampler_step(
        &self,
        dims: &StepDims,
        coefficients: &Coefficients,
        threshold: Threshold,
        pred: GpuSlice<'_>,
        noise: Option<StepNoise<'_, Self>>,
        state: StepState<'_, Self>,
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        let StepState { x, x0, kept } = state;
        check_operands(coefficients, threshold, noise.is_some(), kept.is_some())?;
        expect_f32(OP, "pred", pred, n * per)?;
        expect_f32(OP, "x", x.shared(), n * per)?;
        expect_f32(OP, "x0", x0.shared(), n * per)?;
        if let Some(kept) = &kept {
            expect_f32(OP, "kept", kept.shared(), n * per)?;
        }
        if let Some(noise) = &noise {
            expect_f32(OP, "first_image", noise.first_image, 1)?;
        }
        if n * per == 0 {
            return Ok(());
        }
        let Coefficients { cx, cp, a, b, c, d, e, f, keep } = *coefficients;
        let mut limits = None;
        if let Threshold::Dynamic { quantile, most } = threshold {
            let buffer = self.alloc(n)?;
            let (below, share) = quantile_place(quantile, per);
            let args = SamplerQuantileArgs {
                pred: pred.ptr(),
                x: x.ptr(),
                limits: Self::all(&buffer).ptr(),
                cx,
                cp,
                share,
                most,
                below: below as u32,
                per_image: dims.per_image,
            };
            let threads = [kernels::SAMPLER_QUANTILE_THREADS, 1, 1];
            self.launch(&kernels::SAMPLER_QUANTILE_F32, [dims.n, 1, 1], threads, 0, &args)?;
            limits = Some(buffer);
        }
        let seed = noise.as_ref().map_or(0, |noise| noise.seed);
        let args = SamplerStepArgs {
            pred: pred.ptr(),
            x: x.ptr(),
            x0: x0.ptr(),
            kept: kept.as_ref().map_or(DevicePtr::NULL, GpuSliceMut::ptr),
            limits: limits.as_ref().map_or(DevicePtr::NULL, |limits| Self::all(limits).ptr()),
            first_image: noise.as_ref().map_or(DevicePtr::NULL, |noise| noise.first_image.ptr()),
            cx,
            cp,
            a,
            b,
            c,
            d,
            e,
            f,
            range: if let Threshold::Clamp(range) = threshold { range } else { f32::INFINITY },
            per_image: dims.per_image,
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            call: noise.as_ref().map_or(0, |noise| noise.call),
            purpose: Purpose::SampleStep as u32,
            keep: u32::from(keep),
            pad: 0,
        };
        let threads = [kernels::SAMPLER_THREADS, 1, 1];
        self.launch(&kernels::SAMPLER_STEP_F32, [pieces(per), dims.n, 1], threads, 0, &args)
    }

    fn combine(&self, a: f32, x: GpuSlice<'_>, b: f32, y: Option<GpuSlice<'_>>, out: GpuSliceMut<'_>) -> Result<()> {
        let n = out.len();
        expect_f32("combine", "out", out.shared(), n)?;
        expect_f32("combine", "x", x, n)?;
        if let Some(y) = y {
            expect_f32("combine", "y", y, n)?;
        }
        let y = y.map_or(DevicePtr::NULL, |y| y.ptr());
        let args = SamplerCombineArgs { x: x.ptr(), y, out: out.ptr(), a, b, n: n as u64 };
        self.launch(&kernels::SAMPLER_COMBINE_F32, [pieces(n), 1, 1], [kernels::SAMPLER_THREADS, 1, 1], 0, &args)
    }

    fn blend(
        &self,
        rates: [f32; 2],
        mask: GpuSlice<'_>,
        known: GpuSlice<'_>,
        noise: GpuSlice<'_>,
        x: GpuSliceMut<'_>,
    ) -> Result<()> {
        let n = x.len();
        expect_f32("blend", "x", x.shared(), n)?;
        for (name, view) in [("mask", mask), ("known", known), ("noise", noise)] {
            expect_f32("blend", name, view, n)?;
        }
        let args = SamplerBlendArgs {
            mask: mask.ptr(),
            known: known.ptr(),
            noise: noise.ptr(),
            x: x.ptr(),
            signal: rates[0],
            noise_rate: rates[1],
            n: n as u64,
        };
        self.launch(&kernels::SAMPLER_BLEND_F32, [pieces(n), 1, 1], [kernels::SAMPLER_THREADS, 1, 1], 0, &args)
    }
}
