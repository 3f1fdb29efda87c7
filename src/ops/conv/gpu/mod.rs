//! Launches of the CUDA kernels of the convolution: [`forward`] for the product in both directions, [`pack`] for its filters, [`wgrad`]
//! for the gradients of the weights.

mod forward;
mod pack;
mod wgrad;

use super::lengths::{check_epilogue, check_filter, check_input, expect, shape_error};
use super::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::device::gpu::{Dtype, Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::{DevicePtr, Launcher};
use crate::error::Result;

fn len(view: &GpuSlice<'_>) -> usize {
    view.len()
}

/// Address of an operand that may be absent.
fn ptr(view: Option<GpuSlice<'_>>) -> DevicePtr {
    view.map_or(DevicePtr::NULL, |view| view.ptr())
}

/// Refuses views of another element type.
fn expect_dtype(what: &str, views: &[Option<GpuSlice<'_>>], want: Dtype) -> Result<()> {
    match views.iter().flatten().find(|view| view.dtype() != want) {
        Some(view) => shape_error(format!("{what} of {:?} where {want:?} is expected", view.dtype())),
        None => Ok(()),
    }
}

impl<L: Launcher> Conv for Gpu<L> {
    fn conv_packed_len(&self, dims: &ConvDims) -> usize {
        pack::packed_len(self.activation_dtype(), dims)
    }

    fn conv_pack(
        &self,
        dims: &ConvDims,
        direction: Direction,
        filter: Filter<'_, Self>,
        packed: GpuSliceMut<'_>,
    ) -> Result<()> {
        check_filter(dims, direction, &filter, len)?;
        expect("packed", packed.len(), self.conv_packed_len(dims))?;
        pack::pack(self, dims, direction, filter, packed)
    }

    fn conv<'a>(
        &self,
        dims: &ConvDims,
        input: Operand<'a, Self>,
        prologue: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        packed: GpuSlice<'a>,
        epilogue: Epilogue<'a, Self>,
        out: Output<'_, Self>,
    ) -> Result<()> {
        check_input(dims, &input, &prologue, residual.as_ref(), len)?;
        check_epilogue(dims, &epilogue, out.k0, len)?;
        expect("packed", packed.len(), self.conv_packed_len(dims))?;
        forward::forward(self, dims, input, prologue, residual, packed, epilogue, out)
    }

    fn conv_wgrad<'a>(
        &self,
        dims: &ConvDims,
        input: Operand<'a, Self>,
        prologue: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        dy: GpuSlice<'a>,
        out: WeightGradients<'_, Self>,
    ) -> Result<()> {
        wgrad::conv_wgrad(self, dims, input, prologue, residual, dy, out)
    }
}
