//! A second input that is the same at every pixel of an image, as the noise embedding is, needs no product for each pixel.
//!
//! In the main product its part is the same at all pixels that see the same taps: at nine kinds of pixels, those of a 3x3 picture. So
//! it is computed for a 3x3 picture of each image and added like a bias. In the residual it is a bias of the image. The gradients of
//! its weights need only sums of `dy` over the pixels whose tap lies inside the picture, for each image:
//! `dW[t,c,k] += sum_n z[n,c] sum_(p: p+t inside) dy[n,p,k]`.
//!
//! For the seed at 64x64 this is half of the first block's first convolution.

use super::super::{ConvDims, Operand, Prologue, WeightGradients};
use super::bands::{self, Band, Unit};
use super::forward::{self, Packed, PerImage};
use super::{pack, wgrad};
use crate::device::cpu::Cpu;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch};
use crate::error::Result;
use crate::ops::conv::{Epilogue, Output};

/// A convolution without its constant inputs, and these.
pub(super) struct Split<'a> {
    pub dims: ConvDims,
    pub input: Operand<'a, Cpu>,
    pub prologue: Prologue<'a, Cpu>,
    pub residual: Option<Operand<'a, Cpu>>,
    /// [N, C1] of the main product, with its prologue.
    main: Option<(&'a [f32], Prologue<'a, Cpu>)>,
    /// [N, R1] of the residual.
    res: Option<&'a [f32]>,
}

/// Takes constant inputs out, where there are any and the picture has all nine kinds of pixels; that of the main product only where
/// `main`, its part of the filter, stands by itself.
pub(super) fn split<'a>(
    d: &ConvDims,
    input: Operand<'a, Cpu>,
    prologue: Prologue<'a, Cpu>,
    residual: Option<Operand<'a, Cpu>>,
    main: bool,
) -> Option<Split<'a>> {
    let mut split = Split { dims: *d, input, prologue, residual, main: None, res: None };
    let (c0, c) = (d.c0 as usize, d.c());
    let per_channel = prologue.affine.is_none_or(|(a, _)| a.len() == c);
    if let (Some(x1), true) =
        (input.x1, main && input.x1_constant && d.side == 3 && d.h >= 3 && d.w >= 3 && per_channel)
    {
        let part = |range: std::ops::Range<usize>| Prologue {
            affine: prologue.affine.map(|(a, b)| (&a[range.clone()], &b[range])),
            silu: prologue.silu,
        };
        split.main = Some((x1, part(c0..c)));
        split.prologue = part(0..c0);
        split.input = Operand::one(input.x0);
        split.dims.c1 = 0;
    }
    if let Some(Operand { x0, x1: Some(x1), x1_constant: true }) = residual {
        split.res = Some(x1);
        split.residual = Some(Operand::one(x0));
        split.dims.r1 = 0;
    }
    (split.main.is_some() || split.res.is_some()).then_some(split)
}

/// What the constant inputs add to the product of `d`, the convolution before it was split.
pub(super) fn per_image(cpu: &Cpu, d: &ConvDims, split: &Split<'_>, packed: Packed<'_>) -> Result<PerImage> {
    let (n, k, lanes) = (d.n as usize, d.k as usize, cpu.isa().lanes());
    let kp = pack::padded(k, lanes);
    let mut bias = vec![0.0; n * kp];
    let mut border = Vec::new();
    if let Some((x1, prologue)) = split.main {
        let (c0, c1) = (d.c0 as usize, d.c1);
        // Built anew, for its lifetime.
        let prologue = Prologue { affine: prologue.affine, silu: prologue.silu };
        let small = ConvDims { h: 3, w: 3, c0: c1, c1: 0, r0: 0, r1: 0, ..*d };
        let x: Vec<f32> = x1.chunks_exact(c1 as usize).flat_map(|x| x.repeat(9)).collect();
        let mut y = vec![0.0; small.pixels() * k];
        let out = Output { y0: &mut y[..], y1: None, k0: k, stats: None };
        let part = packed.starting_at(c0);
        forward::forward(cpu, &small, Operand::one(&x[..]), prologue, None, part, Epilogue::default(), None, out)?;
        border.resize(n * 9 * kp, 0.0);
        for ((y, bias), border) in
            y.chunks_exact(9 * k).zip(bias.chunks_exact_mut(kp)).zip(border.chunks_exact_mut(9 * kp))
        {
            let centre = &y[4 * k..5 * k];
            bias[..k].copy_from_slice(centre);
            for (y, border) in y.chunks_exact(k).zip(border.chunks_exact_mut(kp)) {
                border.iter_mut().zip(y).zip(centre).for_each(|((b, y), centre)| *b = y - centre);
            }
        }
    }
    if let Some(x1) = split.res {
        let (r0, r1) = (d.r0 as usize, d.r1 as usize);
        for (x, bias) in x1.chunks_exact(r1).zip(bias.chunks_exact_mut(kp)) {
            for (k0, vectors) in pack::tiles(k, lanes) {
                let width = vectors * lanes;
                for (r, &x) in x.iter().enumerate() {
                    let row = packed.residual_row(k0, width, r0 + r);
                    bias[k0..k.min(k0 + width)].iter_mut().zip(row).for_each(|(b, w)| *b += x * w);
                }
            }
        }
    }
    Ok(PerImage { bias, border })
}

/// Adds `border` [images, 9 kinds of pixels, K padded] to the products of those pixels of the unit that lie at the border.
///
/// # Safety
/// The instruction set of `S`; `products` of the unit, [pixels, K padded].
#[inline(always)]
pub(super) unsafe fn add_border<S: Simd>(d: &ConvDims, unit: &Unit, border: &[f32], products: &mut [f32], kp: usize) {
    let (h, w) = (d.h as usize, d.w as usize);
    let kind = |i: usize, len: usize| usize::from(i > 0) + usize::from(i + 1 == len);
    for line in 0..unit.images * unit.rows {
        let (image, y) = (unit.image + line / unit.rows, unit.row + line % unit.rows);
        let inner = y > 0 && y + 1 < h;
        // Of an inner row the first and the last pixel alone.
        let mut x = 0;
        while x < w {
            let terms = &border[(image * 9 + 3 * kind(y, h) + kind(x, w)) * kp..][..kp];
            let products = &mut products[(line * w + x) * kp..][..kp];
            let mut k = 0;
            while k < kp {
                // SAFETY: the caller vouches for the instruction set; both are kp long, whole vectors.
                unsafe {
                    let sum = S::add(S::load(products.as_ptr().add(k)), S::load(terms.as_ptr().add(k)));
                    S::store(products.as_mut_ptr().add(k), sum);
                }
                k += S::LANES;
            }
            x = if inner && x == 0 { w - 1 } else { x + 1 };
        }
    }
}

/// [`wgrad::wgrad`] of `d`, of which `split` are the parts; lengths are checked.
pub(super) fn wgrad<'a>(
    cpu: &Cpu,
    d: &ConvDims,
    split: &Split<'a>,
    dy: &'a [f32],
    out: WeightGradients<'_, Cpu>,
) -> Result<()> {
    let (k, c0, c) = (d.k as usize, d.c0 as usize, d.c());
    // Without a constant input of the main product the centre tap is all that is asked for, unless by the caller.
    let taps = if split.main.is_some() || out.border_sums.is_some() { d.taps() } else { 1 };
    let lanes = cpu.isa().lanes();
    let kp = pack::padded(k, lanes);
    let sums = image_sums(cpu, d, dy, taps, kp);
    let image = |n: usize, tap: usize| &sums[(n * taps + tap) * kp..][..k];
    let total = |tap: usize| {
        let mut total = image(0, tap).to_vec();
        for n in 1..d.n as usize {
            total.iter_mut().zip(image(n, tap)).for_each(|(total, sum)| *total += sum);
        }
        total
    };
    if let Some(border_sums) = out.border_sums {
        border_sums.chunks_exact_mut(k).enumerate().for_each(|(tap, row)| row.copy_from_slice(&total(tap)));
    }
    let centre = total(taps / 2);
    for db in [out.db, out.db_res].into_iter().flatten() {
        db.iter_mut().zip(&centre).for_each(|(db, sum)| *db += sum);
    }

    let mut dw_res = out.dw_res;
    if let (Some(x1), Some(dw)) = (split.res, dw_res.as_deref_mut()) {
        let (r0, r1) = (d.r0 as usize, d.r1 as usize);
        cpu.for_each_vectorized(dw[r0 * k..].chunks_exact_mut(k).enumerate().collect(), |(r, row)| {
            for (n, x) in x1.chunks_exact(r1).enumerate() {
                row.iter_mut().zip(image(n, taps / 2)).for_each(|(dw, sum)| *dw += x[r] * sum);
            }
        });
    }
    // Rows of the residual's first input come first.
    let dw_res = dw_res.map(|dw| &mut dw[..(split.dims.r()) * k]);
    let rest = |dw| WeightGradients { dw, dw_res, db: None, db_res: None, border_sums: None };
    let Some((x1, prologue)) = split.main else {
        return wgrad::wgrad(cpu, &split.dims, split.input, split.prologue, split.residual, dy, rest(out.dw));
    };

    let mut dw0 = vec![0.0; d.taps() * c0 * k];
    wgrad::wgrad(cpu, &split.dims, split.input, split.prologue, split.residual, dy, rest(&mut dw0))?;
    let z = prologued(cpu, d, x1, prologue);
    cpu.for_each_vectorized(out.dw.chunks_exact_mut(c * k).enumerate().collect(), |(tap, dw)| {
        let (first, second) = dw.split_at_mut(c0 * k);
        first.iter_mut().zip(&dw0[tap * c0 * k..]).for_each(|(dw, part)| *dw += part);
        for (i, row) in second.chunks_exact_mut(k).enumerate() {
            for (n, z) in z.chunks_exact(c - c0).enumerate() {
                row.iter_mut().zip(image(n, tap)).for_each(|(dw, sum)| *dw += z[i] * sum);
            }
        }
    });
    Ok(())
}

/// [N, taps, K padded]: for each image and tap (all of the filter, or the centre alone) the sum of `dy` over the pixels whose tap lies inside the
/// picture.
fn image_sums(cpu: &Cpu, d: &ConvDims, dy: &[f32], taps: usize, kp: usize) -> Vec<f32> {
    struct Sums<'a>(&'a ConvDims, &'a Unit, &'a [f32], [usize; 2], &'a mut [f32]);
    impl Kernel for Sums<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Sums(d, unit, dy, [taps, kp], sums) = self;
            // SAFETY: the caller vouches for the instruction set; dy is padded to kp, sums hold taps * kp.
            unsafe { wgrad::border_sums::<S>(d, unit, dy, taps, kp, sums) }
        }
    }
    let (k, pixels) = (d.k as usize, (d.h * d.w) as usize);
    let mut sums = vec![0.0; d.n as usize * taps * kp];
    let jobs = dy.chunks_exact(pixels * k).zip(sums.chunks_exact_mut(taps * kp)).collect();
    let isa = cpu.isa();
    cpu.for_each(jobs, |(dy, sums): (&[f32], &mut [f32])| {
        let unit = Unit { image: 0, images: 1, row: 0, rows: d.h as usize };
        if k == kp {
            return dispatch(isa, Sums(d, &unit, dy, [taps, kp], sums));
        }
        with_scratch([pixels * kp], |[padded]| {
            for (padded, dy) in padded.chunks_exact_mut(kp).zip(dy.chunks_exact(k)) {
                padded[..k].copy_from_slice(dy);
                padded[k..].fill(0.0);
            }
            dispatch(isa, Sums(d, &unit, padded, [taps, kp], sums));
        });
    });
    sums
}

/// [N, C1]: the constant input of the main product after its prologue, by the same arithmetic as in a band.
fn prologued(cpu: &Cpu, d: &ConvDims, x1: &[f32], prologue: Prologue<'_, Cpu>) -> Vec<f32> {
    struct Load<'a, 'p>(ConvDims, &'a [f32], Prologue<'p, Cpu>, &'a mut [f32]);
    impl Kernel for Load<'_, '_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Load(d, x1, prologue, z) = self;
            let unit = Unit { image: 0, images: d.n as usize, row: 0, rows: 1 };
            // SAFETY: the caller vouches for the instruction set; z is the band of pictures of one pixel.
            unsafe { bands::load::<S>(&d, &unit, &Band::new(&d, d.c(), 1), &Operand::one(x1), &prologue, z) }
        }
    }
    let pixel = ConvDims { h: 1, w: 1, c0: d.c1, c1: 0, r0: 0, r1: 0, side: 1, ..*d };
    let mut z = vec![0.0; x1.len()];
    dispatch(cpu.isa(), Load(pixel, x1, prologue, &mut z));
    z
}
