//! Linear layers on the CPU: plain loops that the compiler vectorises. Each output is summed in the order of its inputs.

use super::{Linear, LinearDims, LinearGradients, check};
use crate::device::cpu::Cpu;
use crate::error::Result;

/// Rows of a piece of forward work: each row of W that is loaded serves as many.
const ROWS: usize = 8;
/// Lanes of a dot product's partial sums.
const LANES: usize = 16;

/// SiLU and its derivative; a few numbers, so the library's exponential does.
fn silu(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + (-x).exp());
    (x * s, s * (1.0 + x * (1.0 - s)))
}

fn act(d: &LinearDims, x: &[f32]) -> Vec<f32> {
    if d.silu != 0 { x.iter().map(|&x| silu(x).0).collect() } else { x.to_vec() }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

impl Linear for Cpu {
    fn linear(&self, d: &LinearDims, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) -> Result<()> {
        let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
        check(d, &[("x", x.len(), n * c), ("w", w.len(), c * k), ("b", b.len(), k), ("y", y.len(), n * k)])?;
        let x = act(d, x);
        let jobs: Vec<_> = x.chunks(ROWS * c).zip(y.chunks_mut(ROWS * k)).collect();
        self.for_each_vectorized(jobs, |(x, y)| {
            y.chunks_exact_mut(k).for_each(|row| row.copy_from_slice(b));
            for (j, w) in w.chunks_exact(k).enumerate() {
                for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(k)) {
                    let x = x[j];
                    for i in 0..k {
                        y[i] += x * w[i];
                    }
                }
            }
        });
        Ok(())
    }

    fn linear_backward(
        &self,
        d: &LinearDims,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        out: LinearGradients<'_, Self>,
    ) -> Result<()> {
        let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
        let LinearGradients { dx, accumulate, dw, db } = out;
        check(d, &[("x", x.len(), n * c), ("w", w.len(), c * k), ("dy", dy.len(), n * k)])?;
        check(d, &[("dw", dw.len(), c * k), ("db", db.len(), k)])?;
        for dy in dy.chunks_exact(k) {
            db.iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
        }
        let fx = act(d, x);
        let jobs: Vec<_> = dw.chunks_mut(ROWS * k).enumerate().collect();
        self.for_each_vectorized(jobs, |(i, dw)| {
            for (j, dw) in dw.chunks_exact_mut(k).enumerate() {
                for (x, dy) in fx.chunks_exact(c).zip(dy.chunks_exact(k)) {
                    let x = x[i * ROWS + j];
                    for i in 0..k {
                        dw[i] += x * dy[i];
                    }
                }
            }
        });
        let Some(dx) = dx else { return Ok(()) };
        check(d, &[("dx", dx.len(), n * c)])?;
        let jobs: Vec<_> = dx.chunks_mut(c).zip(x.chunks(c)).zip(dy.chunks(k)).collect();
        self.for_each_vectorized(jobs, |((dx, x), dy)| {
            for ((dx, &x), w) in dx.iter_mut().zip(x).zip(w.chunks_exact(k)) {
                let slope = if d.silu != 0 { silu(x).1 } else { 1.0 };
                let g = slope * dot(w, dy);
                *dx = if accumulate { *dx + g } else { g };
            }
        });
        Ok(())
    }
}
