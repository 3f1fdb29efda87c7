//! Gradients of the weights, tap by tap: a block of one filter row by a few input channels by two vectors of output channels in
//! registers, over the pixels of a sub-band.

use super::super::ConvDims;
use super::bands::{Band, Unit};
use super::pack;
use crate::device::cpu::Isa;
use crate::device::cpu::simd::Simd;

/// Pixels of a sub-band: its dy (two vectors) and the columns of x that a block reads stay in the first-level cache.
pub(super) const SUB_PIXELS: usize = 160;

/// Register blocks of an instruction set: input channels of a block for 3x3 (three taps a block) and for 1x1.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    c3: usize,
    c1: usize,
}

impl Blocks {
    pub fn of(isa: Isa) -> Self {
        match isa {
            Isa::Avx512 => Blocks { c3: 4, c1: 8 },
            Isa::Avx2 => Blocks { c3: 2, c1: 6 },
            Isa::Portable => Blocks { c3: 1, c1: 2 },
        }
    }
}

/// Extents of one product (main or residual) in blocks.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Side of the filter.
    pub side: usize,
    /// Channels of a block.
    pub block: usize,
    /// Channels, and channels rounded up to blocks.
    pub c: usize,
    c_padded: usize,
}

impl Layout {
    pub fn new(side: usize, c: usize, blocks: Blocks) -> Self {
        let block = if side == 3 { blocks.c3 } else { blocks.c1 };
        Layout { side, block, c, c_padded: c.next_multiple_of(block) }
    }
    /// Rows of a tile of the partial sum.
    pub fn rows(&self) -> usize {
        self.side * self.side * self.c_padded
    }
    /// Row of (tap, channel): order is filter row, block of channels, tap in the row, channel in the block.
    pub fn row(&self, tap: usize, c: usize) -> usize {
        let (r, s) = (tap / self.side, tap % self.side);
        ((r * (self.c_padded / self.block) + c / self.block) * self.side + s) * self.block + c % self.block
    }
}

/// A sub-band of the unit: rows `row..end` of its images, counted through.
pub(super) struct Geometry<'a> {
    pub d: &'a ConvDims,
    pub unit: &'a Unit,
    pub dy: &'a [f32],
    pub kp: usize,
    pub row: usize,
    pub end: usize,
}

impl Geometry<'_> {
    #[inline(always)]
    pub unsafe fn accumulate<S: Simd>(&self, band: &Band, buf: &[f32], layout: &Layout, sums: &mut [f32]) {
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
