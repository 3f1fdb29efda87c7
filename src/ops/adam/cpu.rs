//! Adam on the CPU: one pass over five flat buffers.

use super::{Adam, AdamScalars, AdamState};
use crate::device::cpu::{Cpu, PIECE};
use crate::error::Result;
use crate::ops::expect_len;

const OP: &str = "adam";

#[inline(always)]
fn update(k: &AdamScalars, clip: f32, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    let g = g * clip + k.decay * *p;
    *m += k.gain1 * (g - *m);
    *v += k.gain2 * (g * g - *v);
    *p = *p * k.shrink - k.step_size * (*m / (v.sqrt() * k.correction + k.eps));
}

fn read_scalars(scalars: &[f32]) -> Result<AdamScalars> {
    expect_len(OP, "scalars", scalars.len(), AdamScalars::LEN)?;
    Ok(bytemuck::pod_read_unaligned(bytemuck::cast_slice(scalars)))
}

/// The loss is a number, or there is no guard.
fn applies(guard: Option<&[f32]>) -> Result<bool> {
    let Some(guard) = guard else { return Ok(true) };
    expect_len(OP, "guard", guard.len(), 1)?;
    Ok(guard[0].is_finite())
}

impl Adam for Cpu {
    fn adam_step(&self, scalars: &[f32], guard: Option<&[f32]>, state: AdamState<'_, '_, Self>) -> Result<()> {
        let n = state.params.len();
        expect_len(OP, "grads", state.grads.len(), n)?;
        expect_len(OP, "m", state.m.len(), n)?;
        expect_len(OP, "v", state.v.len(), n)?;
        let constants = read_scalars(scalars)?;
        if let Some(clip) = state.clip {
            expect_len(OP, "clip", clip.len(), 1)?;
        }
        let clip = state.clip.map_or(1.0, |clip| clip[0]);
        if !applies(guard)? || !clip.is_finite() {
            return Ok(());
        }
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
                update(&constants, clip, p, g, m, v);
            }
            for (ema, p) in ema.iter_mut().zip(p.iter()) {
                *ema += constants.gain_ema * (p - *ema);
            }
        });
        Ok(())
    }
    fn ema_update(&self, scalars: &[f32], guard: Option<&[f32]>, src: &[f32], ema: &mut [f32]) -> Result<()> {
        expect_len(OP, "src", src.len(), ema.len())?;
        let constants = read_scalars(scalars)?;
        if applies(guard)? {
            for (ema, &new) in ema.iter_mut().zip(src) {
                *ema += constants.gain_ema * (new - *ema);
            }
        }
        Ok(())
    }
}
