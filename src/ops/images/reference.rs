//! The naive float64 truth of the pixel conversions, for tests. `mean` and `std` hold one value per channel.

/// x = (byte / 255 - mean) / std.
pub fn normalize(bytes: &[u8], mean: &[f64], std: &[f64]) -> Vec<f64> {
    let channels = mean.len();
    (bytes.iter().enumerate())
        .map(|(i, &byte)| (f64::from(byte) / 255.0 - mean[i % channels]) / std[i % channels])
        .collect()
}

/// clip(x std + mean, 0, 1).
pub fn denormalize(x: &[f64], mean: &[f64], std: &[f64]) -> Vec<f64> {
    let channels = mean.len();
    (x.iter().enumerate()).map(|(i, x)| (x * std[i % channels] + mean[i % channels]).clamp(0.0, 1.0)).collect()
}
