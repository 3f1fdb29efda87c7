//! The weight gradients of the convolution by the CUDA kernels against the float64 reference: on the simulator always (where it was
//! built), on a GPU where there is one.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::error::Result;
use ddim_engine::ops::conv::reference::WeightGradients as Truth;
use ddim_engine::ops::conv::{Conv, ConvDims, Operand, Prologue, WeightGradients};
use half::bf16;
use ops_support::conv_case::{ConvSpec, Operands, Slot, WgradResults};
use ops_support::{CHANNELS, Fill, GUARD, Guarded, assert_scaled, assert_shape_error, devices, norm, to_f64};

/// Relative 2-norm of the gradients, per arithmetic. Measured: at most 8.0e-7, 6.7e-4 and 3.8e-3; the last where a bfloat16 device
/// rounds a float32 `dy`, otherwise 2.4e-3, for z is rounded after the prologue.
fn tolerance(arithmetic: Arithmetic) -> f64 {
    match arithmetic {
        Arithmetic::Fp32 => 2e-6,
        Arithmetic::Tf32 => 1e-3,
        Arithmetic::Bf16 => 5e-3,
    }
}

const ALL: [Arithmetic; 3] = [Arithmetic::Fp32, Arithmetic::Tf32, Arithmetic::Bf16];

/// Runs a case twice on every device in every arithmetic: results must be right, and equal to the bit.
fn check(spec: ConvSpec, sums: bool, wide: &[Slot]) {
    // Devices whose activations are float32 share the operands, and so the truth.
    for (keeps_f32, arithmetics) in [(true, &ALL[..2]), (false, &ALL[2..])] {
        let case = Case::new(spec, sums, keeps_f32, wide);
        for &arithmetic in arithmetics {
            devices::run_or_skip("sim", devices::no_sim(), || case.check_twice(&devices::sim(arithmetic)));
            devices::run_or_skip("cuda", devices::no_cuda(), || case.check_twice(&devices::cuda(arithmetic)));
        }
    }
}

/// Under the simulator's checker for races, bounds and memory that was never written.
fn check_strictly(spec: ConvSpec) {
    let missing = Sim::checked().err().map(|error| error.to_string());
    for arithmetic in ALL {
        devices::run_or_skip("sim-checker", missing.clone(), || {
            let gpu = Gpu::new(Sim::checked().unwrap(), arithmetic);
            gpu.poison_new_buffers();
            gpu.separate_buffers();
            Case::new(spec, true, arithmetic != Arithmetic::Bf16, &[]).check(&gpu);
        });
    }
}

/// Operands that are kept in the device's activation type.
fn is_activation(spec: &ConvSpec, slot: Slot) -> bool {
    match slot {
        Slot::X0 | Slot::Res0 | Slot::Dy => true,
        Slot::X1 => !spec.x1_constant,
        Slot::Res1 => !spec.res1_constant,
        _ => false,
    }
}

/// A case on devices of one activation type: its operands, rounded to what the device keeps, what it accumulates on, and the truth.
struct Case<'a> {
    name: String,
    spec: ConvSpec,
    operands: Operands<Vec<f32>>,
    /// Activations that this case gives in float32 whatever the device's type.
    wide: &'a [Slot],
    before: WgradResults,
    want: Truth,
    sums: bool,
}

impl<'a> Case<'a> {
    fn new(spec: ConvSpec, sums: bool, keeps_f32: bool, wide: &'a [Slot]) -> Self {
        let fill = Fill::new(u64::from(spec.dims.k));
        let mut operands = spec.operands(fill);
        if !keeps_f32 {
            for slot in Slot::ALL.into_iter().filter(|&slot| is_activation(&spec, slot) && !wide.contains(&slot)) {
                if let Some(values) = &mut operands.0[slot as usize] {
                    values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
                }
            }
        }
        let want = spec.truth_wgrad(&operands);
        let before = WgradResults::before(&spec.dims, fill);
        Case { name: format!("{spec:?}"), spec, operands, wide, before, want, sums }
    }

    fn check_twice<L: Launcher>(&self, device: &Gpu<L>) {
        let first = self.check(device);
        assert!(first == self.check(device), "{}: a second run gives other bits", self.name);
    }

    fn check<L: Launcher>(&self, device: &Gpu<L>) -> Vec<u32> {
        let arithmetic = device.arithmetic();
        let got = run(device, &self.spec, &self.operands, self.wide, &self.before, self.sums).unwrap();
        let (before, want) = (&self.before, &self.want);
        self.compare(arithmetic, "dw", &got.dw, &before.dw, &want.dw);
        self.compare(arithmetic, "dw_res", &got.dw_res, &before.dw_res, &want.dw_res);
        if self.sums {
            self.compare(arithmetic, "db", &got.db, &before.db, &want.db);
            self.compare(arithmetic, "db_res", &got.db_res, &before.db_res, &want.db);
            let overwritten = vec![0.0; got.border_sums.len()];
            self.compare(arithmetic, "border sums", &got.border_sums, &overwritten, &want.border_sums);
        }
        got.all().into_iter().map(f32::to_bits).collect()
    }

    /// `got` is `before` plus the gradient. Rounding of the factors scales with the root of the sum of their squares, which a
    /// sum that cancels hides: the scale has what was there before in it.
    fn compare(&self, arithmetic: Arithmetic, what: &str, got: &[f32], before: &[f32], gradient: &[f64]) {
        let before = to_f64(before);
        let want: Vec<f64> = before.iter().zip(gradient).map(|(b, g)| b + g).collect();
        let cancelled = (self.spec.dims.pixels() as f64 * gradient.len() as f64).sqrt();
        let scale = norm(gradient).max(0.5 * cancelled) + norm(&before);
        let name = format!("{what} of {arithmetic} {}", self.name);
        assert_scaled(&name, &to_f64(got), &want, scale, tolerance(arithmetic));
    }
}

/// An operand, `lead` elements into a buffer of NaN.
struct Placed<B: Memory> {
    buffer: B::Buffer,
    lead: usize,
    len: usize,
}

impl<B: Memory> Placed<B> {
    fn new(device: &B, values: &[f32], lead: usize, activation: bool) -> Self {
        let mut room = vec![f32::NAN; lead + values.len() + GUARD];
        room[lead..lead + values.len()].copy_from_slice(values);
        let buffer = if activation { device.alloc_activation(room.len()) } else { device.alloc(room.len()) };
        let mut buffer = buffer.unwrap();
        device.upload(&room, B::all_mut(&mut buffer)).unwrap();
        Placed { buffer, lead, len: values.len() }
    }

    fn view(&self) -> B::Slice<'_> {
        B::slice(&self.buffer, self.lead..self.lead + self.len)
    }
}

fn run<B: Conv>(
    device: &B,
    spec: &ConvSpec,
    operands: &Operands<Vec<f32>>,
    wide: &[Slot],
    before: &WgradResults,
    sums: bool,
) -> Result<WgradResults> {
    let placed: Vec<Option<Placed<B>>> = Slot::ALL
        .iter()
        .map(|&slot| {
            let activation = is_activation(spec, slot) && !wide.contains(&slot);
            operands.get(slot).map(|values| Placed::new(device, values, spec.lead, activation))
        })
        .collect();
    let get = |slot: Slot| placed[slot as usize].as_ref().map(Placed::view);
    let accumulator = |values: &[f32]| Guarded::filled(device, values, spec.lead);
    let mut dw = accumulator(&before.dw);
    let mut dw_res = (spec.dims.r0 > 0).then(|| accumulator(&before.dw_res));
    let mut db = sums.then(|| accumulator(&before.db));
    let mut db_res = sums.then(|| accumulator(&before.db_res));
    let mut border_sums = sums.then(|| accumulator(&before.border_sums));
    let out = WeightGradients {
        dw: dw.view_mut(),
        dw_res: dw_res.as_mut().map(Guarded::view_mut),
        db: db.as_mut().map(Guarded::view_mut),
        db_res: db_res.as_mut().map(Guarded::view_mut),
        border_sums: border_sums.as_mut().map(Guarded::view_mut),
    };
    let input = Operand { x0: get(Slot::X0).unwrap(), x1: get(Slot::X1), x1_constant: spec.x1_constant };
    let prologue = Prologue { affine: get(Slot::Scale).zip(get(Slot::Shift)), silu: spec.silu };
    let residual = get(Slot::Res0).map(|x0| Operand { x0, x1: get(Slot::Res1), x1_constant: spec.res1_constant });
    device.conv_wgrad(&spec.dims, input, prologue, residual, get(Slot::Dy).unwrap(), out)?;
    let read = |guarded: Option<Guarded<B>>| guarded.map_or(vec![], |g| g.read(device));
    Ok(WgradResults {
        dw: dw.read(device),
        dw_res: read(dw_res),
        db: read(db),
        db_res: read(db_res),
        border_sums: read(border_sums),
    })
}

fn plain(n: u32, hw: [u32; 2], c: [u32; 2], r: [u32; 2], k: u32, side: u32) -> ConvSpec {
    ConvSpec::plain(ConvDims { n, h: hw[0], w: hw[1], c0: c[0], c1: c[1], r0: r[0], r1: r[1], k, side })
}

fn options(side: u32) -> [ConvSpec; 13] {
    let one = plain(2, [5, 7], [5, 0], [0, 0], 19, side);
    let two = plain(2, [5, 7], [5, 3], [0, 0], 19, side);
    let res = plain(2, [5, 7], [5, 0], [6, 4], 19, side);
    let even = ConvSpec { affine: true, silu: true, ..plain(2, [5, 7], [8, 16], [16, 8], 24, side) };
    [
        one,
        two,
        res,
        even,
        ConvSpec { x1_constant: true, res1_constant: true, ..even },
        ConvSpec { res1_constant: true, ..res },
        ConvSpec { affine: true, ..two },
        ConvSpec { silu: true, ..one },
        ConvSpec { silu: true, affine: true, x1_constant: true, ..two },
        ConvSpec { lead: 1, affine: true, ..res },
        ConvSpec { per_image: true, ..even },
        ConvSpec { per_image: true, silu: false, lead: 1, ..even },
        ConvSpec { per_image: true, affine: true, silu: true, x1_constant: true, ..two },
    ]
}

#[test]
fn each_option_alone() {
    for spec in [1, 3].into_iter().flat_map(options) {
        check(spec, false, &[]);
        check(spec, true, &[]);
    }
}

#[test]
fn each_option_alone_under_the_checker() {
    for spec in [1, 3].into_iter().flat_map(options) {
        check_strictly(spec);
    }
    // Several tiles and slices, tiles cut by the picture's edge, every group of pixels.
    for side in [1, 3] {
        let spec = plain(3, [9, 18], [32, 8], [8, 0], 40, side);
        check_strictly(ConvSpec { affine: true, silu: true, lead: 0, per_image: side == 3, ..spec });
        check_strictly(ConvSpec { lead: 0, ..plain(1, [9, 9], [64, 0], [0, 0], 64, side) });
    }
}

/// All pairs of channels, sizes and options drawn.
#[test]
fn sampled_sizes_and_options() {
    for case in 0..256 {
        let drawn = ConvSpec { dgrad: None, factor: false, ..ConvSpec::sampled(case, 50_000) };
        let lead = [0, 1, 8, GUARD][case % 4];
        check(ConvSpec { lead, ..drawn }, case % 3 > 0, &[]);
    }
}

/// Pictures that are cut into tiles in every way, and batches of many small pictures.
#[test]
fn cuts_into_tiles() {
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
            check(spec, true, &[]);
            let spec = ConvSpec { affine: true, per_image: true, ..plain(n, hw, [8, 8], [3, 2], 16, side) };
            check(spec, false, &[]);
        }
    }
}

/// Layers of the seed network. In bfloat16 the pictures at both ends stay float32.
#[test]
fn layers_of_the_seed() {
    for (spec, wide) in [
        (plain(2, [64, 64], [3, 0], [0, 0], 32, 1), &[Slot::X0][..]),
        (ConvSpec { affine: true, x1_constant: true, ..plain(1, [64, 64], [32, 32], [0, 0], 32, 3) }, &[]),
        (ConvSpec { silu: true, ..plain(2, [32, 32], [32, 0], [32, 64], 32, 3) }, &[]),
        (ConvSpec { affine: true, ..plain(2, [16, 16], [96, 96], [0, 0], 64, 3) }, &[]),
        (ConvSpec { silu: true, ..plain(3, [8, 8], [128, 0], [128, 0], 128, 3) }, &[]),
        (ConvSpec { affine: true, ..plain(3, [4, 4], [128, 0], [0, 0], 256, 3) }, &[]),
        (plain(2, [64, 64], [32, 0], [0, 0], 3, 1), &[Slot::Dy]),
    ] {
        check(spec, true, wide);
    }
}

/// Element types mix freely: each activation of a bfloat16 device may be float32.
#[test]
fn mixed_element_types() {
    for wide in [&[Slot::X0][..], &[Slot::X1], &[Slot::Res0], &[Slot::Res1, Slot::X0], &[Slot::Dy]] {
        for side in [1, 3] {
            let spec = plain(2, [6, 7], [16, 8], [8, 16], 24, side);
            check(ConvSpec { affine: true, silu: true, ..spec }, true, wide);
            check(ConvSpec { x1_constant: true, ..spec }, true, wide);
        }
    }
}

/// A one-pixel picture: only the centre tap sees anything, and the border sums say so exactly.
#[test]
fn border_sums_of_tiny_pictures() {
    for hw in [[1, 1], [1, 4], [4, 1], [2, 2]] {
        let spec = plain(3, hw, [2, 0], [0, 0], 5, 3);
        for arithmetic in ALL {
            let case = Case::new(spec, true, arithmetic != Arithmetic::Bf16, &[]);
            check_gpus!(arithmetic, case.name, |device, name| {
                let got = run(device, &spec, &case.operands, &[], &case.before, true).unwrap();
                for (got, want) in got.border_sums.iter().zip(&case.want.border_sums) {
                    assert!(*want != 0.0 || *got == 0.0, "{name}: {got} where no pixel's tap is inside");
                }
                got.all()
            });
        }
    }
}

/// Every channel count also as the second input, whose columns start anywhere.
#[test]
fn second_inputs_start_anywhere() {
    for (i, &c1) in CHANNELS.iter().enumerate() {
        let spec = plain(1, [3, 4], [CHANNELS[15 - i], c1], [c1, 3], 9, 3);
        check(ConvSpec { affine: true, ..spec }, true, &[]);
    }
}

/// Numbers that are not finite come out as such: no rounding trick turns them into ordinary ones.
#[test]
fn not_a_number_stays_one() {
    let spec = plain(1, [4, 4], [8, 0], [0, 0], 8, 1);
    for arithmetic in ALL {
        for slot in [Slot::X0, Slot::Dy] {
            for bits in [0x7fff_ffff_u32, 0xffff_ffff, 0x7fc0_0000] {
                let mut case = Case::new(spec, true, arithmetic != Arithmetic::Bf16, &[]);
                case.operands.0[slot as usize].as_mut().unwrap()[0] = f32::from_bits(bits);
                check_gpus!(arithmetic, case.name, |device, name| {
                    let got = run(device, &spec, &case.operands, &[], &case.before, true).unwrap();
                    assert!(got.dw[0].is_nan(), "{name}: {slot:?} {bits:x} gives {}", got.dw[0]);
                    vec![]
                });
            }
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let spec = ConvSpec { affine: true, ..plain(2, [3, 4], [3, 2], [2, 1], 5, 3) };
    let case = Case::new(spec, true, true, &[]);
    if devices::no_sim().is_some() {
        return devices::run_or_skip("sim", devices::no_sim(), || ());
    }
    let device = &devices::sim(Arithmetic::Fp32);
    let attempt = |spec: &ConvSpec, operands: &Operands<Vec<f32>>, before: &WgradResults| {
        run(device, spec, operands, &[], before, true).map(|_| ())
    };
    attempt(&spec, &case.operands, &case.before).unwrap();
    for slot in [Slot::X0, Slot::X1, Slot::Scale, Slot::Shift, Slot::Res0, Slot::Res1, Slot::Dy] {
        let mut short = case.operands.clone();
        short.0[slot as usize].as_mut().unwrap().pop();
        assert_shape_error(&format!("{slot:?} too short"), attempt(&spec, &short, &case.before));
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
        assert_shape_error(&format!("{name} too short"), attempt(&spec, &case.operands, &short));
    }
    let without = ConvSpec { dims: ConvDims { r0: 0, r1: 0, ..spec.dims }, ..spec };
    let mut operands = without.operands(Fill::new(0));
    operands.0[Slot::Res0 as usize] = case.operands.0[Slot::Res0 as usize].clone();
    let before = WgradResults::before(&without.dims, Fill::new(0));
    assert_shape_error("a residual that the dims do not have", attempt(&without, &operands, &before));
}
