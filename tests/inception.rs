//! Inception-v3 against torchvision's, in both variants, with weights that a formula makes (`fixtures/inception.py`), and what a file of other
//! weights is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ddim_engine::device::Memory;
use ddim_engine::device::cpu::Cpu;
use ddim_engine::error::Error;
use ddim_engine::metrics::inception::{FEATURES, FLOPS, Inception, SIZE, Variant};
use ddim_engine::train::tensor_file::{self, NamedTensor};

/// Numbers in [0, 1), as in the generator.
fn uniform(tensor: u32, count: usize) -> Vec<f32> {
    let of = |i: u32| {
        let mut x = i.wrapping_mul(0x9E37_79B1).wrapping_add(tensor.wrapping_mul(0x85EB_CA6B));
        x ^= x >> 16;
        x = x.wrapping_mul(0x7FEB_352D);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846C_A68B);
        x ^= x >> 16;
        (x >> 8) as f32 / (1 << 24) as f32
    };
    (0..count as u32).map(of).collect()
}

/// All tensors of the network but the classifiers', made of the formula; names in order, as the generator numbers them.
fn weights() -> Vec<NamedTensor> {
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for line in include_str!("fixtures/inception/convolutions.txt").lines() {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape: Vec<usize> = shape.split('x').map(|extent| extent.parse().unwrap()).collect();
        for part in ["bias", "weight", "running_mean", "running_var"] {
            shapes.insert(format!("{name}.bn.{part}"), vec![shape[0]]);
        }
        shapes.insert(format!("{name}.conv.weight"), shape);
    }
    let made = shapes.into_iter().enumerate().map(|(t, (name, shape))| {
        let mut data = uniform(t as u32, shape.iter().product());
        let scale = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32;
        for u in &mut data {
            let signed = 2.0 * *u - 1.0;
            *u = match name.rsplit_once('.').unwrap() {
                (before, "weight") if before.ends_with("conv") => signed * scale,
                (_, "running_var") => 0.5 + *u,
                (_, "weight") => 1.0 + 0.25 * signed,
                _ => 0.25 * signed,
            };
        }
        NamedTensor { name, shape, data }
    });
    made.collect()
}

fn picture(size: usize, stretch: usize) -> Vec<u8> {
    let noise = uniform(1000 + stretch as u32, size * size * 3);
    let of = |(i, noise): (usize, &f32)| {
        let (c, x, y) = (i % 3, i / 3 % size, i / 3 / size);
        ((x * stretch + y * (stretch + 2) + c * 40) % 160) as u8 + (noise * 96.0) as u8
    };
    noise.iter().enumerate().map(of).collect()
}

fn expected() -> BTreeMap<String, Vec<f32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/inception/two-pictures.safetensors");
    tensor_file::read(&path).unwrap().tensors.into_iter().map(|t| (t.name, t.data)).collect()
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), v| (sum + v * v, count + 1));
    (sum / f64::from(count)).sqrt()
}

/// Root mean square of the difference, relative to that of `want`.
fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference = got.iter().zip(want).map(|(a, b)| f64::from(a - b));
    rms(difference) / rms(want.iter().map(|&v| f64::from(v)))
}

#[test]
fn features_are_torchvisions() {
    let (cpu, tensors, expected) = (Cpu::new(0).unwrap(), weights(), expected());
    let pictures = [picture(40, 3), picture(40, 11)].concat();
    for (name, variant) in [("torchvision", Variant::Torchvision), ("fid", Variant::Fid)] {
        let mut net = Inception::from_tensors(&cpu, Path::new("formula"), tensors.clone(), variant).unwrap();
        let blocks = net.trace(&cpu, &pictures, 2, 40).unwrap();
        let want = &expected[&format!("{name}.blocks")];
        assert_eq!(blocks.len() * 2, want.len());
        for ((block, got), want) in blocks.iter().zip(want.chunks_exact(2)) {
            let worst = got.iter().zip(want).map(|(g, w)| (g / f64::from(*w) - 1.0).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-5, "{name}, {block}: {got:?}, expected {want:?}");
        }
        let begin = std::time::Instant::now();
        let got = net.features(&cpu, &pictures, 2, 40).unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        let want = &expected[&format!("{name}.features")];
        let whole = error(&got, want);
        let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max) / 3.3;
        println!(
            "{name}: relative error {whole:.1e}, worst {worst:.1e}; {:.1} pictures/s, {:.0} GF/s, {} MB",
            2.0 / seconds,
            2.0 * FLOPS / seconds / 1e9,
            cpu.memory_use().peak >> 20
        );
        // The two pictures differ by 0.085 of the features' size, the two variants by 0.17. Measured: 3e-7, and 3e-6 at worst.
        assert!(whole < 1e-5 && worst < 1e-4, "{name}: {whole:.2e}, worst {worst:.2e}");

        // A picture's features do not depend on what it is computed together with.
        let second = net.features(&cpu, &pictures[40 * 40 * 3..], 1, 40).unwrap();
        assert!(second == got[FEATURES..], "{name}: the second picture alone has other features");
    }
}

#[test]
fn results_do_not_depend_on_threads_or_batches() {
    let tensors = weights();
    // More pictures than go through the network at once.
    let pictures: Vec<u8> = (0..17).flat_map(|i| picture(8, i + 1)).collect();
    let features = |threads| {
        let cpu = Cpu::new(threads).unwrap();
        let mut net = Inception::from_tensors(&cpu, Path::new("formula"), tensors.clone(), Variant::Fid).unwrap();
        let some = if threads == 1 { &pictures[16 * 192..] } else { &pictures[..] };
        net.features(&cpu, some, some.len() / 192, 8).unwrap()
    };
    let all = features(3);
    assert_eq!(all.len(), 17 * FEATURES);
    assert!(features(1) == all[16 * FEATURES..], "the last picture, on one thread");
    assert!(all.iter().all(|v| v.is_finite()));
}

fn refusal(cpu: &Cpu, tensors: Vec<NamedTensor>, variant: Variant) -> String {
    match Inception::from_tensors(cpu, Path::new("w.safetensors"), tensors, variant) {
        Err(e @ Error::Input { .. }) => e.to_string(),
        Err(e) => panic!("another kind of error: {e}"),
        Ok(_) => panic!("accepted"),
    }
}

fn tensor(name: &str, shape: &[usize]) -> NamedTensor {
    NamedTensor { name: name.into(), shape: shape.into(), data: vec![0.5; shape.iter().product()] }
}

/// The first convolution, whole.
fn first_layer() -> Vec<NamedTensor> {
    let name = "Conv2d_1a_3x3";
    let norm = ["weight", "bias", "running_mean", "running_var"].map(|p| tensor(&format!("{name}.bn.{p}"), &[32]));
    [vec![tensor(&format!("{name}.conv.weight"), &[32, 3, 3, 3])], norm.to_vec()].concat()
}

#[test]
fn other_weights_are_named() {
    let cpu = Cpu::new(1).unwrap();
    let of = |tensors| refusal(&cpu, tensors, Variant::Fid);
    let resnet = of(vec![tensor("conv1.weight", &[2]), tensor("layer1.0.conv1.weight", &[2])]);
    for part in ["w.safetensors", "Conv2d_1a_3x3.conv.weight is missing", "its 2 tensors begin with conv1.weight"] {
        assert!(resnet.contains(part), "{resnet}");
    }
    assert!(of(vec![]).contains("it holds no tensors"));
    let inside = of(vec![tensor("model.Conv2d_1a_3x3.conv.weight", &[32, 3, 3, 3])]);
    assert!(inside.contains("model.Conv2d_1a_3x3.conv.weight has more before it"), "{inside}");
    assert!(of(vec![tensor("blocks.0.0.conv.weight", &[2])]).contains("wrapper"));

    let next = of(first_layer());
    assert!(next.contains("Conv2d_2a_3x3.conv.weight is missing"), "{next}");
    let mut wide = first_layer();
    wide[0] = tensor("Conv2d_1a_3x3.conv.weight", &[64, 3, 3, 3]);
    let wide = of(wide);
    assert!(
        wide.contains("Conv2d_1a_3x3.conv.weight has shape [64, 3, 3, 3], Inception-v3 has [32, 3, 3, 3]"),
        "{wide}"
    );
    let mut negative = first_layer();
    negative[4].data[7] = -1.0;
    let negative = of(negative);
    assert!(negative.contains("Conv2d_1a_3x3.bn: channel 7"), "{negative}");

    let classes = |n| [first_layer(), vec![tensor("fc.weight", &[n, 2])]].concat();
    let other = refusal(&cpu, classes(1008), Variant::Torchvision);
    assert!(other.contains("these are weights of the port for FID (1008 classes)"), "{other}");
    let other = refusal(&cpu, classes(1000), Variant::Fid);
    assert!(other.contains("these are weights of torchvision's"), "{other}");
    assert!(of(classes(1008)).contains("Conv2d_2a_3x3.conv.weight is missing"));
}

#[test]
fn files_are_recognised_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let cpu = Cpu::new(1).unwrap();
    let write =
        |name: &str, tensors: &[NamedTensor]| tensor_file::write(&file(name), &BTreeMap::new(), tensors).unwrap();
    for (classes, want) in [(1000, Some(Variant::Torchvision)), (1008, Some(Variant::Fid)), (10, None)] {
        write("weights", &[tensor("fc.weight", &[classes, 4])]);
        assert_eq!(Variant::of_file(&file("weights")).unwrap(), want);
    }
    write("weights", &first_layer());
    assert_eq!(Variant::of_file(&file("weights")).unwrap(), None);

    let whole = std::fs::read(file("weights")).unwrap();
    std::fs::write(file("cut"), &whole[..whole.len() - 1]).unwrap();
    std::fs::write(file("text"), "PK\u{3}\u{4} a file of PyTorch's begins so, and is longer").unwrap();
    std::fs::write(file("short"), "abc").unwrap();
    for name in ["cut", "text", "short"] {
        let refused = Inception::load(&cpu, &file(name), Variant::Fid).err().unwrap();
        assert!(matches!(refused, Error::Input { .. }) && refused.exit_code() == 2, "{name}: {refused}");
        assert!(refused.to_string().contains("not a whole safetensors file"), "{name}: {refused}");
    }
    for name in ["text", "short"] {
        let refused = Variant::of_file(&file(name)).unwrap_err();
        assert!(refused.to_string().contains("not a safetensors file"), "{name}: {refused}");
    }
    let absent = Variant::of_file(&file("absent")).unwrap_err();
    assert_eq!(absent.exit_code(), 1, "{absent}");
}

#[test]
fn pictures_of_another_length_are_refused() {
    // Refused before any weight is looked at, so that the check needs no network: the length says it.
    let cpu = Cpu::new(1).unwrap();
    let mut net = Inception::from_tensors(&cpu, Path::new("formula"), weights(), Variant::Torchvision).unwrap();
    for (bytes, n, size) in [(SIZE, 1, 4), (0, 1, 0), (49, 1, 4)] {
        let refused = net.features(&cpu, &vec![0; bytes], n, size).err().unwrap();
        assert!(matches!(refused, Error::Shape { .. }), "{refused}");
    }
    assert!(net.features(&cpu, &[], 0, 4).unwrap().is_empty());
}

/// A measurement, made where it is asked for: `DDIM_MEASURE=1 cargo test --release --test inception speed -- --nocapture`, on a quiet
/// machine; `fixtures/inception.py --time N` is the other side.
#[test]
fn speed() {
    if std::env::var_os("DDIM_MEASURE").is_none() {
        return;
    }
    let (tensors, pictures) = (weights(), (0..16).flat_map(|i| picture(64, i + 1)).collect::<Vec<u8>>());
    for threads in [1, 2] {
        let cpu = Cpu::new(threads).unwrap();
        let mut net = Inception::from_tensors(&cpu, Path::new("formula"), tensors.clone(), Variant::Fid).unwrap();
        net.features(&cpu, &pictures, 16, 64).unwrap();
        let begin = std::time::Instant::now();
        net.features(&cpu, &pictures, 16, 64).unwrap();
        let rate = 16.0 / begin.elapsed().as_secs_f64();
        let memory = cpu.memory_use().peak >> 20;
        println!("{threads} threads: {rate:.2} pictures/s, {:.1} GF/s, {memory} MB at most", rate * FLOPS / 1e9);
    }
}
