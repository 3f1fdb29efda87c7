//! The fused convolution, forward and dgrad, on every backend against the float64 reference.

mod ops_support;

use ddim_engine::device::cpu::Cpu;
use ddim_engine::ops::conv::reference::stats;
use ddim_engine::ops::conv::{Conv, ConvDims, Epilogue, Filter, Operand, Output, Prologue};
use ddim_engine::ops::conv::{Direction, reference as truth};
use ops_support::conv_case::{ConvSpec, Operands, Slot};
use ops_support::{Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, rms, to_f64};

/// Relative 2-norm for a sum of `terms` terms. Measured: at most 1.3e-7 below 10 terms, 2.0e-7 below 200, 3.8e-7 below 600,
/// 7.4e-7 at 2304.
fn tolerance(terms: usize) -> f64 {
    3e-7 + 3e-8 * (terms as f64).sqrt()
}

/// Means against those of the output as it was written, relative to the output's size. Measured: at most 3.0e-7.
const MEAN_TOLERANCE: f64 = 1e-6;
/// The same of sums of squared deviations. Measured: at most 3.3e-6, where the shift (an image's first pixel) is far out.
const M2_TOLERANCE: f64 = 1e-5;

fn case<B: Conv>(backend: &B, name: &str, spec: &ConvSpec, operands: &Operands<Vec<f32>>, want: &[f64]) -> Vec<f32> {
    let (k, k0) = (spec.dims.k as usize, spec.k0 as usize);
    let got = spec.run(backend, operands).unwrap();
    let y = got.joined(k, k0);
    assert_close(&format!("y of {name}"), &y, want, tolerance(spec.terms()));
    if spec.stats {
        check_stats(name, spec, &to_f64(&got.stats), &to_f64(&y));
    }
    got.all()
}

fn check_stats(name: &str, spec: &ConvSpec, got: &[f64], y: &[f64]) {
    let (n, pixels) = (spec.dims.n as usize, (spec.dims.h * spec.dims.w) as usize);
    let want = stats(y, n, pixels, spec.dims.k as usize);
    let column = |stats: &[f64], i: usize| stats.iter().skip(i).step_by(2).copied().collect::<Vec<f64>>();
    let entries = ((want.len() / 2) as f64).sqrt();
    let (mean_scale, deviation_scale) = (rms(y) * entries, rms(y).powi(2) * pixels as f64 * entries);
    assert_scaled(&format!("mean of {name}"), &column(got, 0), &column(&want, 0), mean_scale, MEAN_TOLERANCE);
    assert_scaled(&format!("m2 of {name}"), &column(got, 1), &column(&want, 1), deviation_scale, M2_TOLERANCE);
}

/// Checks a case on all CPUs; the truth is computed once.
fn check(cpus: &Cpus, spec: &ConvSpec, threads: usize) {
    let operands = spec.operands(Fill::new(u64::from(spec.dims.k)));
    let want = spec.truth(&operands);
    cpus.check_threads(&format!("{spec:?}"), threads, |cpu, name| case(cpu, name, spec, &operands, &want));
}

fn dims(n: u32, h: u32, w: u32, c: [u32; 2], r: [u32; 2], k: u32, side: u32) -> ConvDims {
    ConvDims { n, h, w, c0: c[0], c1: c[1], r0: r[0], r1: r[1], k, side }
}

/// One option at a time, so that a failure names its cause.
#[test]
fn each_option_alone() {
    let cpus = Cpus::new();
    for side in [1, 3] {
        let one = ConvSpec::plain(dims(2, 5, 7, [5, 0], [0, 0], 19, side));
        let two = ConvSpec::plain(dims(2, 5, 7, [5, 3], [0, 0], 19, side));
        let res = ConvSpec::plain(dims(2, 5, 7, [5, 0], [6, 0], 19, side));
        let res2 = ConvSpec::plain(dims(2, 5, 7, [5, 0], [6, 4], 19, side));
        let joined = ConvSpec::plain(dims(2, 5, 7, [5, 0], [5, 0], 19, side));
        let (dgrad, split) = (ConvSpec { dgrad: Some(19), ..one }, ConvSpec { k0: 11, ..one });
        for spec in [
            one,
            two,
            res,
            res2,
            split,
            dgrad,
            ConvSpec { x1_constant: true, ..two },
            ConvSpec { res1_constant: true, ..res2 },
            ConvSpec { affine: true, ..one },
            ConvSpec { affine: true, ..two },
            ConvSpec { affine: true, x1_constant: true, ..two },
            ConvSpec { silu: true, ..one },
            ConvSpec { silu: true, affine: true, ..two },
            ConvSpec { bias: true, ..one },
            ConvSpec { bias: true, bias_res: true, ..res },
            ConvSpec { silu_grad: true, bias: true, ..one },
            ConvSpec { silu_grad: true, ..split },
            ConvSpec { epilogue_affine: true, ..one },
            ConvSpec { epilogue_affine: true, ..split },
            ConvSpec { add0: true, ..one },
            ConvSpec { add0: true, ..split },
            ConvSpec { add1: true, ..split },
            ConvSpec { stats: true, ..one },
            ConvSpec { stats: true, add0: true, ..split },
            ConvSpec { dgrad: Some(25), ..one },
            ConvSpec { factor: true, ..dgrad },
            ConvSpec { factor: true, dgrad: Some(19), ..joined },
            ConvSpec { factor: true, dgrad: Some(40), epilogue_affine: true, add0: true, k0: 3, ..joined },
            ConvSpec { lead: 1, affine: true, bias: true, stats: true, epilogue_affine: true, ..split },
        ] {
            check(&cpus, &spec, 3);
        }
    }
}

/// All pairs of channels, sizes and options drawn.
#[test]
fn sampled_sizes_and_options() {
    let cpus = Cpus::new();
    for case in 0..256 {
        check(&cpus, &ConvSpec::sampled(case, 150_000), 3);
    }
}

/// Pictures that are cut into bands, rows wider than a band, and batches of many small pictures.
#[test]
fn cuts_into_units() {
    let cpus = Cpus::new();
    for (n, h, w, c1) in [
        (2, 33, 40, 0),
        (1, 23, 24, 3),
        (3, 31, 17, 0),
        (1, 3, 600, 2),
        (2, 1, 530, 0),
        (1, 530, 1, 0),
        (35, 2, 2, 0),
        (35, 3, 1, 4),
        (67, 1, 1, 2),
        (17, 4, 4, 0),
    ] {
        let plain = ConvSpec::plain(dims(n, h, w, [6, c1], [3, c1], 18, 3));
        let spec = ConvSpec { stats: true, bias: true, affine: true, add0: true, k0: 7, ..plain };
        check(&cpus, &ConvSpec { x1_constant: true, res1_constant: true, epilogue_affine: true, ..spec }, 3);
        check(&cpus, &ConvSpec { dims: ConvDims { side: 1, ..spec.dims }, ..spec }, 3);
    }
}

/// Many threads get smaller groups of small pictures than few: the same bits.
#[test]
fn many_threads() {
    let (one, many) = (Cpu::new(1).unwrap(), Cpu::new(24).unwrap());
    for d in [dims(40, 4, 4, [24, 0], [3, 0], 20, 3), dims(67, 2, 3, [5, 2], [0, 0], 9, 1)] {
        let spec = ConvSpec { stats: true, bias: true, ..ConvSpec::plain(d) };
        let operands = spec.operands(Fill::new(4));
        let [one, many] = [&one, &many].map(|cpu| spec.run(cpu, &operands).unwrap().all());
        assert!(one.iter().map(|x| x.to_bits()).eq(many.iter().map(|x| x.to_bits())), "{d:?}");
    }
}

/// Extents at which the CPU works on tiles of 2x2 pixels: pictures of odd and even sides, down to a single tile, channels that do and
/// do not fill vectors, several batches of tiles and several bands.
#[test]
fn tiles_of_two_by_two() {
    let cpus = Cpus::new();
    for (n, h, w, c, k) in [
        (3, 2, 2, 16, 16),
        (2, 3, 3, 72, 80),
        (2, 2, 9, 33, 35),
        (2, 9, 2, 40, 17),
        (3, 5, 7, 48, 24),
        (1, 13, 50, 20, 48),
        (1, 64, 31, 16, 33),
        (1, 6, 300, 24, 16),
        (9, 8, 8, 64, 64),
        (1, 30, 34, 144, 20),
    ] {
        let plain = ConvSpec::plain(dims(n, h, w, [c, 0], [0, 0], k, 3));
        let packed = cpus.best().conv_packed_len(&plain.dims);
        assert_eq!(packed % (16 * c as usize), 0, "16 products for each pair of channels at {:?}", plain.dims);
        let two = ConvSpec::plain(dims(n, h, w, [c - 5, 5], [0, 0], k, 3));
        let res = ConvSpec::plain(dims(n, h, w, [c, 0], [9, 70], k, 3));
        let dgrad = ConvSpec { dgrad: Some(k), factor: true, ..plain };
        for spec in [
            ConvSpec { bias: true, stats: true, ..plain },
            ConvSpec { affine: true, silu: true, x1_constant: true, add0: true, ..two },
            ConvSpec { res1_constant: true, bias: true, bias_res: true, stats: true, ..res },
            ConvSpec { epilogue_affine: true, k0: k - 3, add1: true, ..dgrad },
        ] {
            check(&cpus, &spec, 2);
        }
    }
}

/// Layers of the seed network, as it runs them.
#[test]
fn layers_of_the_seed() {
    let cpus = Cpus::new();
    // conv1: batch norm's affine in front. conv2: SiLU in front, 1x1 residual of the block's input, statistics.
    let conv1 = |n, hw, c: [u32; 2], k| {
        let plain = ConvSpec::plain(dims(n, hw, hw, c, [0, 0], k, 3));
        ConvSpec { affine: true, bias: true, ..plain }
    };
    let conv2 = |n, hw, c: [u32; 2], k| {
        let plain = ConvSpec::plain(dims(n, hw, hw, [k, 0], c, k, 3));
        ConvSpec { silu: true, bias: true, bias_res: true, stats: true, ..plain }
    };
    // Backward through conv1, batch norm and residual at once, into the two tensors of the concatenation.
    let dgrad = |n, hw, k, c: [u32; 2]| {
        let plain = ConvSpec::plain(dims(n, hw, hw, [k, 0], [k, 0], c[0] + c[1], 3));
        ConvSpec { dgrad: Some(c[0] + c[1]), factor: true, epilogue_affine: true, add1: true, k0: c[0], ..plain }
    };
    for spec in [
        ConvSpec { bias: true, stats: true, ..ConvSpec::plain(dims(2, 64, 64, [3, 0], [0, 0], 32, 1)) },
        ConvSpec { x1_constant: true, ..conv1(1, 64, [32, 32], 32) },
        ConvSpec { res1_constant: true, ..conv2(1, 64, [32, 32], 32) },
        conv2(2, 32, [32, 64], 32),
        conv1(2, 16, [96, 96], 64),
        conv2(2, 16, [64, 96], 64),
        dgrad(2, 16, 64, [96, 96]),
        conv1(3, 8, [128, 0], 128),
        dgrad(3, 8, 96, [96, 128]),
        conv1(3, 4, [128, 0], 256),
        ConvSpec { silu_grad: true, dgrad: Some(128), ..ConvSpec::plain(dims(3, 4, 4, [256, 0], [0, 0], 128, 3)) },
        ConvSpec { bias: true, ..ConvSpec::plain(dims(2, 64, 64, [32, 0], [0, 0], 3, 1)) },
    ] {
        check(&cpus, &spec, 2);
    }
}

/// Mean 1000, deviation 1: a variance taken as E[y^2] - m^2 in single precision would be off by several percent.
#[test]
fn stats_survive_a_large_mean() {
    let cpus = Cpus::new();
    for hw in [8, 40] {
        let plain = ConvSpec::plain(dims(2, hw, hw, [4, 0], [0, 0], 20, 1));
        let spec = ConvSpec { bias: true, stats: true, ..plain };
        let mut operands = spec.operands(Fill::new(1));
        operands.0[Slot::Bias as usize] = Some(vec![1000.0; 20]);
        cpus.check("stats with a large mean", |cpu, name| {
            let got = spec.run(cpu, &operands).unwrap();
            let want = stats(&to_f64(&got.y0), 2, (hw * hw) as usize, 20);
            for (got, want) in got.stats.chunks_exact(2).zip(want.chunks_exact(2)) {
                assert_close(&format!("mean on {name}"), &got[..1], &want[..1], 1e-7);
                assert_close(&format!("m2 on {name}"), &got[1..], &want[1..], 2e-5); // measured: 4.1e-6
            }
            got.all()
        });
    }
}

/// Results of an image must not depend on the images beside it.
#[test]
fn an_image_does_not_see_its_batch() {
    let cpus = Cpus::new();
    let together =
        ConvSpec { stats: true, affine: true, silu: true, ..ConvSpec::plain(dims(35, 3, 5, [9, 0], [0, 0], 21, 3)) };
    let operands = together.operands(Fill::new(2));
    let alone = ConvSpec { dims: ConvDims { n: 1, ..together.dims }, ..together };
    let mut first = operands.clone();
    first.0[Slot::X0 as usize].as_mut().unwrap().truncate(15 * 9);
    cpus.check("one image of a batch", |cpu, name| {
        let (all, one) = (together.run(cpu, &operands).unwrap(), alone.run(cpu, &first).unwrap());
        assert_eq!(one.y0, all.y0[..one.y0.len()], "{name}");
        assert_eq!(one.stats, all.stats[..one.stats.len()], "{name}");
        one.all()
    });
}

/// Too short and too long views are refused with an error, never a panic.
#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let everything = ConvSpec {
        affine: true,
        bias: true,
        bias_res: true,
        silu_grad: true,
        epilogue_affine: true,
        add0: true,
        add1: true,
        stats: true,
        k0: 3,
        ..ConvSpec::plain(dims(2, 3, 4, [3, 2], [2, 1], 5, 3))
    };
    let dgrad = ConvSpec { factor: true, dgrad: Some(5), dims: dims(2, 3, 4, [3, 0], [3, 0], 5, 3), ..everything };
    for (spec, slots) in [(everything, &Slot::ALL[..18]), (dgrad, &[Slot::W, Slot::WRes, Slot::Factor][..])] {
        let operands = spec.operands(Fill::new(3));
        assert!(spec.run(cpus.best(), &operands).is_ok());
        for &slot in slots.iter().filter(|&&slot| operands.get(slot).is_some()) {
            let mut short = operands.clone();
            short.0[slot as usize].as_mut().unwrap().pop();
            assert_shape_error(&format!("{slot:?} too short"), spec.run(cpus.best(), &short).map(|_| ()));
            if slot != Slot::Factor {
                let mut long = operands.clone();
                long.0[slot as usize].as_mut().unwrap().push(0.0);
                assert_shape_error(&format!("{slot:?} too long"), spec.run(cpus.best(), &long).map(|_| ()));
            }
        }
        for slot in [Slot::X1, Slot::V1, Slot::Res0, Slot::Res1].into_iter().filter(|&s| operands.get(s).is_some()) {
            let mut missing = operands.clone();
            missing.0[slot as usize] = None;
            assert_shape_error(&format!("{slot:?} missing"), spec.run(cpus.best(), &missing).map(|_| ()));
        }
    }
    for bad in [
        ConvDims { n: 0, ..everything.dims },
        ConvDims { side: 2, ..everything.dims },
        ConvDims { k: 0, ..everything.dims },
        ConvDims { r0: 0, ..everything.dims },
    ] {
        assert_shape_error(&format!("{bad:?}"), bad.validate());
    }
}

/// Outputs of the wrong length, absent and superfluous ones.
#[test]
fn wrong_outputs_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let d = dims(1, 2, 2, [3, 0], [0, 0], 5, 1);
    let x = Input::new(cpu, &[1.0; 12]);
    let w = Input::new(cpu, &[1.0; 15]);
    let mut packed = Guarded::output(cpu, cpu.conv_packed_len(&d));
    let filter = Filter { w: w.view(), w_res: None, forward_c: 3, scale: None };
    cpu.conv_pack(&d, Direction::Forward, filter, packed.view_mut()).unwrap();
    let packed = packed.read(cpu);
    let attempt = |y0: usize, y1: Option<usize>, k0: usize, stats: Option<usize>, packed: &[f32]| {
        let packed = Input::new(cpu, packed);
        let mut y0 = Guarded::output(cpu, y0);
        let mut y1 = y1.map(|len| Guarded::output(cpu, len));
        let mut stats = stats.map(|len| Guarded::output(cpu, len));
        let out = Output {
            y0: y0.view_mut(),
            y1: y1.as_mut().map(Guarded::view_mut),
            k0,
            stats: stats.as_mut().map(Guarded::view_mut),
        };
        let input = Operand::one(x.view());
        cpu.conv(&d, input, Prologue::none(), None, packed.view(), Epilogue::default(), out)
    };
    attempt(20, None, 5, Some(10), &packed).unwrap();
    attempt(8, Some(12), 2, None, &packed).unwrap();
    assert_shape_error("y0 short", attempt(19, None, 5, None, &packed));
    assert_shape_error("y1 short", attempt(8, Some(11), 2, None, &packed));
    assert_shape_error("y1 absent", attempt(8, None, 2, None, &packed));
    assert_shape_error("y1 superfluous", attempt(20, Some(4), 5, None, &packed));
    assert_shape_error("k0 too large", attempt(24, None, 6, None, &packed));
    assert_shape_error("stats short", attempt(20, None, 5, Some(9), &packed));
    assert_shape_error("packed short", attempt(20, None, 5, None, &packed[1..]));
}

/// The reference itself against a sum written out by hand: the corner and the centre of a 3x3 picture, one channel.
#[test]
fn the_reference_against_pencil_and_paper() {
    let d = dims(1, 3, 3, [1, 0], [0, 0], 1, 3);
    let x: Vec<f64> = (1..=9).map(f64::from).collect();
    let w: Vec<f64> = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].to_vec();
    let y = truth::forward_product(&d, &x, &w);
    assert_eq!(y[4], 987_654_321.0); // pixel (i, j) meets the tap at the same place
    assert_eq!(y[0], 1.0 * 1e4 + 2.0 * 1e5 + 4.0 * 1e7 + 5.0 * 1e8); // taps above and left are outside
}
