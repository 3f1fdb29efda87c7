//! The resizes in float64, straight from their definition.

use super::ResampleDims;

/// Calls `body(large, small)` for every element of the large side and the one above it on the small side.
fn each(d: &ResampleDims, mut body: impl FnMut(usize, usize, usize, usize)) {
    let (h, w, c) = (d.h as usize, d.w as usize, d.c as usize);
    for n in 0..d.n as usize {
        for i in 0..h {
            for j in 0..w {
                for k in 0..c {
                    let small = ((n * (h / 2) + i / 2) * (w / 2) + j / 2) * c + k;
                    body(((n * h + i) * w + j) * c + k, small, i, j);
                }
            }
        }
    }
}

/// y [N, H, W, C] from x [N, H/2, W/2, C].
pub fn double(d: &ResampleDims, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; 4 * x.len()];
    each(d, |large, small, _, _| y[large] = x[small]);
    y
}

/// dx [N, H/2, W/2, C].
pub fn double_backward(d: &ResampleDims, dy: &[f64], add: Option<&[f64]>) -> Vec<f64> {
    let mut dx = add.map_or_else(|| vec![0.0; dy.len() / 4], <[f64]>::to_vec);
    each(d, |large, small, _, _| dx[small] += dy[large]);
    dx
}

/// y [N, H/2, W/2, C] from x [N, H, W, C].
pub fn keep(d: &ResampleDims, offset: u32, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; x.len() / 4];
    each(d, |large, small, i, j| {
        if i % 2 == offset as usize && j % 2 == offset as usize {
            y[small] = x[large];
        }
    });
    y
}

/// dx [N, H, W, C].
pub fn keep_backward(d: &ResampleDims, offset: u32, dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; 4 * dy.len()];
    each(d, |large, small, i, j| {
        if i % 2 == offset as usize && j % 2 == offset as usize {
            dx[large] = dy[small];
        }
    });
    dx
}
