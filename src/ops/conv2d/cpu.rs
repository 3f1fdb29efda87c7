//! The convolution on the CPU: a band of output rows is a unit of work. Its input, with the zeros of the padding, is copied together (or
//! read where it lies, where there is no padding); then pixels by output channels are made in registers, as in [`super::super::conv`].
//!
//! The columns of a window are neighbours in memory, channels and all, so that the inner loop runs over S C numbers and the outer one over the R
//! rows of the window.

use super::{Conv2d, Conv2dDims, OP};
use crate::device::Memory;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::device::cpu::{Cpu, CpuBuffer};
use crate::error::Result;
use crate::ops::expect_len;

/// Output pixels of a unit, about.
const UNIT_PIXELS: usize = 128;
/// Vectors of output channels in the register block.
const VECTORS: usize = 2;
/// Numbers of the largest register block: 8 pixels by 2 vectors of 16.
const BLOCK: usize = 8 * VECTORS * 16;

/// Vectors in the tile of output channels that begins at `k0`, of `kp` in all.
#[inline(always)]
fn tile_vectors(kp: usize, k0: usize, lanes: usize) -> usize {
    if kp - k0 >= VECTORS * lanes { VECTORS } else { 1 }
}

/// Filter tiles one after the other, each [R S C][its output channels], zeros behind K.
fn pack(d: &Conv2dDims, lanes: usize, w: &[f32], packed: &mut [f32]) {
    let (c, k, taps) = (d.c as usize, d.k as usize, (d.kernel_h * d.kernel_w) as usize);
    let kp = k.next_multiple_of(lanes);
    let (mut k0, mut rest) = (0, packed);
    while k0 < kp {
        let wide = tile_vectors(kp, k0, lanes) * lanes;
        let (tile, behind) = rest.split_at_mut(wide * taps * c);
        for (row, out) in tile.chunks_exact_mut(wide).enumerate() {
            let (tap, ch) = (row / c, row % c);
            for (i, out) in out.iter_mut().enumerate() {
                *out = if k0 + i < k { w[((k0 + i) * c + ch) * taps + tap] } else { 0.0 };
            }
        }
        (rest, k0) = (behind, k0 + wide);
    }
}

impl Conv2d for Cpu {
    fn conv2d_filter(&self, d: &Conv2dDims, w: &[f32]) -> Result<CpuBuffer> {
        d.validate()?;
        expect_len(OP, "w", w.len(), d.w_len())?;
        let lanes = self.isa().lanes();
        let mut packed = self.alloc(d.depth() * (d.k as usize).next_multiple_of(lanes))?;
        pack(d, lanes, w, packed.as_mut_slice());
        Ok(packed)
    }

    fn conv2d(&self, d: &Conv2dDims, x: &[f32], filter: &[f32], bias: &[f32], y: &mut [f32]) -> Result<()> {
        d.validate()?;
        let (isa, k) = (self.isa(), d.k as usize);
        let kp = k.next_multiple_of(isa.lanes());
        expect_len(OP, "x", x.len(), d.x_len())?;
        expect_len(OP, "filter", filter.len(), d.depth() * kp)?;
        expect_len(OP, "bias", bias.len(), k)?;
        expect_len(OP, "y", y.len(), d.y_len())?;
        let mut padded_bias = vec![0.0; kp];
        padded_bias[..k].copy_from_slice(bias);
        let shared = Shared { d: *d, x, filter, bias: padded_bias };

        let (out_h, out_w) = (d.out_h(), d.out_w());
        let bands = (out_h * out_w).div_ceil(UNIT_PIXELS).min(out_h);
        let rows = out_h.div_ceil(bands);
        let row_len = out_w * d.y_channels as usize;
        let mut jobs = Vec::new();
        for (image, y) in y.chunks_exact_mut(out_h * row_len).enumerate() {
            for (band, y) in y.chunks_mut(rows * row_len).enumerate() {
                jobs.push(Job { image, first_row: band * rows, rows: y.len() / row_len, y });
            }
        }
        self.for_each(jobs, |job| {
            let pixels = (job.rows * out_w).next_multiple_of(isa.block_pixels());
            with_scratch([shared.band_len(job.rows), pixels], |[band, offsets]| {
                dispatch(isa, Unit { shared: &shared, job, band, offsets: bytemuck::cast_slice_mut(offsets) });
            });
        });
        Ok(())
    }
}

struct Shared<'a> {
    d: Conv2dDims,
    x: &'a [f32],
    filter: &'a [f32],
    /// Up to whole vectors.
    bias: Vec<f32>,
}

impl Shared<'_> {
    fn padded(&self) -> bool {
        self.d.pad_h + self.d.pad_w > 0
    }

    /// Columns of a band of copied input.
    fn band_width(&self) -> usize {
        (self.d.w + 2 * self.d.pad_w) as usize
    }

    /// Rows of input under so many rows of output.
    fn band_rows(&self, rows: usize) -> usize {
        (rows - 1) * self.d.stride as usize + self.d.kernel_h as usize
    }

    /// Elements of the copy; none where the input is read in place.
    fn band_len(&self, rows: usize) -> usize {
        if self.padded() { self.band_rows(rows) * self.band_width() * self.d.c as usize } else { 0 }
    }
}

/// What one unit writes: rows of an image, all channels of y.
struct Job<'a> {
    image: usize,
    first_row: usize,
    rows: usize,
    y: &'a mut [f32],
}

struct Unit<'a, 'b> {
    shared: &'a Shared<'b>,
    job: Job<'a>,
    band: &'a mut [f32],
    /// Of the first input element of each output pixel, rounded up to whole register blocks.
    offsets: &'a mut [u32],
}

/// What a register block reads and writes.
struct Tile<'a> {
    offsets: &'a [u32],
    /// Pixels of the unit.
    pixels: usize,
    /// Rows of the window, the distance between them in the input, and numbers of each.
    rows: usize,
    row_stride: usize,
    run: usize,
    /// Channels of y, the channel that this tile begins with, and how many it writes.
    y_channels: usize,
    y_first: usize,
    valid: usize,
    /// 0, or minus infinity.
    least: f32,
}

impl Kernel for Unit<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Unit { shared, job, band, offsets } = self;
        let d = &shared.d;
        let (h, w, c, stride) = (d.h as usize, d.w as usize, d.c as usize, d.stride as usize);
        let (out_w, top) = (d.out_w(), job.first_row * stride);
        let (input, width): (&[f32], usize) = if shared.padded() {
            let (width, pad_w) = (shared.band_width(), d.pad_w as usize);
            for (i, row) in band.chunks_exact_mut(width * c).enumerate() {
                let above = top + i;
                if above < d.pad_h as usize || above - d.pad_h as usize >= h {
                    row.fill(0.0);
                    continue;
                }
                let from = (job.image * h + above - d.pad_h as usize) * w * c;
                row[..pad_w * c].fill(0.0);
                row[pad_w * c..(pad_w + w) * c].copy_from_slice(&shared.x[from..from + w * c]);
                row[(pad_w + w) * c..].fill(0.0);
            }
            (band, width)
        } else {
            (&shared.x[(job.image * h + top) * w * c..(job.image + 1) * h * w * c], w)
        };
        let pixels = job.rows * out_w;
        let (mut row, mut col, mut last) = (0, 0, 0);
        for (p, offset) in offsets.iter_mut().enumerate() {
            if p < pixels {
                last = (row * width + col) * stride * c;
                col += 1;
                if col == out_w {
                    (row, col) = (row + 1, 0);
                }
            }
            *offset = last as u32; // below 2^31, as all of x and a band are
        }
        let (k, kp) = (d.k as usize, shared.bias.len());
        let mut k0 = 0;
        while k0 < kp {
            let vectors = tile_vectors(kp, k0, S::LANES);
            let valid = if k - k0 < vectors * S::LANES { k - k0 } else { vectors * S::LANES };
            let tile = Tile {
                offsets,
                pixels,
                rows: d.kernel_h as usize,
                row_stride: width * c,
                run: d.kernel_w as usize * c,
                y_channels: d.y_channels as usize,
                y_first: d.y_first as usize + k0,
                valid,
                least: if d.relu == 1 { 0.0 } else { f32::NEG_INFINITY },
            };
            let filter = &shared.filter[k0 * d.depth()..];
            let mut p = 0;
            while p < pixels {
                // SAFETY: the caller vouches for the instruction set; offsets were built for whole blocks; windows lie within the band or,
                // without padding, within the image; the filter has `depth` rows of each tile and the bias whole vectors.
                unsafe { block::<S>(vectors, &tile, p, input, filter, &shared.bias[k0..], job.y) };
                p += S::PIXELS;
            }
            k0 += vectors * S::LANES;
        }
    }
}

/// Picks the register block of the instruction set.
#[inline(always)]
unsafe fn block<S: Simd>(
    vectors: usize,
    tile: &Tile<'_>,
    p: usize,
    x: &[f32],
    filter: &[f32],
    bias: &[f32],
    y: &mut [f32],
) {
    // SAFETY: passed on.
    unsafe {
        // Conditions on constants, so that what is not taken is not even compiled.
        if S::PIXELS == 8 {
            if vectors == 2 {
                product::<S, 8, 2>(tile, p, x, filter, bias, y);
            } else {
                product::<S, 8, 1>(tile, p, x, filter, bias, y);
            }
        } else if S::PIXELS == 6 {
            if vectors == 2 {
                product::<S, 6, 2>(tile, p, x, filter, bias, y);
            } else {
                product::<S, 6, 1>(tile, p, x, filter, bias, y);
            }
        } else if vectors == 2 {
            product::<S, 2, 2>(tile, p, x, filter, bias, y);
        } else {
            product::<S, 2, 1>(tile, p, x, filter, bias, y);
        }
    }
}

/// PX pixels by CV vectors of output channels, over the whole window.
///
/// # Safety
/// The instruction set of `S`; `p + PX` offsets; every offset has a window in `x`; `filter` has as many rows of CV vectors as the window has
/// numbers; `bias` has CV vectors.
#[inline(always)]
unsafe fn product<S: Simd, const PX: usize, const CV: usize>(
    tile: &Tile<'_>,
    p: usize,
    x: &[f32],
    filter: &[f32],
    bias: &[f32],
    y: &mut [f32],
) {
    debug_assert!(p + PX <= tile.offsets.len() && filter.len() >= tile.rows * tile.run * CV * S::LANES);
    // SAFETY: as the function's contract says; stores go through checked slices.
    unsafe {
        let mut acc = [[S::splat(0.0); CV]; PX];
        let mut at = [x.as_ptr(); PX];
        for (i, at) in at.iter_mut().enumerate() {
            let offset = *tile.offsets.get_unchecked(p + i) as usize;
            debug_assert!(offset + (tile.rows - 1) * tile.row_stride + tile.run <= x.len());
            *at = at.add(offset);
        }
        let mut w = filter.as_ptr();
        for _ in 0..tile.rows {
            for c in 0..tile.run {
                let mut wv = [S::splat(0.0); CV];
                for (v, wv) in wv.iter_mut().enumerate() {
                    *wv = S::load(w.add(v * S::LANES));
                }
                for i in 0..PX {
                    let b = S::broadcast(at[i], c);
                    for v in 0..CV {
                        acc[i][v] = S::fma(b, wv[v], acc[i][v]);
                    }
                }
                w = w.add(CV * S::LANES);
            }
            for at in &mut at {
                *at = at.wrapping_add(tile.row_stride); // behind the last row it may leave the tensor, and is not read
            }
        }
        // All of the block, at places that are known when this is compiled: were sums picked by the number of pixels that are wanted, they
        // would live in memory, and the loop above would write them in every turn (measured: half the speed).
        let least = S::splat(tile.least);
        let mut sums = [0.0f32; BLOCK];
        for (i, row) in acc.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                let biased = S::add(sum, S::load(bias.as_ptr().add(v * S::LANES)));
                // The bound comes first: of a sum that is not a number, the maximum is then the sum.
                S::store(sums.as_mut_ptr().add((i * CV + v) * S::LANES), S::max(least, biased));
            }
        }
        let wide = CV * S::LANES;
        let pixels = if tile.pixels - p < PX { tile.pixels - p } else { PX };
        for (i, sums) in sums.chunks_exact(wide).enumerate().take(pixels) {
            let from = (p + i) * tile.y_channels + tile.y_first;
            let out = &mut y[from..from + tile.valid];
            if tile.valid == wide {
                for v in 0..CV {
                    S::store(out.as_mut_ptr().add(v * S::LANES), S::load(sums.as_ptr().add(v * S::LANES)));
                }
            } else {
                out.copy_from_slice(&sums[..tile.valid]);
            }
        }
    }
}
