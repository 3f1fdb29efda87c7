//! Launches of `kernels/attention.cu` and `kernels/attention_bwd.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Attention, AttentionDims, check};
use crate::device::Memory;
use crate::device::gpu::{Arithmetic, DevicePtr, Dtype, Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};
use crate::ops::expect_f32;

const OP: &str = "attention";

/// `AttentionArgs` of `kernels/attention_tile.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    o: DevicePtr,
    d_o: DevicePtr,
    out0: DevicePtr,
    out1: DevicePtr,
    lse: DevicePtr,
    delta: DevicePtr,
    n: u32,
    t: u32,
    heads: u32,
    d: u32,
    q_stride: u32,
    o_stride: u32,
    out_stride: u32,
    scale: f32,
    vector: u32,
    unused: u32,
}

/// The kernels of one arithmetic.
struct Kernels {
    forward: &'static KernelEntry,
    delta: &'static KernelEntry,
    queries: &'static KernelEntry,
    keys: &'static KernelEntry,
}

fn kernels(arithmetic: Arithmetic) -> Kernels {
    match arithmetic {
        Arithmetic::Fp32 => Kernels {
            forward: &kernels::ATTENTION_FWD_F32,
            delta: &kernels::ATTENTION_DELTA_F32,
            queries: &kernels::ATTENTION_BWD_QUERIES_F32,
            keys: &kernels::ATTENTION_BWD_KEYS_F32,
        },
        Arithmetic::Tf32 => Kernels {
            forward: &kernels::ATTENTION_FWD_TF32,
            delta: &kernels::ATTENTION_DELTA_F32,
            queries: &kernels::ATTENTION_BWD_QUERIES_TF32,
            keys: &kernels::ATTENTION_BWD_KEYS_TF32,
        },
        Arithmetic::Bf16 => Kernels {
            forward: &kernels::ATTENTION_FWD_BF16,
            delta: &kernels::ATTENTION_DELTA_BF16,
            queries: &kernels::ATTENTION_BWD_QUERIES_BF16,
            keys: &kernels::ATTENTION_BWD_KEYS_BF16,
        },
    }
}

/// Bytes of `tiles` tiles of operands in shared memory, and of one for sums on their way between products, which float32 needs.
fn tile_bytes(dtype: Dtype, tiles: u32) -> u32 {
    let tile = kernels::ATTENTION_TILE;
    let tiles = if dtype == Dtype::F32 { tiles + 1 } else { tiles };
    tiles * tile * (tile * dtype.size() as u32 + kernels::ATTENTION_PAD)
}

/// Refuses views of another element type or length, and extents that the kernels cannot count.
fn check_views(d: &AttentionDims, dtype: Dtype, views: &[(&str, GpuSlice<'_>, usize)]) -> Result<()> {
    for &(name, view, want) in views {
        check(d, &[(name, view.len(), want)])?;
        if view.dtype() != dtype {
            let what = format!("`{name}` is {:?}, activations of this device are {dtype:?}", view.dtype());
            return Err(Error::Shape { op: OP, what });
        }
    }
    if u32::try_from(3 * d.len()).is_ok() && i32::try_from(d.lse_len()).is_ok() {
        return Ok(());
    }
    Err(Error::Shape { op: OP, what: format!("too large for the kernels' 32-bit indices: {d:?}") })
}

impl<L: Launcher> Gpu<L> {
    /// What all launches share. `activations`: those that are read or written in rows.
    fn attention_args(&self, d: &AttentionDims, qkv: GpuSlice<'_>, lse: DevicePtr, activations: &[DevicePtr]) -> Args {
        let size = self.activation_dtype().size();
        let rows = (d.head_dim as usize * size).is_multiple_of(16);
        let aligned = activations.iter().all(|ptr| ptr.0.is_multiple_of(16)) && qkv.ptr().0.is_multiple_of(16);
        let part = d.c() * size;
        Args {
            q: qkv.ptr(),
            k: qkv.ptr().offset(part),
            v: qkv.ptr().offset(2 * part),
            o: DevicePtr::NULL,
            d_o: DevicePtr::NULL,
            out0: DevicePtr::NULL,
            out1: DevicePtr::NULL,
            lse,
            delta: DevicePtr::NULL,
            n: d.n,
            t: d.tokens,
            heads: d.heads,
            d: d.head_dim,
            q_stride: 3 * d.c() as u32,
            o_stride: d.c() as u32,
            out_stride: d.c() as u32,
            scale: d.scale() as f32,
            vector: u32::from(rows && aligned),
            unused: 0,
        }
    }

    /// A block for each tile of rows of an (image, head), and for each tile of a head's columns.
    fn launch_attention(
        &self,
        kernel: &'static KernelEntry,
        d: &AttentionDims,
        shared: u32,
        args: &Args,
    ) -> Result<()> {
        let tile = kernels::ATTENTION_TILE;
        let grid = [d.n * d.heads * d.tokens.div_ceil(tile), d.head_dim.div_ceil(tile), 1];
        self.launch(kernel, grid, [kernels::ATTENTION_THREADS, 1, 1], shared, args)
    }
}

impl<L: Launcher> Attention for Gpu<L> {
    fn attention(&self, d: &AttentionDims, qkv: GpuSlice<'_>, y: GpuSliceMut<'_>, lse: GpuSliceMut<'_>) -> Result<()> {
        let dtype = self.activation_dtype();
        check_views(d, dtype, &[("qkv", qkv, 3 * d.len()), ("y", y.shared(), d.len())])?;
        expect_f32(OP, "lse", lse.shared(), d.lse_len())?;
        let args = Args { out0: y.ptr(), ..self.attention_args(d, qkv, lse.ptr(), &[y.ptr()]) };
        self.launch_attention(kernels(self.arithmetic()).forward, d, tile_bytes(dtype, 3), &args)
    }

    fn attention_backward(
        &self,
        d: &AttentionDims,
        qkv: GpuSlice<'_>,
        y: GpuSlice<'_>,
        lse: GpuSlice<'_>,
        dy: GpuSlice<'_>,
        dqkv: GpuSliceMut<'_>,
    ) -> Result<()> {
        let dtype = self.activation_dtype();
        let views =
            [("qkv", qkv, 3 * d.len()), ("y", y, d.len()), ("dy", dy, d.len()), ("dqkv", dqkv.shared(), 3 * d.len())];
        check_views(d, dtype, &views)?;
        expect_f32(OP, "lse", lse, d.lse_len())?;
        let delta = self.alloc(d.lse_len())?;
        let part = d.c() * dtype.size();
        let args = Args {
            o: y.ptr(),
            d_o: dy.ptr(),
            out0: dqkv.ptr(),
            delta: Self::all(&delta).ptr(),
            out_stride: 3 * d.c() as u32,
            ..self.attention_args(d, qkv, lse.ptr(), &[dy.ptr(), dqkv.ptr()])
        };
        let of = kernels(self.arithmetic());
        let rows = kernels::ATTENTION_THREADS as usize / 32;
        let grid = [crate::device::gpu::blocks(d.lse_len(), rows), 1, 1];
        self.launch(of.delta, grid, [kernels::ATTENTION_THREADS, 1, 1], 0, &args)?;

        let shared = tile_bytes(dtype, 4) + kernels::ATTENTION_COLUMN_BYTES;
        self.launch_attention(of.queries, d, shared, &args)?;
        let (dk, dv) = (dqkv.ptr().offset(part), dqkv.ptr().offset(2 * part));
        self.launch_attention(of.keys, d, shared, &Args { out0: dk, out1: dv, ..args })
    }
}
