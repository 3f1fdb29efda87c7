//! Gradients of the weights by Winograd's tiles: for each position a product [C, tiles] x [tiles, K], a block of input channels by two
//! vectors of output channels in registers.

use std::ops::Range;

use super::super::ConvDims;
use super::bands::{Band, Unit};
use super::pack;
use super::winograd::{self, ROW, Tiles};
use crate::device::cpu::simd::Simd;

/// The main product of a unit by Winograd's tiles.
pub(super) struct TileWork<'a> {
    pub d: &'a ConvDims,
    pub unit: &'a Unit,
    pub band: &'a Band,
    pub buf: &'a [f32],
    /// Of the unit, padded to whole vectors.
    pub dy: &'a [f32],
    /// Rows of positions that are wanted.
    pub rows: Range<usize>,
}

impl TileWork<'_> {
    /// sums[position][k tile][c, lane] += V^T M of all tiles, for the positions of `rows`.
    ///
    /// # Safety
    /// The instruction set of `S`; the band is loaded; V and M are those of the unit.
    #[inline(always)]
    pub unsafe fn accumulate<S: Simd>(&self, tiles: &Tiles, v: &mut [f32], m: &mut [f32], sums: &mut [f32]) {
        let TileWork { d, unit, .. } = *self;
        let (c, kp) = (d.c(), tiles.m_pitch);
        debug_assert!(sums.len() == self.rows.len() * ROW * c * kp);
        // SAFETY: passed on; blocks cover the C rows and kp columns of each position.
        unsafe {
            let mut first = 0;
            while first < tiles.count {
                let end = if first + tiles.batch < tiles.count { first + tiles.batch } else { tiles.count };
                for position in 0..self.rows.len() * ROW {
                    let (i, j) = (self.rows.start + position / ROW, position % ROW);
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
                        let sums = sums.as_mut_ptr().add((position * kp + k0) * c);
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
