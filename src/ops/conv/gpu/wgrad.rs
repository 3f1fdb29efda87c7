//! Launches of `kernels/conv_wgrad.cu`: products of pixel slices into partial sums, then their addition in order.
//!
//! Tiles, slices and so the order of every sum follow from the shape and the arithmetic alone, not from the GPU.

use bytemuck::{Pod, Zeroable};

use super::super::lengths::{check_input, expect, shape_error};
use super::super::{ConvDims, Operand, Prologue, WeightGradients};
use super::{expect_dtype, len, ptr};
use crate::device::Memory;
use crate::device::gpu::{Arithmetic, DevicePtr, Dtype, Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};

/// Shared memory that a block of these kernels asks for at most; some GPUs (compute capability 8.6 and 8.9) give less.
const SHARED_LIMIT: usize = 163 << 10;
/// Blocks that the pixels are cut for: about one a multiprocessor for 3x3, two for 1x1.
const BLOCKS_3X3: usize = 128;
const BLOCKS_1X1: usize = 256;
/// Most groups of slices that a block of the reduction adds side by side.
const REDUCE_GROUPS: usize = 16;

/// `ConvWgradArgs` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProductArgs {
    x0: DevicePtr,
    x1: DevicePtr,
    scale: DevicePtr,
    shift: DevicePtr,
    dy: DevicePtr,
    partial: DevicePtr,
    partial_sums: DevicePtr,
    n: u32,
    h: u32,
    w: u32,
    c0: u32,
    c1: u32,
    k: u32,
    tile_w_log: u32,
    tile_h_log: u32,
    tiles_x: u32,
    tiles_y: u32,
    tiles: u32,
    stride: u32,
    flags: u32,
    unused: u32,
}

/// `ConvWgradReduceArgs` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReduceArgs {
    partial: DevicePtr,
    partial_res: DevicePtr,
    dw: DevicePtr,
    dw_res: DevicePtr,
    db: DevicePtr,
    db_res: DevicePtr,
    border_sums: DevicePtr,
    slices: u32,
    stride: u32,
    slices_res: u32,
    stride_res: u32,
    main: u32,
    sums: u32,
    res: u32,
    k: u32,
    centre: u32,
    unused: u32,
}

/// A kernel and its block's channels.
struct Instance {
    c: usize,
    k: usize,
    kernel: &'static KernelEntry,
}

macro_rules! instances {
    ($($c:literal x $k:literal $kernel:ident),*) => {
        &[$(Instance { c: $c, k: $k, kernel: &kernels::$kernel }),*]
    };
}

fn instances(arithmetic: Arithmetic, side: u32) -> &'static [Instance] {
    match (arithmetic, side) {
        (Arithmetic::Bf16, 3) => instances!(
            64 x 64 CONV_WGRAD_3X3_64X64_BF16, 64 x 32 CONV_WGRAD_3X3_64X32_BF16,
            32 x 64 CONV_WGRAD_3X3_32X64_BF16, 32 x 32 CONV_WGRAD_3X3_32X32_BF16
        ),
        (Arithmetic::Bf16, _) => instances!(
            64 x 64 CONV_WGRAD_1X1_64X64_BF16, 64 x 32 CONV_WGRAD_1X1_64X32_BF16,
            32 x 64 CONV_WGRAD_1X1_32X64_BF16, 32 x 32 CONV_WGRAD_1X1_32X32_BF16
        ),
        (Arithmetic::Tf32, 3) => instances!(
            64 x 64 CONV_WGRAD_3X3_64X64_TF32, 64 x 32 CONV_WGRAD_3X3_64X32_TF32,
            32 x 64 CONV_WGRAD_3X3_32X64_TF32, 32 x 32 CONV_WGRAD_3X3_32X32_TF32
        ),
        (Arithmetic::Tf32, _) => instances!(64 x 64 CONV_WGRAD_1X1_64X64_TF32, 32 x 32 CONV_WGRAD_1X1_32X32_TF32),
        (Arithmetic::Fp32, 3) => instances!(32 x 64 CONV_WGRAD_3X3_32X64_F32, 32 x 32 CONV_WGRAD_3X3_32X32_F32),
        (Arithmetic::Fp32, _) => instances!(64 x 64 CONV_WGRAD_1X1_64X64_F32, 32 x 32 CONV_WGRAD_1X1_32X32_F32),
    }
}

/// How the pixels are cut into tiles.
#[derive(Clone, Copy)]
struct Tiling {
    /// Pixels of a tile.
    pixels: usize,
    w_log: u32,
    h_log: u32,
    x: usize,
    y: usize,
    /// Tiles of all images.
    count: usize,
}

impl Tiling {
    /// All ways, that which computes and loads the fewest pixels first, those beyond the picture included.
    fn all(d: &ConvDims, dtype: Dtype) -> Vec<Self> {
        let pixels = kernels::WGRAD_STEPS as usize * 32 / dtype.size();
        let (n, h, w) = (d.n as usize, d.h as usize, d.w as usize);
        let mut found: Vec<(usize, Tiling)> = Vec::new();
        for (w_log, h_log) in [(4, 3), (3, 3), (4, 2), (3, 2), (2, 3), (2, 2)] {
            if 1usize << (w_log + h_log) > pixels {
                continue;
            }
            let (x, y) = (w.div_ceil(1 << w_log), h.div_ceil(1 << h_log));
            let count = x * y * n.div_ceil(pixels >> (w_log + h_log));
            let tiling = Tiling { pixels, w_log, h_log, x, y, count };
            found.push((count * (pixels + tiling.halo_pixels(d.side)), tiling));
        }
        found.sort_by_key(|&(cost, _)| cost);
        found.into_iter().map(|(_, tiling)| tiling).collect()
    }

    /// Pixels of z that a tile needs.
    fn halo_pixels(&self, side: u32) -> usize {
        let halo = side as usize / 2 * 2;
        let images = self.pixels >> (self.w_log + self.h_log);
        ((1 << self.w_log) + halo) * ((1 << self.h_log) + halo) * images
    }
}

/// How a product is launched: the instance, the bytes of its shared memory, and the slices that the pixels are cut into.
#[derive(Clone, Copy)]
struct Plan {
    instance: &'static Instance,
    shared: usize,
    slices: usize,
}

impl Plan {
    /// The best tiles with an instance that this GPU has the shared memory for, `limit` bytes of a block, and the plan for them. Pictures of
    /// 4x4 are most halo: where 99 KiB are all there is, in bf16 they take wider tiles, half of them empty.
    fn fitting(
        instances: &'static [Instance],
        dtype: Dtype,
        d: &ConvDims,
        channels: [usize; 2],
        limit: usize,
    ) -> Result<(Tiling, Self)> {
        let tilings = Tiling::all(d, dtype);
        let fitting = |tiling: &Tiling| Some((*tiling, Self::new(instances, dtype, tiling, d.side, channels, limit)?));
        tilings.iter().find_map(fitting).ok_or_else(|| {
            let kib = limit >> 10;
            let what =
                format!("conv_wgrad: this GPU gives a block {kib} KiB of shared memory, too little for these kernels");
            Error::Failed(format!("{what}; --precision bf16 needs the least"))
        })
    }

    /// The plan that should be quickest, with as many slices as fill the GPU.
    ///
    /// Costs are counted in products of a multiprocessor: those of the tiles, and for each element that it moves as many as it
    /// does meanwhile. Large blocks read their operands less often, small ones write and add fewer partial sums.
    fn new(
        instances: &'static [Instance],
        dtype: Dtype,
        tiling: &Tiling,
        side: u32,
        [c, k]: [usize; 2],
        limit: usize,
    ) -> Option<Self> {
        const PRODUCTS_PER_ELEMENT: usize = 92;
        let taps = (side * side) as usize;
        let at_once = if side == 3 { BLOCKS_3X3 } else { BLOCKS_1X1 };
        let plans = instances.iter().filter_map(|instance| {
            let blocks = c.div_ceil(instance.c) * k.div_ceil(instance.k);
            let slices = (at_once / blocks).clamp(1, tiling.count);
            let products = taps * instance.c * instance.k;
            let read = instance.c * tiling.halo_pixels(side) + instance.k * tiling.pixels;
            // A partial sum is written and read, in float32.
            let moved = tiling.count.div_ceil(slices) * read + products * 8 / dtype.size();
            let computed = tiling.count.div_ceil(slices) * products * tiling.pixels;
            let cost = (blocks * slices).div_ceil(at_once) * (computed + PRODUCTS_PER_ELEMENT * moved);
            let shared = shared_bytes(instance, dtype, side, tiling);
            (shared <= limit.min(SHARED_LIMIT)).then_some((cost, Plan { instance, shared, slices }))
        });
        plans.min_by_key(|(cost, _)| *cost).map(|(_, plan)| plan)
    }
}

/// As `WgradBlock` of the kernel lays it out.
fn shared_bytes(instance: &Instance, dtype: Dtype, side: u32, tiling: &Tiling) -> usize {
    let (stages, pad) = (kernels::WGRAD_STAGES as usize, kernels::WGRAD_PAD as usize);
    let taps = (side * side) as usize;
    let places = tiling.pixels + if side == 3 { tiling.pixels / 16 * 36 } else { 0 };
    let tables = 4 * places + stages * 2 * tiling.pixels + 2 * 4 * instance.c;
    let stage = (tiling.halo_pixels(side) * (instance.c + pad) + tiling.pixels * (instance.k + pad)) * dtype.size();
    // The groups of pixels exchange their sums through the same memory.
    (tables + stages * stage).max(taps * instance.c * instance.k * 4)
}

/// One product: main or residual.
struct Product<'a, L: Launcher> {
    input: Operand<'a, Gpu<L>>,
    prologue: Prologue<'a, Gpu<L>>,
    /// Channels of the two inputs.
    c: [u32; 2],
    side: u32,
    plan: Plan,
    /// With border sums.
    sums: bool,
    partial: Partial,
}

/// Partial sums: slices of [taps, channels, K], then [taps, K] of border sums.
#[derive(Clone, Copy)]
struct Partial {
    ptr: DevicePtr,
    slices: usize,
    /// Elements of a slice; a multiple of four.
    stride: usize,
    /// Where the border sums begin in a slice.
    sums: usize,
}

pub(super) fn conv_wgrad<'a, L: Launcher>(
    gpu: &Gpu<L>,
    d: &ConvDims,
    input: Operand<'a, Gpu<L>>,
    prologue: Prologue<'a, Gpu<L>>,
    residual: Option<Operand<'a, Gpu<L>>>,
    dy: GpuSlice<'a>,
    out: WeightGradients<'_, Gpu<L>>,
) -> Result<()> {
    check(d, &input, &prologue, residual.as_ref(), dy, &out)?;
    let (main, res) = (instances(gpu.arithmetic(), d.side), instances(gpu.arithmetic(), 1));
    launch(gpu, d, [main, res], input, prologue, residual, dy, out)
}

/// Both products with the best of the instances for each, and the reduction.
#[allow(clippy::too_many_arguments)] // those of the operation, and the instances
fn launch<'a, L: Launcher>(
    gpu: &Gpu<L>,
    d: &ConvDims,
    instances: [&'static [Instance]; 2],
    input: Operand<'a, Gpu<L>>,
    prologue: Prologue<'a, Gpu<L>>,
    residual: Option<Operand<'a, Gpu<L>>>,
    dy: GpuSlice<'a>,
    out: WeightGradients<'_, Gpu<L>>,
) -> Result<()> {
    let dtype = gpu.activation_dtype();
    let (k, taps) = (d.k as usize, d.taps());
    let with_sums = out.db.is_some() || out.db_res.is_some() || out.border_sums.is_some();
    let (main, res, sums) = (taps * d.c() * k, d.r() * k, if with_sums { taps * k } else { 0 });

    let limit = gpu.launcher().shared_limit();
    let (tiling, plan) = Plan::fitting(instances[0], dtype, d, [d.c(), k], limit)?;
    let (stride, stride_res) = ((main + sums).next_multiple_of(4), res.next_multiple_of(4));
    let workspace = gpu.alloc(plan.slices * stride)?;
    let partial = Partial { ptr: Gpu::<L>::all(&workspace).ptr(), slices: plan.slices, stride, sums: main };
    let product = Product { input, prologue, c: [d.c0, d.c1], side: d.side, plan, sums: with_sums, partial };
    launch_product(gpu, d, &tiling, dy, product)?;

    let mut workspace_res = None;
    let mut partial_res = Partial { ptr: DevicePtr::NULL, slices: 0, stride: stride_res, sums: res };
    if let Some(input) = residual {
        let (tiling, plan) = Plan::fitting(instances[1], dtype, &ConvDims { side: 1, ..*d }, [d.r(), k], limit)?;
        let workspace = workspace_res.insert(gpu.alloc(plan.slices * stride_res)?);
        partial_res = Partial { ptr: Gpu::<L>::all(workspace).ptr(), slices: plan.slices, ..partial_res };
        let (c, prologue) = ([d.r0, d.r1], Prologue::none());
        let product = Product { input, prologue, c, side: 1, plan, sums: false, partial: partial_res };
        launch_product(gpu, d, &tiling, dy, product)?;
    }

    let groups = 1 << partial.slices.max(partial_res.slices).min(REDUCE_GROUPS).ilog2();
    let result = |view: Option<GpuSliceMut<'_>>| view.map_or(DevicePtr::NULL, |view| view.ptr());
    let args = ReduceArgs {
        partial: partial.ptr,
        partial_res: partial_res.ptr,
        dw: out.dw.ptr(),
        dw_res: result(out.dw_res),
        db: result(out.db),
        db_res: result(out.db_res),
        border_sums: result(out.border_sums),
        slices: partial.slices as u32,
        stride: stride as u32,
        slices_res: partial_res.slices as u32,
        stride_res: stride_res as u32,
        main: main as u32,
        sums: sums as u32,
        res: res as u32,
        k: d.k,
        centre: (taps / 2 * k) as u32,
        unused: 0,
    };
    let blocks = (stride + stride_res).div_ceil(128) as u32;
    gpu.launch(&kernels::CONV_WGRAD_REDUCE_F32, [blocks, 1, 1], [32, groups, 1], groups * 512, &args)
}

fn launch_product<L: Launcher>(
    gpu: &Gpu<L>,
    d: &ConvDims,
    tiling: &Tiling,
    dy: GpuSlice<'_>,
    product: Product<'_, L>,
) -> Result<()> {
    let dtype = gpu.activation_dtype();
    let Product { input, prologue, c: [c0, c1], side, plan, sums, partial } = product;
    let lanes = 16 / dtype.size() as u32;
    // Vectors: the kernel's own element type, at addresses and channels of multiples of 16 bytes.
    let vectors = |view: GpuSlice<'_>, channels: &[u32]| {
        view.dtype() == dtype && view.ptr().0.is_multiple_of(16) && channels.iter().all(|c| c.is_multiple_of(lanes))
    };
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let mut flags = flag(prologue.silu, kernels::WGRAD_SILU)
        | flag(sums, kernels::WGRAD_SUMS)
        | flag(input.x0.dtype() == Dtype::F32, kernels::WGRAD_X0_F32)
        | flag(vectors(input.x0, &[c0]), kernels::WGRAD_X0_VECTORS)
        | flag(dy.dtype() == Dtype::F32, kernels::WGRAD_DY_F32)
        | flag(vectors(dy, &[d.k]), kernels::WGRAD_DY_VECTORS);
    if let Some(x1) = input.x1 {
        flags |= flag(input.x1_constant, kernels::WGRAD_X1_CONSTANT)
            | flag(x1.dtype() == Dtype::F32, kernels::WGRAD_X1_F32)
            | flag(vectors(x1, &[c0, c1]), kernels::WGRAD_X1_VECTORS);
    }
    let (scale, shift) = prologue.affine.unzip();
    if let Some((scale, shift)) = prologue.affine {
        let aligned = [scale, shift].iter().all(|view| view.ptr().0.is_multiple_of(16));
        flags |= flag(scale.len() != (c0 + c1) as usize, kernels::WGRAD_AFFINE_IMAGES)
            | flag(aligned && (c0 + c1).is_multiple_of(4), kernels::WGRAD_AFFINE_VECTORS);
    }
    let args = ProductArgs {
        x0: input.x0.ptr(),
        x1: ptr(input.x1),
        scale: ptr(scale),
        shift: ptr(shift),
        dy: dy.ptr(),
        partial: partial.ptr,
        partial_sums: partial.ptr.offset(partial.sums * 4),
        n: d.n,
        h: d.h,
        w: d.w,
        c0,
        c1,
        k: d.k,
        tile_w_log: tiling.w_log,
        tile_h_log: tiling.h_log,
        tiles_x: tiling.x as u32,
        tiles_y: tiling.y as u32,
        tiles: tiling.count as u32,
        stride: partial.stride as u32,
        flags,
        unused: 0,
    };
    let Instance { c, k, kernel } = plan.instance;
    let grid = [d.k.div_ceil(*k as u32), partial.slices as u32, (c0 + c1).div_ceil(*c as u32)];
    let threads = if side == 3 { kernels::WGRAD_THREADS_3X3 } else { kernels::WGRAD_THREADS_1X1 };
    gpu.launch(kernel, grid, [threads, 1, 1], plan.shared as u32, &args)
}

fn check<L: Launcher>(
    d: &ConvDims,
    input: &Operand<'_, Gpu<L>>,
    prologue: &Prologue<'_, Gpu<L>>,
    residual: Option<&Operand<'_, Gpu<L>>>,
    dy: GpuSlice<'_>,
    out: &WeightGradients<'_, Gpu<L>>,
) -> Result<()> {
    check_input(d, input, prologue, residual, len)?;
    let (k, taps, pixels) = (d.k as usize, d.taps(), d.pixels());
    let largest = pixels.max((taps * d.c() + d.r() + taps) * k);
    if i32::try_from(largest).is_err() {
        return shape_error(format!("too large for 32-bit indices: {d:?}"));
    }
    if residual.is_some() != (d.r() > 0) || out.dw_res.is_some() != (d.r() > 0) {
        return shape_error(format!("the residual and `dw_res` belong to {} residual channels", d.r()));
    }
    expect("dy", dy.len(), pixels * k)?;
    let views = [
        ("dw", Some(&out.dw), taps * d.c() * k),
        ("dw_res", out.dw_res.as_ref(), d.r() * k),
        ("db", out.db.as_ref(), k),
        ("db_res", out.db_res.as_ref(), k),
        ("border_sums", out.border_sums.as_ref(), taps * k),
    ];
    for (name, view, want) in views {
        if let Some(view) = view {
            expect(name, view.len(), want)?;
            expect_dtype(name, &[Some(view.shared())], Dtype::F32)?;
        }
    }
    let (scale, shift) = prologue.affine.unzip();
    expect_dtype("scale or shift", &[scale, shift], Dtype::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::GpuBuffer;
    use crate::device::sim::Sim;
    use crate::ops::conv::reference;
    use crate::rng::{Purpose, Stream};

    fn normal(index: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Stream::new(42, Purpose::Init, 0, index).fill_normal(&mut values);
        values
    }

    fn uploaded(gpu: &Gpu<Sim>, values: &[f32], activation: bool) -> <Gpu<Sim> as Memory>::Buffer {
        let buffer = if activation { gpu.alloc_activation(values.len()) } else { gpu.alloc(values.len()) };
        let mut buffer = buffer.unwrap();
        gpu.upload(values, Gpu::<Sim>::all_mut(&mut buffer)).unwrap();
        buffer
    }

    fn relative_error(got: &[f32], want: &[f64]) -> f64 {
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let difference = squares(&mut got.iter().zip(want).map(|(&g, w)| f64::from(g) - w));
        (difference / squares(&mut want.iter().copied())).sqrt()
    }

    /// Every instance, whatever the plans prefer, with blocks that are full and blocks that are not.
    #[test]
    fn every_instance() {
        for (side, hw) in [(1, [9, 18]), (3, [9, 18]), (3, [7, 8])] {
            let d = ConvDims { n: 3, h: hw[0], w: hw[1], c0: 64, c1: 8, r0: 0, r1: 0, k: 72, side };
            let operands = [d.pixels() * 64, d.pixels() * 8, 72, 72, d.pixels() * 72];
            let operands = [0, 1, 2, 3, 4].map(|i| normal(i as u64, operands[i]));
            let wide = |values: &Vec<f32>| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let [x0, x1, scale, shift, dy] = operands.each_ref().map(wide);
            let input = reference::Operand { x0: &x0, x1: Some(&x1), x1_constant: false };
            let prologue = reference::Prologue { affine: Some((&scale, &shift)), silu: true };
            let want = reference::wgrad(&d, input, prologue, None, &dy);
            for (arithmetic, tolerance) in
                [(Arithmetic::Fp32, 2e-6), (Arithmetic::Tf32, 1e-3), (Arithmetic::Bf16, 6e-3)]
            {
                let Ok(sim) = Sim::new() else {
                    eprintln!("SKIPPED: no simulator in this build");
                    return;
                };
                let gpu = Gpu::new(sim, arithmetic);
                gpu.poison_new_buffers();
                for instance in instances(arithmetic, side) {
                    let (dw, border_sums) = run(&gpu, &d, std::slice::from_ref(instance), &operands);
                    for (what, got, want) in [("dw", dw, &want.dw), ("sums", border_sums, &want.border_sums)] {
                        let error = relative_error(&got, want);
                        assert!(error < tolerance, "{what} of {}: {error:.2e}", instance.kernel.name);
                    }
                }
            }
        }
    }

    /// As on GPUs whose blocks have 99 KiB of shared memory: where the best tiles do not fit, others do, with the same sums.
    #[test]
    fn little_shared_memory() {
        let d = ConvDims { n: 9, h: 4, w: 4, c0: 64, c1: 8, r0: 0, r1: 0, k: 72, side: 3 };
        let operands = [d.pixels() * 64, d.pixels() * 8, 72, 72, d.pixels() * 72];
        let operands = [0, 1, 2, 3, 4].map(|i| normal(i as u64, operands[i]));
        let wide = |values: &Vec<f32>| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let [x0, x1, scale, shift, dy] = operands.each_ref().map(wide);
        let input = reference::Operand { x0: &x0, x1: Some(&x1), x1_constant: false };
        let prologue = reference::Prologue { affine: Some((&scale, &shift)), silu: true };
        let want = reference::wgrad(&d, input, prologue, None, &dy);
        let bf16 = instances(Arithmetic::Bf16, 3);
        let plan = |limit| Plan::fitting(bf16, Dtype::Bf16, &d, [72, 72], limit);
        let (narrow, wide) = (plan(227 << 10).unwrap(), plan(99 << 10).unwrap());
        assert!((narrow.0.w_log, narrow.0.h_log) != (wide.0.w_log, wide.0.h_log) && wide.1.shared <= 99 << 10);
        assert!(plan(20 << 10).is_err_and(|e| e.to_string().contains("20 KiB")));
        let Ok(sim) = Sim::new() else {
            eprintln!("SKIPPED: no simulator in this build");
            return;
        };
        let gpu = Gpu::new(sim.with_shared_limit(99 << 10), Arithmetic::Bf16);
        gpu.poison_new_buffers();
        let (dw, border_sums) = run(&gpu, &d, bf16, &operands);
        for (what, got, want) in [("dw", dw, &want.dw), ("sums", border_sums, &want.border_sums)] {
            let error = relative_error(&got, want);
            assert!(error < 6e-3, "{what}: {error:.2e}");
        }
    }

    /// dw and border sums by the best of some instances. Operands: x0, x1, scale, shift, dy.
    fn run(
        gpu: &Gpu<Sim>,
        d: &ConvDims,
        instances: &'static [Instance],
        operands: &[Vec<f32>; 5],
    ) -> (Vec<f32>, Vec<f32>) {
        let all = Gpu::<Sim>::all;
        let [x0, x1, scale, shift, dy] = operands;
        let [x0, x1, dy] = [x0, x1, dy].map(|values| uploaded(gpu, values, true));
        let [scale, shift] = [scale, shift].map(|values| uploaded(gpu, values, false));
        let k = d.k as usize;
        let mut dw = uploaded(gpu, &vec![0.0; d.taps() * d.c() * k], false);
        let mut border_sums = gpu.alloc(d.taps() * k).unwrap();
        let out = WeightGradients {
            dw: Gpu::<Sim>::all_mut(&mut dw),
            dw_res: None,
            db: None,
            db_res: None,
            border_sums: Some(Gpu::<Sim>::all_mut(&mut border_sums)),
        };
        let input = Operand { x0: all(&x0), x1: Some(all(&x1)), x1_constant: false };
        let prologue = Prologue { affine: Some((all(&scale), all(&shift))), silu: true };
        launch(gpu, d, [instances, instances], input, prologue, None, all(&dy), out).unwrap();
        let read = |buffer: &GpuBuffer<Sim>| {
            let mut values = vec![0.0; Gpu::<Sim>::buffer_len(buffer)];
            gpu.download(all(buffer), &mut values).unwrap();
            values
        };
        (read(&dw), read(&border_sums))
    }
}
