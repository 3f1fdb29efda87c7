//! The product and its epilogue.

use super::super::{ConvDims, Epilogue, Operand, Output, Prologue};
use super::bands::{self, Band, Unit};
use super::{expect, pack};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, load_part, store_part};
use crate::device::cpu::{Cpu, Isa};
use crate::error::Result;

/// What every unit reads.
struct Shared<'a> {
    d: ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    packed: &'a [f32],
    epilogue: Epilogue<'a, Cpu>,
    /// bias + bias_res, [K padded], or [N, K padded] where an image has its own.
    bias: Vec<f32>,
    /// K padded.
    kp: usize,
    k0: usize,
}

/// What one unit writes.
struct Job<'a> {
    unit: Unit,
    y0: &'a mut [f32],
    y1: &'a mut [f32],
    /// [images of the unit, K, 2], or empty.
    stats: &'a mut [f32],
}

#[allow(clippy::too_many_arguments)] // the contract of `Conv::conv`, passed on
pub(super) fn forward<'a>(
    cpu: &Cpu,
    d: &ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    packed: &'a [f32],
    epilogue: Epilogue<'a, Cpu>,
    out: Output<'_, Cpu>,
) -> Result<()> {
    let (k, k0, pixels) = (d.k as usize, out.k0, d.pixels());
    let y1: &mut [f32] = out.y1.unwrap_or_default();
    expect("y0", out.y0.len(), pixels * k0)?;
    expect("y1", y1.len(), pixels * (k - k0))?;
    let lanes = cpu.isa().lanes();
    let kp = pack::padded(k, lanes);
    let biases = [epilogue.bias, epilogue.bias_res];
    let rows = if biases.iter().flatten().any(|b| b.len() > k) { d.n as usize } else { 1 };
    let mut bias = vec![0.0; rows * kp];
    for b in biases.into_iter().flatten() {
        for (image, row) in bias.chunks_exact_mut(kp).enumerate() {
            let b = if b.len() > k { &b[image * k..] } else { b };
            row.iter_mut().zip(&b[..k]).for_each(|(sum, b)| *sum += b);
        }
    }
    let shared = Shared { d: *d, input, prologue, residual, packed, epilogue, bias, kp, k0 };

    let units = bands::units(d);
    let mut partial = Vec::new();
    let stats: &mut [f32] = match out.stats {
        None => &mut [],
        Some(stats) => {
            expect("stats", stats.len(), d.n as usize * k * 2)?;
            stats
        }
    };
    // Units that are bands of an image leave partial statistics, merged below; whole images write theirs at once.
    let banded = !stats.is_empty() && units.len() > d.n as usize;
    let stats_of_units: &mut [f32] = if banded {
        partial.resize(units.len() * k * 2, 0.0);
        &mut partial
    } else {
        &mut *stats
    };
    let with_stats = !stats_of_units.is_empty();
    let mut jobs = Vec::with_capacity(units.len());
    let (mut rest0, mut rest1, mut rest_stats) = (out.y0, y1, stats_of_units);
    for unit in &units {
        let n = unit.pixels(d);
        let stats_len = if with_stats { unit.images * k * 2 } else { 0 };
        jobs.push(Job {
            unit: *unit,
            y0: take(&mut rest0, n * k0),
            y1: take(&mut rest1, n * (k - k0)),
            stats: take(&mut rest_stats, stats_len),
        });
    }
    let isa = cpu.isa();
    cpu.for_each(jobs, |job| run_unit(isa, &shared, job));
    if banded {
        merge_bands(&units, d, &partial, stats);
    }
    Ok(())
}

/// Splits the first `n` elements off.
pub(in crate::ops) fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}

/// Chan's merge of (mean, sum of squared deviations) over the bands of each image, in order (Chan, Golub, LeVeque 1979).
pub(in crate::ops) fn merge_bands(units: &[Unit], d: &ConvDims, partial: &[f32], stats: &mut [f32]) {
    let k = d.k as usize;
    let mut count = vec![0.0f64; d.n as usize];
    for (unit, part) in units.iter().zip(partial.chunks_exact(2 * k)) {
        let (before, n) = (count[unit.image], unit.pixels(d) as f64);
        let total = &mut stats[unit.image * 2 * k..][..2 * k];
        for (total, part) in total.chunks_exact_mut(2).zip(part.chunks_exact(2)) {
            if before == 0.0 {
                total.copy_from_slice(part);
                continue;
            }
            let delta = f64::from(part[0]) - f64::from(total[0]);
            total[0] = (f64::from(total[0]) + delta * n / (before + n)) as f32;
            total[1] = (f64::from(total[1]) + f64::from(part[1]) + delta * delta * before * n / (before + n)) as f32;
        }
        count[unit.image] += n;
    }
}

/// One unit, with its scratch: the band, the products [pixels, K padded], and the pixel offsets.
struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    job: Job<'s>,
    band: Band,
    buf: &'s mut [f32],
    products: &'s mut [f32],
    tables: &'s mut [u32],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, job: Job<'_>) {
    let d = &shared.d;
    let band = Band::new(d, d.c(), 1);
    // Whole register blocks: the last block repeats the last pixel, and its surplus rows are never read.
    let padded_n = job.unit.pixels(d).next_multiple_of(isa.block_pixels());
    let lengths = [band.len(&job.unit), padded_n * shared.kp, 3 * padded_n + d.taps()];
    with_scratch(lengths, |[buf, products, tables]| {
        let tables = bytemuck::cast_slice_mut(tables);
        dispatch(isa, UnitKernel { shared, job, band, buf, products, tables });
    });
}

/// One operand as the inner loop sees it: pixel p of the unit starts at `base + offsets[p]`, its taps at the given distances.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Segment<'a> {
    pub base: *const f32,
    pub offsets: &'a [u32],
    pub taps: &'a [u32],
    pub channels: usize,
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, job, band, buf, products, tables } = self;
        let Shared { d, input, prologue, residual, packed, kp, .. } = shared;
        let unit = &job.unit;
        let (n, kp) = (unit.pixels(d), *kp);
        let padded_n = n.next_multiple_of(S::PIXELS);
        let (main, rest) = tables.split_at_mut(padded_n);
        let (off0, rest) = rest.split_at_mut(padded_n);
        let (off1, taps) = rest.split_at_mut(padded_n);
        let (r0, r1) = (d.r0 as usize, d.r1 as usize);
        let constant = matches!(residual, Some(r) if r.x1_constant);
        let (mut image, mut row, mut col) = (0, 0, 0);
        for p in 0..padded_n {
            main[p] = band.offset(unit, image, row, col) as u32;
            off0[p] = (p.min(n - 1) * r0) as u32;
            off1[p] = (if constant { image } else { p.min(n - 1) } * r1) as u32;
            if p + 1 < n {
                col += 1;
                if col == d.w as usize {
                    (row, col) = (row + 1, 0);
                }
                if row == unit.rows {
                    (image, row) = (image + 1, 0);
                }
            }
        }
        for (t, slot) in taps.iter_mut().enumerate() {
            *slot = band.tap(d.side as usize, t) as u32;
        }
        let first = unit.first_pixel(d);
        // SAFETY: the caller vouches for the instruction set. Offsets stay inside the band (built from its geometry) and inside
        // the residual tensors (lengths checked on entry); tiles cover exactly the packed filter and kp columns of products.
        unsafe {
            bands::load::<S>(d, unit, &band, input, prologue, buf);
            let main = Segment { base: buf.as_ptr(), offsets: main, taps, channels: d.c() };
            let mut segments = [main; 3];
            let mut used = 1;
            if let Some(r) = residual {
                let base = r.x0[first * r0..].as_ptr();
                segments[1] = Segment { base, offsets: off0, taps: &[0], channels: r0 };
                used = 2;
                if let Some(x1) = r.x1 {
                    let base = x1[if constant { unit.image } else { first } * r1..].as_ptr();
                    segments[2] = Segment { base, offsets: off1, taps: &[0], channels: r1 };
                    used = 3;
                }
            }
            let mut k0 = 0;
            while k0 < d.k as usize {
                let vectors = pack::tile_vectors(d.k as usize, k0, S::LANES);
                let w = packed[pack::rows(d) * k0..].as_ptr();
                let out = products.as_mut_ptr().add(k0);
                let mut p = 0;
                while p < n {
                    block::<S>(vectors, &segments[..used], p, w, out, kp);
                    p += S::PIXELS;
                }
                k0 += vectors * S::LANES;
            }
            epilogue::<S>(shared, job, products, kp);
        }
    }
}

/// Picks the register block of the instruction set.
#[inline(always)]
pub(in crate::ops) unsafe fn block<S: Simd>(
    vectors: usize,
    segs: &[Segment<'_>],
    p: usize,
    w: *const f32,
    out: *mut f32,
    kp: usize,
) {
    // SAFETY: passed on.
    unsafe {
        // Conditions on constants, not a match of tuples: what is not taken is then not even compiled.
        if S::PIXELS == 8 {
            if vectors == 2 {
                product::<S, 8, 2>(segs, p, w, out, kp);
            } else {
                product::<S, 8, 1>(segs, p, w, out, kp);
            }
        } else if S::PIXELS == 6 {
            if vectors == 2 {
                product::<S, 6, 2>(segs, p, w, out, kp);
            } else {
                product::<S, 6, 1>(segs, p, w, out, kp);
            }
        } else if vectors == 2 {
            product::<S, 2, 2>(segs, p, w, out, kp);
        } else {
            product::<S, 2, 1>(segs, p, w, out, kp);
        }
    }
}

/// The inner loop: PX pixels by CV vectors of output channels in registers, over all segments, taps and channels.
///
/// # Safety
/// The instruction set of `S`; `p + PX` offsets in each segment; `w` holds the segments' rows of CV vectors; `out + (p+PX) kp`.
#[inline(always)]
unsafe fn product<S: Simd, const PX: usize, const CV: usize>(
    segments: &[Segment<'_>],
    p: usize,
    mut w: *const f32,
    out: *mut f32,
    kp: usize,
) {
    // SAFETY: as the function's contract says.
    unsafe {
        let mut acc = [[S::splat(0.0); CV]; PX];
        for seg in segments {
            let mut base = [seg.base; PX];
            for (i, base) in base.iter_mut().enumerate() {
                *base = base.add(*seg.offsets.get_unchecked(p + i) as usize);
            }
            for &tap in seg.taps {
                let mut x = base;
                for x in &mut x {
                    *x = x.add(tap as usize);
                }
                for c in 0..seg.channels {
                    let mut wv = [S::splat(0.0); CV];
                    for (v, wv) in wv.iter_mut().enumerate() {
                        *wv = S::load(w.add(v * S::LANES));
                    }
                    for i in 0..PX {
                        let b = S::broadcast(x[i], c);
                        for v in 0..CV {
                            acc[i][v] = S::fma(b, wv[v], acc[i][v]);
                        }
                    }
                    w = w.add(CV * S::LANES);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (v, &a) in row.iter().enumerate() {
                S::store(out.add((p + i) * kp + v * S::LANES), a);
            }
        }
    }
}

/// Pointers of one column of vectors: `len` lanes (all, or the last few) of every pixel of the unit.
struct Column<'a> {
    k: usize,
    len: usize,
    /// Output and its operands, first pixel of the unit, at this column; `stride` floats to the next pixel.
    y: &'a mut [f32],
    v: Option<&'a [f32]>,
    add: Option<&'a [f32]>,
    stride: usize,
}

#[inline(always)]
unsafe fn epilogue<S: Simd>(shared: &Shared<'_>, job: Job<'_>, products: &[f32], kp: usize) {
    let Shared { d, epilogue, k0, .. } = shared;
    let (k, k0, first) = (d.k as usize, *k0, job.unit.first_pixel(d));
    let Job { unit, y0, y1, stats } = job;
    let (v0, v1) = match &epilogue.affine {
        Some((v, _, _)) => (Some(v.x0), v.x1),
        None => (None, None),
    };
    let sides = [(0, k0, y0, v0, epilogue.add0), (k0, k - k0, y1, v1, epilogue.add1)];
    for (from, channels, y, v, add) in sides {
        let mut c = 0;
        while c < channels {
            let at = first * channels + c;
            let v = v.map(|v| &v[at..]);
            let add = add.map(|add| &add[at..]);
            let len = if channels - c < S::LANES { channels - c } else { S::LANES };
            let column = Column { k: from + c, len, y: &mut y[c..], v, add, stride: channels };
            // SAFETY: the caller vouches for the instruction set.
            unsafe {
                if len == S::LANES {
                    finish::<S, true>(shared, &unit, column, products, kp, stats);
                } else {
                    finish::<S, false>(shared, &unit, column, products, kp, stats);
                }
            }
            c += S::LANES;
        }
    }
}

/// `LANES` elements, or fewer where the column is the last one.
#[inline(always)]
unsafe fn get<S: Simd, const FULL: bool>(src: &[f32], at: usize, len: usize) -> S::V {
    // SAFETY: the caller vouches for the instruction set; a full column has LANES elements at `at`.
    unsafe {
        if FULL {
            debug_assert!(at + S::LANES <= src.len());
            S::load(src.as_ptr().add(at))
        } else {
            load_part::<S>(&src[at..at + len])
        }
    }
}

/// Applies the epilogue to one column and takes its statistics.
///
/// Statistics in one pass: sums of (y - s) and (y - s)^2 with s the image's first pixel, so that the difference of squares below
/// loses no more digits than the spread of the values asks for.
#[inline(always)]
unsafe fn finish<S: Simd, const FULL: bool>(
    shared: &Shared<'_>,
    unit: &Unit,
    column: Column<'_>,
    scratch: &[f32],
    kp: usize,
    stats: &mut [f32],
) {
    let Shared { d, epilogue, bias, .. } = shared;
    let Column { k, len, y, v, add, stride } = column;
    let channels = d.k as usize;
    let per_image = unit.rows * d.w as usize;
    let first = unit.first_pixel(d);
    // SAFETY: the caller vouches for the instruction set; scratch and bias are padded to whole vectors, the rest was checked.
    unsafe {
        #[allow(clippy::manual_map)] // intrinsics in a closure are not inlined, see `simd`
        let ab = match &epilogue.affine {
            Some((_, a, b)) => Some((get::<S, FULL>(a, k, len), get::<S, FULL>(b, k, len))),
            None => None,
        };
        for image in 0..unit.images {
            let row = if bias.len() > kp { (unit.image + image) * kp } else { 0 };
            let bias = get::<S, FULL>(bias, row + k, len);
            let (mut shift, mut sum, mut squares) = (S::splat(0.0), S::splat(0.0), S::splat(0.0));
            for p in image * per_image..(image + 1) * per_image {
                let mut u = S::add(get::<S, FULL>(scratch, p * kp + k, len), bias);
                if let Some(h) = epilogue.silu_grad {
                    u = S::mul(u, S::silu_grad(get::<S, FULL>(h, (first + p) * channels + k, len)));
                }
                if let (Some(v), Some((a, b))) = (v, ab) {
                    u = S::add(u, S::fma(a, get::<S, FULL>(v, p * stride, len), b));
                }
                if let Some(add) = add {
                    u = S::add(u, get::<S, FULL>(add, p * stride, len));
                }
                if FULL {
                    debug_assert!(p * stride + S::LANES <= y.len());
                    S::store(y.as_mut_ptr().add(p * stride), u);
                } else {
                    store_part::<S>(u, &mut y[p * stride..p * stride + len]);
                }
                if !stats.is_empty() {
                    if p == image * per_image {
                        shift = u;
                    }
                    let t = S::sub(u, shift);
                    sum = S::add(sum, t);
                    squares = S::fma(t, t, squares);
                }
            }
            if !stats.is_empty() {
                let count = per_image as f32;
                let mean = S::div(sum, S::splat(count));
                let m2 = S::max(S::sub(squares, S::mul(sum, mean)), S::splat(0.0));
                let (mut means, mut m2s) = ([0.0f32; 16], [0.0f32; 16]);
                S::store(means.as_mut_ptr(), S::add(mean, shift));
                S::store(m2s.as_mut_ptr(), m2);
                for i in 0..len {
                    stats[(image * channels + k + i) * 2] = means[i];
                    stats[(image * channels + k + i) * 2 + 1] = m2s[i];
                }
            }
        }
    }
}
