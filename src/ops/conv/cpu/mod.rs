//! CPU kernels of the convolution: direct or by Winograd's tiles, fused, no im2col.
//!
//! A worker takes a unit (a band of rows, or several small images), brings its input into a padded band with the prologue applied
//! once per element, and multiplies: a register block of `Simd::PIXELS` pixels by two vectors of output channels runs over all
//! taps and channels, one broadcast per (pixel, channel) and one load per weight vector. The result goes to scratch, and a second
//! pass over the scratch, still in cache, applies the epilogue and takes the statistics.
//!
//! A 3x3 filter with enough channels is taken by tiles of 2x2 pixels instead (`winograd`, which says why): 16 products instead of
//! 36, forward, backward and for the weights. `winograd::wins` chooses by the extents alone.
//!
//! Where the device's [`Products`](crate::device::cpu::Products) are bfloat16, V and the transformed filter of these tiles are rounded
//! to it, forward and backward, and multiplied in pairs of input channels; sums are float32, and so is the gradient of the weights.
//!
//! Each output is summed in the same order whatever the unit, so results depend neither on threads nor on the batch.

pub(in crate::ops) mod bands;
mod constant;
pub(in crate::ops) mod forward;
mod forward_tiles;
pub(in crate::ops) mod pack;
pub(in crate::ops) mod partials;
mod wgrad;
mod wgrad_direct;
mod wgrad_tiles;
mod winograd;

use super::lengths::{check_epilogue, check_filter, check_input, expect, shape_error};
use super::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::device::cpu::Cpu;
use crate::error::Result;
use constant::Split;
use forward::Packed;

/// Names the way that the main product takes, for `bench`.
fn note(cpu: &Cpu, dims: &ConvDims) {
    cpu.note_plan(if winograd::wins(dims) { "winograd" } else { "direct" });
}

fn len(view: &&[f32]) -> usize {
    view.len()
}

impl Conv for Cpu {
    fn conv_packed_len(&self, dims: &ConvDims) -> usize {
        pack::rows(dims, self.products()) * pack::padded(dims.k as usize, self.isa().lanes())
    }

    fn conv_pack(
        &self,
        dims: &ConvDims,
        direction: Direction,
        filter: Filter<'_, Self>,
        packed: &mut [f32],
    ) -> Result<()> {
        check_filter(dims, direction, &filter, len)?;
        expect("packed", packed.len(), self.conv_packed_len(dims))?;
        pack::pack(self, dims, direction, &filter, packed);
        Ok(())
    }

    fn conv<'a>(
        &self,
        dims: &ConvDims,
        input: Operand<'a, Self>,
        prologue: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        packed: &'a [f32],
        epilogue: Epilogue<'a, Self>,
        out: Output<'_, Self>,
    ) -> Result<()> {
        check_input(dims, &input, &prologue, residual.as_ref(), len)?;
        check_epilogue(dims, &epilogue, out.k0, len)?;
        expect("packed", packed.len(), self.conv_packed_len(dims))?;
        note(self, dims);
        let packed = Packed::new(dims, self.products(), packed);
        match constant::split(dims, input, prologue, residual, packed.can_start_at(dims.c0 as usize)) {
            None => forward::forward(self, dims, input, prologue, residual, packed, epilogue, None, out),
            Some(split) => {
                let per_image = Some(constant::per_image(self, dims, &split, packed)?);
                let Split { dims, input, prologue, residual, .. } = split;
                forward::forward(self, &dims, input, prologue, residual, packed, epilogue, per_image, out)
            }
        }
    }

    fn conv_wgrad<'a>(
        &self,
        dims: &ConvDims,
        input: Operand<'a, Self>,
        prologue: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        dy: &'a [f32],
        out: WeightGradients<'_, Self>,
    ) -> Result<()> {
        check_input(dims, &input, &prologue, residual.as_ref(), len)?;
        wgrad::check(dims, dy, &out)?;
        note(self, dims);
        match constant::split(dims, input, prologue, residual, true) {
            None => wgrad::wgrad(self, dims, input, prologue, residual, dy, out),
            Some(split) => constant::wgrad(self, dims, &split, dy, out),
        }
    }
}
