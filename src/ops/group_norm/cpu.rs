//! Group norm on the CPU. An image is a unit of work: its two backward passes follow each other while it is in cache.

use super::lengths::{check_dims, check_gradients, check_input, check_params, check_statistics};
use super::{Dropout, GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{Kernel, Simd, dispatch, load_part, store_part};
use crate::device::cpu::{Cpu, Isa};
use crate::error::Result;
use crate::ops::expect_len;
use crate::rng::Stream;

fn len(view: &&[f32]) -> usize {
    view.len()
}

fn len_mut(view: &&mut [f32]) -> usize {
    view.len()
}

impl GroupNorm for Cpu {
    fn group_norm_coefficients(
        &self,
        d: &GroupNormDims,
        stats0: &[f32],
        stats1: Option<&[f32]>,
        params: NormParams<'_, Self>,
        coefficients: &mut [f32],
    ) -> Result<()> {
        check_dims(d)?;
        check_params(d, &params, len)?;
        check_statistics::<Self>(d, &stats0, stats1.as_ref(), len)?;
        expect_len("group_norm", "coefficients", coefficients.len(), d.coefficients_len())?;
        let (c, c0, width) = (d.c(), d.c0 as usize, d.group_channels());
        let (scale, rest) = coefficients.split_at_mut(d.affine_len());
        let (shift, moments) = rest.split_at_mut(d.affine_len());
        let stat = |n: usize, i: usize| match stats1 {
            Some(stats1) if i >= c0 => &stats1[2 * (n * (c - c0) + i - c0)..],
            _ => &stats0[2 * (n * c0 + i)..],
        };
        let m = f64::from(d.pixels) * width as f64;
        for n in 0..d.n as usize {
            for g in 0..d.groups as usize {
                // Channels have equally many values each: the mean of their means, then Chan's sum of squared deviations.
                let channels = || g * width..(g + 1) * width;
                let mean = channels().map(|i| f64::from(stat(n, i)[0])).sum::<f64>() / width as f64;
                let m2: f64 = channels()
                    .map(|i| f64::from(stat(n, i)[1]) + f64::from(d.pixels) * (f64::from(stat(n, i)[0]) - mean).powi(2))
                    .sum();
                let r = 1.0 / (m2 / m + d.eps).sqrt();
                let at = 2 * (n * d.groups as usize + g);
                (moments[at], moments[at + 1]) = (mean as f32, r as f32);
                for i in channels() {
                    let (s, t) = match params.modulation {
                        Some(m) => (1.0 + f64::from(m[n * 2 * c + i]), f64::from(m[n * 2 * c + c + i])),
                        None => (1.0, 0.0),
                    };
                    let (gamma, beta) = (f64::from(params.gamma[i]), f64::from(params.beta[i]));
                    scale[n * c + i] = (gamma * r * s) as f32;
                    shift[n * c + i] = ((beta - mean * gamma * r) * s + t) as f32;
                }
            }
        }
        Ok(())
    }

    fn group_norm_apply(
        &self,
        d: &GroupNormDims,
        input: NormInput<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        y: &mut [f32],
    ) -> Result<()> {
        check_input(d, &input, dropout.as_ref(), len)?;
        expect_len("group_norm", "y", y.len(), d.len0() + d.len1())?;
        let per_image = d.pixels as usize * d.c();
        let x = [input.x0, input.x1.unwrap_or_default()];
        let isa = self.isa();
        let jobs: Vec<_> = y.chunks_exact_mut(per_image).enumerate().collect();
        self.for_each(jobs, |(n, y)| {
            with_scratch([if dropout.is_some() { per_image } else { 0 }], |[mask]| {
                fill_mask(dropout.as_ref(), n, mask);
                dispatch(isa, Apply { image: Image::new(d, x, input.coefficients, n, mask), y });
            });
        });
        Ok(())
    }

    fn group_norm_backward(
        &self,
        d: &GroupNormDims,
        input: NormInput<'_, Self>,
        params: NormParams<'_, Self>,
        dropout: Option<Dropout<'_, Self>>,
        g: &[f32],
        other: OtherGradients<'_, Self>,
        out: NormGradients<'_, Self>,
    ) -> Result<()> {
        check_input(d, &input, dropout.as_ref(), len)?;
        check_params(d, &params, len)?;
        check_gradients(d, params.modulation.is_some(), &other, &out, len, len_mut)?;
        expect_len("group_norm", "g", g.len(), d.len0() + d.len1())?;
        let (n, c, pixels) = (d.n as usize, d.c(), d.pixels as usize);
        let (c0, c1) = (d.c0 as usize, d.c1 as usize);
        let x = [input.x0, input.x1.unwrap_or_default()];
        let isa = self.isa();
        // Per image A, B and the sums of dx, [3, C]; then reduced over images in order.
        let mut all_sums = vec![0.0f32; n * 3 * c];
        {
            let mut dx1 = out.dx1.unwrap_or_default();
            let mut jobs = Vec::with_capacity(n);
            let images = out.dx0.chunks_exact_mut(pixels * c0).zip(all_sums.chunks_exact_mut(3 * c));
            for (i, (dx0, sums)) in images.enumerate() {
                let (head, rest) = std::mem::take(&mut dx1).split_at_mut(pixels * c1);
                dx1 = rest;
                jobs.push((i, dx0, head, sums));
            }
            self.for_each(jobs, |(n, dx0, dx1, sums)| {
                let per_image = if dropout.is_some() { pixels * c } else { 0 };
                with_scratch([per_image, 8 * c], |[mask, table]| {
                    fill_mask(dropout.as_ref(), n, mask);
                    let image = Image::new(d, x, input.coefficients, n, mask);
                    let g = &g[n * pixels * c..(n + 1) * pixels * c];
                    let adds = [other.to0[0], other.to0[1], other.to1];
                    backward_image(isa, d, &image, &params, g, adds, [dx0, dx1], sums, table);
                });
            });
        }
        // Gradients of the parameters, from the sums of all images.
        let (dgamma, dbeta) = (out.dgamma, out.dbeta);
        let (mut dmodulation, mut sums_out) = (out.dmodulation, out.sums);
        for (image, sums) in all_sums.chunks_exact(3 * c).enumerate() {
            let (a, rest) = sums.split_at(c);
            let (b, dx) = rest.split_at(c);
            for i in 0..c {
                let s = params.modulation.map_or(1.0, |m| 1.0 + m[image * 2 * c + i]);
                dgamma[i] += s * b[i];
                dbeta[i] += s * a[i];
                if let Some(dm) = &mut dmodulation {
                    dm[image * 2 * c + i] = params.gamma[i] * b[i] + params.beta[i] * a[i];
                    dm[image * 2 * c + c + i] = a[i];
                }
            }
            if let Some(out) = &mut sums_out {
                out[image * c..(image + 1) * c].copy_from_slice(dx);
            }
        }
        Ok(())
    }
}

/// What dropout multiplies an image's elements with.
fn fill_mask(dropout: Option<&Dropout<'_, Cpu>>, image: usize, mask: &mut [f32]) {
    let Some(d) = dropout else { return };
    let step = u64::from(d.step[0].to_bits());
    let image = d.key.first_image + image as u64;
    Stream::of_layer(d.key.seed, d.key.purpose, d.layer, step, image).fill_uniform(mask);
    let keep = 1.0 / (1.0 - d.p);
    mask.iter_mut().for_each(|u| *u = if *u >= d.p { keep } else { 0.0 });
}

/// One image, with its coefficients.
#[derive(Clone, Copy)]
struct Image<'a> {
    d: &'a GroupNormDims,
    n: usize,
    /// [P, C0] and [P, C1].
    x: [&'a [f32]; 2],
    /// `[C]` each.
    scale: &'a [f32],
    shift: &'a [f32],
    /// [G, 2].
    moments: &'a [f32],
    /// [P, C], or empty.
    mask: &'a [f32],
}

impl<'a> Image<'a> {
    fn new(d: &'a GroupNormDims, x: [&'a [f32]; 2], coefficients: &'a [f32], n: usize, mask: &'a [f32]) -> Self {
        let (c, pixels, groups) = (d.c(), d.pixels as usize, d.groups as usize);
        let (scale, rest) = coefficients.split_at(d.affine_len());
        let (shift, moments) = rest.split_at(d.affine_len());
        let part = |x: &'a [f32], c: usize| &x[n * pixels * c..(n + 1) * pixels * c];
        Image {
            d,
            n,
            x: [part(x[0], d.c0 as usize), part(x[1], d.c1 as usize)],
            scale: &scale[n * c..(n + 1) * c],
            shift: &shift[n * c..(n + 1) * c],
            moments: &moments[n * groups * 2..(n + 1) * groups * 2],
            mask,
        }
    }

    /// Whether the gradient changes on its way to the norm: d is not g.
    fn changes(&self) -> bool {
        self.d.silu != 0 || !self.mask.is_empty()
    }

    /// The two inputs: (index, first channel of the concatenation, channels).
    fn sides(&self) -> [(usize, usize, usize); 2] {
        let (c0, c1) = (self.d.c0 as usize, self.d.c1 as usize);
        [(0, 0, c0), (1, c0, c1)]
    }
}

/// `LANES` elements at `at`, or the last few of a row of `c`.
#[inline(always)]
unsafe fn get<S: Simd>(src: &[f32], at: usize, live: usize) -> S::V {
    // SAFETY: the caller vouches for the instruction set; a whole vector lies within `src`.
    unsafe {
        if live == S::LANES {
            debug_assert!(at + S::LANES <= src.len());
            S::load(src.as_ptr().add(at))
        } else {
            load_part::<S>(&src[at..at + live])
        }
    }
}

#[inline(always)]
unsafe fn put<S: Simd>(dst: &mut [f32], at: usize, live: usize, v: S::V) {
    // SAFETY: the caller vouches for the instruction set; a whole vector lies within `dst`.
    unsafe {
        if live == S::LANES {
            debug_assert!(at + S::LANES <= dst.len());
            S::store(dst.as_mut_ptr().add(at), v);
        } else {
            store_part::<S>(v, &mut dst[at..at + live]);
        }
    }
}

/// y of one image, [P, C].
struct Apply<'a> {
    image: Image<'a>,
    y: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Apply { image, y } = self;
        let (c, pixels, silu) = (image.d.c(), image.d.pixels as usize, image.d.silu != 0);
        for (side, first, width) in image.sides() {
            let x = image.x[side];
            let mut i = 0;
            while i < width {
                let live = if width - i < S::LANES { width - i } else { S::LANES };
                // SAFETY: the caller vouches for the instruction set; lengths were checked on entry.
                unsafe {
                    let scale = get::<S>(image.scale, first + i, live);
                    let shift = get::<S>(image.shift, first + i, live);
                    for p in 0..pixels {
                        let mut u = S::fma(scale, get::<S>(x, p * width + i, live), shift);
                        if silu {
                            u = S::silu(u);
                        }
                        if !image.mask.is_empty() {
                            u = S::mul(u, get::<S>(image.mask, p * c + first + i, live));
                        }
                        put::<S>(y, p * c + first + i, live, u);
                    }
                }
                i += S::LANES;
            }
        }
    }
}

/// Per channel numbers of an image that the passes read and write.
struct Table<'a> {
    /// -m r, r: xhat = r x + this.
    xhat_shift: &'a mut [f32],
    r: &'a mut [f32],
    /// A, B, E.
    a: &'a mut [f32],
    b: &'a mut [f32],
    e: &'a mut [f32],
    /// dx = scale d + k0 + k1 xhat.
    k0: &'a mut [f32],
    k1: &'a mut [f32],
}

#[allow(clippy::too_many_arguments)] // the operands of one image's backward
fn backward_image(
    isa: Isa,
    d: &GroupNormDims,
    image: &Image<'_>,
    params: &NormParams<'_, Cpu>,
    g: &[f32],
    adds: [Option<&[f32]>; 3],
    [dx0, dx1]: [&mut [f32]; 2],
    sums: &mut [f32],
    table: &mut [f32],
) {
    let (c, pixels, width) = (d.c(), d.pixels as usize, d.group_channels());
    let mut parts = table.chunks_exact_mut(c);
    let mut part = || parts.next().unwrap_or_default();
    let mut t = Table { xhat_shift: part(), r: part(), a: part(), b: part(), e: part(), k0: part(), k1: part() };
    for i in 0..c {
        let (m, r) = (image.moments[2 * (i / width)], image.moments[2 * (i / width) + 1]);
        (t.r[i], t.xhat_shift[i]) = (r, -m * r);
    }
    dispatch(isa, Sums { image, g, t: &mut t, kept: [&mut *dx0, &mut *dx1] });
    let count = pixels as f32 * width as f32;
    for (group, r) in image.moments.chunks_exact(2).map(|m| m[1]).enumerate() {
        let channels = || group * width..(group + 1) * width;
        let factor = |i: usize| {
            let s = params.modulation.map_or(1.0, |m| 1.0 + m[image.n * 2 * c + i]);
            params.gamma[i] * s
        };
        let mean_a = channels().map(|i| factor(i) * t.a[i]).sum::<f32>() / count;
        let mean_b = channels().map(|i| factor(i) * t.b[i]).sum::<f32>() / count;
        for i in channels() {
            (t.k0[i], t.k1[i]) = (-r * mean_a, -r * mean_b);
            sums[i] = t.a[i];
            sums[c + i] = t.b[i];
            sums[2 * c + i] = image.scale[i] * t.a[i] + t.k0[i] * pixels as f32 + t.k1[i] * t.e[i];
        }
    }
    let (n, c0, c1) = (image.n, d.c0 as usize, d.c1 as usize);
    let cut = |at: usize, c: usize| adds[at].map_or(&[][..], |v| &v[n * pixels * c..(n + 1) * pixels * c]);
    let adds = [[cut(0, c0), cut(1, c0)], [cut(2, c1), &[]]];
    dispatch(isa, Dx { image, g, t: &t, adds, dx: [dx0, dx1] });
}

/// d of one vector: g through dropout and SiLU.
#[inline(always)]
unsafe fn through<S: Simd>(
    image: &Image<'_>,
    g: &[f32],
    x: S::V,
    [scale, shift]: [S::V; 2],
    at: usize,
    live: usize,
) -> S::V {
    // SAFETY: passed on.
    unsafe {
        let mut d = get::<S>(g, at, live);
        if !image.mask.is_empty() {
            d = S::mul(d, get::<S>(image.mask, at, live));
        }
        if image.d.silu != 0 {
            d = S::mul(d, S::silu_grad(S::fma(scale, x, shift)));
        }
        d
    }
}

/// The first pass: A, B and E.
struct Sums<'a, 'b> {
    image: &'a Image<'a>,
    g: &'a [f32],
    t: &'a mut Table<'b>,
    /// Where dx will stand: until then d, which costs an exponential, where it is not g itself.
    kept: [&'a mut [f32]; 2],
}

impl Kernel for Sums<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Sums { image, g, t, kept } = self;
        let (c, pixels, keeps) = (image.d.c(), image.d.pixels as usize, image.changes());
        for (side, first, width) in image.sides() {
            let x = image.x[side];
            let mut i = 0;
            while i < width {
                let live = if width - i < S::LANES { width - i } else { S::LANES };
                let k = first + i;
                // SAFETY: the caller vouches for the instruction set; lengths were checked on entry.
                unsafe {
                    let affine = [get::<S>(image.scale, k, live), get::<S>(image.shift, k, live)];
                    let (r, xhat_shift) = (get::<S>(t.r, k, live), get::<S>(t.xhat_shift, k, live));
                    let (mut a, mut b, mut e) = (S::splat(0.0), S::splat(0.0), S::splat(0.0));
                    for p in 0..pixels {
                        let x = get::<S>(x, p * width + i, live);
                        let d = through::<S>(image, g, x, affine, p * c + k, live);
                        if keeps {
                            put::<S>(kept[side], p * width + i, live, d);
                        }
                        let xhat = S::fma(r, x, xhat_shift);
                        a = S::add(a, d);
                        b = S::fma(d, xhat, b);
                        e = S::add(e, xhat);
                    }
                    put::<S>(t.a, k, live, a);
                    put::<S>(t.b, k, live, b);
                    put::<S>(t.e, k, live, e);
                }
                i += S::LANES;
            }
        }
    }
}

/// The second pass: dx, in place of the d that the first has kept there.
struct Dx<'a, 'b> {
    image: &'a Image<'a>,
    g: &'a [f32],
    t: &'a Table<'b>,
    /// Gradients of other uses of the two inputs, or empty.
    adds: [[&'a [f32]; 2]; 2],
    dx: [&'a mut [f32]; 2],
}

impl Kernel for Dx<'_, '_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Dx { image, g, t, adds, dx } = self;
        let (c, pixels, kept) = (image.d.c(), image.d.pixels as usize, image.changes());
        for (side, first, width) in image.sides() {
            let x = image.x[side];
            let [add0, add1] = adds[side];
            let mut i = 0;
            while i < width {
                let live = if width - i < S::LANES { width - i } else { S::LANES };
                let k = first + i;
                // SAFETY: the caller vouches for the instruction set; lengths were checked on entry.
                unsafe {
                    let affine = [get::<S>(image.scale, k, live), get::<S>(image.shift, k, live)];
                    let (r, xhat_shift) = (get::<S>(t.r, k, live), get::<S>(t.xhat_shift, k, live));
                    let (k0, k1) = (get::<S>(t.k0, k, live), get::<S>(t.k1, k, live));
                    for p in 0..pixels {
                        let at = p * width + i;
                        let x = get::<S>(x, at, live);
                        let d = if kept { get::<S>(dx[side], at, live) } else { get::<S>(g, p * c + k, live) };
                        let xhat = S::fma(r, x, xhat_shift);
                        let mut y = S::fma(affine[0], d, S::fma(k1, xhat, k0));
                        if !add0.is_empty() {
                            y = S::add(y, get::<S>(add0, at, live));
                        }
                        if !add1.is_empty() {
                            y = S::add(y, get::<S>(add1, at, live));
                        }
                        put::<S>(dx[side], at, live, y);
                    }
                }
                i += S::LANES;
            }
        }
    }
}
