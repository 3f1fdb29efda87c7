//! The naive float64 truth of the schedules and the embedding, for tests.

use super::{LINEAR_STEPS, ScheduleDims};

/// (signal rate, noise rate) at time t in [0, 1]. The step of the linear schedule is taken in f32, as PyTorch takes it.
pub fn rates(dims: &ScheduleDims, t: f64) -> (f64, f64) {
    let round = |x: f64| if dims.single == 1 { f64::from(x as f32) } else { x };
    if dims.linear == 1 {
        let step = (t as f32 * (LINEAR_STEPS - 1) as f32).floor();
        let bar = round(alpha_bar(step as usize).clamp(dims.min_signal, dims.max_signal));
        (round(bar.sqrt()), round(round(1.0 - bar).sqrt()))
    } else {
        let (start, end) = (dims.max_signal.acos(), dims.min_signal.acos());
        let angle = round(round(start) + round(t * round(end - start)));
        (round(angle.cos()), round(angle.sin()))
    }
}

/// Product of 1 - beta up to and including `step`, betas evenly spaced from 1e-4 to 0.02.
pub fn alpha_bar(step: usize) -> f64 {
    let beta = |i: usize| 1e-4 + (0.02 - 1e-4) * i as f64 / (LINEAR_STEPS - 1) as f64;
    (0..=step).map(|i| 1.0 - beta(i)).product()
}

/// 2 pi f_i, in the float32 steps of PyTorch's `2 * pi * exp(linspace(0, ln 1000, half))`: the network's constants are float32.
pub fn angular_speeds(half: usize) -> Vec<f64> {
    let end = 1000f64.ln() as f32;
    let step = if half > 1 { end / (half - 1) as f32 } else { 0.0 };
    let exponent = |i: usize| match i {
        _ if i < half / 2 => step * i as f32, // linspace counts from its start, and from its end in the second half
        _ if half == 1 => 0.0,
        _ => end - step * (half - 1 - i) as f32,
    };
    (0..half).map(|i| f64::from(f64::from(exponent(i)).exp() as f32 * std::f64::consts::TAU as f32)).collect()
}

/// The embedding `[E]` of a squared rate: sines, then cosines.
pub fn embedding(v: f64, e: usize) -> Vec<f64> {
    let speeds = angular_speeds(e / 2);
    let angles = speeds.iter().map(|speed| speed * v);
    angles.clone().map(f64::sin).chain(angles.map(f64::cos)).collect()
}

/// Rates [N, 2] and embeddings [N, E] of `times`.
pub fn schedule(dims: &ScheduleDims, times: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let rates: Vec<(f64, f64)> = times.iter().map(|&t| rates(dims, t)).collect();
    let squared = |(signal, noise): (f64, f64)| {
        let v = if dims.embed_signal == 1 { signal.powi(2) } else { noise.powi(2) };
        if dims.single == 1 { f64::from(v as f32) } else { v }
    };
    let embeddings = rates.iter().flat_map(|&r| embedding(squared(r), dims.e as usize)).collect();
    (rates.iter().flat_map(|&(signal, noise)| [signal, noise]).collect(), embeddings)
}
