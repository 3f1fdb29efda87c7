//! `cargo bench`: CPU operations at extents of the preset `seed` (group norm and attention: at such as its pictures have), with criterion.
//!
//! `ddim-engine bench kernels` measures every operation of the presets with the operands that the models give them; this is the small
//! set to run again and again while a kernel is being changed: criterion keeps the last result and says what changed.
//! `cargo bench -- wgrad` runs those whose name contains it. Instruction sets and threads: `DDIM_ISA`, `DDIM_BENCH_THREADS`.
#![allow(missing_docs)] // of the function that `criterion_group!` makes

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ddim_engine::device::Memory;
use ddim_engine::device::cpu::{Cpu, CpuBuffer};
use ddim_engine::error::Result;
use ddim_engine::ops::adam::{Adam, AdamParams, AdamScalars, AdamState};
use ddim_engine::ops::attention::{Attention, AttentionDims};
use ddim_engine::ops::conv::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use ddim_engine::ops::group_norm::{GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients};
use ddim_engine::ops::pool::{AvgPool2, ResampleDims};
use ddim_engine::ops::resize::Resize;
use ddim_engine::ops::upsample::Upsample2;

/// Images of every case.
const BATCH: u32 = 8;
/// (side of the picture, input channels, output channels) of convolutions of `seed`.
const CONVS: [[u32; 3]; 4] = [[64, 64, 32], [32, 64, 64], [16, 192, 64], [8, 128, 128]];
/// Parameters of `seed`.
const PARAMETERS: usize = 3_562_211;

fn cpu() -> Result<Cpu> {
    Cpu::new(std::env::var("DDIM_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// Numbers in [-1, 1).
fn filled(cpu: &Cpu, len: usize) -> Result<CpuBuffer> {
    let mut buffer = cpu.alloc(len)?;
    for (i, value) in buffer.as_mut_slice().iter_mut().enumerate() {
        *value = ((i as u32).wrapping_mul(0x9E37_79B9) >> 8) as f32 / 8_388_608.0 - 1.0;
    }
    Ok(buffer)
}

/// A measured call must not fail: there is nothing to go on with.
#[track_caller]
fn done(result: Result<()>) {
    if let Err(why) = black_box(result) {
        panic!("{why}");
    }
}

fn convolutions(c: &mut Criterion) -> Result<()> {
    let cpu = cpu()?;
    for [side, channels, k] in CONVS {
        let forward = ConvDims { n: BATCH, h: side, w: side, c0: channels, c1: 0, r0: 0, r1: 0, k, side: 3 };
        let backward = ConvDims { c0: k, k: channels, ..forward };
        let (x, dy) = (filled(&cpu, forward.pixels() * forward.c())?, filled(&cpu, forward.pixels() * backward.c())?);
        let (scale, shift) = (filled(&cpu, forward.c())?, filled(&cpu, forward.c())?);
        let w = filled(&cpu, forward.taps() * forward.c() * k as usize)?;
        let affine = (scale.as_slice(), shift.as_slice());
        let name = format!("{BATCH}x{side}x{side} {channels}>{k} 3x3");
        let directions = [(Direction::Forward, forward, &x, &dy), (Direction::Dgrad, backward, &dy, &x)];
        for (direction, d, input, like) in directions {
            let mut packed = cpu.alloc(cpu.conv_packed_len(&d))?;
            let filter = Filter { w: w.as_slice(), w_res: None, forward_c: forward.c(), scale: None };
            cpu.conv_pack(&d, direction, filter, Cpu::all_mut(&mut packed))?;
            let mut y = cpu.alloc(Cpu::buffer_len(like))?;
            let group = if direction == Direction::Forward { "conv forward" } else { "conv dgrad" };
            let mut group = c.benchmark_group(group);
            group.throughput(Throughput::Elements(d.flops()));
            group.bench_function(BenchmarkId::from_parameter(&name), |b| {
                b.iter(|| {
                    let affine = (direction == Direction::Forward).then_some(affine);
                    let pro = Prologue { affine, silu: false };
                    let out = Output { y0: Cpu::all_mut(&mut y), y1: None, k0: d.k as usize, stats: None };
                    let (x, epilogue) = (Operand::one(input.as_slice()), Epilogue::default());
                    done(cpu.conv(&d, x, pro, None, packed.as_slice(), epilogue, out));
                });
            });
        }
        let mut dw = filled(&cpu, Cpu::buffer_len(&w))?;
        let mut group = c.benchmark_group("conv wgrad");
        group.throughput(Throughput::Elements(forward.flops()));
        group.bench_function(BenchmarkId::from_parameter(&name), |b| {
            b.iter(|| {
                let (dw, pro) = (Cpu::all_mut(&mut dw), Prologue { affine: Some(affine), silu: false });
                let out = WeightGradients { dw, dw_res: None, db: None, db_res: None, border_sums: None };
                done(cpu.conv_wgrad(&forward, Operand::one(x.as_slice()), pro, None, dy.as_slice(), out));
            });
        });
    }
    Ok(())
}

fn group_norms(c: &mut Criterion) -> Result<()> {
    let cpu = cpu()?;
    for [side, channels] in [[64, 32], [32, 64], [16, 96], [8, 128]] {
        let d = GroupNormDims { eps: 1e-5, n: BATCH, pixels: side * side, c0: channels, c1: 0, groups: 32, silu: 1 };
        let (x, g) = (filled(&cpu, d.len0())?, filled(&cpu, d.len0())?);
        let (gamma, beta) = (filled(&cpu, d.c())?, filled(&cpu, d.c())?);
        let coefficients = filled(&cpu, d.coefficients_len())?;
        let (mut y, mut dx) = (cpu.alloc(d.len0())?, cpu.alloc(d.len0())?);
        let (mut dgamma, mut dbeta) = (filled(&cpu, d.c())?, filled(&cpu, d.c())?);
        let name = format!("{BATCH}x{side}x{side} c{channels} g32");
        let input = NormInput { x0: x.as_slice(), x1: None, coefficients: coefficients.as_slice() };
        let mut group = c.benchmark_group("group norm");
        group.throughput(Throughput::Bytes(8 * d.len0() as u64));
        group.bench_function(BenchmarkId::new("forward", &name), |b| {
            b.iter(|| done(cpu.group_norm_apply(&d, input, None, Cpu::all_mut(&mut y))));
        });
        group.throughput(Throughput::Bytes(12 * d.len0() as u64));
        group.bench_function(BenchmarkId::new("backward", &name), |b| {
            b.iter(|| {
                let params = NormParams { gamma: gamma.as_slice(), beta: beta.as_slice(), modulation: None };
                let out = NormGradients {
                    dx0: Cpu::all_mut(&mut dx),
                    dx1: None,
                    dgamma: Cpu::all_mut(&mut dgamma),
                    dbeta: Cpu::all_mut(&mut dbeta),
                    dmodulation: None,
                    sums: None,
                };
                done(cpu.group_norm_backward(&d, input, params, None, g.as_slice(), OtherGradients::default(), out));
            });
        });
    }
    Ok(())
}

fn attentions(c: &mut Criterion) -> Result<()> {
    let cpu = cpu()?;
    for (tokens, heads) in [(256, 4), (64, 4)] {
        let d = AttentionDims { n: BATCH, tokens, heads, head_dim: 32 };
        let (qkv, dy) = (filled(&cpu, 3 * d.len())?, filled(&cpu, d.len())?);
        let (mut y, mut lse) = (cpu.alloc(d.len())?, cpu.alloc(d.lse_len())?);
        let mut dqkv = cpu.alloc(3 * d.len())?;
        let name = format!("{BATCH} tokens {tokens} heads {heads}x32");
        let mut group = c.benchmark_group("attention");
        group.throughput(Throughput::Elements(d.flops()));
        group.bench_function(BenchmarkId::new("forward", &name), |b| {
            b.iter(|| done(cpu.attention(&d, qkv.as_slice(), Cpu::all_mut(&mut y), Cpu::all_mut(&mut lse))));
        });
        group.throughput(Throughput::Elements(d.flops() / 2 * 5));
        group.bench_function(BenchmarkId::new("backward", &name), |b| {
            b.iter(|| {
                let (qkv, y, lse, dy) = (qkv.as_slice(), y.as_slice(), lse.as_slice(), dy.as_slice());
                done(cpu.attention_backward(&d, qkv, y, lse, dy, Cpu::all_mut(&mut dqkv)));
            });
        });
    }
    Ok(())
}

fn adam(c: &mut Criterion) -> Result<()> {
    let cpu = cpu()?;
    let scalars = AdamParams { ema_decay: 0.999, ..AdamParams::new(1e-3, 1e-4, true, 1) }.scalars()?;
    let scalars: [f32; AdamScalars::LEN] = bytemuck::cast(scalars);
    let grads = filled(&cpu, PARAMETERS)?;
    let [mut params, mut m, mut v, mut ema] =
        [filled(&cpu, PARAMETERS)?, filled(&cpu, PARAMETERS)?, cpu.alloc(PARAMETERS)?, filled(&cpu, PARAMETERS)?];
    v.as_mut_slice().fill(0.1);
    let mut group = c.benchmark_group("adam");
    group.throughput(Throughput::Bytes(9 * 4 * PARAMETERS as u64));
    group.bench_function(BenchmarkId::from_parameter(PARAMETERS), |b| {
        b.iter(|| {
            let state = AdamState {
                params: Cpu::all_mut(&mut params),
                grads: grads.as_slice(),
                m: Cpu::all_mut(&mut m),
                v: Cpu::all_mut(&mut v),
                ema: Some(Cpu::all_mut(&mut ema)),
                clip: None,
            };
            done(cpu.adam_step(&scalars, None, state));
        });
    });
    Ok(())
}

fn resizes(c: &mut Criterion) -> Result<()> {
    let cpu = cpu()?;
    for [side, channels] in [[64, 32], [16, 96]] {
        let d = ResampleDims { n: BATCH, h: side, w: side, c: channels };
        let (large, small) = (filled(&cpu, d.large())?, filled(&cpu, d.small())?);
        let (mut to_large, mut to_small) = (cpu.alloc(d.large())?, cpu.alloc(d.small())?);
        let (large, small) = (large.as_slice(), small.as_slice());
        let name = format!("{BATCH}x{side}x{side} c{channels}");
        let mut group = c.benchmark_group("resize");
        group.throughput(Throughput::Bytes(4 * (d.large() + d.small()) as u64));
        group.bench_function(BenchmarkId::new("bilinear up", &name), |b| {
            b.iter(|| done(cpu.upsample_forward(&d, small, Cpu::all_mut(&mut to_large), None)));
        });
        group.bench_function(BenchmarkId::new("bilinear up, backward", &name), |b| {
            b.iter(|| done(cpu.upsample_backward(&d, large, Cpu::all_mut(&mut to_small))));
        });
        group.bench_function(BenchmarkId::new("mean of four", &name), |b| {
            b.iter(|| done(cpu.avg_pool_forward(&d, large, Cpu::all_mut(&mut to_small), None)));
        });
        group.bench_function(BenchmarkId::new("nearest up", &name), |b| {
            b.iter(|| done(cpu.double_forward(&d, small, Cpu::all_mut(&mut to_large), None)));
        });
    }
    Ok(())
}

/// All of them.
fn all(c: &mut Criterion) {
    for group in [convolutions, group_norms, attentions, adam, resizes] {
        done(group(c));
    }
}

/// Short: a change of a kernel shows within a minute.
fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
}

criterion_group! { name = operations; config = settings(); targets = all }
criterion_main!(operations);
