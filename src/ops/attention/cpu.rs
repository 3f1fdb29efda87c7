//! Attention on the CPU. An image's head is a unit of work: its q, k and v are copied to rows of whole vectors, and the scores are made for
//! 64 queries at a time, so that they stay in cache whatever the number of tokens.

use super::{Attention, AttentionDims, check};
use crate::device::cpu::gemm::{Gemm, gemm};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Cpu, Isa};
use crate::error::Result;

/// Queries whose scores are in work at once.
const ROWS: usize = 64;

/// Extents of one head in memory: D and T, and both rounded up to whole vectors.
#[derive(Clone, Copy)]
struct Head {
    d: AttentionDims,
    n: usize,
    h: usize,
    dim: usize,
    dim_padded: usize,
    t: usize,
    t_padded: usize,
}

impl Head {
    fn new(d: &AttentionDims, isa: Isa, index: usize) -> Self {
        let (heads, dim, t) = (d.heads as usize, d.head_dim as usize, d.tokens as usize);
        let lanes = isa.lanes();
        Head {
            d: *d,
            n: index / heads,
            h: index % heads,
            dim,
            dim_padded: dim.next_multiple_of(lanes),
            t,
            t_padded: t.next_multiple_of(lanes),
        }
    }

    /// Elements of [T, D padded], and of [D, T padded].
    fn rows_len(&self) -> usize {
        self.t * self.dim_padded
    }
    fn columns_len(&self) -> usize {
        self.dim * self.t_padded
    }

    /// First element of part `which` of `parts` at token `t`.
    fn at(&self, parts: usize, which: usize, t: usize) -> usize {
        (((self.n * self.t + t) * parts + which) * self.d.heads as usize + self.h) * self.dim
    }

    /// Copies part `which` of `parts` to [T, D padded], zeros behind.
    fn rows(&self, src: &[f32], parts: usize, which: usize, out: &mut [f32]) {
        for (t, row) in out.chunks_exact_mut(self.dim_padded).enumerate() {
            let at = self.at(parts, which, t);
            row[..self.dim].copy_from_slice(&src[at..at + self.dim]);
            row[self.dim..].fill(0.0);
        }
    }

    /// Copies it to [D, T padded], zeros behind.
    fn columns(&self, src: &[f32], parts: usize, which: usize, out: &mut [f32]) {
        out.fill(0.0);
        for t in 0..self.t {
            let at = self.at(parts, which, t);
            for (i, &x) in src[at..at + self.dim].iter().enumerate() {
                out[i * self.t_padded + t] = x;
            }
        }
    }
}

/// What several workers write: each its own head's elements.
#[derive(Clone, Copy)]
struct Shared(*mut f32, usize);

// SAFETY: workers write disjoint elements: those of different heads (see `Head::at`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(view: &mut [f32]) -> Self {
        Shared(view.as_mut_ptr(), view.len())
    }

    /// Writes [T, D padded] to part `which` of `parts` of a head.
    fn write(self, head: &Head, parts: usize, which: usize, first: usize, rows: &[f32]) {
        for (i, row) in rows.chunks_exact(head.dim_padded).enumerate() {
            let at = head.at(parts, which, first + i);
            assert!(at + head.dim <= self.1, "attention: a head's rows lie within the tensor");
            // SAFETY: within the view (checked), which outlives the workers; no other worker writes this head's elements.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.0.add(at), head.dim) };
        }
    }
}

impl Attention for Cpu {
    fn attention(&self, d: &AttentionDims, qkv: &[f32], y: &mut [f32], lse: &mut [f32]) -> Result<()> {
        check(d, &[("qkv", qkv.len(), 3 * d.len()), ("y", y.len(), d.len()), ("lse", lse.len(), d.lse_len())])?;
        let isa = self.isa();
        let y = Shared::new(y);
        let jobs: Vec<_> = lse.chunks_exact_mut(d.tokens as usize).enumerate().collect();
        self.for_each(jobs, |(i, lse)| {
            let head = Head::new(d, isa, i);
            let lengths =
                [head.rows_len(), head.columns_len(), head.rows_len(), ROWS * head.t_padded, ROWS * head.dim_padded];
            with_scratch(lengths, |scratch| dispatch(isa, Forward { head, qkv, y, lse, scratch }));
        });
        Ok(())
    }

    fn attention_backward(
        &self,
        d: &AttentionDims,
        qkv: &[f32],
        y: &[f32],
        lse: &[f32],
        dy: &[f32],
        dqkv: &mut [f32],
    ) -> Result<()> {
        check(d, &[("qkv", qkv.len(), 3 * d.len()), ("y", y.len(), d.len()), ("lse", lse.len(), d.lse_len())])?;
        check(d, &[("dy", dy.len(), d.len()), ("dqkv", dqkv.len(), 3 * d.len())])?;
        let isa = self.isa();
        let dqkv = Shared::new(dqkv);
        let jobs: Vec<_> = lse.chunks_exact(d.tokens as usize).enumerate().collect();
        self.for_each(jobs, |(i, lse)| {
            let head = Head::new(d, isa, i);
            let (rows, columns) = (head.rows_len(), head.columns_len());
            let scores = ROWS * head.t_padded;
            // q, k, dy as rows; k, v as columns; dk, dv; P, dS; dq of some rows.
            let lengths = [rows, rows, rows, columns, columns, rows, rows, scores, scores, ROWS * head.dim_padded];
            with_scratch(lengths, |scratch| dispatch(isa, Backward { head, qkv, y, lse, dy, dqkv, scratch }));
        });
        Ok(())
    }
}

struct Forward<'a> {
    head: Head,
    qkv: &'a [f32],
    y: Shared,
    lse: &'a mut [f32],
    scratch: [&'a mut [f32]; 5],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Forward { head, qkv, y, lse, scratch: [q, kt, v, s, out] } = self;
        head.rows(qkv, 3, 0, q);
        head.columns(qkv, 3, 1, kt);
        head.rows(qkv, 3, 2, v);
        let mut first = 0;
        while first < head.t {
            let m = if head.t - first < ROWS { head.t - first } else { ROWS };
            // SAFETY: the caller vouches for the instruction set; the scratch has the lengths that the extents ask for.
            unsafe {
                scores::<S>(&head, q, kt, first, m, s);
                for i in 0..m {
                    lse[first + i] = softmax::<S>(&mut s[i * head.t_padded..(i + 1) * head.t_padded], head.t);
                }
                let g = Gemm {
                    m,
                    n: head.dim_padded,
                    k: head.t,
                    a: (head.t_padded, 1),
                    b: head.dim_padded,
                    c: head.dim_padded,
                    alpha: 1.0,
                    accumulate: false,
                };
                gemm::<S>(&g, s, v, out);
            }
            y.write(&head, 1, 0, first, &out[..m * head.dim_padded]);
            first += m;
        }
    }
}

/// Scores of `m` queries from `first`, [m, T padded].
#[inline(always)]
unsafe fn scores<S: Simd>(head: &Head, q: &[f32], kt: &[f32], first: usize, m: usize, s: &mut [f32]) {
    let g = Gemm {
        m,
        n: head.t_padded,
        k: head.dim,
        a: (head.dim_padded, 1),
        b: head.t_padded,
        c: head.t_padded,
        alpha: head.d.scale() as f32,
        accumulate: false,
    };
    // SAFETY: passed on.
    unsafe { gemm::<S>(&g, &q[first * head.dim_padded..], kt, s) };
}

/// Turns a row of scores into probabilities (zero behind the last token), and returns its log-sum-exp.
#[inline(always)]
unsafe fn softmax<S: Simd>(row: &mut [f32], t: usize) -> f32 {
    row[t..].fill(f32::NEG_INFINITY);
    // SAFETY: the caller vouches for the instruction set; the row is a whole number of vectors.
    unsafe {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut most = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i < row.len() {
            most = S::max(S::load(row.as_ptr().add(i)), most);
            i += S::LANES;
        }
        S::store(lanes.as_mut_ptr(), most);
        let mut most = lanes[0];
        for &x in &lanes[1..S::LANES] {
            most = if x > most { x } else { most };
        }
        exponentials::<S>(row, most);
        row[t..].fill(0.0);
        let mut lanes = [0.0f32; 16];
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < row.len() {
            sum = S::add(sum, S::load(row.as_ptr().add(i)));
            i += S::LANES;
        }
        S::store(lanes.as_mut_ptr(), sum);
        let sum: f32 = lanes[..S::LANES].iter().sum();
        let inverse = S::splat(1.0 / sum);
        i = 0;
        while i < row.len() {
            let at = row.as_mut_ptr().add(i);
            S::store(at, S::mul(S::load(at), inverse));
            i += S::LANES;
        }
        most + sum.ln()
    }
}

/// row = exp(row - from).
#[inline(always)]
unsafe fn exponentials<S: Simd>(row: &mut [f32], from: f32) {
    // SAFETY: the caller vouches for the instruction set; the row is a whole number of vectors.
    unsafe {
        let from = S::splat(from);
        let mut i = 0;
        while i < row.len() {
            let at = row.as_mut_ptr().add(i);
            S::store(at, S::exp(S::sub(S::load(at), from)));
            i += S::LANES;
        }
    }
}

struct Backward<'a> {
    head: Head,
    qkv: &'a [f32],
    y: &'a [f32],
    lse: &'a [f32],
    dy: &'a [f32],
    dqkv: Shared,
    scratch: [&'a mut [f32]; 10],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Backward { head, qkv, y, lse, dy, dqkv, scratch } = self;
        let [q, k, dy_rows, kt, vt, dk, dv, p, ds, dq] = scratch;
        head.rows(qkv, 3, 0, q);
        head.rows(qkv, 3, 1, k);
        head.rows(dy, 1, 0, dy_rows);
        head.columns(qkv, 3, 1, kt);
        head.columns(qkv, 3, 2, vt);
        dk.fill(0.0);
        dv.fill(0.0);
        let scale = head.d.scale() as f32;
        let mut first = 0;
        while first < head.t {
            let m = if head.t - first < ROWS { head.t - first } else { ROWS };
            let dy_part = &dy_rows[first * head.dim_padded..];
            // SAFETY: the caller vouches for the instruction set; the scratch has the lengths that the extents ask for.
            unsafe {
                scores::<S>(&head, q, kt, first, m, p);
                let through_v = Gemm {
                    m,
                    n: head.t_padded,
                    k: head.dim,
                    a: (head.dim_padded, 1),
                    b: head.t_padded,
                    c: head.t_padded,
                    alpha: 1.0,
                    accumulate: false,
                };
                gemm::<S>(&through_v, dy_part, vt, ds);
                for i in 0..m {
                    let row = &mut p[i * head.t_padded..(i + 1) * head.t_padded];
                    exponentials::<S>(row, lse[first + i]);
                    row[head.t..].fill(0.0);
                    let at = head.at(1, 0, first + i);
                    let delta: f32 = (0..head.dim).map(|c| y[at + c] * dy[at + c]).sum();
                    let delta = S::splat(delta);
                    let mut j = 0;
                    while j < head.t_padded {
                        let at = ds.as_mut_ptr().add(i * head.t_padded + j);
                        S::store(at, S::mul(S::load(row.as_ptr().add(j)), S::sub(S::load(at), delta)));
                        j += S::LANES;
                    }
                }
                // Of all keys, from these queries: P^T dy and dS^T q.
                let of_keys = Gemm {
                    m: head.t,
                    n: head.dim_padded,
                    k: m,
                    a: (1, head.t_padded),
                    b: head.dim_padded,
                    c: head.dim_padded,
                    alpha: 1.0,
                    accumulate: true,
                };
                gemm::<S>(&of_keys, p, dy_part, dv);
                gemm::<S>(&Gemm { alpha: scale, ..of_keys }, ds, &q[first * head.dim_padded..], dk);
                let of_queries =
                    Gemm { m, k: head.t, a: (head.t_padded, 1), alpha: scale, accumulate: false, ..of_keys };
                gemm::<S>(&of_queries, ds, k, dq);
            }
            dqkv.write(&head, 3, 0, first, &dq[..m * head.dim_padded]);
            first += m;
        }
        dqkv.write(&head, 3, 1, 0, dk);
        dqkv.write(&head, 3, 2, 0, dv);
    }
}
