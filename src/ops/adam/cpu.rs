//! Adam on the CPU: one pass over five flat buffers.

use super::{Adam, AdamParams, AdamState};
use crate::device::cpu::{Cpu, PIECE};
use crate::error::{Error, Result};
use crate::ops::expect_len;

const OP: &str = "adam";

/// The constants of a step, in float32 as they are applied.
#[derive(Clone, Copy)]
struct Constants {
    /// 1 - beta1, rounded once: 1 - (0.999 in float32) would be off by 1.3e-5, and so would the second moment.
    gain1: f32,
    /// 1 - beta2.
    gain2: f32,
    step_size: f32,
    /// 1 / sqrt(1 - beta2^t).
    correction: f32,
    eps: f32,
    /// AdamW: factor of the weight. Adam: 1.
    shrink: f32,
    /// Adam: factor of the weight in the gradient. AdamW: 0.
    decay: f32,
    /// 1 - decay of the average.
    gain_ema: f32,
}

#[inline(always)]
fn update(k: &Constants, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    let g = g + k.decay * *p;
    *m += k.gain1 * (g - *m);
    *v += k.gain2 * (g * g - *v);
    *p = *p * k.shrink - k.step_size * (*m / (v.sqrt() * k.correction + k.eps));
}

impl Adam for Cpu {
    fn adam_step(&self, params: &AdamParams, state: AdamState<'_, Self>) -> Result<()> {
        let n = state.params.len();
        expect_len(OP, "grads", state.grads.len(), n)?;
        expect_len(OP, "m", state.m.len(), n)?;
        expect_len(OP, "v", state.v.len(), n)?;
        if params.step == 0 {
            return Err(Error::Shape { op: OP, what: "steps are counted from 1".into() });
        }
        let t = f64::from(params.step);
        let decoupled = params.decoupled != 0;
        let constants = Constants {
            gain1: (1.0 - params.beta1) as f32,
            gain2: (1.0 - params.beta2) as f32,
            step_size: (params.lr / (1.0 - params.beta1.powf(t))) as f32,
            correction: (1.0 / (1.0 - params.beta2.powf(t)).sqrt()) as f32,
            eps: params.eps as f32,
            shrink: if decoupled { (1.0 - params.lr * params.weight_decay) as f32 } else { 1.0 },
            decay: if decoupled { 0.0 } else { params.weight_decay as f32 },
            gain_ema: (1.0 - params.ema_decay) as f32,
        };
        let ema: Vec<&mut [f32]> = match state.ema {
            Some(ema) => {
                expect_len(OP, "ema", ema.len(), n)?;
                ema.chunks_mut(PIECE).collect()
            }
            None => (0..n.div_ceil(PIECE)).map(|_| &mut [][..]).collect(),
        };
        let moments = state.m.chunks_mut(PIECE).zip(state.v.chunks_mut(PIECE));
        let weights = state.params.chunks_mut(PIECE).zip(state.grads.chunks(PIECE));
        let jobs: Vec<_> = weights.zip(moments).zip(ema).collect();
        self.for_each_vectorized(jobs, |(((p, g), (m, v)), ema)| {
            for ((p, &g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v.iter_mut())) {
                update(&constants, p, g, m, v);
            }
            for (ema, p) in ema.iter_mut().zip(p.iter()) {
                *ema += constants.gain_ema * (p - *ema);
            }
        });
        Ok(())
    }
}
