//! The schedule and the embedding on the CPU: a few numbers per image, in float64.

use std::f64::consts::TAU;
use std::sync::OnceLock;

use super::{LINEAR_STEPS, Schedule, ScheduleDims, ScheduleOutput};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::expect_len;

const OP: &str = "schedule";

/// Products of (1 - beta) over linspace(1e-4, 0.02, 1000), before clipping.
fn alpha_bars() -> &'static [f64] {
    static BARS: OnceLock<Vec<f64>> = OnceLock::new();
    BARS.get_or_init(|| {
        let (first, last) = (1e-4, 0.02);
        let step = (last - first) / (LINEAR_STEPS - 1) as f64;
        let mut product = 1.0;
        (0..LINEAR_STEPS)
            .map(|i| {
                product *= 1.0 - (first + step * i as f64);
                product
            })
            .collect()
    })
}

/// (signal rate, noise rate) at time `t`.
pub fn rates(dims: &ScheduleDims, t: f32) -> (f64, f64) {
    if dims.linear == 0 {
        let (start, end) = (dims.max_signal.acos(), dims.min_signal.acos());
        let angle = start + f64::from(t) * (end - start);
        return (angle.cos(), angle.sin());
    }
    // The product is taken in float32, as PyTorch takes it for float32 times.
    let index = ((t * (LINEAR_STEPS - 1) as f32).floor() as usize).min(LINEAR_STEPS - 1);
    let bar = alpha_bars()[index].clamp(dims.min_signal, dims.max_signal);
    (bar.sqrt(), (1.0 - bar).sqrt())
}

impl Schedule for Cpu {
    fn schedule(&self, dims: &ScheduleDims, times: &[f32], out: ScheduleOutput<'_, Self>) -> Result<()> {
        let (n, e) = (dims.n as usize, dims.e as usize);
        if e == 0 || e % 2 != 0 {
            return Err(Error::Shape {
                op: OP,
                what: format!("the embedding needs an even number of channels, not {e}"),
            });
        }
        expect_len(OP, "times", times.len(), n)?;
        expect_len(OP, "rates", out.rates.len(), 2 * n)?;
        expect_len(OP, "embedding", out.embedding.len(), n * e)?;
        expect_len(OP, "stats", out.stats.len(), n * e * 2)?;
        let half = e / 2;
        let frequencies: Vec<f64> =
            (0..half).map(|i| (1000f64.ln() * i as f64 / (half.max(2) - 1) as f64).exp()).collect();
        for (i, &t) in times.iter().enumerate() {
            let (signal, noise) = rates(dims, t);
            out.rates[2 * i] = signal as f32;
            out.rates[2 * i + 1] = noise as f32;
            let v = if dims.embed_signal == 0 { noise * noise } else { signal * signal };
            let embedding = &mut out.embedding[i * e..(i + 1) * e];
            for (j, f) in frequencies.iter().enumerate() {
                let angle = TAU * f * v;
                embedding[j] = angle.sin() as f32;
                embedding[half + j] = angle.cos() as f32;
            }
            for (stat, &value) in out.stats[i * e * 2..].chunks_exact_mut(2).zip(&*embedding) {
                stat[0] = value;
                stat[1] = 0.0;
            }
        }
        Ok(())
    }
}
