//! Updates of samplers, dynamic thresholds and the mixes around them on every backend against the float64 references.

mod ops_support;

use ddim_engine::ops::noise::{NoiseKey, reference as noise_truth, step_word};
use ddim_engine::ops::sampler_step::reference::{self as truth, Operands};
use ddim_engine::ops::sampler_step::{Coefficients, SamplerStep, StepDims, StepNoise, StepState, Threshold};
use ddim_engine::rng::Purpose;
use ops_support::{Cpus, Fill, Guarded, Input, assert_scaled, assert_shape_error, norm, to_f64};

/// Relative 2-norm, relative to the terms that are added. Measured: at most 1.4e-7, with noise, which is approximated in float32.
const TOLERANCE: f64 = 3e-7;

const SIZES: [(usize, usize); 6] = [(1, 1), (3, 16), (5, 17), (2, 1027), (2, 3 * 32 * 32), (33, 48)];
const SEED: u64 = 0x1234_5678_9ABC;
const CALL: u32 = 7;
const FIRST: u64 = 40;

fn thresholds() -> [Threshold; 6] {
    let dynamic = |quantile, most| Threshold::Dynamic { quantile, most };
    [
        Threshold::None,
        Threshold::Clamp(0.8),
        dynamic(0.9, 50.0),
        dynamic(0.995, 1.5),
        dynamic(0.0, 9.0),
        dynamic(1.0, 9.0),
    ]
}

/// DDIM's shape, a stochastic one, both halves of Heun's, one with everything.
fn coefficients() -> [Coefficients; 5] {
    let plain = Coefficients { cx: 1.5, cp: -0.7, a: 0.4, c: -0.3, d: 0.8, ..Coefficients::default() };
    [
        plain,
        Coefficients { f: 0.25, ..plain },
        Coefficients { c: 0.0, keep: true, ..plain },
        Coefficients { b: -0.6, e: 0.35, ..plain },
        Coefficients { b: 0.9, e: -0.2, f: 1.1, keep: true, ..plain },
    ]
}

struct Case {
    dims: StepDims,
    pred: Vec<f32>,
    x: Vec<f32>,
    kept: Vec<f32>,
    last: Vec<f32>,
}

impl Case {
    fn new(n: usize, per_image: usize) -> Self {
        let fill = Fill::new((n * 1000 + per_image) as u64);
        let [pred, x, kept, last] = [0, 1, 2, 3].map(|i| fill.f32s(i, n * per_image));
        Case { dims: StepDims { n: n as u32, per_image: per_image as u32 }, pred, x, kept, last }
    }

    /// (new x, predicted pictures, what was kept). Operands without a coefficient hold NaN.
    fn run<B: SamplerStep>(&self, backend: &B, c: &Coefficients, threshold: Threshold) -> [Vec<f32>; 3] {
        let unread = |used: bool, values: &[f32]| if used { values.to_vec() } else { vec![f32::NAN; values.len()] };
        let (pred, first) = (Input::new(backend, &self.pred), Input::new(backend, &[step_word(FIRST)]));
        let mut x = Guarded::from(backend, &self.x);
        let mut x0 = Guarded::from(backend, &unread(c.e != 0.0, &self.last));
        let mut kept = Guarded::from(backend, &unread(c.b != 0.0, &self.kept));
        let noise = (c.f != 0.0).then(|| StepNoise { seed: SEED, call: CALL, first_image: first.view() });
        let needs = c.b != 0.0 || c.keep;
        let state =
            StepState { x: x.view_mut(), x0: x0.view_mut(), kept: if needs { Some(kept.view_mut()) } else { None } };
        backend.sampler_step(&self.dims, c, threshold, pred.view(), noise, state).unwrap();
        [x, x0, kept].map(|v| v.read(backend))
    }

    fn truth(&self, c: &Coefficients, threshold: Threshold) -> (Vec<f64>, Vec<f64>, f64) {
        let [pred, x, kept, last_x0] = [&self.pred, &self.x, &self.kept, &self.last].map(|v| to_f64(v));
        let key = NoiseKey { seed: SEED, purpose: Purpose::SampleStep, first_image: FIRST };
        let (n, per_image) = (self.dims.n as usize, self.dims.per_image as usize);
        let noise = noise_truth::normal(key, u64::from(CALL), per_image, n);
        let operands = Operands { pred: &pred, x: &x, kept: &kept, last_x0: &last_x0, noise: &noise };
        let (new_x, x0) = truth::sampler_step(per_image, c, threshold, operands);
        let scale = norm(&x) + norm(&pred) + norm(&new_x);
        (new_x, x0, scale)
    }
}

#[test]
fn updates() {
    let cpus = Cpus::new();
    for (n, per_image) in SIZES {
        let case = Case::new(n, per_image);
        for (i, threshold) in thresholds().into_iter().enumerate() {
            for (j, c) in coefficients().into_iter().enumerate() {
                if i > 1 && j % 2 == 1 {
                    continue; // thresholds and terms do not meet but in the predicted picture
                }
                let (want_x, want_x0, scale) = case.truth(&c, threshold);
                check_all!(cpus, &format!("{n} images of {per_image}, {threshold:?}, {c:?}"), |backend, name| {
                    let [x, x0, kept] = case.run(backend, &c, threshold);
                    assert_scaled(&format!("x of {name}"), &to_f64(&x), &want_x, scale, TOLERANCE);
                    assert_scaled(&format!("x0 of {name}"), &to_f64(&x0), &want_x0, scale, TOLERANCE);
                    if c.keep {
                        assert_eq!(kept, case.x, "{name}: what is kept");
                    }
                    [x, x0].concat()
                });
            }
        }
    }
}

/// Many equal values, infinities' neighbours, zeros: ranks are counted, not guessed.
#[test]
fn quantiles_of_ties() {
    let cpus = Cpus::new();
    let values: Vec<f32> =
        (0..600).map(|i| [3.0, -3.0, 0.0, 5.0, -0.0, 2e38][[0, 1, 0, 2, 3, 4, 1, 5][i % 8]]).collect();
    let c = Coefficients { cx: 1.0, d: 1.0, ..Coefficients::default() };
    for per_image in [1, 7, 8, 100, 600] {
        let n = 600 / per_image;
        let x = values[..n * per_image].to_vec();
        let (pred, kept) = (vec![0.5; x.len()], vec![]);
        let dims = StepDims { n: n as u32, per_image: per_image as u32 };
        let case = Case { dims, pred, x, kept, last: vec![0.0; n * per_image] };
        for quantile in [0.0, 0.25, 0.626, 0.75, 0.9999] {
            let threshold = Threshold::Dynamic { quantile, most: 1e30 };
            let want: Vec<f64> =
                to_f64(&case.x).chunks(per_image).flat_map(|image| truth::limited(image, threshold)).collect();
            check_all!(cpus, &format!("quantile {quantile} of {per_image}"), |backend, name| {
                let [_, x0, _] = case.run(backend, &c, threshold);
                assert_scaled(name, &to_f64(&x0), &want, norm(&want), 2e-6);
                x0
            });
        }
    }
}

/// What is not a number stays so behind every threshold: a broken model must show.
#[test]
fn not_a_number_is_not_hidden() {
    let cpus = Cpus::new();
    let mut case = Case::new(1, 8);
    case.pred[3] = f32::NAN;
    for threshold in [Threshold::None, Threshold::Clamp(1.0), Threshold::Dynamic { quantile: 0.5, most: 4.0 }] {
        check_all!(cpus, &format!("{threshold:?}"), |backend, name| {
            let [x, x0, _] = case.run(backend, &coefficients()[0], threshold);
            assert!(x[3].is_nan() && x0[3].is_nan() && x[2].is_finite(), "{name}: {x:?} {x0:?}");
            vec![x[2], x0[2]]
        });
    }
}

#[test]
fn mixes() {
    let cpus = Cpus::new();
    for (n, per_image) in SIZES {
        let len = n * per_image;
        let fill = Fill::new(len as u64);
        let [x, y, noise, mask] = [0, 1, 2, 3].map(|i| fill.f32s(i, len));
        let mask: Vec<f32> = mask.iter().map(|m| m.clamp(0.0, 1.0)).collect();
        let [x64, y64, noise64, mask64] = [&x, &y, &noise, &mask].map(|v| to_f64(v));
        let scale = norm(&x64) + norm(&y64) + norm(&noise64);
        let both: Vec<f64> = x64.iter().zip(&y64).map(|(x, y)| -0.5 * x + 1.5 * y).collect();
        let one: Vec<f64> = x64.iter().map(|x| -0.5 * x).collect();
        let blended = truth::blend([0.8f32, 0.6].map(f64::from), &mask64, &y64, &noise64, &x64);
        check_all!(cpus, &format!("mixes of {len}"), |backend, name| {
            let [x_in, y_in, noise_in, mask_in] = [&x, &y, &noise, &mask].map(|v| Input::new(backend, v));
            let mut out = Guarded::output(backend, len);
            backend.combine(-0.5, x_in.view(), 1.5, Some(y_in.view()), out.view_mut()).unwrap();
            assert_scaled(&format!("both of {name}"), &to_f64(&out.read(backend)), &both, scale, TOLERANCE);
            backend.combine(-0.5, x_in.view(), 1.5, None, out.view_mut()).unwrap();
            assert_scaled(&format!("one of {name}"), &to_f64(&out.read(backend)), &one, scale, TOLERANCE);
            let mut mixed = Guarded::from(backend, &x);
            let (mask_view, known) = (mask_in.view(), y_in.view());
            backend.blend([0.8, 0.6], mask_view, known, noise_in.view(), mixed.view_mut()).unwrap();
            assert_scaled(&format!("blend of {name}"), &to_f64(&mixed.read(backend)), &blended, scale, TOLERANCE);
            let mut last = Guarded::from(backend, &x);
            backend.blend([1.0, 0.0], mask_in.view(), y_in.view(), noise_in.view(), last.view_mut()).unwrap();
            let last = last.read(backend);
            for i in 0..len {
                assert!(mask[i] != 0.0 || last[i] == y[i], "{name}: known {i}");
                assert!(mask[i] != 1.0 || last[i] == x[i], "{name}: unknown {i}");
            }
            [out.read(backend), mixed.read(backend), last].concat()
        });
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let cpus = Cpus::new();
    check_views_refused(cpus.best());
    if ops_support::devices::no_sim().is_none() {
        check_views_refused(&ops_support::devices::sim(ddim_engine::device::gpu::Arithmetic::Fp32));
    }
}

fn check_views_refused<B: SamplerStep>(backend: &B) {
    let all = coefficients()[4];
    let step = |lengths: [usize; 5], c: &Coefficients, threshold: Threshold, with: [bool; 2]| {
        let [pred, first] = [0, 4].map(|i| Input::new(backend, &vec![0.5; lengths[i]]));
        let [mut x, mut x0, mut kept] = [1, 2, 3].map(|i| Guarded::from(backend, &vec![0.5; lengths[i]]));
        let noise = with[0].then(|| StepNoise { seed: 0, call: 0, first_image: first.view() });
        let kept = if with[1] { Some(kept.view_mut()) } else { None };
        let state = StepState { x: x.view_mut(), x0: x0.view_mut(), kept };
        backend.sampler_step(&StepDims { n: 2, per_image: 6 }, c, threshold, pred.view(), noise, state)
    };
    let fits = [12, 12, 12, 12, 1];
    step(fits, &all, Threshold::None, [true, true]).unwrap();
    for i in 0..5 {
        let mut short = fits;
        short[i] -= 1;
        assert_shape_error(&format!("view {i}"), step(short, &all, Threshold::None, [true, true]));
    }
    assert_shape_error("no key", step(fits, &all, Threshold::None, [false, true]));
    assert_shape_error("nothing kept", step(fits, &all, Threshold::None, [true, false]));
    for bad in [Threshold::Clamp(0.0), Threshold::Dynamic { quantile: 1.1, most: 1.0 }, Threshold::Clamp(f32::NAN)] {
        assert_shape_error(&format!("{bad:?}"), step(fits, &all, bad, [true, true]));
    }
    let mix = |lengths: [usize; 4], blend: bool| {
        let [a, b, c] = [0, 1, 2].map(|i| Input::new(backend, &vec![0.5; lengths[i]]));
        let mut out = Guarded::from(backend, &vec![0.5; lengths[3]]);
        match blend {
            true => backend.blend([0.8, 0.6], a.view(), b.view(), c.view(), out.view_mut()),
            false => backend.combine(1.0, a.view(), 1.0, Some(b.view()), out.view_mut()),
        }
    };
    mix([12; 4], true).unwrap();
    for i in 0..3 {
        let mut short = [12; 4];
        short[i] -= 1;
        assert_shape_error(&format!("blend {i}"), mix(short, true));
        if i < 2 {
            assert_shape_error(&format!("combine {i}"), mix(short, false));
        }
    }
}
