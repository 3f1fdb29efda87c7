//! The fused convolution by the CUDA kernels, forward and dgrad, in all arithmetics, against the float64 reference: on the simulator
//! always (where it was built), on a GPU where there is one.

mod ops_support;

use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::ops::conv::ConvDims;
use ddim_engine::ops::conv::reference::stats;
use half::bf16;
use ops_support::conv_case::{ConvSpec, Operands, Slot};
use ops_support::{Fill, assert_close, assert_scaled, assert_shape_error, devices, rms, to_f64};

/// Relative 2-norm of y. Measured: at most 1.4e-6, 7.6e-4 and 2.8e-3.
fn tolerance(arithmetic: Arithmetic) -> f64 {
    match arithmetic {
        Arithmetic::Fp32 => 3e-6,
        Arithmetic::Tf32 => 1.5e-3,
        Arithmetic::Bf16 => 6e-3,
    }
}

/// Statistics against those of the output as it was stored, relative to the output's size. Measured: at most 1.8e-07 and 2.1e-07.
const MEAN_TOLERANCE: f64 = 1e-6;
const M2_TOLERANCE: f64 = 3e-6;

const ALL: [Arithmetic; 3] = [Arithmetic::Fp32, Arithmetic::Tf32, Arithmetic::Bf16];

/// Operands as a device keeps them, with the truth that follows from them.
struct Case<'a> {
    spec: &'a ConvSpec,
    operands: Operands<Vec<f32>>,
    want: Vec<f64>,
}

impl<'a> Case<'a> {
    fn new(spec: &'a ConvSpec, operands: Operands<Vec<f32>>) -> Self {
        let want = spec.truth(&operands);
        Case { spec, operands, want }
    }

    /// Right, and where `twice` equal to the bit when run again.
    fn check<L: Launcher>(&self, gpu: &Gpu<L>, name: &str, twice: bool) -> Vec<f32> {
        let spec = self.spec;
        let got = spec.run(gpu, &self.operands).unwrap();
        let y = got.joined(spec.dims.k as usize, spec.k0 as usize);
        assert_close(&format!("y of {name}"), &y, &self.want, tolerance(gpu.arithmetic()));
        if spec.stats {
            check_stats(name, spec, &to_f64(&got.stats), &to_f64(&y));
        }
        let got = got.all();
        if twice {
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            let again = spec.run(gpu, &self.operands).unwrap().all();
            assert!(bits(&got) == bits(&again), "{name}: a second run gives other bits");
        }
        got
    }
}

/// The case of float32 activations and that of bfloat16.
fn cases(spec: &ConvSpec) -> [Case<'_>; 2] {
    let drawn = spec.operands(Fill::new(u64::from(spec.dims.k)));
    let rounded = spec.rounded(&drawn, |v| bf16::from_f32(v).to_f32());
    [Case::new(spec, drawn), Case::new(spec, rounded)]
}

fn check_runs(spec: &ConvSpec, twice: bool) {
    let [wide, narrow] = cases(spec);
    for arithmetic in ALL {
        let case = if arithmetic == Arithmetic::Bf16 { &narrow } else { &wide };
        check_gpus!(arithmetic, format!("{spec:?}"), |gpu, name| case.check(gpu, name, twice));
    }
}

fn check(spec: &ConvSpec) {
    check_runs(spec, true);
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

fn dims(n: u32, hw: [u32; 2], c: [u32; 2], r: [u32; 2], k: u32, side: u32) -> ConvDims {
    ConvDims { n, h: hw[0], w: hw[1], c0: c[0], c1: c[1], r0: r[0], r1: r[1], k, side }
}

/// One option at a time. Odd channels and odd addresses; then units of 16 bytes throughout (`even`).
fn options(side: u32, even: bool) -> Vec<ConvSpec> {
    let plain = |c: [u32; 2], r: [u32; 2]| {
        let (c, r, k) =
            if even { (c.map(|c| c * 8), r.map(|r| r * 8), 40) } else { (c.map(|c| c * 5), r.map(|r| r * 3), 19) };
        let spec = ConvSpec::plain(dims(2, [5, 7], c, r, k, side));
        ConvSpec { lead: if even { 16 } else { 1 }, ..spec }
    };
    let (one, two) = (plain([2, 0], [0, 0]), plain([2, 1], [0, 0]));
    let (res, res2) = (plain([2, 0], [1, 0]), plain([2, 0], [2, 1]));
    let joined = ConvSpec { dims: ConvDims { r0: one.dims.c0, ..one.dims }, ..one };
    let k = one.dims.k;
    let (dgrad, split) = (ConvSpec { dgrad: Some(k), ..one }, ConvSpec { k0: if even { 24 } else { 11 }, ..one });
    vec![
        one,
        two,
        res,
        res2,
        split,
        dgrad,
        ConvSpec { x1_constant: true, ..two },
        ConvSpec { res1_constant: true, ..res2 },
        ConvSpec { affine: true, ..one },
        ConvSpec { affine: true, x1_constant: true, ..two },
        ConvSpec { silu: true, ..one },
        ConvSpec { silu: true, affine: true, ..two },
        ConvSpec { bias: true, ..one },
        ConvSpec { bias: true, bias_res: true, ..res },
        ConvSpec { silu_grad: true, ..split },
        ConvSpec { epilogue_affine: true, ..split },
        ConvSpec { add0: true, ..split },
        ConvSpec { add1: true, ..split },
        ConvSpec { stats: true, ..one },
        ConvSpec { stats: true, add0: true, ..split },
        ConvSpec { factor: true, dgrad: Some(k + 6), ..one },
        ConvSpec { factor: true, dgrad: Some(k), epilogue_affine: true, add0: true, ..joined },
    ]
}

/// Everything at once.
fn everything(side: u32, even: bool) -> ConvSpec {
    let spec =
        ConvSpec { affine: true, silu: true, bias: true, bias_res: true, silu_grad: true, ..options(side, even)[3] };
    let k0 = spec.dims.k - if even { 16 } else { 4 };
    ConvSpec { epilogue_affine: true, add0: true, add1: true, stats: true, k0, ..spec }
}

#[test]
fn each_option_alone() {
    for (side, even) in [(1, false), (1, true), (3, false), (3, true)] {
        let everything = everything(side, even);
        options(side, even).iter().chain([&everything, &ConvSpec { per_image: true, ..everything }]).for_each(check);
    }
}

/// The simulator's checker for races, bounds and memory that was never written finds nothing.
#[test]
fn options_under_the_checker() {
    let missing = Sim::checked().err().map(|error| error.to_string());
    let check = |spec: &ConvSpec| {
        let [wide, narrow] = cases(spec);
        for arithmetic in ALL {
            devices::run_or_skip("sim-checker", missing.clone(), || {
                let gpu = Gpu::new(Sim::checked().unwrap(), arithmetic);
                gpu.poison_new_buffers();
                gpu.separate_buffers();
                let case = if arithmetic == Arithmetic::Bf16 { &narrow } else { &wide };
                case.check(&gpu, &format!("{spec:?} under the checker in {arithmetic}"), false);
            });
        }
    };
    for (side, even) in [(1, false), (1, true), (3, false), (3, true)] {
        let everything = everything(side, even);
        check(&everything);
        // Every kernel: by tile and by output channels; fewer than 8 channels in or out.
        for (n, hw, k) in [(1, [17, 16], 32), (1, [9, 16], 64), (2, [8, 8], 40), (5, [4, 4], 33), (1, [5, 5], 3)] {
            let per_image = k % 8 == 0;
            let dims = ConvDims { n, h: hw[0], w: hw[1], k, ..everything.dims };
            check(&ConvSpec { dims, k0: k, per_image, ..everything });
        }
        let dgrad = ConvSpec::plain(dims(1, [5, 6], [16, 0], [16, 0], 40, side));
        check(&ConvSpec { dgrad: Some(48), factor: true, ..dgrad });
    }
}

/// All pairs of channels, sizes and options drawn; every fourth with aligned views, every fifth run twice.
#[test]
fn sampled_sizes_and_options() {
    for case in 0..256 {
        let lead = [1, 2, 3, 16][case % 4];
        check_runs(&ConvSpec { lead, ..ConvSpec::sampled(case, 100_000) }, case % 5 == 0);
    }
}

/// Pictures that are cut into tiles in every way, and tiles of many small pictures.
#[test]
fn cuts_into_tiles() {
    for (n, hw, c1) in [
        (2, [33, 40], 0),
        (1, [23, 24], 3),
        (3, [31, 17], 0),
        (1, [3, 150], 2),
        (2, [1, 130], 0),
        (1, [130, 1], 0),
        (35, [2, 2], 0),
        (35, [3, 1], 4),
        (67, [1, 1], 2),
        (17, [4, 4], 0),
        (5, [8, 8], 8),
    ] {
        for k in [18, 40] {
            let plain = ConvSpec::plain(dims(n, hw, [8, c1], [3, c1], k, 3));
            let spec = ConvSpec { stats: true, bias: true, affine: true, add0: true, k0: 7, lead: 16, ..plain };
            let per_image = n % 2 == 1;
            let spec = ConvSpec { x1_constant: true, res1_constant: true, epilogue_affine: true, per_image, ..spec };
            let side = if k == 18 { 3 } else { [1, 3][n as usize % 2] };
            check_runs(&ConvSpec { dims: ConvDims { side, ..spec.dims }, ..spec }, false);
        }
    }
}

/// Layers of the seed network, as it runs them. The picture at both ends stays float32 where activations are bfloat16.
#[test]
fn layers_of_the_seed() {
    // conv1: batch norm's affine in front. conv2: SiLU in front, 1x1 residual of the block's input, statistics.
    let conv1 = |n, hw, c: [u32; 2], k| {
        let plain = ConvSpec::plain(dims(n, [hw, hw], c, [0, 0], k, 3));
        ConvSpec { affine: true, bias: true, ..plain }
    };
    let conv2 = |n, hw, c: [u32; 2], k| {
        let plain = ConvSpec::plain(dims(n, [hw, hw], [k, 0], c, k, 3));
        ConvSpec { silu: true, bias: true, bias_res: true, stats: true, ..plain }
    };
    // Backward through conv1, batch norm and residual at once, into the two tensors of the concatenation.
    let dgrad = |n, hw, k, c: [u32; 2]| {
        let plain = ConvSpec::plain(dims(n, [hw, hw], [k, 0], [k, 0], c[0] + c[1], 3));
        ConvSpec { dgrad: Some(c[0] + c[1]), factor: true, epilogue_affine: true, add1: true, k0: c[0], ..plain }
    };
    let stem = ConvSpec::plain(dims(1, [64, 64], [3, 0], [0, 0], 32, 1));
    let head = ConvSpec::plain(dims(1, [64, 64], [32, 0], [0, 0], 3, 1));
    for spec in [
        ConvSpec { bias: true, stats: true, wide_input: true, ..stem },
        ConvSpec { bias: true, wide_output: true, ..head },
        ConvSpec { dgrad: Some(32), wide_input: true, ..stem },
        ConvSpec { x1_constant: true, ..conv1(1, 64, [32, 32], 32) },
        ConvSpec { res1_constant: true, ..conv2(1, 64, [32, 32], 32) },
        conv2(1, 32, [32, 64], 32),
        conv1(1, 16, [96, 96], 64),
        conv2(1, 16, [64, 96], 64),
        dgrad(1, 16, 64, [96, 96]),
        conv1(3, 8, [128, 0], 128),
        dgrad(3, 8, 96, [96, 128]),
        conv1(3, 4, [128, 0], 256),
        ConvSpec { silu_grad: true, dgrad: Some(128), ..ConvSpec::plain(dims(3, [4, 4], [256, 0], [0, 0], 128, 3)) },
    ] {
        check_runs(&ConvSpec { lead: 16, ..spec }, false);
    }
}

/// Mean 1000, deviation 1: a variance taken as E[y^2] - m^2 in single precision would be off by several percent.
#[test]
fn stats_survive_a_large_mean() {
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Tf32] {
        for hw in [8, 40] {
            let plain = ConvSpec::plain(dims(2, [hw, hw], [8, 0], [0, 0], 20, 1));
            let spec = ConvSpec { bias: true, stats: true, ..plain };
            let mut operands = spec.operands(Fill::new(1));
            operands.0[Slot::Bias as usize] = Some(vec![1000.0; 20]);
            check_gpus!(arithmetic, "stats with a large mean", |gpu, name| {
                let got = spec.run(gpu, &operands).unwrap();
                let want = stats(&to_f64(&got.y0), 2, (hw * hw) as usize, 20);
                for (got, want) in got.stats.chunks_exact(2).zip(want.chunks_exact(2)) {
                    assert_close(&format!("mean of {name}"), &got[..1], &want[..1], 3e-7);
                    assert_close(&format!("m2 of {name}"), &got[1..], &want[1..], 4e-5); // measured: 1.5e-5
                }
                got.all()
            });
        }
    }
}

/// Results of an image must not depend on the images beside it.
#[test]
fn images_do_not_see_each_other() {
    for (arithmetic, hw) in ALL.into_iter().flat_map(|a| [[4, 4], [8, 8], [17, 20]].map(|hw| (a, hw))) {
        let together = ConvSpec { stats: true, silu: true, ..ConvSpec::plain(dims(3, hw, [9, 0], [0, 0], 40, 3)) };
        let operands = together.operands(Fill::new(5));
        let alone = ConvSpec { dims: ConvDims { n: 1, ..together.dims }, ..together };
        let mut first = operands.clone();
        first.0[Slot::X0 as usize].as_mut().unwrap().truncate((hw[0] * hw[1] * 9) as usize);
        check_gpus!(arithmetic, "one image of a batch", |gpu, name| {
            let (all, one) = (together.run(gpu, &operands).unwrap(), alone.run(gpu, &first).unwrap());
            assert_eq!(one.y0, all.y0[..one.y0.len()], "{name}");
            assert_eq!(one.stats, all.stats[..one.stats.len()], "{name}");
            one.all()
        });
    }
}

/// A number that is not one comes through, whatever its bits.
#[test]
fn not_a_number_stays_one() {
    for (arithmetic, slot) in ALL.into_iter().flat_map(|a| [Slot::X0, Slot::W].map(|slot| (a, slot))) {
        for bits in [0x7fff_ffff_u32, 0xffff_ffff, 0x7fc0_0000] {
            let spec = ConvSpec::plain(dims(1, [4, 4], [8, 0], [0, 0], 8, 1));
            let mut operands = spec.operands(Fill::new(0));
            operands.0[slot as usize].as_mut().unwrap()[0] = f32::from_bits(bits);
            check_gpus!(arithmetic, format!("{slot:?} {bits:x}"), |gpu, name| {
                let got = spec.run(gpu, &operands).unwrap();
                assert!(got.y0[0].is_nan(), "{name}: {}", got.y0[0]);
                got.all()
            });
        }
    }
}

/// Too short and too long views, and mixtures of element types that no kernel takes, are refused.
#[test]
fn what_does_not_fit_is_an_error() {
    for arithmetic in ALL {
        let everything = everything(3, false);
        let dgrad = ConvSpec { factor: true, dgrad: Some(5), ..ConvSpec::plain(dims(2, [3, 4], [3, 0], [3, 0], 5, 3)) };
        for (spec, slots) in [(everything, &Slot::ALL[..18]), (dgrad, &[Slot::W, Slot::WRes, Slot::Factor][..])] {
            let operands = spec.operands(Fill::new(3));
            check_gpus!(arithmetic, "wrong lengths", |gpu, name| {
                for &slot in slots.iter().filter(|&&slot| operands.get(slot).is_some()) {
                    let mut short = operands.clone();
                    short.0[slot as usize].as_mut().unwrap().pop();
                    assert_shape_error(&format!("{name}: {slot:?} too short"), spec.run(gpu, &short).map(|_| ()));
                    if slot != Slot::Factor {
                        let mut long = operands.clone();
                        long.0[slot as usize].as_mut().unwrap().push(0.0);
                        assert_shape_error(&format!("{name}: {slot:?} too long"), spec.run(gpu, &long).map(|_| ()));
                    }
                }
                for slot in [Slot::X1, Slot::V1, Slot::Res0, Slot::Res1] {
                    let mut missing = operands.clone();
                    if missing.0[slot as usize].take().is_some() {
                        assert_shape_error(&format!("{name}: {slot:?} missing"), spec.run(gpu, &missing).map(|_| ()));
                    }
                }
                spec.run(gpu, &operands).unwrap().all()
            });
        }
        let wide = ConvSpec { wide_input: true, wide_output: true, ..everything };
        let operands = wide.operands(Fill::new(3));
        check_gpus!(arithmetic, "float32 to float32", |gpu, name| {
            let result = wide.run(gpu, &operands).map(|results| results.all());
            if arithmetic == Arithmetic::Bf16 {
                assert_shape_error(name, result.map(|_| ()));
                vec![]
            } else {
                result.unwrap()
            }
        });
    }
}
