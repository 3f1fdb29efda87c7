//! Random numbers, q-sample and pixel conversion on every backend. Random numbers are compared with the float64 reference by a
//! tolerance, and with [`ddim_engine::rng::Stream`] to the bit: every device must draw the same.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::ops::images::Images;
use ddim_engine::ops::images::reference as images_truth;
use ddim_engine::ops::noise::reference as truth;
use ddim_engine::ops::noise::{Noise, NoiseKey, step_word};
use ddim_engine::rng::{Purpose, Stream};
use ops_support::{
    Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, max_error, to_f32, to_f64,
};
use proptest::prelude::*;

/// Largest |difference| of a normal number from the exact transform of its words (radii reach 5.8). Measured: at most 5.2e-7.
const NORMAL: f64 = 1e-6;
/// Relative 2-norm of two products and a sum. Measured: at most 5.7e-8.
const Q_SAMPLE: f64 = 2e-7;
/// Relative to the size of the pixels. Measured: at most 1.6e-8.
const PIXELS: f64 = 1e-7;

const KEY: NoiseKey = NoiseKey { seed: 0x1234_5678_9ABC_DEF0, purpose: Purpose::Noise, first_image: 5 };
const STEP: u64 = 7;

/// The step's number on the device.
fn step_slot<B: Memory>(backend: &B, step: u64) -> Input<B> {
    Input::new(backend, &[step_word(step)])
}

fn normal<B: Noise>(backend: &B, key: NoiseKey, per_image: usize, n: usize) -> Vec<f32> {
    normal_at(backend, key, STEP, per_image, n)
}

fn normal_at<B: Noise>(backend: &B, key: NoiseKey, step: u64, per_image: usize, n: usize) -> Vec<f32> {
    let mut out = Guarded::output(backend, per_image * n);
    backend.fill_normal(key, step_slot(backend, step).view(), per_image, out.view_mut()).unwrap();
    out.read(backend)
}

fn uniform<B: Noise>(backend: &B, key: NoiseKey, n: usize) -> Vec<f32> {
    let mut out = Guarded::output(backend, n);
    backend.fill_uniform(key, step_slot(backend, STEP).view(), out.view_mut()).unwrap();
    out.read(backend)
}

#[test]
fn normal_numbers() {
    let cpus = Cpus::new();
    for per_image in [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 300, 3 * 64 * 64, 3 * 41 * 37] {
        for n in [1, 2, 5] {
            let exact = truth::normal(KEY, STEP, per_image, n);
            let stream = |i| Stream::new(KEY.seed, KEY.purpose, STEP, KEY.first_image + i as u64);
            let mut bits = vec![0.0; per_image * n];
            bits.chunks_mut(per_image).enumerate().for_each(|(i, image)| stream(i).fill_normal(image));
            check_all!(cpus, &format!("{n} images of {per_image}"), |cpu, name| {
                let got = normal(cpu, KEY, per_image, n);
                let (worst, at) = max_error(&to_f64(&got), &exact);
                assert_scaled(&format!("normal number {at} of {name}"), &[worst], &[0.0], 1.0, NORMAL);
                let same = got.iter().zip(&bits).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}: not the bits of the stream");
                got
            });
        }
    }
}

#[test]
fn uniform_numbers() {
    let cpus = Cpus::new();
    for n in [1, 2, 3, 4, 5, 17, 64, 1000] {
        let want = to_f32(&truth::uniform(KEY, STEP, n)); // 24 bits: exact in f32
        check_all!(cpus, &format!("{n} images"), |cpu, name| {
            let got = uniform(cpu, KEY, n);
            assert_eq!(got, want, "{name}");
            assert!(got.iter().all(|u| (0.0..1.0).contains(u)));
            got
        });
    }
}

/// Every part of the key matters.
#[test]
fn keys_separate_streams() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let keys = [
        KEY,
        NoiseKey { seed: KEY.seed ^ 1, ..KEY },
        NoiseKey { seed: KEY.seed ^ (1 << 40), ..KEY },
        NoiseKey { purpose: Purpose::Sample, ..KEY },
        NoiseKey { first_image: KEY.first_image + 1, ..KEY },
    ];
    for (i, &a) in keys.iter().enumerate() {
        for &b in &keys[..i] {
            assert_ne!(normal(cpu, a, 8, 1), normal(cpu, b, 8, 1), "{a:?} {b:?}");
            assert_ne!(uniform(cpu, a, 3), uniform(cpu, b, 3), "{a:?} {b:?}");
        }
    }
    assert_ne!(normal_at(cpu, KEY, STEP, 8, 1), normal_at(cpu, KEY, STEP + 1, 8, 1));
}

#[test]
fn q_sample() {
    let cpus = Cpus::new();
    for (n, per_image) in [(1, 1), (2, 3), (3, 16), (5, 17), (2, 1000), (4, 3 * 64 * 64), (33, 48)] {
        let fill = Fill::new(n as u64);
        let (images, noise) = (fill.f32s(0, n * per_image), fill.f32s(1, n * per_image));
        let rates = fill.f32s(2, 2 * n);
        let want = truth::q_sample(&to_f64(&images), &to_f64(&noise), &to_f64(&rates));
        check_all!(cpus, &format!("{n} images of {per_image}"), |cpu, name| {
            let [images, noise, rates] = [&images, &noise, &rates].map(|v| Input::new(cpu, v));
            let mut noisy = Guarded::output(cpu, n * per_image);
            Noise::q_sample(cpu, images.view(), noise.view(), rates.view(), noisy.view_mut()).unwrap();
            assert_close(name, &noisy.read(cpu), &want, Q_SAMPLE);
            noisy.read(cpu)
        });
    }
}

#[test]
fn pixels_to_floats_and_back() {
    let cpus = Cpus::new();
    for (channels, pixels) in [(1, 1), (1, 256), (3, 5), (3, 256), (4, 77), (3, 64 * 64), (5, 33)] {
        let len = channels * pixels;
        let bytes: Vec<u8> = (0..len).map(|i| (i * 37 % 256) as u8).collect();
        let fill = Fill::new(channels as u64);
        let mean: Vec<f32> = fill.f32s(0, channels).iter().map(|v| 0.5 + 0.1 * v).collect();
        let std: Vec<f32> = fill.f32s(1, channels).iter().map(|v| 0.25 + 0.05 * v.abs()).collect();
        let (mean64, std64) = (to_f64(&mean), to_f64(&std));
        let want = images_truth::normalize(&bytes, &mean64, &std64);
        // Some pixels beyond black and white, which must be clipped.
        let x: Vec<f32> = fill.f32s(2, len).iter().map(|v| 2.0 * v).collect();
        let want_back = images_truth::denormalize(&to_f64(&x), &mean64, &std64);
        check_all!(cpus, &format!("{pixels} pixels of {channels}"), |cpu, name| {
            let mut on_device = cpu.alloc_bytes(len).unwrap();
            cpu.upload_bytes(&bytes, &mut on_device).unwrap();
            let mean_std = Input::new(cpu, &[&mean[..], &std].concat());
            let mut normal = Guarded::output(cpu, len);
            cpu.normalize(&on_device, mean_std.view(), normal.view_mut()).unwrap();
            let normal = normal.read(cpu);
            // (byte / 255 - mean) may cancel: relative to what is subtracted.
            let scale = (len as f64).sqrt() * std64.iter().map(|s| 1.0 / s).fold(0.0, f64::max);
            assert_scaled(&format!("normalize {name}"), &to_f64(&normal), &want, scale, PIXELS);
            let mut back = Guarded::from(cpu, &normal);
            cpu.denormalize(mean_std.view(), back.view_mut()).unwrap();
            let back = back.read(cpu);
            let round_trip = back.iter().zip(&bytes).all(|(b, &byte)| (b * 255.0).round() as u8 == byte);
            assert!(round_trip, "{name}: bytes change on the way there and back");
            let mut clipped = Guarded::from(cpu, &x);
            cpu.denormalize(mean_std.view(), clipped.view_mut()).unwrap();
            let clipped = clipped.read(cpu);
            let scale = (len as f64).sqrt();
            assert_scaled(&format!("denormalize {name}"), &to_f64(&clipped), &want_back, scale, PIXELS);
            assert!(clipped.iter().all(|v| (0.0..=1.0).contains(v)), "{name}: not clipped");
            [normal, back, clipped].concat()
        });
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let fill = |per_image, len| {
        cpu.fill_normal(KEY, step_slot(cpu, STEP).view(), per_image, Guarded::output(cpu, len).view_mut())
    };
    fill(5, 10).unwrap();
    assert_shape_error("not whole images", fill(5, 11));
    assert_shape_error("images of nothing", fill(0, 10));
    let q_sample = |lengths: [usize; 4]| {
        let [images, noise, rates] = [0, 1, 2].map(|i| Input::new(cpu, &vec![1.0; lengths[i]]));
        let mut noisy = Guarded::output(cpu, lengths[3]);
        Noise::q_sample(cpu, images.view(), noise.view(), rates.view(), noisy.view_mut())
    };
    q_sample([12, 12, 6, 12]).unwrap();
    for lengths in
        [[11, 12, 6, 12], [12, 11, 6, 12], [12, 12, 5, 12], [12, 12, 6, 13], [12, 12, 0, 12], [12, 12, 10, 12]]
    {
        assert_shape_error(&format!("q_sample {lengths:?}"), q_sample(lengths));
    }
    let normalize = |bytes: usize, mean_std: usize, x: usize| {
        let bytes = cpu.alloc_bytes(bytes).unwrap();
        let mean_std = Input::new(cpu, &vec![0.5; mean_std]);
        cpu.normalize(&bytes, mean_std.view(), Guarded::output(cpu, x).view_mut())
    };
    let denormalize = |mean_std: usize, x: usize| {
        let mean_std = Input::new(cpu, &vec![0.5; mean_std]);
        cpu.denormalize(mean_std.view(), Guarded::from(cpu, &vec![1.0; x]).view_mut())
    };
    normalize(12, 6, 12).unwrap();
    denormalize(6, 12).unwrap();
    for (bytes, mean_std, x) in [(11, 6, 12), (12, 6, 13), (12, 5, 12), (12, 10, 12), (12, 0, 12)] {
        assert_shape_error(&format!("normalize {bytes} {mean_std} {x}"), normalize(bytes, mean_std, x));
    }
    for (mean_std, x) in [(5, 12), (10, 12), (0, 12)] {
        assert_shape_error(&format!("denormalize {mean_std} {x}"), denormalize(mean_std, x));
    }
    let long_step = Input::new(cpu, &[0.0; 2]);
    assert_shape_error(
        "a step of two slots",
        cpu.fill_uniform(KEY, long_step.view(), Guarded::output(cpu, 2).view_mut()),
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    /// An image's noise is its own: the same however the batch is cut.
    #[test]
    fn noise_does_not_depend_on_the_batch(per_image in 1usize..70, n in 2usize..9, cut in 1usize..8, seed: u64) {
        let cpus = Cpus::new();
        let (cpu, cut) = (cpus.best(), cut.min(n - 1));
        let key = NoiseKey { seed, ..KEY };
        let rest = NoiseKey { first_image: key.first_image + cut as u64, ..key };
        let parts = [normal(cpu, key, per_image, cut), normal(cpu, rest, per_image, n - cut)].concat();
        prop_assert_eq!(normal(cpu, key, per_image, n), parts);
        prop_assert_eq!(uniform(cpu, key, n), [uniform(cpu, key, cut), uniform(cpu, rest, n - cut)].concat());
    }
}
