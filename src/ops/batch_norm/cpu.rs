//! CPU kernels of batch norm: small reductions in float64.

use super::{AffineParams, BackwardInput, BackwardOutput, BatchNorm, BatchNormDims, EPS, MOMENTUM, RunningMut, row};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::ops::expect_len;

const OP: &str = "batch_norm";

fn check_params(c: usize, params: &AffineParams<'_, Cpu>, coefficients: usize) -> Result<()> {
    expect_len(OP, "gamma", params.gamma.len(), c)?;
    expect_len(OP, "beta", params.beta.len(), c)?;
    expect_len(OP, "coefficients", coefficients, row::COUNT * c)
}

/// Writes channel `i`'s column of the coefficient block.
fn write(coefficients: &mut [f32], c: usize, i: usize, mean: f64, var: f64, params: &AffineParams<'_, Cpu>) {
    let rstd = 1.0 / (var + EPS).sqrt();
    let (gamma, beta) = (f64::from(params.gamma[i]), f64::from(params.beta[i]));
    coefficients[row::MEAN * c + i] = mean as f32;
    coefficients[row::RSTD * c + i] = rstd as f32;
    coefficients[row::SCALE * c + i] = (gamma * rstd) as f32;
    coefficients[row::SHIFT * c + i] = (beta - mean * gamma * rstd) as f32;
    coefficients[row::XHAT_SHIFT * c + i] = (-mean * rstd) as f32;
}

/// Mean and sum of squared deviations of channel `i` over all images, by Chan's merge of equal counts in image order.
fn merge(stats: &[f32], n: usize, c: usize, i: usize, pixels: f64) -> (f64, f64) {
    let (mut mean, mut m2) = (0.0, 0.0);
    for image in 0..n {
        let at = (image * c + i) * 2;
        let (part_mean, part_m2) = (f64::from(stats[at]), f64::from(stats[at + 1]));
        let (before, after) = (image as f64, image as f64 + 1.0);
        let delta = part_mean - mean;
        mean += delta / after;
        m2 += part_m2 + delta * delta * pixels * before / after;
    }
    (mean, m2)
}

impl BatchNorm for Cpu {
    fn batch_norm_train(
        &self,
        dims: &BatchNormDims,
        stats0: &[f32],
        stats1: Option<&[f32]>,
        params: AffineParams<'_, Self>,
        running: RunningMut<'_, Self>,
        coefficients: &mut [f32],
    ) -> Result<()> {
        let (n, c, c0, c1) = (dims.n as usize, dims.c(), dims.c0 as usize, dims.c1 as usize);
        let stats1 = stats1.unwrap_or_default();
        expect_len(OP, "stats0", stats0.len(), n * c0 * 2)?;
        expect_len(OP, "stats1", stats1.len(), n * c1 * 2)?;
        expect_len(OP, "running mean", running.mean.len(), c)?;
        expect_len(OP, "running var", running.var.len(), c)?;
        check_params(c, &params, coefficients.len())?;
        let pixels = f64::from(dims.pixels);
        let count = pixels * n as f64;
        for i in 0..c {
            let (mean, m2) =
                if i < c0 { merge(stats0, n, c0, i, pixels) } else { merge(stats1, n, c1, i - c0, pixels) };
            let unbiased = m2 / (count - 1.0).max(1.0);
            let (running_mean, running_var) = (&mut running.mean[i], &mut running.var[i]);
            *running_mean = (f64::from(*running_mean) * (1.0 - MOMENTUM) + mean * MOMENTUM) as f32;
            *running_var = (f64::from(*running_var) * (1.0 - MOMENTUM) + unbiased * MOMENTUM) as f32;
            write(coefficients, c, i, mean, m2 / count, &params);
        }
        Ok(())
    }

    fn batch_norm_eval(
        &self,
        dims: &BatchNormDims,
        params: AffineParams<'_, Self>,
        running_mean: &[f32],
        running_var: &[f32],
        coefficients: &mut [f32],
    ) -> Result<()> {
        let c = dims.c();
        expect_len(OP, "running mean", running_mean.len(), c)?;
        expect_len(OP, "running var", running_var.len(), c)?;
        check_params(c, &params, coefficients.len())?;
        for i in 0..c {
            write(coefficients, c, i, f64::from(running_mean[i]), f64::from(running_var[i]), &params);
        }
        Ok(())
    }

    fn batch_norm_backward(
        &self,
        dims: &BatchNormDims,
        input: BackwardInput<'_, Self>,
        out: BackwardOutput<'_, Self>,
    ) -> Result<()> {
        let (c, k, taps) = (dims.c(), input.k, input.taps);
        for (name, got) in [("w", input.w.len()), ("dw_hat", input.dw_hat.len()), ("dw", out.dw.len())] {
            expect_len(OP, name, got, taps * c * k)?;
        }
        expect_len(OP, "border_sums", input.border_sums.len(), taps * k)?;
        check_params(c, &input.params, input.coefficients.len())?;
        expect_len(OP, "dgamma", out.dgamma.len(), c)?;
        expect_len(OP, "dbeta", out.dbeta.len(), c)?;
        expect_len(OP, "ab", out.ab.len(), 2 * c)?;

        // S1 and S2, a few channels to a worker.
        let BackwardInput { w, dw_hat, border_sums, coefficients, params, .. } = input;
        const CHANNELS: usize = 8;
        let mut sums = vec![[0.0f64; 2]; c];
        let jobs: Vec<_> = sums.chunks_mut(CHANNELS).enumerate().collect();
        self.for_each_vectorized(jobs, |(first, sums)| {
            for (i, sum) in sums.iter_mut().enumerate() {
                let channel = first * CHANNELS + i;
                for t in 0..taps {
                    let at = (t * c + channel) * k;
                    sum[0] += dot(&w[at..at + k], &border_sums[t * k..(t + 1) * k]);
                    sum[1] += dot(&w[at..at + k], &dw_hat[at..at + k]);
                }
            }
        });
        // dW = gamma D + beta B.
        let jobs: Vec<_> = out.dw.chunks_mut(k).enumerate().collect();
        let rows_per_job = (4096 / k).max(1);
        let mut grouped: Vec<Vec<(usize, &mut [f32])>> = Vec::new();
        for (i, job) in jobs.into_iter().enumerate() {
            if i % rows_per_job == 0 {
                grouped.push(Vec::with_capacity(rows_per_job));
            }
            if let Some(group) = grouped.last_mut() {
                group.push(job);
            }
        }
        self.for_each_vectorized(grouped, |rows| {
            for (row, dw) in rows {
                let (t, channel) = (row / c, row % c);
                let (gamma, beta) = (params.gamma[channel], params.beta[channel]);
                let hat = &dw_hat[row * k..(row + 1) * k];
                let border = &border_sums[t * k..(t + 1) * k];
                for ((dw, hat), border) in dw.iter_mut().zip(hat).zip(border) {
                    *dw += gamma * hat + beta * border;
                }
            }
        });
        let count = f64::from(dims.pixels) * f64::from(dims.n);
        let (a, b) = out.ab.split_at_mut(c);
        for (i, &[s1, s2]) in sums.iter().enumerate() {
            out.dbeta[i] += s1 as f32;
            out.dgamma[i] += s2 as f32;
            let at = |r: usize| f64::from(coefficients[r * c + i]);
            let (mean, rstd, scale) = (at(row::MEAN), at(row::RSTD), at(row::SCALE));
            let slope = scale * rstd * s2 / count;
            a[i] = -slope as f32;
            b[i] = (slope * mean - scale * s1 / count) as f32;
        }
        Ok(())
    }
}

/// Dot product in float64, eight sums side by side so that it vectorises.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut acc = [0.0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            acc[i] += f64::from(x[i]) * f64::from(y[i]);
        }
    }
    acc.iter().sum::<f64>() + tail
}
