//! Linear layers in float64, straight from their definition.

use super::LinearDims;
use crate::ops::conv::reference::{silu, silu_grad};

fn act(d: &LinearDims, x: f64) -> f64 {
    if d.silu != 0 { silu(x) } else { x }
}

/// y [N, K].
pub fn forward(d: &LinearDims, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let (c, k) = (d.c as usize, d.k as usize);
    let of = |i: usize| b[i % k] + (0..c).map(|j| act(d, x[i / k * c + j]) * w[j * k + i % k]).sum::<f64>();
    (0..d.n as usize * k).map(of).collect()
}

/// (dx, dw, db), without what a caller accumulates them on.
pub fn backward(d: &LinearDims, x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
    let (mut dx, mut dw, mut db) = (vec![0.0; n * c], vec![0.0; c * k], vec![0.0; k]);
    for image in 0..n {
        for i in 0..k {
            let dy = dy[image * k + i];
            db[i] += dy;
            for j in 0..c {
                let x = x[image * c + j];
                dw[j * k + i] += act(d, x) * dy;
                dx[image * c + j] += w[j * k + i] * dy * if d.silu != 0 { silu_grad(x) } else { 1.0 };
            }
        }
    }
    (dx, dw, db)
}
