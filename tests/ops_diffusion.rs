//! Schedules, losses, the split of a prediction and the DDIM update on every backend against the float64 references.

mod ops_support;

use ddim_engine::config::{LossKind, Predict};
use ddim_engine::ops::ddim::reference as ddim_truth;
use ddim_engine::ops::ddim::{DdimDims, DdimStep};
use ddim_engine::ops::loss::reference as loss_truth;
use ddim_engine::ops::loss::{Loss, LossDims, LossInput, predict_code};
use ddim_engine::ops::schedule::reference as schedule_truth;
use ddim_engine::ops::schedule::{Schedule, ScheduleDims, ScheduleOutput};
use ops_support::{
    Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, max_error, norm, to_f32, to_f64,
};
use proptest::prelude::*;

/// Largest |difference| of rates and embeddings, all at most 1: rounding to f32 is 3e-8, and that is what was
/// measured.
const SCHEDULE: f64 = 1e-7;
/// Relative error of the loss and the metrics. Measured: at most 1.1e-7.
const LOSS: f64 = 3e-7;
/// Relative 2-norm of the loss's gradient, of predictions and of updates, relative to the terms that cancel.
/// Measured: at most 5.4e-8.
const ELEMENTS: f64 = 2e-7;

const PREDICTIONS: [Predict; 3] = [Predict::Noise, Predict::Image, Predict::Velocity];
const LOSSES: [LossKind; 3] = [LossKind::Mae, LossKind::Mse, LossKind::Huber];
const SIZES: [(usize, usize); 7] = [(1, 1), (2, 3), (3, 16), (5, 17), (2, 1000), (4, 3 * 64 * 64), (33, 48)];

fn run_schedule<B: Schedule>(backend: &B, dims: &ScheduleDims, times: &[f32]) -> [Vec<f32>; 3] {
    let (n, e) = (dims.n as usize, dims.e as usize);
    let times = Input::new(backend, times);
    let mut rates = Guarded::output(backend, 2 * n);
    let mut embedding = Guarded::output(backend, n * e);
    let mut stats = Guarded::output(backend, n * e * 2);
    let out = ScheduleOutput { rates: rates.view_mut(), embedding: embedding.view_mut(), stats: stats.view_mut() };
    backend.schedule(dims, times.view(), out).unwrap();
    [rates.read(backend), embedding.read(backend), stats.read(backend)]
}

#[test]
fn schedules_and_embedding() {
    let cpus = Cpus::new();
    let mut times = vec![0.0, 1.0, 0.5, 0.25, 1.0 / 3.0, 0.999, 0.001, f32::EPSILON, 1.0 - f32::EPSILON];
    times.extend(Fill::new(0).f32s(0, 56).iter().map(|z| z.abs().fract()));
    for (linear, embed_signal, single) in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)]
    {
        for (n, e) in [(times.len(), 32), (1, 2), (2, 4), (3, 6), (5, 34), (7, 64)] {
            for (min_signal, max_signal) in [(0.02, 0.95), (0.0, 1.0), (0.3, 0.4)] {
                let dims =
                    ScheduleDims { min_signal, max_signal, n: n as u32, e, linear, embed_signal, single, reserved: 0 };
                let times = &times[..n];
                let (want_rates, want_embedding) = schedule_truth::schedule(&dims, &to_f64(times));
                check_all!(cpus, &format!("{dims:?}"), |cpu, name| {
                    let [rates, embedding, stats] = run_schedule(cpu, &dims, times);
                    for (what, got, want) in [("rate", &rates, &want_rates), ("embedding", &embedding, &want_embedding)]
                    {
                        let (worst, at) = max_error(&to_f64(got), want);
                        assert_scaled(&format!("{what} {at} of {name}"), &[worst], &[0.0], 1.0, SCHEDULE);
                    }
                    let means: Vec<f32> = stats.iter().step_by(2).copied().collect();
                    assert_eq!(means, embedding, "{name}: the mean of a constant picture");
                    assert!(stats.iter().skip(1).step_by(2).all(|&m2| m2 == 0.0), "{name}: deviation of a constant");
                    [rates, embedding, stats].concat()
                });
            }
        }
    }
}

/// The float32 constants of the network against f_i = 1000^(i / (e/2 - 1)).
#[test]
fn angular_speeds_are_geometric() {
    for half in [1, 2, 3, 16, 17, 32] {
        for (i, speed) in schedule_truth::angular_speeds(half).into_iter().enumerate() {
            let exact = std::f64::consts::TAU * 1000f64.powf(i as f64 / (half.max(2) - 1) as f64);
            assert_scaled(&format!("speed {i} of {half}"), &[speed], &[exact], exact, 1e-6); // measured: 3.1e-7
        }
    }
}

/// Ends of both schedules, as the seed has them.
#[test]
fn known_rates() {
    let rates = |linear, t| {
        let dims = ScheduleDims {
            min_signal: 0.02,
            max_signal: 0.95,
            n: 1,
            e: 2,
            linear,
            embed_signal: 0,
            single: 0,
            reserved: 0,
        };
        schedule_truth::rates(&dims, t)
    };
    assert!((rates(0, 0.0).0 - 0.95).abs() < 1e-15 && (rates(0, 1.0).0 - 0.02).abs() < 1e-15);
    assert_eq!(rates(1, 0.0).0, 0.95f64.sqrt()); // alpha-bar itself is clipped
    assert_eq!(rates(1, 1.0).0, 0.02f64.sqrt());
    assert_eq!(schedule_truth::alpha_bar(0), 1.0 - 1e-4);
    // torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000)) at its end: the well-known 4.0358e-5 of DDPM.
    assert!((schedule_truth::alpha_bar(999) - 4.035_8e-5).abs() < 1e-9);
}

/// A batch with plausible rates.
struct Batch {
    pred: Vec<f32>,
    noisy: Vec<f32>,
    images: Vec<f32>,
    noise: Vec<f32>,
    rates: Vec<f32>,
}

impl Batch {
    fn new(n: usize, per_image: usize) -> Self {
        let fill = Fill::new((n * 100_000 + per_image) as u64);
        let angles = fill.f32s(4, n).into_iter().map(|z| 0.3 + 1.2 * z.abs().fract());
        Batch {
            pred: fill.f32s(0, n * per_image),
            noisy: fill.f32s(1, n * per_image),
            images: fill.f32s(2, n * per_image),
            noise: fill.f32s(3, n * per_image),
            rates: angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect(),
        }
    }

    fn truth(&self, dims: &LossDims) -> (ddim_engine::ops::loss::LossValues, Vec<f64>) {
        let [pred, noisy, images, noise, rates] =
            [&self.pred, &self.noisy, &self.images, &self.noise, &self.rates].map(|v| to_f64(v));
        let (pred, noisy, images, noise, rates) = (&pred, &noisy, &images, &noise, &rates);
        loss_truth::loss(dims, loss_truth::LossInput { pred, noisy, images, noise, rates, weights: None })
    }

    /// ([loss, noise loss, image loss], dp).
    fn run<B: Loss>(&self, backend: &B, dims: &LossDims, with_gradient: bool) -> (Vec<f32>, Vec<f32>) {
        let [pred, noisy, images, noise, rates] =
            [&self.pred, &self.noisy, &self.images, &self.noise, &self.rates].map(|v| Input::new(backend, v));
        let mut dp = with_gradient.then(|| Guarded::output(backend, self.pred.len()));
        let mut out = Guarded::output(backend, 3);
        let input = LossInput {
            pred: pred.view(),
            noisy: noisy.view(),
            images: images.view(),
            noise: noise.view(),
            rates: rates.view(),
            weights: None,
        };
        backend.loss(dims, input, dp.as_mut().map(Guarded::view_mut), out.view_mut()).unwrap();
        (out.read(backend), dp.map_or(vec![], |dp| dp.read(backend)))
    }
}

#[test]
fn losses_and_gradients() {
    let cpus = Cpus::new();
    for (n, per_image) in SIZES {
        let batch = Batch::new(n, per_image);
        for (predict, loss) in PREDICTIONS.into_iter().flat_map(|p| LOSSES.map(|l| (p, l))) {
            let dims = LossDims::new(n, per_image, predict, loss);
            let (want, want_dp) = batch.truth(&dims);
            check_all!(cpus, &format!("{predict:?} {loss:?} {n} images of {per_image}"), |cpu, name| {
                let (values, dp) = batch.run(cpu, &dims, true);
                let all = [want.loss, want.noise_loss, want.image_loss];
                for (what, got, want) in
                    [("loss", 0), ("noise loss", 1), ("image loss", 2)].map(|(w, i)| (w, values[i], all[i]))
                {
                    assert_close(&format!("{what} of {name}"), &[got], &[want], LOSS);
                }
                // p - target cancels: relative to the derivative at a difference of the order of 1.
                let scale = norm(&want_dp) + 1.0 / (want_dp.len() as f64).sqrt();
                assert_scaled(&format!("dp of {name}"), &to_f64(&dp), &want_dp, scale, ELEMENTS);
                assert_eq!(batch.run(cpu, &dims, false).0, values, "{name}: without the gradient");
                [values, dp].concat()
            });
        }
    }
}

/// Exactly at the target every gradient is exactly 0, also where the loss has a kink.
#[test]
fn no_gradient_at_the_target() {
    let cpus = Cpus::new();
    let mut batch = Batch::new(3, 17);
    batch.pred.clone_from(&batch.noise);
    for loss in LOSSES {
        let dims = LossDims::new(3, 17, Predict::Noise, loss);
        check_all!(cpus, &format!("{loss:?}"), |cpu, name| {
            let (values, dp) = batch.run(cpu, &dims, true);
            assert!(values[0] == 0.0 && values[1] == 0.0, "{name}: {values:?}");
            assert!(dp.iter().all(|&d| d == 0.0), "{name}");
            dp
        });
    }
}

/// A prediction that is not a number must show in the loss.
#[test]
fn a_nan_is_not_lost() {
    let cpus = Cpus::new();
    let mut batch = Batch::new(2, 50);
    batch.pred[77] = f32::NAN;
    for (predict, loss) in PREDICTIONS.into_iter().flat_map(|p| LOSSES.map(|l| (p, l))) {
        check_all!(cpus, "a nan", |cpu, name| {
            let (values, _) = batch.run(cpu, &LossDims::new(2, 50, predict, loss), true);
            assert!(values.iter().all(|v| v.is_nan()), "{predict:?} {loss:?} {name}: {values:?}");
            vec![]
        });
    }
}

fn split<B: Loss>(backend: &B, dims: &LossDims, batch: &Batch) -> (Vec<f32>, Vec<f32>) {
    let [pred, noisy, rates] = [&batch.pred, &batch.noisy, &batch.rates].map(|v| Input::new(backend, v));
    let [mut noise, mut image] = [(); 2].map(|()| Guarded::output(backend, batch.pred.len()));
    let (noise_view, image_view) = (noise.view_mut(), image.view_mut());
    backend.split_prediction(dims, pred.view(), noisy.view(), rates.view(), noise_view, image_view).unwrap();
    (noise.read(backend), image.read(backend))
}

#[test]
fn predictions_split() {
    let cpus = Cpus::new();
    for (n, per_image) in SIZES {
        let batch = Batch::new(n, per_image);
        let [pred, noisy, rates] = [&batch.pred, &batch.noisy, &batch.rates].map(|v| to_f64(v));
        for predict in PREDICTIONS {
            let dims = LossDims::new(n, per_image, predict, LossKind::Mae);
            let (want_noise, want_image) = loss_truth::split_prediction(&dims, &pred, &noisy, &rates);
            check_all!(cpus, &format!("{predict:?} {n} images of {per_image}"), |cpu, name| {
                let (noise, image) = split(cpu, &dims, &batch);
                for (what, got, want) in [("noise", &noise, &want_noise), ("image", &image, &want_image)] {
                    let scale = norm(want) + norm(&pred) + norm(&noisy);
                    assert_scaled(&format!("{what} of {name}"), &to_f64(got), want, scale, ELEMENTS);
                }
                [noise, image].concat()
            });
        }
    }
}

/// (x, predicted image) after one update.
fn ddim<B: DdimStep>(backend: &B, dims: &DdimDims, pred: &[f32], rates: [&[f32]; 2], x: &[f32]) -> [Vec<f32>; 2] {
    let [pred, now, next] = [pred, rates[0], rates[1]].map(|v| Input::new(backend, v));
    let (mut x, mut image) = (Guarded::from(backend, x), Guarded::output(backend, x.len()));
    let image_view = Some(image.view_mut());
    backend.ddim_step(dims, pred.view(), now.view(), next.view(), x.view_mut(), image_view).unwrap();
    [x.read(backend), image.read(backend)]
}

#[test]
fn ddim_updates() {
    let cpus = Cpus::new();
    for (n, per_image) in SIZES {
        let batch = Batch::new(n, per_image);
        let next = Batch::new(n, 2).rates;
        let [pred, x, now64, next64] = [&batch.pred, &batch.noisy, &batch.rates, &next].map(|v| to_f64(v));
        for predict in PREDICTIONS {
            let dims = DdimDims { n: n as u32, per_image: per_image as u32, predict: predict_code(predict) };
            let (want_x, want_image) = ddim_truth::ddim_step(&dims, &pred, &now64, &next64, &x);
            check_all!(cpus, &format!("{predict:?} {n} images of {per_image}"), |cpu, name| {
                let [new_x, image] = ddim(cpu, &dims, &batch.pred, [&batch.rates, &next], &batch.noisy);
                let scale = norm(&want_x) + norm(&want_image);
                assert_scaled(&format!("x of {name}"), &to_f64(&new_x), &want_x, scale, ELEMENTS);
                let scale = norm(&want_image) + norm(&pred) + norm(&x);
                assert_scaled(&format!("image of {name}"), &to_f64(&image), &want_image, scale, ELEMENTS);
                let inputs = [&batch.pred, &batch.rates, &next].map(|v| Input::new(cpu, v));
                let [pred, now, next] = inputs.each_ref().map(Input::view);
                let mut alone = Guarded::from(cpu, &batch.noisy);
                cpu.ddim_step(&dims, pred, now, next, alone.view_mut(), None).unwrap();
                assert_eq!(alone.read(cpu), new_x, "{name}: without the image");
                [new_x, image].concat()
            });
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let schedule = |e: u32, lengths: [usize; 4]| {
        let dims = ScheduleDims {
            min_signal: 0.02,
            max_signal: 0.95,
            n: 3,
            e,
            linear: 0,
            embed_signal: 0,
            single: 0,
            reserved: 0,
        };
        let times = Input::new(cpu, &vec![0.5; lengths[0]]);
        let [mut rates, mut embedding, mut stats] = [1, 2, 3].map(|i| Guarded::output(cpu, lengths[i]));
        let (rates, embedding, stats) = (rates.view_mut(), embedding.view_mut(), stats.view_mut());
        cpu.schedule(&dims, times.view(), ScheduleOutput { rates, embedding, stats })
    };
    schedule(4, [3, 6, 12, 24]).unwrap();
    assert_shape_error("odd embedding", schedule(5, [3, 6, 15, 30]));
    for lengths in [[2, 6, 12, 24], [3, 5, 12, 24], [3, 6, 11, 24], [3, 6, 12, 23]] {
        assert_shape_error(&format!("schedule {lengths:?}"), schedule(4, lengths));
    }
    let dims = LossDims::new(2, 6, Predict::Noise, LossKind::Mae);
    let loss = |lengths: [usize; 7]| {
        let [pred, noisy, images, noise, rates] = [0, 1, 2, 3, 4].map(|i| Input::new(cpu, &vec![0.5; lengths[i]]));
        let [mut dp, mut out] = [5, 6].map(|i| Guarded::output(cpu, lengths[i]));
        let (pred, noisy, images) = (pred.view(), noisy.view(), images.view());
        let input = LossInput { pred, noisy, images, noise: noise.view(), rates: rates.view(), weights: None };
        cpu.loss(&dims, input, Some(dp.view_mut()), out.view_mut())
    };
    let lengths = [12, 12, 12, 12, 4, 12, 3];
    loss(lengths).unwrap();
    for i in 0..lengths.len() {
        let mut short = lengths;
        short[i] -= 1;
        assert_shape_error(&format!("view {i} of the loss"), loss(short));
    }
    let split = |lengths: [usize; 5]| {
        let [pred, noisy, rates] = [0, 1, 2].map(|i| Input::new(cpu, &vec![0.5; lengths[i]]));
        let [mut noise, mut image] = [3, 4].map(|i| Guarded::output(cpu, lengths[i]));
        cpu.split_prediction(&dims, pred.view(), noisy.view(), rates.view(), noise.view_mut(), image.view_mut())
    };
    let step = |lengths: [usize; 5]| {
        let dims = DdimDims { n: 2, per_image: 6, predict: 0 };
        let [pred, now, next] = [0, 2, 4].map(|i| Input::new(cpu, &vec![0.5; lengths[i]]));
        let [mut x, mut image] = [1, 3].map(|i| Guarded::from(cpu, &vec![0.5; lengths[i]]));
        cpu.ddim_step(&dims, pred.view(), now.view(), next.view(), x.view_mut(), Some(image.view_mut()))
    };
    split([12, 12, 4, 12, 12]).unwrap();
    step([12, 12, 4, 12, 4]).unwrap();
    for i in 0..5 {
        let (mut short, mut short_step) = ([12, 12, 4, 12, 12], [12, 12, 4, 12, 4]);
        (short[i], short_step[i]) = (short[i] - 1, short_step[i] - 1);
        assert_shape_error(&format!("view {i} of the split"), split(short));
        assert_shape_error(&format!("view {i} of the update"), step(short_step));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// With the same predicted noise the update is the same straight line both ways: there and back is where it began; and an
    /// update to the same rates changes nothing.
    #[test]
    fn updates_can_be_undone(n in 1usize..4, per_image in 1usize..40, a in 0.2f32..1.3, b in 0.2f32..1.3, case in 0u64..1000) {
        let cpus = Cpus::new();
        let (cpu, fill) = (cpus.best(), Fill::new(case));
        let dims = DdimDims { n: n as u32, per_image: per_image as u32, predict: predict_code(Predict::Noise) };
        let rates = |angle: f32| [angle.cos(), angle.sin()].repeat(n);
        let (rates_a, rates_b) = (rates(a), rates(b));
        let (pred, x) = (fill.f32s(0, n * per_image), fill.f32s(1, n * per_image));
        let [there, _] = ddim(cpu, &dims, &pred, [&rates_a, &rates_b], &x);
        let [back, _] = ddim(cpu, &dims, &pred, [&rates_b, &rates_a], &there);
        let [same, _] = ddim(cpu, &dims, &pred, [&rates_a, &rates_a], &x);
        // Divisions by the signal rates, at least cos 1.3, magnify the rounding of x.
        let scale = 4.0 * (norm(&to_f64(&x)) + norm(&to_f64(&there)) + norm(&to_f64(&pred)));
        assert_scaled("there and back", &to_f64(&back), &to_f64(&x), scale, ELEMENTS);
        assert_scaled("nowhere", &to_f64(&same), &to_f64(&x), scale, ELEMENTS);
    }

    /// The three kinds of prediction say the same thing: split one, predict the others from it, split again.
    #[test]
    fn predictions_agree(per_image in 1usize..40, case in 0u64..1000) {
        let cpus = Cpus::new();
        let cpu = cpus.best();
        let mut batch = Batch::new(2, per_image);
        batch.pred = Fill::new(case).f32s(0, 2 * per_image);
        let dims = |predict| LossDims::new(2, per_image, predict, LossKind::Mae);
        let (noise, image) = split(cpu, &dims(Predict::Noise), &batch);
        batch.pred.clone_from(&image);
        let (from_image, _) = split(cpu, &dims(Predict::Image), &batch);
        let rate = |i: usize| (batch.rates[i / per_image * 2], batch.rates[i / per_image * 2 + 1]);
        let velocity = (0..noise.len()).map(|i| rate(i).0 * noise[i] - rate(i).1 * image[i]);
        batch.pred = velocity.collect();
        let (from_velocity, image_again) = split(cpu, &dims(Predict::Velocity), &batch);
        let scale = 10.0 * (norm(&to_f64(&noise)) + norm(&to_f64(&image)));
        assert_scaled("noise from image", &to_f64(&from_image), &to_f64(&noise), scale, ELEMENTS);
        assert_scaled("noise from velocity", &to_f64(&from_velocity), &to_f64(&noise), scale, ELEMENTS);
        assert_scaled("image from velocity", &to_f64(&image_again), &to_f64(&image), scale, ELEMENTS);
    }

    #[test]
    fn rates_are_on_the_circle(times in prop::collection::vec(0f32..=1.0, 1..20), linear in 0u32..2) {
        let cpus = Cpus::new();
        let n = times.len() as u32;
        let dims = ScheduleDims { min_signal: 0.02, max_signal: 0.95, n, e: 8, linear, embed_signal: 0, single: 0, reserved: 0 };
        let [rates, ..] = run_schedule(cpus.best(), &dims, &times);
        for pair in to_f64(&rates).chunks_exact(2) {
            prop_assert!((pair[0].powi(2) + pair[1].powi(2) - 1.0).abs() < 3e-7);
        }
        prop_assert_eq!(to_f32(&to_f64(&rates)), rates);
    }
}
