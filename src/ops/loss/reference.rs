//! The naive float64 truth of the losses, their gradient, the metrics and the split of a prediction, for tests.

use super::{LossDims, LossValues};

/// As [`super::LossInput`].
#[derive(Clone, Copy)]
pub struct LossInput<'a> {
    /// The network's output, [N, per image].
    pub pred: &'a [f64],
    /// Its input, [N, per image].
    pub noisy: &'a [f64],
    /// The clean pictures, [N, per image].
    pub images: &'a [f64],
    /// The noise in them, [N, per image].
    pub noise: &'a [f64],
    /// [N, 2]: signal rate, noise rate.
    pub rates: &'a [f64],
    /// `[N]`: weights of the images; 1 where there are none.
    pub weights: Option<&'a [f64]>,
}

/// Loss and metrics of the batch (its part of them, where it is a part of a larger one), and the gradient dp [N, per image].
pub fn loss(dims: &LossDims, input: LossInput<'_>) -> (LossValues, Vec<f64>) {
    let elements = f64::from(dims.of) * f64::from(dims.per_image);
    let mut values = LossValues::default();
    let mut dp = Vec::with_capacity(input.pred.len());
    for (i, &p) in input.pred.iter().enumerate() {
        let (signal, noise_rate) = rates_of(dims, input.rates, i);
        let (image, noise) = (input.images[i], input.noise[i]);
        let weight = input.weights.map_or(1.0, |weights| weights[i / dims.per_image as usize]);
        let target = match dims.predict {
            0 => noise,
            1 => image,
            _ => signal * noise - noise_rate * image,
        };
        let (pred_noise, pred_image) = split(dims.predict, p, input.noisy[i], signal, noise_rate);
        values.loss += weight * penalty(dims.loss, p - target) / elements;
        values.noise_loss += (pred_noise - noise).abs() / elements;
        values.image_loss += (pred_image - image).abs() / elements;
        dp.push(weight * penalty_grad(dims.loss, p - target) / elements);
    }
    (values, dp)
}

/// (predicted noise, predicted image), [N, per image] each.
pub fn split_prediction(dims: &LossDims, pred: &[f64], noisy: &[f64], rates: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let split_at = |i: usize| {
        let (signal, noise_rate) = rates_of(dims, rates, i);
        split(dims.predict, pred[i], noisy[i], signal, noise_rate)
    };
    (0..pred.len()).map(split_at).unzip()
}

/// (noise, image) from one element of the network's output, its input and the rates. `predict` as in [`LossDims::predict`].
pub fn split(predict: u32, p: f64, noisy: f64, signal: f64, noise_rate: f64) -> (f64, f64) {
    match predict {
        0 => (p, (noisy - noise_rate * p) / signal),
        1 => ((noisy - signal * p) / noise_rate, p),
        _ => (noise_rate * noisy + signal * p, signal * noisy - noise_rate * p),
    }
}

fn rates_of(dims: &LossDims, rates: &[f64], element: usize) -> (f64, f64) {
    let image = element / dims.per_image as usize;
    (rates[2 * image], rates[2 * image + 1])
}

/// f(d) of `loss` as in [`LossDims::loss`].
pub fn penalty(loss: u32, d: f64) -> f64 {
    match loss {
        0 => d.abs(),
        1 => d * d,
        _ if d.abs() < 1.0 => d * d / 2.0,
        _ => d.abs() - 0.5,
    }
}

/// f'(d); 0 at the kink of the absolute value.
pub fn penalty_grad(loss: u32, d: f64) -> f64 {
    match loss {
        0 if d == 0.0 => 0.0,
        0 => d.signum(),
        1 => 2.0 * d,
        _ => d.clamp(-1.0, 1.0),
    }
}
