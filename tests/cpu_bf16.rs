//! bfloat16 on a CPU: the products of 3x3 convolutions alone, whole networks, training, and what the program says of it. On every machine by the
//! emulation, by the instruction `vdpbf16ps` where the processor has it.

mod ops_support;
mod train_support;

use std::path::PathBuf;

use ddim_engine::check::{Tolerances, check};
use ddim_engine::config::Config;
use ddim_engine::data::render_procedural;
use ddim_engine::device::ReadBack;
use ddim_engine::device::cpu::{Cpu, Isa, Products};
use ddim_engine::device::gpu::Arithmetic;
use ddim_engine::diffusion::normalizer::Normalizer;
use ddim_engine::ops::conv::{Conv, ConvDims};
use ddim_engine::tensor::Shape;
use ddim_engine::train::{state::TrainState, stepper::Stepper};
use ops_support::conv_case::ConvSpec;
use ops_support::{Fill, assert_close, norm, relative_error, to_f64};
use train_support::{Place, Said, records, steps_saved, tensor_bytes, tensors, tiny};

/// Relative 2-norm of a convolution against float64. Measured: 1.4e-3 to 4.8e-3.
const CONV_TOLERANCE: f64 = 6e-3;
/// Between the instruction and its emulation, which differ in denormal numbers. Not measured on a processor that has it.
const SAME_TOLERANCE: f64 = 1e-5;

fn cpu(threads: usize, isa: Isa, products: Products) -> Cpu {
    let cpu = Cpu::with_isa(threads, isa).unwrap().with_products(products).unwrap();
    cpu.poison_new_buffers();
    cpu
}

/// Every instruction set of this machine with every way to compute in bfloat16 that it has. Says what is skipped.
fn ways() -> Vec<(Isa, Products)> {
    if !Products::Bf16.available(Isa::Avx512) {
        eprintln!("SKIPPED: vdpbf16ps, this machine does not have it");
    }
    let sets = Isa::ALL.into_iter().filter(|isa| isa.available());
    sets.flat_map(|isa| [Products::Bf16Emulated, Products::Bf16].map(|products| (isa, products)))
        .filter(|(isa, products)| products.available(*isa))
        .collect()
}

fn dims(n: u32, h: u32, w: u32, c: [u32; 2], r: u32, k: u32) -> ConvDims {
    ConvDims { n, h, w, c0: c[0], c1: c[1], r0: r, r1: 0, k, side: 3 }
}

/// Cases that are taken by tiles: odd and even sides and channels, a channel without a partner, residuals, two inputs, gradients.
fn tiled() -> Vec<ConvSpec> {
    let plain = [
        dims(3, 2, 2, [16, 0], 0, 16),
        dims(2, 5, 9, [33, 0], 0, 35),
        dims(1, 13, 50, [21, 0], 7, 48),
        dims(2, 8, 8, [64, 9], 0, 64),
        dims(2, 7, 8, [17, 32], 0, 32),
        dims(9, 8, 8, [64, 0], 0, 40),
        dims(1, 6, 300, [24, 0], 0, 16),
    ]
    .map(ConvSpec::plain);
    let rich = plain.map(|spec| ConvSpec { affine: true, silu: true, bias: true, add0: true, stats: true, ..spec });
    let single = |spec: &ConvSpec| spec.dims.c1 == 0 && spec.dims.r0 == 0;
    let back = plain.into_iter().filter(single).map(|spec| ConvSpec {
        dgrad: Some(spec.dims.k + 3),
        factor: true,
        silu_grad: true,
        ..spec
    });
    let constant = rich.into_iter().filter(|spec| spec.dims.c1 > 0).map(|spec| ConvSpec { x1_constant: true, ..spec });
    plain.into_iter().chain(rich).chain(back).chain(constant).collect()
}

#[test]
fn convolutions_are_as_close_as_bfloat16_allows() {
    let (ways, mut least, mut most) = (ways(), f64::INFINITY, 0.0f64);
    for spec in tiled() {
        let operands = spec.operands(Fill::new(u64::from(spec.dims.k)));
        let want = spec.truth(&operands);
        for &(isa, products) in &ways {
            let name = format!("{spec:?} on {isa}, {products:?}");
            let results = [1, 2].map(|threads| spec.run(&cpu(threads, isa, products), &operands).unwrap());
            let [y, again] = results.map(|got| (got.joined(spec.dims.k as usize, spec.k0 as usize), got.all()));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&y.1) == bits(&again.1), "{name}: depends on the threads");
            assert_close(&name, &y.0, &want, CONV_TOLERANCE);
            let error = relative_error(&to_f64(&y.0), &want);
            (least, most) = (least.min(error), most.max(error));
        }
    }
    println!("relative errors of convolutions {least:.1e} to {most:.1e}");
    assert!(least > 1e-4, "{least:.1e}: were the factors rounded at all?");
}

/// With small integers nothing is rounded: the results are those of float32 to the bit, so every channel met its own partner.
#[test]
fn whole_numbers_come_out_exactly() {
    let ways = ways();
    for spec in tiled().into_iter().map(|spec| ConvSpec { silu: false, silu_grad: false, ..spec }) {
        let mut operands = spec.operands(Fill::new(7));
        for values in operands.0.iter_mut().flatten() {
            let scale = 2.0 / values.iter().fold(1e-9f32, |most, v| most.max(v.abs()));
            // Multiples of 4, of which the transformed filter is whole; at most 8.
            values.iter_mut().for_each(|v| *v = 4.0 * (*v * scale).round());
        }
        for &(isa, products) in &ways {
            let got = spec.run(&cpu(1, isa, products), &operands).unwrap().all();
            let want = spec.run(&cpu(1, isa, Products::Fp32), &operands).unwrap().all();
            assert!(want.iter().any(|v| *v != 0.0));
            assert_eq!(got, want, "{spec:?} on {isa}, {products:?}");
        }
    }
}

#[test]
fn the_instruction_does_what_its_emulation_does() {
    if !Products::Bf16.available(Isa::Avx512) {
        eprintln!("SKIPPED: vdpbf16ps, this machine does not have it");
        return;
    }
    for spec in tiled() {
        let operands = spec.operands(Fill::new(3));
        let run = |products| spec.run(&cpu(1, Isa::Avx512, products), &operands).unwrap().all();
        let (got, want) = (run(Products::Bf16), run(Products::Bf16Emulated));
        let error = relative_error(&to_f64(&got), &to_f64(&want));
        println!("{error:.1e} of {:.1e} in {spec:?}", norm(&to_f64(&want)));
        assert_close(&format!("{spec:?}"), &got, &to_f64(&want), SAME_TOLERANCE);
    }
}

/// What is not taken by tiles, and gradients of weights, are float32 whatever the products are.
#[test]
fn the_rest_is_float32() {
    let few = ConvSpec::plain(dims(2, 5, 7, [3, 0], 0, 19));
    let pointwise = ConvSpec { dims: ConvDims { side: 1, ..few.dims }, ..few };
    for spec in [few, pointwise] {
        let operands = spec.operands(Fill::new(5));
        let run = |products| spec.run(&cpu(1, Isa::detect(), products), &operands).unwrap().all();
        assert_eq!(run(Products::Bf16Emulated), run(Products::Fp32));
    }
    let spec = ConvSpec::plain(dims(2, 8, 8, [20, 0], 0, 24));
    let len = |products| cpu(1, Isa::Portable, products).conv_packed_len(&spec.dims);
    assert_eq!((len(Products::Fp32), len(Products::Bf16Emulated)), (16 * 20 * 24, 16 * 10 * 24));
}

#[test]
fn products_that_the_machine_lacks_are_refused() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available() && !Products::Bf16.available(*isa)) {
        let refused = Cpu::with_isa(1, isa).unwrap().with_products(Products::Bf16).err().unwrap().to_string();
        assert!(refused.contains(&format!("this CPU has no vdpbf16ps with {isa}")), "{refused}");
    }
}

/// Losses, gradients of every parameter, steps and samples of PyTorch in float32, within what bfloat16 may be off by on a GPU.
#[test]
fn reference_files_in_bf16() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    assert!(files.len() >= 8, "the fixtures are part of the repository");
    for (isa, products) in ways() {
        for file in &files {
            let report = check(&cpu(2, isa, products), file, &Tolerances::of(Arithmetic::Bf16)).unwrap();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            for row in &report.rows {
                println!("{isa} {products:?} {name}: {:60} {:.1e} <= {:.0e}", row.name, row.relative, row.tolerance);
            }
            assert!(report.passed(), "{name} on {isa}, {products:?}: {:#?}", report.rows);
        }
    }
}

/// Losses of 30 steps.
fn learn(cpu: &Cpu) -> Vec<f32> {
    let widths = vec![16, 24, 32];
    let config = Config { image_size: 16, widths, embedding_dim: 16, batch_size: 16, ..Config::quick_preset() };
    let shape = Shape::new(config.batch_size, 16, 16, 3);
    let mut pixels = vec![0; shape.len()];
    for (i, picture) in pixels.chunks_exact_mut(16 * 16 * 3).enumerate() {
        render_procedural(0, i as u64, 16, 3, picture);
    }
    let mut normalizer = Normalizer::of(&config);
    normalizer.gather(&pixels);
    let mut state = TrainState::new(cpu, &config).unwrap();
    let mut stepper = Stepper::new(cpu, 3, config.seed).unwrap();
    (0..30).map(|_| stepper.step(cpu, &mut state, &normalizer, shape, &pixels).unwrap().wait().unwrap()[0]).collect()
}

#[test]
fn it_learns_as_in_fp32() {
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    // With one instruction set: emulation takes its time.
    for (isa, products) in ways().into_iter().filter(|(isa, _)| *isa == Isa::detect()) {
        let [want, got] = [Products::Fp32, products].map(|products| learn(&cpu(2, isa, products)));
        println!("{isa} {products:?}: {want:?} {got:?}");
        assert!(got != want && mean(&got[25..]) < 0.75 * mean(&got[..3]), "{got:?}");
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 0.03 * want, "step {step} on {isa}: {got}, in fp32 {want}");
        }
    }
}

/// Runs the program with `DDIM_BF16` set.
fn forced(place: &Place, bf16: &str, args: &[String]) -> Said {
    place.program(args).env("DDIM_BF16", bf16).output().unwrap().into()
}

#[test]
fn the_program_trains_in_bf16_and_says_how() {
    let place = Place::with_pictures();
    let sets = ["--set", "widths=8,16", "--threads", "2", "--device", "cpu"];
    let args = |run, precision, steps| tiny(run, &[&sets[..], &["--precision", precision, "--steps", steps]].concat());
    let ok = |said: Said, needle: &str| {
        assert!(said.code == 0 && said.err.contains(needle), "{needle:?} is not in {said:#?}");
        said
    };
    let emulated = !Products::Bf16.available(Isa::detect());
    let dot = if emulated { "bf16 emulated in 3x3 convolutions" } else { "bf16 by vdpbf16ps in 3x3 convolutions" };

    // In fp32, named so, it is fp32 to the bit.
    place.ok(&args("fp32", "fp32", "6"));
    ok(forced(&place, "fp32", &args("bf16-as-fp32", "bf16", "6")), "bf16 computed in fp32");
    let [fp32, as_fp32] = ["fp32", "bf16-as-fp32"].map(|run| tensors(&place.path(run), 6));
    assert!(fp32.iter().zip(&as_fp32).all(|(a, b)| a.name == b.name && a.data == b.data));

    // By dot products it is not, and resumes to the same bytes.
    ok(forced(&place, "dot", &args("whole", "bf16", "6")), dot);
    let whole = tensors(&place.path("whole"), 6);
    assert!(fp32.iter().zip(&whole).any(|(a, b)| a.data != b.data));
    ok(forced(&place, "dot", &args("parts", "bf16", "3")), dot);
    let again = ["train", "--resume", "parts", "--steps", "6", "--device", "cpu"].map(String::from);
    ok(forced(&place, "dot", &again), dot);
    let [whole, parts] = ["whole", "parts"].map(|run| place.path(run));
    assert_eq!(steps_saved(&parts).last(), Some(&6));
    assert!(tensor_bytes(&whole, 6) == tensor_bytes(&parts, 6));
    assert_eq!(records(&whole).last(), records(&parts).last());

    // Left to the processor it is one of the two.
    let said = place.ok(&args("auto", "bf16", "3"));
    let line = said.err.lines().find(|line| line.starts_with("device: cpu")).unwrap();
    assert!(line.contains("bf16 computed in fp32") || line.contains("bf16 by vdpbf16ps"), "{line}");
    let said = place.ok(&args("plain", "auto", "3"));
    assert!(!said.err.contains("bf16"), "{}", said.err);

    let said = forced(&place, "yes", &args("never", "bf16", "3"));
    said.fails(2, &["DDIM_BF16=\"yes\": expected fp32 or dot"]);
    assert!(!place.path("never").exists());
    place.refused(&args("never", "tf32", "3"), &["precision tf32 is not available on the CPU", "--precision auto"]);
}
