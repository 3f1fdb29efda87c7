//! How a convolution is cut into units of work, and how a unit's input comes into a padded band.
//!
//! A unit is a band of rows of one image, or several whole small images: always a contiguous run of pixels. Where units leave sums (the
//! gradients of weights, the statistics of bands) the cut depends on the shape alone, so that those do not depend on the number of
//! threads. Whole images leave nothing that depends on their neighbours: many threads get smaller groups of them.

use super::super::{ConvDims, Operand, Prologue};
use crate::device::cpu::Cpu;
use crate::device::cpu::simd::{Simd, load_part, store_part};

/// Pixels that a unit aims at: its band and its output then stay in the second-level cache.
const TARGET_PIXELS: usize = 512;
/// Units that a batch of small images is cut into at least, for the sake of the threads.
pub(in crate::ops) const MIN_UNITS: usize = 16;

/// A contiguous run of pixels: `rows` rows from `row` on of each of `images` images from `image` on (several images only where
/// `rows` is the whole height).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Unit {
    pub image: usize,
    pub images: usize,
    pub row: usize,
    pub rows: usize,
}

impl Unit {
    /// First pixel, counted over the whole batch.
    #[inline(always)]
    pub fn first_pixel(&self, d: &ConvDims) -> usize {
        (self.image * d.h as usize + self.row) * d.w as usize
    }
    /// Pixels of the unit.
    #[inline(always)]
    pub fn pixels(&self, d: &ConvDims) -> usize {
        self.images * self.rows * d.w as usize
    }
}

/// Cuts the batch into units of a convolution. `least`: units that a batch of small images is cut into, where it has as many.
pub(super) fn units(d: &ConvDims, least: usize) -> Vec<Unit> {
    cut([d.n, d.h, d.w].map(|x| x as usize), TARGET_PIXELS, least)
}

/// Cuts `n` images of `h` by `w` pixels into units of about `target` pixels, in pixel order. A band has an even number of rows unless it is an
/// image's last: tiles of 2x2 pixels never straddle two bands.
pub(in crate::ops) fn cut([n, h, w]: [usize; 3], target: usize, least: usize) -> Vec<Unit> {
    if 2 * h * w <= target {
        let group = (target / (h * w)).min(n.div_ceil(least)).max(1);
        return (0..n)
            .step_by(group)
            .map(|image| Unit { image, images: group.min(n - image), row: 0, rows: h })
            .collect();
    }
    let bands = h.div_ceil((target / w).max(1));
    let rows = h.div_ceil(bands).next_multiple_of(2);
    (0..n)
        .flat_map(|image| (0..h).step_by(rows).map(move |row| Unit { image, images: 1, row, rows: rows.min(h - row) }))
        .collect()
}

/// Geometry of a band: one padded picture part per image, `pitch` floats per pixel.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Band {
    /// Floats per pixel: the channels, padded where a kernel wants it.
    pub pitch: usize,
    /// 1 for a 3x3 filter, 0 for 1x1.
    pub halo: usize,
    /// Pixels per band row.
    pub width: usize,
    /// Rows of a picture part are rounded up to these, with zeros.
    rows: usize,
}

impl Band {
    pub fn new(d: &ConvDims, channels: usize, multiple: usize) -> Self {
        let halo = usize::from(d.side == 3);
        Band { pitch: channels.next_multiple_of(multiple), halo, width: d.w as usize + 2 * halo, rows: 1 }
    }
    /// For tiles of 2x2 pixels: rows and columns are even, where the picture's are not, there are zeros.
    pub fn even(d: &ConvDims, channels: usize, multiple: usize) -> Self {
        let band = Band::new(d, channels, multiple);
        Band { width: band.width.next_multiple_of(2), rows: 2, ..band }
    }
    /// Band rows of one image.
    #[inline(always)]
    fn lines(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.rows) + 2 * self.halo
    }
    /// Floats of the band rows of one image.
    #[inline(always)]
    pub fn image_len(&self, rows: usize) -> usize {
        self.lines(rows) * self.width * self.pitch
    }
    /// Floats of a unit's band.
    #[inline(always)]
    pub fn len(&self, unit: &Unit) -> usize {
        unit.images * self.image_len(unit.rows)
    }
    /// Offset of the first tap of pixel `q` in row `row` of image `image` of the unit.
    #[inline(always)]
    pub fn offset(&self, unit: &Unit, image: usize, row: usize, q: usize) -> usize {
        image * self.image_len(unit.rows) + (row * self.width + q) * self.pitch
    }
    /// Distance of tap `t` from the first one.
    #[inline(always)]
    pub fn tap(&self, side: usize, t: usize) -> usize {
        ((t / side) * self.width + t % side) * self.pitch
    }
}

/// Fills the band of `unit`: prologue applied, zeros outside the picture and in padding channels.
///
/// # Safety
/// The instruction set of `S` must be available. Lengths were checked on entry to the operation.
#[inline(always)]
pub(in crate::ops) unsafe fn load<S: Simd>(
    d: &ConvDims,
    unit: &Unit,
    band: &Band,
    input: &Operand<'_, Cpu>,
    prologue: &Prologue<'_, Cpu>,
    out: &mut [f32],
) {
    let (h, w) = (d.h as usize, d.w as usize);
    let (c0, c1) = (d.c0 as usize, d.c1 as usize);
    let row_len = band.width * band.pitch;
    let flat = c1 == 0 && band.pitch == c0 && prologue.affine.is_none();
    for i in 0..unit.images {
        let image = unit.image + i;
        // The affine's numbers of this image, where each has its own.
        let affine = match prologue.affine {
            Some((a, b)) if a.len() > c0 + c1 => {
                let at = image * (c0 + c1);
                Some((&a[at..at + c0 + c1], &b[at..at + c0 + c1]))
            }
            affine => affine,
        };
        for r in 0..band.lines(unit.rows) {
            let start = i * band.image_len(unit.rows) + r * row_len;
            let dst = &mut out[start..start + row_len];
            let y = (unit.row + r).wrapping_sub(band.halo);
            if y >= h {
                dst.fill(0.0);
                continue;
            }
            let edge = band.halo * band.pitch;
            dst[..edge].fill(0.0);
            let end = edge + w * band.pitch;
            dst[end..].fill(0.0);
            let inner = &mut dst[edge..end];
            let pixel = (image * h + y) * w;
            // SAFETY: the caller vouches for the instruction set; the slices have the lengths that are passed.
            unsafe {
                if flat {
                    transform::<S>(&input.x0[pixel * c0..(pixel + w) * c0], inner, None, prologue.silu);
                    continue;
                }
                for q in 0..w {
                    let dst = &mut inner[q * band.pitch..(q + 1) * band.pitch];
                    let p = pixel + q;
                    let (affine0, affine1) = match affine {
                        Some((a, b)) => (Some((&a[..c0], &b[..c0])), Some((&a[c0..], &b[c0..]))),
                        None => (None, None),
                    };
                    let x0 = &input.x0[p * c0..(p + 1) * c0];
                    transform::<S>(x0, &mut dst[..c0], affine0, prologue.silu);
                    if let Some(x1) = input.x1 {
                        let p = if input.x1_constant { image } else { p };
                        let x1 = &x1[p * c1..(p + 1) * c1];
                        transform::<S>(x1, &mut dst[c0..c0 + c1], affine1, prologue.silu);
                    }
                    dst[c0 + c1..].fill(0.0);
                }
            }
        }
    }
}

/// dst = silu?(scale * src + shift), element by element.
#[inline(always)]
unsafe fn transform<S: Simd>(src: &[f32], dst: &mut [f32], affine: Option<(&[f32], &[f32])>, silu: bool) {
    if affine.is_none() && !silu {
        dst.copy_from_slice(src);
        return;
    }
    let n = dst.len();
    let mut i = 0;
    // SAFETY: the caller vouches for the instruction set; `i + LANES <= n` for whole vectors, parts go through arrays.
    unsafe {
        while i + S::LANES <= n {
            let mut x = S::load(src.as_ptr().add(i));
            if let Some((a, b)) = affine {
                x = S::fma(x, S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)));
            }
            if silu {
                x = S::silu(x);
            }
            S::store(dst.as_mut_ptr().add(i), x);
            i += S::LANES;
        }
        if i < n {
            let mut x = load_part::<S>(&src[i..n]);
            if let Some((a, b)) = affine {
                x = S::fma(x, load_part::<S>(&a[i..n]), load_part::<S>(&b[i..n]));
            }
            if silu {
                x = S::silu(x);
            }
            store_part::<S>(x, &mut dst[i..n]);
        }
    }
}
