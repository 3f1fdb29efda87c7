//! The factors of each method's updates.

use super::super::levels::{Level, Levels};
use super::nodes::{Transition, transitions};
use super::{Call, Plan, SamplerOptions, Update, Variance};
use crate::config::Predict;
use crate::error::Result;
use crate::ops::sampler_step::Threshold;

/// A quantity as factors of x and of the prediction, at a level.
#[derive(Clone, Copy)]
struct Pair {
    x: f64,
    pred: f64,
}

/// The predicted picture.
fn image(predict: Predict, at: Level) -> Pair {
    match predict {
        Predict::Noise => Pair { x: 1.0 / at.signal, pred: -at.noise / at.signal },
        Predict::Image => Pair { x: 0.0, pred: 1.0 },
        Predict::Velocity => Pair { x: at.signal, pred: -at.noise },
    }
}

/// The predicted noise.
fn noise(predict: Predict, at: Level) -> Pair {
    match predict {
        Predict::Noise => Pair { x: 0.0, pred: 1.0 },
        Predict::Image => Pair { x: 1.0 / at.noise, pred: -at.signal / at.noise },
        Predict::Velocity => Pair { x: at.noise, pred: at.signal },
    }
}

/// The update that predicts a picture from the network's output at `level`, for an input that is `scale` times x.
fn predicting(predict: Predict, level: Level, scale: f64) -> Update {
    let image = image(predict, level);
    Update { cx: image.x * scale, cp: image.pred, ..Update::default() }
}

fn call(level: Level, update: Update, next: Level) -> Call {
    Call { level, input_scale: 1.0, update, reached: Some([next.signal, next.noise]) }
}

/// Variance of the posterior between two levels (equation 7 of Ho et al. 2020; equation 16 of Song et al. 2021).
fn posterior_variance(t: &Transition) -> f64 {
    let (now, next) = (t.now.signal.powi(2), t.next.signal.powi(2));
    (1.0 - next) / (1.0 - now) * (1.0 - now / next)
}

/// x <- `signal_next` x0 + sqrt(`noise_next^2` - s^2) e + s z, s = eta sqrt(posterior variance).
pub(super) fn ddim(steps: &[Transition], o: &SamplerOptions) -> Vec<Call> {
    let step = |t: &Transition| {
        let deviation = o.eta * posterior_variance(t).max(0.0).sqrt();
        let direction = (t.next.noise.powi(2) - deviation.powi(2)).max(0.0).sqrt();
        let noise = noise(o.predict, t.now);
        let update = Update {
            a: direction * noise.x,
            c: direction * noise.pred,
            d: t.next.signal,
            f: deviation,
            ..predicting(o.predict, t.now, 1.0)
        };
        call(t.now, update, t.next)
    };
    steps.iter().map(step).collect()
}

/// x <- the posterior's mean for x0, and noise of its variance.
pub(super) fn ddpm(steps: &[Transition], o: &SamplerOptions) -> Vec<Call> {
    let step = |t: &Transition| {
        let (now, next) = (t.now.signal.powi(2), t.next.signal.powi(2));
        let (alpha, beta) = (now / next, 1.0 - now / next);
        let variance = match (t.at_first_point, o.variance) {
            (true, _) => 0.0,
            (false, Variance::Small) => posterior_variance(t),
            (false, Variance::Large) => beta,
        };
        let update = Update {
            a: alpha.sqrt() * (1.0 - next) / (1.0 - now),
            d: next.sqrt() * beta / (1.0 - now),
            f: variance.max(0.0).sqrt(),
            ..predicting(o.predict, t.now, 1.0)
        };
        call(t.now, update, t.next)
    };
    steps.iter().map(step).collect()
}

/// ln(signal / noise).
fn lambda(level: Level) -> f64 {
    level.signal.ln() - level.noise.ln()
}

/// With h = lambda' - lambda, r = (lambda - lambda before) / h:
/// x <- noise'/noise x - signal' (e^-h - 1) (x0 + (x0 - `last_x0`) / (2 r)); without the last term first and last.
pub(super) fn dpm(nodes: &[Level], o: &SamplerOptions) -> Vec<Call> {
    let step = |i: usize| {
        let now = nodes[i];
        let predicting = predicting(o.predict, now, 1.0);
        let Some(&next) = nodes.get(i + 1) else {
            // h is infinite: x0 itself.
            return call(now, Update { d: 1.0, ..predicting }, Level::CLEAN);
        };
        let h = lambda(next) - lambda(now);
        let weight = -next.signal * (-h).exp_m1();
        let half = match i.checked_sub(1) {
            Some(before) => weight * 0.5 * h / (lambda(now) - lambda(nodes[before])),
            None => 0.0,
        };
        call(now, Update { a: next.noise / now.noise, d: weight + half, e: -half, ..predicting }, next)
    };
    (0..nodes.len()).map(step).collect()
}

/// On x + sigma e: an Euler step along (x - x0) / sigma, whose slope at its end is averaged with that at its start; Euler alone at the end,
/// where sigma is 0.
pub(super) fn heun(nodes: &[Level], o: &SamplerOptions) -> Vec<Call> {
    let scaled = |level: Level, update: Update, reached: Option<[f64; 2]>| Call {
        level,
        input_scale: level.signal, // 1 / sqrt(1 + sigma^2)
        update,
        reached,
    };
    let mut calls = Vec::new();
    for (i, &now) in nodes.iter().enumerate() {
        let (sigma, predicting_now) = (now.sigma(), predicting(o.predict, now, now.signal));
        let Some(&next) = nodes.get(i + 1) else {
            calls.push(scaled(now, Update { d: 1.0, ..predicting_now }, Some([1.0, 0.0])));
            break;
        };
        let (to, step) = (next.sigma(), next.sigma() - sigma);
        let euler = Update { a: 1.0 + step / sigma, d: -step / sigma, keep: true, ..predicting_now };
        calls.push(scaled(now, euler, None));
        let (first, second) = (0.5 * step / sigma, 0.5 * step / to);
        let average =
            Update { a: second, b: 1.0 + first, d: -second, e: -first, ..predicting(o.predict, next, next.signal) };
        calls.push(scaled(next, average, Some([1.0, to])));
    }
    calls
}

/// How pictures are led back to noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inversion {
    /// Network calls for each step: the first takes the cleaner picture for the noisier one, each further one the result so far.
    pub rounds: usize,
}

/// The plan that undoes [`Plan::new`]'s for deterministic DDIM: it begins with pictures and ends with their noise.
///
/// A step of DDIM from x at level B to A is A = a x + k e(x), so x = (A - k e(x)) / a, which is solved by inserting x again and again
/// ("DDIM inversion": Song et al. 2021, section 4.3; the iteration: Pan et al. 2023).
///
/// # Errors
/// As [`Plan::new`]; see [`SamplerOptions::check`].
pub fn invert(levels: &Levels, o: &SamplerOptions, how: Inversion) -> Result<Plan> {
    o.check(levels)?;
    let mut calls = Vec::new();
    for t in transitions(levels, o)?.iter().rev() {
        let grow = t.now.signal / t.next.signal;
        let k = t.now.noise - t.next.noise * grow;
        let noise = noise(o.predict, t.now);
        for round in 0..how.rounds.max(1) {
            let (first, last) = (round == 0, round + 1 == how.rounds.max(1));
            let old = if first { (grow, 0.0) } else { (0.0, grow) };
            let update = Update {
                a: old.0 + k * noise.x,
                b: old.1,
                c: k * noise.pred,
                keep: first,
                ..predicting(o.predict, t.now, 1.0)
            };
            let reached = last.then_some([t.now.signal, t.now.noise]);
            calls.push(Call { level: t.now, input_scale: 1.0, update, reached });
        }
    }
    Ok(Plan { calls, noise_scale: 1.0, start: [1.0, 0.0], threshold: Threshold::None })
}
