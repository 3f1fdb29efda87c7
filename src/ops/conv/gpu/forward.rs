//! The product and its epilogue: choice of kernel and tile, and the launch.
//!
//! The tile depends on the picture and the output channels alone, not on the batch or the device: an image's numbers, statistics
//! included, are the same whatever stands beside it.

use bytemuck::{Pod, Zeroable};

use super::super::{ConvDims, Epilogue, Operand, Output, Prologue};
use super::{expect, expect_dtype, pack, ptr, shape_error};
use crate::device::Memory;
use crate::device::gpu::{Arithmetic, Dtype, Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::{DevicePtr, Launcher};
use crate::error::Result;
use crate::kernels::{self, KernelEntry};

/// Mirror of the kernels' parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ConvArgs {
    x0: DevicePtr,
    x1: DevicePtr,
    scale: DevicePtr,
    shift: DevicePtr,
    res0: DevicePtr,
    res1: DevicePtr,
    w: DevicePtr,
    bias: DevicePtr,
    bias_res: DevicePtr,
    h: DevicePtr,
    v0: DevicePtr,
    v1: DevicePtr,
    a: DevicePtr,
    b: DevicePtr,
    add0: DevicePtr,
    add1: DevicePtr,
    y0: DevicePtr,
    y1: DevicePtr,
    stats: DevicePtr,
    n: u32,
    height: u32,
    width: u32,
    c0: u32,
    c1: u32,
    r0: u32,
    r1: u32,
    k: u32,
    k0: u32,
    side: u32,
    silu: u32,
    x1_constant: u32,
    res1_constant: u32,
    log_rows: u32,
    log_cols: u32,
    tiles_x: u32,
    tiles_y: u32,
    stages: u32,
    affine_images: u32,
    bias_images: u32,
}

/// Mirror of the merge's parameter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ConvStatsMergeArgs {
    parts: DevicePtr,
    stats: DevicePtr,
    n: u32,
    k: u32,
    height: u32,
    width: u32,
    log_rows: u32,
    log_cols: u32,
    tiles_x: u32,
    tiles_y: u32,
}

/// A kernel and what its blocks make.
#[derive(Clone, Copy)]
struct Variant {
    kernel: &'static KernelEntry,
    pixels: u32,
    channels: u32,
    /// It runs on tensor cores: a pipeline in shared memory.
    tensor: bool,
}

/// Kernels of one arithmetic, by their blocks.
struct Variants {
    m256n32: &'static KernelEntry,
    m128n64: &'static KernelEntry,
    m64n64: &'static KernelEntry,
    m64n32: &'static KernelEntry,
}

static FP32: Variants = Variants {
    m256n32: &kernels::CONV_FWD_M256N32_F32,
    m128n64: &kernels::CONV_FWD_M128N64_F32,
    m64n64: &kernels::CONV_FWD_M64N64_F32,
    m64n32: &kernels::CONV_FWD_M64N32_F32,
};
static TF32: Variants = Variants {
    m256n32: &kernels::CONV_FWD_M256N32_TF32,
    m128n64: &kernels::CONV_FWD_M128N64_TF32,
    m64n64: &kernels::CONV_FWD_M64N64_TF32,
    m64n32: &kernels::CONV_FWD_M64N32_TF32,
};
static BF16: Variants = Variants {
    m256n32: &kernels::CONV_FWD_M256N32_BF16,
    m128n64: &kernels::CONV_FWD_M128N64_BF16,
    m64n64: &kernels::CONV_FWD_M64N64_BF16,
    m64n32: &kernels::CONV_FWD_M64N32_BF16,
};

/// Threads of every kernel here.
const THREADS: u32 = 128;
/// Shared memory that a block may have on every GPU that the kernels are compiled for (compute capability 8.6 gives the least).
const SHARED_LIMIT: usize = 99 << 10;
/// Channels below which tensor cores have nothing to do.
const TENSOR_CHANNELS: usize = 8;

/// The kernel for these element types.
fn variant(arithmetic: Arithmetic, d: &ConvDims, input: Dtype, output: Dtype) -> Result<Variant> {
    let direct = match (arithmetic, input, output) {
        (Arithmetic::Fp32 | Arithmetic::Tf32, Dtype::F32, Dtype::F32) => &kernels::CONV_DIRECT_F32,
        (Arithmetic::Bf16, Dtype::Bf16, Dtype::Bf16) => &kernels::CONV_DIRECT_BF16,
        (Arithmetic::Bf16, Dtype::F32, Dtype::Bf16) => &kernels::CONV_DIRECT_F32_TO_BF16,
        (Arithmetic::Bf16, Dtype::Bf16, Dtype::F32) => &kernels::CONV_DIRECT_BF16_TO_F32,
        _ => return shape_error(format!("from {input:?} to {output:?} in {arithmetic} arithmetic")),
    };
    if input != output || d.c() < TENSOR_CHANNELS || (d.k as usize) < TENSOR_CHANNELS {
        let (pixels, channels) = (kernels::CONV_DIRECT_PIXELS, kernels::CONV_DIRECT_CHANNELS);
        return Ok(Variant { kernel: direct, pixels, channels, tensor: false });
    }
    let of = match arithmetic {
        Arithmetic::Fp32 => &FP32,
        Arithmetic::Tf32 => &TF32,
        Arithmetic::Bf16 => &BF16,
    };
    // 64 channels use a loaded pixel twice, but waste a third or more of the work where only 1 or 3 packs of 32 are asked for. Small
    // pictures want small tiles, so that a batch makes enough blocks.
    let packs = d.k.div_ceil(kernels::CONV_PACK_CHANNELS);
    let picture = d.h as usize * d.w as usize;
    let (kernel, pixels, channels) = match (packs, picture) {
        (_, ..=16) => (of.m64n32, 64, 32),
        (1 | 3, ..=64) => (of.m64n32, 64, 32),
        (1 | 3, _) => (of.m256n32, 256, 32),
        (_, ..=64) => (of.m64n64, 64, 64),
        _ => (of.m128n64, 128, 64),
    };
    Ok(Variant { kernel, pixels, channels, tensor: true })
}

/// How the pictures are cut, and what it takes.
#[derive(Clone, Copy)]
struct Tiling {
    log_rows: u32,
    log_cols: u32,
    tiles_x: u32,
    tiles_y: u32,
    /// Blocks along pixels.
    pixel_tiles: usize,
    stages: u32,
    /// Bytes.
    shared: usize,
}

impl Tiling {
    fn new(variant: &Variant, d: &ConvDims, dtype: Dtype, log_rows: u32, log_cols: u32) -> Self {
        let (rows, cols) = (1u32 << log_rows, 1u32 << log_cols);
        let images = variant.pixels / (rows * cols);
        let (tiles_x, tiles_y) = (d.w.div_ceil(cols), d.h.div_ceil(rows));
        let (main, residual) = pack::chunks(dtype, d);
        let stages = (main + residual).min(2);
        Tiling {
            log_rows,
            log_cols,
            tiles_x,
            tiles_y,
            pixel_tiles: tiles_x as usize * tiles_y as usize * d.n.div_ceil(images) as usize,
            stages: stages as u32,
            shared: shared_bytes(variant, d, images * halo(d, rows, cols), stages),
        }
    }

    /// The tile that loads and computes the fewest pixels for an image; the widest among equals, whose rows are contiguous.
    fn choose(variant: &Variant, d: &ConvDims, dtype: Dtype) -> Result<Self> {
        let log_pixels = variant.pixels.ilog2();
        let mut best: Option<(u64, Tiling)> = None;
        for log_cols in [4, 3, 2] {
            for log_rows in (2..=log_pixels - log_cols).rev() {
                let tiling = Self::new(variant, d, dtype, log_rows, log_cols);
                let (rows, cols) = (1 << log_rows, 1 << log_cols);
                let per_tile = u64::from(rows * cols + halo(d, rows, cols));
                let cost = u64::from(tiling.tiles_x) * u64::from(tiling.tiles_y) * per_tile;
                if tiling.shared <= SHARED_LIMIT && best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, tiling));
                }
            }
        }
        match best {
            Some((_, tiling)) => Ok(tiling),
            None => shape_error(format!("no tile of {} pixels fits into shared memory", variant.pixels)),
        }
    }

    fn tiles(&self) -> usize {
        self.tiles_x as usize * self.tiles_y as usize
    }
}

/// Pixels of a tile's part of an image, with the halo.
fn halo(d: &ConvDims, rows: u32, cols: u32) -> u32 {
    let pad = d.side / 2;
    (rows + 2 * pad) * (cols + 2 * pad)
}

/// As the kernels lay it out: tables of pixels, then the pipeline, and in its place the results and their partial sums.
fn shared_bytes(variant: &Variant, d: &ConvDims, halo: u32, stages: usize) -> usize {
    let [pixels, channels, halo] = [variant.pixels, variant.channels, halo].map(|v| v as usize);
    let results = pixels * (channels + kernels::CONV_RESULT_PAD as usize) * 4;
    let after = results + 2 * kernels::CONV_STAT_SLOTS as usize * channels * 4;
    if !variant.tensor {
        return pixels * 8 + after;
    }
    let pitch = halo + (6 - halo % 4) % 4; // 2 modulo 4
    let tables = ((pixels + pitch) * 8).next_multiple_of(128);
    let input = pitch * (kernels::CONV_CHUNK_UNITS * kernels::CONV_UNIT_BYTES) as usize;
    let filter_row = channels / kernels::CONV_PACK_CHANNELS as usize * d.side as usize * pack::TAP_BYTES;
    tables + after.max(2 * filter_row + stages * input)
}

/// Launches the product. The lengths of the inputs and of the epilogue have been checked.
#[allow(clippy::too_many_arguments)] // the contract of `Conv::conv`, passed on
pub(super) fn forward<'a, L: Launcher>(
    gpu: &Gpu<L>,
    d: &ConvDims,
    input: Operand<'a, Gpu<L>>,
    prologue: Prologue<'a, Gpu<L>>,
    residual: Option<Operand<'a, Gpu<L>>>,
    packed: GpuSlice<'a>,
    epilogue: Epilogue<'a, Gpu<L>>,
    out: Output<'_, Gpu<L>>,
) -> Result<()> {
    let (k, k0) = (d.k as usize, out.k0);
    let shared = |view: &Option<GpuSliceMut<'_>>| view.as_ref().map(|view| view.ptr());
    let y1_len = out.y1.as_ref().map_or(0, GpuSliceMut::len);
    expect("y0", out.y0.len(), d.pixels() * k0)?;
    expect("y1", y1_len, d.pixels() * (k - k0))?;
    if let Some(stats) = &out.stats {
        expect("stats", stats.len(), d.n as usize * k * 2)?;
    }
    if i32::try_from(d.pixels()).is_err() {
        return shape_error(format!("{} pixels: the kernels count to 2^31", d.pixels()));
    }

    let (dtype, input_dtype, output_dtype) = (gpu.activation_dtype(), input.x0.dtype(), out.y0.dtype());
    let res0 = residual.map(|r| r.x0);
    let res1 = residual.and_then(|r| r.x1);
    let v = epilogue.affine.map(|(v, _, _)| v);
    let (a, b) = (epilogue.affine.map(|(_, a, _)| a), epilogue.affine.map(|(_, _, b)| b));
    let (v0, v1) = (v.map(|v| v.x0), v.and_then(|v| v.x1));
    let (scale, shift) = prologue.affine.unzip();
    let Epilogue { bias, bias_res, silu_grad: h, add0, add1, .. } = epilogue;
    // What is the same at every pixel stays float32: a norm must see it unrounded.
    let constant = [(input.x1, input.x1_constant), (res1, residual.is_some_and(|r| r.x1_constant))];
    for (x1, constant) in constant {
        expect_dtype("operand", &[x1], if constant { Dtype::F32 } else { input_dtype })?;
    }
    expect_dtype("operand", &[res0], input_dtype)?;
    let y1 = out.y1.as_ref().map(GpuSliceMut::shared);
    expect_dtype("operand of the epilogue", &[h, v0, v1, add0, add1, y1], output_dtype)?;
    let stats = out.stats.as_ref().map(GpuSliceMut::shared);
    expect_dtype("coefficients or statistics", &[scale, shift, bias, bias_res, a, b, stats], Dtype::F32)?;
    pack::check_packed(packed.ptr(), packed.dtype(), dtype)?;

    let variant = variant(gpu.arithmetic(), d, input_dtype, output_dtype)?;
    let tiling = Tiling::choose(&variant, d, dtype)?;
    let Tiling { log_rows, log_cols, tiles_x, tiles_y, .. } = tiling;
    // Where an image is cut, its tiles leave their statistics in a workspace, and a second kernel merges them.
    let mut parts = match stats {
        Some(_) if tiling.tiles() > 1 => Some(gpu.alloc(d.n as usize * tiling.tiles() * k * 2)?),
        _ => None,
    };
    let parts = parts.as_mut().map(Gpu::<L>::all_mut);
    let per_image = |bias: Option<GpuSlice<'_>>| u32::from(bias.is_some_and(|bias| bias.len() != k));
    let args = ConvArgs {
        x0: input.x0.ptr(),
        x1: ptr(input.x1),
        scale: ptr(scale),
        shift: ptr(shift),
        res0: ptr(res0),
        res1: ptr(res1),
        w: packed.ptr(),
        bias: ptr(bias),
        bias_res: ptr(bias_res),
        h: ptr(h),
        v0: ptr(v0),
        v1: ptr(v1),
        a: ptr(a),
        b: ptr(b),
        add0: ptr(add0),
        add1: ptr(add1),
        y0: out.y0.ptr(),
        y1: ptr(y1),
        stats: shared(&parts).unwrap_or(ptr(stats)),
        n: d.n,
        height: d.h,
        width: d.w,
        c0: d.c0,
        c1: d.c1,
        r0: d.r0,
        r1: d.r1,
        k: d.k,
        k0: k0 as u32,
        side: d.side,
        silu: u32::from(prologue.silu),
        x1_constant: u32::from(input.x1_constant),
        res1_constant: u32::from(residual.is_some_and(|r| r.x1_constant)),
        log_rows,
        log_cols,
        tiles_x,
        tiles_y,
        stages: tiling.stages,
        affine_images: u32::from(scale.is_some_and(|scale| scale.len() != d.c())),
        bias_images: per_image(bias) | per_image(bias_res) << 1,
    };
    let blocks = tiling.pixel_tiles * k.div_ceil(variant.channels as usize);
    let grid = [crate::device::gpu::blocks(blocks, 1), 1, 1];
    gpu.launch(variant.kernel, grid, [THREADS, 1, 1], tiling.shared as u32, &args)?;

    let (Some(parts), Some(stats)) = (parts, stats) else { return Ok(()) };
    let args = ConvStatsMergeArgs {
        parts: parts.ptr(),
        stats: stats.ptr(),
        n: d.n,
        k: d.k,
        height: d.h,
        width: d.w,
        log_rows,
        log_cols,
        tiles_x,
        tiles_y,
    };
    let threads = kernels::CONV_STATS_THREADS;
    let grid = [crate::device::gpu::blocks(d.n as usize * k, threads as usize), 1, 1];
    gpu.launch(&kernels::CONV_STATS_MERGE_F32, grid, [threads, 1, 1], 0, &args)
}
