//! Launches of `kernels/group_norm.cu` and `kernels/group_norm_bwd.cu`.

use bytemuck::{Pod, Zeroable};

use super::lengths::{check_dims, check_gradients, check_input, check_params, check_statistics};
use super::{Dropout, GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients};
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Dtype, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};
use crate::ops::{expect_f32, expect_len};

const OP: &str = "group_norm";

/// `GroupNormCoefficientsArgs` of `kernels/group_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CoefficientsArgs {
    stats0: DevicePtr,
    stats1: DevicePtr,
    gamma: DevicePtr,
    beta: DevicePtr,
    modulation: DevicePtr,
    coefficients: DevicePtr,
    eps: f64,
    n: u32,
    pixels: u32,
    c0: u32,
    c1: u32,
    groups: u32,
    unused: u32,
}

/// `GroupNormArgs` of `kernels/group_norm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PixelArgs {
    x0: DevicePtr,
    x1: DevicePtr,
    g: DevicePtr,
    coefficients: DevicePtr,
    means: DevicePtr,
    to0_first: DevicePtr,
    to0_second: DevicePtr,
    to1: DevicePtr,
    out0: DevicePtr,
    out1: DevicePtr,
    partials: DevicePtr,
    step: DevicePtr,
    n: u32,
    pixels: u32,
    c0: u32,
    c1: u32,
    groups: u32,
    silu: u32,
    tiles: u32,
    vector: u32,
    seed_low: u32,
    seed_high: u32,
    purpose: u32,
    first_image: u32,
    p: f32,
    kept: f32,
}

/// `GroupNormGroupsArgs` of `kernels/group_norm_bwd.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GroupsArgs {
    partials: DevicePtr,
    coefficients: DevicePtr,
    gamma: DevicePtr,
    beta: DevicePtr,
    modulation: DevicePtr,
    channel_sums: DevicePtr,
    means: DevicePtr,
    dmodulation: DevicePtr,
    sums: DevicePtr,
    dgamma: DevicePtr,
    dbeta: DevicePtr,
    n: u32,
    pixels: u32,
    c: u32,
    groups: u32,
    tiles: u32,
    unused: u32,
}

fn ptr(view: Option<GpuSlice<'_>>) -> DevicePtr {
    view.map_or(DevicePtr::NULL, |view| view.ptr())
}

fn len(view: &GpuSlice<'_>) -> usize {
    view.len()
}

fn len_mut(view: &GpuSliceMut<'_>) -> usize {
    view.len()
}

/// Refuses views that are not float32.
fn expect_plain(views: &[(&str, Option<GpuSlice<'_>>)]) -> Result<()> {
    views.iter().try_for_each(|(name, view)| view.map_or(Ok(()), |view| expect_f32(OP, name, view, view.len())))
}

/// Element type of the activations, which must agree.
fn common_dtype(first: GpuSlice<'_>, others: &[Option<GpuSlice<'_>>]) -> Result<Dtype> {
    match others.iter().flatten().find(|view| view.dtype() != first.dtype()) {
        None => Ok(first.dtype()),
        Some(view) => {
            let (one, other) = (first.dtype(), view.dtype());
            Err(Error::Shape {
                op: OP,
                what: format!("activations of {one:?} and of {other:?}; they must be of one type"),
            })
        }
    }
}

/// How threads and blocks are laid over channels and pixels.
struct Map {
    vector: bool,
    block: [u32; 3],
    channel_blocks: u32,
    tiles: u32,
}

impl Map {
    /// `aligned`: every activation begins at a multiple of 16 bytes.
    fn new(d: &GroupNormDims, dtype: Dtype, aligned: bool) -> Result<Self> {
        let lanes = 16 / dtype.size() as u32;
        let vector = aligned && d.c0.is_multiple_of(lanes) && d.c1.is_multiple_of(lanes);
        let groups = if vector { (d.c0 + d.c1) / lanes } else { d.c0 + d.c1 };
        // A warp of channels at most, evenly shared out, and as many pixels as there is room for.
        let channel_blocks = groups.div_ceil(32);
        let columns = groups.div_ceil(channel_blocks);
        let rows = (kernels::GROUP_NORM_THREADS / columns).min(d.pixels);
        let tiles = d.pixels.div_ceil(rows * kernels::GROUP_NORM_UNITS);
        let (elements, parts) = (d.pixels as usize * d.c(), d.n as usize * tiles as usize);
        if u32::try_from(elements).is_err() || i32::try_from(parts).is_err() {
            return Err(Error::Shape { op: OP, what: format!("too large for the kernels' 32-bit indices: {d:?}") });
        }
        Ok(Map { vector, block: [columns, rows, 1], channel_blocks, tiles })
    }

    fn grid(&self, d: &GroupNormDims) -> [u32; 3] {
        [d.n * self.tiles, self.channel_blocks, 1]
    }
}

/// The parameter of the kernels that go over pixels, without their outputs.
fn pixel_args<L: Launcher>(
    d: &GroupNormDims,
    map: &Map,
    input: &NormInput<'_, Gpu<L>>,
    dropout: Option<&Dropout<'_, Gpu<L>>>,
) -> PixelArgs {
    let key = dropout.map(|dropout| dropout.key);
    PixelArgs {
        x0: input.x0.ptr(),
        x1: ptr(input.x1),
        coefficients: input.coefficients.ptr(),
        step: ptr(dropout.map(|dropout| dropout.step)),
        n: d.n,
        pixels: d.pixels,
        c0: d.c0,
        c1: d.c1,
        groups: d.groups,
        silu: d.silu,
        tiles: map.tiles,
        vector: u32::from(map.vector),
        seed_low: key.map_or(0, |key| key.seed as u32),
        seed_high: key.map_or(0, |key| (key.seed >> 32) as u32),
        purpose: dropout.map_or(0, |dropout| (dropout.key.purpose as u32).wrapping_add(dropout.layer)),
        first_image: key.map_or(0, |key| key.first_image as u32),
        p: dropout.map_or(0.0, |dropout| dropout.p),
        kept: dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.p)),
        ..PixelArgs::zeroed()
    }
}

/// A warp for a group of an image.
fn warps(d: &GroupNormDims) -> [u32; 3] {
    [blocks(d.n as usize * d.groups as usize, kernels::GROUP_NORM_THREADS as usize / 32), 1, 1]
}

fn of_dtype(dtype: Dtype, f32: &'static KernelEntry, bf16: &'static KernelEntry) -> &'static KernelEntry {
    match dtype {
        Dtype::F32 => f32,
        Dtype::Bf16 => bf16,
    }
}

fn aligned(views: &[Option<GpuSlice<'_>>]) -> bool {
    views.iter().flatten().all(|view| view.ptr().0.is_multiple_of(16))
}

impl<L: Launcher> GroupNorm for Gpu<L> {
    fn group_norm_coefficients(
        &self,
        d: &GroupNormDims,
        stats0: GpuSlice<'_>,
        stats1: Option<GpuSlice<'_>>,
        params: NormParams<'_, Self>,
        coefficients: GpuSliceMut<'_>,
    ) -> Result<()> {
        check_dims(d)?;
        check_statistics::<Self>(d, &stats0, stats1.as_ref(), len)?;
        check_params(d, &params, len)?;
        expect_f32(OP, "coefficients", coefficients.shared(), d.coefficients_len())?;
        let NormParams { gamma, beta, modulation } = params;
        expect_plain(&[
            ("stats0", Some(stats0)),
            ("stats1", stats1),
            ("gamma", Some(gamma)),
            ("beta", Some(beta)),
            ("modulation", modulation),
        ])?;
        let args = CoefficientsArgs {
            stats0: stats0.ptr(),
            stats1: ptr(stats1),
            gamma: gamma.ptr(),
            beta: beta.ptr(),
            modulation: ptr(modulation),
            coefficients: coefficients.ptr(),
            eps: d.eps,
            n: d.n,
            pixels: d.pixels,
            c0: d.c0,
            c1: d.c1,
            groups: d.groups,
            unused: 0,
        };
        let threads = kernels::GROUP_NORM_THREADS;
        self.launch(&kernels::GROUP_NORM_COEFFICIENTS_F32, warps(d), [threads, 1, 1], 0, &args)
    }

    fn group_norm_apply(
        &self,
        d: &GroupNormDims,
        input: NormInput<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        y: GpuSliceMut<'_>,
    ) -> Result<()> {
        check_input(d, &input, dropout.as_ref(), len)?;
        expect_len(OP, "y", y.len(), d.len0() + d.len1())?;
        let step = dropout.as_ref().map(|dropout| dropout.step);
        expect_plain(&[("coefficients", Some(input.coefficients)), ("step", step)])?;
        let activations = [Some(input.x0), input.x1, Some(y.shared())];
        let dtype = common_dtype(input.x0, &activations)?;
        let map = Map::new(d, dtype, aligned(&activations))?;
        let args = PixelArgs { out0: y.ptr(), ..pixel_args(d, &map, &input, dropout.as_ref()) };
        let kernel = of_dtype(dtype, &kernels::GROUP_NORM_APPLY_F32, &kernels::GROUP_NORM_APPLY_BF16);
        self.launch(kernel, map.grid(d), map.block, 0, &args)
    }

    fn group_norm_backward(
        &self,
        d: &GroupNormDims,
        input: NormInput<'_, Self>,
        params: NormParams<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        g: GpuSlice<'_>,
        other: OtherGradients<'_, Self>,
        out: NormGradients<'_, Self>,
    ) -> Result<()> {
        check_input(d, &input, dropout.as_ref(), len)?;
        check_params(d, &params, len)?;
        check_gradients::<Self>(d, params.modulation.is_some(), &other, &out, len, len_mut)?;
        expect_len(OP, "g", g.len(), d.len0() + d.len1())?;
        let NormParams { gamma, beta, modulation } = params;
        let NormGradients { dx0, dx1, dgamma, dbeta, dmodulation, sums } = out;
        let (dx0, dx1) = (dx0.shared(), dx1.as_ref().map(GpuSliceMut::shared));
        let (dmodulation, sums) =
            (dmodulation.as_ref().map(GpuSliceMut::shared), sums.as_ref().map(GpuSliceMut::shared));
        expect_plain(&[
            ("coefficients", Some(input.coefficients)),
            ("step", dropout.as_ref().map(|dropout| dropout.step)),
            ("gamma", Some(gamma)),
            ("beta", Some(beta)),
            ("modulation", modulation),
            ("dgamma", Some(dgamma.shared())),
            ("dbeta", Some(dbeta.shared())),
            ("dmodulation", dmodulation),
            ("sums", sums),
        ])?;
        let [to0_first, to0_second] = other.to0;
        let activations = [Some(input.x0), input.x1, Some(g), to0_first, to0_second, other.to1, Some(dx0), dx1];
        let dtype = common_dtype(input.x0, &activations)?;
        let map = Map::new(d, dtype, aligned(&activations))?;
        let (n, c, groups) = (d.n as usize, d.c(), d.groups as usize);

        let workspaces =
            [self.alloc(n * map.tiles as usize * 3 * c)?, self.alloc(n * 4 * c)?, self.alloc(n * groups * 2)?];
        let [partials, channel_sums, means] = workspaces.each_ref().map(|workspace| Self::all(workspace).ptr());
        let args = PixelArgs {
            g: g.ptr(),
            means,
            to0_first: ptr(to0_first),
            to0_second: ptr(to0_second),
            to1: ptr(other.to1),
            out0: dx0.ptr(),
            out1: ptr(dx1),
            partials,
            ..pixel_args(d, &map, &input, dropout.as_ref())
        };
        let kernel = of_dtype(dtype, &kernels::GROUP_NORM_BWD_SUMS_F32, &kernels::GROUP_NORM_BWD_SUMS_BF16);
        self.launch(kernel, map.grid(d), map.block, kernels::GROUP_NORM_SUMS_BYTES, &args)?;

        let of_groups = GroupsArgs {
            partials,
            coefficients: input.coefficients.ptr(),
            gamma: gamma.ptr(),
            beta: beta.ptr(),
            modulation: ptr(modulation),
            channel_sums,
            means,
            dmodulation: ptr(dmodulation),
            sums: ptr(sums),
            dgamma: dgamma.ptr(),
            dbeta: dbeta.ptr(),
            n: d.n,
            pixels: d.pixels,
            c: c as u32,
            groups: d.groups,
            tiles: map.tiles,
            unused: 0,
        };
        let threads = kernels::GROUP_NORM_THREADS;
        self.launch(&kernels::GROUP_NORM_BWD_GROUPS_F32, warps(d), [threads, 1, 1], 0, &of_groups)?;
        let grid = [blocks(c, threads as usize), 1, 1];
        self.launch(&kernels::GROUP_NORM_BWD_PARAMS_F32, grid, [threads, 1, 1], 0, &of_groups)?;

        let kernel = of_dtype(dtype, &kernels::GROUP_NORM_BWD_DX_F32, &kernels::GROUP_NORM_BWD_DX_BF16);
        self.launch(kernel, map.grid(d), map.block, 0, &args)
    }
}
