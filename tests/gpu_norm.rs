//! Batch norm, pooling and upsampling by the CUDA kernels against the float64 references: on the simulator always (where it was built),
//! on a GPU where there is one. Views begin at aligned and at odd elements, so that both ways of reading are taken.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::device::gpu::{Arithmetic, Dtype, Gpu, GpuBuffer, GpuSlice, GpuSliceMut};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::ops::batch_norm::reference as norm_truth;
use ddim_engine::ops::batch_norm::{
    AffineParams, BackwardInput, BackwardOutput, BatchNorm, BatchNormDims, RunningMut, row,
};
use ddim_engine::ops::conv::ConvDims;
use ddim_engine::ops::conv::reference::{self as conv_truth, Operand, Prologue, stats};
use ddim_engine::ops::pool::{AvgPool2, ResampleDims, reference as pool_truth};
use ddim_engine::ops::upsample::{Upsample2, reference as upsample_truth};
use half::bf16;
use ops_support::devices;
use ops_support::{
    CHANNELS, Fill, GUARD, Guarded, IMAGES, Input, assert_close, assert_scaled, assert_shape_error, norm, rms, to_f32,
    to_f64,
};

/// Statistics, relative to the output's size. Measured: at most 1.1e-7.
const STATS: f64 = 1e-6;
/// Relative 2-norm of coefficients and running statistics. Measured: at most 8.0e-8.
const COEFFICIENTS: f64 = 1e-6;
/// Relative 2-norm of gradients of parameters. Measured: at most 1.4e-7.
const GRADIENTS: f64 = 1e-6;

/// Relative 2-norm of activations. One rounding to bfloat16 is 1.7e-3 of a number's size on average, at most 3.9e-3. Measured: at most
/// 6.6e-8 in float32, 2.6e-3 in bfloat16.
fn tolerance(arithmetic: Arithmetic) -> f64 {
    if arithmetic == Arithmetic::Bf16 { 4e-3 } else { 2e-7 }
}

/// Runs `work` in an arithmetic on the simulator and on a GPU, or says why not.
macro_rules! on_devices {
    ($arithmetic:expr, $work:expr) => {{
        devices::run_or_skip("sim", devices::no_sim(), || $work(&devices::sim($arithmetic)));
        devices::run_or_skip("cuda", devices::no_cuda(), || $work(&devices::cuda($arithmetic)));
    }};
}

/// Elements in front of a view: 16-byte alignment in both types, and none.
const LEADS: [usize; 2] = [GUARD, GUARD + 1];
/// Stands around outputs; bfloat16 holds it too.
const CANARY: f32 = -3.0e38;

/// A part of a buffer of activations, in the device's type, with NaN (inputs) or canaries (outputs) around it.
struct Activation<L: Launcher> {
    buffer: GpuBuffer<L>,
    lead: usize,
    len: usize,
    around: f32,
}

impl<L: Launcher> Activation<L> {
    fn new(gpu: &Gpu<L>, values: &[f32], lead: usize, around: f32) -> Self {
        let mut room = vec![around; lead + values.len() + GUARD];
        room[lead..lead + values.len()].copy_from_slice(values);
        let mut buffer = gpu.alloc_activation(room.len()).unwrap();
        let around = if buffer.dtype() == Dtype::Bf16 { bf16::from_f32(around).to_f32() } else { around };
        gpu.upload(&room, Gpu::all_mut(&mut buffer)).unwrap();
        Activation { buffer, lead, len: values.len(), around }
    }

    fn input(gpu: &Gpu<L>, values: &[f32], lead: usize) -> Self {
        Self::new(gpu, values, lead, f32::NAN)
    }

    fn output(gpu: &Gpu<L>, len: usize, lead: usize) -> Self {
        Self::new(gpu, &vec![f32::NAN; len], lead, bf16::from_f32(CANARY).to_f32())
    }

    fn view(&self) -> GpuSlice<'_> {
        Gpu::<L>::slice(&self.buffer, self.lead..self.lead + self.len)
    }

    #[allow(clippy::single_range_in_vec_init)] // one view is meant
    fn view_mut(&mut self) -> GpuSliceMut<'_> {
        let [view] = Gpu::<L>::slices_mut(&mut self.buffer, [self.lead..self.lead + self.len]);
        view
    }

    #[track_caller]
    fn read(&self, gpu: &Gpu<L>) -> Vec<f32> {
        let mut room = vec![0.0; self.lead + self.len + GUARD];
        gpu.download(Gpu::<L>::all(&self.buffer), &mut room).unwrap();
        let intact = |part: &[f32]| part.iter().all(|v| *v == self.around);
        assert!(intact(&room[..self.lead]), "written in front of the output");
        assert!(intact(&room[self.lead + self.len..]), "written behind the output");
        room[self.lead..self.lead + self.len].to_vec()
    }
}

/// Numbers that the device's activations hold exactly.
fn numbers<L: Launcher>(gpu: &Gpu<L>, case: u64, index: u64, len: usize, shift: f32) -> Vec<f32> {
    let mut values = Fill::new(case).f32s(index, len);
    for v in &mut values {
        *v += shift;
        if gpu.activation_dtype() == Dtype::Bf16 {
            *v = bf16::from_f32(*v).to_f32();
        }
    }
    values
}

/// Runs a case twice: its numbers must be equal to the bit.
fn twice(name: &str, case: impl Fn() -> Vec<f32>) {
    let bits = || case().into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    assert!(bits() == bits(), "{name}: two runs differ");
}

fn sizes() -> Vec<ResampleDims> {
    let mut sizes: Vec<ResampleDims> = CHANNELS
        .iter()
        .enumerate()
        .map(|(i, &c)| {
            let fill = Fill::new(i as u64);
            let extent = |index| fill.choose(index, &[2, 4, 6, 8, 10, 16, 18, 34]);
            ResampleDims { n: fill.choose(0, &IMAGES), h: extent(1), w: extent(2), c }
        })
        .collect();
    sizes.extend([
        ResampleDims { n: 1, h: 2, w: 2, c: 1 },
        ResampleDims { n: 1, h: 2, w: 38, c: 3 },
        ResampleDims { n: 3, h: 26, w: 2, c: 16 },
        ResampleDims { n: 35, h: 4, w: 4, c: 20 },
        ResampleDims { n: 2, h: 64, w: 64, c: 32 },
        ResampleDims { n: 1, h: 6, w: 10, c: 296 },
        ResampleDims { n: 2, h: 34, w: 34, c: 48 },
    ]);
    sizes
}

/// A forward of pooling or upsampling: (y, statistics where asked for).
type Forward<L> = fn(&Gpu<L>, &ResampleDims, &[f32], usize, bool) -> (Vec<f32>, Vec<f32>);

fn pool<L: Launcher>(gpu: &Gpu<L>, d: &ResampleDims, x: &[f32], lead: usize, moments: bool) -> (Vec<f32>, Vec<f32>) {
    let (x, mut y) = (Activation::input(gpu, x, lead), Activation::output(gpu, d.small(), lead));
    let mut stats = moments.then(|| Guarded::filled(gpu, &vec![f32::NAN; (d.n * d.c * 2) as usize], lead));
    gpu.avg_pool_forward(d, x.view(), y.view_mut(), stats.as_mut().map(Guarded::view_mut)).unwrap();
    (y.read(gpu), stats.map_or(vec![], |s| s.read(gpu)))
}

fn upsample<L: Launcher>(
    gpu: &Gpu<L>,
    d: &ResampleDims,
    x: &[f32],
    lead: usize,
    moments: bool,
) -> (Vec<f32>, Vec<f32>) {
    let (x, mut y) = (Activation::input(gpu, x, lead), Activation::output(gpu, d.large(), lead));
    let mut stats = moments.then(|| Guarded::filled(gpu, &vec![f32::NAN; (d.n * d.c * 2) as usize], lead));
    gpu.upsample_forward(d, x.view(), y.view_mut(), stats.as_mut().map(Guarded::view_mut)).unwrap();
    (y.read(gpu), stats.map_or(vec![], |s| s.read(gpu)))
}

fn forward_case<L: Launcher>(
    gpu: &Gpu<L>,
    name: &str,
    d: &ResampleDims,
    lead: usize,
    forward: Forward<L>,
    x: &[f32],
    want: &[f64],
) {
    let name = format!("{name} of {d:?} at {lead} in {}", gpu.arithmetic());
    let (y, got) = forward(gpu, d, x, lead, true);
    assert_close(&format!("y, {name}"), &y, want, tolerance(gpu.arithmetic()));
    // Of what was stored.
    let (y64, got64) = (to_f64(&y), to_f64(&got));
    let (n, c) = (d.n as usize, d.c as usize);
    let pixels = y.len() / (n * c);
    let want = stats(&y64, n, pixels, c);
    let column = |stats: &[f64], i: usize| stats.iter().skip(i).step_by(2).copied().collect::<Vec<f64>>();
    let entries = ((n * c) as f64).sqrt();
    let (mean_scale, m2_scale) = (rms(&y64) * entries, rms(&y64).powi(2) * pixels as f64 * entries);
    assert_scaled(&format!("mean, {name}"), &column(&got64, 0), &column(&want, 0), mean_scale, STATS);
    assert_scaled(&format!("m2, {name}"), &column(&got64, 1), &column(&want, 1), m2_scale, STATS);
    twice(&name, || {
        let (y, got) = forward(gpu, d, x, lead, true);
        [y, got].concat()
    });
    let (without, _) = forward(gpu, d, x, lead, false);
    assert_eq!(y, without, "{name}: statistics must not change the result");
}

fn forwards<L: Launcher>(gpu: &Gpu<L>, sizes: &[ResampleDims]) {
    for d in sizes {
        let case = u64::from(d.c);
        let (large, small) = (numbers(gpu, case, 0, d.large(), 0.0), numbers(gpu, case, 1, d.small(), 0.0));
        let pooled = pool_truth::forward(d, &to_f64(&large));
        let upsampled = upsample_truth::forward(d, &to_f64(&small));
        for lead in LEADS {
            forward_case(gpu, "pool", d, lead, pool, &large, &pooled);
            forward_case(gpu, "upsample", d, lead, upsample, &small, &upsampled);
        }
    }
}

#[test]
fn forwards_in_fp32() {
    on_devices!(Arithmetic::Fp32, |gpu| forwards(gpu, &sizes()));
}

#[test]
fn forwards_in_bf16() {
    on_devices!(Arithmetic::Bf16, |gpu| forwards(gpu, &sizes()));
}

fn backwards<L: Launcher>(gpu: &Gpu<L>, sizes: &[ResampleDims]) {
    let arithmetic = gpu.arithmetic();
    for d in sizes {
        let case = u64::from(d.c);
        let (small, large) = (numbers(gpu, case, 2, d.small(), 0.0), numbers(gpu, case, 3, d.large(), 0.0));
        let (small64, large64) = (to_f64(&small), to_f64(&large));
        let spread = pool_truth::backward(d, &small64, None);
        let joined = pool_truth::backward(d, &small64, Some(&large64));
        let gathered = upsample_truth::backward(d, &large64);
        for lead in LEADS {
            let name = format!("{d:?} at {lead} in {arithmetic}");
            let run = || {
                let [small, large] = [&small, &large].map(|v| Activation::input(gpu, v, lead));
                let [mut dx, mut added] = [(); 2].map(|()| Activation::output(gpu, d.large(), lead));
                gpu.avg_pool_backward(d, small.view(), None, dx.view_mut()).unwrap();
                gpu.avg_pool_backward(d, small.view(), Some(large.view()), added.view_mut()).unwrap();
                let mut up = Activation::output(gpu, d.small(), lead);
                gpu.upsample_backward(d, large.view(), up.view_mut()).unwrap();
                [dx, added, up].map(|out| out.read(gpu))
            };
            let [dx, added, up] = run();
            assert_close(&format!("pool backward, {name}"), &dx, &spread, tolerance(arithmetic));
            assert_close(&format!("pool backward with add, {name}"), &added, &joined, tolerance(arithmetic));
            assert_close(&format!("upsample backward, {name}"), &up, &gathered, tolerance(arithmetic));
            twice(&name, || run().concat());
        }
    }
}

#[test]
fn backwards_in_fp32() {
    on_devices!(Arithmetic::Fp32, |gpu| backwards(gpu, &sizes()));
}

#[test]
fn backwards_in_bf16() {
    on_devices!(Arithmetic::Bf16, |gpu| backwards(gpu, &sizes()));
}

/// Views need not be aligned alike: one aligned input does not make the others so.
fn mixed_leads<L: Launcher>(gpu: &Gpu<L>) {
    let d = ResampleDims { n: 2, h: 4, w: 6, c: 16 };
    let (small, large) = (numbers(gpu, 7, 0, d.small(), 0.0), numbers(gpu, 7, 1, d.large(), 0.0));
    let want = pool_truth::backward(&d, &to_f64(&small), Some(&to_f64(&large)));
    for odd in 0..8 {
        let lead = |bit: u32| GUARD + (odd >> bit & 1);
        let (dy, add) = (Activation::input(gpu, &small, lead(0)), Activation::input(gpu, &large, lead(1)));
        let mut dx = Activation::output(gpu, d.large(), lead(2));
        gpu.avg_pool_backward(&d, dy.view(), Some(add.view()), dx.view_mut()).unwrap();
        assert_close(&format!("odd views {odd:03b}"), &dx.read(gpu), &want, tolerance(gpu.arithmetic()));
    }
}

#[test]
fn views_of_mixed_alignment() {
    on_devices!(Arithmetic::Fp32, mixed_leads);
    on_devices!(Arithmetic::Bf16, mixed_leads);
}

/// Measured: at most 7.1e-8 of the mean and 2.7e-5 of the squares. A float32 near 1000 is good to 3e-5, and the spread is 1 or less.
fn large_mean<L: Launcher>(gpu: &Gpu<L>) {
    let d = ResampleDims { n: 2, h: 32, w: 32, c: 19 };
    for lead in LEADS {
        for (name, forward, len) in [("pool", pool as Forward<L>, d.large()), ("upsample", upsample, d.small())] {
            let (y, got) = forward(gpu, &d, &numbers(gpu, 9, 0, len, 1000.0), lead, true);
            let want = stats(&to_f64(&y), 2, y.len() / 38, 19);
            for (got, want) in got.chunks_exact(2).zip(want.chunks_exact(2)) {
                assert_close(&format!("mean of {name}"), &got[..1], &want[..1], 1e-6);
                assert_close(&format!("m2 of {name}"), &got[1..], &want[1..], 6e-5);
            }
        }
    }
}

#[test]
fn stats_survive_a_large_mean() {
    on_devices!(Arithmetic::Fp32, large_mean);
    on_devices!(Arithmetic::Bf16, large_mean);
}

fn wrong_resamples<L: Launcher>(gpu: &Gpu<L>) {
    let d = ResampleDims { n: 2, h: 4, w: 6, c: 3 };
    let (small, large) = (d.small(), d.large());
    let buffer = |len| Activation::output(gpu, len, GUARD);
    let stats = |len: usize| Guarded::output(gpu, len);
    let forward = |d: &ResampleDims, x: usize, y: usize, s: usize| {
        let (x, mut y, mut s) = (buffer(x), buffer(y), stats(s));
        gpu.avg_pool_forward(d, x.view(), y.view_mut(), Some(s.view_mut()))
    };
    forward(&d, large, small, 12).unwrap();
    for (x, y, s) in [(large - 1, small, 12), (large, small - 1, 12), (large, small, 11)] {
        assert_shape_error("a view of pooling", forward(&d, x, y, s));
    }
    assert_shape_error("odd rows", forward(&ResampleDims { h: 5, ..d }, 180, 45, 12));
    let up = |x: usize, y: usize, s: usize| {
        let (x, mut y, mut s) = (buffer(x), buffer(y), stats(s));
        gpu.upsample_forward(&d, x.view(), y.view_mut(), Some(s.view_mut()))
    };
    up(small, large, 12).unwrap();
    for (x, y, s) in [(small - 1, large, 12), (small, large + 1, 12), (small, large, 13)] {
        assert_shape_error("a view of upsampling", up(x, y, s));
    }
    let backward = |dy: usize, add: usize, dx: usize| {
        let (dy, add, mut dx) = (buffer(dy), buffer(add), buffer(dx));
        gpu.avg_pool_backward(&d, dy.view(), Some(add.view()), dx.view_mut())
    };
    backward(small, large, large).unwrap();
    for (dy, add, dx) in [(small + 1, large, large), (small, large - 1, large), (small, large, large - 1)] {
        assert_shape_error("a view of pooling's backward", backward(dy, add, dx));
    }
    let (dy, mut dx) = (buffer(large), buffer(small - 1));
    assert_shape_error("dx of upsampling", gpu.upsample_backward(&d, dy.view(), dx.view_mut()));
    if gpu.activation_dtype() == Dtype::Bf16 {
        let (x, mut y) = (buffer(large), stats(small));
        assert_shape_error("mixed types", gpu.avg_pool_forward(&d, x.view(), y.view_mut(), None));
    }
}

#[test]
fn wrong_views_are_errors() {
    on_devices!(Arithmetic::Fp32, wrong_resamples);
    on_devices!(Arithmetic::Bf16, wrong_resamples);
    on_devices!(Arithmetic::Fp32, wrong_norms);
}

/// A batch of two tensors with its learned and running parameters; all float32, as on every device.
struct Batch {
    dims: BatchNormDims,
    /// [N, pixels, C0 + C1].
    x: Vec<f64>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    running_mean: Vec<f32>,
    running_var: Vec<f32>,
}

impl Batch {
    fn new(n: u32, pixels: u32, [c0, c1]: [u32; 2]) -> Self {
        let dims = BatchNormDims { n, pixels, c0, c1 };
        let (fill, c) = (Fill::new(u64::from(n * 1000 + pixels)), dims.c());
        // Channels of different mean and spread.
        let offsets = fill.f64s(1, c);
        let values = fill.f64s(0, (n * pixels) as usize * c).into_iter().enumerate();
        let value = |(i, v): (usize, f64)| v * (1.0 + offsets[i % c].abs()) + 3.0 * offsets[i % c];
        Batch {
            x: to_f64(&to_f32(&values.map(value).collect::<Vec<f64>>())),
            gamma: fill.f32s(2, c),
            beta: fill.f32s(3, c),
            running_mean: fill.f32s(4, c),
            running_var: fill.f32s(5, c).iter().map(|v| v.abs() + 0.1).collect(),
            dims,
        }
    }

    fn truth(&self) -> norm_truth::Trained {
        let [gamma, beta, mean, var] =
            [&self.gamma, &self.beta, &self.running_mean, &self.running_var].map(|v| to_f64(v));
        norm_truth::train(&self.dims, &self.x, (&gamma, &beta), (&mean, &var))
    }

    /// (coefficients, running mean, running variance) of a device, views `lead` elements into their buffers.
    fn train<L: Launcher>(&self, gpu: &Gpu<L>, lead: usize) -> [Vec<f32>; 3] {
        let (n, pixels, c0) = (self.dims.n as usize, self.dims.pixels as usize, self.dims.c0 as usize);
        let (x0, x1) = conv_truth::split(&self.x, self.dims.c(), c0);
        let stats0 = Input::at(gpu, &to_f32(&stats(&x0, n, pixels, c0)), lead);
        let c1 = self.dims.c1 as usize;
        let stats1 = (c1 > 0).then(|| Input::at(gpu, &to_f32(&stats(&x1, n, pixels, c1)), lead));
        let [gamma, beta] = [&self.gamma, &self.beta].map(|v| Input::at(gpu, v, lead));
        let [mut mean, mut var] = [&self.running_mean, &self.running_var].map(|v| Guarded::filled(gpu, v, lead));
        let mut coefficients = Guarded::filled(gpu, &vec![f32::NAN; row::COUNT * self.dims.c()], lead);
        let running = RunningMut { mean: mean.view_mut(), var: var.view_mut() };
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        let stats1 = stats1.as_ref().map(Input::view);
        gpu.batch_norm_train(&self.dims, stats0.view(), stats1, params, running, coefficients.view_mut()).unwrap();
        [coefficients, mean, var].map(|g| g.read(gpu))
    }
}

/// Row by row; the shifts relative to what they are the difference of.
fn check_coefficients(name: &str, got: &[f32], want: &[f64], beta: &[f32]) {
    let got = to_f64(got);
    let of = |all, row| norm_truth::coefficient_row(all, row);
    let means = of(want, row::MEAN);
    for r in 0..row::COUNT {
        let scale = match r {
            row::MEAN => norm(means) + rms(means).max(1.0),
            row::SHIFT => {
                let products: Vec<f64> = means.iter().zip(of(want, row::SCALE)).map(|(m, s)| m * s).collect();
                norm(&products) + norm(&to_f64(beta))
            }
            _ => norm(of(want, r)),
        };
        assert_scaled(&format!("row {r} of {name}"), of(&got, r), of(want, r), scale, COEFFICIENTS);
    }
}

fn batches() -> Vec<Batch> {
    vec![
        Batch::new(1, 1, [3, 0]),
        Batch::new(2, 1, [5, 0]),
        Batch::new(1, 2, [1, 0]),
        Batch::new(2, 9, [17, 0]),
        Batch::new(3, 35, [8, 7]),
        Batch::new(5, 16, [33, 31]),
        Batch::new(2, 12, [3, 4]),
        Batch::new(67, 16, [128, 0]),
        Batch::new(2, 1024, [64, 64]),
    ]
}

fn coefficients<L: Launcher>(gpu: &Gpu<L>, batches: Vec<Batch>) {
    for batch in batches {
        let want = batch.truth();
        let host = [&batch.gamma, &batch.beta, &batch.running_mean, &batch.running_var];
        let [gamma, beta, mean, var] = host.map(|v| to_f64(v));
        let evaluated = norm_truth::eval(&gamma, &beta, &mean, &var);
        for lead in LEADS {
            let name = format!("{:?} at {lead}", batch.dims);
            let [coefficients, mean, var] = batch.train(gpu, lead);
            check_coefficients(&name, &coefficients, &want.coefficients, &batch.beta);
            assert_close(&format!("running mean of {name}"), &mean, &want.running_mean, COEFFICIENTS);
            assert_close(&format!("running variance of {name}"), &var, &want.running_var, COEFFICIENTS);
            twice(&name, || batch.train(gpu, lead).concat());

            let [gamma, beta, mean, var] = host.map(|v| Input::at(gpu, v, lead));
            let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
            let mut out = Guarded::filled(gpu, &vec![f32::NAN; row::COUNT * batch.dims.c()], lead);
            gpu.batch_norm_eval(&batch.dims, params, mean.view(), var.view(), out.view_mut()).unwrap();
            check_coefficients(&format!("{name}, evaluation"), &out.read(gpu), &evaluated, &batch.beta);
        }
    }
}

#[test]
fn coefficients_of_batch_norm() {
    on_devices!(Arithmetic::Fp32, |gpu| coefficients(gpu, batches()));
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
        let batch = Batch::new(n, hw[0] * hw[1], c);
        // One operand of all channels, as the references take them.
        let conv = ConvDims { n, h: hw[0], w: hw[1], c0: c[0] + c[1], c1: 0, r0: 0, r1: 0, k, side };
        let (fill, weights) = (Fill::new(u64::from(n * 100 + k)), conv.taps() * conv.c() * k as usize);
        let w = fill.f32s(20, weights).iter().map(|w| w / ((conv.taps() * conv.c()) as f32).sqrt()).collect();
        let before = [fill.f32s(22, weights), fill.f32s(23, conv.c()), fill.f32s(24, conv.c())];
        Block { batch, w, dy: fill.f32s(21, conv.pixels() * k as usize), conv, before }
    }

    /// (dw, dgamma, dbeta, ab) of a device, from D, B and the coefficients.
    fn backward<L: Launcher>(&self, gpu: &Gpu<L>, lead: usize, inputs: [&[f32]; 3]) -> [Vec<f32>; 4] {
        let [w, gamma, beta] = [&self.w, &self.batch.gamma, &self.batch.beta].map(|v| Input::at(gpu, v, lead));
        let inputs = inputs.map(|v| Input::at(gpu, v, lead));
        let [mut dw, mut dgamma, mut dbeta] = self.before.each_ref().map(|v| Guarded::filled(gpu, v, lead));
        let mut ab = Guarded::filled(gpu, &vec![f32::NAN; 2 * self.conv.c()], lead);
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        let [dw_hat, border_sums, coefficients] = inputs.each_ref().map(Input::view);
        let (taps, k) = (self.conv.taps(), self.conv.k as usize);
        let input = BackwardInput { w: w.view(), dw_hat, border_sums, coefficients, params, taps, k };
        let out =
            BackwardOutput { dw: dw.view_mut(), dgamma: dgamma.view_mut(), dbeta: dbeta.view_mut(), ab: ab.view_mut() };
        gpu.batch_norm_backward(&self.batch.dims, input, out).unwrap();
        [dw, dgamma, dbeta, ab].map(|g| g.read(gpu))
    }

    fn check(&self, name: &str, [dw, dgamma, dbeta, ab]: &[Vec<f32>; 4], want: &norm_truth::Gradients) {
        let of = [("dw", dw, &want.dw), ("dgamma", dgamma, &want.dgamma), ("dbeta", dbeta, &want.dbeta)];
        for ((what, got, want), before) in of.into_iter().zip(&self.before) {
            let before = to_f64(before);
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
        Block::new(2, [4, 4], [64, 32], 64, 3),
    ]
}

fn gradients<L: Launcher>(gpu: &Gpu<L>, blocks: Vec<Block>) {
    for block in blocks {
        let coefficients = block.batch.truth().coefficients;
        let [gamma, w, dy] = [&block.batch.gamma, &block.w, &block.dy].map(|v| to_f64(v));
        let want = norm_truth::backward(&block.conv, &block.batch.x, &coefficients, &gamma, &w, &dy);
        let of = |row| norm_truth::coefficient_row(&coefficients, row);
        let hat = Prologue { affine: Some((of(row::RSTD), of(row::XHAT_SHIFT))), silu: false };
        let sums = conv_truth::wgrad(&block.conv, Operand::one(&block.batch.x), hat, None, &dy);
        let inputs = [&sums.dw, &sums.border_sums, &coefficients].map(|v| to_f32(v));
        let inputs = inputs.each_ref().map(Vec::as_slice);
        for lead in LEADS {
            let name = format!("{:?} at {lead}", block.conv);
            block.check(&name, &block.backward(gpu, lead, inputs), &want);
            twice(&name, || block.backward(gpu, lead, inputs).concat());
        }
    }
}

#[test]
fn gradients_of_batch_norm() {
    on_devices!(Arithmetic::Fp32, |gpu| gradients(gpu, blocks()));
}

fn wrong_norms<L: Launcher>(gpu: &Gpu<L>) {
    let d = BatchNormDims { n: 2, pixels: 4, c0: 3, c1: 2 };
    let ones = |len: usize| Input::new(gpu, &vec![1.0; len]);
    let room = |len: usize| Guarded::from(gpu, &vec![1.0; len]);
    let train = |lengths: [usize; 7], second: bool| {
        let [stats0, stats1, gamma, beta] = [0, 1, 2, 3].map(|i| ones(lengths[i]));
        let [mut mean, mut var, mut out] = [4, 5, 6].map(|i| room(lengths[i]));
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        let running = RunningMut { mean: mean.view_mut(), var: var.view_mut() };
        gpu.batch_norm_train(&d, stats0.view(), second.then(|| stats1.view()), params, running, out.view_mut())
    };
    let lengths = [12, 8, 5, 5, 5, 5, 25];
    train(lengths, true).unwrap();
    assert_shape_error("second statistics missing", train(lengths, false));
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of training"), train(short, true));
    }
    let eval = |lengths: [usize; 5]| {
        let [gamma, beta, mean, var] = [0, 1, 2, 3].map(|i| ones(lengths[i]));
        let mut out = room(lengths[4]);
        let params = AffineParams { gamma: gamma.view(), beta: beta.view() };
        gpu.batch_norm_eval(&d, params, mean.view(), var.view(), out.view_mut())
    };
    let lengths = [5, 5, 5, 5, 25];
    eval(lengths).unwrap();
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of evaluation"), eval(short));
    }
    // T = 9, C = 5, K = 4: w, dw_hat, border sums, coefficients, gamma, beta; dw, dgamma, dbeta, ab.
    let backward = |lengths: [usize; 10]| {
        let inputs: Vec<_> = lengths[..6].iter().map(|&len| ones(len)).collect();
        let mut outputs: Vec<_> = lengths[6..].iter().map(|&len| room(len)).collect();
        let [w, dw_hat, border_sums, coefficients, gamma, beta] = [0, 1, 2, 3, 4, 5].map(|i| inputs[i].view());
        let params = AffineParams { gamma, beta };
        let input = BackwardInput { w, dw_hat, border_sums, coefficients, params, taps: 9, k: 4 };
        let mut views = outputs.iter_mut().map(Guarded::view_mut);
        let mut next = || views.next().unwrap();
        let out = BackwardOutput { dw: next(), dgamma: next(), dbeta: next(), ab: next() };
        gpu.batch_norm_backward(&d, input, out)
    };
    let lengths = [180, 180, 36, 25, 5, 5, 180, 5, 5, 10];
    backward(lengths).unwrap();
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of the backward"), backward(short));
    }
}

/// Under the simulator's checker: no races, no access beside a buffer, nothing read that was never written.
#[test]
fn kernels_pass_the_checker() {
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Bf16] {
        let sim = match Sim::checked() {
            Ok(sim) => sim,
            Err(why) => {
                ops_support::devices::say_skipped(why);
                return;
            }
        };
        let gpu = Gpu::new(sim, arithmetic);
        gpu.separate_buffers();
        // One tile and several, vectors and single elements, more channels than a block has.
        let sizes = [[2, 6, 10, 16], [1, 34, 36, 8], [2, 4, 2, 3], [1, 2, 2, 37], [1, 18, 18, 36]];
        let sizes = sizes.map(|[n, h, w, c]| ResampleDims { n, h, w, c });
        forwards(&gpu, &sizes);
        backwards(&gpu, &sizes);
        if arithmetic == Arithmetic::Fp32 {
            coefficients(&gpu, vec![Batch::new(3, 5, [8, 7]), Batch::new(19, 2, [17, 0])]);
            gradients(&gpu, vec![Block::new(2, [2, 3], [3, 0], 5, 3), Block::new(2, [2, 2], [5, 0], 64, 3)]);
        }
    }
}
