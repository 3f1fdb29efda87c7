//! The naive float64 truth of the convolution, for tests: plain loops over the definition in the parent module, no tiling, no
//! packing, no identity. Activations are NHWC slices; results are new vectors. Lengths that do not fit panic by indexing.

use super::{ConvDims, Direction};

/// x / (1 + exp(-x)).
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// Derivative of [`silu`].
pub fn silu_grad(x: f64) -> f64 {
    let s = sigmoid(x);
    s + x * s * (1.0 - s)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// As [`super::Operand`].
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// [N, H, W, C0].
    pub x0: &'a [f64],
    /// [N, H, W, C1], or [N, C1] where `x1_constant`.
    pub x1: Option<&'a [f64]>,
    /// `x1` is the same at every pixel of an image.
    pub x1_constant: bool,
}

impl<'a> Operand<'a> {
    /// A single tensor.
    pub fn one(x0: &'a [f64]) -> Self {
        Operand { x0, x1: None, x1_constant: false }
    }

    /// What it stands for: [N, H, W, C0 + C1], where an image has `pixels` pixels.
    pub fn concat(&self, n: usize, pixels: usize, c0: usize, c1: usize) -> Vec<f64> {
        let mut all = Vec::with_capacity(n * pixels * (c0 + c1));
        for p in 0..n * pixels {
            all.extend_from_slice(&self.x0[p * c0..(p + 1) * c0]);
            if let Some(x1) = self.x1 {
                let row = if self.x1_constant { p / pixels } else { p };
                all.extend_from_slice(&x1[row * c1..(row + 1) * c1]);
            }
        }
        all
    }
}

/// As [`super::Prologue`].
#[derive(Clone, Copy, Default)]
pub struct Prologue<'a> {
    /// Scale and shift per channel, `[C]` each.
    pub affine: Option<(&'a [f64], &'a [f64])>,
    /// SiLU after the affine.
    pub silu: bool,
}

/// As [`super::Filter`].
#[derive(Clone, Copy)]
pub struct Filter<'a> {
    /// [T, C, K] of the forward convolution.
    pub w: &'a [f64],
    /// [R, K] of the forward residual.
    pub w_res: Option<&'a [f64]>,
    /// Input channels of the forward filter.
    pub forward_c: usize,
    /// Dgrad only: factor per forward input channel, for the main filter.
    pub scale: Option<&'a [f64]>,
}

impl<'a> Filter<'a> {
    /// The main filter alone.
    pub fn plain(w: &'a [f64], forward_c: usize) -> Self {
        Filter { w, w_res: None, forward_c, scale: None }
    }
}

/// As [`super::Epilogue`], with K0 of [`super::Output`].
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[K]`.
    pub bias: Option<&'a [f64]>,
    /// `[K]`.
    pub bias_res: Option<&'a [f64]>,
    /// h, [N, H, W, K]: multiply by silu'(h).
    pub silu_grad: Option<&'a [f64]>,
    /// (v, a, b): add `a[k]` v + `b[k]`, v split like the output.
    pub affine: Option<(Operand<'a>, &'a [f64], &'a [f64])>,
    /// Add to channels below K0, [N, H, W, K0].
    pub add0: Option<&'a [f64]>,
    /// Add to the other channels, [N, H, W, K - K0].
    pub add1: Option<&'a [f64]>,
    /// Channels of the first output; matters to `affine`, `add0` and `add1`.
    pub k0: usize,
}

/// The fused convolution: y [N, H, W, K], not split (see [`split`]).
pub fn conv(
    dims: &ConvDims,
    direction: Direction,
    input: Operand<'_>,
    prologue: Prologue<'_>,
    residual: Option<Operand<'_>>,
    filter: Filter<'_>,
    epilogue: Epilogue<'_>,
) -> Vec<f64> {
    let z = prologued(dims, input, prologue);
    let res = residual.map(|r| r.concat(dims.n as usize, image_pixels(dims), dims.r0 as usize, dims.r1 as usize));
    let mut u = match direction {
        Direction::Forward => forward_product(dims, &z, filter.w),
        Direction::Dgrad => dgrad_product(dims, &z, filter),
    };
    if let (Some(res), Some(w_res)) = (res, filter.w_res) {
        add_residual(dims, direction, &res, w_res, &mut u);
    }
    finish(dims, epilogue, &mut u);
    u
}

/// The main product of a plain convolution: [N, H, W, K] from x [N, H, W, C] and w [T, C, K].
pub fn forward_product(dims: &ConvDims, x: &[f64], w: &[f64]) -> Vec<f64> {
    let (c_count, k_count) = (dims.c(), dims.k as usize);
    let mut y = vec![0.0; dims.pixels() * k_count];
    for_each_tap(dims, |p, t, q| {
        for c in 0..c_count {
            let row = &w[(t * c_count + c) * k_count..][..k_count];
            let out = &mut y[p * k_count..][..k_count];
            for k in 0..k_count {
                out[k] += x[q * c_count + c] * row[k];
            }
        }
    });
    y
}

/// The transpose of [`forward_product`]: `y[p]` read `x[q]` through tap t, so `dx[q]` collects from `dy[p]` through tap t. `dims` are
/// those of the dgrad product; only the first `dims.k` of the forward's input channels are computed.
fn dgrad_product(dims: &ConvDims, dy: &[f64], filter: Filter<'_>) -> Vec<f64> {
    let (k_count, c_count) = (dims.c(), dims.k as usize);
    let mut dx = vec![0.0; dims.pixels() * c_count];
    for_each_tap(dims, |p, t, q| {
        for c in 0..c_count {
            let row = &filter.w[(t * filter.forward_c + c) * k_count..][..k_count];
            let sum: f64 = row.iter().zip(&dy[p * k_count..]).map(|(w, dy)| w * dy).sum();
            dx[q * c_count + c] += filter.scale.map_or(1.0, |s| s[c]) * sum;
        }
    });
    dx
}

/// Calls `body(p, t, q)` for every output pixel p, tap t and input pixel q = p + t inside the same picture.
fn for_each_tap(dims: &ConvDims, mut body: impl FnMut(usize, usize, usize)) {
    let (h, w, side) = (dims.h as usize, dims.w as usize, dims.side as usize);
    let pad = side / 2;
    for n in 0..dims.n as usize {
        for (i, j) in grid(h, w) {
            for (a, b) in grid(side, side) {
                let (row, column) = ((i + a).wrapping_sub(pad), (j + b).wrapping_sub(pad)); // outside: huge
                if row < h && column < w {
                    body((n * h + i) * w + j, a * side + b, (n * h + row) * w + column);
                }
            }
        }
    }
}

fn grid(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
}

fn image_pixels(dims: &ConvDims) -> usize {
    dims.h as usize * dims.w as usize
}

/// Index of element `i` of [N, pixels, C] in numbers per channel, or per image and channel.
fn per_image(numbers: &[f64], i: usize, c: usize, dims: &ConvDims) -> usize {
    let image = if numbers.len() > c { i / (image_pixels(dims) * c) } else { 0 };
    image * c + i % c
}

/// The main operand after the prologue: z [N, H, W, C].
fn prologued(dims: &ConvDims, input: Operand<'_>, prologue: Prologue<'_>) -> Vec<f64> {
    let mut z = input.concat(dims.n as usize, image_pixels(dims), dims.c0 as usize, dims.c1 as usize);
    for (i, z) in z.iter_mut().enumerate() {
        if let Some((scale, shift)) = prologue.affine {
            let c = per_image(scale, i, dims.c(), dims);
            *z = scale[c] * *z + shift[c];
        }
        if prologue.silu {
            *z = silu(*z);
        }
    }
    z
}

/// `u[p,k]` += sum_r `res[p,r]` `R[r,k]`; in a dgrad the filter is transposed: [K, R] in memory.
fn add_residual(dims: &ConvDims, direction: Direction, res: &[f64], w_res: &[f64], u: &mut [f64]) {
    let (r_count, k_count) = (dims.r(), dims.k as usize);
    for (i, u) in u.iter_mut().enumerate() {
        let (p, k) = (i / k_count, i % k_count);
        for r in 0..r_count {
            let weight = match direction {
                Direction::Forward => w_res[r * k_count + k],
                Direction::Dgrad => w_res[k * r_count + r],
            };
            *u += res[p * r_count + r] * weight;
        }
    }
}

/// The epilogue, in the order of the parent's mathematics.
fn finish(dims: &ConvDims, e: Epilogue<'_>, u: &mut [f64]) {
    let (k_count, k0) = (dims.k as usize, e.k0);
    let v = e.affine.map(|(v, _, _)| v.concat(dims.n as usize, image_pixels(dims), k0, k_count - k0));
    for (i, u) in u.iter_mut().enumerate() {
        let (p, k) = (i / k_count, i % k_count);
        let bias = |b: Option<&[f64]>| b.map_or(0.0, |b| b[per_image(b, i, k_count, dims)]);
        *u += bias(e.bias) + bias(e.bias_res);
        *u *= e.silu_grad.map_or(1.0, |h| silu_grad(h[i]));
        if let (Some((_, a, b)), Some(v)) = (e.affine, &v) {
            *u += a[k] * v[i] + b[k];
        }
        *u += if k < k0 {
            e.add0.map_or(0.0, |add| add[p * k0 + k])
        } else {
            e.add1.map_or(0.0, |add| add[p * (k_count - k0) + k - k0])
        };
    }
}

/// Cuts [P, K] into [P, K0] and [P, K - K0].
pub fn split(y: &[f64], k: usize, k0: usize) -> (Vec<f64>, Vec<f64>) {
    let pixels = y.chunks_exact(k);
    (pixels.clone().flat_map(|p| &p[..k0]).copied().collect(), pixels.flat_map(|p| &p[k0..]).copied().collect())
}

/// [N, K, 2]: mean and sum of squared deviations from it, per image and channel of y [N, pixels, K]; two passes.
pub fn stats(y: &[f64], n: usize, pixels: usize, k: usize) -> Vec<f64> {
    let mut stats = Vec::with_capacity(n * k * 2);
    for image in 0..n {
        for channel in 0..k {
            let values = || (0..pixels).map(|p| y[(image * pixels + p) * k + channel]);
            let mean = values().sum::<f64>() / pixels as f64;
            stats.extend([mean, values().map(|v| (v - mean).powi(2)).sum()]);
        }
    }
    stats
}

/// Results of [`wgrad`]: the plain gradients, without what a caller accumulates them on.
pub struct WeightGradients {
    /// [T, C, K].
    pub dw: Vec<f64>,
    /// [R, K]; empty without a residual.
    pub dw_res: Vec<f64>,
    /// `[K]`.
    pub db: Vec<f64>,
    /// [T, K]: sum of dy over the pixels whose tap lies inside.
    pub border_sums: Vec<f64>,
}

/// As [`super::Conv::conv_wgrad`]: `dW[t,c,k]` = sum_p `z[p+t,c]` `dy[p,k]` and the sums beside it.
pub fn wgrad(
    dims: &ConvDims,
    input: Operand<'_>,
    prologue: Prologue<'_>,
    residual: Option<Operand<'_>>,
    dy: &[f64],
) -> WeightGradients {
    let (c_count, k_count, r_count) = (dims.c(), dims.k as usize, dims.r());
    let z = prologued(dims, input, prologue);
    let mut dw = vec![0.0; dims.taps() * c_count * k_count];
    let mut border_sums = vec![0.0; dims.taps() * k_count];
    for_each_tap(dims, |p, t, q| {
        let dy = &dy[p * k_count..][..k_count];
        add_outer(&z[q * c_count..][..c_count], dy, &mut dw[t * c_count * k_count..]);
        add_outer(&[1.0], dy, &mut border_sums[t * k_count..]);
    });
    let res = residual.map(|r| r.concat(dims.n as usize, image_pixels(dims), dims.r0 as usize, dims.r1 as usize));
    let mut dw_res = vec![0.0; r_count * k_count];
    let mut db = vec![0.0; k_count];
    for (p, dy) in dy.chunks_exact(k_count).enumerate() {
        add_outer(&[1.0], dy, &mut db);
        if let Some(res) = &res {
            add_outer(&res[p * r_count..][..r_count], dy, &mut dw_res);
        }
    }
    WeightGradients { dw, dw_res, db, border_sums }
}

/// `out[c,k]` += `x[c]` `dy[k]`.
fn add_outer(x: &[f64], dy: &[f64], out: &mut [f64]) {
    for (x, row) in x.iter().zip(out.chunks_exact_mut(dy.len())) {
        for (out, dy) in row.iter_mut().zip(dy) {
            *out += x * dy;
        }
    }
}
