//! Launches of the CUDA kernels.

#[allow(unused_imports)]
use super::*;
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};

impl<L: Launcher> Resize for Gpu<L> {
    fn double_forward(
        &self,
        _dims: &ResampleDims,
        _x: GpuSlice<'_>,
        _y: GpuSliceMut<'_>,
        _stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        Err(Error::Failed("resize: not on a GPU yet".into()))
    }

    fn double_backward(
        &self,
        _dims: &ResampleDims,
        _dy: GpuSlice<'_>,
        _add: Option<GpuSlice<'_>>,
        _dx: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("resize: not on a GPU yet".into()))
    }

    fn keep_forward(
        &self,
        _dims: &ResampleDims,
        _offset: u32,
        _x: GpuSlice<'_>,
        _y: GpuSliceMut<'_>,
        _stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        Err(Error::Failed("resize: not on a GPU yet".into()))
    }

    fn keep_backward(&self, _dims: &ResampleDims, _offset: u32, _dy: GpuSlice<'_>, _dx: GpuSliceMut<'_>) -> Result<()> {
        Err(Error::Failed("resize: not on a GPU yet".into()))
    }
}
