//! The gathering and the spreading product, with what follows them.
//!
//! A unit's band is loaded once; then for each tile of output channels the register blocks of [`forward`] leave the products of all pixels, class by
//! class where they are spread, in scratch that stays in cache, and a second pass adds windows, bias and `add`, takes the statistics and writes.

use super::plan::{Class, Plan, enlarged, units};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, load_part, store_part};
use crate::device::cpu::{Cpu, Isa};
use crate::ops::conv::cpu::bands::{self, Band, Unit};
use crate::ops::conv::cpu::forward::{self, Segment, add_biases, merge_bands, take, write_stats};
use crate::ops::conv::cpu::pack;
use crate::ops::conv::{Operand, Prologue};

/// What every unit reads.
struct Shared<'a> {
    plan: Plan,
    x: &'a [f32],
    packed: &'a [f32],
    /// Their sum, [K padded], or [N, K padded] where an image has its own.
    bias: Vec<f32>,
    kp: usize,
    add: Option<&'a [f32]>,
}

/// What one unit writes.
struct Job<'a> {
    /// On the small side.
    unit: Unit,
    y: &'a mut [f32],
    /// [images of the unit, K, 2], or empty.
    stats: &'a mut [f32],
}

#[allow(clippy::too_many_arguments)] // the operands of both directions
pub(super) fn run<'a>(
    cpu: &Cpu,
    plan: Plan,
    x: &'a [f32],
    packed: &'a [f32],
    biases: [Option<&'a [f32]>; 2],
    add: Option<&'a [f32]>,
    y: &mut [f32],
    stats: Option<&mut [f32]>,
) {
    let (n, k) = (plan.n, plan.k);
    let kp = pack::padded(k, cpu.isa().lanes());
    let mut bias = Vec::new();
    add_biases(&mut bias, biases, n, [k, kp]);
    let shared = Shared { plan, x, packed, bias, kp, add };
    let small = units(n, plan.h, plan.w, plan.c);
    let out: Vec<Unit> = small.iter().map(|unit| if plan.spread { enlarged(unit) } else { *unit }).collect();
    let dims = plan.side(plan.spread, plan.c);
    let stats = stats.unwrap_or_default();
    // Units that are bands of an image leave partial statistics, merged below; whole images write theirs at once.
    let banded = !stats.is_empty() && out.len() > n;
    let mut partial = vec![0.0; if banded { out.len() * k * 2 } else { 0 }];
    let (mut rest, mut rest_stats): (_, &mut [f32]) = (y, if banded { &mut partial } else { &mut *stats });
    let with_stats = !rest_stats.is_empty();
    let jobs = small
        .iter()
        .zip(&out)
        .map(|(unit, out)| Job {
            unit: *unit,
            y: take(&mut rest, out.pixels(&dims) * k),
            stats: take(&mut rest_stats, if with_stats { unit.images * k * 2 } else { 0 }),
        })
        .collect();
    let isa = cpu.isa();
    cpu.for_each(jobs, |job| run_unit(isa, &shared, job));
    if banded {
        merge_bands(&out, &dims, &partial, stats);
    }
}

/// The products of a class, of a tile of channels: where they begin, and pixels of a row.
#[derive(Clone, Copy, Default)]
struct Plane {
    /// In pixels, of the scratch.
    start: usize,
    /// In pixels.
    row: usize,
    /// In pixels.
    image: usize,
}

/// One unit, with its scratch.
struct UnitKernel<'s, 'a> {
    shared: &'s Shared<'a>,
    job: Job<'s>,
    /// Of the gathering product one, of the spreading one four.
    classes: &'s [Class],
    planes: [Plane; 4],
    band: Band,
    buf: &'s mut [f32],
    products: &'s mut [f32],
    /// Offsets of all pixels of all planes in the band.
    offsets: &'s mut [u32],
}

/// Runs one unit on this thread.
fn run_unit(isa: Isa, shared: &Shared<'_>, job: Job<'_>) {
    let plan = &shared.plan;
    let classes = if plan.spread { &plan.classes()[..] } else { &[] };
    let (w, block) = (plan.w, isa.block_pixels());
    let mut planes = [Plane::default(); 4];
    let mut pixels = 0;
    if plan.spread {
        for (plane, class) in planes.iter_mut().zip(classes) {
            let [a, b] = class.parity.map(|p| plan.extra(p));
            *plane = Plane { start: pixels, row: w + b, image: (job.unit.rows + a) * (w + b) };
            // Whole register blocks: the last block repeats the last pixel, and its surplus rows are never read.
            pixels += (job.unit.images * plane.image).next_multiple_of(block);
        }
    } else {
        planes[0] = Plane { start: 0, row: w, image: job.unit.rows * w };
        pixels = (job.unit.images * planes[0].image).next_multiple_of(block);
    }
    let source = if plan.spread { job.unit } else { enlarged(&job.unit) };
    let band = Band::new(&plan.side(!plan.spread, plan.c), plan.c, 1);
    let lengths = [band.len(&source), pixels * 2 * isa.lanes(), pixels];
    with_scratch(lengths, |[buf, products, offsets]| {
        let offsets = bytemuck::cast_slice_mut(offsets);
        dispatch(isa, UnitKernel { shared, job, classes, planes, band, buf, products, offsets });
    });
}

/// Fills the offsets in the band of a plane's pixels. Its first pixel is that of row and column `first`; from one row or column to the next it is `step`.
#[inline(always)]
fn fill(offsets: &mut [u32], plane: Plane, images: usize, source: &Unit, band: &Band, first: [usize; 2], step: usize) {
    let mut at = 0;
    for image in 0..images {
        for row in 0..plane.image / plane.row {
            let mut offset = band.offset(source, image, step * row + first[0], first[1]);
            for slot in &mut offsets[at..at + plane.row] {
                *slot = offset as u32;
                offset += step * band.pitch;
            }
            at += plane.row;
        }
    }
    let last = offsets[at - 1];
    offsets[at..].fill(last);
}

impl Kernel for UnitKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let UnitKernel { shared, job, classes, planes, band, buf, products, offsets } = self;
        let Shared { plan, x, packed, bias, kp, add } = shared;
        let Job { unit, y, stats } = job;
        let (c, k) = (plan.c, plan.k);
        let source = if plan.spread { unit } else { enlarged(&unit) };
        let out = if plan.spread { enlarged(&unit) } else { unit };
        let count = if plan.spread { 4 } else { 1 };
        let mut taps = [[0u32; 9]; 4];
        let mut lens = [9; 4];
        for i in 0..count {
            let plane = planes[i];
            let end = if i + 1 < count { planes[i + 1].start } else { offsets.len() };
            let offsets = &mut offsets[plane.start..end];
            if plan.spread {
                let class = &classes[i];
                lens[i] = class.count;
                for (slot, (_, [dr, dc])) in taps[i].iter_mut().zip(class.taps()) {
                    *slot = band.tap(3, 3 * dr + dc) as u32;
                }
                // The band begins one pixel outside. Rows and columns in front of the unit's are those of odd classes alone.
                let [a, b] = class.parity;
                let first = [1 - plan.back() - plan.extra(a), 1 - plan.back() - plan.extra(b)];
                fill(offsets, plane, unit.images, &source, &band, first, 1);
            } else {
                for (t, slot) in taps[i].iter_mut().enumerate() {
                    *slot = band.tap(3, t) as u32;
                }
                fill(offsets, plane, unit.images, &source, &band, [plan.offset; 2], 2);
            }
        }
        let y_first = out.first_pixel(&plan.side(plan.spread, c)) * k;
        #[allow(clippy::manual_map)] // in kernels no closures, see `simd`
        let add = match add {
            Some(add) => Some(&add[y_first..y_first + y.len()]),
            None => None,
        };
        // SAFETY: the caller vouches for the instruction set. Offsets and taps stay inside the band, planes inside the scratch, tiles cover exactly the
        // packed filter.
        unsafe {
            let dims = plan.side(!plan.spread, c);
            bands::load::<S>(&dims, &source, &band, &Operand::one(*x), &Prologue::none(), buf);
            if plan.windows && !plan.spread {
                for image in buf.chunks_exact_mut(band.image_len(source.rows)) {
                    windows::<S>(image, band.width * band.pitch, band.pitch);
                }
            }
            let mut k0 = 0;
            while k0 < k {
                let vectors = pack::tile_vectors(k, k0, S::LANES);
                let width = vectors * S::LANES;
                let mut w = packed[9 * c * k0..].as_ptr();
                for i in 0..count {
                    let plane = planes[i];
                    let end = if i + 1 < count { planes[i + 1].start } else { offsets.len() };
                    let segment = Segment {
                        base: buf.as_ptr(),
                        offsets: &offsets[plane.start..end],
                        taps: &taps[i][..lens[i]],
                        channels: c,
                        skip: 0,
                    };
                    let results = products.as_mut_ptr().add(plane.start * width);
                    let mut p = 0;
                    while p < end - plane.start {
                        forward::block::<S, false>(vectors, &[segment], p, w, results, width);
                        p += S::PIXELS;
                    }
                    w = w.add(lens[i] * c * width);
                }
                for v in 0..vectors {
                    let first = k0 + v * S::LANES;
                    if first >= k {
                        break;
                    }
                    let len = if k - first < S::LANES { k - first } else { S::LANES };
                    let mut column: Column<'_, S> = Column {
                        plan,
                        planes: &planes,
                        products: products[v * S::LANES..].as_ptr(),
                        width,
                        y: &mut *y,
                        add,
                        first,
                        len,
                        bias: S::splat(0.0),
                        shift: S::splat(0.0),
                        sum: S::splat(0.0),
                        squares: S::splat(0.0),
                        fresh: true,
                        with_stats: !stats.is_empty(),
                    };
                    let per_image = out.rows * if plan.spread { 2 * plan.w } else { plan.w };
                    for image in 0..unit.images {
                        let row = if bias.len() > *kp { (unit.image + image) * kp } else { 0 };
                        column.bias = S::load(bias[row + first..row + first + S::LANES].as_ptr());
                        column.fresh = true;
                        if len == S::LANES {
                            column.image::<true>(image, unit.rows, image * per_image);
                        } else {
                            column.image::<false>(image, unit.rows, image * per_image);
                        }
                        if !stats.is_empty() {
                            column.finish(per_image, &mut stats[(image * k + first) * 2..]);
                        }
                    }
                }
                k0 += width;
            }
        }
    }
}

/// Sums over 2x2 windows, in place, for every pixel of a picture part but those of the last row and the last one of the last row but one; those at the
/// right edge, which no tap reads, run on into the next row.
///
/// # Safety
/// The instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn windows<S: Simd>(image: &mut [f32], row: usize, pixel: usize) {
    let n = image.len() - row - pixel;
    let mut i = 0;
    // SAFETY: the caller vouches for the instruction set; i + LANES + row + pixel is at most the length. What lies behind i is still unchanged.
    unsafe {
        while i + S::LANES <= n {
            let p = image.as_mut_ptr().add(i);
            let top = S::add(S::load(p), S::load(p.add(pixel)));
            let bottom = S::add(S::load(p.add(row)), S::load(p.add(row + pixel)));
            S::store(p, S::add(top, bottom));
            i += S::LANES;
        }
    }
    while i < n {
        image[i] = (image[i] + image[i + pixel]) + (image[i + row] + image[i + row + pixel]);
        i += 1;
    }
}

/// One vector of output channels of a unit on its way from the products to the output.
struct Column<'s, S: Simd> {
    plan: &'s Plan,
    planes: &'s [Plane; 4],
    /// [pixels, width], at the vector.
    products: *const f32,
    width: usize,
    y: &'s mut [f32],
    add: Option<&'s [f32]>,
    /// First channel, and how many lanes are channels.
    first: usize,
    len: usize,
    bias: S::V,
    /// Statistics of the image: its first pixel, and the sums of the differences to that and of their squares.
    shift: S::V,
    sum: S::V,
    squares: S::V,
    fresh: bool,
    with_stats: bool,
}

impl<S: Simd> Column<'_, S> {
    /// All pixels of an image, of which `rows` small ones are the unit's; its first is pixel `p` of the unit's output.
    ///
    /// # Safety
    /// The instruction set of `S`; the products of the unit.
    #[inline(always)]
    unsafe fn image<const FULL: bool>(&mut self, image: usize, rows: usize, mut p: usize) {
        let w = self.plan.w;
        // SAFETY: the caller vouches for the instruction set and the products; the planes say where they lie.
        unsafe {
            if !self.plan.spread {
                for i in 0..rows * w {
                    let u = S::load(self.product(0, image, 0, i));
                    self.emit::<FULL>(u, p);
                    p += 1;
                }
                return;
            }
            for i in 0..rows {
                for a in 0..2 {
                    if !self.plan.windows {
                        let (even, odd) = (self.product(2 * a, image, i, 0), self.product(2 * a + 1, image, i, 0));
                        for j in 0..w {
                            self.emit::<FULL>(S::load(even.add(j * self.width)), p);
                            self.emit::<FULL>(S::load(odd.add(j * self.width)), p + 1);
                            p += 2;
                        }
                        continue;
                    }
                    // Row 2i + a of y is the sum of rows 2i + a - 1 and 2i + a; plane rows and columns that are odd begin one earlier.
                    let odd_row = i + a;
                    let rows = [
                        [self.product(0, image, i, 0), self.product(1, image, i, 0)],
                        [self.product(2, image, odd_row, 0), self.product(3, image, odd_row, 0)],
                    ];
                    let mut left = S::add(S::load(rows[0][1]), S::load(rows[1][1]));
                    for j in 0..w {
                        let at = j * self.width;
                        let next = at + self.width;
                        let even = S::add(S::load(rows[0][0].add(at)), S::load(rows[1][0].add(at)));
                        let right = S::add(S::load(rows[0][1].add(next)), S::load(rows[1][1].add(next)));
                        self.emit::<FULL>(S::add(left, even), p);
                        self.emit::<FULL>(S::add(even, right), p + 1);
                        left = right;
                        p += 2;
                    }
                }
            }
        }
    }

    /// The product of a plane at (row, column).
    #[inline(always)]
    unsafe fn product(&self, plane: usize, image: usize, row: usize, col: usize) -> *const f32 {
        let Plane { start, row: per_row, image: per_image } = self.planes[plane];
        // SAFETY: the caller names a pixel of the plane.
        unsafe { self.products.add((start + image * per_image + row * per_row + col) * self.width) }
    }

    /// Writes pixel `p` of the unit's output.
    #[inline(always)]
    unsafe fn emit<const FULL: bool>(&mut self, u: S::V, p: usize) {
        let at = p * self.plan.k + self.first;
        // SAFETY: the caller vouches for the instruction set; a full column has LANES elements at `at`.
        unsafe {
            let mut u = S::add(u, self.bias);
            if let Some(add) = self.add {
                debug_assert!(at + self.len <= add.len());
                let add = if FULL { S::load(add.as_ptr().add(at)) } else { load_part::<S>(&add[at..at + self.len]) };
                u = S::add(u, add);
            }
            if FULL {
                debug_assert!(at + S::LANES <= self.y.len());
                S::store(self.y.as_mut_ptr().add(at), u);
            } else {
                store_part::<S>(u, &mut self.y[at..at + self.len]);
            }
            if self.with_stats {
                if self.fresh {
                    (self.shift, self.sum, self.squares) = (u, S::splat(0.0), S::splat(0.0));
                    self.fresh = false;
                }
                let t = S::sub(u, self.shift);
                self.sum = S::add(self.sum, t);
                self.squares = S::fma(t, t, self.squares);
            }
        }
    }

    /// Writes the statistics of an image of `count` pixels: mean and sum of squared deviations, as the convolution's.
    #[inline(always)]
    unsafe fn finish(&mut self, count: usize, stats: &mut [f32]) {
        // SAFETY: passed on.
        unsafe { write_stats::<S>([self.shift, self.sum, self.squares], count, self.len, stats) }
    }
}
