//! Pooling over windows in float64, straight from its definition.

use super::{Pooling, WindowPoolDims};

/// Channels c0..c0+C of y, [N, H', W', C].
pub fn forward(d: &WindowPoolDims, pooling: Pooling, x: &[f64]) -> Vec<f64> {
    let (h, w, c, kernel) = (d.h as i64, d.w as i64, d.c as usize, i64::from(d.kernel));
    let mut y = Vec::new();
    for n in 0..i64::from(d.n) {
        for i in 0..d.out_h() as i64 {
            for j in 0..d.out_w() as i64 {
                for ch in 0..c {
                    let (top, left) =
                        (i * i64::from(d.stride) - i64::from(d.pad), j * i64::from(d.stride) - i64::from(d.pad));
                    let window: Vec<f64> = (0..kernel * kernel)
                        .map(|t| (top + t / kernel, left + t % kernel))
                        .filter(|&(row, col)| (0..h).contains(&row) && (0..w).contains(&col))
                        .map(|(row, col)| x[((n * h + row) * w + col) as usize * c + ch])
                        .collect();
                    y.push(match pooling {
                        Pooling::Max => window.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                        Pooling::MeanInside => window.iter().sum::<f64>() / window.len() as f64,
                        Pooling::MeanAll => window.iter().sum::<f64>() / (kernel * kernel) as f64,
                    });
                }
            }
        }
    }
    y
}
