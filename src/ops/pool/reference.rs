//! The naive float64 truth of 2x2 average pooling, for tests. Statistics: [`crate::ops::conv::reference::stats`].

use super::ResampleDims;

/// y [N, H/2, W/2, C] from x [N, H, W, C].
pub fn forward(dims: &ResampleDims, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; dims.small()];
    for_each_pair(dims, |large, small| y[small] += x[large] / 4.0);
    y
}

/// dx [N, H, W, C] from dy [N, H/2, W/2, C], plus `add`.
pub fn backward(dims: &ResampleDims, dy: &[f64], add: Option<&[f64]>) -> Vec<f64> {
    let mut dx = add.map_or(vec![0.0; dims.large()], <[f64]>::to_vec);
    for_each_pair(dims, |large, small| dx[large] += dy[small] / 4.0);
    dx
}

/// Calls `body` with the index of every element of the large side and that of its mean on the small side.
fn for_each_pair(dims: &ResampleDims, mut body: impl FnMut(usize, usize)) {
    let [n, h, w, c] = [dims.n, dims.h, dims.w, dims.c].map(|extent| extent as usize);
    for large in 0..n * h * w * c {
        let (channel, column, row) = (large % c, large / c % w, large / (c * w) % h);
        let image = large / (c * w * h);
        body(large, ((image * (h / 2) + row / 2) * (w / 2) + column / 2) * c + channel);
    }
}
