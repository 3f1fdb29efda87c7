//! Pixel conversion on devices with kernels: launches of `kernels/images.cu`.

use bytemuck::{Pod, Zeroable};

use super::Images;
use crate::device::gpu::{DevicePtr, Gpu, GpuBytes, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::{expect_f32, expect_len};

const THREADS: [u32; 3] = [256, 1, 1];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ImagesArgs {
    bytes: DevicePtr,
    mean_std: DevicePtr,
    x: DevicePtr,
    elements: u64,
    channels: u32,
    pad: u32,
}

fn args(op: &'static str, bytes: DevicePtr, mean_std: GpuSlice<'_>, x: &GpuSliceMut<'_>) -> Result<ImagesArgs> {
    let c = mean_std.len() / 2;
    if c == 0 || c > kernels::IMAGES_CHANNELS as usize || mean_std.len() != 2 * c || !x.len().is_multiple_of(c) {
        let what = format!("means and deviations of {} and {} elements do not fit", mean_std.len(), x.len());
        return Err(Error::Shape { op, what });
    }
    expect_f32(op, "mean_std", mean_std, 2 * c)?;
    expect_f32(op, "x", x.shared(), x.len())?;
    let (elements, channels) = (x.len() as u64, c as u32);
    Ok(ImagesArgs { bytes, mean_std: mean_std.ptr(), x: x.ptr(), elements, channels, pad: 0 })
}

impl<L: Launcher> Images for Gpu<L> {
    fn normalize(&self, bytes: &GpuBytes<L>, mean_std: GpuSlice<'_>, x: GpuSliceMut<'_>) -> Result<()> {
        expect_len("normalize", "bytes", bytes.len(), x.len())?;
        let args = args("normalize", bytes.ptr(), mean_std, &x)?;
        let grid = [blocks(x.len(), kernels::IMAGES_PIECE as usize), 1, 1];
        let shared = 256 * args.channels * 4;
        self.launch(&kernels::IMAGES_NORMALIZE_F32, grid, THREADS, shared, &args)
    }

    fn denormalize(&self, mean_std: GpuSlice<'_>, x: GpuSliceMut<'_>) -> Result<()> {
        let args = args("denormalize", DevicePtr::NULL, mean_std, &x)?;
        self.launch(&kernels::IMAGES_DENORMALIZE_F32, [blocks(x.len(), 256), 1, 1], THREADS, 0, &args)
    }
}
