//! The product and its epilogue.

use super::super::{ConvDims, Epilogue, Operand, Output, Prologue};
use super::bands::{self, Band, Unit};
use super::forward_tiles::TileWork;
use super::winograd::{self, Tiles};
use super::{constant, expect, pack};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch_products, load_part, store_part};
use crate::device::cpu::{Cpu, Isa, Products};
use crate::error::Result;

/// Floats of a 1x1 product's input that are used by all output channels before the next come: half a first-level cache.
const CHUNK_FLOATS: usize = 4 << 10;

/// What every unit reads.
struct Shared<'a> {
    d: ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    packed: Packed<'a>,
    epilogue: Epilogue<'a, Cpu>,
    /// bias + bias_res, [K padded], or [N, K padded] where an image has its own.
    bias: Vec<f32>,
    /// See [`PerImage::border`]; may be empty.
    border: Vec<f32>,
    /// K padded.
    kp: usize,
    k0: usize,
}

/// A packed filter, or the part of it that belongs to some of the input channels of its main product.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub data: &'a [f32],
    /// Rows of a tile of output channels.
    pub rows: usize,
    /// Rows of its main product.
    main: usize,
    /// Rows of the main product in each tap or position (its input channels), and the first one that is used.
    pub channels: usize,
    pub first: usize,
    /// Whether positions of Winograd's tiles stand in place of taps.
    tiled: bool,
    /// Bfloat16 where it is tiled and the device's products are; then a row holds a pair of input channels.
    products: Products,
}

impl<'a> Packed<'a> {
    /// The filter that was packed for `d` with these products.
    pub fn new(d: &ConvDims, products: Products, data: &'a [f32]) -> Self {
        let (rows, main, tiled) = (pack::rows(d, products), pack::main_rows(d, products), winograd::wins(d));
        let products = if tiled { products } else { Products::Fp32 };
        let channels = if tiled { pack::tiled_channels(d, products) } else { d.c() };
        Packed { data, rows, main, channels, first: 0, tiled, products }
    }
    /// Whether a row begins with the input channel `first`.
    pub fn can_start_at(&self, first: usize) -> bool {
        !self.products.paired() || first.is_multiple_of(2)
    }
    /// The input channels from `first` on.
    pub fn starting_at(self, first: usize) -> Self {
        debug_assert!(self.can_start_at(first));
        Packed { first: if self.products.paired() { first / 2 } else { first }, ..self }
    }
    /// Row `r` of the residual, output channels from `k0`, in a tile of `width` of them.
    pub fn residual_row(&self, k0: usize, width: usize, r: usize) -> &'a [f32] {
        &self.data[self.rows * k0 + (self.main + r) * width..][..width]
    }
}

/// Additions to the product that differ between images; both may be empty.
#[derive(Default)]
pub(super) struct PerImage {
    /// [N, K padded].
    pub bias: Vec<f32>,
    /// [N, 3, 3, K padded], more for the pixels at the border of a picture (top, inner, bottom; left, inner, right).
    pub border: Vec<f32>,
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
    packed: Packed<'a>,
    epilogue: Epilogue<'a, Cpu>,
    per_image: Option<PerImage>,
    out: Output<'_, Cpu>,
) -> Result<()> {
    let (k, k0, pixels) = (d.k as usize, out.k0, d.pixels());
    let y1: &mut [f32] = out.y1.unwrap_or_default();
    expect("y0", out.y0.len(), pixels * k0)?;
    expect("y1", y1.len(), pixels * (k - k0))?;
    let lanes = cpu.isa().lanes();
    let kp = pack::padded(k, lanes);
    let PerImage { mut bias, border } = per_image.unwrap_or_default();
    add_biases(&mut bias, [epilogue.bias, epilogue.bias_res], d.n as usize, [k, kp]);
    let shared = Shared { d: *d, input, prologue, residual, packed, epilogue, bias, border, kp, k0 };

    let units = bands::units(d, bands::MIN_UNITS.max(2 * cpu.threads()));
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

/// Adds biases of [K], or [N, K] where an image has its own, to `sum`, which is of [K padded] or [N, K padded], or still empty.
pub(in crate::ops) fn add_biases(sum: &mut Vec<f32>, biases: [Option<&[f32]>; 2], n: usize, [k, kp]: [usize; 2]) {
    if sum.is_empty() {
        let rows = if biases.iter().flatten().any(|b| b.len() > k) { n } else { 1 };
        sum.resize(rows * kp, 0.0);
    }
    for b in biases.into_iter().flatten() {
        for (image, row) in sum.chunks_exact_mut(kp).enumerate() {
            let b = if b.len() > k { &b[image * k..] } else { b };
            row.iter_mut().zip(&b[..k]).for_each(|(sum, b)| *sum += b);
        }
    }
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

/// One unit, with its scratch: the band, the products [pixels, K padded], the pixel offsets, and V and M where the product is
/// taken by tiles.
struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    job: Job<'s>,
    band: Band,
    buf: &'s mut [f32],
    products: &'s mut [f32],
    tables: &'s mut [u32],
    tiles: Option<Tiles>,
    v: &'s mut [f32],
    m: &'s mut [f32],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, job: Job<'_>) {
    let d = &shared.d;
    let (lanes, block) = (isa.lanes(), isa.block_pixels());
    let tiled = shared.packed.tiled;
    let band = if tiled { Band::even(d, d.c(), lanes) } else { Band::new(d, d.c(), 1) };
    let v_pitch = if shared.packed.products.paired() { band.pitch / 2 } else { band.pitch };
    let tiles = tiled.then(|| Tiles::new(d, &job.unit, v_pitch, shared.kp, block));
    let [v_len, m_len] = tiles.map_or([0; 2], |tiles| tiles.lengths());
    let batch = tiles.map_or(0, |tiles| tiles.batch);
    // Whole register blocks: the last block repeats the last pixel, and its surplus rows are never read.
    let padded_n = job.unit.pixels(d).next_multiple_of(block);
    let lengths = [band.len(&job.unit), padded_n * shared.kp, 3 * padded_n + d.taps() + batch, v_len, m_len];
    with_scratch(lengths, |[buf, products, tables, v, m]| {
        let tables = bytemuck::cast_slice_mut(tables);
        let kernel = UnitKernel { shared, job, band, buf, products, tables, tiles, v, m };
        dispatch_products(isa, shared.packed.products, kernel);
    });
}

/// One operand as the inner loop sees it: pixel p of the unit starts at `base + offsets[p]`, its taps at the given distances.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Segment<'a> {
    pub base: *const f32,
    pub offsets: &'a [u32],
    pub taps: &'a [u32],
    pub channels: usize,
    /// Rows of the filter after those of the channels, for each tap.
    pub skip: usize,
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, job, band, buf, products, tables, tiles, v, m } = self;
        let Shared { d, input, prologue, residual, packed, border, kp, .. } = shared;
        let unit = &job.unit;
        let (n, kp) = (unit.pixels(d), *kp);
        let padded_n = n.next_multiple_of(S::PIXELS);
        let (main, rest) = tables.split_at_mut(padded_n);
        let (off0, rest) = rest.split_at_mut(padded_n);
        let (off1, rest) = rest.split_at_mut(padded_n);
        let (taps, in_batch) = rest.split_at_mut(d.taps());
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
            let skip = if tiles.is_some() { 0 } else { packed.channels - d.c() };
            let main = Segment { base: buf.as_ptr(), offsets: main, taps, channels: d.c(), skip };
            let mut segments = [main; 3];
            let mut used = 1;
            if let Some(r) = residual {
                let base = r.x0[first * r0..].as_ptr();
                segments[1] = Segment { base, offsets: off0, taps: &[0], channels: r0, skip: 0 };
                used = 2;
                if let Some(x1) = r.x1 {
                    let base = x1[if constant { unit.image } else { first } * r1..].as_ptr();
                    segments[2] = Segment { base, offsets: off1, taps: &[0], channels: r1, skip: 0 };
                    used = 3;
                }
            }
            // By tiles the direct product is that of the residual alone.
            let segments = &segments[usize::from(tiles.is_some())..used];
            let before = if tiles.is_some() { packed.main } else { packed.first };
            let chunk = if tiles.is_some() { CHUNK_FLOATS / d.r().max(1) } else { n };
            let chunk = chunk.next_multiple_of(S::PIXELS);
            let mut start = if segments.is_empty() { n } else { 0 };
            while start < n {
                let end = if start + chunk < n { start + chunk } else { n };
                let mut k0 = 0;
                while k0 < d.k as usize {
                    let vectors = pack::tile_vectors(d.k as usize, k0, S::LANES);
                    let w = packed.data[packed.rows * k0 + before * vectors * S::LANES..].as_ptr();
                    let out = products.as_mut_ptr().add(k0);
                    let mut p = start;
                    while p < end {
                        block::<S, false>(vectors, segments, p, w, out, kp);
                        p += S::PIXELS;
                    }
                    k0 += vectors * S::LANES;
                }
                start = end;
            }
            if let Some(tiles) = &tiles {
                for (i, offset) in in_batch.iter_mut().enumerate() {
                    *offset = (i * tiles.v_pitch) as u32;
                }
                let work = TileWork {
                    d,
                    unit,
                    band: &band,
                    buf,
                    packed: *packed,
                    offsets: in_batch,
                    add: !segments.is_empty(),
                };
                if packed.products.paired() {
                    work.run::<S, true>(tiles, v, m, products);
                } else {
                    work.run::<S, false>(tiles, v, m, products);
                }
            }
            if !border.is_empty() {
                constant::add_border::<S>(d, unit, border, products, kp);
            }
            epilogue::<S>(shared, job, products, kp);
        }
    }
}

/// Picks the register block of the instruction set.
#[inline(always)]
pub(in crate::ops) unsafe fn block<S: Simd, const PAIRS: bool>(
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
                product::<S, PAIRS, 8, 2>(segs, p, w, out, kp);
            } else {
                product::<S, PAIRS, 8, 1>(segs, p, w, out, kp);
            }
        } else if S::PIXELS == 6 {
            if vectors == 2 {
                product::<S, PAIRS, 6, 2>(segs, p, w, out, kp);
            } else {
                product::<S, PAIRS, 6, 1>(segs, p, w, out, kp);
            }
        } else if vectors == 2 {
            product::<S, PAIRS, 2, 2>(segs, p, w, out, kp);
        } else {
            product::<S, PAIRS, 2, 1>(segs, p, w, out, kp);
        }
    }
}

/// The inner loop: PX pixels by CV vectors of output channels in registers, over all segments, taps and channels (or `PAIRS` of them).
///
/// # Safety
/// The instruction set of `S`; `p + PX` offsets in each segment; `w` holds the segments' rows of CV vectors; `out + (p+PX) kp`.
#[inline(always)]
unsafe fn product<S: Simd, const PAIRS: bool, const PX: usize, const CV: usize>(
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
                // Four channels a turn: the end of a short loop is a branch that the processor then foresees.
                let mut c = 0;
                while c + 4 <= seg.channels {
                    for _ in 0..4 {
                        step::<S, PAIRS, PX, CV>(&x, c, w, &mut acc);
                        w = w.add(CV * S::LANES);
                        c += 1;
                    }
                }
                while c < seg.channels {
                    step::<S, PAIRS, PX, CV>(&x, c, w, &mut acc);
                    w = w.add(CV * S::LANES);
                    c += 1;
                }
                w = w.add(seg.skip * CV * S::LANES);
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (v, &a) in row.iter().enumerate() {
                S::store(out.add((p + i) * kp + v * S::LANES), a);
            }
        }
    }
}

/// One channel of the inner loop, or one pair.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn step<S: Simd, const PAIRS: bool, const PX: usize, const CV: usize>(
    x: &[*const f32; PX],
    c: usize,
    w: *const f32,
    acc: &mut [[S::V; CV]; PX],
) {
    // SAFETY: passed on.
    unsafe {
        let mut wv = [S::splat(0.0); CV];
        for (v, wv) in wv.iter_mut().enumerate() {
            *wv = S::load(w.add(v * S::LANES));
        }
        for i in 0..PX {
            let b = S::broadcast(x[i], c);
            for v in 0..CV {
                acc[i][v] = if PAIRS { S::dot(b, wv[v], acc[i][v]) } else { S::fma(b, wv[v], acc[i][v]) };
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
                let stats = &mut stats[(image * channels + k) * 2..];
                write_stats::<S>([shift, sum, squares], per_image, len, stats);
            }
        }
    }
}

/// (mean, sum of squared deviations) of `len` channels over `count` pixels, from the sums of differences to `shift` and of their squares.
///
/// # Safety
/// The instruction set of `S`.
#[inline(always)]
pub(in crate::ops) unsafe fn write_stats<S: Simd>(
    [shift, sum, squares]: [S::V; 3],
    count: usize,
    len: usize,
    stats: &mut [f32],
) {
    let (mut means, mut m2s) = ([0.0f32; 16], [0.0f32; 16]);
    // SAFETY: the caller vouches for the instruction set; 16 elements are enough for any vector.
    unsafe {
        let mean = S::div(sum, S::splat(count as f32));
        let m2 = S::max(S::sub(squares, S::mul(sum, mean)), S::splat(0.0));
        S::store(means.as_mut_ptr(), S::add(mean, shift));
        S::store(m2s.as_mut_ptr(), m2);
    }
    for i in 0..len {
        (stats[2 * i], stats[2 * i + 1]) = (means[i], m2s[i]);
    }
}
