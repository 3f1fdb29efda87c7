//! Group norm by the CUDA kernels against the float64 reference: on the simulator always (where it was built), on a GPU where there is one.
//! Views begin at aligned and at odd elements, so that both ways of reading are taken.

mod ops_support;

use ddim_engine::device::gpu::{Arithmetic, Dtype, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::ops::conv::reference::stats;
use ddim_engine::ops::group_norm::{
    Dropout, GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients, reference as truth,
};
use ddim_engine::ops::noise::{NoiseKey, step_word};
use ddim_engine::rng::{Purpose, Stream};
use half::bf16;
use ops_support::conv_case::Placed;
use ops_support::{Fill, GUARD, assert_close, assert_scaled, assert_shape_error, devices, norm, to_f32, to_f64};

/// Relative 2-norm of y and dx. Measured: at most 2.1e-7 in fp32, 2.5e-3 in bf16, where one rounding is 1.7e-3 on average.
fn activations(arithmetic: Arithmetic) -> f64 {
    if arithmetic == Arithmetic::Bf16 { 4e-3 } else { 1e-6 }
}
/// Of coefficients. Measured: at most 3.8e-8.
const COEFFICIENTS: f64 = 1e-6;
/// Of the gradients of parameters, which are of activations as they were stored. Measured: at most 3.9e-7 in both; the quick exponential of bf16,
/// which the simulator does not have, errs by 1e-6.
fn parameters(arithmetic: Arithmetic) -> f64 {
    if arithmetic == Arithmetic::Bf16 { 2e-5 } else { 2e-6 }
}

const P: f32 = 0.3;
const LAYER: u32 = 5;
const STEP: u64 = 11;
const KEY: NoiseKey = NoiseKey { seed: 0x1234_5678_9abc, purpose: Purpose::Dropout, first_image: 3 };

#[derive(Clone, Copy, Debug)]
struct Spec {
    d: GroupNormDims,
    modulation: bool,
    dropout: bool,
    /// Gradients of other uses, and the sums over pixels.
    other: bool,
    /// Added to x: a mean that is large beside the spread.
    shift: f32,
}

fn spec(n: u32, pixels: u32, [c0, c1]: [u32; 2], groups: u32) -> Spec {
    let d = GroupNormDims { eps: 1e-5, n, pixels, c0, c1, groups, silu: 0 };
    Spec { d, modulation: false, dropout: false, other: false, shift: 0.0 }
}

/// Operands as a device keeps them, with the truth that follows from them.
struct Case {
    spec: Spec,
    x: [Vec<f32>; 2],
    stats: [Vec<f32>; 2],
    gamma: Vec<f32>,
    beta: Vec<f32>,
    modulation: Vec<f32>,
    g: Vec<f32>,
    other: [Vec<f32>; 3],
    scale: Vec<f64>,
    shift: Vec<f64>,
    y: Vec<f64>,
    gradients: truth::Gradients,
}

fn concat(d: &GroupNormDims, x: &[Vec<f32>; 2]) -> Vec<f64> {
    let rows = |i: usize, c: u32| x[i].chunks(c.max(1) as usize);
    let both = rows(0, d.c0).enumerate().flat_map(|(p, row)| {
        let second = if d.c1 > 0 { &x[1][p * d.c1 as usize..][..d.c1 as usize] } else { &[] };
        [row, second].concat()
    });
    to_f64(&both.collect::<Vec<f32>>())
}

/// The part of a concatenation that belongs to one input.
fn split(d: &GroupNormDims, all: &[f64], second: bool) -> Vec<f64> {
    let (c0, c) = (d.c0 as usize, d.c());
    all.chunks_exact(c).flat_map(|row| if second { &row[c0..] } else { &row[..c0] }).copied().collect()
}

impl Case {
    fn new(spec: Spec, narrow: bool) -> Self {
        let d = spec.d;
        let fill = Fill::new(u64::from(d.c0 * 100 + d.pixels));
        let drawn = |index: u64, len: usize, shift: f32| {
            let mut values = fill.f32s(index, len);
            for v in &mut values {
                *v += shift;
                if narrow {
                    *v = bf16::from_f32(*v).to_f32();
                }
            }
            values
        };
        let x = [drawn(0, d.len0(), spec.shift), drawn(1, d.len1(), spec.shift)];
        let of = |i: usize, c: u32| match c {
            0 => vec![],
            c => to_f32(&stats(&to_f64(&x[i]), d.n as usize, d.pixels as usize, c as usize)),
        };
        let stats = [of(0, d.c0), of(1, d.c1)];
        let (gamma, beta) = (fill.f32s(2, d.c()), fill.f32s(3, d.c()));
        let modulation = fill.f32s(4, 2 * d.affine_len());
        let g = drawn(5, d.len0() + d.len1(), 0.0);
        let other = [drawn(6, d.len0(), 0.0), drawn(7, d.len0(), 0.0), drawn(8, d.len1(), 0.0)];

        let (x64, gamma64, beta64, modulation64) = (concat(&d, &x), to_f64(&gamma), to_f64(&beta), to_f64(&modulation));
        let mut mask = vec![1.0; x64.len()];
        for (i, mask) in mask.chunks_exact_mut(d.pixels as usize * d.c()).enumerate() {
            let mut uniform = vec![0.0; mask.len()];
            Stream::of_layer(KEY.seed, KEY.purpose, LAYER, STEP, KEY.first_image + i as u64).fill_uniform(&mut uniform);
            let kept = f64::from(1.0 / (1.0 - P));
            mask.iter_mut().zip(uniform).for_each(|(m, u)| *m = if u >= P { kept } else { 0.0 });
        }
        let input = truth::Input {
            x: &x64,
            gamma: &gamma64,
            beta: &beta64,
            modulation: spec.modulation.then_some(&modulation64[..]),
            mask: spec.dropout.then_some(&mask[..]),
        };
        let (scale, shift) = truth::coefficients(&d, &input);
        let y = truth::forward(&d, &input);
        let gradients = truth::backward(&d, &input, &to_f64(&g));
        Case { spec, x, stats, gamma, beta, modulation, g, other, scale, shift, y, gradients }
    }

    fn check<L: Launcher>(&self, gpu: &Gpu<L>, name: &str, lead: usize) -> Vec<u32> {
        let Spec { d, modulation, dropout, other, .. } = self.spec;
        let arithmetic = gpu.arithmetic();
        let plain = |values: &[f32]| Placed::input(gpu, values, lead, false);
        let activation = |values: &[f32]| Placed::input(gpu, values, lead, true);
        let (gamma, beta, of_step) = (plain(&self.gamma), plain(&self.beta), plain(&[step_word(STEP)]));
        let modulated = modulation.then(|| plain(&self.modulation));
        let stats = self.stats.each_ref().map(|stats| plain(stats));
        let x = self.x.each_ref().map(|x| activation(x));
        let params =
            NormParams { gamma: gamma.view(), beta: beta.view(), modulation: modulated.as_ref().map(Placed::view) };

        let mut coefficients = Placed::output(gpu, d.coefficients_len(), lead, false);
        gpu.group_norm_coefficients(
            &d,
            stats[0].view(),
            (d.c1 > 0).then(|| stats[1].view()),
            params,
            coefficients.view_mut(),
        )
        .unwrap();
        let got_coefficients = coefficients.read(gpu);
        let (scale, rest) = got_coefficients.split_at(d.affine_len());
        let shift = &rest[..d.affine_len()];
        // A large mean times the scale: the shift's size.
        let size = norm(&self.shift).max(norm(&self.scale) * f64::from(self.spec.shift.abs()));
        let loose = if self.spec.shift == 0.0 { 1.0 } else { 100.0 };
        assert_close(&format!("scale of {name}"), scale, &self.scale, COEFFICIENTS * loose);
        assert_scaled(&format!("shift of {name}"), &to_f64(shift), &self.shift, size, COEFFICIENTS * loose);

        let input =
            NormInput { x0: x[0].view(), x1: (d.c1 > 0).then(|| x[1].view()), coefficients: coefficients.view() };
        let drop = dropout.then(|| Dropout { p: P, key: KEY, layer: LAYER, step: of_step.view() });
        let mut y = Placed::output(gpu, d.len0() + d.len1(), lead, true);
        gpu.group_norm_apply(&d, input, drop, y.view_mut()).unwrap();
        let got_y = y.read(gpu);
        let loose = loose * f64::from(1.0 + self.spec.shift.abs()).sqrt();
        assert_close(&format!("y of {name}"), &got_y, &self.y, activations(arithmetic) * loose);

        let g = activation(&self.g);
        let others = self.other.each_ref().map(|values| activation(values));
        let [to0_first, to0_second, to1] = others.each_ref().map(|o| other.then(|| o.view()));
        let to = OtherGradients { to0: [to0_first, to0_second], to1: to1.filter(|_| d.c1 > 0) };
        let before = [Fill::new(1).f32s(0, d.c()), Fill::new(1).f32s(1, d.c())];
        let [mut dgamma, mut dbeta] = before.each_ref().map(|values| ops_support::Guarded::filled(gpu, values, lead));
        let mut dx0 = Placed::output(gpu, d.len0(), lead, true);
        let mut dx1 = (d.c1 > 0).then(|| Placed::output(gpu, d.len1(), lead, true));
        let mut dmodulation = modulation.then(|| Placed::output(gpu, 2 * d.affine_len(), lead, false));
        let mut sums = other.then(|| Placed::output(gpu, d.affine_len(), lead, false));
        let out = NormGradients {
            dx0: dx0.view_mut(),
            dx1: dx1.as_mut().map(Placed::view_mut),
            dgamma: dgamma.view_mut(),
            dbeta: dbeta.view_mut(),
            dmodulation: dmodulation.as_mut().map(Placed::view_mut),
            sums: sums.as_mut().map(Placed::view_mut),
        };
        gpu.group_norm_backward(&d, input, params, drop, g.view(), to, out).unwrap();

        let mut all = [got_coefficients, got_y].concat();
        let want = &self.gradients;
        for (second, got) in [(false, Some(dx0.read(gpu))), (true, dx1.map(|dx1| dx1.read(gpu)))] {
            let Some(got) = got else { continue };
            let mut dx = split(&d, &want.dx, second);
            let added = if second { &self.other[2..] } else { &self.other[..2] };
            for other in added.iter().filter(|_| other) {
                dx.iter_mut().zip(other).for_each(|(dx, o)| *dx += f64::from(*o));
            }
            // Groups of one pixel and channel have no gradient: the size of what cancelled.
            let size = norm(&dx).max(norm(&self.scale) * 0.1);
            let which = format!("dx{} of {name}", u32::from(second));
            assert_scaled(&which, &to_f64(&got), &dx, size, activations(arithmetic) * loose);
            all.extend(got);
        }
        for (which, got, before, want) in [
            ("dgamma", dgamma.read(gpu), &before[0], &want.dgamma),
            ("dbeta", dbeta.read(gpu), &before[1], &want.dbeta),
        ] {
            let want: Vec<f64> = want.iter().zip(before).map(|(w, b)| w + f64::from(*b)).collect();
            assert_close(&format!("{which} of {name}"), &got, &want, parameters(arithmetic) * loose);
            all.extend(got);
        }
        if let Some(dmodulation) = dmodulation {
            let got = dmodulation.read(gpu);
            assert_close(&format!("dmodulation of {name}"), &got, &want.dmodulation, parameters(arithmetic) * loose);
            all.extend(got);
        }
        if let Some(sums) = sums {
            let got = sums.read(gpu);
            let size = norm(&want.dx).max(norm(&self.scale) * 0.1) * f64::from(d.pixels).sqrt();
            assert_scaled(&format!("sums of {name}"), &to_f64(&got), &want.sums, size, parameters(arithmetic) * loose);
            all.extend(got);
        }
        all.into_iter().map(f32::to_bits).collect()
    }
}

fn run(spec: Spec) {
    let cases = [Case::new(spec, false), Case::new(spec, true)];
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Bf16] {
        let case = &cases[usize::from(arithmetic == Arithmetic::Bf16)];
        let name = format!("{spec:?} in {arithmetic}");
        devices::run_or_skip("sim", devices::no_sim(), || views(&devices::sim(arithmetic), case, &name));
        devices::run_or_skip("cuda", devices::no_cuda(), || views(&devices::cuda(arithmetic), case, &name));
    }
}

fn views<L: Launcher>(gpu: &Gpu<L>, case: &Case, name: &str) {
    let first = case.check(gpu, name, GUARD);
    assert!(first == case.check(gpu, name, GUARD), "{name}: two runs differ");
    case.check(gpu, &format!("{name}, views anywhere"), GUARD + 1);
}

/// Groups of one channel, of all, across the border of two inputs; pixels on both sides of a tile.
fn shapes() -> Vec<Spec> {
    [
        (2, 1, [4, 0], 2),
        (1, 7, [3, 0], 1),
        (3, 16, [8, 0], 8),
        (2, 64, [16, 0], 4),
        (2, 35, [5, 7], 3),
        (2, 100, [8, 16], 6),
        (1, 256, [40, 8], 3),
        (2, 17, [33, 0], 11),
        (1, 130, [64, 32], 32),
        (1, 9, [272, 48], 32),
        (5, 64, [1, 2], 3),
    ]
    .into_iter()
    .map(|(n, pixels, c, groups)| spec(n, pixels, c, groups))
    .collect()
}

fn with_silu(spec: Spec) -> Spec {
    Spec { d: GroupNormDims { silu: 1, ..spec.d }, ..spec }
}

#[test]
fn every_shape() {
    for spec in shapes() {
        run(spec);
        run(with_silu(Spec { other: true, ..spec }));
    }
}

#[test]
fn modulated_and_dropped() {
    for spec in shapes().into_iter().filter(|spec| spec.d.pixels > 1) {
        run(Spec { modulation: true, other: true, ..spec });
        run(with_silu(Spec { dropout: true, ..spec }));
        run(with_silu(Spec { modulation: true, dropout: true, other: true, ..spec }));
    }
}

/// Mean 100, deviation 1.
#[test]
fn a_large_mean() {
    devices::run_or_skip("sim", devices::no_sim(), || {
        let spec = Spec { shift: 100.0, ..with_silu(spec(2, 200, [16, 8], 4)) };
        let gpu = devices::sim(Arithmetic::Fp32);
        Case::new(spec, false).check(&gpu, "a large mean", GUARD);
    });
}

/// The simulator's checker for races, bounds and memory that was never written finds nothing.
#[test]
fn under_the_checker() {
    let missing = Sim::checked().err().map(|error| error.to_string());
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Bf16] {
        for base in [spec(2, 70, [8, 16], 6), spec(1, 300, [5, 0], 5), spec(2, 9, [40, 0], 1)] {
            for spec in [base, with_silu(Spec { modulation: true, dropout: true, other: true, ..base })] {
                devices::run_or_skip("sim-checker", missing.clone(), || {
                    let gpu = Gpu::new(Sim::checked().unwrap(), arithmetic);
                    gpu.poison_new_buffers();
                    gpu.separate_buffers();
                    let case = Case::new(spec, arithmetic == Arithmetic::Bf16);
                    case.check(&gpu, &format!("{spec:?} under the checker in {arithmetic}"), GUARD);
                });
            }
        }
    }
}

#[test]
fn wrong_views_are_errors() {
    devices::run_or_skip("sim", devices::no_sim(), || {
        let gpu = devices::sim(Arithmetic::Bf16);
        assert_eq!(gpu.activation_dtype(), Dtype::Bf16);
        let d = spec(2, 4, [4, 2], 3).d;
        let plain = |len: usize| Placed::output(&gpu, len, GUARD, false);
        let activation = |len: usize| Placed::output(&gpu, len, GUARD, true);
        let coefficients = |d: &GroupNormDims, stats0: usize, stats1: usize, c: usize, out: usize| {
            let (stats0, stats1, gamma, beta) = (plain(stats0), plain(stats1), plain(c), plain(c));
            let params = NormParams { gamma: gamma.view(), beta: beta.view(), modulation: None };
            gpu.group_norm_coefficients(d, stats0.view(), Some(stats1.view()), params, plain(out).view_mut())
        };
        coefficients(&d, 16, 8, 6, 36).unwrap();
        for (stats0, stats1, c, out) in [(15, 8, 6, 36), (16, 9, 6, 36), (16, 8, 5, 36), (16, 8, 6, 35)] {
            assert_shape_error("a view of the coefficients", coefficients(&d, stats0, stats1, c, out));
        }
        assert_shape_error("groups", coefficients(&GroupNormDims { groups: 4, ..d }, 16, 8, 6, 40));
        let apply = |x0: Placed<Gpu<Sim>>, x1: usize, p: f32, y: usize| {
            let (x1, coefficients, step) = (activation(x1), plain(36), plain(1));
            let input = NormInput { x0: x0.view(), x1: Some(x1.view()), coefficients: coefficients.view() };
            let drop = Dropout { p, key: KEY, layer: 0, step: step.view() };
            gpu.group_norm_apply(&d, input, Some(drop), activation(y).view_mut())
        };
        apply(activation(32), 16, 0.0, 48).unwrap();
        assert_shape_error("x0", apply(activation(31), 16, 0.0, 48));
        assert_shape_error("x1", apply(activation(32), 17, 0.0, 48));
        assert_shape_error("y", apply(activation(32), 16, 0.0, 47));
        assert_shape_error("p", apply(activation(32), 16, 1.0, 48));
        assert_shape_error("float32 where activations are bfloat16", apply(plain(32), 16, 0.0, 48));
    });
}
