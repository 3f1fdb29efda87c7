//! Per-thread working memory of the kernels: grows to the largest request and stays, so that a step allocates nothing.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

/// A cache line of floats, so that scratch is aligned for any vector.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([f32; 16]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with consecutive parts of this thread's scratch, each of the asked length, aligned to 64 bytes, with unspecified
/// contents. Must not be nested.
pub(crate) fn with_scratch<const N: usize, R>(lengths: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    SCRATCH.with_borrow_mut(|lines| {
        let needed: usize = lengths.iter().map(|len| len.div_ceil(16)).sum();
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; 16]));
        }
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(lines);
        let parts = lengths.map(|len| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len.div_ceil(16) * 16);
            rest = tail;
            &mut part[..len]
        });
        work(parts)
    })
}
