//! Do the views fit the extents? The same question on every device; `len` measures a view.

use super::{ConvDims, Direction, Epilogue, Filter, Operand, Prologue};
use crate::device::Memory;
use crate::error::{Error, Result};

pub(super) fn shape_error<T>(what: String) -> Result<T> {
    Err(Error::Shape { op: "conv", what })
}

pub(super) fn expect(name: &str, got: usize, want: usize) -> Result<()> {
    crate::ops::expect_len("conv", name, got, want)
}

/// Numbers per channel, or per image and channel.
fn expect_per_image(name: &str, got: usize, channels: usize, n: u32) -> Result<()> {
    if got == channels * n as usize { Ok(()) } else { expect(name, got, channels) }
}

fn check_operand<M: Memory>(
    name: &str,
    d: &ConvDims,
    x: &Operand<'_, M>,
    [c0, c1]: [u32; 2],
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    expect(&format!("{name}.x0"), len(&x.x0), d.pixels() * c0 as usize)?;
    let per = if x.x1_constant { d.n as usize } else { d.pixels() };
    expect(&format!("{name}.x1"), x.x1.as_ref().map_or(0, len), per * c1 as usize)
}

/// The operands of the product and the prologue.
pub(super) fn check_input<M: Memory>(
    d: &ConvDims,
    input: &Operand<'_, M>,
    prologue: &Prologue<'_, M>,
    residual: Option<&Operand<'_, M>>,
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    d.validate()?;
    check_operand("input", d, input, [d.c0, d.c1], &len)?;
    if let Some((scale, shift)) = &prologue.affine {
        expect_per_image("scale", len(scale), d.c(), d.n)?;
        expect("shift", len(shift), len(scale))?;
    }
    match residual {
        Some(r) => check_operand("residual", d, r, [d.r0, d.r1], &len),
        None if d.r() == 0 => Ok(()),
        None => shape_error(format!("no residual given, {} channels expected", d.r())),
    }
}

/// The epilogue, for outputs split at `k0`.
pub(super) fn check_epilogue<M: Memory>(
    d: &ConvDims,
    e: &Epilogue<'_, M>,
    k0: usize,
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    let (k, pixels) = (d.k as usize, d.pixels());
    if k0 == 0 || k0 > k {
        return shape_error(format!("k0 is {k0}, the convolution has {k} output channels"));
    }
    for (name, view, want) in
        [("silu_grad", &e.silu_grad, pixels * k), ("add0", &e.add0, pixels * k0), ("add1", &e.add1, pixels * (k - k0))]
    {
        if let Some(view) = view {
            expect(name, len(view), want)?;
        }
    }
    for (name, view) in [("bias", &e.bias), ("bias_res", &e.bias_res)] {
        if let Some(view) = view {
            expect_per_image(name, len(view), k, d.n)?;
        }
    }
    if let Some((v, a, b)) = &e.affine {
        if v.x1_constant {
            return shape_error("a constant second tensor cannot stand in the epilogue".into());
        }
        expect("epilogue v0", len(&v.x0), pixels * k0)?;
        expect("epilogue v1", v.x1.as_ref().map_or(0, &len), pixels * (k - k0))?;
        expect("epilogue a", len(a), k)?;
        expect("epilogue b", len(b), k)?;
    }
    Ok(())
}

/// A filter to pack.
pub(super) fn check_filter<M: Memory>(
    d: &ConvDims,
    direction: Direction,
    filter: &Filter<'_, M>,
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    d.validate()?;
    let (taps, c, k, r) = (d.taps(), d.c(), d.k as usize, d.r());
    // In the filter's own terms: [T, fc, fk].
    let (fc, fk) = match direction {
        Direction::Forward => (c, k),
        Direction::Dgrad => (filter.forward_c, c),
    };
    let want_res = match direction {
        _ if r == 0 => 0,
        Direction::Forward => r * k,
        Direction::Dgrad => fc * fk,
    };
    let (got, got_res) = (len(&filter.w), filter.w_res.as_ref().map_or(0, &len));
    if filter.forward_c != fc || got != taps * fc * fk || got_res != want_res {
        return shape_error(format!(
            "filter of {got} (+{got_res} residual) elements, {} (+{want_res}) expected for {direction:?} {d:?}",
            taps * fc * fk
        ));
    }
    if direction == Direction::Dgrad && (k > fc || (r != 0 && r != fk)) {
        return shape_error(format!("dgrad of {k} channels, residual {r}, from a filter of {fc} to {fk}"));
    }
    if filter.scale.as_ref().is_some_and(|s| len(s) < k) {
        return shape_error(format!("the filter's scale is shorter than its {k} channels"));
    }
    Ok(())
}
