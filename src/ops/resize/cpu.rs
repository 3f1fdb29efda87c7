//! CPU kernels of the resizes; an image is a unit of work.

use super::{ResampleDims, Resize};
use crate::device::cpu::Cpu;
use crate::device::cpu::scratch::with_scratch;
use crate::error::{Error, Result};
use crate::ops::expect_len;
use crate::ops::pool::cpu::{check_even, per_image};
use crate::ops::stats::image_stats;

const OP: &str = "resize";

/// Refuses odd sides and offsets other than 0 and 1.
pub(super) fn check(d: &ResampleDims, offset: u32) -> Result<()> {
    check_even(OP, d)?;
    if offset > 1 {
        return Err(Error::Shape { op: OP, what: format!("offset {offset}; expected 0 or 1") });
    }
    Ok(())
}

fn expect_stats(d: &ResampleDims, stats: Option<&[f32]>) -> Result<()> {
    stats.map_or(Ok(()), |stats| expect_len(OP, "stats", stats.len(), (d.n * d.c * 2) as usize))
}

fn take_stats(y: &[f32], c: usize, stats: &mut [f32]) {
    if !stats.is_empty() {
        with_scratch([2 * c], |[sums]| image_stats(y, c, sums, stats));
    }
}

impl Resize for Cpu {
    fn double_forward(&self, d: &ResampleDims, x: &[f32], y: &mut [f32], stats: Option<&mut [f32]>) -> Result<()> {
        check(d, 0)?;
        expect_len(OP, "x", x.len(), d.small())?;
        expect_len(OP, "y", y.len(), d.large())?;
        expect_stats(d, stats.as_deref())?;
        let (w, c) = (d.w as usize, d.c as usize);
        self.for_each_vectorized(per_image(d.n as usize, x, y, stats), |((x, y), stats)| {
            for (i, row) in y.chunks_exact_mut(w * c).enumerate() {
                let above = &x[i / 2 * (w / 2) * c..];
                for (j, pixel) in row.chunks_exact_mut(c).enumerate() {
                    pixel.copy_from_slice(&above[j / 2 * c..][..c]);
                }
            }
            take_stats(y, c, stats);
        });
        Ok(())
    }

    fn double_backward(&self, d: &ResampleDims, dy: &[f32], add: Option<&[f32]>, dx: &mut [f32]) -> Result<()> {
        check(d, 0)?;
        expect_len(OP, "dy", dy.len(), d.large())?;
        expect_len(OP, "dx", dx.len(), d.small())?;
        if let Some(add) = add {
            expect_len(OP, "add", add.len(), d.small())?;
        }
        let (w, c) = (d.w as usize, d.c as usize);
        let image = d.small() / d.n as usize;
        let jobs: Vec<_> =
            per_image(d.n as usize, dy, dx, None).into_iter().enumerate().map(|(i, (pair, _))| (i, pair)).collect();
        self.for_each_vectorized(jobs, |(i, (dy, dx))| {
            for (p, dx) in dx.chunks_exact_mut(c).enumerate() {
                let (row, col) = (p / (w / 2), p % (w / 2));
                let pixel = |r: usize, q: usize| &dy[((2 * row + r) * w + 2 * col + q) * c..][..c];
                let (a, b, e, f) = (pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1));
                for k in 0..c {
                    dx[k] = (a[k] + b[k]) + (e[k] + f[k]);
                }
                if let Some(add) = add {
                    let add = &add[i * image + p * c..][..c];
                    dx.iter_mut().zip(add).for_each(|(dx, add)| *dx += add);
                }
            }
        });
        Ok(())
    }

    fn keep_forward(
        &self,
        d: &ResampleDims,
        offset: u32,
        x: &[f32],
        y: &mut [f32],
        stats: Option<&mut [f32]>,
    ) -> Result<()> {
        check(d, offset)?;
        expect_len(OP, "x", x.len(), d.large())?;
        expect_len(OP, "y", y.len(), d.small())?;
        expect_stats(d, stats.as_deref())?;
        let (w, c, o) = (d.w as usize, d.c as usize, offset as usize);
        self.for_each_vectorized(per_image(d.n as usize, x, y, stats), |((x, y), stats)| {
            for (p, y) in y.chunks_exact_mut(c).enumerate() {
                let (row, col) = (p / (w / 2), p % (w / 2));
                y.copy_from_slice(&x[((2 * row + o) * w + 2 * col + o) * c..][..c]);
            }
            take_stats(y, c, stats);
        });
        Ok(())
    }

    fn keep_backward(&self, d: &ResampleDims, offset: u32, dy: &[f32], dx: &mut [f32]) -> Result<()> {
        check(d, offset)?;
        expect_len(OP, "dy", dy.len(), d.small())?;
        expect_len(OP, "dx", dx.len(), d.large())?;
        let (w, c, o) = (d.w as usize, d.c as usize, offset as usize);
        self.for_each_vectorized(per_image(d.n as usize, dy, dx, None), |((dy, dx), _)| {
            dx.fill(0.0);
            for (p, dy) in dy.chunks_exact(c).enumerate() {
                let (row, col) = (p / (w / 2), p % (w / 2));
                dx[((2 * row + o) * w + 2 * col + o) * c..][..c].copy_from_slice(dy);
            }
        });
        Ok(())
    }
}
