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
        if dims.single != 0 {
            let angle = start as f32 + t * (end - start) as f32;
            let rounded = |x: f64| f64::from(x as f32);
            return (rounded(f64::from(angle).cos()), rounded(f64::from(angle).sin()));
        }
        let angle = start + f64::from(t) * (end - start);
        return (angle.cos(), angle.sin());
    }
    // The product is taken in float32, as PyTorch takes it for float32 times.
    let index = ((t * (LINEAR_STEPS - 1) as f32).floor() as usize).min(LINEAR_STEPS - 1);
    let bar = alpha_bars()[index].clamp(dims.min_signal, dims.max_signal);
    if dims.single != 0 {
        let bar = bar as f32;
        return (f64::from(bar.sqrt()), f64::from((1.0 - bar).sqrt()));
    }
    (bar.sqrt(), (1.0 - bar).sqrt())
}

/// 2 pi f_i, rounded to float32 where PyTorch rounds: its networks keep these numbers as a float32 buffer, and at angles of
/// thousands the last bit of a frequency shows.
fn angular_speeds(half: usize) -> Vec<f64> {
    let last = 1000f64.ln() as f32;
    let step = last / (half.max(2) - 1) as f32;
    (0..half)
        .map(|i| {
            // torch.linspace goes up from the start in its first half and down from the end in its second.
            let x = if i < half / 2 || half == 1 { step * i as f32 } else { last - step * (half - 1 - i) as f32 };
            f64::from((f64::from(x).exp() as f32) * TAU as f32)
        })
        .collect()
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
        let speeds = angular_speeds(half);
        for (i, &t) in times.iter().enumerate() {
            let (signal, noise) = rates(dims, t);
            out.rates[2 * i] = signal as f32;
            out.rates[2 * i + 1] = noise as f32;
            let rate = if dims.embed_signal == 0 { noise } else { signal };
            let v = if dims.single != 0 { f64::from(rate as f32 * rate as f32) } else { rate * rate };
            let embedding = &mut out.embedding[i * e..(i + 1) * e];
            for (j, speed) in speeds.iter().enumerate() {
                let angle = speed * v;
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
