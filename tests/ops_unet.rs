//! The operations of the family unet2d on the CPU, with every instruction set and 1, 2 and 3 threads, against their float64 references. Their CUDA
//! kernels are held to the same references in `gpu_group_norm.rs`, `gpu_attention.rs` and `gpu_unet_ops.rs`.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::device::cpu::{Cpu, CpuBuffer};
use ddim_engine::ops::attention::{Attention, AttentionDims, reference as attention};
use ddim_engine::ops::conv::reference::stats;
use ddim_engine::ops::embed::{Embed, TimestepDims, reference as embed};
use ddim_engine::ops::group_norm::{
    Dropout, GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients, reference as norm,
};
use ddim_engine::ops::linear::{Linear, LinearDims, LinearGradients, reference as linear};
use ddim_engine::ops::noise::{NoiseKey, step_word};
use ddim_engine::ops::pool::ResampleDims;
use ddim_engine::ops::resize::{Resize, reference as resize};
use ddim_engine::rng::{Purpose, Stream};
use ops_support::{Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, to_f32, to_f64};

/// Relative 2-norm. Measured: at most 4e-7 for activations and their gradients.
const TOLERANCE: f64 = 2e-6;

const P: f32 = 0.25;
const KEY: NoiseKey = NoiseKey { seed: 99, purpose: Purpose::Dropout, first_image: 2 };

/// The concatenation of [rows, C0] and [rows, C1].
fn concat(x0: &[f32], c0: usize, x1: &[f32], c1: usize) -> Vec<f64> {
    let rows = x0.chunks_exact(c0).enumerate();
    rows.flat_map(|(i, row)| [row, &x1[i * c1..(i + 1) * c1]].concat()).map(f64::from).collect()
}

/// A group norm, its options by the bits of `options`: SiLU, modulation, dropout, gradients of other uses.
fn group_norm(cpu: &Cpu, name: &str, d: GroupNormDims, options: u32) -> Vec<f32> {
    let [modulated, dropped, others] = [2, 4, 8].map(|bit| options & bit != 0);
    let d = GroupNormDims { silu: options & 1, ..d };
    let fill = Fill::new(u64::from(d.c0 * 7 + d.pixels));
    let (n, pixels, c0, c1, c) = (d.n as usize, d.pixels as usize, d.c0 as usize, d.c1 as usize, d.c());
    let shifted = |i, len| fill.f32s(i, len).into_iter().map(|x| x + 0.5).collect::<Vec<f32>>();
    let (x0, x1) = (shifted(0, d.len0()), shifted(1, d.len1()));
    let (gamma, beta, modulation) = (fill.f32s(2, c), fill.f32s(3, c), fill.f32s(4, 2 * n * c));
    let g = fill.f32s(5, n * pixels * c);
    let adds = [fill.f32s(6, d.len0()), fill.f32s(7, d.len0()), fill.f32s(8, d.len1())];
    let mut mask = vec![1.0; g.len()];
    for (i, mask) in mask.chunks_exact_mut(pixels * c).enumerate() {
        let mut uniform = vec![0.0; mask.len()];
        Stream::of_layer(KEY.seed, KEY.purpose, 3, 8, KEY.first_image + i as u64).fill_uniform(&mut uniform);
        mask.iter_mut().zip(uniform).for_each(|(m, u)| *m = if u < P { 0.0 } else { f64::from(1.0 / (1.0 - P)) });
    }
    let x = concat(&x0, c0, &x1, c1);
    let (gamma64, beta64, modulation64) = (to_f64(&gamma), to_f64(&beta), to_f64(&modulation));
    let input = norm::Input {
        x: &x,
        gamma: &gamma64,
        beta: &beta64,
        modulation: modulated.then_some(&modulation64[..]),
        mask: dropped.then_some(&mask[..]),
    };
    let (y_want, want) = (norm::forward(&d, &input), norm::backward(&d, &input, &to_f64(&g)));

    let of = |x: &[f32], c: usize| Input::new(cpu, &to_f32(&stats(&to_f64(x), n, pixels, c)));
    let (stats0, stats1) = (of(&x0, c0), (c1 > 0).then(|| of(&x1, c1)));
    let [gamma, beta, modulation, x0, g] = [&gamma, &beta, &modulation, &x0, &g].map(|v| Input::new(cpu, v));
    let x1 = (c1 > 0).then(|| Input::new(cpu, &x1));
    let step = Input::new(cpu, &[step_word(8)]);
    let params =
        NormParams { gamma: gamma.view(), beta: beta.view(), modulation: modulated.then(|| modulation.view()) };
    let mut coefficients = Guarded::output(cpu, d.coefficients_len());
    let second = stats1.as_ref().map(Input::view);
    cpu.group_norm_coefficients(&d, stats0.view(), second, params, coefficients.view_mut()).unwrap();
    let (scales, shifts) = norm::coefficients(&d, &input);
    let all = coefficients.read(cpu);
    assert_close(&format!("{name} scale"), &all[..n * c], &scales, TOLERANCE);
    let size = ops_support::norm(&shifts).max(ops_support::norm(&scales));
    assert_scaled(&format!("{name} shift"), &to_f64(&all[n * c..2 * n * c]), &shifts, size, TOLERANCE);

    let input = NormInput { x0: x0.view(), x1: x1.as_ref().map(Input::view), coefficients: coefficients.view() };
    let dropout = dropped.then(|| Dropout { p: P, key: KEY, layer: 3, step: step.view() });
    let mut y = Guarded::output(cpu, n * pixels * c);
    cpu.group_norm_apply(&d, input, dropout, y.view_mut()).unwrap();
    // Groups of one element cancel: the error is relative to what cancels.
    let size = ops_support::norm(&y_want).max(ops_support::norm(&scales) * (pixels as f64).sqrt());
    assert_scaled(&format!("{name} y"), &to_f64(&y.read(cpu)), &y_want, size, TOLERANCE);

    let inputs = adds.each_ref().map(|a| Input::new(cpu, a));
    let other = OtherGradients {
        to0: [others.then(|| inputs[0].view()), others.then(|| inputs[1].view())],
        to1: (others && c1 > 0).then(|| inputs[2].view()),
    };
    let (mut dx0, mut dx1) = (Guarded::output(cpu, d.len0()), (c1 > 0).then(|| Guarded::output(cpu, d.len1())));
    let (mut dgamma, mut dbeta) = (Guarded::from(cpu, &vec![1.0; c]), Guarded::from(cpu, &vec![-2.0; c]));
    let mut dmodulation = modulated.then(|| Guarded::output(cpu, 2 * n * c));
    let mut sums = Guarded::output(cpu, n * c);
    let out = NormGradients {
        dx0: dx0.view_mut(),
        dx1: dx1.as_mut().map(Guarded::view_mut),
        dgamma: dgamma.view_mut(),
        dbeta: dbeta.view_mut(),
        dmodulation: dmodulation.as_mut().map(Guarded::view_mut),
        sums: Some(sums.view_mut()),
    };
    cpu.group_norm_backward(&d, input, params, dropout, g.view(), other, out).unwrap();
    let dx0 = dx0.read(cpu);
    let dx1 = dx1.map_or(vec![], |dx1| dx1.read(cpu));
    let mut dx = want.dx.clone();
    if others {
        let add = concat(&adds[0], c0, &adds[2], c1);
        let again = concat(&adds[1], c0, &vec![0.0; adds[2].len()], c1);
        dx.iter_mut().zip(add).zip(again).for_each(|((dx, a), b)| *dx += a + b);
    }
    // Groups of one element have no gradient but rounding: errors are taken relative to g.
    let size = ops_support::norm(&to_f64(&fill.f32s(5, n * pixels * c))).max(ops_support::norm(&dx));
    let size = size.max(ops_support::norm(&scales));
    assert_scaled(&format!("{name} dx"), &concat(&dx0, c0, &dx1, c1), &dx, size, TOLERANCE);
    assert_scaled(
        &format!("{name} sums"),
        &to_f64(&sums.read(cpu)),
        &want.sums,
        size * (pixels as f64).sqrt(),
        TOLERANCE,
    );
    let plus = |v: &[f64], before: f64| v.iter().map(|x| x + before).collect::<Vec<f64>>();
    assert_scaled(&format!("{name} dgamma"), &to_f64(&dgamma.read(cpu)), &plus(&want.dgamma, 1.0), size, TOLERANCE);
    assert_scaled(&format!("{name} dbeta"), &to_f64(&dbeta.read(cpu)), &plus(&want.dbeta, -2.0), size, TOLERANCE);
    if let Some(dm) = &dmodulation {
        assert_scaled(&format!("{name} dmodulation"), &to_f64(&dm.read(cpu)), &want.dmodulation, size, TOLERANCE);
    }
    [dx0, dx1, y.read(cpu), dgamma.read(cpu)].concat()
}

#[test]
fn group_norms() {
    let cpus = Cpus::new();
    // (images, pixels, channels, groups): one channel a group, one group, groups across the border of two inputs, vector edges.
    let shapes = [
        (1, 1, 1, 0, 1),
        (2, 5, 3, 0, 3),
        (3, 7, 4, 0, 1),
        (2, 9, 5, 4, 3),
        (1, 16, 15, 1, 4),
        (2, 33, 16, 16, 8),
        (2, 12, 17, 7, 2),
        (1, 64, 32, 0, 32),
        (2, 49, 31, 33, 4),
        (1, 100, 48, 16, 32),
    ];
    for (i, (n, pixels, c0, c1, groups)) in shapes.into_iter().enumerate() {
        let d = GroupNormDims { eps: 1e-5, n, pixels, c0, c1, groups, silu: 0 };
        for options in [0, 1, 3, 7, 15, 8 + (i as u32 % 8)] {
            cpus.check(&format!("group norm {d:?} {options}"), |cpu, name| group_norm(cpu, name, d, options));
        }
    }
}

fn attend(cpu: &Cpu, name: &str, d: AttentionDims, spread: f32) -> Vec<f32> {
    let fill = Fill::new(u64::from(d.tokens * 3 + d.head_dim));
    let qkv: Vec<f32> = fill.f32s(0, 3 * d.len()).into_iter().map(|x| x * spread).collect();
    let dy = fill.f32s(1, d.len());
    let (y_want, lse_want) = attention::forward(&d, &to_f64(&qkv));
    let dqkv_want = attention::backward(&d, &to_f64(&qkv), &to_f64(&dy));
    let (qkv, dy) = (Input::new(cpu, &qkv), Input::new(cpu, &dy));
    let (mut y, mut lse) = (Guarded::output(cpu, d.len()), Guarded::output(cpu, d.lse_len()));
    cpu.attention(&d, qkv.view(), y.view_mut(), lse.view_mut()).unwrap();
    let tolerance = TOLERANCE * f64::from(spread * spread).max(1.0);
    assert_close(&format!("{name} y"), &y.read(cpu), &y_want, tolerance);
    assert_scaled(&format!("{name} lse"), &to_f64(&lse.read(cpu)), &lse_want, (d.lse_len() as f64).sqrt(), tolerance);
    let mut dqkv = Guarded::output(cpu, 3 * d.len());
    cpu.attention_backward(&d, qkv.view(), y.view(), lse.view(), dy.view(), dqkv.view_mut()).unwrap();
    assert_close(&format!("{name} dqkv"), &dqkv.read(cpu), &dqkv_want, 4.0 * tolerance);
    [y.read(cpu), dqkv.read(cpu)].concat()
}

#[test]
fn attentions() {
    let cpus = Cpus::new();
    // Tokens and head sizes on both sides of vectors and of the rows in work at once; head counts and sizes that are no multiples of 16.
    let shapes = [
        (1, 1, 1, 1),
        (2, 3, 2, 5),
        (1, 16, 3, 8),
        (2, 17, 1, 16),
        (1, 63, 2, 33),
        (1, 64, 4, 4),
        (1, 65, 1, 15),
        (2, 49, 5, 7),
        (1, 130, 1, 64),
    ];
    for (n, tokens, heads, head_dim) in shapes {
        let d = AttentionDims { n, tokens, heads, head_dim };
        cpus.check(&format!("attention {d:?}"), |cpu, name| attend(cpu, name, d, 1.0));
    }
    // Scores in the hundreds: without the largest taken off, exponentials would be infinite.
    let d = AttentionDims { n: 1, tokens: 20, heads: 2, head_dim: 16 };
    cpus.check("attention of large scores", |cpu, name| attend(cpu, name, d, 8.0));
}

fn linear_layer(cpu: &Cpu, name: &str, d: LinearDims) -> Vec<f32> {
    let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
    let fill = Fill::new(u64::from(d.c * 5 + d.k));
    let values = [fill.f32s(0, n * c), fill.f32s(1, c * k), fill.f32s(2, k), fill.f32s(3, n * k)];
    let [x64, w64, b64, dy64] = values.each_ref().map(|v| to_f64(v));
    let [x, w, b, dy] = values.each_ref().map(|v| Input::new(cpu, v));
    let mut y = Guarded::output(cpu, n * k);
    cpu.linear(&d, x.view(), w.view(), b.view(), y.view_mut()).unwrap();
    assert_close(&format!("{name} y"), &y.read(cpu), &linear::forward(&d, &x64, &w64, &b64), TOLERANCE);
    let (dx_want, dw_want, db_want) = linear::backward(&d, &x64, &w64, &dy64);
    let mut results = y.read(cpu);
    for accumulate in [false, true] {
        let before = if accumulate { 3.0 } else { 0.0 };
        let mut dx = if accumulate { Guarded::from(cpu, &vec![3.0; n * c]) } else { Guarded::output(cpu, n * c) };
        let (mut dw, mut db) = (Guarded::from(cpu, &vec![1.0; c * k]), Guarded::from(cpu, &vec![2.0; k]));
        let out = LinearGradients { dx: Some(dx.view_mut()), accumulate, dw: dw.view_mut(), db: db.view_mut() };
        cpu.linear_backward(&d, x.view(), w.view(), dy.view(), out).unwrap();
        let plus = |v: &[f64], by: f64| v.iter().map(|x| x + by).collect::<Vec<f64>>();
        assert_close(&format!("{name} dx"), &dx.read(cpu), &plus(&dx_want, before), TOLERANCE);
        assert_close(&format!("{name} dw"), &dw.read(cpu), &plus(&dw_want, 1.0), TOLERANCE);
        assert_close(&format!("{name} db"), &db.read(cpu), &plus(&db_want, 2.0), TOLERANCE);
        results.extend([dx.read(cpu), dw.read(cpu)].concat());
    }
    results
}

#[test]
fn linear_layers() {
    let cpus = Cpus::new();
    for (n, c, k) in [(1, 1, 1), (2, 3, 5), (9, 16, 17), (7, 33, 8), (16, 32, 128), (17, 65, 31)] {
        for silu in [0, 1] {
            let d = LinearDims { n, c, k, silu };
            cpus.check(&format!("linear {d:?}"), |cpu, name| linear_layer(cpu, name, d));
        }
    }
}

#[test]
fn embeddings() {
    let cpus = Cpus::new();
    let timesteps = [0.0, 1.0, 17.0, 250.5, 999.0];
    let n = timesteps.len();
    for (c, flip, freq_shift) in [(2, 0, 0), (9, 1, 0), (16, 0, 1), (33, 1, 1), (128, 1, 0)] {
        let d = TimestepDims { n: n as u32, c, flip, freq_shift };
        cpus.check(&format!("timesteps {d:?}"), |cpu, name| {
            let (t, mut emb) = (Input::new(cpu, &timesteps), Guarded::output(cpu, n * c as usize));
            cpu.embed_timesteps(&d, t.view(), None, emb.view_mut()).unwrap();
            assert_close(name, &emb.read(cpu), &embed::positional(&d, &to_f64(&timesteps)), 1e-6);
            emb.read(cpu)
        });
    }
    let (timesteps, frequencies) = ([1.0, 2.5, 900.0], [0.3, -16.0, 7.25]);
    let d = TimestepDims { n: 3, c: 6, flip: 1, freq_shift: 0 };
    cpus.check("fourier", |cpu, name| {
        let (t, f) = (Input::new(cpu, &timesteps), Input::new(cpu, &frequencies));
        let mut emb = Guarded::output(cpu, 18);
        cpu.embed_timesteps(&d, t.view(), Some(f.view()), emb.view_mut()).unwrap();
        assert_close(name, &emb.read(cpu), &embed::fourier(&d, &to_f64(&timesteps), &to_f64(&frequencies)), 1e-6);
        let mut x = Guarded::from(cpu, &[2.0, 4.0, 5.0, 10.0, 9.0, 90.0]);
        cpu.divide_by_timesteps(t.view(), x.view_mut()).unwrap();
        assert_eq!(x.read(cpu), [2.0, 4.0, 2.0, 4.0, 0.01, 0.1]);
        emb.read(cpu)
    });
}

#[test]
fn classes_are_looked_up_and_their_gradients_come_back() {
    let cpus = Cpus::new();
    cpus.check("classes", |cpu, _| {
        let table = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (labels, table) = (Input::new(cpu, &[2.0, 0.0, 2.0]), Input::new(cpu, &table));
        let mut emb = Guarded::from(cpu, &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        cpu.embed_classes(labels.view(), table.view(), emb.view_mut()).unwrap();
        assert_eq!(emb.read(cpu), [15.0, 26.0, 31.0, 42.0, 55.0, 66.0]);
        let mut dtable = Guarded::from(cpu, &[1.0; 6]);
        cpu.embed_classes_backward(labels.view(), emb.view(), dtable.view_mut()).unwrap();
        assert_eq!(dtable.read(cpu), [32.0, 43.0, 1.0, 1.0, 71.0, 93.0]);
        let bad = Input::new(cpu, &[3.0, -1.0, f32::NAN]);
        cpu.embed_classes(bad.view(), table.view(), emb.view_mut()).unwrap();
        assert!(emb.read(cpu).iter().all(|x| x.is_nan()), "a label that is no class shows");
        dtable.read(cpu)
    });
}

fn resizes(cpu: &Cpu, name: &str, d: ResampleDims) -> Vec<f32> {
    let fill = Fill::new(u64::from(d.h * 3 + d.c));
    let (large, small, n, c) = (d.large(), d.small(), d.n as usize, d.c as usize);
    let (x_large, x_small, add) = (fill.f32s(0, large), fill.f32s(1, small), fill.f32s(2, small));
    let (wide, narrow, add_in) = (Input::new(cpu, &x_large), Input::new(cpu, &x_small), Input::new(cpu, &add));
    let stats_len = n * c * 2;
    let mut results = Vec::new();
    let (mut y, mut s) = (Guarded::output(cpu, large), Guarded::output(cpu, stats_len));
    cpu.double_forward(&d, narrow.view(), y.view_mut(), Some(s.view_mut())).unwrap();
    let want = resize::double(&d, &to_f64(&x_small));
    assert_eq!(to_f64(&y.read(cpu)), want, "{name}: doubling copies");
    assert_close(&format!("{name} stats"), &s.read(cpu), &stats(&want, n, (d.h * d.w) as usize, c), TOLERANCE);
    results.extend(s.read(cpu));
    let mut dx = Guarded::output(cpu, small);
    cpu.double_backward(&d, wide.view(), Some(add_in.view()), dx.view_mut()).unwrap();
    let want = resize::double_backward(&d, &to_f64(&x_large), Some(&to_f64(&add)));
    assert_close(&format!("{name} double backward"), &dx.read(cpu), &want, TOLERANCE);
    results.extend(dx.read(cpu));
    for offset in [0, 1] {
        let (mut y, mut s) = (Guarded::output(cpu, small), Guarded::output(cpu, stats_len));
        cpu.keep_forward(&d, offset, wide.view(), y.view_mut(), Some(s.view_mut())).unwrap();
        let want = resize::keep(&d, offset, &to_f64(&x_large));
        assert_eq!(to_f64(&y.read(cpu)), want, "{name}: keeping copies");
        let pixels = (d.h * d.w / 4) as usize;
        let truth = stats(&want, n, pixels, c);
        assert_scaled(
            &format!("{name} kept stats"),
            &to_f64(&s.read(cpu)),
            &truth,
            ops_support::norm(&truth),
            TOLERANCE,
        );
        let mut dx = Guarded::output(cpu, large);
        cpu.keep_backward(&d, offset, narrow.view(), dx.view_mut()).unwrap();
        assert_eq!(to_f64(&dx.read(cpu)), resize::keep_backward(&d, offset, &to_f64(&x_small)), "{name}");
        results.extend(s.read(cpu));
    }
    results
}

#[test]
fn doubling_and_keeping() {
    let cpus = Cpus::new();
    for (n, h, w, c) in [(1, 2, 2, 1), (2, 4, 6, 3), (3, 2, 8, 17), (1, 16, 10, 32)] {
        let d = ResampleDims { n, h, w, c };
        cpus.check(&format!("resize {d:?}"), |cpu, name| resizes(cpu, name, d));
    }
}

#[test]
fn wrong_views_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let buffer = |len: usize| cpu.alloc(len).unwrap();
    fn all(buffer: &CpuBuffer) -> &[f32] {
        Cpu::all(buffer)
    }
    let d = AttentionDims { n: 1, tokens: 4, heads: 2, head_dim: 3 };
    let attend = |qkv: usize, y: usize, lse: usize| {
        let (qkv, mut y, mut lse) = (buffer(qkv), buffer(y), buffer(lse));
        cpu.attention(&d, all(&qkv), Cpu::all_mut(&mut y), Cpu::all_mut(&mut lse))
    };
    attend(72, 24, 8).unwrap();
    assert_shape_error("qkv", attend(71, 24, 8));
    assert_shape_error("y", attend(72, 25, 8));
    assert_shape_error("lse", attend(72, 24, 7));
    let d = LinearDims { n: 2, c: 3, k: 4, silu: 0 };
    let layer = |x: usize, w: usize, b: usize, y: usize| {
        let (x, w, b, mut y) = (buffer(x), buffer(w), buffer(b), buffer(y));
        cpu.linear(&d, all(&x), all(&w), all(&b), Cpu::all_mut(&mut y))
    };
    layer(6, 12, 4, 8).unwrap();
    for (name, result) in
        [("x", layer(7, 12, 4, 8)), ("w", layer(6, 11, 4, 8)), ("b", layer(6, 12, 3, 8)), ("y", layer(6, 12, 4, 9))]
    {
        assert_shape_error(name, result);
    }
    let norm = |d: GroupNormDims, stats: usize, gamma: usize, coefficients: usize| {
        let (stats, gamma, mut out) = (buffer(stats), buffer(gamma), buffer(coefficients));
        let params = NormParams { gamma: all(&gamma), beta: all(&gamma), modulation: None };
        cpu.group_norm_coefficients(&d, all(&stats), None, params, Cpu::all_mut(&mut out))
    };
    let d = GroupNormDims { eps: 1e-5, n: 2, pixels: 4, c0: 6, c1: 0, groups: 3, silu: 0 };
    norm(d, 24, 6, 36).unwrap();
    assert_shape_error("stats", norm(d, 25, 6, 36));
    assert_shape_error("gamma", norm(d, 24, 5, 36));
    assert_shape_error("coefficients", norm(d, 24, 6, 35));
    assert_shape_error("groups", norm(GroupNormDims { groups: 4, ..d }, 24, 6, 40));
    let odd = ResampleDims { n: 1, h: 3, w: 2, c: 1 };
    let (x, mut y) = (buffer(6), buffer(6));
    assert_shape_error("odd", cpu.keep_forward(&odd, 0, all(&x), Cpu::all_mut(&mut y), None));
    let even = ResampleDims { n: 1, h: 2, w: 2, c: 1 };
    let (x, mut y) = (buffer(4), buffer(1));
    assert_shape_error("offset", cpu.keep_forward(&even, 2, all(&x), Cpu::all_mut(&mut y), None));
    let (t, mut emb) = (buffer(2), buffer(2));
    let d = TimestepDims { n: 2, c: 1, flip: 0, freq_shift: 0 };
    assert_shape_error("one channel", cpu.embed_timesteps(&d, all(&t), None, Cpu::all_mut(&mut emb)));
}
