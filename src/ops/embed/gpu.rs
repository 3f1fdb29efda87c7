//! Launches of the CUDA kernels.

#[allow(unused_imports)]
use super::*;
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};

impl<L: Launcher> Embed for Gpu<L> {
    fn embed_timesteps(
        &self,
        _dims: &TimestepDims,
        _timesteps: GpuSlice<'_>,
        _frequencies: Option<GpuSlice<'_>>,
        _emb: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("embed: not on a GPU yet".into()))
    }

    fn embed_classes(&self, _labels: GpuSlice<'_>, _table: GpuSlice<'_>, _emb: GpuSliceMut<'_>) -> Result<()> {
        Err(Error::Failed("embed: not on a GPU yet".into()))
    }

    fn embed_classes_backward(
        &self,
        _labels: GpuSlice<'_>,
        _demb: GpuSlice<'_>,
        _dtable: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("embed: not on a GPU yet".into()))
    }

    fn divide_by_timesteps(&self, _timesteps: GpuSlice<'_>, _x: GpuSliceMut<'_>) -> Result<()> {
        Err(Error::Failed("embed: not on a GPU yet".into()))
    }
}
