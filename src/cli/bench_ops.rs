//! `ddim-engine bench ops`: group norm and attention alone, at extents of real networks, with the bytes that they move.

use std::time::Instant;

use ddim_engine::device::ReadBack;
use ddim_engine::error::Result;
use ddim_engine::ops::Backend;
use ddim_engine::ops::attention::AttentionDims;
use ddim_engine::ops::group_norm::{GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients};
use serde_json::{Value, json};

use super::device::Work;

/// Calls in a row, so that what starting costs does not count.
const CALLS: usize = 10;
/// (pixels, channels, groups) of norms.
const NORMS: [[u32; 3]; 4] = [[64 * 64, 64, 32], [32 * 32, 128, 32], [16 * 16, 256, 32], [8 * 8, 256, 32]];
/// (tokens, heads, channels of a head) of attentions.
const ATTENTIONS: [[u32; 3]; 4] = [[32 * 32, 4, 32], [16 * 16, 8, 32], [16 * 16, 4, 64], [8 * 8, 4, 64]];

/// What is measured.
pub struct BenchOps {
    /// Images.
    pub batch: u32,
    /// Measurements of each operation.
    pub repeat: usize,
    /// Bytes of an activation.
    pub element: u64,
}

impl Work for BenchOps {
    type Output = Vec<Value>;

    /// A row for each operation.
    fn run<B: Backend>(self, backend: &B) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for [pixels, channels, groups] in NORMS {
            let d = GroupNormDims { eps: 1e-5, n: self.batch, pixels, c0: channels, c1: 0, groups, silu: 1 };
            rows.extend(self.norm(backend, &d)?);
        }
        for [tokens, heads, head_dim] in ATTENTIONS {
            rows.extend(self.attention(backend, &AttentionDims { n: self.batch, tokens, heads, head_dim })?);
        }
        Ok(rows)
    }
}

/// Numbers around 0.
fn filled<B: Backend>(backend: &B, len: usize, activation: bool) -> Result<B::Buffer> {
    let values: Vec<f32> =
        (0..len as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 8) as f32 / 8_388_608.0 - 1.0).collect();
    let mut buffer = if activation { backend.alloc_activation(len)? } else { backend.alloc(len)? };
    backend.upload(&values, B::all_mut(&mut buffer))?;
    Ok(buffer)
}

impl BenchOps {
    /// Seconds of a call: the least, and the median. `after`: something small that the device can be waited for with.
    fn time<B: Backend>(
        &self,
        backend: &B,
        after: &B::Buffer,
        call: &mut dyn FnMut() -> Result<()>,
    ) -> Result<[f64; 2]> {
        let mut calls = || (0..CALLS).try_for_each(|_| call());
        let graph = backend.record(&mut calls)?;
        let wait = || backend.read_back(B::all(after))?.wait().map(|_| ());
        wait()?;
        let mut seconds = Vec::new();
        for _ in 0..self.repeat {
            let began = Instant::now();
            match &graph {
                Some(graph) => backend.replay(graph)?,
                None => calls()?,
            }
            wait()?;
            seconds.push(began.elapsed().as_secs_f64() / CALLS as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok([seconds[0], seconds[seconds.len() / 2]])
    }

    fn norm<B: Backend>(&self, backend: &B, d: &GroupNormDims) -> Result<Vec<Value>> {
        let c = d.c();
        let (x, g) = (filled(backend, d.len0(), true)?, filled(backend, d.len0(), true)?);
        let (gamma, beta) = (filled(backend, c, false)?, filled(backend, c, false)?);
        let mut stats = backend.alloc(2 * d.affine_len())?;
        // Mean 0, variance 1/3.
        let of_channels: Vec<f32> = (0..2 * d.affine_len()).map(|i| (i % 2) as f32 * d.pixels as f32 / 3.0).collect();
        backend.upload(&of_channels, B::all_mut(&mut stats))?;
        let mut coefficients = filled(backend, d.coefficients_len(), false)?;
        let (mut y, mut dx) = (backend.alloc_activation(d.len0())?, backend.alloc_activation(d.len0())?);
        let (mut dgamma, mut dbeta) = (filled(backend, c, false)?, filled(backend, c, false)?);
        let params = NormParams { gamma: B::all(&gamma), beta: B::all(&beta), modulation: None };
        let of = |name: &str, seconds: [f64; 2], moved: u64, least: u64| {
            let elements = d.len0() as u64;
            json!({
                "operation": name, "batch": d.n, "pixels": d.pixels, "channels": c, "groups": d.groups,
                "seconds_min": seconds[0], "seconds_median": seconds[1],
                "bytes_moved": moved * elements * self.element, "bytes_least": least * elements * self.element,
            })
        };
        let forward = self.time(backend, &gamma, &mut || {
            backend.group_norm_coefficients(d, B::all(&stats), None, params, B::all_mut(&mut coefficients))?;
            let input = NormInput { x0: B::all(&x), x1: None, coefficients: B::all(&coefficients) };
            backend.group_norm_apply(d, input, None, B::all_mut(&mut y))
        })?;
        let backward = self.time(backend, &gamma, &mut || {
            let input = NormInput { x0: B::all(&x), x1: None, coefficients: B::all(&coefficients) };
            let out = NormGradients {
                dx0: B::all_mut(&mut dx),
                dx1: None,
                dgamma: B::all_mut(&mut dgamma),
                dbeta: B::all_mut(&mut dbeta),
                dmodulation: None,
                sums: None,
            };
            backend.group_norm_backward(d, input, params, None, B::all(&g), OtherGradients::default(), out)
        })?;
        Ok(vec![of("group_norm_silu", forward, 2, 2), of("group_norm_silu_backward", backward, 5, 3)])
    }

    fn attention<B: Backend>(&self, backend: &B, d: &AttentionDims) -> Result<Vec<Value>> {
        let (qkv, dy) = (filled(backend, 3 * d.len(), true)?, filled(backend, d.len(), true)?);
        let (mut y, mut lse) = (backend.alloc_activation(d.len())?, backend.alloc(d.lse_len())?);
        let (mut dqkv, after) = (backend.alloc_activation(3 * d.len())?, filled(backend, 1, false)?);
        let forward = self.time(backend, &after, &mut || {
            backend.attention(d, B::all(&qkv), B::all_mut(&mut y), B::all_mut(&mut lse))
        })?;
        let backward = self.time(backend, &after, &mut || {
            let (qkv, y, lse, dy) = (B::all(&qkv), B::all(&y), B::all(&lse), B::all(&dy));
            backend.attention_backward(d, qkv, y, lse, dy, B::all_mut(&mut dqkv))
        })?;
        let of = |name: &str, seconds: [f64; 2], tensors: u64, flops: u64| {
            json!({
                "operation": name, "batch": d.n, "tokens": d.tokens, "heads": d.heads, "head_dim": d.head_dim,
                "seconds_min": seconds[0], "seconds_median": seconds[1],
                "bytes_least": tensors * d.len() as u64 * self.element + 4 * d.lse_len() as u64, "flops_least": flops,
            })
        };
        let flops = d.flops();
        Ok(vec![of("attention", forward, 4, flops), of("attention_backward", backward, 8, flops / 2 * 5)])
    }
}
