//! Launches of `kernels/linear.cu`: one kernel for the three products, told apart by strides and epilogues.

use bytemuck::{Pod, Zeroable};

use super::{Linear, LinearDims, LinearGradients, check};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::expect_f32;

const OP: &str = "linear";

/// `LinearArgs` of `kernels/linear.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    a: DevicePtr,
    b: DevicePtr,
    bias: DevicePtr,
    gate: DevicePtr,
    out: DevicePtr,
    sums: DevicePtr,
    rows: u32,
    columns: u32,
    depth: u32,
    a_row: u32,
    a_depth: u32,
    b_depth: u32,
    b_column: u32,
    flags: u32,
}

fn launch<L: Launcher>(gpu: &Gpu<L>, args: &Args) -> Result<()> {
    let tile = kernels::LINEAR_TILE;
    let shared = 2 * tile * (tile + 1) * 4;
    let grid = [args.columns.div_ceil(tile), args.rows.div_ceil(tile), 1];
    gpu.launch(&kernels::LINEAR_F32, grid, [kernels::LINEAR_THREADS, 1, 1], shared, args)
}

impl<L: Launcher> Linear for Gpu<L> {
    fn linear(
        &self,
        d: &LinearDims,
        x: GpuSlice<'_>,
        w: GpuSlice<'_>,
        b: GpuSlice<'_>,
        y: GpuSliceMut<'_>,
    ) -> Result<()> {
        let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
        check(d, &[])?;
        for (name, view, want) in [("x", x, n * c), ("w", w, c * k), ("b", b, k), ("y", y.shared(), n * k)] {
            expect_f32(OP, name, view, want)?;
        }
        let args = Args {
            a: x.ptr(),
            b: w.ptr(),
            bias: b.ptr(),
            gate: DevicePtr::NULL,
            out: y.ptr(),
            sums: DevicePtr::NULL,
            rows: d.n,
            columns: d.k,
            depth: d.c,
            a_row: d.c,
            a_depth: 1,
            b_depth: d.k,
            b_column: 1,
            flags: if d.silu != 0 { kernels::LINEAR_SILU } else { 0 },
        };
        launch(self, &args)
    }

    fn linear_backward(
        &self,
        d: &LinearDims,
        x: GpuSlice<'_>,
        w: GpuSlice<'_>,
        dy: GpuSlice<'_>,
        out: LinearGradients<'_, Self>,
    ) -> Result<()> {
        let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
        let LinearGradients { dx, accumulate, dw, db } = out;
        check(d, &[])?;
        let views =
            [("x", x, n * c), ("w", w, c * k), ("dy", dy, n * k), ("dw", dw.shared(), c * k), ("db", db.shared(), k)];
        for (name, view, want) in views {
            expect_f32(OP, name, view, want)?;
        }
        let silu = d.silu != 0;
        if let Some(dx) = dx {
            expect_f32(OP, "dx", dx.shared(), n * c)?;
            let args = Args {
                a: dy.ptr(),
                b: w.ptr(),
                bias: DevicePtr::NULL,
                gate: if silu { x.ptr() } else { DevicePtr::NULL },
                out: dx.ptr(),
                sums: DevicePtr::NULL,
                rows: d.n,
                columns: d.c,
                depth: d.k,
                a_row: d.k,
                a_depth: 1,
                b_depth: 1,
                b_column: d.k,
                flags: if accumulate { kernels::LINEAR_ACCUMULATE } else { 0 },
            };
            launch(self, &args)?;
        }
        let args = Args {
            a: x.ptr(),
            b: dy.ptr(),
            bias: DevicePtr::NULL,
            gate: DevicePtr::NULL,
            out: dw.ptr(),
            sums: db.ptr(),
            rows: d.c,
            columns: d.k,
            depth: d.n,
            a_row: 1,
            a_depth: d.c,
            b_depth: d.k,
            b_column: 1,
            flags: kernels::LINEAR_ACCUMULATE | if silu { kernels::LINEAR_SILU } else { 0 },
        };
        launch(self, &args)
    }
}
