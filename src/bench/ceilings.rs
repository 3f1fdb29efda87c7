//! What a device could do at best: the lines of the roofline (Williams, Waterman and Patterson 2009).
//!
//! On a CPU all are measured: multiply-adds that never leave the registers, with the vectors that the kernels use, on one core and on all;
//! a copy and a triad (a = b + s c) of 64 MiB arrays on all cores. On a GPU the bandwidth is that of the driver's copy between two blocks
//! of device memory, measured; there is no kernel here that reaches the peak of its tensor cores, so that figure is the published one, found by
//! the GPU's name. The simulator has none: its times say nothing about a GPU.

use std::hint::black_box;
use std::time::Instant;

use serde_json::{Value, json};

use super::probe::Probe;
use crate::device::Memory;
use crate::device::cpu::Cpu;
use crate::device::cpu::simd::{self, Kernel, Simd};
use crate::device::gpu::Arithmetic;
use crate::error::Result;
use crate::ops::Backend;

/// Elements of the arrays that bandwidth is measured with.
const ARRAY: usize = 16 << 20;
/// Times that each ceiling is measured; the best counts, since a ceiling is what is possible.
const TRIES: usize = 5;

/// Ceilings, where they are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ceilings {
    /// FLOP/s of one core.
    pub flops_one: Option<f64>,
    /// FLOP/s of the whole device.
    pub flops: Option<f64>,
    /// Bytes read and written a second by a copy.
    pub copy: Option<f64>,
    /// The same by a triad.
    pub triad: Option<f64>,
    /// Where the figures come from.
    pub source: String,
}

impl Ceilings {
    /// Bytes a second: of the better of copy and triad.
    pub fn bandwidth(&self) -> Option<f64> {
        match (self.copy, self.triad) {
            (Some(copy), Some(triad)) => Some(copy.max(triad)),
            (copy, triad) => copy.or(triad),
        }
    }

    /// Seconds of so many operations and bytes at best, and which of the two it is that takes them.
    pub fn predict(&self, flops: u64, bytes: u64) -> Option<(f64, &'static str)> {
        let (compute, memory) = (flops as f64 / self.flops?, bytes as f64 / self.bandwidth()?);
        Some(if compute > memory { (compute, "compute") } else { (memory, "memory") })
    }

    /// As in result files.
    pub fn json(&self) -> Value {
        json!({
            "flops_one_core": self.flops_one, "flops": self.flops, "copy_bytes_per_second": self.copy,
            "triad_bytes_per_second": self.triad, "source": self.source,
        })
    }

    /// A line for a terminal.
    pub fn line(&self) -> String {
        let giga = |v: Option<f64>| v.map_or_else(|| "?".into(), |v| format!("{:.0}", v / 1e9));
        match (self.flops, self.flops_one) {
            (None, _) => format!("ceilings: {}", self.source),
            (_, Some(_)) => format!(
                "ceilings: {} GFLOP/s, one core {}; copy {} GB/s, triad {} ({})",
                giga(self.flops),
                giga(self.flops_one),
                giga(self.copy),
                giga(self.triad),
                self.source
            ),
            _ => format!("ceilings: {} GFLOP/s; copy {} GB/s ({})", giga(self.flops), giga(self.copy), self.source),
        }
    }
}

/// Chains of multiply-adds in registers; returns something of all of them.
struct Chains {
    rounds: usize,
}

/// Independent chains: more than a core's units times their latency, fewer than its registers.
const CHAINS: usize = 12;

impl Kernel for Chains {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: `dispatch` runs this where the instruction set is; `lanes` holds 16 elements, as many as any vector.
        unsafe {
            let (factor, term) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
            let mut sums = [S::splat(black_box(1.0)); CHAINS];
            for _ in 0..self.rounds {
                for sum in &mut sums {
                    *sum = S::fma(*sum, factor, term);
                }
            }
            let mut all = sums[0];
            for sum in &sums[1..] {
                all = S::add(all, *sum);
            }
            let mut lanes = [0.0f32; 16];
            S::store(lanes.as_mut_ptr(), all);
            lanes[0]
        }
    }
}

/// FLOP/s of `threads` threads that only multiply and add.
fn peak(cpu: &Cpu, threads: usize) -> f64 {
    let isa = cpu.isa();
    // A hundredth of a second at some GFLOP/s a thread, less where the compiler makes no vectors.
    let rounds = if isa == simd::Isa::Portable { 200_000 } else { 2_000_000 };
    let flops = (2 * rounds * CHAINS * isa.lanes() * threads) as f64;
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        let began = Instant::now();
        cpu.for_each((0..threads).collect(), |_| {
            black_box(simd::dispatch(isa, Chains { rounds }));
        });
        best = best.min(began.elapsed().as_secs_f64());
    }
    flops / best
}

/// Bytes a second of `pass` over pieces of three arrays, which moves `arrays` of them.
fn bandwidth(cpu: &Cpu, arrays: usize, pass: impl Fn(&mut [f32], &[f32], &[f32]) + Sync + Send) -> Result<f64> {
    let mut of = [cpu.alloc(ARRAY)?, cpu.alloc(ARRAY)?, cpu.alloc(ARRAY)?];
    for (i, array) in of.iter_mut().enumerate() {
        cpu.fill(Cpu::all_mut(array), i as f32)?;
    }
    let [a, b, c] = &mut of;
    let piece = ARRAY.div_ceil(4 * cpu.threads());
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        let inputs = b.as_slice().chunks(piece).zip(c.as_slice().chunks(piece));
        let jobs: Vec<_> = a.as_mut_slice().chunks_mut(piece).zip(inputs).collect();
        let began = Instant::now();
        cpu.for_each_vectorized(jobs, |(a, (b, c))| pass(a, b, c));
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok((arrays * ARRAY * size_of::<f32>()) as f64 / best)
}

/// Of a CPU, measured.
///
/// # Errors
/// Out of memory.
pub fn of_cpu(cpu: &Cpu) -> Result<Ceilings> {
    let copy = bandwidth(cpu, 2, |a, b, _| a.copy_from_slice(b))?;
    let triad = bandwidth(cpu, 3, |a, b, c| {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + 3.0 * c;
        }
    })?;
    let one = peak(cpu, 1);
    Ok(Ceilings {
        flops_one: Some(one),
        // Less than one core has only a machine on which others are at work.
        flops: Some(peak(cpu, cpu.threads()).max(one)),
        copy: Some(copy),
        triad: Some(triad),
        source: format!("measured, {}, {} threads", cpu.isa(), cpu.threads()),
    })
}

/// Published dense peaks of tensor cores, TFLOP/s in bf16 with float32 sums and in tf32, by part of the GPU's name; from NVIDIA's data sheets.
const PUBLISHED: &[(&str, f64, f64)] = &[
    ("H200", 989.4, 494.7),
    ("H100 PCIe", 756.0, 378.0),
    ("H100", 989.4, 494.7),
    ("A100", 312.0, 156.0),
    ("L40S", 362.0, 183.0),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
];

/// Of a GPU called `name`: the bandwidth measured, the peak published.
///
/// # Errors
/// Out of memory, or the device failed.
pub fn of_gpu<B: Backend>(backend: &B, name: &str, arithmetic: Arithmetic) -> Result<Ceilings> {
    let probe = Probe::new(backend)?;
    let (from, mut to) = (backend.alloc(4 * ARRAY)?, backend.alloc(4 * ARRAY)?);
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        probe.wait()?;
        let began = Instant::now();
        for _ in 0..10 {
            backend.copy(B::all(&from), B::all_mut(&mut to))?;
        }
        probe.wait()?;
        best = best.min(began.elapsed().as_secs_f64() / 10.0);
    }
    let copy = Some((8 * ARRAY * size_of::<f32>()) as f64 / best);
    let Some((part, bf16, tf32)) = PUBLISHED.iter().find(|(part, ..)| name.contains(part)) else {
        let source = format!("copy measured; no published peak is known here for {name}");
        return Ok(Ceilings { copy, source, ..Ceilings::default() });
    };
    let (peak, how) = match arithmetic {
        Arithmetic::Bf16 => (*bf16, "bf16"),
        Arithmetic::Tf32 => (*tf32, "tf32"),
        Arithmetic::Fp32 => (tf32 / 3.0, "tf32 over three: fp32 is three tf32 products"),
    };
    let source = format!("copy measured; peak published for {part}, {how}");
    Ok(Ceilings { flops: Some(peak * 1e12), copy, source, ..Ceilings::default() })
}

/// Of a device whose times mean nothing.
pub fn none(why: &str) -> Ceilings {
    Ceilings { source: why.to_string(), ..Ceilings::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_the_two_is_predicted() {
        let of = Ceilings { flops: Some(100.0), copy: Some(10.0), triad: Some(20.0), ..Ceilings::default() };
        assert_eq!(of.predict(1000, 20), Some((10.0, "compute")));
        assert_eq!(of.predict(0, 20), Some((1.0, "memory")));
        assert_eq!(none("x").predict(1, 1), None);
    }

    #[test]
    fn a_cpu_has_ceilings() {
        let cpu = Cpu::new(1).unwrap();
        let of = of_cpu(&cpu).unwrap();
        for value in [of.flops_one, of.flops, of.copy, of.triad] {
            assert!(value.is_some_and(|v| v.is_finite() && v > 1e8), "{of:?}");
        }
    }
}
