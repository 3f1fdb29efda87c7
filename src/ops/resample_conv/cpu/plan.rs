//! Which product a case is, its taps and the order of its filter, and the cut into units.

use super::{ResampleConvDims, Resampling, offset};
use crate::device::cpu::Cpu;
use crate::ops::conv::cpu::bands::{self, Unit};
use crate::ops::conv::cpu::pack;
use crate::ops::conv::{ConvDims, Direction};

/// Elements that the band of a unit aims at, counted on the small side: with the large side's fourfold it stays in the second-level cache.
const TARGET_ELEMENTS: usize = 1 << 14;

/// One of the four products.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub n: usize,
    /// Rows and columns of the small side.
    pub h: usize,
    pub w: usize,
    /// Channels that are summed over, and channels of the result.
    pub c: usize,
    pub k: usize,
    /// From the small side to the large one.
    pub spread: bool,
    /// Sums over 2x2 windows of the large side; the filter is turned.
    pub windows: bool,
    /// The row and column of two that stands above tap 1.
    pub offset: usize,
}

/// The large pixels whose row and column, 0 or 1 of two, are `parity`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub parity: [usize; 2],
    /// Taps: place in the filter, and rows and columns from the first small pixel that any tap of the case reaches.
    taps: [(usize, [usize; 2]); 4],
    pub count: usize,
}

impl Class {
    /// The taps that reach a large pixel.
    pub fn taps(&self) -> &[(usize, [usize; 2])] {
        &self.taps[..self.count]
    }
}

impl Plan {
    pub fn new(d: &ResampleConvDims, direction: Direction) -> Self {
        let (c, k) = (d.c as usize, d.k as usize);
        let (c, k) = if direction == Direction::Forward { (c, k) } else { (k, c) };
        let windows = d.resampling == Resampling::Double;
        let spread = windows == (direction == Direction::Forward);
        Plan { n: d.n as usize, h: d.h as usize / 2, w: d.w as usize / 2, c, k, spread, windows, offset: offset(d) }
    }

    /// Extents of the small or the large side with `c` input channels, as the band loader wants them.
    pub fn side(&self, large: bool, c: usize) -> ConvDims {
        let scale = if large { 2 } else { 1 };
        let [n, h, w, c0, k] = [self.n, scale * self.h, scale * self.w, c, self.k].map(|x| x as u32);
        ConvDims { n, h, w, c0, c1: 0, r0: 0, r1: 0, k, side: 3 }
    }

    /// Rows or columns of parity `p` that a unit computes beside its own: with windows, the odd one in front of the first.
    pub fn extra(&self, p: usize) -> usize {
        if self.windows { p } else { 0 }
    }

    /// How far the first tap of a spread lies in front of the small pixel above the large one.
    pub fn back(&self) -> usize {
        self.offset
    }

    /// The classes of a spread. Tap t of small pixel q reaches large pixel 2q + o + t - 1; so large pixel 2i + p is reached from i + d through
    /// t = p + 1 - o - 2d.
    pub fn classes(&self) -> [Class; 4] {
        let axis = |p: usize| {
            // d + o is 0 or 1.
            (0..2).filter_map(move |d| (p + 1 + self.offset).checked_sub(2 * d).map(|t| (d, t))).filter(|&(_, t)| t < 3)
        };
        [[0, 0], [0, 1], [1, 0], [1, 1]].map(|parity| {
            let mut class = Class { parity, taps: [(0, [0; 2]); 4], count: 0 };
            for (dr, r) in axis(parity[0]) {
                for (dc, s) in axis(parity[1]) {
                    class.taps[class.count] = (3 * r + s, [dr, dc]);
                    class.count += 1;
                }
            }
            class
        })
    }

    /// Places in the filter in the order of the product.
    fn order(&self) -> [usize; 9] {
        let mut order = std::array::from_fn(|t| t);
        if self.spread {
            let classes = self.classes();
            let taps = classes.iter().flat_map(|class| class.taps());
            order.iter_mut().zip(taps).for_each(|(place, (t, _))| *place = *t);
        }
        order
    }

    /// Elements of the packed filter: as [`pack`]'s, a tile of one or two vectors after the other, with the taps in the product's order.
    pub fn packed_len(&self, lanes: usize) -> usize {
        9 * self.c * pack::padded(self.k, lanes)
    }

    /// Packs `w` [9, C, K] of the forward convolution.
    pub fn pack(&self, cpu: &Cpu, direction: Direction, w: &[f32], packed: &mut [f32]) {
        let lanes = cpu.isa().lanes();
        let (c, k, order) = (self.c, self.k, self.order());
        let mut jobs = Vec::new();
        let mut rest = packed;
        for (k0, vectors) in pack::tiles(k, lanes) {
            let (tile, tail) = std::mem::take(&mut rest).split_at_mut(9 * c * vectors * lanes);
            rest = tail;
            jobs.push((k0, vectors * lanes, tile));
        }
        cpu.for_each(jobs, |(k0, width, tile)| {
            let live = width.min(k - k0);
            for (row, dst) in tile.chunks_exact_mut(width).enumerate() {
                let (place, i) = (order[row / c], row % c);
                let tap = if self.windows { 8 - place } else { place };
                dst[live..].fill(0.0);
                match direction {
                    Direction::Forward => dst[..live].copy_from_slice(&w[(tap * c + i) * k + k0..][..live]),
                    Direction::Dgrad => {
                        for (lane, dst) in dst[..live].iter_mut().enumerate() {
                            *dst = w[(tap * k + k0 + lane) * c + i];
                        }
                    }
                }
            }
        });
    }
}

/// Cuts `n` pictures of `h` by `w` small pixels into units, in pixel order; `channels` of the band.
pub(super) fn units(n: usize, h: usize, w: usize, channels: usize) -> Vec<Unit> {
    bands::cut([n, h, w], (TARGET_ELEMENTS / channels).clamp(64, 512), bands::MIN_UNITS)
}

/// The same pixels on the large side.
pub(super) fn enlarged(unit: &Unit) -> Unit {
    Unit { row: 2 * unit.row, rows: 2 * unit.rows, ..*unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tap reaches the large pixels of exactly one class, and the right ones.
    #[test]
    fn each_tap_belongs_to_one_class() {
        for (resampling, direction) in [
            (Resampling::Double, Direction::Forward),
            (Resampling::Keep { offset: 0 }, Direction::Dgrad),
            (Resampling::Keep { offset: 1 }, Direction::Dgrad),
        ] {
            let plan = Plan::new(&ResampleConvDims { n: 1, h: 8, w: 8, c: 2, k: 3, resampling }, direction);
            assert!(plan.spread);
            let mut order = plan.order();
            for class in plan.classes() {
                for &(t, [dr, _]) in class.taps() {
                    // From small row i + dr - back to large row 2i + parity.
                    let reached = 2 * (10 + dr - plan.back()) + plan.offset + t / 3 - 1;
                    assert_eq!(reached, 20 + class.parity[0], "{plan:?} {class:?}");
                }
            }
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8], "{plan:?}");
        }
    }
}
