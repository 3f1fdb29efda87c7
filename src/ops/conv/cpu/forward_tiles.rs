//! The main product of the convolution by Winograd's tiles.

use super::super::ConvDims;
use super::bands::{Band, Unit};
use super::forward::{Packed, Segment, block};
use super::pack;
use super::winograd::{self, Tiles};
use crate::device::cpu::simd::Simd;

/// The main product of a unit by Winograd's tiles.
pub(super) struct TileWork<'a> {
    pub d: &'a ConvDims,
    pub unit: &'a Unit,
    pub band: &'a Band,
    pub buf: &'a [f32],
    pub packed: Packed<'a>,
    /// Where each tile of a batch starts in V.
    pub offsets: &'a [u32],
    /// Whether `products` holds something to add to.
    pub add: bool,
}

impl TileWork<'_> {
    /// `PAIRS`: V and the filter are bfloat16, pairs of channels in the halves of a float.
    ///
    /// # Safety
    /// The instruction set of `S`; the band is loaded; V, M and products are those of the unit.
    #[inline(always)]
    pub unsafe fn run<S: Simd, const PAIRS: bool>(
        &self,
        tiles: &Tiles,
        v: &mut [f32],
        m: &mut [f32],
        products: &mut [f32],
    ) {
        let TileWork { d, unit, packed, .. } = *self;
        let (c, k, kp) = (if PAIRS { d.c().div_ceil(2) } else { d.c() }, d.k as usize, tiles.m_pitch);
        // SAFETY: passed on; tiles of the packed filter hold 16 positions of at least `c` rows.
        unsafe {
            let mut first = 0;
            while first < tiles.count {
                let end = if first + tiles.batch < tiles.count { first + tiles.batch } else { tiles.count };
                for i in 0..winograd::POSITIONS / winograd::ROW {
                    let mut tile = first;
                    while tile < end {
                        let run = tiles.run(first, tile, end);
                        winograd::transform_input_row::<S, PAIRS>(tiles, unit, self.band, self.buf, run, i, v);
                        tile += run.count;
                    }
                    for j in 0..winograd::ROW {
                        let base = v[j * tiles.v_step()..].as_ptr();
                        let segment = [Segment { base, offsets: self.offsets, taps: &[0], channels: c, skip: 0 }];
                        let m = m[j * tiles.m_step()..].as_mut_ptr();
                        let mut k0 = 0;
                        while k0 < k {
                            let vectors = pack::tile_vectors(k, k0, S::LANES);
                            let row = (i * winograd::ROW + j) * packed.channels + packed.first;
                            let w = packed.data[packed.rows * k0 + row * vectors * S::LANES..].as_ptr();
                            let mut p = 0;
                            while p < end - first {
                                block::<S, PAIRS>(vectors, &segment, p, w, m.add(k0), kp);
                                p += S::PIXELS;
                            }
                            k0 += vectors * S::LANES;
                        }
                    }
                    let mut tile = first;
                    while tile < end {
                        let run = tiles.run(first, tile, end);
                        winograd::transform_output_row::<S>(tiles, d, unit, m, run, i, products, !self.add);
                        tile += run.count;
                    }
                }
                first = end;
            }
        }
    }
}
