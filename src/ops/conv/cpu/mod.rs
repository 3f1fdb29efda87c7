//! CPU kernels of the convolution: direct, fused, no im2col.
//!
//! A worker takes a unit (a band of rows, or several small images), brings its input into a padded band with the prologue applied
//! once per element, and multiplies: a register block of `Simd::PIXELS` pixels by two vectors of output channels runs over all
//! taps and channels, one broadcast per (pixel, channel) and one load per weight vector. The result goes to scratch, and a second
//! pass over the scratch, still in cache, applies the epilogue and takes the statistics.
//!
//! Each output is summed in the same order whatever the unit, so results depend neither on threads nor on the batch.

mod bands;
mod forward;
mod pack;
mod wgrad;

use super::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};

fn shape_error<T>(what: String) -> Result<T> {
    Err(Error::Shape { op: "conv", what })
}

fn expect(name: &str, got: usize, want: usize) -> Result<()> {
    crate::ops::expect_len("conv", name, got, want)
}

fn check_operand(name: &str, d: &ConvDims, x: &Operand<'_, Cpu>, c0: usize, c1: usize) -> Result<()> {
    expect(&format!("{name}.x0"), x.x0.len(), d.pixels() * c0)?;
    let per = if x.x1_constant { d.n as usize } else { d.pixels() };
    expect(&format!("{name}.x1"), x.x1.map_or(0, <[f32]>::len), per * c1)
}

fn check_input(
    d: &ConvDims,
    input: &Operand<'_, Cpu>,
    prologue: &Prologue<'_, Cpu>,
    residual: Option<&Operand<'_, Cpu>>,
) -> Result<()> {
    d.validate()?;
    check_operand("input", d, input, d.c0 as usize, d.c1 as usize)?;
    if let Some((scale, shift)) = prologue.affine {
        expect("scale", scale.len(), d.c())?;
        expect("shift", shift.len(), d.c())?;
    }
    match residual {
        Some(r) => check_operand("residual", d, r, d.r0 as usize, d.r1 as usize),
        None if d.r() == 0 => Ok(()),
        None => shape_error(format!("no residual given, {} channels expected", d.r())),
    }
}

impl Conv for Cpu {
    fn conv_packed_len(&self, dims: &ConvDims) -> usize {
        pack::rows(dims) * pack::padded(dims.k as usize, self.isa().lanes())
    }

    fn conv_pack(
        &self,
        dims: &ConvDims,
        direction: Direction,
        filter: Filter<'_, Self>,
        packed: &mut [f32],
    ) -> Result<()> {
        dims.validate()?;
        pack::pack(self, dims, direction, &filter, packed)
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
        check_input(dims, &input, &prologue, residual.as_ref())?;
        expect("packed", packed.len(), self.conv_packed_len(dims))?;
        forward::forward(self, dims, input, prologue, residual, packed, epilogue, out)
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
        check_input(dims, &input, &prologue, residual.as_ref())?;
        wgrad::wgrad(self, dims, input, prologue, residual, dy, out)
    }
}
