//! CPU kernels of 2x2 average pooling; an image is a unit of work.

use super::{AvgPool2, ResampleDims};
use crate::device::cpu::Cpu;
use crate::device::cpu::scratch::with_scratch;
use crate::error::{Error, Result};
use crate::ops::expect_len;
use crate::ops::stats::image_stats;

const OP: &str = "avg_pool";

/// Checks that a large side can be halved; shared with upsampling.
pub(crate) fn check_even(op: &'static str, d: &ResampleDims) -> Result<()> {
    if d.n > 0 && d.c > 0 && d.h > 0 && d.w > 0 && d.h.is_multiple_of(2) && d.w.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::Shape { op, what: format!("height and width must be even and positive: {d:?}") })
}

/// One image of each buffer and its statistics (empty where there are none).
pub(crate) type ImageJob<'a> = ((&'a [f32], &'a mut [f32]), &'a mut [f32]);

/// Cuts source, destination and statistics by image.
pub(crate) fn per_image<'a>(
    n: usize,
    x: &'a [f32],
    y: &'a mut [f32],
    stats: Option<&'a mut [f32]>,
) -> Vec<ImageJob<'a>> {
    let (x_len, y_len) = (x.len() / n, y.len() / n);
    let pairs = x.chunks_exact(x_len).zip(y.chunks_exact_mut(y_len));
    match stats {
        Some(stats) => {
            let len = stats.len() / n;
            pairs.zip(stats.chunks_exact_mut(len)).collect()
        }
        None => pairs.map(|pair| (pair, &mut [][..])).collect(),
    }
}

impl AvgPool2 for Cpu {
    fn avg_pool_forward(&self, dims: &ResampleDims, x: &[f32], y: &mut [f32], stats: Option<&mut [f32]>) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "x", x.len(), dims.large())?;
        expect_len(OP, "y", y.len(), dims.small())?;
        let (n, w, c) = (dims.n as usize, dims.w as usize, dims.c as usize);
        if let Some(stats) = &stats {
            expect_len(OP, "stats", stats.len(), n * c * 2)?;
        }
        self.for_each_vectorized(per_image(n, x, y, stats), |((x, y), stats)| {
            for (rows, y) in x.chunks_exact(2 * w * c).zip(y.chunks_exact_mut(w / 2 * c)) {
                let (top, bottom) = rows.split_at(w * c);
                for ((t, b), y) in top.chunks_exact(2 * c).zip(bottom.chunks_exact(2 * c)).zip(y.chunks_exact_mut(c)) {
                    let ((t0, t1), (b0, b1)) = (t.split_at(c), b.split_at(c));
                    for i in 0..c {
                        y[i] = ((t0[i] + t1[i]) + (b0[i] + b1[i])) * 0.25;
                    }
                }
            }
            if !stats.is_empty() {
                with_scratch([2 * c], |[sums]| image_stats(y, c, sums, stats));
            }
        });
        Ok(())
    }

    fn avg_pool_backward(&self, dims: &ResampleDims, dy: &[f32], add: Option<&[f32]>, dx: &mut [f32]) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "dy", dy.len(), dims.small())?;
        expect_len(OP, "dx", dx.len(), dims.large())?;
        if let Some(add) = add {
            expect_len(OP, "add", add.len(), dims.large())?;
        }
        let (n, w, c) = (dims.n as usize, dims.w as usize, dims.c as usize);
        let len = dx.len() / n;
        let jobs: Vec<_> = per_image(n, dy, dx, None).into_iter().enumerate().collect();
        self.for_each_vectorized(jobs, |(image, ((dy, dx), _))| {
            let add = add.map(|a| &a[image * len..(image + 1) * len]);
            for (row, dx) in dx.chunks_exact_mut(w * c).enumerate() {
                let dy = &dy[row / 2 * (w / 2 * c)..][..w / 2 * c];
                let add = add.map(|a| &a[row * w * c..][..w * c]);
                for (q, dx) in dx.chunks_exact_mut(c).enumerate() {
                    let dy = &dy[q / 2 * c..][..c];
                    match add {
                        Some(add) => {
                            let add = &add[q * c..][..c];
                            for i in 0..c {
                                dx[i] = dy[i] * 0.25 + add[i];
                            }
                        }
                        None => {
                            for i in 0..c {
                                dx[i] = dy[i] * 0.25;
                            }
                        }
                    }
                }
            }
        });
        Ok(())
    }
}
