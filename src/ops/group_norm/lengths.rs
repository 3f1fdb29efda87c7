//! Do the views fit the extents? The same question on every device; `len` measures a view.

use super::{Dropout, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients};
use crate::device::Memory;
use crate::error::{Error, Result};
use crate::ops::expect_len;

const OP: &str = "group_norm";

fn expect(name: &str, got: usize, want: usize) -> Result<()> {
    expect_len(OP, name, got, want)
}

pub(super) fn check_dims(d: &GroupNormDims) -> Result<()> {
    let positive = d.n > 0 && d.pixels > 0 && d.c0 > 0 && d.groups > 0;
    if positive && d.c().is_multiple_of(d.groups as usize) && d.eps > 0.0 {
        return Ok(());
    }
    Err(Error::Shape { op: OP, what: format!("unusable extents {d:?}; groups must divide the channels") })
}

pub(super) fn check_params<M: Memory>(
    d: &GroupNormDims,
    p: &NormParams<'_, M>,
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    expect("gamma", len(&p.gamma), d.c())?;
    expect("beta", len(&p.beta), d.c())?;
    match &p.modulation {
        Some(modulation) => expect("modulation", len(modulation), 2 * d.affine_len()),
        None => Ok(()),
    }
}

pub(super) fn check_statistics<M: Memory>(
    d: &GroupNormDims,
    stats0: &M::Slice<'_>,
    stats1: Option<&M::Slice<'_>>,
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    let want = |c: u32| 2 * d.n as usize * c as usize;
    expect("stats0", len(stats0), want(d.c0))?;
    expect("stats1", stats1.map_or(0, &len), want(d.c1))
}

pub(super) fn check_input<M: Memory>(
    d: &GroupNormDims,
    x: &NormInput<'_, M>,
    dropout: Option<&Dropout<'_, M>>,
    len: impl Fn(&M::Slice<'_>) -> usize,
) -> Result<()> {
    check_dims(d)?;
    expect("x0", len(&x.x0), d.len0())?;
    expect("x1", x.x1.as_ref().map_or(0, &len), d.len1())?;
    expect("coefficients", len(&x.coefficients), d.coefficients_len())?;
    let Some(dropout) = dropout else { return Ok(()) };
    expect("step", len(&dropout.step), 1)?;
    if (0.0..1.0).contains(&dropout.p) {
        return Ok(());
    }
    Err(Error::Shape { op: OP, what: format!("dropout of {}; expected from 0 up to, not including, 1", dropout.p) })
}

pub(super) fn check_gradients<M: Memory>(
    d: &GroupNormDims,
    modulated: bool,
    other: &OtherGradients<'_, M>,
    out: &NormGradients<'_, M>,
    len: impl Fn(&M::Slice<'_>) -> usize,
    len_mut: impl Fn(&M::SliceMut<'_>) -> usize,
) -> Result<()> {
    for (name, view, want) in
        [("to0", &other.to0[0], d.len0()), ("to0", &other.to0[1], d.len0()), ("to1", &other.to1, d.len1())]
    {
        if let Some(view) = view {
            expect(name, len(view), want)?;
        }
    }
    expect("dx0", len_mut(&out.dx0), d.len0())?;
    expect("dx1", out.dx1.as_ref().map_or(0, &len_mut), d.len1())?;
    expect("dgamma", len_mut(&out.dgamma), d.c())?;
    expect("dbeta", len_mut(&out.dbeta), d.c())?;
    let modulation = if modulated { 2 * d.affine_len() } else { 0 };
    expect("dmodulation", out.dmodulation.as_ref().map_or(0, &len_mut), modulation)?;
    match &out.sums {
        Some(sums) => expect("sums", len_mut(sums), d.affine_len()),
        None => Ok(()),
    }
}
