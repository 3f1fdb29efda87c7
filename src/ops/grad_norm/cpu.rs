//! The norm on the CPU: float64 sums of squares of pieces, each in lanes that are added up at its end.

use super::{EPS, GradNorm};
use crate::device::cpu::{Cpu, PIECE};
use crate::error::Result;
use crate::ops::expect_len;

/// Sums that a piece keeps side by side: a whole number of vectors on every instruction set.
const LANES: usize = 16;

impl GradNorm for Cpu {
    fn grad_norm(&self, limit: f32, grads: &[f32], out: &mut [f32]) -> Result<()> {
        expect_len("grad_norm", "out", out.len(), 2)?;
        let mut sums = vec![0f64; grads.len().div_ceil(PIECE)];
        let jobs: Vec<_> = grads.chunks(PIECE).zip(&mut sums).collect();
        self.for_each_vectorized(jobs, |(piece, sum)| {
            let mut lanes = [0f64; LANES];
            let (whole, rest) = piece.as_chunks::<LANES>();
            for chunk in whole {
                for (lane, &g) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(g) * f64::from(g);
                }
            }
            for (lane, &g) in lanes.iter_mut().zip(rest) {
                *lane += f64::from(g) * f64::from(g);
            }
            *sum = lanes.iter().sum();
        });
        let norm = sums.iter().sum::<f64>().sqrt();
        out[0] = norm as f32;
        out[1] = if out[0].is_finite() { (f64::from(limit) / (norm + EPS)).min(1.0) as f32 } else { f32::NAN };
        Ok(())
    }
}
