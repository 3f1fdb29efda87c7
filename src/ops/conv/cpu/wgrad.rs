//! Gradients of the weights: `dW[t,c,k]` += sum over pixels of `z[p+t,c]` `dy[p,k]`.
//!
//! The units are dealt to a fixed number of partial sums (a function of the shape, not of the threads); each keeps its own dW in
//! the order of the register blocks. A block holds one filter row (three taps, or one for 1x1) by a few input channels by two
//! vectors of output channels in registers and runs over the pixels of a sub-band that fits the first-level cache: per pixel two
//! loads of dy and one broadcast per (tap, channel). Partials are added in order at the end.

use super::super::{ConvDims, Operand, Prologue, WeightGradients};
use super::bands::{self, Band, Unit};
use super::{expect, pack, shape_error};
use crate::device::Memory;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Cpu, Isa};
use crate::error::Result;

/// Most partial sums: enough for many threads, few enough that their additions do not show.
const MAX_PARTIALS: usize = 16;
/// Fewest.
const MIN_PARTIALS: usize = 4;
/// Elements of all partial sums together, roughly: large filters get fewer.
const PARTIAL_BUDGET: usize = 1 << 20;
/// Pixels of a sub-band: its dy (two vectors) and the columns of x that a block reads stay in the first-level cache.
const SUB_PIXELS: usize = 160;

/// Register blocks of an instruction set: input channels of a block for 3x3 (three taps a block) and for 1x1.
#[derive(Clone, Copy)]
struct Blocks {
    c3: usize,
    c1: usize,
}

impl Blocks {
    fn of(isa: Isa) -> Self {
        match isa {
            Isa::Avx512 => Blocks { c3: 4, c1: 8 },
            Isa::Avx2 => Blocks { c3: 2, c1: 4 },
            Isa::Portable => Blocks { c3: 1, c1: 2 },
        }
    }
}

/// Extents of one product (main or residual) in blocks.
#[derive(Clone, Copy)]
struct Layout {
    /// Side of the filter.
    side: usize,
    /// Channels of a block.
    block: usize,
    /// Channels, and channels rounded up to blocks.
    c: usize,
    c_padded: usize,
}

impl Layout {
    fn new(side: usize, c: usize, blocks: Blocks) -> Self {
        let block = if side == 3 { blocks.c3 } else { blocks.c1 };
        Layout { side, block, c, c_padded: c.next_multiple_of(block) }
    }
    /// Rows of a tile of the partial sum.
    fn rows(&self) -> usize {
        self.side * self.side * self.c_padded
    }
    /// Row of (tap, channel): order is filter row, block of channels, tap in the row, channel in the block.
    fn row(&self, tap: usize, c: usize) -> usize {
        let (r, s) = (tap / self.side, tap % self.side);
        ((r * (self.c_padded / self.block) + c / self.block) * self.side + s) * self.block + c % self.block
    }
}

struct Shared<'a> {
    d: ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    dy: &'a [f32],
    main: Layout,
    res: Layout,
}

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
    let lanes = cpu.isa().lanes();
    let kp = pack::padded(k, lanes);
    let blocks = Blocks::of(cpu.isa());
    let (main, res) = (Layout::new(d.side as usize, c, blocks), Layout::new(1, r, blocks));
    let units = bands::units(d);
    // A partial sum: main rows, residual rows, border sums; each [rows, kp], cut into tiles of k.
    let len = (main.rows() + res.rows() + taps) * kp;
    let parts = (PARTIAL_BUDGET / len).clamp(MIN_PARTIALS, MAX_PARTIALS);
    // A power of two deals evenly to any usual number of threads.
    let parts = (1usize << parts.ilog2()).min(units.len());
    let mut workspace = cpu.alloc(parts * len)?;
    let shared = Shared { d: *d, input, prologue, residual, dy, main, res };
    let per = |i: usize| i * units.len() / parts;
    let jobs: Vec<_> = workspace
        .as_mut_slice()
        .chunks_exact_mut(len)
        .enumerate()
        .map(|(i, sums)| (&units[per(i)..per(i + 1)], sums))
        .collect();
    let isa = cpu.isa();
    cpu.for_each(jobs, |(units, sums)| {
        sums.fill(0.0);
        for unit in units {
            run_unit(isa, &shared, unit, sums);
        }
    });

    // Add the partials, in order, into the caller's gradients.
    let partials = workspace.as_slice();
    let gather = |dst: &mut [f32], base: usize, rows: usize, row: usize| {
        for (k0, vectors) in pack::tiles(k, lanes) {
            let width = vectors * lanes;
            let live = width.min(k - k0);
            let at = base + rows * k0 + row * width;
            for (lane, dst) in dst[k0..k0 + live].iter_mut().enumerate() {
                *dst += (0..parts).map(|p| partials[p * len + at + lane]).sum::<f32>();
            }
        }
    };
    let rows_of = |view: &mut [f32], base: usize, layout: Layout| {
        let jobs: Vec<_> = view
            .chunks_mut(k * layout.c)
            .enumerate()
            .flat_map(|(tap, rows)| rows.chunks_mut(k * 32).enumerate().map(move |(i, rows)| (tap, i * 32, rows)))
            .collect();
        cpu.for_each(jobs, |(tap, first, rows)| {
            for (i, row) in rows.chunks_exact_mut(k).enumerate() {
                gather(row, base, layout.rows(), layout.row(tap, first + i));
            }
        });
    };
    rows_of(out.dw, 0, main);
    if let Some(dw_res) = out.dw_res {
        rows_of(dw_res, main.rows() * kp, res);
    }
    let sums_base = (main.rows() + res.rows()) * kp;
    let mut sums = vec![0.0; taps * k];
    for (tap, row) in sums.chunks_exact_mut(k).enumerate() {
        for (i, dst) in row.iter_mut().enumerate() {
            *dst = (0..parts).map(|p| partials[p * len + sums_base + tap * kp + i]).sum();
        }
    }
    // The centre tap is never outside: its border sum is the sum over all pixels.
    let centre = &sums[taps / 2 * k..][..k];
    for db in [out.db, out.db_res].into_iter().flatten() {
        db.iter_mut().zip(centre).for_each(|(db, s)| *db += s);
    }
    if let Some(border_sums) = out.border_sums {
        border_sums.copy_from_slice(&sums);
    }
    Ok(())
}

/// One unit, with its scratch: the bands of main input and residual, dy padded to whole vectors, one row of output channels.
struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    unit: &'s Unit,
    sums: &'s mut [f32],
    bands: [Band; 2],
    res_dims: ConvDims,
    scratch: [&'s mut [f32]; 4],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, unit: &Unit, sums: &mut [f32]) {
    let d = &shared.d;
    let k = d.k as usize;
    let kp = pack::padded(k, isa.lanes());
    // The residual as a 1x1 convolution of its own, for the band loader.
    let res_dims = ConvDims { c0: d.r0, c1: d.r1, r0: 0, r1: 0, side: 1, ..*d };
    let bands = [Band::new(d, d.c(), shared.main.block), Band::new(&res_dims, d.r(), shared.res.block)];
    let res_len = if shared.residual.is_some() { bands[1].len(unit) } else { 0 };
    let dy_len = if k == kp { 0 } else { unit.pixels(d) * kp };
    with_scratch([bands[0].len(unit), res_len, dy_len, kp], |scratch| {
        dispatch(isa, UnitKernel { shared, unit, sums, bands, res_dims, scratch });
    });
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, unit, sums, bands: [band, res_band], res_dims, scratch } = self;
        let Shared { d, input, prologue, residual, dy, main, res } = shared;
        let [buf, res_buf, dy_buf, row_sum] = scratch;
        let (k, n, first) = (d.k as usize, unit.pixels(d), unit.first_pixel(d));
        let kp = row_sum.len();
        let (main_sums, rest) = sums.split_at_mut(main.rows() * kp);
        let (res_sums, border) = rest.split_at_mut(res.rows() * kp);
        let dy = &dy[first * k..(first + n) * k];
        // SAFETY: the caller vouches for the instruction set; the geometry below stays inside band, dy and sums.
        unsafe {
            bands::load::<S>(d, unit, &band, input, prologue, buf);
            if let Some(r) = residual {
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
            border_sums::<S>(d, unit, dy, row_sum, border);
            let rows = unit.images * unit.rows;
            let sub = if d.w as usize >= SUB_PIXELS { 1 } else { SUB_PIXELS / d.w as usize };
            let mut row = 0;
            while row < rows {
                let end = if row + sub < rows { row + sub } else { rows };
                let geometry = Geometry { d, unit, dy, kp, row, end };
                geometry.accumulate::<S>(&band, buf, main, main_sums);
                if residual.is_some() {
                    geometry.accumulate::<S>(&res_band, res_buf, res, res_sums);
                }
                row = end;
            }
        }
    }
}

/// border[t, k] += dy over the pixels whose tap t is inside the picture: the sum of a row serves all its taps, less the first
/// or last pixel where the tap lies left or right of it.
#[inline(always)]
unsafe fn border_sums<S: Simd>(d: &ConvDims, unit: &Unit, dy: &[f32], row_sum: &mut [f32], border: &mut [f32]) {
    let (w, h, side, kp) = (d.w as usize, d.h as usize, d.side as usize, row_sum.len());
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

/// A sub-band of the unit: rows `row..end` of its images, counted through.
struct Geometry<'a> {
    d: &'a ConvDims,
    unit: &'a Unit,
    dy: &'a [f32],
    kp: usize,
    row: usize,
    end: usize,
}

impl Geometry<'_> {
    #[inline(always)]
    unsafe fn accumulate<S: Simd>(&self, band: &Band, buf: &[f32], layout: &Layout, sums: &mut [f32]) {
        // SAFETY: passed on.
        unsafe {
            let mut k0 = 0;
            while k0 < self.kp {
                let vectors = pack::tile_vectors(self.kp, k0, S::LANES);
                let width = vectors * S::LANES;
                let mut at = layout.rows() * k0;
                for r in 0..layout.side {
                    let mut c = 0;
                    while c < layout.c_padded {
                        let len = layout.side * layout.block * width;
                        let block = &mut sums[at..at + len];
                        at += len;
                        // Conditions on constants: what is not taken is not compiled.
                        if S::PIXELS == 8 {
                            self.sides::<S, 4, 8>(layout.side, vectors, band, buf, [r, c, k0], block);
                        } else if S::PIXELS == 6 {
                            self.sides::<S, 2, 4>(layout.side, vectors, band, buf, [r, c, k0], block);
                        } else {
                            self.sides::<S, 1, 2>(layout.side, vectors, band, buf, [r, c, k0], block);
                        }
                        c += layout.block;
                    }
                }
                k0 += width;
            }
        }
    }

    /// Picks the register block: C3 channels for 3x3, C1 for 1x1; `at` is filter row, first channel, first output channel.
    #[inline(always)]
    unsafe fn sides<S: Simd, const C3: usize, const C1: usize>(
        &self,
        side: usize,
        vectors: usize,
        band: &Band,
        buf: &[f32],
        [r, c, k0]: [usize; 3],
        block: &mut [f32],
    ) {
        // SAFETY: passed on.
        unsafe {
            match (side, vectors) {
                (3, 2) => self.block::<S, 3, C3, 2>(band, buf, r, c, k0, block),
                (3, _) => self.block::<S, 3, C3, 1>(band, buf, r, c, k0, block),
                (_, 2) => self.block::<S, 1, C1, 2>(band, buf, r, c, k0, block),
                (_, _) => self.block::<S, 1, C1, 1>(band, buf, r, c, k0, block),
            }
        }
    }

    /// The inner loop: TS taps of filter row `r` by CB channels from `c` by CV vectors from `k0`.
    ///
    /// # Safety
    /// The instruction set of `S`; band, dy and block cover what the geometry says.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // plain counted loops unroll into registers
    unsafe fn block<S: Simd, const TS: usize, const CB: usize, const CV: usize>(
        &self,
        band: &Band,
        buf: &[f32],
        r: usize,
        c: usize,
        k0: usize,
        block: &mut [f32],
    ) {
        let (w, kp, pitch) = (self.d.w as usize, self.kp, band.pitch);
        // SAFETY: as the function's contract says.
        unsafe {
            let sums = block.as_mut_ptr();
            let mut acc = [[[S::splat(0.0); CV]; CB]; TS];
            for s in 0..TS {
                for i in 0..CB {
                    for v in 0..CV {
                        acc[s][i][v] = S::load(sums.add(((s * CB + i) * CV + v) * S::LANES));
                    }
                }
            }
            for row in self.row..self.end {
                let (image, y) = (row / self.unit.rows, row % self.unit.rows);
                let mut x = buf.as_ptr().add(band.offset(self.unit, image, y + r, 0) + c);
                let mut dy = self.dy.as_ptr().add(row * w * kp + k0);
                for _ in 0..w {
                    let mut g = [S::splat(0.0); CV];
                    for (v, g) in g.iter_mut().enumerate() {
                        *g = S::load(dy.add(v * S::LANES));
                    }
                    for s in 0..TS {
                        for i in 0..CB {
                            let b = S::broadcast(x.add(s * pitch), i);
                            for v in 0..CV {
                                acc[s][i][v] = S::fma(b, g[v], acc[s][i][v]);
                            }
                        }
                    }
                    x = x.add(pitch);
                    dy = dy.add(kp);
                }
            }
            for (s, acc) in acc.iter().enumerate() {
                for (i, acc) in acc.iter().enumerate() {
                    for (v, &a) in acc.iter().enumerate() {
                        S::store(sums.add(((s * CB + i) * CV + v) * S::LANES), a);
                    }
                }
            }
        }
    }
}
