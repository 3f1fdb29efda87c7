//! Gradients of filter and bias.
//!
//! Both cases are one product, of a tensor z on the large side and a tensor v on the small one: `G[t, i, j] = sum_q z[2q + o + t - 1, i] v[q, j]`. Where
//! pixels are kept, z is x and v is dy, and G is dW. With doubling, z is dy summed over windows and v is x; G is then dW turned by 180 degrees and its
//! channels exchanged.
//!
//! As in the convolution's own gradients the units are dealt to a fixed number of partial sums, a function of the shape, and a register block of one filter
//! row by a few channels of z by two vectors of v runs over the pixels of a sub-band that fits the first-level cache.

use super::plan::{enlarged, units};
use super::product::windows;
use super::{ResampleConvDims, Resampling, offset};
use crate::device::Memory;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, load_part, store_part};
use crate::device::cpu::{Cpu, Isa};
use crate::error::Result;
use crate::ops::conv::cpu::bands::{self, Band, Unit};
use crate::ops::conv::cpu::{pack, partials};
use crate::ops::conv::{ConvDims, Operand, Prologue};

/// Small pixels of a sub-band: its part of v (two vectors) and the lines of z that a block reads stay in the first-level cache.
const SUB_PIXELS: usize = 96;

/// Channels of z in a register block.
fn block_channels(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 => 2,
        Isa::Portable => 1,
    }
}

struct Shared<'a> {
    /// The large side, with z's channels.
    large: ConvDims,
    /// The small side, with v's channels.
    small: ConvDims,
    z: &'a [f32],
    v: &'a [f32],
    windows: bool,
    offset: usize,
    /// Channels of a block of z; of z rounded up to blocks; of v rounded up to vectors.
    block: usize,
    zp: usize,
    vp: usize,
}

impl Shared<'_> {
    /// Row of (tap, channel) in a tile of G: filter row, block of channels, tap in the row, channel in the block.
    fn row(&self, tap: usize, i: usize) -> usize {
        let (r, s) = (tap / 3, tap % 3);
        ((r * (self.zp / self.block) + i / self.block) * 3 + s) * self.block + i % self.block
    }

    /// Place of (tap, i, j) in G, of vectors of `lanes`.
    fn place(&self, tap: usize, i: usize, j: usize, lanes: usize) -> usize {
        let k0 = j / (2 * lanes) * 2 * lanes;
        let width = pack::tile_vectors(self.small.c0 as usize, k0, lanes) * lanes;
        9 * self.zp * k0 + self.row(tap, i) * width + j - k0
    }
}

pub(super) fn wgrad(
    cpu: &Cpu,
    d: &ResampleConvDims,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: &mut [f32],
) -> Result<()> {
    let (isa, lanes) = (cpu.isa(), cpu.isa().lanes());
    let (c, k) = (d.c as usize, d.k as usize);
    let windows = d.resampling == Resampling::Double;
    let (z, v, zc, vc) = if windows { (dy, x, k, c) } else { (x, dy, c, k) };
    let block = block_channels(isa);
    let side = |h: u32, w: u32, c: usize| ConvDims { n: d.n, h, w, c0: c as u32, c1: 0, r0: 0, r1: 0, k: 1, side: 3 };
    let (zp, vp) = (zc.next_multiple_of(block), pack::padded(vc, lanes));
    let (large, small) = (side(d.h, d.w, zc), side(d.h / 2, d.w / 2, vc));
    let shared = Shared { large, small, z, v, windows, offset: offset(d), block, zp, vp };

    let units = units(d.n as usize, small.h as usize, small.w as usize, zc.max(vc));
    // A partial sum: G, and the sum of dy over its pixels.
    let len = 9 * zp * vp + pack::padded(k, lanes);
    let parts = partials::count(len, units.len());
    let mut workspace = cpu.alloc(parts * len)?;
    let sums = workspace.as_mut_slice().chunks_exact_mut(len).enumerate();
    let jobs = sums.map(|(i, sums)| (&units[partials::share(i, parts, units.len())], sums)).collect();
    cpu.for_each(jobs, |(units, sums)| {
        sums.fill(0.0);
        for unit in units {
            run_unit(isa, &shared, unit, sums);
        }
    });

    let total = partials::add_up(cpu, workspace.as_mut_slice(), len);
    let (total, sums) = total.split_at(9 * zp * vp);
    db.iter_mut().zip(sums).for_each(|(db, sum)| *db += sum);
    cpu.for_each(partials::pieces(dw, c, k), |(tap, first, rows)| {
        for (i, row) in rows.chunks_exact_mut(k).enumerate() {
            for (j, dw) in row.iter_mut().enumerate() {
                *dw += total[if windows {
                    shared.place(8 - tap, j, first + i, lanes)
                } else {
                    shared.place(tap, first + i, j, lanes)
                }];
            }
        }
    });
    Ok(())
}

/// One unit, with its scratch: the band of z, and v padded to whole vectors.
struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    unit: &'s Unit,
    sums: &'s mut [f32],
    band: Band,
    scratch: [&'s mut [f32]; 2],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, unit: &Unit, sums: &mut [f32]) {
    let (vc, vp) = (shared.small.c(), shared.vp);
    let band = Band::new(&shared.large, shared.large.c(), shared.block);
    let padded = if vc == vp { 0 } else { unit.pixels(&shared.small) * vp };
    with_scratch([band.len(&enlarged(unit)), padded], |scratch| {
        dispatch(isa, UnitKernel { shared, unit, sums, band, scratch });
    });
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, unit, sums, band, scratch: [buf, padded] } = self;
        let Shared { large, small, z, v, zp, vp, .. } = shared;
        let source = enlarged(unit);
        let (vc, n, first) = (small.c(), unit.pixels(small), unit.first_pixel(small));
        let v = &v[first * vc..(first + n) * vc];
        let (g, db) = sums.split_at_mut(9 * zp * vp);
        // SAFETY: the caller vouches for the instruction set; the geometry below stays inside band, v and sums.
        unsafe {
            bands::load::<S>(large, &source, &band, &Operand::one(*z), &Prologue::none(), buf);
            if shared.windows {
                let (zc, first) = (large.c(), source.first_pixel(large));
                add_pixels::<S>(&z[first * zc..(first + source.pixels(large)) * zc], zc, db);
                for image in buf.chunks_exact_mut(band.image_len(source.rows)) {
                    windows::<S>(image, band.width * band.pitch, band.pitch);
                }
            } else {
                add_pixels::<S>(v, vc, db);
            }
            let v: &[f32] = if vc == *vp {
                v
            } else {
                for p in 0..n {
                    padded[p * vp..p * vp + vc].copy_from_slice(&v[p * vc..(p + 1) * vc]);
                    padded[p * vp + vc..(p + 1) * vp].fill(0.0);
                }
                padded
            };
            let rows = unit.images * unit.rows;
            let sub = if small.w as usize >= SUB_PIXELS { 1 } else { SUB_PIXELS / small.w as usize };
            let mut row = 0;
            while row < rows {
                let end = if row + sub < rows { row + sub } else { rows };
                SubBand { shared, unit, source: &source, band: &band, buf, v, row, end }.accumulate::<S>(g);
                row = end;
            }
        }
    }
}

/// `sums[c]` += the sum of `x[p, c]` over p.
#[inline(always)]
unsafe fn add_pixels<S: Simd>(x: &[f32], channels: usize, sums: &mut [f32]) {
    let pixels = x.len() / channels;
    let mut c = 0;
    while c < channels {
        let len = if channels - c < S::LANES { channels - c } else { S::LANES };
        // SAFETY: the caller vouches for the instruction set; a whole vector lies within the pixel, parts go through arrays.
        unsafe {
            let mut sum = S::splat(0.0);
            for p in 0..pixels {
                let at = p * channels + c;
                sum = S::add(
                    sum,
                    if len == S::LANES { S::load(x.as_ptr().add(at)) } else { load_part::<S>(&x[at..at + len]) },
                );
            }
            let sum = S::add(sum, load_part::<S>(&sums[c..c + len]));
            store_part::<S>(sum, &mut sums[c..c + len]);
        }
        c += S::LANES;
    }
}

/// Rows `row..end` of the unit's images, counted through.
struct SubBand<'s, 'a> {
    shared: &'s Shared<'a>,
    unit: &'s Unit,
    source: &'s Unit,
    band: &'s Band,
    buf: &'s [f32],
    /// [pixels of the unit, VC padded].
    v: &'s [f32],
    row: usize,
    end: usize,
}

impl SubBand<'_, '_> {
    #[inline(always)]
    unsafe fn accumulate<S: Simd>(&self, g: &mut [f32]) {
        let Shared { block, zp, vp, .. } = *self.shared;
        let mut k0 = 0;
        while k0 < vp {
            let vectors = pack::tile_vectors(vp, k0, S::LANES);
            let len = 3 * block * vectors * S::LANES;
            let mut at = 9 * zp * k0;
            for r in 0..3 {
                let mut i = 0;
                while i < zp {
                    let sums = &mut g[at..at + len];
                    at += len;
                    // SAFETY: passed on.
                    unsafe {
                        // Conditions on constants: what is not taken is not compiled.
                        if S::PIXELS == 8 {
                            self.vectors::<S, 4>(vectors, r, i, k0, sums);
                        } else if S::PIXELS == 6 {
                            self.vectors::<S, 2>(vectors, r, i, k0, sums);
                        } else {
                            self.vectors::<S, 1>(vectors, r, i, k0, sums);
                        }
                    }
                    i += block;
                }
            }
            k0 += vectors * S::LANES;
        }
    }

    #[inline(always)]
    unsafe fn vectors<S: Simd, const CB: usize>(
        &self,
        vectors: usize,
        r: usize,
        i: usize,
        k0: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: passed on.
        unsafe {
            if vectors == 2 {
                self.block::<S, CB, 2>(r, i, k0, sums);
            } else {
                self.block::<S, CB, 1>(r, i, k0, sums);
            }
        }
    }

    /// The inner loop: the three taps of filter row `r` by CB channels from `i` by CV vectors from `k0`.
    ///
    /// # Safety
    /// The instruction set of `S`; band, v and sums cover what the geometry says.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // plain counted loops unroll into registers
    unsafe fn block<S: Simd, const CB: usize, const CV: usize>(&self, r: usize, i: usize, k0: usize, sums: &mut [f32]) {
        let Shared { small, offset, vp, .. } = *self.shared;
        let (w, pitch) = (small.w as usize, self.band.pitch);
        // SAFETY: as the function's contract says.
        unsafe {
            let sums = sums.as_mut_ptr();
            let mut acc = [[[S::splat(0.0); CV]; CB]; 3];
            for s in 0..3 {
                for c in 0..CB {
                    for v in 0..CV {
                        acc[s][c][v] = S::load(sums.add(((s * CB + c) * CV + v) * S::LANES));
                    }
                }
            }
            for row in self.row..self.end {
                let (image, y) = (row / self.unit.rows, row % self.unit.rows);
                let first = self.band.offset(self.source, image, 2 * y + offset + r, offset) + i;
                let mut z = self.buf.as_ptr().add(first);
                let mut g = self.v.as_ptr().add(row * w * vp + k0);
                for _ in 0..w {
                    let mut gv = [S::splat(0.0); CV];
                    for (v, gv) in gv.iter_mut().enumerate() {
                        *gv = S::load(g.add(v * S::LANES));
                    }
                    for s in 0..3 {
                        for c in 0..CB {
                            let b = S::broadcast(z.add(s * pitch), c);
                            for v in 0..CV {
                                acc[s][c][v] = S::fma(b, gv[v], acc[s][c][v]);
                            }
                        }
                    }
                    z = z.add(2 * pitch);
                    g = g.add(vp);
                }
            }
            for (s, acc) in acc.iter().enumerate() {
                for (c, acc) in acc.iter().enumerate() {
                    for (v, &a) in acc.iter().enumerate() {
                        S::store(sums.add(((s * CB + c) * CV + v) * S::LANES), a);
                    }
                }
            }
        }
    }
}
