//! The norm of the gradients and its factor on every backend against the float64 reference; Adam with clipped gradients.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::ops::adam::{Adam, AdamParams, AdamScalars, AdamState};
use ddim_engine::ops::grad_norm::{GradNorm, reference as truth};
use ops_support::{Cpus, Fill, Guarded, Input, assert_close, assert_shape_error, to_f64};

/// Relative error of norm and factor: one rounding to float32. Measured: 5.5e-8.
const TOLERANCE: f64 = 1e-7;

fn run<B: GradNorm>(backend: &B, limit: f32, grads: &[f32]) -> Vec<f32> {
    let (grads, mut out) = (Input::new(backend, grads), Guarded::output(backend, 2));
    backend.grad_norm(limit, grads.view(), out.view_mut()).unwrap();
    out.read(backend)
}

/// Sizes on both sides of a vector, of what a block reads at once, of a piece on a GPU and of one on a CPU.
#[test]
fn norms_and_factors() {
    let cpus = Cpus::new();
    for len in [1, 3, 4, 5, 15, 16, 17, 1023, 1024, 1025, 8191, 8192, 8193, 32_767, 32_768, 32_769, 100_003] {
        let grads: Vec<f32> = Fill::new(len as u64).f32s(0, len).iter().map(|g| g * 0.01).collect();
        for limit in [1e-3, 1.0, 1e3] {
            let (norm, factor) = truth::grad_norm(f64::from(limit), &to_f64(&grads));
            check_all!(cpus, format!("{len} gradients, limit {limit}"), |backend, name| {
                let got = run(backend, limit, &grads);
                assert_close(&format!("norm of {name}"), &got[..1], &[norm], TOLERANCE);
                assert_close(&format!("factor of {name}"), &got[1..], &[factor], TOLERANCE);
                assert!(norm > f64::from(limit) || got[1] == 1.0, "{name}: nothing to clip, factor {}", got[1]);
                got
            });
        }
    }
}

#[test]
fn extremes() {
    let cpus = Cpus::new();
    for (grads, norm, factor) in [
        ([0.0f32; 5], 0.0, 1.0),
        // Squares that float32 could not hold.
        ([1e30, 0.0, 0.0, 0.0, 0.0], 1e30, 1e-30),
        ([1e-30, 0.0, 0.0, 0.0, 0.0], 1e-30, 1.0),
    ] {
        check_all!(cpus, format!("{grads:?}"), |backend, name| {
            let got = run(backend, 1.0, &grads);
            assert_close(name, &got, &[norm, factor], TOLERANCE);
            got
        });
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        check_all!(cpus, format!("a gradient of {bad}"), |backend, name| {
            let got = run(backend, 1.0, &[1.0, bad, 2.0]);
            assert!(!got[0].is_finite() && got[1].is_nan(), "{name}: {got:?}");
            vec![]
        });
    }
}

/// A step with a factor is a step with gradients multiplied before; a factor that is no number stops it.
#[test]
fn adam_takes_the_factor() {
    let cpus = Cpus::new();
    let scalars = AdamParams::new(1e-3, 1e-2, false, 2).scalars().unwrap();
    let scalars = bytemuck::cast::<AdamScalars, [f32; AdamScalars::LEN]>(scalars);
    for len in [1, 4, 33] {
        let fill = Fill::new(len as u64);
        let start = [0, 1, 2].map(|i| fill.f32s(i, len).iter().map(|v| v.abs()).collect::<Vec<f32>>());
        let grads = fill.f32s(3, len);
        check_all!(cpus, format!("{len} weights"), |backend, name| {
            let step = |grads: &[f32], clip: Option<f32>| {
                let [mut p, mut m, mut v] = [0, 1, 2].map(|i| Guarded::from(backend, &start[i]));
                let (scalars, grads) = (Input::new(backend, &scalars), Input::new(backend, grads));
                let clip = clip.map(|clip| Input::new(backend, &[clip]));
                let state = AdamState {
                    params: p.view_mut(),
                    grads: grads.view(),
                    m: m.view_mut(),
                    v: v.view_mut(),
                    ema: None,
                    clip: clip.as_ref().map(Input::view),
                };
                backend.adam_step(scalars.view(), None, state).unwrap();
                [p.read(backend), m.read(backend), v.read(backend)]
            };
            let quarter: Vec<f32> = grads.iter().map(|g| 0.25 * g).collect();
            assert_eq!(step(&grads, Some(0.25)), step(&quarter, None), "{name}");
            assert_eq!(step(&grads, Some(1.0)), step(&grads, None), "{name}");
            assert_eq!(step(&grads, Some(f32::NAN)), start, "{name}");
            step(&grads, Some(0.25)).concat()
        });
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let grads = Input::new(cpu, &[1.0; 8]);
    for len in [1, 3] {
        let mut out = cpu.alloc(len).unwrap();
        let out = ddim_engine::device::cpu::Cpu::all_mut(&mut out);
        assert_shape_error("out", cpu.grad_norm(1.0, grads.view(), out));
    }
}
