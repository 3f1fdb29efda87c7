//! Gradients of the weights: `dW[t,c,k]` += sum over pixels of `z[p+t,c]` `dy[p,k]`.
//!
//! The units are dealt to a fixed number of partial sums (a function of the shape, not of the threads); each keeps its own dW in
//! the order of the register blocks. A block holds one filter row (three taps, or one for 1x1) by a few input channels by two
//! vectors of output channels in registers and runs over the pixels of a sub-band that fits the first-level cache: per pixel two
//! loads of dy and one broadcast per (tap, channel). Partials are added in order at the end.
//!
//! By Winograd's tiles a partial sum is dU, [16 positions, C, K]: each position is a product [C, tiles] x [tiles, K] with a block of
//! input channels by two vectors of output channels in registers; the sum of the partials is turned into dW at the end.

use std::ops::Range;

use super::super::{ConvDims, Operand, Prologue, WeightGradients};
use super::bands::{self, Band, Unit};
use super::wgrad_direct::{Blocks, Geometry, Layout, SUB_PIXELS};
use super::wgrad_tiles::TileWork;
use super::winograd::{self, ROW, Tiles};
use super::{expect, pack, partials, shape_error};
use crate::device::Memory;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Cpu, Isa};
use crate::error::Result;

struct Shared<'a> {
    d: ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    dy: &'a [f32],
    main: Layout,
    res: Layout,
    /// The main product is taken by tiles.
    tiled: bool,
    /// Rows of border sums: one for each tap, or for the centre tap alone, or none.
    borders: usize,
}

impl Shared<'_> {
    /// Rows of the main product in a partial sum.
    fn main_rows(&self) -> usize {
        if self.tiled { winograd::POSITIONS * self.main.c } else { self.main.rows() }
    }
}

/// Refuses gradients that do not fit.
pub(super) fn check(d: &ConvDims, dy: &[f32], out: &WeightGradients<'_, Cpu>) -> Result<()> {
    let (k, c, r, taps) = (d.k as usize, d.c(), d.r(), d.taps());
    expect("dy", dy.len(), d.pixels() * k)?;
    expect("dw", out.dw.len(), taps * c * k)?;
    if out.dw_res.is_some() != (r > 0) {
        return shape_error(format!("`dw_res` must be given exactly where there is a residual ({r} channels)"));
    }
    for (name, view, want) in [
        ("dw_res", out.dw_res.as_deref(), r * k),
        ("db", out.db.as_deref(), k),
        ("db_res", out.db_res.as_deref(), k),
        ("border_sums", out.border_sums.as_deref(), taps * k),
    ] {
        if let Some(view) = view {
            expect(name, view.len(), want)?;
        }
    }
    Ok(())
}

/// Lengths are checked.
pub(super) fn wgrad<'a>(
    cpu: &Cpu,
    d: &ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    dy: &'a [f32],
    out: WeightGradients<'_, Cpu>,
) -> Result<()> {
    let (k, c, r, taps) = (d.k as usize, d.c(), d.r(), d.taps());
    let lanes = cpu.isa().lanes();
    let kp = pack::padded(k, lanes);
    let blocks = Blocks::of(cpu.isa());
    let (main, res) = (Layout::new(d.side as usize, c, blocks), Layout::new(1, r, blocks));
    let units = bands::units(d, bands::MIN_UNITS);
    let biases = out.db.is_some() || out.db_res.is_some();
    let borders = if out.border_sums.is_some() { taps } else { usize::from(biases) };
    let tiled = winograd::wins(d);
    let shared = Shared { d: *d, input, prologue, residual, dy, main, res, tiled, borders };
    let main_rows = shared.main_rows();
    // A partial sum: main rows, residual rows, border sums; each [rows, kp], cut into tiles of k.
    let len = (main_rows + res.rows() + borders) * kp;
    let parts = partials::count(len, units.len());
    let mut workspace = cpu.alloc(parts * len)?;
    // With more threads than partial sums, the rows of positions are work of their own, and the rest too. Each sum is the same.
    let split = tiled && cpu.threads() > parts;
    let mut jobs = Vec::new();
    for (i, sums) in workspace.as_mut_slice().chunks_exact_mut(len).enumerate() {
        let units = &units[partials::share(i, parts, units.len())];
        let (main, rest) = sums.split_at_mut(main_rows * kp);
        if split {
            let row = ROW * c * kp;
            jobs.extend(main.chunks_exact_mut(row).enumerate().map(|(i, main)| Job {
                units,
                rows: i..i + 1,
                main,
                rest: None,
            }));
            jobs.push(Job { units, rows: 0..0, main: &mut [], rest: Some(rest) });
        } else {
            jobs.push(Job { units, rows: 0..winograd::POSITIONS / ROW, main, rest: Some(rest) });
        }
    }
    let isa = cpu.isa();
    cpu.for_each(jobs, |mut job| {
        job.main.fill(0.0);
        if let Some(rest) = &mut job.rest {
            rest.fill(0.0);
        }
        for unit in job.units {
            run_unit(isa, &shared, unit, &mut job);
        }
    });

    // Their sum first: the turn of positions into taps reads each of them several times.
    let total = partials::add_up(cpu, workspace.as_mut_slice(), len);
    if tiled {
        cpu.for_each_vectorized(partials::pieces(out.dw, c, k), |(tap, first, rows)| {
            for (i, row) in rows.chunks_exact_mut(k).enumerate() {
                for (k0, vectors) in pack::tiles(k, lanes) {
                    let width = vectors * lanes;
                    let at = c * k0 + (first + i) * width;
                    winograd::add_gradient(tap, &total[at..], c * kp, &mut row[k0..k.min(k0 + width)]);
                }
            }
        });
    }
    let add = |view: &mut [f32], base: usize, layout: Layout| {
        cpu.for_each(partials::pieces(view, layout.c, k), |(tap, first, rows)| {
            for (i, row) in rows.chunks_exact_mut(k).enumerate() {
                for (k0, vectors) in pack::tiles(k, lanes) {
                    let width = vectors * lanes;
                    let at = base + layout.rows() * k0 + layout.row(tap, first + i) * width;
                    let dst = &mut row[k0..k.min(k0 + width)];
                    dst.iter_mut().zip(&total[at..]).for_each(|(dst, sum)| *dst += sum);
                }
            }
        });
    };
    if !tiled {
        add(out.dw, 0, main);
    }
    if let Some(dw_res) = out.dw_res {
        add(dw_res, main_rows * kp, res);
    }
    let border = |tap: usize| &total[(main_rows + res.rows() + tap) * kp..][..k];
    // The centre tap is never outside: its border sum is the sum over all pixels.
    for db in [out.db, out.db_res].into_iter().flatten() {
        db.iter_mut().zip(border(borders / 2)).for_each(|(db, s)| *db += s);
    }
    if let Some(border_sums) = out.border_sums {
        border_sums.chunks_exact_mut(k).enumerate().for_each(|(tap, row)| row.copy_from_slice(border(tap)));
    }
    Ok(())
}

/// Partial sums, or some of them, and the units that go into them.
struct Job<'s> {
    units: &'s [Unit],
    /// Rows of a tile's positions; all where there are no tiles.
    rows: Range<usize>,
    /// Of the main product.
    main: &'s mut [f32],
    /// Of the residual, and the border sums.
    rest: Option<&'s mut [f32]>,
}

/// One unit, with its scratch: the bands of main input and residual, dy padded to whole vectors, V and M where the product is taken
/// by tiles.
struct UnitKernel<'s, 's2, 'a> {
    shared: &'s Shared<'a>,
    unit: &'s Unit,
    job: &'s mut Job<'s2>,
    bands: [Band; 2],
    res_dims: ConvDims,
    kp: usize,
    tiles: Option<Tiles>,
    scratch: [&'s mut [f32]; 5],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, unit: &Unit, job: &mut Job<'_>) {
    let d = &shared.d;
    let k = d.k as usize;
    let kp = pack::padded(k, isa.lanes());
    // The residual as a 1x1 convolution of its own, for the band loader.
    let res_dims = ConvDims { c0: d.r0, c1: d.r1, r0: 0, r1: 0, side: 1, ..*d };
    let band = if shared.tiled { Band::even(d, d.c(), isa.lanes()) } else { Band::new(d, d.c(), shared.main.block) };
    let bands = [band, Band::new(&res_dims, d.r(), shared.res.block)];
    let res_len = if shared.residual.is_some() { bands[1].len(unit) } else { 0 };
    let dy_len = if k == kp { 0 } else { unit.pixels(d) * kp };
    let tiles = shared.tiled.then(|| Tiles::new(d, unit, band.pitch, kp, 8));
    let [v_len, m_len] = tiles.map_or([0; 2], |tiles| tiles.lengths());
    with_scratch([bands[0].len(unit), res_len, dy_len, v_len, m_len], |scratch| {
        dispatch(isa, UnitKernel { shared, unit, job, bands, res_dims, kp, tiles, scratch });
    });
}

impl Kernel for UnitKernel<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, unit, job, bands: [band, res_band], res_dims, kp, tiles, scratch } = self;
        let Shared { d, input, prologue, residual, dy, main, res, borders, .. } = shared;
        let [buf, res_buf, dy_buf, v, m] = scratch;
        let (k, n, first) = (d.k as usize, unit.pixels(d), unit.first_pixel(d));
        let (with_rest, rest) = match &mut job.rest {
            Some(rest) => (true, &mut rest[..]),
            None => (false, &mut [][..]),
        };
        let (res_sums, border) = rest.split_at_mut(if with_rest { res.rows() * kp } else { 0 });
        let residual = if with_rest { *residual } else { None };
        let dy = &dy[first * k..(first + n) * k];
        // SAFETY: the caller vouches for the instruction set; the geometry below stays inside band, dy and sums.
        unsafe {
            if !job.rows.is_empty() {
                bands::load::<S>(d, unit, &band, input, prologue, buf);
            }
            if let Some(r) = &residual {
                bands::load::<S>(&res_dims, unit, &res_band, r, &Prologue::none(), res_buf);
            }
            let dy: &[f32] = if k == kp {
                dy
            } else {
                for p in 0..n {
                    dy_buf[p * kp..p * kp + k].copy_from_slice(&dy[p * k..(p + 1) * k]);
                    dy_buf[p * kp + k..(p + 1) * kp].fill(0.0);
                }
                dy_buf
            };
            if *borders > 0 && with_rest {
                border_sums::<S>(d, unit, dy, *borders, kp, border);
            }
            if let Some(tiles) = &tiles {
                let work = TileWork { d, unit, band: &band, buf, dy, rows: job.rows.clone() };
                work.accumulate::<S>(tiles, v, m, job.main);
            }
            let rows = unit.images * unit.rows;
            let sub = if d.w as usize >= SUB_PIXELS { 1 } else { SUB_PIXELS / d.w as usize };
            let mut row = 0;
            while row < rows && (tiles.is_none() || residual.is_some()) {
                let end = if row + sub < rows { row + sub } else { rows };
                let geometry = Geometry { d, unit, dy, kp, row, end };
                if tiles.is_none() {
                    geometry.accumulate::<S>(&band, buf, main, job.main);
                }
                if residual.is_some() {
                    geometry.accumulate::<S>(&res_band, res_buf, res, res_sums);
                }
                row = end;
            }
        }
    }
}

/// border[t, k] += dy over the pixels whose tap t is inside the picture, for all `taps` of the filter or, with 1, for its centre:
/// the sum of a row serves all its taps, less the first or last pixel where the tap lies left or right of it.
#[inline(always)]
pub(super) unsafe fn border_sums<S: Simd>(
    d: &ConvDims,
    unit: &Unit,
    dy: &[f32],
    taps: usize,
    kp: usize,
    border: &mut [f32],
) {
    let (w, h, side) = (d.w as usize, d.h as usize, if taps == 9 { 3 } else { 1 });
    let halo = side / 2;
    for i in 0..unit.images * unit.rows {
        let row = &dy[i * w * kp..(i + 1) * w * kp];
        let y = unit.row + i % unit.rows;
        let mut k = 0;
        while k < kp {
            // SAFETY: the caller vouches for the instruction set; kp is a whole number of vectors, rows hold w * kp elements,
            // border taps * kp.
            unsafe {
                let mut sum = S::splat(0.0);
                for q in 0..w {
                    sum = S::add(sum, S::load(row.as_ptr().add(q * kp + k)));
                }
                let left = S::load(row.as_ptr().add(k));
                let right = S::load(row.as_ptr().add((w - 1) * kp + k));
                for t in 0..side * side {
                    let (r, s) = (t / side, t % side);
                    if y + r < halo || y + r >= h + halo {
                        continue;
                    }
                    let at = border.as_mut_ptr().add(t * kp + k);
                    let mut inside = sum;
                    if s < halo {
                        inside = S::sub(inside, left);
                    }
                    if s > halo {
                        inside = S::sub(inside, right);
                    }
                    S::store(at, S::add(S::load(at), inside));
                }
            }
            k += S::LANES;
        }
    }
}
