//! Statistics per (image, channel), as producers leave them for batch norm.

/// Writes (mean, sum of squared deviations) of each channel of one image `y` [pixels, C] to `stats` [C, 2].
///
/// One pass over sums of (y - s) and (y - s)^2, s the first pixel: the difference of squares then loses no more digits than the
/// spread of the values asks for.
#[inline(always)]
pub(crate) fn image_stats(y: &[f32], c: usize, sums: &mut [f32], stats: &mut [f32]) {
    let (shift, count) = (&y[..c], (y.len() / c) as f32);
    let (sum, squares) = sums[..2 * c].split_at_mut(c);
    sum.fill(0.0);
    squares.fill(0.0);
    for pixel in y.chunks_exact(c) {
        for i in 0..c {
            let t = pixel[i] - shift[i];
            sum[i] += t;
            squares[i] += t * t;
        }
    }
    for i in 0..c {
        let mean = sum[i] / count;
        stats[2 * i] = mean + shift[i];
        stats[2 * i + 1] = (squares[i] - sum[i] * mean).max(0.0);
    }
}
