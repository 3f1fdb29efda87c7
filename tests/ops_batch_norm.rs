//! Batch norm as coefficients on every backend: against the float64 reference, whose backward is the textbook's, and as the whole
//! chain statistics, coefficients, wgrad, sums, dgrad that the model runs.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::ops::batch_norm::reference as truth;
use ddim_engine::ops::batch_norm::{
    AffineParams, BackwardInput, BackwardOutput, BatchNorm, BatchNormDims, RunningMut, row,
};
use ddim_engine::ops::conv::reference::{self as conv_truth, Operand as HostOperand, Prologue as HostPrologue};
use ddim_engine::ops::conv::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use ops_support::{
    Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, norm, rms, to_f32, to_f64,
};

/// Relative 2-norm of coefficients and running statistics. Inputs are rounded to f32 before the device sees them. Measured: at
/// most 5e-8, 5.3e-7 for a running mean that cancels.
const COEFFICIENTS: f64 = 1e-6;
/// Relative 2-norm of gradients. Measured: at most 5.7e-7, but 1.9e-6 for a and b of a batch of two pixels, where they cancel.
const GRADIENTS: f64 = 5e-6;

/// A batch of two tensors (the second may be constant over an image) with its learned and running parameters.
struct Batch {
    dims: BatchNormDims,
    /// [N, pixels, C0 + C1], in float64 but exactly what f32 holds.
    x: Vec<f64>,
    x0: Vec<f64>,
    x1: Vec<f64>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    running_mean: Vec<f32>,
    running_var: Vec<f32>,
}

impl Batch {
    fn new(n: u32, pixels: u32, c: [u32; 2], constant: bool) -> Self {
        let dims = BatchNormDims { n, pixels, c0: c[0], c1: c[1] };
        let fill = Fill::new(u64::from(n * 1000 + pixels));
        let [images, per_image, c0, c1] = [n, pixels, c[0], c[1]].map(|extent| extent as usize);
        // Channels of different mean and spread.
        let tensor = |index, rows: usize, c: usize| -> Vec<f64> {
            let offsets = fill.f64s(index + 10, c);
            let values = fill.f64s(index, rows * c).into_iter().enumerate();
            let value = |(i, v): (usize, f64)| v * (1.0 + offsets[i % c].abs()) + 3.0 * offsets[i % c];
            to_f64(&to_f32(&values.map(value).collect::<Vec<f64>>()))
        };
        let x0 = tensor(0, images * per_image, c0);
        let x1 = tensor(1, if constant { images } else { images * per_image }, c1);
        let operand = |x1_constant| HostOperand { x0: &x0, x1: (c1 > 0).then_some(&x1), x1_constant };
        let x = operand(constant).concat(images, per_image, c0, c1);
        let x1 = conv_truth::split(&x, c0 + c1, c0).1;
        let positive = |index| fill.f32s(index, dims.c()).iter().map(|v| v.abs() + 0.1).collect();
        Batch {
            gamma: fill.f32s(2, dims.c()),
            beta: fill.f32s(3, dims.c()),
            running_mean: fill.f32s(4, dims.c()),
            running_var: positive(5),
            dims,
            x,
            x0,
            x1,
        }
    }

    fn truth(&self) -> truth::Trained {
        let [gamma, beta, mean, var] =
            [&self.gamma, &self.beta, &self.running_mean, &self.running_var].map(|v| to_f64(v));
        truth::train(&self.dims, &self.x, (&gamma, &beta), (&mean, &var))
    }

    fn stats(&self, x: &[f64], c: u32) -> Vec<f32> {
        to_f32(&conv_truth::stats(x, self.dims.n as usize, self.dims.pixels as usize, c as usize))
    }

    /// (coefficients, running mean, running variance) of a device.
    fn train<B: BatchNorm>(&self, backend: &B) -> [Guarded<B>; 3] {
        let stats0 = Input::new(backend, &self.stats(&self.x0, self.dims.c0));
        let stats1 = (self.dims.c1 > 0).then(|| Input::new(backend, &self.stats(&self.x1, self.dims.c1)));
        let (gamma, beta) = (Input::new(backend, &self.gamma), Input::new(backend, &self.beta));
        let mut mean = Guarded::from(backend, &self.running_mean);
        let mut var = Guarded::from(backend, &self.running_var);
        let mut coefficients = Guarded::output(backend, row::COUNT * self.dims.c());
        let running = RunningMut { mean: mean.view_mut(), var: var.view_mut() };
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        let stats1 = stats1.as_ref().map(Input::view);
        let coefficients_view = coefficients.view_mut();
        backend.batch_norm_train(&self.dims, stats0.view(), stats1, params, running, coefficients_view).unwrap();
        [coefficients, mean, var]
    }
}

/// Row by row; the shifts relative to what they are the difference of.
fn check_coefficients(name: &str, got: &[f32], want: &[f64], beta: &[f32]) {
    let got = to_f64(got);
    let of = |all, row| truth::coefficient_row(all, row);
    let spread = norm(of(want, row::MEAN)) + rms(of(want, row::MEAN)).max(1.0);
    for r in 0..row::COUNT {
        let products: Vec<f64> = match r {
            row::SHIFT => of(want, row::MEAN).iter().zip(of(want, row::SCALE)).map(|(m, s)| m * s).collect(),
            _ => of(want, r).to_vec(),
        };
        let scale = match r {
            row::MEAN => spread,
            row::SHIFT => norm(&products) + norm(&to_f64(beta)),
            _ => norm(&products),
        };
        assert_scaled(&format!("row {r} of {name}"), of(&got, r), of(want, r), scale, COEFFICIENTS);
    }
}

fn sizes() -> Vec<Batch> {
    vec![
        Batch::new(1, 1, [3, 0], false),
        Batch::new(2, 1, [5, 0], false),
        Batch::new(1, 2, [1, 0], false),
        Batch::new(2, 9, [17, 0], false),
        Batch::new(3, 35, [8, 7], false),
        Batch::new(5, 16, [33, 31], false),
        Batch::new(2, 12, [3, 4], true),
        Batch::new(64, 16, [128, 0], false),
        Batch::new(2, 1024, [64, 64], true),
    ]
}

#[test]
fn coefficients_of_training() {
    let cpus = Cpus::new();
    for batch in sizes() {
        let want = batch.truth();
        cpus.check(&format!("{:?}", batch.dims), |cpu, name| {
            let [coefficients, mean, var] = batch.train(cpu).map(|g| g.read(cpu));
            check_coefficients(name, &coefficients, &want.coefficients, &batch.beta);
            assert_close(&format!("running mean of {name}"), &mean, &want.running_mean, COEFFICIENTS);
            assert_close(&format!("running variance of {name}"), &var, &want.running_var, COEFFICIENTS);
            [coefficients, mean, var].concat()
        });
    }
}

#[test]
fn coefficients_of_evaluation() {
    let cpus = Cpus::new();
    for batch in sizes() {
        let host = [&batch.gamma, &batch.beta, &batch.running_mean, &batch.running_var];
        let [gamma, beta, mean, var] = host.map(|v| to_f64(v));
        let want = truth::eval(&gamma, &beta, &mean, &var);
        cpus.check(&format!("{:?}", batch.dims), |cpu, name| {
            let [gamma, beta, mean, var] = host.map(|v| Input::new(cpu, v));
            let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
            let mut out = Guarded::output(cpu, row::COUNT * batch.dims.c());
            cpu.batch_norm_eval(&batch.dims, params, mean.view(), var.view(), out.view_mut()).unwrap();
            check_coefficients(name, &out.read(cpu), &want, &batch.beta);
            out.read(cpu)
        });
    }
}

/// Batch norm and the convolution behind it, over a picture.
struct Block {
    batch: Batch,
    conv: ConvDims,
    w: Vec<f32>,
    dy: Vec<f32>,
    /// What dw, dgamma and dbeta accumulate on.
    before: [Vec<f32>; 3],
}

impl Block {
    fn new(n: u32, hw: [u32; 2], c: [u32; 2], k: u32, side: u32) -> Self {
        let batch = Batch::new(n, hw[0] * hw[1], c, false);
        let conv = ConvDims { n, h: hw[0], w: hw[1], c0: c[0], c1: c[1], r0: 0, r1: 0, k, side };
        let fill = Fill::new(u64::from(n * 100 + k));
        let weights = conv.taps() * conv.c() * k as usize;
        let w = fill.f32s(20, weights).iter().map(|w| w / ((conv.taps() * conv.c()) as f32).sqrt()).collect();
        let before = [fill.f32s(22, weights), fill.f32s(23, conv.c()), fill.f32s(24, conv.c())];
        Block { batch, w, dy: fill.f32s(21, conv.pixels() * k as usize), conv, before }
    }

    /// The same extents with one operand of all channels, as the references take them.
    fn joined(&self) -> ConvDims {
        ConvDims { c0: self.conv.c0 + self.conv.c1, c1: 0, ..self.conv }
    }

    fn truth(&self) -> truth::Gradients {
        let coefficients = self.batch.truth().coefficients;
        let [gamma, w, dy] = [&self.batch.gamma, &self.w, &self.dy].map(|v| to_f64(v));
        truth::backward(&self.joined(), &self.batch.x, &coefficients, &gamma, &w, &dy)
    }

    fn check_gradients(&self, name: &str, got: [&[f32]; 4], want: &truth::Gradients) {
        let [dw, dgamma, dbeta, ab] = got;
        let of = [("dw", dw, &want.dw, 0), ("dgamma", dgamma, &want.dgamma, 1), ("dbeta", dbeta, &want.dbeta, 2)];
        for (what, got, want, before) in of {
            let before = to_f64(&self.before[before]);
            let sum: Vec<f64> = before.iter().zip(want).map(|(b, w)| b + w).collect();
            let scale = norm(&before) + norm(want);
            assert_scaled(&format!("{what} of {name}"), &to_f64(got), &sum, scale, GRADIENTS);
        }
        // a multiplies x, b stands alone: each relative to the other's part in dx.
        let (a, b) = ab.split_at(self.conv.c());
        let (want_a, want_b) = want.ab.split_at(self.conv.c());
        assert_close(&format!("a of {name}"), a, want_a, GRADIENTS);
        assert_scaled(&format!("b of {name}"), &to_f64(b), want_b, norm(want_b) + norm(want_a), GRADIENTS);
    }
}

fn blocks() -> Vec<Block> {
    vec![
        Block::new(2, [1, 1], [3, 0], 5, 3),
        Block::new(1, [2, 3], [1, 0], 1, 3),
        Block::new(2, [5, 4], [7, 0], 17, 1),
        Block::new(3, [4, 7], [8, 5], 9, 3),
        Block::new(2, [8, 8], [33, 31], 16, 3),
        Block::new(5, [3, 2], [15, 2], 65, 3),
        Block::new(2, [16, 16], [64, 32], 64, 3),
        Block::new(1, [40, 33], [6, 6], 12, 3),
    ]
}

/// The operation alone: D and B come from the reference.
#[test]
fn backward_against_the_textbook() {
    let cpus = Cpus::new();
    for block in blocks() {
        let want = block.truth();
        let coefficients = block.batch.truth().coefficients;
        let of = |row| truth::coefficient_row(&coefficients, row);
        let hat = HostPrologue { affine: Some((of(row::RSTD), of(row::XHAT_SHIFT))), silu: false };
        let (x, dy) = (HostOperand::one(&block.batch.x), to_f64(&block.dy));
        let sums = conv_truth::wgrad(&block.joined(), x, hat, None, &dy);
        cpus.check(&format!("{:?}", block.conv), |cpu, name| {
            let inputs = [&sums.dw, &sums.border_sums, &coefficients].map(|v| Guarded::from(cpu, &to_f32(v)));
            let got = backward(cpu, &block, inputs.each_ref()).map(|g| g.read(cpu));
            block.check_gradients(name, got.each_ref().map(Vec::as_slice), &want);
            got.concat()
        });
    }
}

/// (dw, dgamma, dbeta, ab) of a device, from D, B and the coefficients.
fn backward<B: BatchNorm>(backend: &B, block: &Block, inputs: [&Guarded<B>; 3]) -> [Guarded<B>; 4] {
    let [w, gamma, beta] = [&block.w, &block.batch.gamma, &block.batch.beta].map(|v| Input::<B>::new(backend, v));
    let [mut dw, mut dgamma, mut dbeta] = block.before.each_ref().map(|v| Guarded::from(backend, v));
    let mut ab = Guarded::output(backend, 2 * block.conv.c());
    {
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        let (taps, k) = (block.conv.taps(), block.conv.k as usize);
        let [dw_hat, border_sums, coefficients] = inputs.map(Guarded::view);
        let input = BackwardInput { w: w.view(), dw_hat, border_sums, coefficients, params, taps, k };
        let out =
            BackwardOutput { dw: dw.view_mut(), dgamma: dgamma.view_mut(), dbeta: dbeta.view_mut(), ab: ab.view_mut() };
        backend.batch_norm_backward(&block.batch.dims, input, out).unwrap();
    }
    [dw, dgamma, dbeta, ab]
}

/// All of it on the device, as the model runs it: dx comes out of the dgrad convolution's epilogue, split over both inputs.
#[test]
fn the_whole_chain_against_the_textbook() {
    let cpus = Cpus::new();
    for block in blocks() {
        let want = block.truth();
        cpus.check(&format!("{:?}", block.conv), |cpu, name| chain(cpu, name, &block, &want));
    }
}

fn chain<B: BatchNorm + Conv>(backend: &B, name: &str, block: &Block, want: &truth::Gradients) -> Vec<f32> {
    let d = &block.conv;
    let (c, c0, k) = (d.c(), d.c0 as usize, d.k as usize);
    let [coefficients, ..] = block.batch.train(backend);
    let rows = |row: usize| coefficients.part(row * c..(row + 1) * c);
    let x0 = Input::new(backend, &to_f32(&block.batch.x0));
    let x1 = (d.c1 > 0).then(|| Input::new(backend, &to_f32(&block.batch.x1)));
    let (w, dy) = (Input::new(backend, &block.w), Input::new(backend, &block.dy));
    let x = Operand { x0: x0.view(), x1: x1.as_ref().map(Input::view), x1_constant: false };

    let mut dw_hat = Guarded::from(backend, &vec![0.0; d.taps() * c * k]);
    let mut border_sums = Guarded::output(backend, d.taps() * k);
    let out = WeightGradients {
        dw: dw_hat.view_mut(),
        dw_res: None,
        db: None,
        db_res: None,
        border_sums: Some(border_sums.view_mut()),
    };
    let hat = Prologue { affine: Some((rows(row::RSTD), rows(row::XHAT_SHIFT))), silu: false };
    backend.conv_wgrad(d, x, hat, None, dy.view(), out).unwrap();
    let gradients = backward(backend, block, [&dw_hat, &border_sums, &coefficients]);
    let got = gradients.each_ref().map(|g| g.read(backend));
    block.check_gradients(name, got.each_ref().map(Vec::as_slice), want);

    let transposed = ConvDims { c0: d.k, c1: 0, k: c as u32, ..*d };
    let mut packed = Guarded::output(backend, backend.conv_packed_len(&transposed));
    let filter = Filter { w: w.view(), w_res: None, forward_c: c, scale: Some(rows(row::SCALE)) };
    backend.conv_pack(&transposed, Direction::Dgrad, filter, packed.view_mut()).unwrap();
    let mut dx0 = Guarded::output(backend, d.pixels() * c0);
    let mut dx1 = (c0 < c).then(|| Guarded::output(backend, d.pixels() * (c - c0)));
    let [.., ab] = &gradients;
    let epilogue = Epilogue { affine: Some((x, ab.part(0..c), ab.part(c..2 * c))), ..Epilogue::default() };
    let out = Output { y0: dx0.view_mut(), y1: dx1.as_mut().map(Guarded::view_mut), k0: c0, stats: None };
    let dy = Operand::one(dy.view());
    backend.conv(&transposed, dy, Prologue::none(), None, packed.view(), epilogue, out).unwrap();
    let (dx0, dx1) = (dx0.read(backend), dx1.map_or(vec![], |dx1| dx1.read(backend)));
    check_dx(name, block, &dx0, &dx1, want);
    [got.concat(), dx0, dx1].concat()
}

fn check_dx(name: &str, block: &Block, dx0: &[f32], dx1: &[f32], want: &truth::Gradients) {
    let c = block.conv.c();
    let (want0, want1) = conv_truth::split(&want.dx, c, block.conv.c0 as usize);
    // Relative to the terms that cancel in it, the largest being scale * g.
    let coefficients = block.batch.truth().coefficients;
    let scales = truth::coefficient_row(&coefficients, row::SCALE);
    let scale = norm(&want.dx) + rms(scales) * rms(&to_f64(&block.dy)) * (want.dx.len() as f64).sqrt();
    assert_scaled(&format!("dx0 of {name}"), &to_f64(dx0), &want0, scale, GRADIENTS);
    assert_scaled(&format!("dx1 of {name}"), &to_f64(dx1), &want1, scale, GRADIENTS);
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let d = BatchNormDims { n: 2, pixels: 4, c0: 3, c1: 2 };
    let lengths = [12, 8, 5, 5, 5, 5, 25];
    let train = |lengths: [usize; 7], second: bool| {
        let [stats0, stats1, gamma, beta] = [0, 1, 2, 3].map(|i| Input::new(cpu, &vec![1.0; lengths[i]]));
        let [mut mean, mut var, mut out] = [4, 5, 6].map(|i| Guarded::from(cpu, &vec![1.0; lengths[i]]));
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        let running = RunningMut { mean: mean.view_mut(), var: var.view_mut() };
        let stats1 = second.then(|| stats1.view());
        cpu.batch_norm_train(&d, stats0.view(), stats1, params, running, out.view_mut())
    };
    train(lengths, true).unwrap();
    assert_shape_error("second statistics missing", train(lengths, false));
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of training"), train(short, true));
    }
    let lengths = [5, 5, 5, 5, 25];
    let eval = |lengths: [usize; 5]| {
        let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|i| Input::new(cpu, &vec![1.0; lengths[i]]));
        let mut out = Guarded::output(cpu, lengths[4]);
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        cpu.batch_norm_eval(&d, params, mean.view(), var.view(), out.view_mut())
    };
    eval(lengths).unwrap();
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of evaluation"), eval(short));
    }
    // T = 9, C = 5, K = 4: w, dw_hat, border sums, coefficients, gamma, beta; dw, dgamma, dbeta, ab.
    let lengths = [180, 180, 36, 25, 5, 5, 180, 5, 5, 10];
    let backward = |lengths: [usize; 10]| {
        let inputs: Vec<_> = lengths[..6].iter().map(|&len| Input::new(cpu, &vec![1.0; len])).collect();
        let mut outputs: Vec<_> = lengths[6..].iter().map(|&len| Guarded::from(cpu, &vec![1.0; len])).collect();
        let [w, dw_hat, border_sums, coefficients, gamma, beta] = [0, 1, 2, 3, 4, 5].map(|i| inputs[i].view());
        let params = AffineParams { gamma, beta };
        let input = BackwardInput { w, dw_hat, border_sums, coefficients, params, taps: 9, k: 4 };
        let mut views = outputs.iter_mut().map(Guarded::view_mut);
        let mut next = || views.next().unwrap();
        let out = BackwardOutput { dw: next(), dgamma: next(), dbeta: next(), ab: next() };
        cpu.batch_norm_backward(&d, input, out)
    };
    backward(lengths).unwrap();
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of the backward"), backward(short));
    }
}

/// The views of a buffer that this file relies on: rows of the coefficient block lie behind each other.
#[test]
fn coefficient_rows_are_contiguous() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let block = Guarded::from(cpu, &(0..15).map(|i| i as f32).collect::<Vec<f32>>());
    let mut shift = [0.0; 3];
    cpu.download(block.part(row::SHIFT * 3..(row::SHIFT + 1) * 3), &mut shift).unwrap();
    assert_eq!(shift, [9.0, 10.0, 11.0]);
}
