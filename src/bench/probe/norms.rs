//! Batch norm and group norm through a probe.

use super::error::{error_of, first, worse};
use super::{Call, Kind, Probe, need};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::batch_norm::{
    self, AffineParams, BackwardInput, BackwardOutput, BatchNorm, BatchNormDims, RunningMut, reference as batch,
};
use crate::ops::conv::reference::silu;
use crate::ops::group_norm::{
    Dropout, GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients, reference as group,
};

fn batch_shape(d: &BatchNormDims) -> String {
    format!("{}x{} c{}", d.n, d.pixels, sum(d.c0, d.c1))
}

fn group_shape(d: &GroupNormDims) -> String {
    format!("{}x{} c{} g{}", d.n, d.pixels, sum(d.c0, d.c1), d.groups)
}

fn sum(a: u32, b: u32) -> String {
    if b == 0 { a.to_string() } else { format!("{a}+{b}") }
}

/// (mean, sum of squared deviations) of channel c over all images, from those of each image.
fn merged(stats: &[f64], n: usize, pixels: f64, channels: usize, c: usize) -> (f64, f64) {
    let of = |image: usize, i: usize| stats[(image * channels + c) * 2 + i];
    let mean = (0..n).map(|image| of(image, 0)).sum::<f64>() / n as f64;
    let squares = (0..n).map(|image| of(image, 1) + pixels * (of(image, 0) - mean).powi(2)).sum();
    (mean, squares)
}

impl<B: Backend> BatchNorm for Probe<'_, B> {
    fn batch_norm_train(
        &self,
        d: &BatchNormDims,
        stats0: B::Slice<'_>,
        stats1: Option<B::Slice<'_>>,
        params: AffineParams<'_, Self>,
        running: RunningMut<'_, Self>,
        coefficients: B::SliceMut<'_>,
    ) -> Result<()> {
        let AffineParams { gamma, beta } = params;
        let call = Call::new("batch_norm_train", Kind::Norm, batch_shape(d))
            .reads(extents!(B; Some(stats0), stats1, Some(gamma), Some(beta)))
            .updates();
        let op = |[mean, var, coefficients]: [Option<B::SliceMut<'_>>; 3]| {
            let (params, running) = (AffineParams { gamma, beta }, RunningMut { mean: need(mean)?, var: need(var)? });
            self.inner.batch_norm_train(d, stats0, stats1, params, running, need(coefficients)?)
        };
        self.call(call, lent!(B; Some(running.mean), Some(running.var), Some(coefficients)), op, |_, after| {
            let (gamma, beta) = (self.fetch(gamma)?, self.fetch(beta)?);
            let (n, pixels) = (d.n as usize, f64::from(d.pixels));
            let (mut means, mut vars) = (vec![], vec![]);
            let stats1 = self.fetch_opt(stats1)?.unwrap_or_default();
            for (stats, channels) in [(self.fetch(stats0)?, d.c0), (stats1, d.c1)] {
                for c in 0..channels as usize {
                    let (mean, squares) = merged(&stats, n, pixels, channels as usize, c);
                    means.push(mean);
                    vars.push(squares / (n as f64 * pixels));
                }
            }
            Ok(error_of(&after[2], &batch::eval(&gamma, &beta, &means, &vars)))
        })
    }

    fn batch_norm_eval(
        &self,
        d: &BatchNormDims,
        params: AffineParams<'_, Self>,
        mean: B::Slice<'_>,
        var: B::Slice<'_>,
        coefficients: B::SliceMut<'_>,
    ) -> Result<()> {
        let AffineParams { gamma, beta } = params;
        let call = Call::new("batch_norm_eval", Kind::Norm, batch_shape(d))
            .reads(extents!(B; Some(gamma), Some(beta), Some(mean), Some(var)));
        let op = |[out]: [Option<B::SliceMut<'_>>; 1]| {
            self.inner.batch_norm_eval(d, AffineParams { gamma, beta }, mean, var, need(out)?)
        };
        self.call(call, lent!(B; Some(coefficients)), op, |_, after| {
            let [gamma, beta, mean, var] = [self.fetch(gamma)?, self.fetch(beta)?, self.fetch(mean)?, self.fetch(var)?];
            Ok(error_of(&after[0], &batch::eval(&gamma, &beta, &mean, &var)))
        })
    }

    fn batch_norm_backward(
        &self,
        d: &BatchNormDims,
        input: BackwardInput<'_, Self>,
        out: BackwardOutput<'_, Self>,
    ) -> Result<()> {
        let BackwardInput { w, dw_hat, border_sums, coefficients, params, taps, k } = input;
        let AffineParams { gamma, beta } = params;
        let call = Call::new("batch_norm_backward", Kind::NormBackward, format!("{} k{k} t{taps}", batch_shape(d)))
            .reads(extents!(B; Some(w), Some(dw_hat), Some(border_sums), Some(coefficients), Some(gamma), Some(beta)))
            .updates();
        let op = |[dw, dgamma, dbeta, ab]: [Option<B::SliceMut<'_>>; 4]| {
            let params = AffineParams { gamma, beta };
            let input = BackwardInput { w, dw_hat, border_sums, coefficients, params, taps, k };
            let out = BackwardOutput { dw: need(dw)?, dgamma: need(dgamma)?, dbeta: need(dbeta)?, ab: need(ab)? };
            self.inner.batch_norm_backward(d, input, out)
        };
        self.call(call, lent!(B; Some(out.dw), Some(out.dgamma), Some(out.dbeta), Some(out.ab)), op, |before, after| {
            let [w, dw_hat, sums] = [self.fetch(w)?, self.fetch(dw_hat)?, self.fetch(border_sums)?];
            let coefficients = self.fetch(coefficients)?;
            let c_all = d.c();
            let row = |row: usize| batch::coefficient_row(&coefficients, row);
            let (mut s1, mut s2) = (before[2].clone(), before[1].clone());
            let m = f64::from(d.n) * f64::from(d.pixels);
            let mut ab = vec![0.0; 2 * c_all];
            for c in 0..c_all {
                let (mut one, mut two) = (0.0, 0.0);
                for t in 0..taps {
                    for k_at in 0..k {
                        let at = (t * c_all + c) * k + k_at;
                        one += w[at] * sums[t * k + k_at];
                        two += w[at] * dw_hat[at];
                    }
                }
                let (scale, r, mean) =
                    (row(batch_norm::row::SCALE)[c], row(batch_norm::row::RSTD)[c], row(batch_norm::row::MEAN)[c]);
                ab[c] = -scale * r * two / m;
                ab[c_all + c] = -scale * one / m + scale * r * mean * two / m;
                s1[c] += one;
                s2[c] += two;
            }
            Ok(worse(worse(error_of(&after[1], &s2), error_of(&after[2], &s1)), error_of(&after[3], &ab)))
        })
    }
}

impl<B: Backend> GroupNorm for Probe<'_, B> {
    fn group_norm_coefficients(
        &self,
        d: &GroupNormDims,
        stats0: B::Slice<'_>,
        stats1: Option<B::Slice<'_>>,
        params: NormParams<'_, Self>,
        coefficients: B::SliceMut<'_>,
    ) -> Result<()> {
        let NormParams { gamma, beta, modulation } = params;
        let call = Call::new("group_norm_coefficients", Kind::Norm, group_shape(d))
            .option("modulated", modulation.is_some())
            .reads(extents!(B; Some(stats0), stats1, Some(gamma), Some(beta), modulation));
        let op = |[out]: [Option<B::SliceMut<'_>>; 1]| {
            let params = NormParams { gamma, beta, modulation };
            self.inner.group_norm_coefficients(d, stats0, stats1, params, need(out)?)
        };
        self.call(call, lent!(B; Some(coefficients)), op, |_, after| {
            let [gamma, beta] = [self.fetch(gamma)?, self.fetch(beta)?];
            let modulation = self.fetch_opt(modulation)?;
            // The first image's channels of both inputs.
            let mut stats = first(&self.fetch(stats0)?, 2 * d.c0 as usize).to_vec();
            stats.extend(first(&self.fetch_opt(stats1)?.unwrap_or_default(), 2 * d.c1 as usize));
            let (width, pixels) = (d.group_channels(), f64::from(d.pixels));
            let (mut scales, mut shifts) = (vec![], vec![]);
            for c in 0..d.c() {
                let of = &stats[2 * (c / width * width)..][..2 * width];
                let (mean, squares) = merged(of, width, pixels, 1, 0);
                let r = 1.0 / (squares / (width as f64 * pixels) + d.eps).sqrt();
                let (s, t) = modulation.as_ref().map_or((1.0, 0.0), |m| (1.0 + m[c], m[d.c() + c]));
                scales.push(gamma[c] * r * s);
                shifts.push((beta[c] - gamma[c] * r * mean) * s + t);
            }
            let got = |from: usize| &after[0][from..from + d.c()];
            Ok(worse(error_of(got(0), &scales), error_of(got(d.affine_len()), &shifts)))
        })
    }

    fn group_norm_apply(
        &self,
        d: &GroupNormDims,
        input: NormInput<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        y: B::SliceMut<'_>,
    ) -> Result<()> {
        let NormInput { x0, x1, coefficients } = input;
        let dropped = dropout.is_some();
        let call = Call::new("group_norm_apply", Kind::Norm, group_shape(d))
            .option("silu", d.silu != 0)
            .option("dropout", dropped)
            .reads(extents!(B; Some(x0), x1, Some(coefficients)));
        let op = |[y]: [Option<B::SliceMut<'_>>; 1]| {
            self.inner.group_norm_apply(d, NormInput { x0, x1, coefficients }, dropout.map(through), need(y)?)
        };
        self.call(call, lent!(B; Some(y)), op, |_, after| {
            if dropped {
                return Ok(None);
            }
            let (x, c) = (self.first_image(d, x0, x1)?, d.c());
            let coefficients = self.fetch(coefficients)?;
            let want: Vec<f64> = (x.iter().enumerate())
                .map(|(i, x)| coefficients[i % c] * x + coefficients[d.affine_len() + i % c])
                .map(|u| if d.silu != 0 { silu(u) } else { u })
                .collect();
            Ok(error_of(first(&after[0], want.len()), &want))
        })
    }

    fn group_norm_backward(
        &self,
        d: &GroupNormDims,
        input: NormInput<'_, Self>,
        params: NormParams<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        g: B::Slice<'_>,
        other: OtherGradients<'_, Self>,
        out: NormGradients<'_, Self>,
    ) -> Result<()> {
        let NormInput { x0, x1, coefficients } = input;
        let NormParams { gamma, beta, modulation } = params;
        let OtherGradients { to0, to1 } = other;
        let dropped = dropout.is_some();
        let call = Call::new("group_norm_backward", Kind::NormBackward, group_shape(d))
            .option("silu", d.silu != 0)
            .option("modulated", modulation.is_some())
            .option("dropout", dropped)
            .option("add", to0.iter().any(Option::is_some) || to1.is_some())
            .reads(extents!(B; Some(x0), x1, Some(coefficients), Some(gamma), Some(beta)))
            .reads(extents!(B; modulation, Some(g), to0[0], to0[1], to1));
        // Only the small results accumulate: the others are put back as well, which changes nothing.
        let mut call = call;
        call.updates = true;
        let written = [Some(&out.dx0), out.dx1.as_ref()].map(|v| v.map(|v| B::extent(B::shared(v)).bytes as u64));
        call.bytes = call.bytes.saturating_sub(written.iter().flatten().sum());
        let op = |[dx0, dx1, dgamma, dbeta, dmodulation, sums]: [Option<B::SliceMut<'_>>; 6]| {
            let (dx0, dgamma, dbeta) = (need(dx0)?, need(dgamma)?, need(dbeta)?);
            let (input, params) = (NormInput { x0, x1, coefficients }, NormParams { gamma, beta, modulation });
            let out = NormGradients { dx0, dx1, dgamma, dbeta, dmodulation, sums };
            self.inner.group_norm_backward(d, input, params, dropout.map(through), g, OtherGradients { to0, to1 }, out)
        };
        let NormGradients { dx0, dx1, dgamma, dbeta, dmodulation, sums } = out;
        self.call(call, lent!(B; Some(dx0), dx1, Some(dgamma), Some(dbeta), dmodulation, sums), op, |_, after| {
            if dropped {
                return Ok(None);
            }
            let x = self.first_image(d, x0, x1)?;
            let [gamma, beta, g] = [self.fetch(gamma)?, self.fetch(beta)?, self.fetch(g)?];
            let modulation = self.fetch_opt(modulation)?;
            let modulation = modulation.as_ref().map(|m| first(m, 2 * d.c()));
            let input = group::Input { x: &x, gamma: &gamma, beta: &beta, modulation, mask: None };
            let of = group::backward(&GroupNormDims { n: 1, ..*d }, &input, first(&g, x.len()));
            let (c, c0) = (d.c(), d.c0 as usize);
            let (mut want0, mut want1) = (vec![], vec![]);
            for row in of.dx.chunks(c) {
                want0.extend(&row[..c0]);
                want1.extend(&row[c0..]);
            }
            for (want, others) in [(&mut want0, &to0[..]), (&mut want1, &[to1][..])] {
                for other in others.iter().flatten() {
                    want.iter_mut().zip(self.fetch(*other)?).for_each(|(want, other)| *want += other);
                }
            }
            let [got0, got1] = [first(&after[0], want0.len()), first(&after[1], want1.len())];
            Ok(worse(error_of(got0, &want0), error_of(got1, &want1)))
        })
    }
}

fn through<'a, B: Backend>(d: Dropout<'a, Probe<'_, B>>) -> Dropout<'a, B> {
    Dropout { p: d.p, key: d.key, layer: d.layer, step: d.step }
}

impl<B: Backend> Probe<'_, B> {
    /// The first image of the concatenation, [P, C].
    fn first_image(&self, d: &GroupNormDims, x0: B::Slice<'_>, x1: Option<B::Slice<'_>>) -> Result<Vec<f64>> {
        let (x0, x1) = (self.fetch(x0)?, self.fetch_opt(x1)?.unwrap_or_default());
        let (c0, c1) = (d.c0 as usize, d.c1 as usize);
        let mut x = Vec::with_capacity(d.pixels as usize * d.c());
        for p in 0..d.pixels as usize {
            x.extend(&x0[p * c0..(p + 1) * c0]);
            x.extend(x1.get(p * c1..(p + 1) * c1).unwrap_or_default());
        }
        Ok(x)
    }
}
