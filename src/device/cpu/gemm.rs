//! A small matrix product in registers, for products that are not convolutions: C [M, N] (+)= alpha A [M, K] B [K, N].
//!
//! A has any strides (so that its transpose needs no copy); B and C have rows of whole vectors. A block of `Simd::PIXELS` rows by two vectors of columns
//! runs over all of K: one broadcast per row, one load per vector, as in the convolution.

use super::simd::Simd;

/// Extents and strides, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C: a multiple of the lanes.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Distance of rows and of columns of A.
    pub a: (usize, usize),
    /// Distance of rows of B.
    pub b: usize,
    /// Distance of rows of C.
    pub c: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// C is added to, instead of overwritten.
    pub accumulate: bool,
}

/// The product; see the module's header.
///
/// # Safety
/// The instruction set of `S` must be available; the slices must hold what the strides reach, which is checked in debug builds.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd>(g: &Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
    debug_assert!(g.m == 0 || g.k == 0 || a.len() > (g.m - 1) * g.a.0 + (g.k - 1) * g.a.1);
    debug_assert!(g.k == 0 || b.len() >= (g.k - 1) * g.b + g.n);
    debug_assert!(g.m == 0 || c.len() >= (g.m - 1) * g.c + g.n);
    debug_assert!(g.n.is_multiple_of(S::LANES));
    let mut i = 0;
    // SAFETY: passed on; rows i..i+ROWS stay below m, columns below n.
    unsafe {
        while i < g.m {
            let rows = g.m - i;
            let mut j = 0;
            while j < g.n {
                let pair = g.n - j >= 2 * S::LANES;
                if S::PIXELS == 8 && rows >= 8 {
                    if pair { block::<S, 8, 2>(g, a, b, c, i, j) } else { block::<S, 8, 1>(g, a, b, c, i, j) }
                } else if S::PIXELS == 6 && rows >= 6 {
                    if pair { block::<S, 6, 2>(g, a, b, c, i, j) } else { block::<S, 6, 1>(g, a, b, c, i, j) }
                } else if rows >= 2 && S::PIXELS == 2 {
                    if pair { block::<S, 2, 2>(g, a, b, c, i, j) } else { block::<S, 2, 1>(g, a, b, c, i, j) }
                } else if pair {
                    block::<S, 1, 2>(g, a, b, c, i, j);
                } else {
                    block::<S, 1, 1>(g, a, b, c, i, j);
                }
                j += if pair { 2 * S::LANES } else { S::LANES };
            }
            i += if rows >= S::PIXELS { S::PIXELS } else { 1 };
        }
    }
}

/// ROWS rows from `i` by CV vectors from column `j`.
///
/// # Safety
/// As [`gemm`]; the block lies within the extents.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // plain counted loops unroll into registers
unsafe fn block<S: Simd, const ROWS: usize, const CV: usize>(
    g: &Gemm,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    i: usize,
    j: usize,
) {
    // SAFETY: as the function's contract says.
    unsafe {
        let mut acc = [[S::splat(0.0); CV]; ROWS];
        let mut rows = [a.as_ptr(); ROWS];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = row.add((i + r) * g.a.0);
        }
        let mut w = b.as_ptr().add(j);
        for k in 0..g.k {
            let mut wv = [S::splat(0.0); CV];
            for v in 0..CV {
                wv[v] = S::load(w.add(v * S::LANES));
            }
            for r in 0..ROWS {
                let x = S::broadcast(rows[r], k * g.a.1);
                for v in 0..CV {
                    acc[r][v] = S::fma(x, wv[v], acc[r][v]);
                }
            }
            w = w.add(g.b);
        }
        let alpha = S::splat(g.alpha);
        for r in 0..ROWS {
            for v in 0..CV {
                let at = c.as_mut_ptr().add((i + r) * g.c + j + v * S::LANES);
                let product = S::mul(alpha, acc[r][v]);
                S::store(at, if g.accumulate { S::add(S::load(at), product) } else { product });
            }
        }
    }
}
