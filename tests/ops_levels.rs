//! Levels of a schedule and the offset of noise on every backend against the references.

mod ops_support;

use ddim_engine::ops::levels::{Levels, LevelsOutput, reference as truth};
use ddim_engine::ops::noise::{Noise, NoiseKey, reference as noise_truth, step_word};
use ddim_engine::rng::Purpose;
use ops_support::{Cpus, Fill, Guarded, Input, assert_close, assert_shape_error, to_f64};

fn gather<B: Levels>(backend: &B, table: &[f32], times: &[f32]) -> [Vec<f32>; 3] {
    let (n, table, times) = (times.len(), Input::new(backend, table), Input::new(backend, times));
    let [mut rates, mut timesteps, mut weights] = [2 * n, n, n].map(|len| Guarded::output(backend, len));
    let out = LevelsOutput { rates: rates.view_mut(), timesteps: timesteps.view_mut(), weights: weights.view_mut() };
    backend.gather_levels(table.view(), times.view(), out).unwrap();
    [rates, timesteps, weights].map(|buffer| buffer.read(backend))
}

/// Copies are exact, whatever the time; the ends of [0, 1) and every border between levels among them.
#[test]
fn times_fall_into_levels() {
    let cpus = Cpus::new();
    for steps in [1usize, 2, 3, 1000] {
        let table = Fill::new(steps as u64).f32s(0, 4 * steps);
        let mut times = vec![0.0, 0.5, 1.0 - f32::EPSILON / 2.0, 0.25];
        times.extend((0..steps).map(|i| i as f32 / steps as f32));
        times.extend(Fill::new(7).f32s(1, 300).iter().map(|z| z.abs().fract()));
        let (rates, timesteps, weights) = truth::gather_levels(&to_f64(&table), &times);
        check_all!(cpus, format!("{steps} levels"), |backend, name| {
            let got = gather(backend, &table, &times);
            for (got, want) in got.iter().zip([&rates, &timesteps, &weights]) {
                assert_eq!(to_f64(got), *want, "{name}");
            }
            got.concat()
        });
    }
}

#[test]
fn times_beyond_the_ends_take_the_last_or_first_level() {
    let cpus = Cpus::new();
    let table: Vec<f32> = (0..12).map(|i| i as f32).collect();
    check_all!(cpus, "beyond", |backend, name| {
        let [_, timesteps, _] = gather(backend, &table, &[1.0, 2.0, -0.5, f32::NAN]);
        assert_eq!(timesteps, [10.0, 10.0, 2.0, 2.0], "{name}");
        timesteps
    });
}

/// Relative 2-norm of the noise with its offset, relative to both together. Measured: 9e-8 (Box-Muller in float32).
const TOLERANCE: f64 = 3e-7;

/// A normal number for each image and channel, the same for every pixel.
#[test]
fn noise_is_offset_by_channel() {
    let cpus = Cpus::new();
    for (n, pixels, channels) in [(1, 1, 1), (2, 5, 3), (3, 16, 4), (2, 33, 6), (1, 700, 3)] {
        let key = NoiseKey { seed: 5, purpose: Purpose::Offset, first_image: 2 };
        let start = Fill::new(pixels as u64).f32s(0, n * pixels * channels);
        let offsets = noise_truth::normal(key, 9, channels, n);
        let want: Vec<f64> = (0..start.len())
            .map(|i| f64::from(start[i]) + 0.5 * offsets[i / (pixels * channels) * channels + i % channels])
            .collect();
        check_all!(cpus, format!("{n} images of {pixels} pixels of {channels}"), |backend, name| {
            let (step, mut noise) = (Input::new(backend, &[step_word(9)]), Guarded::from(backend, &start));
            backend.offset_noise(key, step.view(), 0.5, [pixels, channels], noise.view_mut()).unwrap();
            let got = noise.read(backend);
            assert_close(name, &got, &want, TOLERANCE);
            got
        });
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let run = |lengths: [usize; 5]| {
        let [table, times] = [0, 1].map(|i| Input::new(cpu, &vec![0.5; lengths[i]]));
        let [mut rates, mut timesteps, mut weights] = [2, 3, 4].map(|i| Guarded::output(cpu, lengths[i]));
        let out =
            LevelsOutput { rates: rates.view_mut(), timesteps: timesteps.view_mut(), weights: weights.view_mut() };
        cpu.gather_levels(table.view(), times.view(), out)
    };
    run([8, 3, 6, 3, 3]).unwrap();
    for bad in [[0, 3, 6, 3, 3], [7, 3, 6, 3, 3], [8, 3, 5, 3, 3], [8, 3, 6, 2, 3], [8, 3, 6, 3, 4]] {
        assert_shape_error(&format!("{bad:?}"), run(bad));
    }
    let key = NoiseKey { seed: 5, purpose: Purpose::Offset, first_image: 0 };
    let step = Input::new(cpu, &[step_word(0)]);
    for (len, shape) in [(7, [2, 3]), (6, [0, 3]), (6, [2, 0])] {
        let mut noise = Guarded::from(cpu, &vec![0.0; len]);
        assert_shape_error("offset", cpu.offset_noise(key, step.view(), 0.5, shape, noise.view_mut()));
    }
}
