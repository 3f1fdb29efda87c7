//! Gradients of the weights: `dW[t,c,k]` += sum over pixels of `z[p+t,c]` `dy[p,k]`.
//!
//! The units are dealt to a fixed number of partial sums (a function of the shape, not of the threads); each keeps its own dW in
//! the order of the register blocks. A block holds one filter row (three taps, or one for 1x1) by a few input channels by two
//! vectors of output channels in registers and runs over the pixels of a sub-band that fits the first-level cache: per pixel two
//! loads of dy and one broadcast per (tap, channel). Partials are added in order at the end.
//!
//! By Winograd's tiles a partial sum is dU, [16 positions, C, K]: each position is a product [C, tiles] x [tiles, K] with a block of
//! input channels by two vectors of output channels in registers; the sum of the partials is turned into dW at the end.

use super::super::{ConvDims, Operand, Prologue, WeightGradients};
use super::bands::{self, Band, Unit};
use super::winograd::{self, Tiles};
use super::{expect, pack, shape_error};
use crate::device::Memory;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Cpu, Isa, PIECE};
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
            Isa::Avx2 => Blocks { c3: 2, c1: 6 },
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
    let units = bands::units(d);
    let biases = out.db.is_some() || out.db_res.is_some();
    let borders = if out.border_sums.is_some() { taps } else { usize::from(biases) };
    let tiled = winograd::wins(d);
    let shared = Shared { d: *d, input, prologue, residual, dy, main, res, tiled, borders };
    let main_rows = shared.main_rows();
    // A partial sum: main rows, residual rows, border sums; each [rows, kp], cut into tiles of k.
    let len = (main_rows + res.rows() + borders) * kp;
    let parts = (PARTIAL_BUDGET / len).clamp(MIN_PARTIALS, MAX_PARTIALS);
    // A power of two deals evenly to any usual number of threads.
    let parts = (1usize << parts.ilog2()).min(units.len());
    let mut workspace = cpu.alloc(parts * len)?;
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

    if tiled {
        // The sum of the partials first: the turn into taps reads each position several times.
        let (total, others) = workspace.as_mut_slice().split_at_mut(len);
        let others = &*others;
        let jobs: Vec<_> = total[..main_rows * kp].chunks_mut(PIECE).enumerate().collect();
        cpu.for_each_vectorized(jobs, |(i, total)| {
            for part in others.chunks_exact(len) {
                let part = &part[i * PIECE..][..total.len()];
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        });
        let total = &workspace.as_slice()[..main_rows * kp];
        let jobs: Vec<_> = out
            .dw
            .chunks_mut(k * c)
            .enumerate()
            .flat_map(|(tap, rows)| rows.chunks_mut(k * 32).enumerate().map(move |(i, rows)| (tap, i * 32, rows)))
            .collect();
        cpu.for_each_vectorized(jobs, |(tap, first, rows)| {
            for (i, row) in rows.chunks_exact_mut(k).enumerate() {
                for (k0, vectors) in pack::tiles(k, lanes) {
                    let width = vectors * lanes;
                    let at = main_rows * k0 + (first + i) * width;
                    winograd::add_gradient(tap, &total[at..], c * width, &mut row[k0..k.min(k0 + width)]);
                }
            }
        });
    }

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
    if !tiled {
        rows_of(out.dw, 0, main);
    }
    if let Some(dw_res) = out.dw_res {
        rows_of(dw_res, main_rows * kp, res);
    }
    let sums_base = (main_rows + res.rows()) * kp;
    let mut sums = vec![0.0; borders * k];
    for (tap, row) in sums.chunks_exact_mut(k).enumerate() {
        for (i, dst) in row.iter_mut().enumerate() {
            *dst = (0..parts).map(|p| partials[p * len + sums_base + tap * kp + i]).sum();
        }
    }
    // The centre tap is never outside: its border sum is the sum over all pixels.
    if let Some(centre) = sums.chunks_exact(k).nth(borders / 2) {
        for db in [out.db, out.db_res].into_iter().flatten() {
            db.iter_mut().zip(centre).for_each(|(db, s)| *db += s);
        }
    }
    if let Some(border_sums) = out.border_sums {
        border_sums.copy_from_slice(&sums);
    }
    Ok(())
}

/// One unit, with its scratch: the bands of main input and residual, dy padded to whole vectors, V and M where the product is taken
/// by tiles.
struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    unit: &'s Unit,
    sums: &'s mut [f32],
    bands: [Band; 2],
    res_dims: ConvDims,
    kp: usize,
    tiles: Option<Tiles>,
    scratch: [&'s mut [f32]; 5],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, unit: &Unit, sums: &mut [f32]) {
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
        dispatch(isa, UnitKernel { shared, unit, sums, bands, res_dims, kp, tiles, scratch });
    });
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, unit, sums, bands: [band, res_band], res_dims, kp, tiles, scratch } = self;
        let Shared { d, input, prologue, residual, dy, main, res, borders, .. } = shared;
        let [buf, res_buf, dy_buf, v, m] = scratch;
        let (k, n, first) = (d.k as usize, unit.pixels(d), unit.first_pixel(d));
        let (main_sums, rest) = sums.split_at_mut(shared.main_rows() * kp);
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
            if *borders > 0 {
                border_sums::<S>(d, unit, dy, *borders, kp, border);
            }
            if let Some(tiles) = &tiles {
                TileWork { d, unit, band: &band, buf, dy }.accumulate::<S>(tiles, v, m, main_sums);
            }
            let rows = unit.images * unit.rows;
            let sub = if d.w as usize >= SUB_PIXELS { 1 } else { SUB_PIXELS / d.w as usize };
            let mut row = 0;
            while row < rows && (tiles.is_none() || residual.is_some()) {
                let end = if row + sub < rows { row + sub } else { rows };
                let geometry = Geometry { d, unit, dy, kp, row, end };
                if tiles.is_none() {
                    geometry.accumulate::<S>(&band, buf, main, main_sums);
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

/// The main product of a unit by Winograd's tiles.
struct TileWork<'a> {
    d: &'a ConvDims,
    unit: &'a Unit,
    band: &'a Band,
    buf: &'a [f32],
    /// Of the unit, padded to whole vectors.
    dy: &'a [f32],
}

impl TileWork<'_> {
    /// sums[k tile][position, c, lane] += V^T M of all tiles.
    ///
    /// # Safety
    /// The instruction set of `S`; the band is loaded; V and M are those of the unit.
    #[inline(always)]
    unsafe fn accumulate<S: Simd>(&self, tiles: &Tiles, v: &mut [f32], m: &mut [f32], sums: &mut [f32]) {
        let TileWork { d, unit, .. } = *self;
        let (c, kp, rows) = (d.c(), tiles.m_pitch, winograd::POSITIONS * d.c());
        debug_assert!(sums.len() == rows * kp);
        // SAFETY: passed on; blocks cover the C rows and kp columns of each position.
        unsafe {
            let mut first = 0;
            while first < tiles.count {
                let end = if first + tiles.batch < tiles.count { first + tiles.batch } else { tiles.count };
                for position in 0..winograd::POSITIONS {
                    let (i, j) = (position / winograd::ROW, position % winograd::ROW);
                    let mut tile = if j == 0 { first } else { end };
                    while tile < end {
                        let run = tiles.run(first, tile, end);
                        winograd::transform_input_row::<S>(tiles, unit, self.band, self.buf, run, i, v);
                        winograd::transform_gradient_row::<S>(tiles, d, unit, self.dy, run, i, m);
                        tile += run.count;
                    }
                    let v = v[j * tiles.v_step()..].as_ptr();
                    let m = m[j * tiles.m_step()..].as_ptr();
                    let mut k0 = 0;
                    while k0 < kp {
                        let vectors = pack::tile_vectors(kp, k0, S::LANES);
                        let sums = sums.as_mut_ptr().add(rows * k0 + position * c * vectors * S::LANES);
                        let product = Outer { v, m: m.add(k0), tiles, count: end - first, sums };
                        if vectors == 2 {
                            product.rows::<S, 2>(c);
                        } else {
                            product.rows::<S, 1>(c);
                        }
                        k0 += vectors * S::LANES;
                    }
                }
                first = end;
            }
        }
    }
}

/// V^T M of one position and one tile of output channels.
struct Outer<'a> {
    v: *const f32,
    m: *const f32,
    tiles: &'a Tiles,
    /// Tiles in the batch.
    count: usize,
    sums: *mut f32,
}

impl Outer<'_> {
    /// All `c` rows, in blocks as high as the registers allow.
    ///
    /// # Safety
    /// As [`TileWork::accumulate`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const CV: usize>(&self, c: usize) {
        let mut i = 0;
        // SAFETY: passed on.
        unsafe {
            if S::PIXELS == 8 {
                while i + 8 <= c {
                    self.block::<S, 8, CV>(i);
                    i += 8;
                }
            }
            if S::PIXELS == 6 {
                while i + 6 <= c {
                    self.block::<S, 6, CV>(i);
                    i += 6;
                }
            }
            if S::PIXELS >= 6 && i + 4 <= c {
                self.block::<S, 4, CV>(i);
                i += 4;
            }
            while i + 2 <= c {
                self.block::<S, 2, CV>(i);
                i += 2;
            }
            if i < c {
                self.block::<S, 1, CV>(i);
            }
        }
    }

    /// CB input channels from `c` by CV vectors of output channels in registers, over the tiles of the batch.
    ///
    /// # Safety
    /// As [`TileWork::accumulate`].
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // plain counted loops unroll into registers
    unsafe fn block<S: Simd, const CB: usize, const CV: usize>(&self, c: usize) {
        // SAFETY: as the function's contract says.
        unsafe {
            let sums = self.sums.add(c * CV * S::LANES);
            let mut acc = [[S::splat(0.0); CV]; CB];
            for i in 0..CB {
                for v in 0..CV {
                    acc[i][v] = S::load(sums.add((i * CV + v) * S::LANES));
                }
            }
            let (mut x, mut y) = (self.v.add(c), self.m);
            for _ in 0..self.count {
                let mut g = [S::splat(0.0); CV];
                for v in 0..CV {
                    g[v] = S::load(y.add(v * S::LANES));
                }
                for i in 0..CB {
                    let b = S::broadcast(x, i);
                    for v in 0..CV {
                        acc[i][v] = S::fma(b, g[v], acc[i][v]);
                    }
                }
                x = x.add(self.tiles.v_pitch);
                y = y.add(self.tiles.m_pitch);
            }
            for i in 0..CB {
                for v in 0..CV {
                    S::store(sums.add((i * CV + v) * S::LANES), acc[i][v]);
                }
            }
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
                            self.sides::<S, 2, 6>(layout.side, vectors, band, buf, [r, c, k0], block);
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
