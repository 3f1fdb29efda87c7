//! Pooling over windows on the CPU: a row of outputs is a unit of work.

use super::{Pooling, WindowPool, WindowPoolDims};
use crate::device::cpu::Cpu;
use crate::error::Result;

/// The part of a window that lies within an extent.
fn inside(at: usize, stride: usize, kernel: usize, pad: usize, extent: usize) -> std::ops::Range<usize> {
    let first = at * stride;
    first.saturating_sub(pad)..(first + kernel - pad).min(extent)
}

#[inline(always)]
fn enlarge(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = if x > *y || x.is_nan() { x } else { *y };
    }
}

#[inline(always)]
fn add(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

impl WindowPool for Cpu {
    fn window_pool(&self, d: &WindowPoolDims, pooling: Pooling, x: &[f32], y: &mut [f32]) -> Result<()> {
        d.check(x.len(), y.len())?;
        let (h, w, c) = (d.h as usize, d.w as usize, d.c as usize);
        let (kernel, stride, pad) = (d.kernel as usize, d.stride as usize, d.pad as usize);
        let (out_h, out_w) = (d.out_h(), d.out_w());
        let (channels, first) = (d.y_channels as usize, d.y_first as usize);
        let jobs: Vec<_> = y.chunks_exact_mut(out_w * channels).enumerate().collect();
        self.for_each_vectorized(jobs, |(at, y)| {
            let rows = inside(at % out_h, stride, kernel, pad, h);
            for (j, y) in y.chunks_exact_mut(channels).enumerate() {
                let y = &mut y[first..first + c];
                let columns = inside(j, stride, kernel, pad, w);
                y.fill(if pooling == Pooling::Max { f32::NEG_INFINITY } else { 0.0 });
                for row in rows.clone() {
                    for col in columns.clone() {
                        let x = &x[((at / out_h * h + row) * w + col) * c..][..c];
                        if pooling == Pooling::Max { enlarge(y, x) } else { add(y, x) }
                    }
                }
                let count = match pooling {
                    Pooling::Max => continue,
                    Pooling::MeanInside => rows.len() * columns.len(),
                    Pooling::MeanAll => kernel * kernel,
                };
                y.iter_mut().for_each(|y| *y /= count as f32);
            }
        });
        Ok(())
    }
}
