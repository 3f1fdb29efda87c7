//! Group norm in float64, straight from its definition; slow and obvious.

use super::GroupNormDims;
use crate::ops::conv::reference::{silu, silu_grad};

/// Operands, all float64. Layouts as in the parent module; `x` is the concatenation [N, P, C].
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// [N, P, C].
    pub x: &'a [f64],
    /// `[C]`.
    pub gamma: &'a [f64],
    /// `[C]`.
    pub beta: &'a [f64],
    /// [N, 2 C]: s, then t.
    pub modulation: Option<&'a [f64]>,
    /// [N, P, C]: what dropout multiplies with, 0 or 1 / (1 - p).
    pub mask: Option<&'a [f64]>,
}

/// Mean and 1 / sqrt(variance + eps) of each image and group, [N, G, 2].
pub fn moments(d: &GroupNormDims, x: &[f64]) -> Vec<f64> {
    let (pixels, c, width) = (d.pixels as usize, d.c(), d.group_channels());
    let mut out = Vec::new();
    for n in 0..d.n as usize {
        for g in 0..d.groups as usize {
            let values =
                || (0..pixels).flat_map(move |p| (0..width).map(move |i| x[(n * pixels + p) * c + g * width + i]));
            let m = (pixels * width) as f64;
            let mean = values().sum::<f64>() / m;
            let var = values().map(|v| (v - mean).powi(2)).sum::<f64>() / m;
            out.extend([mean, 1.0 / (var + d.eps).sqrt()]);
        }
    }
    out
}

/// (1 + s, t) of element i.
fn modulation(d: &GroupNormDims, input: &Input<'_>, i: usize) -> (f64, f64) {
    let (c, image) = (i % d.c(), i / (d.c() * d.pixels as usize));
    input.modulation.map_or((1.0, 0.0), |m| {
        let row = &m[image * 2 * d.c()..];
        (1.0 + row[c], row[d.c() + c])
    })
}

/// (mean, r) of element i.
fn of_group(d: &GroupNormDims, moments: &[f64], i: usize) -> (f64, f64) {
    let (c, image) = (i % d.c(), i / (d.c() * d.pixels as usize));
    let at = 2 * (image * d.groups as usize + c / d.group_channels());
    (moments[at], moments[at + 1])
}

/// u, before SiLU and dropout.
fn modulated(d: &GroupNormDims, input: &Input<'_>, moments: &[f64]) -> Vec<f64> {
    let of = |(i, &x): (usize, &f64)| {
        let (mean, r) = of_group(d, moments, i);
        let (scale, shift) = modulation(d, input, i);
        (input.gamma[i % d.c()] * r * (x - mean) + input.beta[i % d.c()]) * scale + shift
    };
    input.x.iter().enumerate().map(of).collect()
}

/// y [N, P, C].
pub fn forward(d: &GroupNormDims, input: &Input<'_>) -> Vec<f64> {
    let u = modulated(d, input, &moments(d, input.x));
    let mask = |i: usize| input.mask.map_or(1.0, |m| m[i]);
    u.iter().enumerate().map(|(i, &u)| mask(i) * if d.silu != 0 { silu(u) } else { u }).collect()
}

/// `scale` and `shift` [N, C] with u = scale x + shift.
pub fn coefficients(d: &GroupNormDims, input: &Input<'_>) -> (Vec<f64>, Vec<f64>) {
    let moments = moments(d, input.x);
    let (mut scales, mut shifts) = (Vec::new(), Vec::new());
    for n in 0..d.n as usize {
        for c in 0..d.c() {
            let i = n * d.pixels as usize * d.c() + c;
            let (mean, r) = of_group(d, &moments, i);
            let (scale, shift) = modulation(d, input, i);
            scales.push(input.gamma[c] * r * scale);
            shifts.push((input.beta[c] - input.gamma[c] * r * mean) * scale + shift);
        }
    }
    (scales, shifts)
}

/// Gradients, as the parent module names them.
pub struct Gradients {
    /// [N, P, C].
    pub dx: Vec<f64>,
    /// `[C]`.
    pub dgamma: Vec<f64>,
    /// `[C]`.
    pub dbeta: Vec<f64>,
    /// [N, 2 C].
    pub dmodulation: Vec<f64>,
    /// [N, C]: sums of dx over pixels.
    pub sums: Vec<f64>,
}

/// Backward from g [N, P, C].
pub fn backward(d: &GroupNormDims, input: &Input<'_>, g: &[f64]) -> Gradients {
    let (c_count, pixels, groups) = (d.c(), d.pixels as usize, d.groups as usize);
    let moments = moments(d, input.x);
    let u = modulated(d, input, &moments);
    let mut out = Gradients {
        dx: vec![0.0; g.len()],
        dgamma: vec![0.0; c_count],
        dbeta: vec![0.0; c_count],
        dmodulation: vec![0.0; d.n as usize * 2 * c_count],
        sums: vec![0.0; d.n as usize * c_count],
    };
    // t = dL/dxhat, and its two means over each group.
    let mut t = vec![0.0; g.len()];
    let mut means = vec![0.0; 2 * d.n as usize * groups];
    let count = (pixels * d.group_channels()) as f64;
    let place = |i: usize| (i / (c_count * pixels), i % c_count);
    for (i, &g) in g.iter().enumerate() {
        let (n, c) = place(i);
        let (mean, r) = of_group(d, &moments, i);
        let (scale, _) = modulation(d, input, i);
        let xhat = r * (input.x[i] - mean);
        let du = g * input.mask.map_or(1.0, |m| m[i]) * if d.silu != 0 { silu_grad(u[i]) } else { 1.0 };
        out.dgamma[c] += du * scale * xhat;
        out.dbeta[c] += du * scale;
        out.dmodulation[n * 2 * c_count + c] += du * (input.gamma[c] * xhat + input.beta[c]);
        out.dmodulation[n * 2 * c_count + c_count + c] += du;
        t[i] = du * scale * input.gamma[c];
        let at = 2 * (n * groups + c / d.group_channels());
        means[at] += t[i] / count;
        means[at + 1] += t[i] * xhat / count;
    }
    for (i, &t) in t.iter().enumerate() {
        let (n, c) = place(i);
        let (mean, r) = of_group(d, &moments, i);
        let at = 2 * (n * groups + c / d.group_channels());
        out.dx[i] = r * (t - means[at] - r * (input.x[i] - mean) * means[at + 1]);
        out.sums[n * c_count + c] += out.dx[i];
    }
    out
}
