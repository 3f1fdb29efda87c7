//! The naive float64 truth of the DDIM update, for tests.

use super::DdimDims;
use crate::ops::loss::reference::split;

/// (new x, predicted image), [N, per image] each; rates [N, 2].
pub fn ddim_step(dims: &DdimDims, pred: &[f64], now: &[f64], next: &[f64], x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let update = |i: usize| {
        let n = i / dims.per_image as usize;
        let (noise, image) = split(dims.predict, pred[i], x[i], now[2 * n], now[2 * n + 1]);
        (next[2 * n] * image + next[2 * n + 1] * noise, image)
    };
    (0..x.len()).map(update).unzip()
}
