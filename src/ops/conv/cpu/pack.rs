//! The packed filter: tiles of one or two vectors of output channels; inside a tile one row per (tap, input channel), then one per
//! residual channel; each row holds the tile's output channels, zeros beyond the last.

use super::super::{ConvDims, Direction, Filter};
use crate::device::cpu::Cpu;

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

/// Rows of a tile: terms of the sum for one output.
pub(super) fn rows(d: &ConvDims) -> usize {
    d.taps() * d.c() + d.r()
}

/// Packs `filter` for `d`, lengths checked; see [`super::super::Conv::conv_pack`].
pub(super) fn pack(cpu: &Cpu, d: &ConvDims, direction: Direction, filter: &Filter<'_, Cpu>, packed: &mut [f32]) {
    let lanes = cpu.isa().lanes();
    let (taps, c, k) = (d.taps(), d.c(), d.k as usize);
    // Channels of the filter in its own terms: [T, fc, fk].
    let (fc, fk) = match direction {
        Direction::Forward => (c, k),
        Direction::Dgrad => (filter.forward_c, c),
    };
    let mut jobs = Vec::new();
    let mut rest = packed;
    for (k0, vectors) in tiles(k, lanes) {
        let (tile, tail) = std::mem::take(&mut rest).split_at_mut(rows(d) * vectors * lanes);
        rest = tail;
        jobs.push((k0, vectors * lanes, tile));
    }
    cpu.for_each(jobs, |(k0, width, tile)| {
        let live = width.min(k - k0);
        for (row, dst) in tile.chunks_exact_mut(width).enumerate() {
            dst[live..].fill(0.0);
            let main = row < taps * c;
            let (t, i) = if main { (row / c, row % c) } else { (0, row - taps * c) };
            let source = if main { Some(filter.w) } else { filter.w_res };
            let Some(source) = source else { continue };
            match direction {
                Direction::Forward => {
                    let from = (t * c + i) * k + k0;
                    dst[..live].copy_from_slice(&source[from..from + live]);
                }
                // Turned by 180 degrees: tap t of dgrad is tap T-1-t of the filter.
                Direction::Dgrad => {
                    let tap = if main { taps - 1 - t } else { 0 };
                    for (lane, dst) in dst[..live].iter_mut().enumerate() {
                        *dst = source[(tap * fc + k0 + lane) * fk + i];
                    }
                    if let (true, Some(scale)) = (main, filter.scale) {
                        dst[..live].iter_mut().zip(&scale[k0..]).for_each(|(d, s)| *d *= s);
                    }
                }
            }
        }
    });
}
