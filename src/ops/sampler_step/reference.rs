//! The naive float64 truth of samplers' updates, for tests. Noise is given, not drawn.

use super::{Coefficients, Threshold};

/// The operands of an update, [N, per image] each.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// The prediction.
    pub pred: &'a [f64],
    /// The pictures on their way.
    pub x: &'a [f64],
    /// What was kept.
    pub kept: &'a [f64],
    /// The pictures predicted before.
    pub last_x0: &'a [f64],
    /// Fresh noise.
    pub noise: &'a [f64],
}

/// (new x, predicted pictures).
pub fn sampler_step(per_image: usize, c: &Coefficients, threshold: Threshold, o: Operands<'_>) -> (Vec<f64>, Vec<f64>) {
    let w = |v: f32| f64::from(v);
    let plain: Vec<f64> = o.x.iter().zip(o.pred).map(|(x, pred)| w(c.cx) * x + w(c.cp) * pred).collect();
    let x0: Vec<f64> = plain.chunks(per_image).flat_map(|image| limited(image, threshold)).collect();
    let update = |i: usize| {
        let sum = w(c.a) * o.x[i] + w(c.b) * o.kept[i] + w(c.c) * o.pred[i];
        sum + w(c.d) * x0[i] + w(c.e) * o.last_x0[i] + w(c.f) * o.noise[i]
    };
    ((0..x0.len()).map(update).collect(), x0)
}

/// One predicted picture behind its threshold.
pub fn limited(image: &[f64], threshold: Threshold) -> Vec<f64> {
    match threshold {
        Threshold::None => image.to_vec(),
        Threshold::Clamp(range) => image.iter().map(|v| v.clamp(-f64::from(range), f64::from(range))).collect(),
        Threshold::Dynamic { quantile: q, most } => {
            let s = quantile(image, q).clamp(1.0, f64::from(most));
            image.iter().map(|v| v.clamp(-s, s) / s).collect()
        }
    }
}

/// The quantile of the absolute values, linear between neighbours.
pub fn quantile(image: &[f64], q: f64) -> f64 {
    let mut sorted: Vec<f64> = image.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (place - place.floor()) * (above - below)
}

/// x behind [`super::SamplerStep::blend`].
pub fn blend(rates: [f64; 2], mask: &[f64], known: &[f64], noise: &[f64], x: &[f64]) -> Vec<f64> {
    let mix = |i: usize| mask[i] * x[i] + (1.0 - mask[i]) * (rates[0] * known[i] + rates[1] * noise[i]);
    (0..x.len()).map(mix).collect()
}
