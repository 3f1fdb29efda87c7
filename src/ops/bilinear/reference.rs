//! Bilinear interpolation in float64: a sum of all pixels, each weighted with how near it is.

use super::BilinearDims;

/// Weight of the pixel at `at` for output `i`: 1 minus the distance, where the pixels beyond the border are those on it.
fn weight(i: usize, out: usize, extent: usize, at: usize) -> f64 {
    let place = ((i as f64 + 0.5) * extent as f64 / out as f64 - 0.5).clamp(0.0, (extent - 1) as f64);
    (1.0 - (place - at as f64).abs()).max(0.0)
}

/// y [N, H', W', C].
pub fn forward(d: &BilinearDims, x: &[f64]) -> Vec<f64> {
    let [n, h, w, c, out_h, out_w] = [d.n, d.h, d.w, d.c, d.out_h, d.out_w].map(|e| e as usize);
    let mut y = vec![0.0; d.y_len()];
    for (at, y) in y.iter_mut().enumerate() {
        let (ch, j, i, image) = (at % c, at / c % out_w, at / c / out_w % out_h, at / c / out_w / out_h);
        debug_assert!(image < n);
        for row in 0..h {
            for col in 0..w {
                let weight = weight(i, out_h, h, row) * weight(j, out_w, w, col);
                *y += weight * x[((image * h + row) * w + col) * c + ch];
            }
        }
    }
    y
}
