//! Resizes, embeddings and linear layers by the CUDA kernels against the float64 references: on the simulator always (where it was built), on
//! a GPU where there is one.

mod ops_support;

use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::ops::conv::reference::stats;
use ddim_engine::ops::embed::{Embed, TimestepDims, reference as embed_truth};
use ddim_engine::ops::linear::{Linear, LinearDims, LinearGradients, reference as linear_truth};
use ddim_engine::ops::pool::ResampleDims;
use ddim_engine::ops::resize::{Resize, reference as resize_truth};
use half::bf16;
use ops_support::conv_case::Placed;
use ops_support::{
    Fill, GUARD, Guarded, assert_close, assert_close_f64, assert_scaled, assert_shape_error, devices, rms, to_f64,
};

/// Runs `work` in an arithmetic on the simulator and on a GPU, or says why not.
macro_rules! on_devices {
    ($arithmetic:expr, $work:expr) => {{
        devices::run_or_skip("sim", devices::no_sim(), || $work(&devices::sim($arithmetic)));
        devices::run_or_skip("cuda", devices::no_cuda(), || $work(&devices::cuda($arithmetic)));
    }};
}

/// Runs `work` under the simulator's checker.
fn checked(arithmetic: Arithmetic, work: impl Fn(&Gpu<Sim>)) {
    let missing = Sim::checked().err().map(|error| error.to_string());
    devices::run_or_skip("sim-checker", missing, || {
        let gpu = Gpu::new(Sim::checked().unwrap(), arithmetic);
        gpu.poison_new_buffers();
        gpu.separate_buffers();
        work(&gpu);
    });
}

fn numbers<L: Launcher>(gpu: &Gpu<L>, case: u64, index: u64, len: usize) -> Vec<f32> {
    let mut values = Fill::new(case).f32s(index, len);
    if gpu.arithmetic() == Arithmetic::Bf16 {
        values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    values
}

/// A forward of the resizes with its statistics.
fn resized<L: Launcher>(
    gpu: &Gpu<L>,
    d: &ResampleDims,
    keep: Option<u32>,
    x: &[f32],
    lead: usize,
) -> (Vec<f32>, Vec<f32>) {
    let x = Placed::input(gpu, x, lead, true);
    let mut y = Placed::output(gpu, if keep.is_some() { d.small() } else { d.large() }, lead, true);
    let mut stats = Placed::output(gpu, (d.n * d.c * 2) as usize, lead, false);
    match keep {
        Some(offset) => gpu.keep_forward(d, offset, x.view(), y.view_mut(), Some(stats.view_mut())),
        None => gpu.double_forward(d, x.view(), y.view_mut(), Some(stats.view_mut())),
    }
    .unwrap();
    (y.read(gpu), stats.read(gpu))
}

fn resizes<L: Launcher>(gpu: &Gpu<L>, sizes: &[ResampleDims]) {
    // Only the sum of four is rounded.
    let tolerance = if gpu.arithmetic() == Arithmetic::Bf16 { 3e-3 } else { 2e-7 };
    for d in sizes {
        let case = u64::from(d.c);
        let (large, small, add) =
            (numbers(gpu, case, 0, d.large()), numbers(gpu, case, 1, d.small()), numbers(gpu, case, 2, d.small()));
        for lead in [GUARD, GUARD + 1] {
            for keep in [None, Some(0), Some(1)] {
                let name = format!("{keep:?} of {d:?} at {lead} in {}", gpu.arithmetic());
                let (x, want) = match keep {
                    Some(offset) => (&large, resize_truth::keep(d, offset, &to_f64(&large))),
                    None => (&small, resize_truth::double(d, &to_f64(&small))),
                };
                let (y, got) = resized(gpu, d, keep, x, lead);
                assert_close_f64(&name, &to_f64(&y), &want, 0.0);
                let (pixels, entries) = (want.len() / (d.n * d.c) as usize, f64::from(d.n * d.c).sqrt());
                let truth = stats(&want, d.n as usize, pixels, d.c as usize);
                let column = |of: &[f64], i: usize| of.iter().skip(i).step_by(2).copied().collect::<Vec<f64>>();
                let (size, squares) = (rms(&want) * entries, rms(&want).powi(2) * pixels as f64 * entries);
                assert_scaled(&format!("mean, {name}"), &column(&to_f64(&got), 0), &column(&truth, 0), size, 1e-6);
                assert_scaled(&format!("m2, {name}"), &column(&to_f64(&got), 1), &column(&truth, 1), squares, 1e-6);
            }
            let name = format!("backward of {d:?} at {lead} in {}", gpu.arithmetic());
            let input = |values: &[f32]| Placed::input(gpu, values, lead, true);
            for add in [None, Some(&add)] {
                let want = resize_truth::double_backward(d, &to_f64(&large), add.map(|a| to_f64(a)).as_deref());
                let (dy, mut dx) = (input(&large), Placed::output(gpu, d.small(), lead, true));
                let add = add.map(|add| input(add));
                gpu.double_backward(d, dy.view(), add.as_ref().map(Placed::view), dx.view_mut()).unwrap();
                assert_close(&name, &dx.read(gpu), &want, tolerance);
            }
            for offset in [0, 1] {
                let (dy, mut dx) = (input(&small), Placed::output(gpu, d.large(), lead, true));
                gpu.keep_backward(d, offset, dy.view(), dx.view_mut()).unwrap();
                let want = resize_truth::keep_backward(d, offset, &to_f64(&small));
                assert_close_f64(&name, &to_f64(&dx.read(gpu)), &want, 0.0);
            }
        }
    }
}

const fn size(n: u32, h: u32, w: u32, c: u32) -> ResampleDims {
    ResampleDims { n, h, w, c }
}

#[test]
fn doubled_and_kept() {
    let sizes = [
        size(1, 2, 2, 1),
        size(2, 4, 6, 3),
        size(3, 2, 38, 8),
        size(1, 26, 2, 16),
        size(5, 8, 8, 17),
        size(2, 32, 32, 32),
        size(1, 6, 10, 296),
        size(2, 34, 34, 48),
    ];
    on_devices!(Arithmetic::Fp32, |gpu| resizes(gpu, &sizes));
    on_devices!(Arithmetic::Bf16, |gpu| resizes(gpu, &sizes));
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Bf16] {
        checked(arithmetic, |gpu| resizes(gpu, &[size(2, 16, 18, 8), size(1, 4, 6, 5)]));
    }
}

fn wrong_resizes<L: Launcher>(gpu: &Gpu<L>) {
    let d = size(2, 4, 6, 3);
    let buffer = |len: usize| Placed::output(gpu, len, GUARD, true);
    let forward = |offset: u32, x: usize, y: usize, stats: usize| {
        let mut stats = Placed::output(gpu, stats, GUARD, false);
        gpu.keep_forward(&d, offset, buffer(x).view(), buffer(y).view_mut(), Some(stats.view_mut()))
    };
    forward(1, d.large(), d.small(), 12).unwrap();
    for (offset, x, y, stats) in
        [(2, d.large(), d.small(), 12), (0, 1, d.small(), 12), (0, d.large(), 1, 12), (0, d.large(), d.small(), 1)]
    {
        assert_shape_error("keeping", forward(offset, x, y, stats));
    }
    let odd = size(2, 5, 6, 3);
    assert_shape_error("odd rows", gpu.double_forward(&odd, buffer(45).view(), buffer(180).view_mut(), None));
    assert_shape_error("add", {
        let (dy, add, mut dx) = (buffer(d.large()), buffer(1), buffer(d.small()));
        gpu.double_backward(&d, dy.view(), Some(add.view()), dx.view_mut())
    });
}

fn embeddings<L: Launcher>(gpu: &Gpu<L>) {
    let times = [0.0f32, 1.0, 17.0, 500.5, 999.0];
    for (c, flip, freq_shift) in [(2, 0, 0), (4, 1, 1), (32, 1, 0), (33, 0, 1), (129, 1, 1), (512, 1, 0)] {
        let d = TimestepDims { n: 5, c, flip, freq_shift };
        let (t, mut emb) =
            (Placed::input(gpu, &times, GUARD, false), Placed::output(gpu, 5 * c as usize, GUARD, false));
        gpu.embed_timesteps(&d, t.view(), None, emb.view_mut()).unwrap();
        // The angle is rounded to float32, where it is below 1024.
        let want = embed_truth::positional(&d, &to_f64(&times));
        let got = to_f64(&emb.read(gpu));
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-4, "{d:?}: {worst:.2e}");
        assert_close_f64(&format!("small times of {d:?}"), &got[..2 * c as usize], &want[..2 * c as usize], 2e-6);
    }
    let times = [0.002f32, 0.5, 1.0, 80.0];
    for c in [2, 64, 130] {
        let d = TimestepDims { n: 4, c, flip: 1, freq_shift: 0 };
        let frequencies: Vec<f32> = Fill::new(3).f32s(0, c as usize / 2).iter().map(|w| w * 16.0).collect();
        let (t, w) = (Placed::input(gpu, &times, GUARD, false), Placed::input(gpu, &frequencies, GUARD + 1, false));
        let mut emb = Placed::output(gpu, 4 * c as usize, GUARD + 1, false);
        gpu.embed_timesteps(&d, t.view(), Some(w.view()), emb.view_mut()).unwrap();
        let want = embed_truth::fourier(&d, &to_f64(&times), &to_f64(&frequencies));
        assert_close(&format!("fourier {c}"), &emb.read(gpu), &want, 1e-6);
    }
}

fn classes<L: Launcher>(gpu: &Gpu<L>) {
    let (k, c) = (5usize, 7usize);
    let labels = [3.0f32, 0.0, 3.0, 4.0];
    let fill = Fill::new(8);
    let (table, emb, demb) = (fill.f32s(0, k * c), fill.f32s(1, 4 * c), fill.f32s(2, 4 * c));
    let of = Placed::input(gpu, &labels, GUARD, false);
    let (table_view, mut got) = (Placed::input(gpu, &table, GUARD, false), Guarded::from(gpu, &emb));
    gpu.embed_classes(of.view(), table_view.view(), got.view_mut()).unwrap();
    let want: Vec<f64> =
        (0..4 * c).map(|i| f64::from(emb[i]) + f64::from(table[labels[i / c] as usize * c + i % c])).collect();
    assert_close("embedded classes", &got.read(gpu), &want, 1e-7);

    let (demb_view, mut dtable) = (Placed::input(gpu, &demb, GUARD, false), Guarded::from(gpu, &table));
    gpu.embed_classes_backward(of.view(), demb_view.view(), dtable.view_mut()).unwrap();
    let mut want = to_f64(&table);
    for (i, g) in demb.iter().enumerate() {
        want[labels[i / c] as usize * c + i % c] += f64::from(*g);
    }
    assert_close("gradient of classes", &dtable.read(gpu), &want, 1e-7);

    for unknown in [-1.0f32, 5.0, f32::NAN] {
        let of = Placed::input(gpu, &[unknown, 1.0], GUARD, false);
        let mut got = Guarded::from(gpu, &emb[..2 * c]);
        gpu.embed_classes(of.view(), table_view.view(), got.view_mut()).unwrap();
        let got = got.read(gpu);
        assert!(got[..c].iter().all(|v| v.is_nan()) && got[c..].iter().all(|v| v.is_finite()), "label {unknown}");
    }

    let (times, x) = ([0.5f32, 3.0, 80.0], fill.f32s(3, 33));
    let (t, mut divided) = (Placed::input(gpu, &times, GUARD, false), Guarded::from(gpu, &x));
    gpu.divide_by_timesteps(t.view(), divided.view_mut()).unwrap();
    let want: Vec<f64> = x.iter().enumerate().map(|(i, x)| f64::from(*x) / f64::from(times[i / 11])).collect();
    assert_close("divided", &divided.read(gpu), &want, 1e-7);
    let mut wrong = Guarded::from(gpu, &x[..32]);
    assert_shape_error("no whole images", gpu.divide_by_timesteps(t.view(), wrong.view_mut()));
    assert_shape_error("labels", gpu.embed_classes(t.view(), table_view.view(), wrong.view_mut()));
}

fn linears<L: Launcher>(gpu: &Gpu<L>, sizes: &[(u32, u32, u32)]) {
    for (case, &(n, c, k)) in sizes.iter().enumerate() {
        let (rows, inputs, outputs) = (n as usize, c as usize, k as usize);
        let fill = Fill::new(case as u64);
        let (x, w, b) = (fill.f32s(0, rows * inputs), fill.f32s(1, inputs * outputs), fill.f32s(2, outputs));
        let (dy, before) = (fill.f32s(3, rows * outputs), fill.f32s(4, rows * inputs));
        let (before_w, before_b) = (fill.f32s(5, inputs * outputs), fill.f32s(6, outputs));
        for (silu, accumulate) in [(0, false), (1, true)] {
            let d = LinearDims { n, c, k, silu };
            let name = format!("{d:?}");
            let input = |values: &[f32]| Placed::input(gpu, values, GUARD + case % 2, false);
            let (x_view, w_view, b_view, dy_view) = (input(&x), input(&w), input(&b), input(&dy));
            let mut y = Placed::output(gpu, rows * outputs, GUARD, false);
            gpu.linear(&d, x_view.view(), w_view.view(), b_view.view(), y.view_mut()).unwrap();
            let (x64, w64) = (to_f64(&x), to_f64(&w));
            let want = linear_truth::forward(&d, &x64, &w64, &to_f64(&b));
            assert_close(&format!("y of {name}"), &y.read(gpu), &want, 1e-6);

            let mut dx = Guarded::from(gpu, &before);
            let (mut dw, mut db) = (Guarded::from(gpu, &before_w), Guarded::from(gpu, &before_b));
            let out = LinearGradients { dx: Some(dx.view_mut()), accumulate, dw: dw.view_mut(), db: db.view_mut() };
            gpu.linear_backward(&d, x_view.view(), w_view.view(), dy_view.view(), out).unwrap();
            let (want_dx, want_dw, want_db) = linear_truth::backward(&d, &x64, &w64, &to_f64(&dy));
            let on = |want: Vec<f64>, before: &[f32]| -> Vec<f64> {
                want.iter().zip(before).map(|(w, b)| w + f64::from(*b)).collect()
            };
            let want_dx = if accumulate { on(want_dx, &before) } else { want_dx };
            assert_close(&format!("dx of {name}"), &dx.read(gpu), &want_dx, 1e-6);
            assert_close(&format!("dw of {name}"), &dw.read(gpu), &on(want_dw, &before_w), 1e-6);
            assert_close(&format!("db of {name}"), &db.read(gpu), &on(want_db, &before_b), 1e-6);
        }
    }
    let d = LinearDims { n: 2, c: 3, k: 4, silu: 0 };
    let buffer = |len: usize| Placed::output(gpu, len, GUARD, false);
    let forward = |d: &LinearDims, x: usize, w: usize, b: usize, y: usize| {
        gpu.linear(d, buffer(x).view(), buffer(w).view(), buffer(b).view(), buffer(y).view_mut())
    };
    forward(&d, 6, 12, 4, 8).unwrap();
    for (x, w, b, y) in [(5, 12, 4, 8), (6, 11, 4, 8), (6, 12, 5, 8), (6, 12, 4, 7)] {
        assert_shape_error("a view of a linear layer", forward(&d, x, w, b, y));
    }
    assert_shape_error("no rows", forward(&LinearDims { n: 0, ..d }, 0, 12, 4, 0));
}

#[test]
fn wrong_views_of_resizes_are_errors() {
    on_devices!(Arithmetic::Bf16, wrong_resizes);
}

#[test]
fn embedded_timesteps() {
    on_devices!(Arithmetic::Fp32, embeddings);
    checked(Arithmetic::Fp32, embeddings);
}

#[test]
fn embedded_classes() {
    on_devices!(Arithmetic::Fp32, classes);
    checked(Arithmetic::Fp32, classes);
}

#[test]
fn linear_layers() {
    let sizes = [(1, 1, 1), (2, 3, 5), (4, 32, 32), (5, 33, 31), (64, 128, 64), (33, 65, 40), (3, 128, 512)];
    on_devices!(Arithmetic::Fp32, |gpu| linears(gpu, &sizes));
    checked(Arithmetic::Fp32, |gpu| linears(gpu, &[(2, 3, 5), (35, 40, 33)]));
}
