//! Launches of `kernels/embed.cu`.

use bytemuck::{Pod, Zeroable};

use super::cpu::{check, check_classes};
use super::{Embed, TimestepDims};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};
use crate::ops::expect_f32;

const OP: &str = "embed";

/// `TimestepArgs` of `kernels/embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TimestepArgs {
    timesteps: DevicePtr,
    frequencies: DevicePtr,
    emb: DevicePtr,
    n: u32,
    c: u32,
    freq_shift: u32,
    flags: u32,
}

/// `ClassArgs` of `kernels/embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ClassArgs {
    labels: DevicePtr,
    from: DevicePtr,
    to: DevicePtr,
    n: u32,
    c: u32,
    k: u32,
    unused: u32,
}

/// `DivideArgs` of `kernels/embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DivideArgs {
    timesteps: DevicePtr,
    x: DevicePtr,
    n: u32,
    per_image: u32,
}

/// A thread for each of `places`.
fn launch<L: Launcher, A: Pod>(gpu: &Gpu<L>, kernel: &'static KernelEntry, places: usize, args: &A) -> Result<()> {
    if u32::try_from(places).is_err() {
        return Err(Error::Shape { op: OP, what: format!("{places} elements: the kernels count to 2^32") });
    }
    let threads = kernels::EMBED_THREADS;
    gpu.launch(kernel, [blocks(places, threads as usize), 1, 1], [threads, 1, 1], 0, args)
}

/// All views are float32.
fn expect_plain(views: &[(&str, GpuSlice<'_>)]) -> Result<()> {
    views.iter().try_for_each(|&(name, view)| expect_f32(OP, name, view, view.len()))
}

impl<L: Launcher> Embed for Gpu<L> {
    fn embed_timesteps(
        &self,
        d: &TimestepDims,
        timesteps: GpuSlice<'_>,
        frequencies: Option<GpuSlice<'_>>,
        emb: GpuSliceMut<'_>,
    ) -> Result<()> {
        check(d, timesteps.len(), frequencies.map(|f| f.len()), emb.len())?;
        expect_plain(&[("timesteps", timesteps), ("emb", emb.shared())])?;
        if let Some(frequencies) = frequencies {
            expect_plain(&[("frequencies", frequencies)])?;
        }
        let args = TimestepArgs {
            timesteps: timesteps.ptr(),
            frequencies: frequencies.map_or(DevicePtr::NULL, |f| f.ptr()),
            emb: emb.ptr(),
            n: d.n,
            c: d.c,
            freq_shift: d.freq_shift,
            flags: if d.flip != 0 { kernels::EMBED_FLIP } else { 0 },
        };
        let places = d.n as usize * (d.c as usize).div_ceil(2);
        launch(self, &kernels::EMBED_TIMESTEPS_F32, places, &args)
    }

    fn embed_classes(&self, labels: GpuSlice<'_>, table: GpuSlice<'_>, emb: GpuSliceMut<'_>) -> Result<()> {
        let (c, classes) = check_classes(labels.len(), table.len(), emb.len())?;
        expect_plain(&[("labels", labels), ("table", table), ("emb", emb.shared())])?;
        let args = ClassArgs {
            labels: labels.ptr(),
            from: table.ptr(),
            to: emb.ptr(),
            n: labels.len() as u32,
            c: c as u32,
            k: classes as u32,
            unused: 0,
        };
        launch(self, &kernels::EMBED_CLASSES_F32, emb.len(), &args)
    }

    fn embed_classes_backward(&self, labels: GpuSlice<'_>, demb: GpuSlice<'_>, dtable: GpuSliceMut<'_>) -> Result<()> {
        let (c, classes) = check_classes(labels.len(), dtable.len(), demb.len())?;
        expect_plain(&[("labels", labels), ("demb", demb), ("dtable", dtable.shared())])?;
        let args = ClassArgs {
            labels: labels.ptr(),
            from: demb.ptr(),
            to: dtable.ptr(),
            n: labels.len() as u32,
            c: c as u32,
            k: classes as u32,
            unused: 0,
        };
        launch(self, &kernels::EMBED_CLASSES_BWD_F32, dtable.len(), &args)
    }

    fn divide_by_timesteps(&self, timesteps: GpuSlice<'_>, x: GpuSliceMut<'_>) -> Result<()> {
        if timesteps.is_empty() || !x.len().is_multiple_of(timesteps.len()) {
            let what = format!("{} elements are not whole images of {} timesteps", x.len(), timesteps.len());
            return Err(Error::Shape { op: OP, what });
        }
        expect_plain(&[("timesteps", timesteps), ("x", x.shared())])?;
        let args = DivideArgs {
            timesteps: timesteps.ptr(),
            x: x.ptr(),
            n: timesteps.len() as u32,
            per_image: (x.len() / timesteps.len()) as u32,
        };
        launch(self, &kernels::EMBED_DIVIDE_F32, x.len(), &args)
    }
}
