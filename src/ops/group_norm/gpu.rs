//! Launches of the CUDA kernels.

#[allow(unused_imports)]
use super::*;
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};

impl<L: Launcher> GroupNorm for Gpu<L> {
    fn group_norm_coefficients(
        &self,
        _dims: &GroupNormDims,
        _stats0: GpuSlice<'_>,
        _stats1: Option<GpuSlice<'_>>,
        _params: NormParams<'_, Self>,
        _coefficients: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("group_norm: not on a GPU yet".into()))
    }

    fn group_norm_apply(
        &self,
        _dims: &GroupNormDims,
        _input: NormInput<'_, Self>,
        _dropout: Option<Dropout<'_, Self>>,
        _y: GpuSliceMut<'_>,
    ) -> Result<()> {
        Err(Error::Failed("group_norm: not on a GPU yet".into()))
    }

    fn group_norm_backward(
        &self,
        _dims: &GroupNormDims,
        _input: NormInput<'_, Self>,
        _params: NormParams<'_, Self>,
        _dropout: Option<Dropout<'_, Self>>,
        _g: GpuSlice<'_>,
        _other: OtherGradients<'_, Self>,
        _out: NormGradients<'_, Self>,
    ) -> Result<()> {
        Err(Error::Failed("group_norm: not on a GPU yet".into()))
    }
}
