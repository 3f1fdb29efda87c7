//! Partial sums of weight gradients: how many, and how they are brought together.
//!
//! Their number is a function of the shape, not of the threads, and they are added in order, so that the result does not depend on
//! the threads.

use std::ops::Range;

use crate::device::cpu::{Cpu, PIECE};

/// Most partial sums: enough for many threads, few enough that their additions do not show.
const MAX: usize = 16;
/// Fewest.
const MIN: usize = 4;
/// Elements of all partial sums together, roughly: large filters get fewer.
const BUDGET: usize = 1 << 20;
/// Rows of a gradient that are one piece of work.
const ROWS: usize = 32;

/// Partial sums of `len` elements for so many units.
pub(in crate::ops) fn count(len: usize, units: usize) -> usize {
    // A power of two deals evenly to any usual number of threads.
    (1usize << (BUDGET / len).clamp(MIN, MAX).ilog2()).min(units)
}

/// The units of partial sum `i` of `parts`.
pub(in crate::ops) fn share(i: usize, parts: usize, units: usize) -> Range<usize> {
    i * units / parts..(i + 1) * units / parts
}

/// Adds all partial sums of `len` elements to the first, in order; returns it.
pub(in crate::ops) fn add_up<'a>(cpu: &Cpu, partials: &'a mut [f32], len: usize) -> &'a [f32] {
    let (total, others) = partials.split_at_mut(len);
    let others = &*others;
    cpu.for_each_vectorized(total.chunks_mut(PIECE).enumerate().collect(), |(i, total)| {
        for other in others.chunks_exact(len) {
            let other = &other[i * PIECE..][..total.len()];
            total.iter_mut().zip(other).for_each(|(total, other)| *total += other);
        }
    });
    total
}

/// A gradient [taps, C, K] as pieces of work: (tap, first input channel, rows of K).
pub(in crate::ops) fn pieces(dw: &mut [f32], c: usize, k: usize) -> Vec<(usize, usize, &mut [f32])> {
    let pieces = |(tap, rows): (usize, _)| {
        let rows: std::slice::ChunksMut<'_, f32> = rows;
        rows.enumerate().map(move |(i, rows)| (tap, i * ROWS, rows))
    };
    dw.chunks_mut(k * c).map(|rows| rows.chunks_mut(k * ROWS)).enumerate().flat_map(pieces).collect()
}
