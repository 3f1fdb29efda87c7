//! The naive float64 truth of batch norm, for tests. Statistics come from the pixels themselves, and the backward pass is the
//! textbook's: g first, then two sums over pixels. The identity by which the device avoids both is thereby tested, not used.

use super::{BatchNormDims, EPS, MOMENTUM, row};
use crate::ops::conv::reference::{self as conv, Epilogue, Filter, Operand, Prologue};
use crate::ops::conv::{ConvDims, Direction};

/// Results of [`train`].
pub struct Trained {
    /// [5, C], rows as in [`row`].
    pub coefficients: Vec<f64>,
    /// `[C]`, updated.
    pub running_mean: Vec<f64>,
    /// `[C]`, updated.
    pub running_var: Vec<f64>,
}

/// Coefficients of the batch x [N, pixels, C] and the running statistics after it.
pub fn train(
    dims: &BatchNormDims,
    x: &[f64],
    (gamma, beta): (&[f64], &[f64]),
    (running_mean, running_var): (&[f64], &[f64]),
) -> Trained {
    let c_count = dims.c();
    let m = (dims.n * dims.pixels) as f64;
    let (mut means, mut vars) = (vec![], vec![]);
    let mut trained = Trained { coefficients: vec![], running_mean: vec![], running_var: vec![] };
    for c in 0..c_count {
        let values = || x.iter().skip(c).step_by(c_count);
        let mean = values().sum::<f64>() / m;
        let var = values().map(|v| (v - mean).powi(2)).sum::<f64>() / m;
        let unbiased = if m > 1.0 { var * m / (m - 1.0) } else { var };
        trained.running_mean.push((1.0 - MOMENTUM) * running_mean[c] + MOMENTUM * mean);
        trained.running_var.push((1.0 - MOMENTUM) * running_var[c] + MOMENTUM * unbiased);
        means.push(mean);
        vars.push(var);
    }
    trained.coefficients = eval(gamma, beta, &means, &vars);
    trained
}

/// Coefficients [5, C] from given means and (biased) variances.
pub fn eval(gamma: &[f64], beta: &[f64], mean: &[f64], var: &[f64]) -> Vec<f64> {
    let c_count = gamma.len();
    let mut coefficients = vec![0.0; row::COUNT * c_count];
    for c in 0..c_count {
        let rstd = 1.0 / (var[c] + EPS).sqrt();
        let mut set = |row: usize, value: f64| coefficients[row * c_count + c] = value;
        set(row::MEAN, mean[c]);
        set(row::RSTD, rstd);
        set(row::SCALE, gamma[c] * rstd);
        set(row::SHIFT, beta[c] - mean[c] * gamma[c] * rstd);
        set(row::XHAT_SHIFT, -mean[c] * rstd);
    }
    coefficients
}

/// One row of a coefficient block.
pub fn coefficient_row(coefficients: &[f64], row: usize) -> &[f64] {
    let c_count = coefficients.len() / row::COUNT;
    &coefficients[row * c_count..][..c_count]
}

/// Results of [`backward`].
pub struct Gradients {
    /// [N, H, W, C].
    pub dx: Vec<f64>,
    /// [T, C, K].
    pub dw: Vec<f64>,
    /// `[C]`.
    pub dgamma: Vec<f64>,
    /// `[C]`.
    pub dbeta: Vec<f64>,
    /// [2, C]: what the device's identity calls a and b, from the two sums over pixels.
    pub ab: Vec<f64>,
}

/// Backward of y = conv(gamma xhat + beta), batch statistics included. `dims` are the convolution's (no residual, one operand
/// x [N, H, W, C]); `coefficients` those of [`train`].
pub fn backward(dims: &ConvDims, x: &[f64], coefficients: &[f64], gamma: &[f64], w: &[f64], dy: &[f64]) -> Gradients {
    let c_count = dims.c();
    let m = dims.pixels() as f64;
    let of = |row| coefficient_row(coefficients, row);
    let (mean, rstd) = (of(row::MEAN), of(row::RSTD));
    let g = input_gradient(dims, w, dy);
    let xhat: Vec<f64> = x.iter().enumerate().map(|(i, x)| (x - mean[i % c_count]) * rstd[i % c_count]).collect();
    let (mut dbeta, mut dgamma) = (vec![0.0; c_count], vec![0.0; c_count]);
    for (i, (g, xhat)) in g.iter().zip(&xhat).enumerate() {
        dbeta[i % c_count] += g;
        dgamma[i % c_count] += g * xhat;
    }
    let dx = (g.iter().zip(&xhat).enumerate())
        .map(|(i, (g, xhat))| {
            let c = i % c_count;
            gamma[c] * rstd[c] * (g - dbeta[c] / m - xhat * dgamma[c] / m)
        })
        .collect();
    let a = (0..c_count).map(|c| -gamma[c] * rstd[c] * rstd[c] * dgamma[c] / m);
    let b = (0..c_count).map(|c| -gamma[c] * rstd[c] * (dbeta[c] - rstd[c] * mean[c] * dgamma[c]) / m);
    let normed = Prologue { affine: Some((of(row::SCALE), of(row::SHIFT))), silu: false };
    let dw = conv::wgrad(dims, Operand::one(x), normed, None, dy).dw;
    Gradients { dx, dw, ab: a.chain(b).collect(), dgamma, dbeta }
}

/// g [N, H, W, C]: the gradient that reaches the convolution's (normed) input.
fn input_gradient(dims: &ConvDims, w: &[f64], dy: &[f64]) -> Vec<f64> {
    let transposed = ConvDims { c0: dims.k, c1: 0, r0: 0, r1: 0, k: dims.c0 + dims.c1, ..*dims };
    conv::conv(
        &transposed,
        Direction::Dgrad,
        Operand::one(dy),
        Prologue::default(),
        None,
        Filter::plain(w, dims.c()),
        Epilogue { k0: dims.c(), ..Epilogue::default() },
    )
}
