//! The 3x3 convolution: `kernels/ladder/conv3x3_*.cu`, then the engine's `kernels/conv.cu`.

use bytemuck::{Pod, Zeroable};

use super::predict::Cost;
use super::{Extents, Rung, Steps, countable, downloaded, error_of_ends, expect, normals, uploaded, wide};
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Gpu, GpuBuffer, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::conv::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, reference};

/// The rungs.
const RUNGS: [Rung; 6] = [
    Rung { name: "conv3x3_0", idea: "a thread an output", file: "ladder/conv3x3_0_naive.cu" },
    Rung { name: "conv3x3_1", idea: "lanes are channels", file: "ladder/conv3x3_1_vectors.cu" },
    Rung { name: "conv3x3_2", idea: "halo tile, reuse", file: "ladder/conv3x3_2_halo.cu" },
    Rung { name: "conv3x3_3", idea: "tensor cores", file: "ladder/conv3x3_3_tensor.cu" },
    Rung { name: "conv3x3_4", idea: "copies overlap", file: "ladder/conv3x3_4_pipeline.cu" },
    Rung { name: "conv3x3_5", idea: "the engine's: fused", file: "conv.cu" },
];

/// `LadderConvArgs` of `kernels/ladder/conv3x3_args.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: DevicePtr,
    w: DevicePtr,
    y: DevicePtr,
    n: u32,
    height: u32,
    width: u32,
    c: u32,
    k: u32,
    unused: u32,
}

/// Extents of a 3x3 convolution of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvExtents {
    /// Images.
    pub n: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
    /// Input channels.
    pub c: u32,
    /// Output channels.
    pub k: u32,
}

impl ConvExtents {
    fn dims(&self) -> ConvDims {
        ConvDims { n: self.n, h: self.h, w: self.w, c0: self.c, c1: 0, r0: 0, r1: 0, k: self.k, side: 3 }
    }
}

impl Extents for ConvExtents {
    const OPERATION: &'static str = "conv3x3";
    const RUNGS: &'static [Rung] = &RUNGS;

    fn named(small: bool, batch: Option<u32>) -> Self {
        let (n, side) = if small { (1, 16) } else { (64, 64) };
        ConvExtents { n: batch.unwrap_or(n), h: side, w: side, c: 64, k: 32 }
    }

    fn shape(&self) -> String {
        format!("{}x{}x{} {}>{}", self.n, self.h, self.w, self.c, self.k)
    }

    fn work(&self, _rung: usize) -> (u64, u64) {
        let d = self.dims();
        let activations = d.pixels() * (self.c + self.k) as usize;
        (d.flops(), 2 * (activations + 9 * d.c() * self.k as usize) as u64)
    }

    fn cost(&self, rung: usize) -> Cost {
        let (flops, bytes) = self.work(rung);
        let memory = bytes as f64;
        let [h, w, n] = [self.h, self.w, self.n].map(f64::from);
        let (c, k) = (f64::from(self.c), f64::from(self.k));
        let products = flops as f64 / 2.0;
        let of_warps = products / 32.0; // multiply-adds of warps
        let result = 2.0 * n * h * w * k;
        // Tiles of so many rows and columns, each by so many output channels: how many blocks, and bytes that one brings.
        let tiles = |rows: f64, cols: f64, channels: f64| {
            let blocks = (h / rows).ceil() * (w / cols).ceil() * n * (k / channels).ceil();
            (blocks, 2.0 * c * ((rows + 2.0) * (cols + 2.0) + 9.0 * channels))
        };
        match rung {
            0 => Cost { memory, accesses: 33.0 * of_warps, ffma: flops as f64, ..Cost::default() },
            1 => Cost { memory, accesses: 9.0 / 8.0 * of_warps, ffma: flops as f64, ..Cost::default() },
            2 => {
                let (blocks, brought) = tiles(8.0, 8.0, 32.0);
                let (l2, accesses) = (blocks * brought + result, 22.0 / 96.0 * of_warps);
                Cost {
                    memory,
                    l2,
                    accesses,
                    instructions: 130.0 / 96.0 * of_warps,
                    ffma: flops as f64,
                    ..Cost::default()
                }
            }
            3 | 4 => {
                let (blocks, brought) = tiles(8.0, 16.0, 32.0);
                // Of a warp's 32 pixels by 32 channels, 16 deep: a ninth of 12 matrices of pixels (4 rows at 3 columns: row 1 of a tap is row
                // 0 of the tap below, which the compiler sees), 4 accesses each, 16 where they conflict; and 2 of the filter.
                let of_step = if rung == 3 { 12.0 / 9.0 * 16.0 + 8.0 } else { 12.0 / 9.0 * 4.0 + 8.0 };
                let accesses = of_step * products / 16384.0 + blocks * brought / 128.0;
                Cost { memory, l2: blocks * brought + result, accesses, mma: flops as f64, ..Cost::default() }
            }
            _ => {
                // As `src/ops/conv/gpu/forward.rs` chooses for large pictures.
                let (cols, channels) = if (k / 32.0).ceil() % 2.0 == 1.0 { (16.0, 32.0) } else { (8.0, 64.0) };
                let (blocks, brought) = tiles(16.0, cols, channels);
                // The prologue reads and writes its tile once more, the epilogue passes the results through shared memory.
                let prologue = 2.0 * 2.0 * c * 18.0 * (cols + 2.0);
                let epilogue = 4.0 * 4.0 * 16.0 * cols * channels;
                let accesses = 24.0 * products / 32768.0 + blocks * (brought + prologue + epilogue) / 128.0;
                Cost { memory, l2: blocks * brought + result, accesses, mma: flops as f64, ..Cost::default() }
            }
        }
    }
}

/// The convolution with its operands.
pub struct ConvSteps<L: Launcher> {
    d: ConvExtents,
    /// x, and the filter in float64.
    x_values: Vec<f32>,
    w_values: Vec<f64>,
    /// Scale and shift of the input's channels, bias.
    coefficients: [Vec<f32>; 3],
    x: GpuBuffer<L>,
    /// [9, C, K].
    w: GpuBuffer<L>,
    packed: GpuBuffer<L>,
    on_device: [GpuBuffer<L>; 3],
    y: GpuBuffer<L>,
    stats: GpuBuffer<L>,
}

impl<L: Launcher> ConvSteps<L> {
    fn launch(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()> {
        let ConvExtents { n, h, w: width, c, k } = self.d;
        let of = &RUNGS[rung];
        let countable = countable(&[n, h, width, c.max(k)]) && countable(&[9, c, k]) && k < 1 << 16;
        expect(of, countable, "fewer than 2^31 elements", &self.d)?;
        let eights = c.is_multiple_of(8) && k.is_multiple_of(8);
        let all = Gpu::<L>::all;
        let args = |w: &GpuBuffer<L>, y: DevicePtr| Args {
            x: all(&self.x).ptr(),
            w: all(w).ptr(),
            y,
            n,
            height: h,
            width,
            c,
            k,
            unused: 0,
        };
        let pixels = self.d.dims().pixels();
        let tiles = |rows: u32, cols: u32| [h.div_ceil(rows) * width.div_ceil(cols) * n, k.div_ceil(32), 1];
        let (y, packed) = (all(&self.y).ptr(), &self.packed);
        match rung {
            0 => {
                let grid = [blocks(pixels, 256), k, 1];
                gpu.launch(&kernels::LADDER_CONV3X3_0, grid, [256, 1, 1], 0, &args(&self.w, y))
            }
            1 => {
                expect(of, c.is_multiple_of(8), "multiples of 8 input channels", &self.d)?;
                let grid = [blocks(pixels, 8), k.div_ceil(32), 1];
                gpu.launch(&kernels::LADDER_CONV3X3_1, grid, [256, 1, 1], 0, &args(&self.w, y))
            }
            2 => {
                expect(of, eights, "multiples of 8 channels", &self.d)?;
                gpu.launch(&kernels::LADDER_CONV3X3_2, tiles(8, 8), [256, 1, 1], 0, &args(&self.w, y))
            }
            3 => {
                expect(of, eights, "multiples of 8 channels", &self.d)?;
                gpu.launch(&kernels::LADDER_CONV3X3_3, tiles(8, 16), [128, 1, 1], 0, &args(packed, y))
            }
            4 => {
                expect(of, eights, "multiples of 8 channels", &self.d)?;
                let shared = kernels::LADDER_CONV3X3_4_SHARED;
                gpu.launch(&kernels::LADDER_CONV3X3_4, tiles(8, 16), [128, 1, 1], shared, &args(packed, y))
            }
            _ => {
                let [scale, shift, bias] = self.on_device.each_ref().map(all);
                let prologue = Prologue { affine: Some((scale, shift)), silu: true };
                let epilogue = Epilogue { bias: Some(bias), ..Epilogue::default() };
                let y0 = Gpu::<L>::all_mut(&mut self.y);
                let stats = Some(Gpu::<L>::all_mut(&mut self.stats));
                let out = Output { y0, y1: None, k0: k as usize, stats };
                gpu.conv(&self.d.dims(), Operand::one(all(&self.x)), prologue, None, all(packed), epilogue, out)
            }
        }
    }

    /// An image in float64, by what the rung computes.
    fn truth(&self, rung: usize, image: usize) -> Vec<f64> {
        let d = ConvDims { n: 1, ..self.d.dims() };
        let len = d.pixels() * d.c();
        let x = wide(&self.x_values[image * len..][..len]);
        let [scale, shift, bias] = self.coefficients.each_ref().map(|values| wide(values));
        let fused = rung == RUNGS.len() - 1;
        let prologue = if fused {
            reference::Prologue { affine: Some((&scale, &shift)), silu: true }
        } else {
            reference::Prologue::default()
        };
        let bias = fused.then_some(&bias[..]);
        let epilogue = reference::Epilogue { bias, k0: d.k as usize, ..reference::Epilogue::default() };
        let filter = reference::Filter::plain(&self.w_values, d.c());
        reference::conv(&d, Direction::Forward, reference::Operand::one(&x), prologue, None, filter, epilogue)
    }
}

impl<L: Launcher> Steps<L> for ConvSteps<L> {
    type Extents = ConvExtents;

    fn new(gpu: &Gpu<L>, d: ConvExtents) -> Result<Self> {
        let dims = d.dims();
        dims.validate()?;
        let (c, k) = (dims.c(), d.k as usize);
        let x = normals(0, dims.pixels() * c, true);
        // Sums of the order of 1.
        let size = 1.0 / (9.0 * c as f32).sqrt();
        let w: Vec<f32> =
            normals(1, 9 * c * k, false).iter().map(|v| half::bf16::from_f32(v * size).to_f32()).collect();
        let coefficients = [normals(2, c, false), normals(3, c, false), normals(4, k, false)];
        let plain = uploaded(gpu, &w, false)?;
        let mut packed = gpu.alloc_activation(gpu.conv_packed_len(&dims))?;
        let filter = Filter { w: Gpu::<L>::all(&plain), w_res: None, forward_c: c, scale: None };
        gpu.conv_pack(&dims, Direction::Forward, filter, Gpu::<L>::all_mut(&mut packed))?;
        let [scale, shift, bias] = &coefficients;
        let on_device = [uploaded(gpu, scale, false)?, uploaded(gpu, shift, false)?, uploaded(gpu, bias, false)?];
        Ok(ConvSteps {
            d,
            x: uploaded(gpu, &x, true)?,
            x_values: x,
            w_values: wide(&w),
            w: uploaded(gpu, &w, true)?,
            packed,
            on_device,
            coefficients,
            y: gpu.alloc_activation(dims.pixels() * k)?,
            stats: gpu.alloc(2 * d.n as usize * k)?,
        })
    }

    fn run(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()> {
        self.launch(gpu, rung)
    }

    fn error(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<f64> {
        gpu.fill(Gpu::<L>::all_mut(&mut self.y), f32::NAN)?;
        self.launch(gpu, rung)?;
        error_of_ends(gpu, &self.y, self.d.n as usize, |image| self.truth(rung, image))
    }

    fn result(&self, gpu: &Gpu<L>) -> Result<Vec<f32>> {
        downloaded(gpu, Gpu::<L>::all(&self.y))
    }
}
