//! Launches of `kernels/resample.cu`: pooling, and what upsampling and resizes share with it.

use bytemuck::{Pod, Zeroable};

use super::cpu::check_even;
use super::{AvgPool2, ResampleDims};
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Dtype, Gpu, GpuSlice, GpuSliceMut, blocks};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};
use crate::ops::expect_len;

const OP: &str = "avg_pool";

/// `ResampleArgs` of `kernels/resample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ResampleArgs {
    x: DevicePtr,
    add: DevicePtr,
    y: DevicePtr,
    partials: DevicePtr,
    h: u32,
    w: u32,
    c: u32,
    tiles: u32,
    vector: u32,
    offset: u32,
}

/// `MergeStatsArgs` of `kernels/resample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MergeStatsArgs {
    partials: DevicePtr,
    stats: DevicePtr,
    n: u32,
    c: u32,
    tiles: u32,
    tile_values: u32,
    values: u32,
    unused: u32,
}

/// One operation of `kernels/resample.cu` in both element types, and how many numbers of its output belong to a small pixel.
pub(crate) struct Kernels {
    pub(crate) f32: &'static KernelEntry,
    pub(crate) bf16: &'static KernelEntry,
    pub(crate) values_per_pixel: u32,
}

/// The views of one call.
pub(crate) struct Views<'a> {
    pub(crate) x: GpuSlice<'a>,
    pub(crate) add: Option<GpuSlice<'a>>,
    pub(crate) y: GpuSliceMut<'a>,
    pub(crate) stats: Option<GpuSliceMut<'a>>,
    /// Row and column, in its square of four, of the pixel that is kept.
    pub(crate) offset: u32,
}

impl Views<'_> {
    /// Element type of the activations, which must agree; statistics are float32.
    fn dtype(&self, op: &'static str) -> Result<Dtype> {
        let dtype = self.x.dtype();
        let agree = self.y.dtype() == dtype && self.add.is_none_or(|add| add.dtype() == dtype);
        let plain = self.stats.as_ref().is_none_or(|stats| stats.dtype() == Dtype::F32);
        if agree && plain {
            return Ok(dtype);
        }
        let what = "activations must be of one element type, and `stats` float32".to_string();
        Err(Error::Shape { op, what })
    }

    /// True where every activation begins at a multiple of 16 bytes.
    fn aligned(&self) -> bool {
        let pointers = [Some(self.x.ptr()), self.add.map(|add| add.ptr()), Some(self.y.ptr())];
        pointers.into_iter().flatten().all(|ptr| ptr.0.is_multiple_of(16))
    }
}

/// How a block's threads and the blocks of an image are laid over channels and small pixels.
struct Map {
    vector: bool,
    block: [u32; 3],
    channel_blocks: u32,
    /// Tiles of an image, and small pixels of a tile.
    tiles: u32,
    tile_pixels: u32,
}

impl Map {
    fn new(dims: &ResampleDims, dtype: Dtype, aligned: bool) -> Self {
        let lanes = 16 / dtype.size() as u32;
        let vector = aligned && dims.c.is_multiple_of(lanes);
        let groups = if vector { dims.c / lanes } else { dims.c };
        // A warp of channel groups at most, evenly shared out, and as many pixels as there is room for.
        let channel_blocks = groups.div_ceil(32);
        let columns = groups.div_ceil(channel_blocks);
        let pixels = dims.h / 2 * (dims.w / 2);
        let rows = (kernels::RESAMPLE_THREADS / columns).min(pixels);
        let tile_pixels = rows * kernels::RESAMPLE_UNITS;
        Map { vector, block: [columns, rows, 1], channel_blocks, tiles: pixels.div_ceil(tile_pixels), tile_pixels }
    }
}

impl<L: Launcher> Gpu<L> {
    /// Launches an operation whose lengths have been checked.
    pub(crate) fn resample(
        &self,
        op: &'static str,
        kernels: &Kernels,
        dims: &ResampleDims,
        views: Views<'_>,
    ) -> Result<()> {
        let dtype = views.dtype(op)?;
        let map = Map::new(dims, dtype, views.aligned());
        // Statistics of several tiles are merged by a kernel of their own.
        let (n, c) = (dims.n, dims.c);
        let workspace = match &views.stats {
            Some(_) if map.tiles > 1 => Some(self.alloc(n as usize * map.tiles as usize * c as usize * 2)?),
            _ => None,
        };
        let stats = views.stats.as_ref().map_or(DevicePtr::NULL, |stats| stats.ptr());
        let partials = workspace.as_ref().map_or(stats, |workspace| Self::all(workspace).ptr());
        let args = ResampleArgs {
            x: views.x.ptr(),
            add: views.add.map_or(DevicePtr::NULL, |add| add.ptr()),
            y: views.y.ptr(),
            partials,
            h: dims.h / 2,
            w: dims.w / 2,
            c,
            tiles: map.tiles,
            vector: u32::from(map.vector),
            offset: views.offset,
        };
        let kernel = match dtype {
            Dtype::F32 => kernels.f32,
            Dtype::Bf16 => kernels.bf16,
        };
        let shared = if views.stats.is_some() { kernels::RESAMPLE_SHARED_BYTES } else { 0 };
        self.launch(kernel, [n * map.tiles, map.channel_blocks, 1], map.block, shared, &args)?;
        if workspace.is_none() {
            return Ok(());
        }
        let args = MergeStatsArgs {
            partials,
            stats,
            n,
            c,
            tiles: map.tiles,
            tile_values: map.tile_pixels * kernels.values_per_pixel,
            values: dims.h / 2 * (dims.w / 2) * kernels.values_per_pixel,
            unused: 0,
        };
        let threads = kernels::RESAMPLE_THREADS;
        let grid = [blocks((n * c) as usize, threads as usize), 1, 1];
        self.launch(&kernels::RESAMPLE_MERGE_STATS_F32, grid, [threads, 1, 1], 0, &args)
    }
}

impl<L: Launcher> AvgPool2 for Gpu<L> {
    fn avg_pool_forward(
        &self,
        dims: &ResampleDims,
        x: GpuSlice<'_>,
        y: GpuSliceMut<'_>,
        stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "x", x.len(), dims.large())?;
        expect_len(OP, "y", y.len(), dims.small())?;
        if let Some(stats) = &stats {
            expect_len(OP, "stats", stats.len(), (dims.n * dims.c * 2) as usize)?;
        }
        let kernels =
            Kernels { f32: &kernels::AVG_POOL_FWD_F32, bf16: &kernels::AVG_POOL_FWD_BF16, values_per_pixel: 1 };
        self.resample(OP, &kernels, dims, Views { x, add: None, y, stats, offset: 0 })
    }

    fn avg_pool_backward(
        &self,
        dims: &ResampleDims,
        dy: GpuSlice<'_>,
        add: Option<GpuSlice<'_>>,
        dx: GpuSliceMut<'_>,
    ) -> Result<()> {
        check_even(OP, dims)?;
        expect_len(OP, "dy", dy.len(), dims.small())?;
        expect_len(OP, "dx", dx.len(), dims.large())?;
        if let Some(add) = &add {
            expect_len(OP, "add", add.len(), dims.large())?;
        }
        let kernels =
            Kernels { f32: &kernels::AVG_POOL_BWD_F32, bf16: &kernels::AVG_POOL_BWD_BF16, values_per_pixel: 4 };
        self.resample(OP, &kernels, dims, Views { x: dy, add, y: dx, stats: None, offset: 0 })
    }
}
