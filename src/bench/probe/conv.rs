//! Convolutions through a probe.

use super::error::{error_of, first, worse};
use super::{Call, Kind, PackedFilter, Probe, need, unchecked};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::conv::reference as truth;
use crate::ops::conv::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::ops::conv2d::{Conv2d, Conv2dDims};

/// Multiply-adds that are worth comparing: a fraction of a second in float64.
pub(super) const COMPARED: usize = 20_000_000;

fn operand<'a, B: Backend>(x: Operand<'a, Probe<'_, B>>) -> Operand<'a, B> {
    Operand { x0: x.x0, x1: x.x1, x1_constant: x.x1_constant }
}

fn prologue<'a, B: Backend>(p: Prologue<'a, Probe<'_, B>>) -> Prologue<'a, B> {
    Prologue { affine: p.affine, silu: p.silu }
}

/// As in tables: 64x32x32 96+32>64 3x3 +96 (images, rows, columns, input and output channels, filter, residual channels).
fn shape(d: &ConvDims) -> String {
    let sum = |a: u32, b: u32| if b == 0 { a.to_string() } else { format!("{a}+{b}") };
    let residual = if d.r0 == 0 { String::new() } else { format!(" res {}", sum(d.r0, d.r1)) };
    let (c, side) = (sum(d.c0, d.c1), d.side);
    format!("{}x{}x{} {c}>{} {side}x{side}{residual}", d.n, d.h, d.w, d.k)
}

/// Float64 copies of an operand's two tensors.
struct Wide {
    x0: Vec<f64>,
    x1: Option<Vec<f64>>,
    x1_constant: bool,
}

impl Wide {
    /// The first `pixels` pixels, of channels c0 and c1.
    fn of(&self, pixels: usize, c0: u32, c1: u32) -> truth::Operand<'_> {
        let rows = if self.x1_constant { 1 } else { pixels };
        truth::Operand {
            x0: first(&self.x0, pixels * c0 as usize),
            x1: self.x1.as_ref().map(|x1| first(x1, rows * c1 as usize)),
            x1_constant: self.x1_constant,
        }
    }
}

impl<B: Backend> Probe<'_, B> {
    fn widen(&self, x: Operand<'_, B>) -> Result<Wide> {
        Ok(Wide { x0: self.fetch(x.x0)?, x1: self.fetch_opt(x.x1)?, x1_constant: x.x1_constant })
    }

    /// Error of the first rows of the first image.
    #[allow(clippy::too_many_arguments)] // the operands of a convolution
    fn check_conv(
        &self,
        d: &ConvDims,
        input: Operand<'_, B>,
        pro: Prologue<'_, B>,
        residual: Option<Operand<'_, B>>,
        filter: &PackedFilter,
        epi: &Epilogue<'_, B>,
        k0: usize,
        [y0, y1, stats]: &[Vec<f64>; 3],
    ) -> Result<Option<f64>> {
        let (h, w, k) = (d.h as usize, d.w as usize, d.k as usize);
        let row = w * (d.taps() * d.c() + d.r()) * k;
        let rows = (COMPARED / row).clamp(2, h.max(2)).min(h);
        let part = ConvDims { n: 1, h: rows as u32, ..*d };
        let pixels = rows * w;
        let x = self.widen(input)?;
        let res = residual.map(|r| self.widen(r)).transpose()?;
        let affine =
            pro.affine.map(|(a, b)| Ok::<_, crate::error::Error>((self.fetch(a)?, self.fetch(b)?))).transpose()?;
        let [bias, bias_res] = [self.fetch_opt(epi.bias)?, self.fetch_opt(epi.bias_res)?];
        let [h_grad, add0, add1] =
            [self.fetch_opt(epi.silu_grad)?, self.fetch_opt(epi.add0)?, self.fetch_opt(epi.add1)?];
        let v =
            epi.affine.map(|(v, a, b)| Ok::<_, crate::error::Error>((self.widen(v)?, self.fetch(a)?, self.fetch(b)?)));
        let v = v.transpose()?;
        let (k0_, k1_) = (k0 as u32, (k - k0) as u32);
        let want = truth::conv(
            &part,
            filter.direction,
            x.of(pixels, d.c0, d.c1),
            truth::Prologue {
                affine: affine.as_ref().map(|(a, b)| (first(a, d.c()), first(b, d.c()))),
                silu: pro.silu,
            },
            res.as_ref().map(|r| r.of(pixels, d.r0, d.r1)),
            truth::Filter {
                w: &filter.w,
                w_res: (!filter.w_res.is_empty()).then_some(&filter.w_res[..]),
                forward_c: filter.forward_c,
                scale: (!filter.scale.is_empty()).then_some(&filter.scale[..]),
            },
            truth::Epilogue {
                bias: bias.as_ref().map(|b| first(b, k)),
                bias_res: bias_res.as_ref().map(|b| first(b, k)),
                silu_grad: h_grad.as_ref().map(|h| first(h, pixels * k)),
                affine: v.as_ref().map(|(v, a, b)| (v.of(pixels, k0_, k1_), &a[..], &b[..])),
                add0: add0.as_ref().map(|a| first(a, pixels * k0)),
                add1: add1.as_ref().map(|a| first(a, pixels * (k - k0))),
                k0,
            },
        );
        // The last row lacks the one below it, unless it is the picture's last.
        let whole = if rows == h { pixels } else { pixels - w };
        let (want0, want1) = truth::split(&want[..whole * k], k, k0);
        let mut error = worse(error_of(first(y0, want0.len()), &want0), error_of(first(y1, want1.len()), &want1));
        if rows == h && !stats.is_empty() {
            error = worse(error, error_of(first(stats, 2 * k), &truth::stats(&want, 1, h * w, k)));
        }
        Ok(error)
    }

    /// Error of a few elements of the gradients, over the whole batch.
    fn check_wgrad(
        &self,
        d: &ConvDims,
        input: Operand<'_, B>,
        pro: Prologue<'_, B>,
        dy: B::Slice<'_>,
        before: &[f64],
        dw: &[f64],
    ) -> Result<Option<f64>> {
        let x = self.widen(input)?;
        let dy = self.fetch(dy)?;
        let affine =
            pro.affine.map(|(a, b)| Ok::<_, crate::error::Error>((self.fetch(a)?, self.fetch(b)?))).transpose()?;
        let [n, h, w, side] = [d.n, d.h, d.w, d.side].map(|e| e as usize);
        let (c_all, k_all) = (d.c(), d.k as usize);
        let z = |p: usize, c: usize| {
            let image = p / (h * w);
            let c0 = d.c0 as usize;
            let value = match &x.x1 {
                Some(x1) if c >= c0 => x1[if x.x1_constant { image } else { p } * d.c1 as usize + c - c0],
                _ => x.x0[p * c0 + c],
            };
            let value = affine.as_ref().map_or(value, |(a, b)| {
                let at = if a.len() > c_all { image * c_all + c } else { c };
                a[at] * value + b[at]
            });
            if pro.silu { truth::silu(value) } else { value }
        };
        let dy = |p: usize, k: usize| dy[p * k_all + k];
        Ok(sampled_wgrad([n, h, w, side], [c_all, k_all], z, dy, before, dw))
    }
}

/// Error of a few elements of dW[t,c,k] = before + sum_p z(p+t, c) dy(p, k) over all pixels; `extents` are images, rows, columns and the side of
/// the filter, `channels` C and K.
pub(super) fn sampled_wgrad(
    [n, h, w, side]: [usize; 4],
    [c_all, k_all]: [usize; 2],
    z: impl Fn(usize, usize) -> f64,
    dy: impl Fn(usize, usize) -> f64,
    before: &[f64],
    dw: &[f64],
) -> Option<f64> {
    let pad = side / 2;
    let mut channels = vec![0, c_all / 2, c_all - 1];
    let mut outputs = vec![0, k_all / 2, k_all - 1];
    channels.dedup();
    outputs.dedup();
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for &c in &channels {
        let column: Vec<f64> = (0..n * h * w).map(|p| z(p, c)).collect();
        for t in 0..side * side {
            let mut sums = vec![0.0; outputs.len()];
            for p in 0..n * h * w {
                let (i, j) = (p / w % h + t / side, p % w + t % side);
                if i < pad || j < pad || i - pad >= h || j - pad >= w {
                    continue;
                }
                let value = column[(p / (h * w) * h + i - pad) * w + j - pad];
                sums.iter_mut().zip(&outputs).for_each(|(sum, k)| *sum += value * dy(p, *k));
            }
            for (sum, k) in sums.iter().zip(&outputs) {
                let at = (t * c_all + c) * k_all + k;
                got.push(dw[at]);
                want.push(before[at] + sum);
            }
        }
    }
    error_of(&got, &want)
}

impl<B: Backend> Conv for Probe<'_, B> {
    fn conv_packed_len(&self, dims: &ConvDims) -> usize {
        self.inner.conv_packed_len(dims)
    }

    fn conv_pack(
        &self,
        d: &ConvDims,
        direction: Direction,
        filter: Filter<'_, Self>,
        packed: B::SliceMut<'_>,
    ) -> Result<()> {
        let Filter { w, w_res, forward_c, scale } = filter;
        let mut kept = PackedFilter { direction, w: vec![], w_res: vec![], scale: vec![], forward_c };
        if self.measures() {
            kept.w = self.fetch(w)?;
            kept.w_res = self.fetch_opt(w_res)?.unwrap_or_default();
            kept.scale = self.fetch_opt(scale)?.unwrap_or_default();
        }
        self.packed.borrow_mut().insert(B::extent(B::shared(&packed)).address, kept);
        let turned = direction == Direction::Dgrad;
        let call = Call::new("conv_pack", Kind::Pack, format!("{}>{} {side}x{side}", d.c(), d.k, side = d.side))
            .option("res", w_res.is_some())
            .option("dgrad", turned)
            .reads(extents!(B; Some(w), w_res, scale));
        let op = |[packed]: [Option<B::SliceMut<'_>>; 1]| {
            self.inner.conv_pack(d, direction, Filter { w, w_res, forward_c, scale }, need(packed)?)
        };
        self.call(call, lent!(B; Some(packed)), op, unchecked)
    }

    fn conv<'a>(
        &self,
        d: &ConvDims,
        input: Operand<'a, Self>,
        pro: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        packed: B::Slice<'a>,
        epilogue: Epilogue<'a, Self>,
        out: Output<'_, Self>,
    ) -> Result<()> {
        let (x, pro, res) = (operand(input), prologue(pro), residual.map(operand));
        let Epilogue { bias, bias_res, silu_grad, affine, add0, add1 } = epilogue;
        let epi =
            || Epilogue { bias, bias_res, silu_grad, affine: affine.map(|(v, a, b)| (operand(v), a, b)), add0, add1 };
        let address = B::extent(packed).address;
        let dgrad = self.packed.borrow().get(&address).is_some_and(|p| p.direction == Direction::Dgrad);
        let kind = if dgrad { Kind::Dgrad } else { Kind::Forward };
        let of = |x: Operand<'_, B>| [Some(B::extent(x.x0)), x.x1.map(B::extent)];
        let none = [None, None];
        let call = Call::new("conv", kind, shape(d))
            .option("dgrad", dgrad)
            .option("affine", pro.affine.is_some())
            .option("silu", pro.silu)
            .option("constant", x.x1_constant)
            .option("silu'", silu_grad.is_some())
            .option("norm'", affine.is_some())
            .option("add", add0.is_some() || add1.is_some())
            .option("stats", out.stats.is_some())
            .flops(d.flops())
            .reads(of(x))
            .reads(res.map_or(none, of))
            .reads(affine.map_or(none, |(v, _, _)| of(operand(v))))
            .reads(extents!(B; Some(packed)))
            .reads(extents!(B; bias, bias_res, silu_grad, add0, add1));
        let k0 = out.k0;
        let op = |[y0, y1, stats]: [Option<B::SliceMut<'_>>; 3]| {
            self.inner.conv(d, x, pro, res, packed, epi(), Output { y0: need(y0)?, y1, k0, stats })
        };
        self.call(call, lent!(B; Some(out.y0), out.y1, out.stats), op, |_, after| {
            let filters = self.packed.borrow();
            match filters.get(&address) {
                Some(filter) if !filter.w.is_empty() => self.check_conv(d, x, pro, res, filter, &epi(), k0, after),
                _ => Ok(None),
            }
        })
    }

    fn conv_wgrad<'a>(
        &self,
        d: &ConvDims,
        input: Operand<'a, Self>,
        pro: Prologue<'a, Self>,
        residual: Option<Operand<'a, Self>>,
        dy: B::Slice<'a>,
        out: WeightGradients<'_, Self>,
    ) -> Result<()> {
        let (x, pro, res) = (operand(input), prologue(pro), residual.map(operand));
        let of = |x: Operand<'_, B>| [Some(B::extent(x.x0)), x.x1.map(B::extent)];
        let call = Call::new("conv_wgrad", Kind::Wgrad, shape(d))
            .option("affine", pro.affine.is_some())
            .option("silu", pro.silu)
            .option("constant", x.x1_constant)
            .option("border", out.border_sums.is_some())
            .flops(d.flops())
            .reads(of(x))
            .reads(res.map_or([None, None], of))
            .reads([Some(B::extent(dy))])
            .updates();
        let op = |[dw, dw_res, db, db_res, border_sums]: [Option<B::SliceMut<'_>>; 5]| {
            self.inner.conv_wgrad(
                d,
                x,
                pro,
                res,
                dy,
                WeightGradients { dw: need(dw)?, dw_res, db, db_res, border_sums },
            )
        };
        let WeightGradients { dw, dw_res, db, db_res, border_sums } = out;
        self.call(call, lent!(B; Some(dw), dw_res, db, db_res, border_sums), op, |before, after| {
            self.check_wgrad(d, x, pro, dy, &before[0], &after[0])
        })
    }
}

impl<B: Backend> Conv2d for Probe<'_, B> {
    fn conv2d_filter(&self, dims: &Conv2dDims, w: &[f32]) -> Result<B::Buffer> {
        self.inner.conv2d_filter(dims, w)
    }
    fn conv2d(
        &self,
        d: &Conv2dDims,
        x: B::Slice<'_>,
        filter: B::Slice<'_>,
        bias: B::Slice<'_>,
        y: B::SliceMut<'_>,
    ) -> Result<()> {
        let Conv2dDims { n, h, w, c, k, kernel_h, kernel_w, stride, .. } = *d;
        let shape = format!("{n}x{h}x{w} {c}>{k} {kernel_h}x{kernel_w}/{stride}");
        let call = Call::new("conv2d", Kind::Forward, shape)
            .flops(d.flops() as u64)
            .reads(extents!(B; Some(x), Some(filter), Some(bias)));
        self.call(call, lent!(B; Some(y)), |[y]| self.inner.conv2d(d, x, filter, bias, need(y)?), unchecked)
    }
}
