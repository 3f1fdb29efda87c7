//! The loss with weights of images, and of batches in parts, on every backend against the float64 reference.

mod ops_support;

use ddim_engine::config::{LossKind, Predict};
use ddim_engine::ops::loss::reference as truth;
use ddim_engine::ops::loss::{Loss, LossDims, LossInput};
use ops_support::{Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, norm, to_f64};

/// Relative error of the loss and the metrics. Measured: at most 1.2e-7.
const LOSS: f64 = 3e-7;
/// Relative 2-norm of the gradient, relative to its size at differences of the order of 1. Measured: at most 6e-8.
const ELEMENTS: f64 = 2e-7;

/// Operands: pred, noisy, images, noise [N, per image], rates [N, 2], weights [N].
struct Operands([Vec<f32>; 6]);

impl Operands {
    fn new(n: usize, per_image: usize) -> Self {
        let fill = Fill::new((n * 1000 + per_image) as u64);
        let [pred, noisy, images, noise] = [0, 1, 2, 3].map(|i| fill.f32s(i, n * per_image));
        let angles = fill.f32s(4, n).into_iter().map(|z| 0.3 + 1.2 * z.abs().fract());
        let rates = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        let mut weights: Vec<f32> = fill.f32s(5, n).iter().map(|z| 3.0 * z.abs()).collect();
        weights[0] = 0.0; // what zero terminal SNR gives the last step
        Operands([pred, noisy, images, noise, rates, weights])
    }

    /// Those of the images `first` .. `first + n` of `all`.
    fn part(&self, first: usize, n: usize, all: usize) -> Self {
        Operands(self.0.each_ref().map(|v| {
            let each = v.len() / all;
            v[first * each..(first + n) * each].to_vec()
        }))
    }

    /// (values, dp); the values are added to `start` where the dims say so.
    fn run<B: Loss>(&self, backend: &B, dims: &LossDims, weighted: bool, start: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let [pred, noisy, images, noise, rates, weights] = self.0.each_ref().map(|v| Input::new(backend, v));
        let (mut dp, mut out) = (Guarded::output(backend, self.0[0].len()), Guarded::from(backend, start));
        let input = LossInput {
            pred: pred.view(),
            noisy: noisy.view(),
            images: images.view(),
            noise: noise.view(),
            rates: rates.view(),
            weights: weighted.then(|| weights.view()),
        };
        backend.loss(dims, input, Some(dp.view_mut()), out.view_mut()).unwrap();
        (out.read(backend), dp.read(backend))
    }

    fn truth(&self, dims: &LossDims) -> ([f64; 3], Vec<f64>) {
        let [pred, noisy, images, noise, rates, weights] = self.0.each_ref().map(|v| to_f64(v));
        let input = truth::LossInput {
            pred: &pred,
            noisy: &noisy,
            images: &images,
            noise: &noise,
            rates: &rates,
            weights: Some(&weights),
        };
        let (values, dp) = truth::loss(dims, input);
        ([values.loss, values.noise_loss, values.image_loss], dp)
    }
}

#[test]
fn weights_of_images() {
    let cpus = Cpus::new();
    for (n, per_image) in [(1, 5), (2, 17), (3, 2049), (33, 48)] {
        let operands = Operands::new(n, per_image);
        for (predict, loss) in
            [(Predict::Noise, LossKind::Mse), (Predict::Image, LossKind::Mae), (Predict::Velocity, LossKind::Huber)]
        {
            let dims = LossDims::new(n, per_image, predict, loss);
            let (want, want_dp) = operands.truth(&dims);
            check_all!(cpus, format!("{predict:?} {loss:?}, {n} images of {per_image}"), |backend, name| {
                let (values, dp) = operands.run(backend, &dims, true, &[f32::NAN; 3]);
                for (i, what) in ["loss", "noise loss", "image loss"].into_iter().enumerate() {
                    assert_close(&format!("{what} of {name}"), &values[i..=i], &want[i..=i], LOSS);
                }
                let scale = norm(&want_dp) + 1.0 / (want_dp.len() as f64).sqrt();
                assert_scaled(&format!("dp of {name}"), &to_f64(&dp), &want_dp, scale, ELEMENTS);
                [values, dp].concat()
            });
        }
    }
}

/// Parts one after the other give the values and the gradient of the batch.
#[test]
fn parts_of_a_batch() {
    let cpus = Cpus::new();
    let (n, per_image) = (5, 2100);
    let operands = Operands::new(n, per_image);
    let whole = LossDims::new(n, per_image, Predict::Velocity, LossKind::Mse);
    let (want, want_dp) = operands.truth(&whole);
    for size in [1, 2, 3] {
        check_all!(cpus, format!("parts of {size} images"), |backend, name| {
            let (mut values, mut dp) = (vec![f32::NAN; 3], Vec::new());
            for first in (0..n).step_by(size) {
                let images = size.min(n - first);
                let dims = LossDims { n: images as u32, add: u32::from(first > 0), ..whole };
                let part = operands.part(first, images, n).run(backend, &dims, true, &values);
                values = part.0;
                dp.extend(part.1);
            }
            assert_close(name, &values, &want, 2.0 * LOSS); // a rounding for each part
            assert_scaled(&format!("dp of {name}"), &to_f64(&dp), &want_dp, norm(&want_dp), ELEMENTS);
            [values, dp].concat()
        });
    }
}

/// Weights of 1, and a batch that is its own whole, are the plain loss to the bit.
#[test]
fn weights_of_one_change_nothing() {
    let cpus = Cpus::new();
    let mut operands = Operands::new(3, 100);
    operands.0[5] = vec![1.0; 3];
    let dims = LossDims::new(3, 100, Predict::Noise, LossKind::Mae);
    check_all!(cpus, "weights of one", |backend, name| {
        let plain = operands.run(backend, &dims, false, &[0.0; 3]);
        assert_eq!(operands.run(backend, &dims, true, &[0.0; 3]), plain, "{name}");
        plain.0
    });
    let cpu = cpus.best();
    let all = operands.0.each_ref().map(|v| Input::new(cpu, v));
    let [pred, noisy, images, noise, rates, _] = all.each_ref().map(Input::view);
    let (weights, mut out) = (Input::new(cpu, &[1.0; 2]), Guarded::output(cpu, 3));
    let input = LossInput { pred, noisy, images, noise, rates, weights: Some(weights.view()) };
    assert_shape_error("weights", cpu.loss(&dims, input, None, out.view_mut()));
}
