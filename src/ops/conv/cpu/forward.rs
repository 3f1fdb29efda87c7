//! The product and its epilogue.

use super::super::{ConvDims, Epilogue, Operand, Output, Prologue};
use super::bands::{self, Band, Unit, load_part, store_part};
use super::{expect, pack, shape_error};
use crate::device::cpu::Cpu;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::error::Result;

/// What every unit reads.
struct Shared<'a> {
    d: ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    packed: &'a [f32],
    epilogue: Epilogue<'a, Cpu>,
    /// bias + bias_res, [K padded].
    bias: Vec<f32>,
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
    check_epilogue(d, &epilogue, k0)?;
    let y1: &mut [f32] = out.y1.unwrap_or_default();
    expect("y0", out.y0.len(), pixels * k0)?;
    expect("y1", y1.len(), pixels * (k - k0))?;
    let lanes = cpu.isa().lanes();
    let mut bias = vec![0.0; pack::padded(k, lanes)];
    for b in [epilogue.bias, epilogue.bias_res].into_iter().flatten() {
        bias.iter_mut().zip(b).for_each(|(sum, b)| *sum += b);
    }
    let shared = Shared { d: *d, input, prologue, residual, packed, epilogue, bias, k0 };

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
    cpu.for_each(jobs, |job| dispatch(isa, UnitKernel { shared: &shared, job }));
    if banded {
        merge_bands(&units, d, &partial, stats);
    }
    Ok(())
}

/// Splits the first `n` elements off.
pub(super) fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}

fn check_epilogue(d: &ConvDims, e: &Epilogue<'_, Cpu>, k0: usize) -> Result<()> {
    let (k, pixels) = (d.k as usize, d.pixels());
    if k0 == 0 || k0 > k {
        return shape_error(format!("k0 is {k0}, the convolution has {k} output channels"));
    }
    for (name, view, want) in [
        ("bias", e.bias, k),
        ("bias_res", e.bias_res, k),
        ("silu_grad", e.silu_grad, pixels * k),
        ("add0", e.add0, pixels * k0),
        ("add1", e.add1, pixels * (k - k0)),
    ] {
        if let Some(view) = view {
            expect(name, view.len(), want)?;
        }
    }
    if let Some((v, a, b)) = &e.affine {
        if v.x1_constant {
            return shape_error("a constant second tensor cannot stand in the epilogue".into());
        }
        expect("epilogue v0", v.x0.len(), pixels * k0)?;
        expect("epilogue v1", v.x1.map_or(0, <[f32]>::len), pixels * (k - k0))?;
        expect("epilogue a", a.len(), k)?;
        expect("epilogue b", b.len(), k)?;
    }
    Ok(())
}

/// Chan's merge of (mean, sum of squared deviations) over the bands of each image, in order (Chan, Golub, LeVeque 1979).
fn merge_bands(units: &[Unit], d: &ConvDims, partial: &[f32], stats: &mut [f32]) {
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

struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    job: Job<'s>,
}

/// One operand as the inner loop sees it: pixel p of the unit starts at `base + offsets[p]`, its taps at the given distances.
struct Segment<'a> {
    base: *const f32,
    offsets: &'a [u32],
    taps: &'a [u32],
    channels: usize,
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Shared { d, input, prologue, residual, packed, .. } = self.shared;
        let unit = &self.job.unit.clone();
        let band = Band::new(d, d.c(), 1);
        let kp = pack::padded(d.k as usize, S::LANES);
        let n = unit.pixels(d);
        // Whole register blocks: the last block repeats the last pixel and its surplus rows are never read.
        let padded_n = n.next_multiple_of(S::PIXELS);
        let tables = 3 * padded_n + d.taps();
        with_scratch([band.len(unit), padded_n * kp, tables], |[buf, scratch, tables]| {
            // SAFETY: the caller vouches for the instruction set. Offsets stay inside the band (built from its geometry) and
            // inside the residual tensors (lengths checked on entry); tiles cover exactly the packed filter and kp columns of
            // scratch.
            unsafe {
                bands::load::<S>(d, unit, &band, input, prologue, buf);
                let tables: &mut [u32] = bytemuck::cast_slice_mut(tables);
                let (main, rest) = tables.split_at_mut(padded_n);
                let (off0, rest) = rest.split_at_mut(padded_n);
                let (off1, taps) = rest.split_at_mut(padded_n);
                let (rows, w) = (unit.rows, d.w as usize);
                for p in 0..padded_n {
                    let q = p.min(n - 1);
                    let (image, row, col) = (q / (rows * w), q / w % rows, q % w);
                    main[p] = band.offset(unit, image, row, col) as u32;
                    off0[p] = (q * d.r0 as usize) as u32;
                    let constant = residual.as_ref().is_some_and(|r| r.x1_constant);
                    off1[p] = (if constant { image } else { q } * d.r1 as usize) as u32;
                }
                for (slot, tap) in taps.iter_mut().zip(band.taps(d.side as usize)) {
                    *slot = tap as u32;
                }
                let first = unit.first_pixel(d);
                let at = |x: &[f32], constant: bool, c: u32| {
                    x[if constant { unit.image } else { first } * c as usize..].as_ptr()
                };
                let empty = || Segment { base: buf.as_ptr(), offsets: &[], taps: &[], channels: 0 };
                let mut segments =
                    [Segment { base: buf.as_ptr(), offsets: main, taps, channels: d.c() }, empty(), empty()];
                let mut used = 1;
                if let Some(r) = residual {
                    segments[1] =
                        Segment { base: at(r.x0, false, d.r0), offsets: off0, taps: &[0], channels: d.r0 as usize };
                    used = 2;
                    if let Some(x1) = r.x1 {
                        let base = at(x1, r.x1_constant, d.r1);
                        segments[2] = Segment { base, offsets: off1, taps: &[0], channels: d.r1 as usize };
                        used = 3;
                    }
                }
                for (k0, vectors) in pack::tiles(d.k as usize, S::LANES) {
                    let w = packed[pack::rows(d) * k0..].as_ptr();
                    let out = scratch.as_mut_ptr().add(k0);
                    for p in (0..n).step_by(S::PIXELS) {
                        block::<S>(vectors, &segments[..used], p, w, out, kp);
                    }
                }
                self.epilogue::<S>(scratch, kp);
            }
        });
    }
}

/// Picks the register block: constants of `S` decide, so only two of the arms remain after compilation.
#[inline(always)]
unsafe fn block<S: Simd>(vectors: usize, segs: &[Segment<'_>], p: usize, w: *const f32, out: *mut f32, kp: usize) {
    // SAFETY: passed on.
    unsafe {
        match (S::PIXELS, vectors) {
            (8, 2) => product::<S, 8, 2>(segs, p, w, out, kp),
            (8, _) => product::<S, 8, 1>(segs, p, w, out, kp),
            (6, 2) => product::<S, 6, 2>(segs, p, w, out, kp),
            (6, _) => product::<S, 6, 1>(segs, p, w, out, kp),
            (_, 2) => product::<S, 2, 2>(segs, p, w, out, kp),
            (_, _) => product::<S, 2, 1>(segs, p, w, out, kp),
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
            let base: [*const f32; PX] =
                std::array::from_fn(|i| seg.base.add(*seg.offsets.get_unchecked(p + i) as usize));
            for &tap in seg.taps {
                let x: [*const f32; PX] = base.map(|b| b.add(tap as usize));
                for c in 0..seg.channels {
                    let wv: [S::V; CV] = std::array::from_fn(|v| S::load(w.add(v * S::LANES)));
                    for i in 0..PX {
                        let b = S::splat(*x[i].add(c));
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

impl UnitKernel<'_, '_> {
    #[inline(always)]
    unsafe fn epilogue<S: Simd>(self, scratch: &[f32], kp: usize) {
        let Shared { d, epilogue, k0, .. } = self.shared;
        let (k, k0, first) = (d.k as usize, *k0, self.job.unit.first_pixel(d));
        let Job { unit, y0, y1, stats } = self.job;
        let v = epilogue.affine.as_ref().map(|(v, _, _)| v);
        let sides =
            [(0, k0, y0, v.map(|v| v.x0), epilogue.add0), (k0, k - k0, y1, v.and_then(|v| v.x1), epilogue.add1)];
        for (from, channels, y, v, add) in sides {
            for c in (0..channels).step_by(S::LANES) {
                let at = first * channels + c;
                let column = Column {
                    k: from + c,
                    len: S::LANES.min(channels - c),
                    y: &mut y[c..],
                    v: v.map(|v| &v[at..]),
                    add: add.map(|a| &a[at..]),
                    stride: channels,
                };
                // SAFETY: the caller vouches for the instruction set.
                unsafe {
                    if column.len == S::LANES {
                        finish::<S, true>(self.shared, &unit, column, scratch, kp, stats);
                    } else {
                        finish::<S, false>(self.shared, &unit, column, scratch, kp, stats);
                    }
                }
            }
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
        let bias = get::<S, FULL>(bias, k, len);
        let ab = epilogue.affine.as_ref().map(|(_, a, b)| (get::<S, FULL>(a, k, len), get::<S, FULL>(b, k, len)));
        for image in 0..unit.images {
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
