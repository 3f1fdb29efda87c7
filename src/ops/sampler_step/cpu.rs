//! Updates of samplers on the CPU.

use super::{Coefficients, SamplerStep, StepDims, StepNoise, StepState, Threshold, check_operands, quantile_place};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::{Cpu, PIECE};
use crate::error::Result;
use crate::ops::expect_len;
use crate::ops::noise::NoiseKey;
use crate::rng::{Purpose, Stream};

const OP: &str = "sampler_step";

/// The quantile of |cx x + cp pred| over a picture.
fn quantile(c: &Coefficients, quantile: f64, x: &[f32], pred: &[f32]) -> f32 {
    let (below, share) = quantile_place(quantile, x.len());
    with_scratch([x.len()], |[values]| {
        for ((value, x), pred) in values.iter_mut().zip(x).zip(pred) {
            *value = (c.cx * x + c.cp * pred).abs();
        }
        let (_, &mut at, above) = values.select_nth_unstable_by(below, f32::total_cmp);
        let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(at);
        at + share * (next - at)
    })
}

/// One picture's update.
struct Update<'a> {
    c: Coefficients,
    /// The predicted picture is clamped to this distance from 0, and divided by `divisor`.
    limit: f32,
    divisor: f32,
    noise: Option<Stream>,
    pred: &'a [f32],
}

/// Elements of a block of noise at a time.
const BLOCK: usize = 256;

impl Update<'_> {
    #[inline(always)]
    fn run(&self, x: &mut [f32], x0: &mut [f32], kept: &mut [f32]) {
        let c = &self.c;
        let mut noise = [0.0f32; BLOCK];
        for first in (0..x.len()).step_by(BLOCK) {
            let range = first..(first + BLOCK).min(x.len());
            if let (Some(stream), true) = (self.noise, c.f != 0.0) {
                for (i, four) in noise.chunks_exact_mut(4).enumerate().take(range.len().div_ceil(4)) {
                    four.copy_from_slice(&stream.normal4((first / 4 + i) as u32));
                }
            }
            for i in range {
                let (old, pred) = (x[i], self.pred[i]);
                let plain = c.cx * old + c.cp * pred;
                // Not min and max: they would hide what is not a number.
                let clamped = if plain > self.limit { self.limit } else { plain };
                let clamped = if clamped < -self.limit { -self.limit } else { clamped };
                let image = clamped / self.divisor;
                let mut y = c.a * old + c.c * pred + c.d * image;
                if c.b != 0.0 {
                    y += c.b * kept[i];
                }
                if c.e != 0.0 {
                    y += c.e * x0[i];
                }
                if c.f != 0.0 {
                    y += c.f * noise[i - first];
                }
                if c.keep {
                    kept[i] = old;
                }
                x[i] = y;
                x0[i] = image;
            }
        }
    }
}

impl SamplerStep for Cpu {
    fn sampler_step(
        &self,
        dims: &StepDims,
        coefficients: &Coefficients,
        threshold: Threshold,
        pred: &[f32],
        noise: Option<StepNoise<'_, Self>>,
        state: StepState<'_, Self>,
    ) -> Result<()> {
        let (n, per) = (dims.n as usize, dims.per_image as usize);
        check_operands(coefficients, threshold, noise.is_some(), state.kept.is_some())?;
        expect_len(OP, "pred", pred.len(), n * per)?;
        expect_len(OP, "x", state.x.len(), n * per)?;
        expect_len(OP, "x0", state.x0.len(), n * per)?;
        let kept: Vec<&mut [f32]> = match state.kept {
            Some(kept) => {
                expect_len(OP, "kept", kept.len(), n * per)?;
                kept.chunks_mut(per.max(1)).collect()
            }
            None => (0..n).map(|_| &mut [][..]).collect(),
        };
        let key = match noise {
            Some(noise) => {
                expect_len(OP, "first_image", noise.first_image.len(), 1)?;
                let first_image = u64::from(noise.first_image[0].to_bits());
                Some((NoiseKey { seed: noise.seed, purpose: Purpose::SampleStep, first_image }, noise.call))
            }
            None => None,
        };
        let images = state.x.chunks_mut(per.max(1)).zip(state.x0.chunks_mut(per.max(1))).zip(kept);
        let jobs: Vec<_> = images.zip(pred.chunks(per.max(1))).enumerate().collect();
        self.for_each_vectorized(jobs, |(image, (((x, x0), kept), pred))| {
            let (limit, divisor) = match threshold {
                Threshold::None => (f32::INFINITY, 1.0),
                Threshold::Clamp(range) => (range, 1.0),
                Threshold::Dynamic { quantile: q, most } => {
                    let s = quantile(coefficients, q, x, pred).clamp(1.0, most);
                    (s, s)
                }
            };
            let noise = key.map(|(key, call)| key.stream(u64::from(call), image));
            Update { c: *coefficients, limit, divisor, noise, pred }.run(x, x0, kept);
        });
        Ok(())
    }

    fn combine(&self, a: f32, x: &[f32], b: f32, y: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
        expect_len("combine", "x", x.len(), out.len())?;
        if let Some(y) = y {
            expect_len("combine", "y", y.len(), out.len())?;
        }
        let jobs: Vec<_> = out.chunks_mut(PIECE).enumerate().map(|(i, out)| (i * PIECE, out)).collect();
        self.for_each_vectorized(jobs, |(first, out)| {
            let x = &x[first..first + out.len()];
            match y {
                Some(y) => {
                    let both = x.iter().zip(&y[first..first + out.len()]);
                    out.iter_mut().zip(both).for_each(|(out, (x, y))| *out = a * x + b * y);
                }
                None => out.iter_mut().zip(x).for_each(|(out, x)| *out = a * x),
            }
        });
        Ok(())
    }

    fn blend(&self, rates: [f32; 2], mask: &[f32], known: &[f32], noise: &[f32], x: &mut [f32]) -> Result<()> {
        for (name, view) in [("mask", mask), ("known", known), ("noise", noise)] {
            expect_len("blend", name, view.len(), x.len())?;
        }
        let jobs: Vec<_> = x.chunks_mut(PIECE).enumerate().map(|(i, x)| (i * PIECE, x)).collect();
        self.for_each_vectorized(jobs, |(first, x)| {
            for (i, x) in x.iter_mut().enumerate() {
                let at = first + i;
                let there = rates[0] * known[at] + rates[1] * noise[at];
                *x = mask[at] * *x + (1.0 - mask[at]) * there;
            }
        });
        Ok(())
    }
}
