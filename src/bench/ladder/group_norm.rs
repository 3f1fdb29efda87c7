//! Group norm with SiLU, forward: `kernels/ladder/group_norm_*.cu`, then what the engine does instead.

use bytemuck::{Pod, Zeroable};

use super::predict::{Cost, h200};
use super::{Extents, Rung, Steps, countable, downloaded, error_of_ends, expect, normals, uploaded, wide};
use crate::bench::probe::error_of;
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Gpu, GpuBuffer, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::conv::reference::{silu, stats};
use crate::ops::group_norm::{GroupNorm, GroupNormDims, NormParams, reference};

/// The rungs.
const RUNGS: [Rung; 6] = [
    Rung { name: "group_norm_0", idea: "a thread a group", file: "ladder/group_norm_0_naive.cu" },
    Rung { name: "group_norm_1", idea: "a block a group", file: "ladder/group_norm_1_block.cu" },
    Rung { name: "group_norm_2", idea: "lanes are channels", file: "ladder/group_norm_2_vectors.cu" },
    Rung { name: "group_norm_3", idea: "one pass, merged", file: "ladder/group_norm_3_one_pass.cu" },
    Rung { name: "group_norm_4", idea: "producer's statistics", file: "ladder/group_norm_4_apply.cu" },
    Rung { name: "group_norm_5", idea: "the engine's: no kernel", file: "group_norm.cu" },
];

/// `LadderNormArgs` of `kernels/ladder/group_norm_args.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: DevicePtr,
    gamma: DevicePtr,
    beta: DevicePtr,
    stats: DevicePtr,
    y: DevicePtr,
    eps: f32,
    n: u32,
    pixels: u32,
    c: u32,
    groups: u32,
    unused: u32,
}

const EPS: f64 = 1e-5;

/// Extents of a group norm of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormExtents {
    /// Images.
    pub n: u32,
    /// Pixels of an image.
    pub pixels: u32,
    /// Channels.
    pub c: u32,
    /// Groups; a divisor of the channels.
    pub groups: u32,
}

impl NormExtents {
    fn dims(&self) -> GroupNormDims {
        let NormExtents { n, pixels, c, groups } = *self;
        GroupNormDims { eps: EPS, n, pixels, c0: c, c1: 0, groups, silu: 1 }
    }
}

impl Extents for NormExtents {
    const OPERATION: &'static str = "group_norm";
    const RUNGS: &'static [Rung] = &RUNGS;

    fn named(small: bool, batch: Option<u32>) -> Self {
        let (n, pixels) = if small { (1, 16 * 16) } else { (64, 64 * 64) };
        NormExtents { n: batch.unwrap_or(n), pixels, c: 64, groups: 32 }
    }

    fn shape(&self) -> String {
        format!("{}x{}x{} groups {}", self.n, self.pixels, self.c, self.groups)
    }

    fn work(&self, rung: usize) -> (u64, u64) {
        let d = self.dims();
        let bytes = match rung {
            // Statistics in, coefficients out.
            5 => 4 * (2 * d.affine_len() + 2 * d.c() + d.coefficients_len()),
            _ => 2 * 2 * d.len0() + 4 * 2 * d.c() + if rung == 4 { 8 * d.affine_len() } else { 0 },
        };
        (0, bytes as u64)
    }

    fn cost(&self, rung: usize) -> Cost {
        let memory = self.work(rung).1 as f64;
        let [n, pixels, c, groups] = [self.n, self.pixels, self.c, self.groups].map(f64::from);
        let x = 2.0 * n * pixels * c;
        let from_memory = x / h200::MEMORY;
        match rung {
            // Every pixel of each of three passes is waited for.
            0 => Cost { memory, waits: 3.0 * pixels * h200::LATENCY, ..Cost::default() },
            1 => {
                let loads = n * groups * pixels / 32.0 * (c / groups) * 4.0; // of warps: three reads and a write
                let sectors = n * groups * pixels * 4.0 * 32.0;
                Cost { memory, l2: sectors, accesses: 32.0 * loads, ..Cost::default() }
            }
            // The first pass reads from memory, those after it from L2; the last reads and writes there.
            2 => Cost { memory, waits: from_memory + 3.0 * x / h200::L2, ..Cost::default() },
            3 => Cost { memory, waits: from_memory + 2.0 * x / h200::L2, ..Cost::default() },
            4 => Cost { memory, l2: memory, ..Cost::default() },
            _ => Cost { memory, waits: h200::KERNEL, ..Cost::default() },
        }
    }
}

/// The norm with its operands.
pub struct NormSteps<L: Launcher> {
    d: NormExtents,
    x_values: Vec<f32>,
    gamma_values: Vec<f32>,
    beta_values: Vec<f32>,
    x: GpuBuffer<L>,
    gamma: GpuBuffer<L>,
    beta: GpuBuffer<L>,
    stats: GpuBuffer<L>,
    coefficients: GpuBuffer<L>,
    y: GpuBuffer<L>,
}

impl<L: Launcher> NormSteps<L> {
    fn launch(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()> {
        let NormExtents { n, pixels, c, groups } = self.d;
        let of = &RUNGS[rung];
        expect(of, countable(&[n, pixels, c]) && n < 1 << 16, "fewer than 2^31 elements", &self.d)?;
        let all = Gpu::<L>::all;
        let args = Args {
            x: all(&self.x).ptr(),
            gamma: all(&self.gamma).ptr(),
            beta: all(&self.beta).ptr(),
            stats: all(&self.stats).ptr(),
            y: all(&self.y).ptr(),
            eps: EPS as f32,
            n,
            pixels,
            c,
            groups,
            unused: 0,
        };
        let slabs = || {
            let fits = c.is_multiple_of(32) && 32u32.is_multiple_of(c / groups);
            expect(of, fits, "multiples of 32 channels, in groups that divide 32", &self.d)
        };
        match rung {
            0 => {
                let grid = [blocks(n as usize * groups as usize, 128), 1, 1];
                gpu.launch(&kernels::LADDER_GROUP_NORM_0, grid, [128, 1, 1], 0, &args)
            }
            1 => gpu.launch(&kernels::LADDER_GROUP_NORM_1, [n * groups, 1, 1], [256, 1, 1], 0, &args),
            2 => {
                slabs()?;
                gpu.launch(&kernels::LADDER_GROUP_NORM_2, [n * (c / 32), 1, 1], [512, 1, 1], 0, &args)
            }
            3 => {
                slabs()?;
                gpu.launch(&kernels::LADDER_GROUP_NORM_3, [n * (c / 32), 1, 1], [512, 1, 1], 0, &args)
            }
            4 => {
                expect(of, c.is_multiple_of(8) && c <= 1024, "multiples of 8 channels, at most 1024", &self.d)?;
                let vectors = pixels as usize * (c as usize / 8);
                let grid = [blocks(vectors, kernels::LADDER_GROUP_NORM_4_VECTORS as usize), n, 1];
                gpu.launch(&kernels::LADDER_GROUP_NORM_4, grid, [256, 1, 1], 0, &args)
            }
            _ => {
                let params = NormParams { gamma: all(&self.gamma), beta: all(&self.beta), modulation: None };
                let coefficients = Gpu::<L>::all_mut(&mut self.coefficients);
                gpu.group_norm_coefficients(&self.d.dims(), all(&self.stats), None, params, coefficients)
            }
        }
    }

    /// x of an image.
    fn image(&self, image: usize) -> Vec<f64> {
        let len = self.d.pixels as usize * self.d.c as usize;
        wide(&self.x_values[image * len..][..len])
    }

    /// y of an image in float64.
    fn truth(&self, image: usize) -> Vec<f64> {
        let x = self.image(image);
        let (gamma, beta) = (wide(&self.gamma_values), wide(&self.beta_values));
        let input = reference::Input { x: &x, gamma: &gamma, beta: &beta, modulation: None, mask: None };
        reference::forward(&GroupNormDims { n: 1, ..self.d.dims() }, &input)
    }

    /// Of what the engine's coefficients make of x in float64, as the prologue of a convolution does.
    fn error_of_coefficients(&self, gpu: &Gpu<L>) -> Result<f64> {
        let (c, d) = (self.d.c as usize, self.d.dims());
        let numbers = wide(&downloaded(gpu, Gpu::<L>::all(&self.coefficients))?);
        let (scales, shifts) = numbers.split_at(d.affine_len());
        let of = |image: usize| {
            let (scale, shift) = (&scales[image * c..], &shifts[image * c..]);
            let apply = |(i, x): (usize, f64)| silu(scale[i % c] * x + shift[i % c]);
            let got: Vec<f64> = self.image(image).into_iter().enumerate().map(apply).collect();
            error_of(&got, &self.truth(image)).unwrap_or(f64::INFINITY)
        };
        Ok(of(0).max(of(self.d.n as usize - 1)))
    }
}

impl<L: Launcher> Steps<L> for NormSteps<L> {
    type Extents = NormExtents;

    fn new(gpu: &Gpu<L>, d: NormExtents) -> Result<Self> {
        let fits = countable(&[d.n, d.pixels, d.c]) && d.groups > 0 && d.c.is_multiple_of(d.groups);
        expect(&RUNGS[0], fits, "channels that the groups divide, fewer than 2^31 elements", &d)?;
        let (dims, c) = (d.dims(), d.c as usize);
        // A mean beside the spread, so that it matters to subtract it.
        let narrow = |v: &f32| half::bf16::from_f32(v + 1.0).to_f32();
        let x: Vec<f32> = normals(0, dims.len0(), false).iter().map(narrow).collect();
        let (gamma, beta) = (normals(1, c, false), normals(2, c, false));
        let of_channels = stats(&wide(&x), d.n as usize, d.pixels as usize, c);
        let of_channels: Vec<f32> = of_channels.into_iter().map(|v| v as f32).collect();
        Ok(NormSteps {
            d,
            x: uploaded(gpu, &x, true)?,
            gamma: uploaded(gpu, &gamma, false)?,
            beta: uploaded(gpu, &beta, false)?,
            stats: uploaded(gpu, &of_channels, false)?,
            coefficients: gpu.alloc(dims.coefficients_len())?,
            y: gpu.alloc_activation(dims.len0())?,
            x_values: x,
            gamma_values: gamma,
            beta_values: beta,
        })
    }

    fn run(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()> {
        self.launch(gpu, rung)
    }

    fn error(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<f64> {
        gpu.fill(Gpu::<L>::all_mut(&mut self.y), f32::NAN)?;
        gpu.fill(Gpu::<L>::all_mut(&mut self.coefficients), f32::NAN)?;
        self.launch(gpu, rung)?;
        if rung == RUNGS.len() - 1 {
            return self.error_of_coefficients(gpu);
        }
        error_of_ends(gpu, &self.y, self.d.n as usize, |image| self.truth(image))
    }

    fn result(&self, gpu: &Gpu<L>) -> Result<Vec<f32>> {
        downloaded(gpu, Gpu::<L>::all(&self.y))
    }
}
