//! The packed filter: tiles of one or two vectors of output channels; inside a tile one row per (tap, input channel), then one per
//! residual channel; each row holds the tile's output channels, zeros beyond the last. Where the product is taken by Winograd's
//! tiles, their 16 positions stand in place of the taps.

use super::super::{ConvDims, Direction, Filter};
use super::winograd;
use crate::device::cpu::Cpu;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};

/// Vectors of the tile that starts at channel `k0`: two, or one in a last tile where that is enough.
#[inline(always)]
pub(in crate::ops) fn tile_vectors(k: usize, k0: usize, lanes: usize) -> usize {
    if k - k0 > lanes { 2 } else { 1 }
}

/// Output channels in tiles: (first channel, vectors).
pub(in crate::ops) fn tiles(k: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..k).step_by(2 * lanes).map(move |k0| (k0, tile_vectors(k, k0, lanes)))
}

/// Output channels rounded up to whole vectors.
pub(in crate::ops) fn padded(k: usize, lanes: usize) -> usize {
    k.next_multiple_of(lanes)
}

/// Terms of the main product for each input channel: taps, or the positions of a Winograd tile.
pub(super) fn terms(d: &ConvDims) -> usize {
    if winograd::wins(d) { winograd::POSITIONS } else { d.taps() }
}

/// Rows of a tile.
pub(super) fn rows(d: &ConvDims) -> usize {
    terms(d) * d.c() + d.r()
}

/// Packs `filter` for `d`, lengths checked; see [`super::super::Conv::conv_pack`].
pub(super) fn pack(cpu: &Cpu, d: &ConvDims, direction: Direction, filter: &Filter<'_, Cpu>, packed: &mut [f32]) {
    let lanes = cpu.isa().lanes();
    let k = d.k as usize;
    let tiled = winograd::wins(d);
    let mut jobs = Vec::new();
    let mut rest = packed;
    for (k0, vectors) in tiles(k, lanes) {
        let (tile, tail) = std::mem::take(&mut rest).split_at_mut(rows(d) * vectors * lanes);
        rest = tail;
        jobs.push((k0, vectors * lanes, tile));
    }
    let Filter { w, w_res, forward_c, scale } = *filter;
    let source = Source { d, direction, w, w_res, forward_c, scale };
    let isa = cpu.isa();
    cpu.for_each(jobs, |(k0, width, tile)| dispatch(isa, PackTile { source, tiled, k0, width, tile }));
}

/// Packs one tile of output channels.
struct PackTile<'s, 'a> {
    source: Source<'a>,
    tiled: bool,
    k0: usize,
    width: usize,
    tile: &'s mut [f32],
}

impl Kernel for PackTile<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PackTile { source, tiled, k0, width, tile } = self;
        let d = source.d;
        let (main, residual) = tile.split_at_mut(terms(d) * d.c() * width);
        let live = width.min(d.k as usize - k0);
        if tiled {
            let mut taps = [0.0; 9 * MAX_WIDTH];
            for c in 0..d.c() {
                for (t, row) in taps[..9 * width].chunks_exact_mut(width).enumerate() {
                    source.row(t, c, k0, &mut row[..live]);
                }
                // SAFETY: the caller vouches for the instruction set.
                unsafe { winograd::transform_filter::<S>(&taps, width, &mut main[c * width..], d.c() * width) };
            }
        } else {
            for (row, dst) in main.chunks_exact_mut(width).enumerate() {
                dst[live..].fill(0.0);
                source.row(row / d.c(), row % d.c(), k0, &mut dst[..live]);
            }
        }
        for (r, dst) in residual.chunks_exact_mut(width).enumerate() {
            dst[live..].fill(0.0);
            source.residual_row(r, k0, &mut dst[..live]);
        }
    }
}

/// Output channels of the widest tile.
const MAX_WIDTH: usize = 32;

/// Where the rows come from.
#[derive(Clone, Copy)]
struct Source<'a> {
    d: &'a ConvDims,
    direction: Direction,
    w: &'a [f32],
    w_res: Option<&'a [f32]>,
    forward_c: usize,
    scale: Option<&'a [f32]>,
}

impl Source<'_> {
    /// Channels `k0..` of the filter's row (tap, input channel), as `direction` sees them.
    #[inline(always)]
    fn row(&self, tap: usize, c: usize, k0: usize, dst: &mut [f32]) {
        let d = self.d;
        match self.direction {
            Direction::Forward => {
                let from = (tap * d.c() + c) * d.k as usize + k0;
                dst.copy_from_slice(&self.w[from..from + dst.len()]);
            }
            // Turned by 180 degrees: tap t of dgrad is tap T-1-t of the filter.
            Direction::Dgrad => {
                self.transposed(self.w, d.taps() - 1 - tap, c, k0, dst);
                if let Some(scale) = self.scale {
                    dst.iter_mut().zip(&scale[k0..]).for_each(|(d, s)| *d *= s);
                }
            }
        }
    }

    /// The same of the residual; zeros where the filter has none.
    #[inline(always)]
    fn residual_row(&self, r: usize, k0: usize, dst: &mut [f32]) {
        match (self.w_res, self.direction) {
            (None, _) => dst.fill(0.0),
            (Some(w), Direction::Forward) => dst.copy_from_slice(&w[r * self.d.k as usize + k0..][..dst.len()]),
            (Some(w), Direction::Dgrad) => self.transposed(w, 0, r, k0, dst),
        }
    }

    /// Elements [tap, k0.., i] of a filter [T, forward C, forward K], where forward K is the product's C.
    #[inline(always)]
    fn transposed(&self, w: &[f32], tap: usize, i: usize, k0: usize, dst: &mut [f32]) {
        let (fc, fk) = (self.forward_c, self.d.c());
        for (lane, dst) in dst.iter_mut().enumerate() {
            *dst = w[(tap * fc + k0 + lane) * fk + i];
        }
    }
}
