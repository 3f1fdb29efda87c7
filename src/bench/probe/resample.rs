//! Changes of resolution through a probe.

use super::error::{error_of, first, worse};
use super::{Call, Kind, Probe, need, unchecked};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::bilinear::{Bilinear, BilinearDims};
use crate::ops::conv::reference::stats as stats_of;
use crate::ops::pool::{AvgPool2, ResampleDims, reference as pool};
use crate::ops::resize::{Resize, reference as resize};
use crate::ops::upsample::{Upsample2, reference as upsample};
use crate::ops::window_pool::{Pooling, WindowPool, WindowPoolDims};

/// Images and extents of the large side.
fn call(operation: &'static str, d: &ResampleDims) -> Call {
    Call::new(operation, Kind::Resample, format!("{}x{}x{} c{}", d.n, d.h, d.w, d.c))
}

fn one(d: &ResampleDims) -> ResampleDims {
    ResampleDims { n: 1, ..*d }
}

/// Error of the first image, and of its statistics.
fn check(want: &[f64], pixels: u32, c: u32, [y, stats]: &[Vec<f64>; 2]) -> Option<f64> {
    let of_stats = if stats.is_empty() {
        None
    } else {
        error_of(first(stats, 2 * c as usize), &stats_of(want, 1, pixels as usize, c as usize))
    };
    worse(error_of(first(y, want.len()), want), of_stats)
}

impl<B: Backend> AvgPool2 for Probe<'_, B> {
    fn avg_pool_forward(
        &self,
        d: &ResampleDims,
        x: B::Slice<'_>,
        y: B::SliceMut<'_>,
        stats: Option<B::SliceMut<'_>>,
    ) -> Result<()> {
        let call = call("avg_pool_forward", d).option("stats", stats.is_some()).reads(extents!(B; Some(x)));
        let op = |[y, stats]: [Option<B::SliceMut<'_>>; 2]| self.inner.avg_pool_forward(d, x, need(y)?, stats);
        self.call(call, lent!(B; Some(y), stats), op, |_, after| {
            let x = self.fetch(x)?;
            Ok(check(&pool::forward(&one(d), first(&x, one(d).large())), d.h * d.w / 4, d.c, after))
        })
    }

    fn avg_pool_backward(
        &self,
        d: &ResampleDims,
        dy: B::Slice<'_>,
        add: Option<B::Slice<'_>>,
        dx: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = call("avg_pool_backward", d).option("add", add.is_some()).reads(extents!(B; Some(dy), add));
        let op = |[dx]: [Option<B::SliceMut<'_>>; 1]| self.inner.avg_pool_backward(d, dy, add, need(dx)?);
        self.call(call, lent!(B; Some(dx)), op, |_, after| {
            let (dy, add) = (self.fetch(dy)?, self.fetch_opt(add)?);
            let add = add.as_ref().map(|add| first(add, one(d).large()));
            let want = pool::backward(&one(d), first(&dy, one(d).small()), add);
            Ok(error_of(first(&after[0], want.len()), &want))
        })
    }
}

impl<B: Backend> Upsample2 for Probe<'_, B> {
    fn upsample_forward(
        &self,
        d: &ResampleDims,
        x: B::Slice<'_>,
        y: B::SliceMut<'_>,
        stats: Option<B::SliceMut<'_>>,
    ) -> Result<()> {
        let call = call("upsample_forward", d).option("stats", stats.is_some()).reads(extents!(B; Some(x)));
        let op = |[y, stats]: [Option<B::SliceMut<'_>>; 2]| self.inner.upsample_forward(d, x, need(y)?, stats);
        self.call(call, lent!(B; Some(y), stats), op, |_, after| {
            let x = self.fetch(x)?;
            Ok(check(&upsample::forward(&one(d), first(&x, one(d).small())), d.h * d.w, d.c, after))
        })
    }

    fn upsample_backward(&self, d: &ResampleDims, dy: B::Slice<'_>, dx: B::SliceMut<'_>) -> Result<()> {
        let call = call("upsample_backward", d).reads([Some(B::extent(dy))]);
        let op = |[dx]: [Option<B::SliceMut<'_>>; 1]| self.inner.upsample_backward(d, dy, need(dx)?);
        self.call(call, lent!(B; Some(dx)), op, |_, after| {
            let dy = self.fetch(dy)?;
            let want = upsample::backward(&one(d), first(&dy, one(d).large()));
            Ok(error_of(first(&after[0], want.len()), &want))
        })
    }
}

impl<B: Backend> Resize for Probe<'_, B> {
    fn double_forward(
        &self,
        d: &ResampleDims,
        x: B::Slice<'_>,
        y: B::SliceMut<'_>,
        stats: Option<B::SliceMut<'_>>,
    ) -> Result<()> {
        let call = call("double_forward", d).option("stats", stats.is_some()).reads([Some(B::extent(x))]);
        let op = |[y, stats]: [Option<B::SliceMut<'_>>; 2]| self.inner.double_forward(d, x, need(y)?, stats);
        self.call(call, lent!(B; Some(y), stats), op, |_, after| {
            let x = self.fetch(x)?;
            Ok(check(&resize::double(&one(d), first(&x, one(d).small())), d.h * d.w, d.c, after))
        })
    }

    fn double_backward(
        &self,
        d: &ResampleDims,
        dy: B::Slice<'_>,
        add: Option<B::Slice<'_>>,
        dx: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = call("double_backward", d).option("add", add.is_some()).reads(extents!(B; Some(dy), add));
        let op = |[dx]: [Option<B::SliceMut<'_>>; 1]| self.inner.double_backward(d, dy, add, need(dx)?);
        self.call(call, lent!(B; Some(dx)), op, |_, after| {
            let (dy, add) = (self.fetch(dy)?, self.fetch_opt(add)?);
            let add = add.as_ref().map(|add| first(add, one(d).small()));
            let want = resize::double_backward(&one(d), first(&dy, one(d).large()), add);
            Ok(error_of(first(&after[0], want.len()), &want))
        })
    }

    fn keep_forward(
        &self,
        d: &ResampleDims,
        offset: u32,
        x: B::Slice<'_>,
        y: B::SliceMut<'_>,
        stats: Option<B::SliceMut<'_>>,
    ) -> Result<()> {
        let call = call("keep_forward", d)
            .option("offset 1", offset == 1)
            .option("stats", stats.is_some())
            .reads([Some(B::extent(x))]);
        let op = |[y, stats]: [Option<B::SliceMut<'_>>; 2]| self.inner.keep_forward(d, offset, x, need(y)?, stats);
        self.call(call, lent!(B; Some(y), stats), op, |_, after| {
            let x = self.fetch(x)?;
            Ok(check(&resize::keep(&one(d), offset, first(&x, one(d).large())), d.h * d.w / 4, d.c, after))
        })
    }

    fn keep_backward(&self, d: &ResampleDims, offset: u32, dy: B::Slice<'_>, dx: B::SliceMut<'_>) -> Result<()> {
        let call = call("keep_backward", d).option("offset 1", offset == 1).reads([Some(B::extent(dy))]);
        let op = |[dx]: [Option<B::SliceMut<'_>>; 1]| self.inner.keep_backward(d, offset, dy, need(dx)?);
        self.call(call, lent!(B; Some(dx)), op, |_, after| {
            let dy = self.fetch(dy)?;
            let want = resize::keep_backward(&one(d), offset, first(&dy, one(d).small()));
            Ok(error_of(first(&after[0], want.len()), &want))
        })
    }
}

impl<B: Backend> Bilinear for Probe<'_, B> {
    fn bilinear(&self, d: &BilinearDims, x: B::Slice<'_>, y: B::SliceMut<'_>) -> Result<()> {
        let shape = format!("{}x{}x{} c{} to {}x{}", d.n, d.h, d.w, d.c, d.out_h, d.out_w);
        let call = Call::new("bilinear", Kind::Resample, shape).reads([Some(B::extent(x))]);
        self.call(call, lent!(B; Some(y)), |[y]| self.inner.bilinear(d, x, need(y)?), unchecked)
    }
}

impl<B: Backend> WindowPool for Probe<'_, B> {
    fn window_pool(&self, d: &WindowPoolDims, pooling: Pooling, x: B::Slice<'_>, y: B::SliceMut<'_>) -> Result<()> {
        let shape = format!("{}x{}x{} c{} {}/{}", d.n, d.h, d.w, d.c, d.kernel, d.stride);
        let call = Call::new("window_pool", Kind::Resample, shape)
            .option("max", pooling == Pooling::Max)
            .reads([Some(B::extent(x))]);
        self.call(call, lent!(B; Some(y)), |[y]| self.inner.window_pool(d, pooling, x, need(y)?), unchecked)
    }
}
