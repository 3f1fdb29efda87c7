//! The naive float64 truth of bilinear upsampling, for tests, from the definition of half-pixel centres. Statistics:
//! [`crate::ops::conv::reference::stats`].

use super::ResampleDims;

/// y [N, H, W, C] from x [N, H/2, W/2, C].
pub fn forward(dims: &ResampleDims, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; dims.large()];
    for_each_weight(dims, |large, small, weight| y[large] += weight * x[small]);
    y
}

/// dx [N, H/2, W/2, C] from dy [N, H, W, C]: the transpose of [`forward`].
pub fn backward(dims: &ResampleDims, dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; dims.small()];
    for_each_weight(dims, |large, small, weight| dx[small] += weight * dy[large]);
    dx
}

/// Calls `body(large, small, weight)` for every element of the large side and each of the four that it is made of.
fn for_each_weight(dims: &ResampleDims, mut body: impl FnMut(usize, usize, f64)) {
    let [n, h, w, c] = [dims.n, dims.h, dims.w, dims.c].map(|extent| extent as usize);
    for large in 0..n * h * w * c {
        let (channel, column, row) = (large % c, large / c % w, large / (c * w) % h);
        let image = large / (c * w * h);
        for (i, weight_i) in sources(row, h / 2) {
            for (j, weight_j) in sources(column, w / 2) {
                body(large, ((image * (h / 2) + i) * (w / 2) + j) * c + channel, weight_i * weight_j);
            }
        }
    }
}

/// The two elements of a row of `len` that element `i` of its doubling lies between, with their weights. The centre of element i
/// is at (i + 1/2) / 2 in units of the small row; element s has its centre at s + 1/2.
fn sources(i: usize, len: usize) -> [(usize, f64); 2] {
    let position = ((i as f64 + 0.5) / 2.0 - 0.5).clamp(0.0, (len - 1) as f64);
    let lower = position.floor();
    let upper = (lower as usize + 1).min(len - 1);
    [(lower as usize, 1.0 - (position - lower)), (upper, position - lower)]
}
