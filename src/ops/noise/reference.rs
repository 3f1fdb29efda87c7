//! The naive float64 truth of the random numbers and of q-sample, for tests. The normal numbers are the exact Box-Muller
//! transform of the same Philox words; devices approximate it in single precision and are compared with a tolerance.

use super::NoiseKey;
use crate::rng::Stream;

/// Standard normal numbers [N, per image].
pub fn normal(key: NoiseKey, step: u64, per_image: usize, n: usize) -> Vec<f64> {
    let image = |i: usize| {
        let stream = stream(key, step, i);
        let blocks = (0u32..).flat_map(move |block| {
            let [a, b, c, d] = stream.block(block);
            [box_muller(a, b), box_muller(c, d)]
        });
        blocks.flat_map(|(x, y)| [x, y]).take(per_image)
    };
    (0..n).flat_map(image).collect()
}

/// One number uniform in [0, 1) for each of `n` images: the top 24 bits of the first word of its stream.
pub fn uniform(key: NoiseKey, step: u64, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from(stream(key, step, i).block(0)[0] >> 8) / 2f64.powi(24)).collect()
}

/// noisy [N, per image] = `rates[n,0]` images + `rates[n,1]` noise.
pub fn q_sample(images: &[f64], noise: &[f64], rates: &[f64]) -> Vec<f64> {
    let per_image = images.len() * 2 / rates.len();
    (images.iter().zip(noise).enumerate())
        .map(|(i, (image, noise))| rates[i / per_image * 2] * image + rates[i / per_image * 2 + 1] * noise)
        .collect()
}

fn stream(key: NoiseKey, step: u64, i: usize) -> Stream {
    Stream::new(key.seed, key.purpose, step, key.first_image + i as u64)
}

/// u in (0, 1] from the top 24 bits of `a`; `b` / 2^32 turns.
fn box_muller(a: u32, b: u32) -> (f64, f64) {
    let u = f64::from((a >> 8) + 1) / 2f64.powi(24);
    let (radius, angle) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * f64::from(b) / 2f64.powi(32));
    (radius * angle.cos(), radius * angle.sin())
}
