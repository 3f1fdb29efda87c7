//! CPU kernels of bilinear upsampling by 2; an image is a unit of work. Rows first (into scratch), then columns.

use super::{ResampleDims, Upsample2};
use crate::device::cpu::Cpu;
use crate::device::cpu::scratch::with_scratch;
use crate::error::Result;
use crate::ops::expect_len;
use crate::ops::pool::cpu::{check_even, per_image};
use crate::ops::stats::image_stats;

const OP: &str = "upsample";

/// The far neighbour (weight 1/4) of the near one (weight 3/4) for output index `i`, clamped to `0..len`.
#[inline(always)]
fn far(i: usize, len: usize) -> usize {
    if i.is_multiple_of(2) { (i / 2).saturating_sub(1) } else { (i / 2 + 1).min(len - 1) }
}

/// dst = 3/4 near + 1/4 far.
#[inline(always)]
fn blend(near: &[f32], far: &[f32], dst: &mut [f32]) {
    for ((dst, near), far) in dst.iter_mut().zip(near).zip(far) {
        *dst = 0.75 * near + 0.25 * far;
    }
}

impl Upsample2 for Cpu {
    fn upsample_forward(&self, dims: &ResampleDims, x: &[f32], y: &mut [f32], stats: Option<&mut [f32]>) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "x", x.len(), dims.small())?;
        expect_len(OP, "y", y.len(), dims.large())?;
        let (n, h, w, c) = (dims.n as usize, dims.h as usize, dims.w as usize, dims.c as usize);
        if let Some(stats) = &stats {
            expect_len(OP, "stats", stats.len(), n * c * 2)?;
        }
        let small_row = w / 2 * c;
        self.for_each_vectorized(per_image(n, x, y, stats), |((x, y), stats)| {
            with_scratch([small_row, 2 * c], |[row, sums]| {
                for (i, y) in y.chunks_exact_mut(w * c).enumerate() {
                    let (near, far_row) = (i / 2 * small_row, far(i, h / 2) * small_row);
                    blend(&x[near..near + small_row], &x[far_row..far_row + small_row], row);
                    for (j, y) in y.chunks_exact_mut(c).enumerate() {
                        let (near, far) = (j / 2 * c, far(j, w / 2) * c);
                        blend(&row[near..near + c], &row[far..far + c], y);
                    }
                }
                if !stats.is_empty() {
                    image_stats(y, c, sums, stats);
                }
            });
        });
        Ok(())
    }

    fn upsample_backward(&self, dims: &ResampleDims, dy: &[f32], dx: &mut [f32]) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "dy", dy.len(), dims.large())?;
        expect_len(OP, "dx", dx.len(), dims.small())?;
        let (n, h, w, c) = (dims.n as usize, dims.h as usize, dims.w as usize, dims.c as usize);
        self.for_each_vectorized(per_image(n, dy, dx, None), |((dy, dx), _)| {
            with_scratch([w * c], |[row]| {
                for (i, dx) in dx.chunks_exact_mut(w / 2 * c).enumerate() {
                    gather(i, h / 2, |weight, from, first| {
                        let src = &dy[from * w * c..][..w * c];
                        accumulate(row, src, weight, first);
                    });
                    for (j, dx) in dx.chunks_exact_mut(c).enumerate() {
                        gather(j, w / 2, |weight, from, first| {
                            accumulate(dx, &row[from * c..][..c], weight, first);
                        });
                    }
                }
            });
        });
        Ok(())
    }
}

/// The outputs that input `i` of `len` went into, with their weights: 2i-1, 2i, 2i+1, 2i+2 with 1/4, 3/4, 3/4, 1/4; at a border
/// the outer quarter comes back to the border itself.
#[inline(always)]
fn gather(i: usize, len: usize, mut visit: impl FnMut(f32, usize, bool)) {
    let first = if i == 0 { 1.0 } else { 0.75 };
    let last = if i + 1 == len { 1.0 } else { 0.75 };
    visit(first, 2 * i, true);
    visit(last, 2 * i + 1, false);
    if i > 0 {
        visit(0.25, 2 * i - 1, false);
    }
    if i + 1 < len {
        visit(0.25, 2 * i + 2, false);
    }
}

/// dst (+)= weight * src.
#[inline(always)]
fn accumulate(dst: &mut [f32], src: &[f32], weight: f32, first: bool) {
    if first {
        dst.iter_mut().zip(src).for_each(|(d, s)| *d = weight * s);
    } else {
        dst.iter_mut().zip(src).for_each(|(d, s)| *d += weight * s);
    }
}
