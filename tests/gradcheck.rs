//! Finite differences of every backward, in float64 on the references: the gradient of L = sum(weights * forward(x)) by central
//! differences against the reference backward. The device's kernels are compared with the same references in `ops_*.rs`, which
//! closes the chain from the definition of each forward to the kernel of its backward.

mod ops_support;

use ddim_engine::ops::attention::{AttentionDims, reference as attention};
use ddim_engine::ops::batch_norm::reference as batch_norm;
use ddim_engine::ops::batch_norm::{BatchNormDims, row};
use ddim_engine::ops::conv::reference::{self as conv, Epilogue, Filter, Operand, Prologue};
use ddim_engine::ops::conv::{ConvDims, Direction};
use ddim_engine::ops::group_norm::{GroupNormDims, reference as group_norm};
use ddim_engine::ops::linear::{LinearDims, reference as linear};
use ddim_engine::ops::loss::LossDims;
use ddim_engine::ops::loss::reference as loss;
use ddim_engine::ops::pool::ResampleDims;
use ddim_engine::ops::pool::reference as pool;
use ddim_engine::ops::resample_conv::{ResampleConvDims, Resampling, reference as resample_conv};
use ddim_engine::ops::resize::reference as resize;
use ddim_engine::ops::upsample::reference as upsample;
use ops_support::{Fill, assert_close_f64, dot};

/// Step of the differences. Their error is about EPS^2 f''' / 6 + 1e-16 |L| / EPS: 1e-11 relative to L.
const EPS: f64 = 1e-5;
/// Relative 2-norm between the two gradients. Measured: 2e-11 to 2e-9.
const TOLERANCE: f64 = 1e-6;

/// Central differences of `f` at `x`, element by element.
fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + EPS;
            let above = f(&x);
            x[i] = at - EPS;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * EPS)
        })
        .collect()
}

fn check(name: &str, backward: &[f64], x: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_close_f64(name, backward, &differences(x, f), TOLERANCE);
}

/// The tensors of one fused convolution: two main operands (the second constant), affine, SiLU, a residual of two operands.
struct ConvCase {
    dims: ConvDims,
    x0: Vec<f64>,
    x1: Vec<f64>,
    res0: Vec<f64>,
    res1: Vec<f64>,
    scale: Vec<f64>,
    shift: Vec<f64>,
    w: Vec<f64>,
    w_res: Vec<f64>,
    bias: Vec<f64>,
    /// Weights of the loss: what reaches the convolution as dy.
    dy: Vec<f64>,
}

impl ConvCase {
    fn new(side: u32) -> Self {
        let dims = ConvDims { n: 2, h: 3, w: 4, c0: 3, c1: 2, r0: 2, r1: 1, k: 4, side };
        let (fill, p) = (Fill::new(u64::from(side)), dims.pixels());
        ConvCase {
            x0: fill.f64s(0, p * 3),
            x1: fill.f64s(1, dims.n as usize * 2),
            res0: fill.f64s(2, p * 2),
            res1: fill.f64s(3, p),
            scale: fill.f64s(4, dims.c()),
            shift: fill.f64s(5, dims.c()),
            w: fill.f64s(6, dims.taps() * dims.c() * 4),
            w_res: fill.f64s(7, dims.r() * 4),
            bias: fill.f64s(8, 4),
            dy: fill.f64s(9, p * 4),
            dims,
        }
    }

    fn input(&self) -> Operand<'_> {
        Operand { x0: &self.x0, x1: Some(&self.x1), x1_constant: true }
    }

    fn prologue(&self) -> Prologue<'_> {
        Prologue { affine: Some((&self.scale, &self.shift)), silu: true }
    }

    fn residual(&self) -> Option<Operand<'_>> {
        Some(Operand { x0: &self.res0, x1: Some(&self.res1), x1_constant: false })
    }

    fn filter(&self) -> Filter<'_> {
        Filter { w_res: Some(&self.w_res), ..Filter::plain(&self.w, self.dims.c()) }
    }

    fn loss(&self, input: Operand<'_>, residual: Option<Operand<'_>>, filter: Filter<'_>, bias: &[f64]) -> f64 {
        let epilogue = Epilogue { bias: Some(bias), k0: 4, ..Epilogue::default() };
        dot(&self.dy, &conv::conv(&self.dims, Direction::Forward, input, self.prologue(), residual, filter, epilogue))
    }

    /// The gradient of the main input before the prologue: dgrad, then SiLU's derivative at the affine's output.
    fn dx(&self) -> Vec<f64> {
        let c = self.dims.c();
        let x = self.input().concat(self.dims.n as usize, 12, 3, 2);
        let h: Vec<f64> = x.iter().enumerate().map(|(i, x)| self.scale[i % c] * x + self.shift[i % c]).collect();
        let dims = ConvDims { c0: 4, c1: 0, r0: 0, r1: 0, k: c as u32, ..self.dims };
        let epilogue = Epilogue { silu_grad: Some(&h), k0: c, ..Epilogue::default() };
        let dy = Operand::one(&self.dy);
        let filter = Filter::plain(&self.w, c);
        let dh = conv::conv(&dims, Direction::Dgrad, dy, Prologue::default(), None, filter, epilogue);
        dh.iter().enumerate().map(|(i, dh)| dh * self.scale[i % c]).collect()
    }
}

#[test]
fn conv_with_prologue_and_residual() {
    for side in [1, 3] {
        let case = ConvCase::new(side);
        let (input, residual, filter) = (case.input(), case.residual(), case.filter());
        let gradients = conv::wgrad(&case.dims, input, case.prologue(), residual, &case.dy);
        check("dw", &gradients.dw, &case.w, |w| case.loss(input, residual, Filter { w, ..filter }, &case.bias));
        check("dw_res", &gradients.dw_res, &case.w_res, |w_res| {
            case.loss(input, residual, Filter { w_res: Some(w_res), ..filter }, &case.bias)
        });
        check("db", &gradients.db, &case.bias, |bias| case.loss(input, residual, filter, bias));
        let (dx0, dx1) = conv::split(&case.dx(), 5, 3);
        check("dx0", &dx0, &case.x0, |x0| case.loss(Operand { x0, ..input }, residual, filter, &case.bias));
        check("dx1", &sum_pixels(&dx1, 12, 2), &case.x1, |x1| {
            case.loss(Operand { x1: Some(x1), ..input }, residual, filter, &case.bias)
        });
    }
}

/// The gradient of a constant operand [N, C] from that of its picture [N, pixels, C].
fn sum_pixels(dx: &[f64], pixels: usize, c: usize) -> Vec<f64> {
    let image = |image: &[f64]| (0..c).map(|k| image.iter().skip(k).step_by(c).sum()).collect::<Vec<f64>>();
    dx.chunks_exact(pixels * c).flat_map(image).collect()
}

/// A residual block's shape: the gradient of x that feeds both the main product and the residual, in one dgrad product.
#[test]
fn conv_dgrad_joins_main_and_residual() {
    let forward = ConvDims { n: 1, h: 4, w: 3, c0: 3, c1: 0, r0: 3, r1: 0, k: 2, side: 3 };
    let fill = Fill::new(3);
    let (x, dy) = (fill.f64s(0, 36), fill.f64s(1, 24));
    let (w, w_res, scale) = (fill.f64s(2, 54), fill.f64s(3, 6), fill.f64s(4, 3));
    let filter = Filter { w: &w, w_res: Some(&w_res), forward_c: 3, scale: None };
    let loss = |x: &[f64]| {
        let prologue = Prologue { affine: Some((&scale, &[0.5; 3])), silu: false };
        let (x, epilogue) = (Operand::one(x), Epilogue { k0: 2, ..Epilogue::default() });
        dot(&dy, &conv::conv(&forward, Direction::Forward, x, prologue, Some(x), filter, epilogue))
    };
    for used in [3, 2] {
        let dims = ConvDims { c0: 2, r0: 2, k: used, ..forward };
        let (dy, scaled) = (Operand::one(&dy), Filter { scale: Some(&scale), ..filter });
        let epilogue = Epilogue { k0: used as usize, ..Epilogue::default() };
        let dx = conv::conv(&dims, Direction::Dgrad, dy, Prologue::default(), Some(dy), scaled, epilogue);
        let want = conv::split(&differences(&x, loss), 3, used as usize).0;
        assert_close_f64(&format!("dx of {used} channels"), &dx, &want, TOLERANCE);
    }
}

#[test]
fn batch_norm_then_conv() {
    for side in [1, 3] {
        let dims = ConvDims { n: 2, h: 3, w: 4, c0: 3, c1: 0, r0: 0, r1: 0, k: 2, side };
        let norm = BatchNormDims { n: 2, pixels: 12, c0: 3, c1: 0 };
        let fill = Fill::new(10 + u64::from(side));
        let (x, dy, w) = (fill.f64s(0, 72), fill.f64s(1, 48), fill.f64s(2, dims.taps() * 6));
        let (gamma, beta) = (fill.f64s(3, 3), fill.f64s(4, 3));
        let coefficients = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            batch_norm::train(&norm, x, (gamma, beta), (&[0.0; 3], &[1.0; 3])).coefficients
        };
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64], w: &[f64]| {
            let coefficients = coefficients(x, gamma, beta);
            let row = |row| batch_norm::coefficient_row(&coefficients, row);
            let prologue = Prologue { affine: Some((row(row::SCALE), row(row::SHIFT))), silu: false };
            let (input, filter) = (Operand::one(x), Filter::plain(w, 3));
            let epilogue = Epilogue { k0: 2, ..Epilogue::default() };
            dot(&dy, &conv::conv(&dims, Direction::Forward, input, prologue, None, filter, epilogue))
        };
        let got = batch_norm::backward(&dims, &x, &coefficients(&x, &gamma, &beta), &gamma, &w, &dy);
        check("dx", &got.dx, &x, |x| loss(x, &gamma, &beta, &w));
        check("dgamma", &got.dgamma, &gamma, |gamma| loss(&x, gamma, &beta, &w));
        check("dbeta", &got.dbeta, &beta, |beta| loss(&x, &gamma, beta, &w));
        check("dw", &got.dw, &w, |w| loss(&x, &gamma, &beta, w));
    }
}

#[test]
fn pool_and_upsample() {
    let dims = ResampleDims { n: 2, h: 4, w: 6, c: 3 };
    let fill = Fill::new(20);
    let (large, small) = (fill.f64s(0, dims.large()), fill.f64s(1, dims.small()));
    check("pool", &pool::backward(&dims, &small, None), &large, |x| dot(&small, &pool::forward(&dims, x)));
    check("upsample", &upsample::backward(&dims, &large), &small, |x| dot(&large, &upsample::forward(&dims, x)));
}

#[test]
fn resizes() {
    let dims = ResampleDims { n: 2, h: 4, w: 6, c: 3 };
    let fill = Fill::new(21);
    let (large, small) = (fill.f64s(0, dims.large()), fill.f64s(1, dims.small()));
    check("double", &resize::double_backward(&dims, &large, None), &small, |x| dot(&large, &resize::double(&dims, x)));
    for offset in [0, 1] {
        let dx = resize::keep_backward(&dims, offset, &small);
        check("keep", &dx, &large, |x| dot(&small, &resize::keep(&dims, offset, x)));
    }
}

#[test]
fn convolutions_that_change_the_resolution() {
    for resampling in [Resampling::Double, Resampling::Keep { offset: 0 }, Resampling::Keep { offset: 1 }] {
        let d = ResampleConvDims { n: 2, h: 4, w: 6, c: 3, k: 2, resampling };
        let fill = Fill::new(27);
        let (x, w, bias) = (fill.f64s(0, d.input_len()), fill.f64s(1, 9 * 3 * 2), fill.f64s(2, 2));
        let dy = fill.f64s(3, d.output_len());
        let got = resample_conv::backward(&d, &x, &w, &dy);
        check("dx", &got.dx, &x, |x| dot(&dy, &resample_conv::forward(&d, x, &w, &bias)));
        check("dw", &got.dw, &w, |w| dot(&dy, &resample_conv::forward(&d, &x, w, &bias)));
        check("db", &got.db, &bias, |bias| dot(&dy, &resample_conv::forward(&d, &x, &w, bias)));
    }
}

#[test]
fn group_norms() {
    for (groups, silu, modulated) in [(1, 0, false), (2, 1, false), (3, 1, true), (6, 0, true)] {
        let d = GroupNormDims { eps: 1e-3, n: 2, pixels: 5, c0: 4, c1: 2, groups, silu };
        let fill = Fill::new(40 + u64::from(groups));
        let (x, g, gamma, beta) = (fill.f64s(0, 60), fill.f64s(1, 60), fill.f64s(2, 6), fill.f64s(3, 6));
        let (modulation, mask) = (fill.f64s(4, 24), fill.f64s(5, 60));
        let input = group_norm::Input {
            x: &x,
            gamma: &gamma,
            beta: &beta,
            modulation: modulated.then_some(&modulation[..]),
            mask: Some(&mask),
        };
        let loss = |input: group_norm::Input<'_>| dot(&g, &group_norm::forward(&d, &input));
        let got = group_norm::backward(&d, &input, &g);
        check("dx", &got.dx, &x, |x| loss(group_norm::Input { x, ..input }));
        check("dgamma", &got.dgamma, &gamma, |gamma| loss(group_norm::Input { gamma, ..input }));
        check("dbeta", &got.dbeta, &beta, |beta| loss(group_norm::Input { beta, ..input }));
        if modulated {
            let of = |modulation: &[f64]| loss(group_norm::Input { modulation: Some(modulation), ..input });
            check("dmodulation", &got.dmodulation, &modulation, of);
        }
        // What is added to x per image and channel has the sums of dx as its gradient.
        check("sums", &got.sums, &[0.0; 12], |added| {
            let moved: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + added[i / 30 * 6 + i % 6]).collect();
            loss(group_norm::Input { x: &moved, ..input })
        });
    }
}

#[test]
fn self_attention() {
    for (tokens, heads, head_dim) in [(1, 1, 3), (5, 2, 3), (7, 1, 4)] {
        let d = AttentionDims { n: 2, tokens, heads, head_dim };
        let fill = Fill::new(50 + u64::from(tokens));
        let (qkv, dy) = (fill.f64s(0, 3 * d.len()), fill.f64s(1, d.len()));
        check("dqkv", &attention::backward(&d, &qkv, &dy), &qkv, |qkv| dot(&dy, &attention::forward(&d, qkv).0));
    }
}

#[test]
fn linear_layers() {
    for silu in [0, 1] {
        let d = LinearDims { n: 3, c: 4, k: 5, silu };
        let fill = Fill::new(60 + u64::from(silu));
        let (x, w, b, dy) = (fill.f64s(0, 12), fill.f64s(1, 20), fill.f64s(2, 5), fill.f64s(3, 15));
        let (dx, dw, db) = linear::backward(&d, &x, &w, &dy);
        check("dx", &dx, &x, |x| dot(&dy, &linear::forward(&d, x, &w, &b)));
        check("dw", &dw, &w, |w| dot(&dy, &linear::forward(&d, &x, w, &b)));
        check("db", &db, &b, |b| dot(&dy, &linear::forward(&d, &x, &w, b)));
    }
}

#[test]
fn losses_away_from_their_kinks() {
    let fill = Fill::new(30);
    let (n, per_image) = (2, 40);
    let rates = [0.8, 0.6, 0.28, 0.96];
    let (images, noise) = (fill.f64s(0, n * per_image), fill.f64s(1, n * per_image));
    let noisy = fill.f64s(2, n * per_image);
    for (predict, kind) in (0..3).flat_map(|predict| (0..3).map(move |kind| (predict, kind))) {
        let dims = LossDims { n: n as u32, per_image: per_image as u32, predict, loss: kind, of: 3, add: 0 };
        // A prediction whose distance from the target stays clear of 0 and of 1, where f' is not differentiable.
        let target = |i: usize| {
            let (signal, noise_rate) = (rates[i / per_image * 2], rates[i / per_image * 2 + 1]);
            [noise[i], images[i], signal * noise[i] - noise_rate * images[i]][predict as usize]
        };
        let distances = [-2.3, -1.2, -0.8, -0.1, 0.05, 0.4, 0.9, 1.1, 3.0];
        let pred: Vec<f64> = (0..n * per_image).map(|i| target(i) + distances[i % distances.len()]).collect();
        let input = loss::LossInput {
            pred: &pred,
            noisy: &noisy,
            images: &images,
            noise: &noise,
            rates: &rates,
            weights: Some(&[0.3, 2.5]),
        };
        let dp = loss::loss(&dims, input).1;
        check(&format!("loss {kind} predict {predict}"), &dp, &pred, |pred| {
            loss::loss(&dims, loss::LossInput { pred, ..input }).0.loss
        });
    }
}

#[test]
fn silu() {
    let x: Vec<f64> = (-60..=60).map(|i| f64::from(i) / 4.0).collect();
    let slopes: Vec<f64> = x.iter().map(|&x| conv::silu_grad(x)).collect();
    check("silu", &slopes, &x, |x| x.iter().map(|&x| conv::silu(x)).sum());
}
