//! Launches of the CUDA kernels.

#[allow(unused_imports)]
use super::*;
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};

impl<L: Launcher> Attention for Gpu<L> {
    fn attention(
        &self,
        _dims: &AttentionDims,
        _qkv: GpuSlice<'_>,
        _y: GpuSliceMut<'_>,
        _lse: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("attention: not on a GPU yet".into()))
    }

    fn attention_backward(
        &self,
        _dims: &AttentionDims,
        _qkv: GpuSlice<'_>,
        _y: GpuSlice<'_>,
        _lse: GpuSlice<'_>,
        _dy: GpuSlice<'_>,
        _dqkv: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("attention: not on a GPU yet".into()))
    }
}
