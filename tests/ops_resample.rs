//! Average pooling and bilinear upsampling on every backend against the float64 references, and as adjoints of their backwards.

mod ops_support;

use ddim_engine::ops::conv::reference::stats;
use ddim_engine::ops::pool::reference as pool_truth;
use ddim_engine::ops::pool::{AvgPool2, ResampleDims};
use ddim_engine::ops::upsample::Upsample2;
use ddim_engine::ops::upsample::reference as upsample_truth;
use ops_support::{
    CHANNELS, Cpus, Fill, Guarded, IMAGES, Input, assert_close, assert_scaled, assert_shape_error, dot, norm, rms,
    to_f64,
};
use proptest::prelude::*;

/// Relative 2-norm: at most sixteen terms. Measured: at most 1.0e-7.
const TOLERANCE: f64 = 2e-7;
/// Statistics, relative to the output's size. Measured: at most 8.0e-6 (sums of squares over 4096 pixels, one after the other).
const STATS_TOLERANCE: f64 = 2e-5;

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
        ResampleDims { n: 1, h: 32, w: 32, c: 64 },
        ResampleDims { n: 3, h: 8, w: 8, c: 128 },
    ]);
    sizes
}

/// Two forwards with the same signature, so that one test serves both.
type Forward<B> = fn(&B, &ResampleDims, &[f32], bool) -> (Vec<f32>, Vec<f32>);

fn pool<B: AvgPool2>(backend: &B, d: &ResampleDims, x: &[f32], with_stats: bool) -> (Vec<f32>, Vec<f32>) {
    let (x, mut y) = (Input::new(backend, x), Guarded::output(backend, d.small()));
    let mut stats = with_stats.then(|| Guarded::output(backend, (d.n * d.c * 2) as usize));
    backend.avg_pool_forward(d, x.view(), y.view_mut(), stats.as_mut().map(Guarded::view_mut)).unwrap();
    (y.read(backend), stats.map_or(vec![], |s| s.read(backend)))
}

fn upsample<B: Upsample2>(backend: &B, d: &ResampleDims, x: &[f32], with_stats: bool) -> (Vec<f32>, Vec<f32>) {
    let (x, mut y) = (Input::new(backend, x), Guarded::output(backend, d.large()));
    let mut stats = with_stats.then(|| Guarded::output(backend, (d.n * d.c * 2) as usize));
    backend.upsample_forward(d, x.view(), y.view_mut(), stats.as_mut().map(Guarded::view_mut)).unwrap();
    (y.read(backend), stats.map_or(vec![], |s| s.read(backend)))
}

fn pool_backward<B: AvgPool2>(backend: &B, d: &ResampleDims, dy: &[f32], add: Option<&[f32]>) -> Vec<f32> {
    let (dy, add) = (Input::new(backend, dy), add.map(|add| Input::new(backend, add)));
    let mut dx = Guarded::output(backend, d.large());
    backend.avg_pool_backward(d, dy.view(), add.as_ref().map(Input::view), dx.view_mut()).unwrap();
    dx.read(backend)
}

fn upsample_backward<B: Upsample2>(backend: &B, d: &ResampleDims, dy: &[f32]) -> Vec<f32> {
    let (dy, mut dx) = (Input::new(backend, dy), Guarded::output(backend, d.small()));
    backend.upsample_backward(d, dy.view(), dx.view_mut()).unwrap();
    dx.read(backend)
}

fn forward_case<B>(
    backend: &B,
    name: &str,
    d: &ResampleDims,
    forward: Forward<B>,
    x: &[f32],
    want: &[f64],
) -> Vec<f32> {
    let (y, got) = forward(backend, d, x, true);
    assert_close(&format!("y of {name}"), &y, want, TOLERANCE);
    let y64 = to_f64(&y);
    let (n, c) = (d.n as usize, d.c as usize);
    let pixels = y.len() / (n * c);
    let want = stats(&y64, n, pixels, c);
    let column = |stats: &[f64], i: usize| stats.iter().skip(i).step_by(2).copied().collect::<Vec<f64>>();
    let entries = ((n * c) as f64).sqrt();
    let (mean_scale, m2_scale) = (rms(&y64) * entries, rms(&y64).powi(2) * pixels as f64 * entries);
    let got = to_f64(&got);
    assert_scaled(&format!("mean of {name}"), &column(&got, 0), &column(&want, 0), mean_scale, STATS_TOLERANCE);
    assert_scaled(&format!("m2 of {name}"), &column(&got, 1), &column(&want, 1), m2_scale, STATS_TOLERANCE);
    let (without, _) = forward(backend, d, x, false);
    assert_eq!(y, without, "{name}: statistics must not change the result");
    [y, got.iter().map(|&v| v as f32).collect()].concat()
}

#[test]
fn pool_forward() {
    let cpus = Cpus::new();
    for d in sizes() {
        let x = Fill::new(u64::from(d.c)).f32s(0, d.large());
        let want = pool_truth::forward(&d, &to_f64(&x));
        cpus.check(&format!("{d:?}"), |cpu, name| forward_case(cpu, name, &d, pool, &x, &want));
    }
}

#[test]
fn upsample_forward() {
    let cpus = Cpus::new();
    for d in sizes() {
        let x = Fill::new(u64::from(d.c)).f32s(0, d.small());
        let want = upsample_truth::forward(&d, &to_f64(&x));
        cpus.check(&format!("{d:?}"), |cpu, name| forward_case(cpu, name, &d, upsample, &x, &want));
    }
}

#[test]
fn backwards() {
    let cpus = Cpus::new();
    for d in sizes() {
        let fill = Fill::new(u64::from(d.c));
        let (small, large) = (fill.f32s(1, d.small()), fill.f32s(2, d.large()));
        let (small64, large64) = (to_f64(&small), to_f64(&large));
        let spread = pool_truth::backward(&d, &small64, None);
        let joined = pool_truth::backward(&d, &small64, Some(&large64));
        let gathered = upsample_truth::backward(&d, &large64);
        cpus.check(&format!("{d:?}"), |cpu, name| {
            let dx = pool_backward(cpu, &d, &small, None);
            assert_close(&format!("pool of {name}"), &dx, &spread, TOLERANCE);
            let added = pool_backward(cpu, &d, &small, Some(&large));
            assert_close(&format!("pool with add of {name}"), &added, &joined, TOLERANCE);
            let up = upsample_backward(cpu, &d, &large);
            assert_close(&format!("upsample of {name}"), &up, &gathered, TOLERANCE);
            [dx, added, up].concat()
        });
    }
}

#[test]
fn stats_survive_a_large_mean() {
    let cpus = Cpus::new();
    let d = ResampleDims { n: 2, h: 32, w: 32, c: 19 };
    let shifted = |len| Fill::new(9).f32s(0, len).iter().map(|v| v + 1000.0).collect::<Vec<f32>>();
    let check = |name: &str, (y, got): (Vec<f32>, Vec<f32>), pixels: usize| {
        let want = stats(&to_f64(&y), 2, pixels, 19);
        for (got, want) in got.chunks_exact(2).zip(want.chunks_exact(2)) {
            assert_close(&format!("mean on {name}"), &got[..1], &want[..1], 1e-7);
            assert_close(&format!("m2 on {name}"), &got[1..], &want[1..], 3e-5); // measured: 1.0e-5
        }
        got
    };
    cpus.check("pool", |cpu, name| check(name, pool(cpu, &d, &shifted(d.large()), true), 256));
    cpus.check("upsample", |cpu, name| check(name, upsample(cpu, &d, &shifted(d.small()), true), 1024));
}

/// One row by hand: a new pixel takes 3/4 of the old pixel that it lies in and 1/4 of the nearer neighbour; ends repeat.
#[test]
fn the_reference_against_pencil_and_paper() {
    let d = ResampleDims { n: 1, h: 2, w: 6, c: 1 };
    let row = [0.0, 1.0, 3.0, 4.5, 5.5, 6.0]; // of 0, 4, 6
    assert_eq!(upsample_truth::forward(&d, &[0.0, 4.0, 6.0]), [row, row].concat());
    assert_eq!(pool_truth::forward(&d, &[[1.0; 6], row].concat()), [0.75, 2.375, 3.375]);
}

#[test]
fn wrong_shapes_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let d = ResampleDims { n: 2, h: 4, w: 6, c: 3 };
    let (large, small, stats) = (d.large(), d.small(), 12);
    let pool = |d: ResampleDims, x: usize, y: usize, stats: usize| {
        let (x, mut y) = (Input::new(cpu, &vec![1.0; x]), Guarded::output(cpu, y));
        let mut stats = Guarded::output(cpu, stats);
        cpu.avg_pool_forward(&d, x.view(), y.view_mut(), Some(stats.view_mut()))
    };
    let up = |d: ResampleDims, x: usize, y: usize, stats: usize| {
        let (x, mut y) = (Input::new(cpu, &vec![1.0; x]), Guarded::output(cpu, y));
        let mut stats = Guarded::output(cpu, stats);
        cpu.upsample_forward(&d, x.view(), y.view_mut(), Some(stats.view_mut()))
    };
    let pool_back = |d: ResampleDims, dy: usize, add: usize, dx: usize| {
        let (dy, add) = (Input::new(cpu, &vec![1.0; dy]), Input::new(cpu, &vec![1.0; add]));
        cpu.avg_pool_backward(&d, dy.view(), Some(add.view()), Guarded::output(cpu, dx).view_mut())
    };
    let up_back = |d: ResampleDims, dy: usize, dx: usize| {
        let dy = Input::new(cpu, &vec![1.0; dy]);
        cpu.upsample_backward(&d, dy.view(), Guarded::output(cpu, dx).view_mut())
    };
    pool(d, large, small, stats).unwrap();
    up(d, small, large, stats).unwrap();
    pool_back(d, small, large, large).unwrap();
    up_back(d, large, small).unwrap();
    for odd in [ResampleDims { h: 3, ..d }, ResampleDims { w: 5, ..d }] {
        let (large, small) = (odd.large(), odd.small());
        assert_shape_error("odd", pool(odd, large, small, stats));
        assert_shape_error("odd", up(odd, small, large, stats));
        assert_shape_error("odd", pool_back(odd, small, large, large));
        assert_shape_error("odd", up_back(odd, large, small));
    }
    assert_shape_error("x", pool(d, large - 1, small, stats));
    assert_shape_error("y", pool(d, large, small + 1, stats));
    assert_shape_error("stats", pool(d, large, small, stats - 1));
    assert_shape_error("x", up(d, small + 1, large, stats));
    assert_shape_error("y", up(d, small, large - 1, stats));
    assert_shape_error("stats", up(d, small, large, stats - 1));
    assert_shape_error("dy", pool_back(d, small - 1, large, large));
    assert_shape_error("add", pool_back(d, small, large - 1, large));
    assert_shape_error("dx", pool_back(d, small, large, large - 1));
    assert_shape_error("dy", up_back(d, large - 1, small));
    assert_shape_error("dx", up_back(d, large, small - 1));
}

fn extents() -> impl Strategy<Value = ResampleDims> {
    (1u32..4, 1u32..9, 1u32..9, 1u32..40).prop_map(|(n, h, w, c)| ResampleDims { n, h: 2 * h, w: 2 * w, c })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn backwards_are_adjoints(d in extents(), case in 0u64..1000) {
        let (cpus, fill) = (Cpus::new(), Fill::new(case));
        let cpu = cpus.best();
        let (large, small) = (fill.f32s(0, d.large()), fill.f32s(1, d.small()));
        let (large64, small64) = (to_f64(&large), to_f64(&small));
        let scale = norm(&large64) * norm(&small64);
        let down = to_f64(&pool(cpu, &d, &large, false).0);
        let down_back = to_f64(&pool_backward(cpu, &d, &small, None));
        assert_scaled("pool", &[dot(&down, &small64)], &[dot(&large64, &down_back)], scale, TOLERANCE);
        let up = to_f64(&upsample(cpu, &d, &small, false).0);
        let up_back = to_f64(&upsample_backward(cpu, &d, &large));
        assert_scaled("upsample", &[dot(&up, &large64)], &[dot(&small64, &up_back)], scale, TOLERANCE);
    }

    /// A constant picture stays what it is, and pooling undoes its upsampling.
    #[test]
    fn constants_are_preserved(d in extents(), value in -100f32..100.0) {
        let cpus = Cpus::new();
        let up = upsample(cpus.best(), &d, &vec![value; d.small()], false).0;
        prop_assert!(up.iter().all(|y| (y - value).abs() <= 2e-7 * value.abs()));
        let down = pool(cpus.best(), &d, &up, false).0;
        prop_assert!(down.iter().all(|y| (y - value).abs() <= 4e-7 * value.abs()));
    }
}
