//! The convolution in float64, straight from its definition.

use super::Conv2dDims;

/// Channels k0..k0+K of y, [N, H', W', K], from x [N, H, W, C], w [K, C, R, S], b `[K]`.
pub fn forward(d: &Conv2dDims, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let (h, wide, c, k) = (d.h as usize, d.w as usize, d.c as usize, d.k as usize);
    let (kernel_h, kernel_w, stride) = (d.kernel_h as usize, d.kernel_w as usize, d.stride as usize);
    let mut y = Vec::new();
    for n in 0..d.n as usize {
        for i in 0..d.out_h() {
            for j in 0..d.out_w() {
                for out in 0..k {
                    let mut sum = b[out];
                    for r in 0..kernel_h {
                        for s in 0..kernel_w {
                            let (row, col) = (i * stride + r, j * stride + s);
                            let (Some(row), Some(col)) =
                                (row.checked_sub(d.pad_h as usize), col.checked_sub(d.pad_w as usize))
                            else {
                                continue;
                            };
                            if row >= h || col >= wide {
                                continue;
                            }
                            for ch in 0..c {
                                sum += w[((out * c + ch) * kernel_h + r) * kernel_w + s]
                                    * x[((n * h + row) * wide + col) * c + ch];
                            }
                        }
                    }
                    y.push(if d.relu == 1 { sum.max(0.0) } else { sum });
                }
            }
        }
    }
    y
}
