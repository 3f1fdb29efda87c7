//! Random numbers and q-sample on devices with kernels: launches of `kernels/noise.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Noise, NoiseKey};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::expect_f32;

const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NoiseArgs {
    out: DevicePtr,
    step: DevicePtr,
    seed_low: u32,
    seed_high: u32,
    purpose: u32,
    first_image: u32,
    per_image: u32,
    images: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OffsetArgs {
    noise: NoiseArgs,
    channels: u32,
    strength: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QSampleArgs {
    images: DevicePtr,
    noise: DevicePtr,
    rates: DevicePtr,
    noisy: DevicePtr,
    per_image: u32,
    pad: u32,
}

fn args(key: NoiseKey, step: GpuSlice<'_>, out: &GpuSliceMut<'_>, per_image: usize, images: usize) -> NoiseArgs {
    NoiseArgs {
        out: out.ptr(),
        step: step.ptr(),
        seed_low: key.seed as u32,
        seed_high: (key.seed >> 32) as u32,
        purpose: key.purpose as u32,
        first_image: key.first_image as u32,
        per_image: per_image as u32,
        images: images as u32,
    }
}

impl<L: Launcher> Noise for Gpu<L> {
    fn fill_normal(&self, key: NoiseKey, step: GpuSlice<'_>, per_image: usize, out: GpuSliceMut<'_>) -> Result<()> {
        const OP: &str = "fill_normal";
        expect_f32(OP, "step", step, 1)?;
        if per_image == 0 || !out.len().is_multiple_of(per_image) {
            let what = format!("{} elements are no whole number of images of {per_image}", out.len());
            return Err(Error::Shape { op: OP, what });
        }
        expect_f32(OP, "out", out.shared(), out.len())?;
        let images = out.len() / per_image;
        let grid = [blocks(per_image.div_ceil(4), THREADS as usize), images as u32, 1];
        let args = args(key, step, &out, per_image, images);
        self.launch(&kernels::NOISE_NORMAL_F32, grid, [THREADS, 1, 1], 0, &args)
    }

    fn fill_uniform(&self, key: NoiseKey, step: GpuSlice<'_>, out: GpuSliceMut<'_>) -> Result<()> {
        expect_f32("fill_uniform", "step", step, 1)?;
        expect_f32("fill_uniform", "out", out.shared(), out.len())?;
        let args = args(key, step, &out, 1, out.len());
        let grid = [blocks(out.len(), THREADS as usize), 1, 1];
        self.launch(&kernels::NOISE_UNIFORM_F32, grid, [THREADS, 1, 1], 0, &args)
    }

    fn offset_noise(
        &self,
        key: NoiseKey,
        step: GpuSlice<'_>,
        strength: f32,
        [pixels, channels]: [usize; 2],
        noise: GpuSliceMut<'_>,
    ) -> Result<()> {
        const OP: &str = "offset_noise";
        expect_f32(OP, "step", step, 1)?;
        let per_image = pixels * channels;
        if per_image == 0 || !noise.len().is_multiple_of(per_image) {
            let what = format!("{} elements are no whole number of images of {per_image}", noise.len());
            return Err(Error::Shape { op: OP, what });
        }
        expect_f32(OP, "noise", noise.shared(), noise.len())?;
        let images = noise.len() / per_image;
        let noise = args(key, step, &noise, per_image, images);
        let args = OffsetArgs { noise, channels: channels as u32, strength };
        let grid = [blocks(per_image.div_ceil(4), THREADS as usize), images as u32, 1];
        self.launch(&kernels::NOISE_OFFSET_F32, grid, [THREADS, 1, 1], 0, &args)
    }

    fn q_sample(
        &self,
        images: GpuSlice<'_>,
        noise: GpuSlice<'_>,
        rates: GpuSlice<'_>,
        noisy: GpuSliceMut<'_>,
    ) -> Result<()> {
        const OP: &str = "q_sample";
        let n = rates.len() / 2;
        if rates.is_empty() || !rates.len().is_multiple_of(2) || !noisy.len().is_multiple_of(n) {
            let what = format!("rates of {} and images of {} elements do not fit", rates.len(), noisy.len());
            return Err(Error::Shape { op: OP, what });
        }
        expect_f32(OP, "rates", rates, 2 * n)?;
        expect_f32(OP, "noisy", noisy.shared(), noisy.len())?;
        expect_f32(OP, "images", images, noisy.len())?;
        expect_f32(OP, "noise", noise, noisy.len())?;
        let per_image = noisy.len() / n;
        let args = QSampleArgs {
            images: images.ptr(),
            noise: noise.ptr(),
            rates: rates.ptr(),
            noisy: noisy.ptr(),
            per_image: per_image as u32,
            pad: 0,
        };
        let grid = [blocks(per_image.div_ceil(4), THREADS as usize), n as u32, 1];
        self.launch(&kernels::NOISE_Q_SAMPLE_F32, grid, [THREADS, 1, 1], 0, &args)
    }
}
