//! The kernels of noise, pixels, schedule, loss, sampler and optimiser beside the CPU's: small cases with pieces, warps and vectors that
//! are not full, each view in turn the only one that is not aligned, and all under the simulator's checker. Accuracy is the matter of
//! `ops_noise`, `ops_diffusion` and `ops_adam`, which run on every device.

mod ops_support;

use ddim_engine::config::{LossKind, Predict};
use ddim_engine::device::cpu::Cpu;
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::sim::Sim;
use ddim_engine::ops::adam::{Adam, AdamParams, AdamState};
use ddim_engine::ops::ddim::{DdimDims, DdimStep};
use ddim_engine::ops::images::Images;
use ddim_engine::ops::loss::{Loss, LossDims, LossInput, predict_code};
use ddim_engine::ops::noise::{Noise, NoiseKey, step_word};
use ddim_engine::ops::schedule::{Schedule, ScheduleDims, ScheduleOutput};
use ddim_engine::rng::Purpose;
use ops_support::{Fill, Guarded, Input, Leads, assert_scaled, assert_shape_error, norm, to_f64, with_leads};

/// Relative 2-norm of the difference of two devices. Measured: at most 6.2e-8.
const DEVICES: f64 = 4e-7;
const PREDICTIONS: [Predict; 3] = [Predict::Noise, Predict::Image, Predict::Velocity];
const LOSSES: [LossKind; 3] = [LossKind::Mae, LossKind::Mse, LossKind::Huber];

/// What an operation wrote, by name.
type Results = Vec<(String, Vec<f32>)>;

fn noise<B: Noise + Images>(b: &B, n: usize, per_image: usize, out: &mut Results) {
    let (fill, len) = (Fill::new(1), n * per_image);
    let key = NoiseKey { seed: 7 << 33 | 5, purpose: Purpose::Noise, first_image: 3 };
    let step = Input::new(b, &[step_word(9)]);
    let mut normal = Guarded::output(b, len);
    b.fill_normal(key, step.view(), per_image, normal.view_mut()).unwrap();
    let mut uniform = Guarded::output(b, n);
    b.fill_uniform(key, step.view(), uniform.view_mut()).unwrap();
    let (images, rates) = (Input::new(b, &fill.f32s(0, len)), Input::new(b, &fill.f32s(1, 2 * n)));
    let mut noisy = Guarded::output(b, len);
    Noise::q_sample(b, images.view(), normal.view(), rates.view(), noisy.view_mut()).unwrap();
    out.push(("normal".into(), normal.read(b)));
    out.push(("uniform".into(), uniform.read(b)));
    out.push(("noisy".into(), noisy.read(b)));
}

fn pixels<B: Images>(b: &B, channels: usize, pixels: usize, out: &mut Results) {
    let len = channels * pixels;
    let host: Vec<u8> = (0..len).map(|i| (i * 37 % 256) as u8).collect();
    let mut bytes = b.alloc_bytes(len).unwrap();
    b.upload_bytes(&host, &mut bytes).unwrap();
    let mean_std: Vec<f32> = (0..2 * channels).map(|i| 0.3 + 0.05 * i as f32).collect();
    let mean_std = Input::new(b, &mean_std);
    let mut x = Guarded::output(b, len);
    b.normalize(&bytes, mean_std.view(), x.view_mut()).unwrap();
    let normal = x.read(b);
    b.denormalize(mean_std.view(), x.view_mut()).unwrap();
    out.push((format!("normal pixels of {channels}"), normal));
    out.push((format!("pixels of {channels}"), x.read(b)));
}

fn schedule<B: Schedule>(b: &B, linear: u32, single: u32, e: u32, out: &mut Results) {
    let (min_signal, max_signal, n) = (0.02, 0.95, 3);
    let dims = ScheduleDims { min_signal, max_signal, n, e, linear, embed_signal: linear, single, reserved: 0 };
    let times = Input::new(b, &[0.0, 0.37, 1.0]);
    let mut rates = Guarded::output(b, 6);
    let mut embedding = Guarded::output(b, (n * e) as usize);
    let mut stats = Guarded::output(b, (2 * n * e) as usize);
    let views = ScheduleOutput { rates: rates.view_mut(), embedding: embedding.view_mut(), stats: stats.view_mut() };
    b.schedule(&dims, times.view(), views).unwrap();
    out.push((format!("rates of {dims:?}"), rates.read(b)));
    out.push((format!("embedding of {dims:?}"), embedding.read(b)));
    out.push((format!("statistics of {dims:?}"), stats.read(b)));
}

fn losses<B: Loss + DdimStep>(b: &B, n: usize, per_image: usize, predict: Predict, loss: LossKind, out: &mut Results) {
    let (fill, len) = (Fill::new(2), n * per_image);
    let name = format!("{predict:?} {loss:?}, {n} images of {per_image}");
    let dims = LossDims::new(n, per_image, predict, loss);
    let [pred, noisy, images, noise] = [0, 1, 2, 3].map(|i| Input::new(b, &fill.f32s(i, len)));
    let (mut values, mut dp) = (Guarded::output(b, 3), Guarded::output(b, len));
    let rates: Vec<f32> = (0..n).map(|i| 0.4 + 0.2 * i as f32).flat_map(|a| [a.cos(), a.sin()]).collect();
    let (rates, later) = (Input::new(b, &rates), Input::new(b, &rates.iter().rev().copied().collect::<Vec<f32>>()));
    let (pred, noisy, images, noise) = (pred.view(), noisy.view(), images.view(), noise.view());
    let input = LossInput { pred, noisy, images, noise, rates: rates.view(), weights: None };
    b.loss(&dims, input, Some(dp.view_mut()), values.view_mut()).unwrap();
    out.push((format!("values of {name}"), values.read(b)));
    out.push((format!("gradient of {name}"), dp.read(b)));
    if loss != LossKind::Mae {
        return; // the rest does not depend on it
    }
    let [mut pred_noise, mut pred_image, mut clean] = [(); 3].map(|()| Guarded::output(b, len));
    let (noise_view, image_view) = (pred_noise.view_mut(), pred_image.view_mut());
    b.split_prediction(&dims, pred, noisy, rates.view(), noise_view, image_view).unwrap();
    let mut x = Guarded::from(b, &fill.f32s(1, len));
    let dims = DdimDims { n: n as u32, per_image: per_image as u32, predict: predict_code(predict) };
    b.ddim_step(&dims, pred, rates.view(), later.view(), x.view_mut(), Some(clean.view_mut())).unwrap();
    for (what, buffer) in [("noise", pred_noise), ("image", pred_image), ("x", x), ("x0", clean)] {
        out.push((format!("{what} of {name}"), buffer.read(b)));
    }
}

fn optimizer<B: Adam>(b: &B, n: usize, decoupled: bool, loss: f32, out: &mut Results) {
    let fill = Fill::new(3);
    let params = AdamParams { ema_decay: 0.9, ..AdamParams::new(1e-3, 1e-2, decoupled, 3) };
    let scalars = Input::new(b, bytemuck::cast_slice(&[params.scalars().unwrap()]));
    let guard = Input::new(b, &[loss]);
    let grads = Input::new(b, &fill.f32s(0, n));
    let [mut p, mut m, mut ema] = [1, 2, 3].map(|i| Guarded::from(b, &fill.f32s(i, n)));
    let mut v = Guarded::from(b, &fill.f32s(4, n).iter().map(|v| v * v).collect::<Vec<f32>>());
    let state = AdamState {
        params: p.view_mut(),
        grads: grads.view(),
        m: m.view_mut(),
        v: v.view_mut(),
        ema: Some(ema.view_mut()),
        clip: None,
    };
    b.adam_step(scalars.view(), Some(guard.view()), state).unwrap();
    let mut average = Guarded::from(b, &fill.f32s(5, n));
    b.ema_update(scalars.view(), Some(guard.view()), p.view(), average.view_mut()).unwrap();
    for (what, buffer) in [("p", p), ("m", m), ("v", v), ("ema", ema), ("average", average)] {
        out.push((format!("{what} of {n}, decoupled {decoupled}, loss {loss}"), buffer.read(b)));
    }
}

/// A case: puts what it got into the list.
type Case<'b> = Box<dyn Fn(&mut Results) + 'b>;

/// An operation on buffers of which one is of the wrong type.
type OnBuffers<'f> = &'f dyn Fn(&mut [Guarded<Gpu<Sim>>]) -> ddim_engine::error::Result<()>;

/// One operation after the other, each with the case's own views.
fn everything<B: Noise + Images + Schedule + Loss + DdimStep + Adam>(b: &B) -> Vec<Case<'_>> {
    let mut all: Vec<Case<'_>> = Vec::new();
    for (n, per_image) in [(2, 17), (3, 12), (1, 2052)] {
        all.push(Box::new(move |out| noise(b, n, per_image, out)));
        for (predict, loss) in PREDICTIONS.into_iter().flat_map(|p| LOSSES.map(|l| (p, l))) {
            all.push(Box::new(move |out| losses(b, n, per_image, predict, loss, out)));
        }
    }
    for (channels, count) in [(3, 23), (4, 1025)] {
        all.push(Box::new(move |out| pixels(b, channels, count, out)));
    }
    for (linear, single, e) in [(0, 0, 6), (1, 0, 70), (0, 1, 2), (1, 1, 64)] {
        all.push(Box::new(move |out| schedule(b, linear, single, e, out)));
    }
    for (n, decoupled, loss) in [(5, true, 1.0), (1032, false, 1.0), (16, true, f32::NAN), (16, false, f32::INFINITY)] {
        all.push(Box::new(move |out| optimizer(b, n, decoupled, loss, out)));
    }
    all
}

/// Compares a device's results with the CPU's.
fn compare(leads: Leads, got: &Results, want: &Results) {
    assert_eq!(got.len(), want.len());
    for ((name, got), (same_name, want)) in got.iter().zip(want) {
        assert_eq!(name, same_name);
        let scale = norm(&to_f64(want)).max(1e-3);
        assert_scaled(&format!("{name}, {leads:?}"), &to_f64(got), &to_f64(want), scale, DEVICES);
    }
}

fn run(case: &dyn Fn(&mut Results), leads: Leads) -> (Results, usize) {
    let mut results = Vec::new();
    let ((), buffers) = with_leads(leads, || case(&mut results));
    (results, buffers)
}

#[test]
fn kernels_pass_the_checker() {
    let cpu = Cpu::new(1).unwrap();
    let sim = match Sim::checked() {
        Ok(sim) => sim,
        Err(why) => {
            ops_support::devices::say_skipped(why);
            return;
        }
    };
    let gpu = Gpu::new(sim, Arithmetic::Fp32); // none of these operations has activations
    gpu.separate_buffers();
    for (case, truth) in everything(&gpu).iter().zip(everything(&cpu)) {
        let (want, _) = run(&truth, Leads::Aligned);
        for leads in [Leads::Aligned, Leads::Turns] {
            compare(leads, &run(case, leads).0, &want);
        }
    }
}

/// A kernel that asks for the alignment of all its views but one would be found here.
#[test]
fn each_view_may_be_the_one_that_is_not_aligned() {
    let cpu = Cpu::new(1).unwrap();
    check_gpus!(Arithmetic::Fp32, "every operation", |gpu, _name| {
        for (case, truth) in everything(gpu).iter().zip(everything(&cpu)) {
            let (want, buffers) = run(&truth, Leads::Aligned);
            for odd in 0..buffers {
                compare(Leads::One(odd), &run(case, Leads::One(odd)).0, &want);
            }
        }
        vec![]
    });
}

/// Views of bfloat16 where float32 is read: an error, not other numbers.
#[test]
fn wrong_types_are_errors() {
    if let Some(why) = ops_support::devices::no_sim() {
        ops_support::devices::say_skipped(why);
        return;
    }
    let gpu = &ops_support::devices::sim(Arithmetic::Bf16);
    let wide = |len: usize| Guarded::from(gpu, &vec![0.5; len]);
    let narrow = |len: usize| Guarded::activation(gpu, len);
    // The one of `len` buffers that is of the wrong type; none for `len` itself.
    let buffers = |lengths: &[usize], wrong: usize| -> Vec<Guarded<_>> {
        lengths.iter().enumerate().map(|(i, &len)| if i == wrong { narrow(len) } else { wide(len) }).collect()
    };
    let key = NoiseKey { seed: 1, purpose: Purpose::Noise, first_image: 0 };
    let refused = |name: &str, lengths: &[usize], run: OnBuffers<'_>| {
        run(&mut buffers(lengths, lengths.len())).unwrap();
        for wrong in 0..lengths.len() {
            assert_shape_error(&format!("{name}, view {wrong}"), run(&mut buffers(lengths, wrong)));
        }
    };
    refused("normal", &[1, 8], &|v| {
        let [step, out] = v else { unreachable!() };
        gpu.fill_normal(key, step.view(), 4, out.view_mut())
    });
    refused("uniform", &[1, 8], &|v| {
        let [step, out] = v else { unreachable!() };
        gpu.fill_uniform(key, step.view(), out.view_mut())
    });
    refused("q_sample", &[8, 8, 4, 8], &|v| {
        let [images, noise, rates, noisy] = v else { unreachable!() };
        Noise::q_sample(gpu, images.view(), noise.view(), rates.view(), noisy.view_mut())
    });
    refused("normalize", &[6, 12], &|v| {
        let [mean_std, x] = v else { unreachable!() };
        use ddim_engine::device::Memory;
        gpu.normalize(&gpu.alloc_bytes(12).unwrap(), mean_std.view(), x.view_mut())
    });
    refused("denormalize", &[6, 12], &|v| {
        let [mean_std, x] = v else { unreachable!() };
        gpu.denormalize(mean_std.view(), x.view_mut())
    });
    refused("loss", &[8, 8, 8, 8, 4, 8, 3], &|v| {
        let [pred, noisy, images, noise, rates, dp, out] = v else { unreachable!() };
        let (pred, noisy, images) = (pred.view(), noisy.view(), images.view());
        let input = LossInput { pred, noisy, images, noise: noise.view(), rates: rates.view(), weights: None };
        let dims = LossDims::new(2, 4, Predict::Noise, LossKind::Mae);
        gpu.loss(&dims, input, Some(dp.view_mut()), out.view_mut())
    });
    refused("split", &[8, 8, 4, 8, 8], &|v| {
        let [pred, noisy, rates, noise, image] = v else { unreachable!() };
        let dims = LossDims::new(2, 4, Predict::Noise, LossKind::Mae);
        gpu.split_prediction(&dims, pred.view(), noisy.view(), rates.view(), noise.view_mut(), image.view_mut())
    });
    refused("ddim", &[8, 4, 4, 8, 8], &|v| {
        let [pred, now, next, x, image] = v else { unreachable!() };
        let dims = DdimDims { n: 2, per_image: 4, predict: 0 };
        gpu.ddim_step(&dims, pred.view(), now.view(), next.view(), x.view_mut(), Some(image.view_mut()))
    });
    refused("adam", &[8, 1, 5, 5, 5, 5, 5, 1], &|v| {
        let [scalars, guard, params, grads, m, v, ema, clip] = v else { unreachable!() };
        let (params, m, v, ema) = (params.view_mut(), m.view_mut(), v.view_mut(), Some(ema.view_mut()));
        let clip = Some(clip.view());
        gpu.adam_step(scalars.view(), Some(guard.view()), AdamState { params, grads: grads.view(), m, v, ema, clip })
    });
    refused("ema", &[8, 1, 5, 5], &|v| {
        let [scalars, guard, src, ema] = v else { unreachable!() };
        gpu.ema_update(scalars.view(), Some(guard.view()), src.view(), ema.view_mut())
    });
    refused("schedule", &[2, 4, 8, 16], &|v| {
        let [times, rates, embedding, stats] = v else { unreachable!() };
        let (min_signal, max_signal, n, e) = (0.02, 0.95, 2, 4);
        let dims = ScheduleDims { min_signal, max_signal, n, e, linear: 0, embed_signal: 0, single: 0, reserved: 0 };
        let (rates, embedding, stats) = (rates.view_mut(), embedding.view_mut(), stats.view_mut());
        gpu.schedule(&dims, times.view(), ScheduleOutput { rates, embedding, stats })
    });
}
