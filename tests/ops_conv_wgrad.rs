//! The weight gradients of the convolution on every backend against the float64 reference.

mod ops_support;

use ddim_engine::device::cpu::Cpu;
use ddim_engine::ops::conv::reference::WeightGradients;
use ddim_engine::ops::conv::{Conv, ConvDims};
use ops_support::conv_case::{ConvSpec, Operands, Slot, WgradResults};
use ops_support::{CHANNELS, Cpus, Fill, assert_close_f64, assert_scaled, assert_shape_error, norm, to_f64};

/// Relative 2-norm for sums over `pixels` pixels. Measured: at most 1.3e-7 below 50 pixels, 2.5e-7 below 200, 3.3e-7 below 600,
/// 4.9e-7 at 8192 (partial sums).
fn tolerance(pixels: usize) -> f64 {
    (2e-7 + 2e-8 * (pixels as f64).sqrt()).min(1e-6)
}

/// A case: its options, operands, what it accumulates on, and the truth.
struct Case {
    spec: ConvSpec,
    operands: Operands<Vec<f32>>,
    before: WgradResults,
    want: WeightGradients,
    sums: bool,
}

impl Case {
    fn new(spec: ConvSpec, sums: bool) -> Self {
        let fill = Fill::new(u64::from(spec.dims.k));
        let operands = spec.operands(fill);
        let want = spec.truth_wgrad(&operands);
        Case { spec, operands, before: WgradResults::before(&spec.dims, fill), want, sums }
    }

    fn run<B: Conv>(&self, backend: &B, name: &str) -> Vec<f32> {
        let got = self.spec.run_wgrad(backend, &self.operands, &self.before, self.sums).unwrap();
        let (before, want) = (&self.before, &self.want);
        self.compare(&format!("dw of {name}"), &got.dw, &before.dw, &want.dw);
        self.compare(&format!("dw_res of {name}"), &got.dw_res, &before.dw_res, &want.dw_res);
        if self.sums {
            self.compare(&format!("db of {name}"), &got.db, &before.db, &want.db);
            self.compare(&format!("db_res of {name}"), &got.db_res, &before.db_res, &want.db);
            let overwritten = vec![0.0; got.border_sums.len()];
            self.compare(&format!("border sums of {name}"), &got.border_sums, &overwritten, &want.border_sums);
        }
        got.all()
    }

    /// `got` is `before` plus the gradient; what was there adds to the scale that rounding errors have.
    fn compare(&self, name: &str, got: &[f32], before: &[f32], gradient: &[f64]) {
        let before = to_f64(before);
        let want: Vec<f64> = before.iter().zip(gradient).map(|(b, g)| b + g).collect();
        let scale = norm(gradient) + norm(&before);
        assert_scaled(name, &to_f64(got), &want, scale, tolerance(self.spec.dims.pixels()));
    }
}

fn check(cpus: &Cpus, spec: ConvSpec, sums: bool, threads: usize) {
    let case = Case::new(spec, sums);
    cpus.check_threads(&format!("{spec:?}"), threads, |cpu, name| case.run(cpu, name));
}

fn plain(n: u32, hw: [u32; 2], c: [u32; 2], r: [u32; 2], k: u32, side: u32) -> ConvSpec {
    ConvSpec::plain(ConvDims { n, h: hw[0], w: hw[1], c0: c[0], c1: c[1], r0: r[0], r1: r[1], k, side })
}

#[test]
fn each_option_alone() {
    let cpus = Cpus::new();
    for side in [1, 3] {
        let one = plain(2, [5, 7], [5, 0], [0, 0], 19, side);
        let two = plain(2, [5, 7], [5, 3], [0, 0], 19, side);
        let res = plain(2, [5, 7], [5, 0], [6, 4], 19, side);
        for spec in [
            one,
            two,
            res,
            ConvSpec { x1_constant: true, ..two },
            ConvSpec { res1_constant: true, ..res },
            ConvSpec { affine: true, ..two },
            ConvSpec { silu: true, ..one },
            ConvSpec { silu: true, affine: true, x1_constant: true, ..two },
            ConvSpec { lead: 1, affine: true, ..res },
        ] {
            check(&cpus, spec, false, 3);
            check(&cpus, spec, true, 3);
        }
    }
}

/// All pairs of channels, sizes and options drawn.
#[test]
fn sampled_sizes_and_options() {
    let cpus = Cpus::new();
    for case in 0..256 {
        let drawn = ConvSpec { dgrad: None, factor: false, ..ConvSpec::sampled(case, 150_000) };
        check(&cpus, drawn, case % 3 > 0, 3);
    }
}

/// Pictures that are cut into bands, rows wider than a band, and batches of many small pictures.
#[test]
fn cuts_into_units() {
    let cpus = Cpus::new();
    for (n, hw) in [
        (2, [33, 40]),
        (1, [23, 24]),
        (3, [31, 17]),
        (1, [3, 600]),
        (1, [530, 1]),
        (35, [2, 2]),
        (67, [1, 1]),
        (17, [4, 4]),
        (40, [3, 1]),
    ] {
        for side in [1, 3] {
            let spec = ConvSpec { affine: true, x1_constant: true, ..plain(n, hw, [6, 3], [3, 2], 18, side) };
            check(&cpus, spec, true, 3);
        }
    }
}

/// Extents at which the CPU works on tiles of 2x2 pixels, as in `ops_conv`.
#[test]
fn tiles_of_two_by_two() {
    let cpus = Cpus::new();
    for (n, hw, c, k) in [
        (3, [2, 2], 16, 16),
        (2, [3, 3], 72, 80),
        (2, [2, 9], 33, 35),
        (2, [9, 2], 40, 17),
        (3, [5, 7], 48, 24),
        (1, [13, 50], 20, 48),
        (1, [64, 31], 16, 33),
        (1, [6, 300], 24, 16),
        (9, [8, 8], 64, 64),
        (1, [30, 34], 144, 20),
    ] {
        let two = plain(n, hw, [c - 5, 5], [9, 70], k, 3);
        for borders in [false, true] {
            check(&cpus, ConvSpec { silu: true, ..plain(n, hw, [c, 0], [0, 0], k, 3) }, borders, 2);
            check(&cpus, ConvSpec { affine: true, x1_constant: true, res1_constant: true, ..two }, borders, 2);
        }
    }
}

/// With more threads than partial sums each row of positions is work of its own: the same bits.
#[test]
fn many_threads() {
    let (one, many) = (Cpu::new(1).unwrap(), Cpu::new(24).unwrap());
    for spec in [
        plain(40, [4, 4], [24, 0], [3, 0], 20, 3),
        ConvSpec { affine: true, x1_constant: true, ..plain(5, [9, 8], [32, 5], [0, 0], 33, 3) },
        plain(40, [4, 4], [24, 0], [3, 0], 20, 1),
    ] {
        let case = Case::new(spec, true);
        let [one, many] =
            [&one, &many].map(|cpu| spec.run_wgrad(cpu, &case.operands, &case.before, true).unwrap().all());
        assert!(one.iter().map(|x| x.to_bits()).eq(many.iter().map(|x| x.to_bits())), "{spec:?}");
    }
}

/// Layers of the seed network, as it runs them.
#[test]
fn layers_of_the_seed() {
    let cpus = Cpus::new();
    for spec in [
        plain(2, [64, 64], [3, 0], [0, 0], 32, 1),
        ConvSpec { affine: true, x1_constant: true, ..plain(1, [64, 64], [32, 32], [0, 0], 32, 3) },
        ConvSpec { silu: true, ..plain(2, [32, 32], [32, 0], [32, 64], 32, 3) },
        ConvSpec { affine: true, ..plain(2, [16, 16], [96, 96], [0, 0], 64, 3) },
        ConvSpec { silu: true, ..plain(3, [8, 8], [128, 0], [128, 0], 128, 3) },
        ConvSpec { affine: true, ..plain(3, [4, 4], [128, 0], [0, 0], 256, 3) },
        plain(2, [64, 64], [32, 0], [0, 0], 3, 1),
    ] {
        check(&cpus, spec, true, 2);
    }
}

/// A one-pixel picture: only the centre tap sees anything, and the border sums say so exactly.
#[test]
fn border_sums_of_tiny_pictures() {
    let cpus = Cpus::new();
    for hw in [[1, 1], [1, 4], [4, 1], [2, 2]] {
        let spec = plain(3, hw, [2, 0], [0, 0], 5, 3);
        let case = Case::new(spec, true);
        cpus.check(&format!("{hw:?}"), |cpu, name| {
            let got = spec.run_wgrad(cpu, &case.operands, &case.before, true).unwrap();
            assert_close_f64(name, &to_f64(&got.border_sums), &case.want.border_sums, 1e-6);
            for (got, want) in got.border_sums.iter().zip(&case.want.border_sums) {
                assert!(*want != 0.0 || got.abs() < 1e-6, "{name}: {got} where no pixel's tap is inside");
            }
            got.all()
        });
    }
}

/// Every channel count also as the second input, whose columns start anywhere.
#[test]
fn second_inputs_start_anywhere() {
    let cpus = Cpus::new();
    for (i, &c1) in CHANNELS.iter().enumerate() {
        let spec = plain(1, [3, 4], [CHANNELS[15 - i], c1], [c1, 3], 9, 3);
        check(&cpus, ConvSpec { affine: true, ..spec }, true, 2);
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let spec = ConvSpec { affine: true, ..plain(2, [3, 4], [3, 2], [2, 1], 5, 3) };
    let case = Case::new(spec, true);
    let attempt = |operands: &Operands<Vec<f32>>, before: &WgradResults| {
        spec.run_wgrad(cpus.best(), operands, before, true).map(|_| ())
    };
    attempt(&case.operands, &case.before).unwrap();
    for slot in [Slot::X0, Slot::X1, Slot::Scale, Slot::Shift, Slot::Res0, Slot::Res1, Slot::Dy] {
        let mut short = case.operands.clone();
        short.0[slot as usize].as_mut().unwrap().pop();
        assert_shape_error(&format!("{slot:?} too short"), attempt(&short, &case.before));
    }
    type Field = fn(&mut WgradResults) -> &mut Vec<f32>;
    let fields: [(&str, Field); 5] = [
        ("dw", |r| &mut r.dw),
        ("dw_res", |r| &mut r.dw_res),
        ("db", |r| &mut r.db),
        ("db_res", |r| &mut r.db_res),
        ("border_sums", |r| &mut r.border_sums),
    ];
    for (name, field) in fields {
        let mut short = case.before.clone();
        field(&mut short).pop();
        assert_shape_error(&format!("{name} too short"), attempt(&case.operands, &short));
    }
    let without = ConvSpec { dims: ConvDims { r0: 0, r1: 0, ..spec.dims }, ..spec };
    let mut operands = without.operands(Fill::new(0));
    operands.0[Slot::Res0 as usize] = case.operands.0[Slot::Res0 as usize].clone();
    let result = without.run_wgrad(cpus.best(), &operands, &WgradResults::before(&without.dims, Fill::new(0)), true);
    assert_shape_error("a residual that the dims do not have", result.map(|_| ()));
}
