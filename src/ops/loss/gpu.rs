//! The loss on devices with kernels: launches of `kernels/loss.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Loss, LossDims, LossInput, check_codes};
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

const OP: &str = "loss";
const THREADS: [u32; 3] = [kernels::LOSS_THREADS, 1, 1];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LossArgs {
    pred: DevicePtr,
    noisy: DevicePtr,
    images: DevicePtr,
    noise: DevicePtr,
    rates: DevicePtr,
    weights: DevicePtr,
    dp: DevicePtr,
    partial: DevicePtr,
    out: DevicePtr,
    per_image: u32,
    of: u32,
    pieces: u32,
    predict: u32,
    loss: u32,
    slope_scale: f32,
    add: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SplitArgs {
    pred: DevicePtr,
    noisy: DevicePtr,
    rates: DevicePtr,
    pred_noise: DevicePtr,
    pred_image: DevicePtr,
    per_image: u32,
    predict: u32,
}

impl<L: Launcher> Loss for Gpu<L> {
    fn loss(
        &self,
        dims: &LossDims,
        input: LossInput<'_, Self>,
        dp: Option<GpuSliceMut<'_>>,
        out: GpuSliceMut<'_>,
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_codes(OP, dims.predict, dims.loss)?;
        let LossInput { pred, noisy, images, noise, rates, weights } = input;
        for (name, view) in [("pred", pred), ("noisy", noisy), ("images", images), ("noise", noise)] {
            expect_f32(OP, name, view, n * per)?;
        }
        expect_f32(OP, "rates", rates, 2 * n)?;
        expect_f32(OP, "out", out.shared(), 3)?;
        if let Some(weights) = weights {
            expect_f32(OP, "weights", weights, n)?;
        }
        if let Some(dp) = &dp {
            expect_f32(OP, "dp", dp.shared(), n * per)?;
        }
        let pieces_per_image = blocks(per, kernels::LOSS_PIECE as usize);
        let pieces = dims.n * pieces_per_image;
        // Three float64 sums for each piece, in float32 slots.
        let mut partial = self.alloc(6 * pieces as usize)?;
        let args = LossArgs {
            pred: pred.ptr(),
            noisy: noisy.ptr(),
            images: images.ptr(),
            noise: noise.ptr(),
            rates: rates.ptr(),
            weights: weights.map_or(DevicePtr::NULL, |weights| weights.ptr()),
            dp: dp.as_ref().map_or(DevicePtr::NULL, GpuSliceMut::ptr),
            partial: Self::all_mut(&mut partial).ptr(),
            out: out.ptr(),
            per_image: dims.per_image,
            of: dims.of,
            pieces,
            predict: dims.predict,
            loss: dims.loss,
            slope_scale: 1.0 / (dims.of as usize * per) as f32,
            add: dims.add,
            pad: 0,
        };
        self.launch(&kernels::LOSS_FWD_F32, [pieces_per_image, dims.n, 1], THREADS, 0, &args)?;
        self.launch(&kernels::LOSS_REDUCE_F32, [1, 1, 1], THREADS, 0, &args)
    }

    fn split_prediction(
        &self,
        dims: &LossDims,
        pred: GpuSlice<'_>,
        noisy: GpuSlice<'_>,
        rates: GpuSlice<'_>,
        pred_noise: GpuSliceMut<'_>,
        pred_image: GpuSliceMut<'_>,
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_codes(OP, dims.predict, dims.loss)?;
        expect_f32(OP, "pred", pred, n * per)?;
        expect_f32(OP, "noisy", noisy, n * per)?;
        expect_f32(OP, "rates", rates, 2 * n)?;
        expect_f32(OP, "pred_noise", pred_noise.shared(), n * per)?;
        expect_f32(OP, "pred_image", pred_image.shared(), n * per)?;
        let args = SplitArgs {
            pred: pred.ptr(),
            noisy: noisy.ptr(),
            rates: rates.ptr(),
            pred_noise: pred_noise.ptr(),
            pred_image: pred_image.ptr(),
            per_image: dims.per_image,
            predict: dims.predict,
        };
        let grid = [blocks(per, 256), dims.n, 1];
        self.launch(&kernels::LOSS_SPLIT_F32, grid, [256, 1, 1], 0, &args)
    }
}
