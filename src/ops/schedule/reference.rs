//! The naive float64 truth of the schedules and the embedding, for tests.

use super::{LINEAR_STEPS, ScheduleDims};

/// (signal rate, noise rate) at time t in [0, 1]. The step of the linear schedule is taken in f32, as PyTorch takes it.
pub fn rates(dims: &ScheduleDims, t: f64) -> (f64, f64) {
    if dims.linear == 1 {
        let step = (t as f32 * (LINEAR_STEPS - 1) as f32).floor();
        let bar = alpha_bar(step as usize).clamp(dims.min_signal, dims.max_signal);
        (bar.sqrt(), (1.0 - bar).sqrt())
    } else {
        let (start, end) = (dims.max_signal.acos(), dims.min_signal.acos());
        let angle = start + t * (end - start);
        (angle.cos(), angle.sin())
    }
}

/// Product of 1 - beta up to and including `step`, betas evenly spaced from 1e-4 to 0.02.
pub fn alpha_bar(step: usize) -> f64 {
    let beta = |i: usize| 1e-4 + (0.02 - 1e-4) * i as f64 / (LINEAR_STEPS - 1) as f64;
    (0..=step).map(|i| 1.0 - beta(i)).product()
}

/// The embedding [E] of a squared rate: sines, then cosines.
pub fn embedding(v: f64, e: usize) -> Vec<f64> {
    let half = e / 2;
    let spacing = if half > 1 { 1000f64.ln() / (half - 1) as f64 } else { 0.0 };
    let angles = (0..half).map(|i| std::f64::consts::TAU * (i as f64 * spacing).exp() * v);
    angles.clone().map(f64::sin).chain(angles.map(f64::cos)).collect()
}

/// Rates [N, 2] and embeddings [N, E] of `times`.
pub fn schedule(dims: &ScheduleDims, times: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let rates: Vec<(f64, f64)> = times.iter().map(|&t| rates(dims, t)).collect();
    let squared = |(signal, noise): (f64, f64)| if dims.embed_signal == 1 { signal.powi(2) } else { noise.powi(2) };
    let embeddings = rates.iter().flat_map(|&r| embedding(squared(r), dims.e as usize)).collect();
    (rates.iter().flat_map(|&(signal, noise)| [signal, noise]).collect(), embeddings)
}
