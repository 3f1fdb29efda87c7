//! Launches of `kernels/batch_norm.cu`.

use bytemuck::{Pod, Zeroable};

use super::{AffineParams, BackwardInput, BackwardOutput, BatchNorm, BatchNormDims, EPS, MOMENTUM, RunningMut, row};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::{expect_f32, expect_len};

const OP: &str = "batch_norm";

/// `BatchNormArgs` of `kernels/batch_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    stats0: DevicePtr,
    stats1: DevicePtr,
    gamma: DevicePtr,
    beta: DevicePtr,
    running_mean: DevicePtr,
    running_var: DevicePtr,
    coefficients: DevicePtr,
    eps: f64,
    momentum: f64,
    n: u32,
    pixels: u32,
    c0: u32,
    c1: u32,
}

/// `BatchNormBackwardArgs` of `kernels/batch_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BackwardArgs {
    w: DevicePtr,
    dw_hat: DevicePtr,
    border_sums: DevicePtr,
    coefficients: DevicePtr,
    gamma: DevicePtr,
    beta: DevicePtr,
    dw: DevicePtr,
    dgamma: DevicePtr,
    dbeta: DevicePtr,
    ab: DevicePtr,
    count: f64,
    c: u32,
    k: u32,
    taps: u32,
    vector: u32,
}

fn expect(name: &str, view: GpuSlice<'_>, want: usize) -> Result<()> {
    expect_f32(OP, name, view, want)
}

fn check_params<L: Launcher>(c: usize, params: &AffineParams<'_, Gpu<L>>, coefficients: GpuSlice<'_>) -> Result<()> {
    expect("gamma", params.gamma, c)?;
    expect("beta", params.beta, c)?;
    expect("coefficients", coefficients, row::COUNT * c)
}

impl<L: Launcher> BatchNorm for Gpu<L> {
    fn batch_norm_train(
        &self,
        dims: &BatchNormDims,
        stats0: GpuSlice<'_>,
        stats1: Option<GpuSlice<'_>>,
        params: AffineParams<'_, Self>,
        running: RunningMut<'_, Self>,
        coefficients: GpuSliceMut<'_>,
    ) -> Result<()> {
        let (n, c, c0, c1) = (dims.n as usize, dims.c(), dims.c0 as usize, dims.c1 as usize);
        expect("stats0", stats0, n * c0 * 2)?;
        match stats1 {
            Some(stats1) => expect("stats1", stats1, n * c1 * 2)?,
            None => expect_len(OP, "stats1", 0, n * c1 * 2)?,
        }
        expect("running mean", running.mean.shared(), c)?;
        expect("running var", running.var.shared(), c)?;
        check_params(c, &params, coefficients.shared())?;
        let args = Args {
            stats0: stats0.ptr(),
            stats1: stats1.map_or(DevicePtr::NULL, |stats1| stats1.ptr()),
            gamma: params.gamma.ptr(),
            beta: params.beta.ptr(),
            running_mean: running.mean.ptr(),
            running_var: running.var.ptr(),
            coefficients: coefficients.ptr(),
            eps: EPS,
            momentum: MOMENTUM,
            n: dims.n,
            pixels: dims.pixels,
            c0: dims.c0,
            c1: dims.c1,
        };
        let (channels, images) = (kernels::BATCH_NORM_CHANNELS, kernels::BATCH_NORM_IMAGES);
        let shared = channels * images * size_of::<f64>() as u32;
        let grid = [blocks(c, channels as usize), 1, 1];
        self.launch(&kernels::BATCH_NORM_TRAIN_F32, grid, [channels, images, 1], shared, &args)
    }

    fn batch_norm_eval(
        &self,
        dims: &BatchNormDims,
        params: AffineParams<'_, Self>,
        running_mean: GpuSlice<'_>,
        running_var: GpuSlice<'_>,
        coefficients: GpuSliceMut<'_>,
    ) -> Result<()> {
        let c = dims.c();
        expect("running mean", running_mean, c)?;
        expect("running var", running_var, c)?;
        check_params(c, &params, coefficients.shared())?;
        let args = Args {
            stats0: DevicePtr::NULL,
            stats1: DevicePtr::NULL,
            gamma: params.gamma.ptr(),
            beta: params.beta.ptr(),
            running_mean: running_mean.ptr(),
            running_var: running_var.ptr(),
            coefficients: coefficients.ptr(),
            eps: EPS,
            momentum: MOMENTUM,
            n: dims.n,
            pixels: dims.pixels,
            c0: dims.c0,
            c1: dims.c1,
        };
        let threads = kernels::BATCH_NORM_EVAL_THREADS;
        let grid = [blocks(c, threads as usize), 1, 1];
        self.launch(&kernels::BATCH_NORM_EVAL_F32, grid, [threads, 1, 1], 0, &args)
    }

    fn batch_norm_backward(
        &self,
        dims: &BatchNormDims,
        input: BackwardInput<'_, Self>,
        out: BackwardOutput<'_, Self>,
    ) -> Result<()> {
        let (c, k, taps) = (dims.c(), input.k, input.taps);
        for (name, view) in [("w", input.w), ("dw_hat", input.dw_hat), ("dw", out.dw.shared())] {
            expect(name, view, taps * c * k)?;
        }
        expect("border_sums", input.border_sums, taps * k)?;
        check_params(c, &input.params, input.coefficients)?;
        expect("dgamma", out.dgamma.shared(), c)?;
        expect("dbeta", out.dbeta.shared(), c)?;
        expect("ab", out.ab.shared(), 2 * c)?;

        let rows = [input.w.ptr(), input.dw_hat.ptr(), input.border_sums.ptr(), out.dw.ptr()];
        let vector = k.is_multiple_of(4) && rows.iter().all(|ptr| ptr.0.is_multiple_of(16));
        let args = BackwardArgs {
            w: input.w.ptr(),
            dw_hat: input.dw_hat.ptr(),
            border_sums: input.border_sums.ptr(),
            coefficients: input.coefficients.ptr(),
            gamma: input.params.gamma.ptr(),
            beta: input.params.beta.ptr(),
            dw: out.dw.ptr(),
            dgamma: out.dgamma.ptr(),
            dbeta: out.dbeta.ptr(),
            ab: out.ab.ptr(),
            count: f64::from(dims.pixels) * f64::from(dims.n),
            c: c as u32,
            k: k as u32,
            taps: taps as u32,
            vector: u32::from(vector),
        };
        let threads = kernels::BATCH_NORM_BACKWARD_THREADS;
        let shared = 2 * threads / 32 * size_of::<f64>() as u32;
        self.launch(&kernels::BATCH_NORM_BWD_F32, [c as u32, 1, 1], [threads, 1, 1], shared, &args)
    }
}
