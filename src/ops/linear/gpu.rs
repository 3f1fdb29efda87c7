//! Launches of the CUDA kernels.

#[allow(unused_imports)]
use super::*;
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};

impl<L: Launcher> Linear for Gpu<L> {
    fn linear(
        &self,
        _dims: &LinearDims,
        _x: GpuSlice<'_>,
        _w: GpuSlice<'_>,
        _b: GpuSlice<'_>,
        _y: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("linear: not on a GPU yet".into()))
    }

    fn linear_backward(
        &self,
        _dims: &LinearDims,
        _x: GpuSlice<'_>,
        _w: GpuSlice<'_>,
        _dy: GpuSlice<'_>,
        _out: LinearGradients<'_, Self>,
    ) -> Result<()> {
        Err(Error::Failed("linear: not on a GPU yet".into()))
    }
}
