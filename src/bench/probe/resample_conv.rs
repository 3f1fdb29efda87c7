//! Convolutions that change the resolution, through a probe.

use super::conv::{COMPARED, sampled_wgrad};
use super::error::{error_of, first, worse};
use super::{Call, Kind, PackedFilter, Probe, need, unchecked};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::conv::Direction;
use crate::ops::resample_conv::{
    ResampleConv, ResampleConvDims, ResampleConvGradients, Resampling, reference as truth,
};

/// Multiply-adds times two of the fewest products that suffice: 9 for each pixel of the small side and pair of channels.
fn flops(d: &ResampleConvDims) -> u64 {
    2 * 9 * d.small() as u64 * u64::from(d.c) * u64::from(d.k)
}

/// Images and extents of the large side, channels.
fn call(operation: &'static str, kind: Kind, d: &ResampleConvDims) -> Call {
    Call::new(operation, kind, format!("{}x{}x{} {}>{} 3x3", d.n, d.h, d.w, d.c, d.k))
        .option("double", d.resampling == Resampling::Double)
        .option("keep", d.resampling == Resampling::Keep { offset: 0 })
        .option("keep 1", d.resampling == Resampling::Keep { offset: 1 })
}

/// The first rows of the first image: as many as are worth comparing, and an even number.
fn part(d: &ResampleConvDims) -> ResampleConvDims {
    let row = d.w as usize * 9 * d.c as usize * d.k as usize;
    let rows = (COMPARED / row / 2 * 2).max(6).min(d.h as usize);
    ResampleConvDims { n: 1, h: rows as u32, ..*d }
}

/// Elements of a part that no row beyond it has a share in: all where the part is a whole image, else without its last rows.
fn inner(d: &ResampleConvDims, part: &ResampleConvDims, len: usize) -> usize {
    if part.h == d.h { len } else { len / part.h as usize * (part.h as usize - 4) }
}

impl<B: Backend> ResampleConv for Probe<'_, B> {
    fn resample_conv_packed_len(&self, dims: &ResampleConvDims, direction: Direction) -> usize {
        self.inner.resample_conv_packed_len(dims, direction)
    }

    fn resample_conv_pack(
        &self,
        d: &ResampleConvDims,
        direction: Direction,
        w: B::Slice<'_>,
        packed: B::SliceMut<'_>,
    ) -> Result<()> {
        let of = if self.measures() { self.fetch(w)? } else { Vec::new() };
        let kept = PackedFilter { direction, w: of, w_res: vec![], scale: vec![], forward_c: d.c as usize };
        self.packed.borrow_mut().insert(B::extent(B::shared(&packed)).address, kept);
        let call = call("resample_conv_pack", Kind::Pack, d)
            .option("dgrad", direction == Direction::Dgrad)
            .reads(extents!(B; Some(w)));
        let op = |[packed]: [Option<B::SliceMut<'_>>; 1]| self.inner.resample_conv_pack(d, direction, w, need(packed)?);
        self.call(call, lent!(B; Some(packed)), op, unchecked)
    }

    fn resample_conv<'a>(
        &self,
        d: &ResampleConvDims,
        x: B::Slice<'a>,
        packed: B::Slice<'a>,
        biases: [Option<B::Slice<'a>>; 2],
        y: B::SliceMut<'_>,
        stats: Option<B::SliceMut<'_>>,
    ) -> Result<()> {
        let call = call("resample_conv", Kind::Forward, d)
            .option("stats", stats.is_some())
            .flops(flops(d))
            .reads(extents!(B; Some(x), Some(packed), biases[0], biases[1]));
        let op =
            |[y, stats]: [Option<B::SliceMut<'_>>; 2]| self.inner.resample_conv(d, x, packed, biases, need(y)?, stats);
        self.call(call, lent!(B; Some(y), stats), op, |_, after| {
            let filters = self.packed.borrow();
            let Some(filter) = filters.get(&B::extent(packed).address).filter(|filter| !filter.w.is_empty()) else {
                return Ok(None);
            };
            let (part, k) = (part(d), d.k as usize);
            let mut bias = vec![0.0; k];
            for more in biases.into_iter().flatten() {
                bias.iter_mut().zip(self.fetch(more)?).for_each(|(sum, more)| *sum += more);
            }
            let x = self.fetch(x)?;
            let want = truth::forward(&part, first(&x, part.input_len()), &filter.w, &bias);
            let len = inner(d, &part, want.len());
            Ok(error_of(first(&after[0], len), first(&want, len)))
        })
    }

    fn resample_conv_backward<'a>(
        &self,
        d: &ResampleConvDims,
        x: B::Slice<'a>,
        packed: B::Slice<'a>,
        dy: B::Slice<'a>,
        add: Option<B::Slice<'a>>,
        out: ResampleConvGradients<'_, Self>,
    ) -> Result<()> {
        let ResampleConvGradients { dx, dw, db } = out;
        let mut call = call("resample_conv_backward", Kind::Dgrad, d)
            .option("add", add.is_some())
            .flops(2 * flops(d))
            .reads(extents!(B; Some(x), Some(packed), Some(dy), add))
            .updates();
        // dx is overwritten.
        call.bytes = call.bytes.saturating_sub(B::extent(B::shared(&dx)).bytes as u64);
        let op = |[dx, dw, db]: [Option<B::SliceMut<'_>>; 3]| {
            let out = ResampleConvGradients { dx: need(dx)?, dw: need(dw)?, db: need(db)? };
            self.inner.resample_conv_backward(d, x, packed, dy, add, out)
        };
        self.call(call, lent!(B; Some(dx), Some(dw), Some(db)), op, |before, after| {
            let filters = self.packed.borrow();
            let Some(filter) = filters.get(&B::extent(packed).address).filter(|filter| !filter.w.is_empty()) else {
                return Ok(None);
            };
            let part = part(d);
            let (x, dy, add) = (self.fetch(x)?, self.fetch(dy)?, self.fetch_opt(add)?);
            let of = truth::backward(&part, first(&x, part.input_len()), &filter.w, first(&dy, part.output_len()));
            let mut want = of.dx;
            if let Some(add) = &add {
                want.iter_mut().zip(add).for_each(|(want, add)| *want += add);
            }
            let len = inner(d, &part, want.len());
            let of_dx = error_of(first(&after[0], len), first(&want, len));
            // The filter's gradient, of the convolution on the large side.
            let [n, h, w, c_all, k_all] = [d.n, d.h, d.w, d.c, d.k].map(|e| e as usize);
            let small = |p: usize| (p / w / 2) * (w / 2) + p % w / 2;
            let z = |p: usize, c: usize| match d.resampling {
                Resampling::Double => x[small(p) * c_all + c],
                Resampling::Keep { .. } => x[p * c_all + c],
            };
            let dy_at = |p: usize, k: usize| match d.resampling {
                Resampling::Double => dy[p * k_all + k],
                Resampling::Keep { offset } => {
                    let kept = p / w % 2 == offset as usize && p % w % 2 == offset as usize;
                    if kept { dy[small(p) * k_all + k] } else { 0.0 }
                }
            };
            let of_dw = sampled_wgrad([n, h, w, 3], [c_all, k_all], z, dy_at, &before[1], &after[1]);
            Ok(worse(of_dx, of_dw))
        })
    }
}
