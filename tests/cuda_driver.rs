//! Machines without a usable GPU get a clear error, never a panic; and the launcher keeps the driver's rules (nothing allocated, copied or
//! waited for while a step is captured, nothing destroyed twice or left behind), against a driver that does nothing else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ddim_engine::kernels;

/// The fake driver as `libcuda.so.1` in a folder of its own; `None`, said aloud, where it cannot be made or used.
fn fake_driver(dir: &Path) -> Option<PathBuf> {
    let skip = |why: &str| {
        std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).unwrap();
        None
    };
    if kernels::NO_IMAGES.is_some() {
        return skip("no GPU kernels in this build, so the driver is never asked");
    }
    let library = dir.join("libcuda.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fake_cuda.cpp");
    let built = Command::new("g++").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output();
    match built {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("g++: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => return skip("g++ is not there to make the fake driver"),
    }
    std::os::unix::fs::symlink(&library, dir.join("libcuda.so")).unwrap();
    let all = kernels::ALL.iter().chain(&kernels::LADDER);
    let table: String = all.map(|k| format!("{} {}\n", k.name, k.args_size)).collect();
    std::fs::write(dir.join("kernels"), table).unwrap();
    Some(dir.to_path_buf())
}

/// Runs the program on a kind of machine: exit code, standard output and standard error.
fn run(dir: &Path, kind: &str, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ddim-engine"))
        .args(args)
        .env("LD_LIBRARY_PATH", dir)
        .env("FAKE_CUDA", kind)
        .env("FAKE_CUDA_KERNELS", dir.join("kernels"))
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

const STEP: [&str; 10] =
    ["bench", "step", "--set", "image_size=16", "--set", "batch_size=2", "--set", "widths=8,16", "--repeat", "3"];

#[test]
fn machines_without_a_usable_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(dir) = fake_driver(dir.path()) else { return };
    for (kind, needles) in [
        ("old", &["CUDA 12.4", "need 13.0", "update it"][..]),
        ("none", &["no GPU", "CUDA_VISIBLE_DEVICES"]),
        ("turing", &["compute capability 7.5", "8.0"]),
    ] {
        let (code, _, err) = run(&dir, kind, &[&STEP[..], &["--device", "cuda"]].concat());
        assert_eq!(code, 2, "{kind}: {err}");
        assert!(err.starts_with("error: --device cuda") && !err.contains("panicked"), "{kind}: {err}");
        assert!(needles.iter().all(|n| err.contains(n)) && err.contains("use --device cpu"), "{kind}: {err}");
        // Without being asked for, the CPU is taken and the reason told.
        let (code, _, err) = run(&dir, kind, &STEP);
        assert_eq!(code, 0, "{kind}: {err}");
        assert!(err.contains("device: cpu") && err.contains(needles[0]), "{kind}: {err}");
        let (code, out, err) = run(&dir, kind, &["doctor"]);
        assert_eq!(code, 0, "{kind}: {err}");
        assert!(out.contains(needles[0]), "{kind}: {out}");
    }
    let (code, _, err) = run(&dir, "works", &[&STEP[..], &["--device", "cuda:3"]].concat());
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("cuda:0 to cuda:0"), "{err}");
}

#[test]
fn a_full_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(dir) = fake_driver(dir.path()) else { return };
    let (code, _, err) = run(&dir, "full", &[&STEP[..], &["--device", "cuda"]].concat());
    assert_eq!(code, 1, "{err}");
    for needle in ["MiB", "CUDA_ERROR_OUT_OF_MEMORY", "smaller batch"] {
        assert!(err.contains(needle) && !err.contains("panicked"), "{err}");
    }
}

#[test]
fn the_launcher_keeps_the_drivers_rules() {
    let dir = tempfile::tempdir().unwrap();
    let Some(dir) = fake_driver(dir.path()) else { return };
    for precision in ["fp32", "tf32", "bf16"] {
        // Kernels that do nothing leave a loss of 0; what is tested is everything around them.
        let (code, _, err) = run(&dir, "works", &[&STEP[..], &["--device", "auto", "--precision", precision]].concat());
        assert_eq!(code, 0, "{precision}: {err}");
        assert!(err.contains(&format!("device: cuda:0 (Fake GPU, sm_90, 16 GiB, CUDA 13.0), {precision}")), "{err}");
        assert!(!err.contains("outlive"), "{precision}: {err}");
        let line = err.lines().find(|l| l.starts_with("fake driver:")).unwrap_or_default();
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let [launches, captured, replays] = numbers[..] else { panic!("{precision}: {err}") };
        // One step launched, the same recorded, and from then on replayed.
        assert!(launches >= captured && captured > 50, "{precision}: {line}");
        assert_eq!(replays, 4, "{precision}: {line}");
        // What `bench plan` lists is what the driver was given.
        let args = [&["bench", "plan", "--precision", precision, "--json", "-"][..], &STEP[2..8]].concat();
        let (code, plan, err) = run(&dir, "works", &args);
        assert_eq!(code, 0, "{precision}: {err}");
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let kernels = plan["launches"].as_array().unwrap().iter().filter(|row| row["blocks"] != 0);
        let planned: u64 = kernels.map(|row| row["count"].as_u64().unwrap()).sum();
        assert_eq!(planned, captured, "{precision}: kernels planned and captured");
    }
}

/// Kernels that do nothing give wrong results; the ladder launches, records and times them all the same, and says how wrong they are.
#[test]
fn the_ladder_is_launched_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(dir) = fake_driver(dir.path()) else { return };
    let args = ["bench", "kernels", "--ladder", "--device", "cuda", "--batch", "1", "--repeat", "1", "--hot-only"];
    let (code, table, err) = run(&dir, "works", &args);
    assert_eq!(code, 0, "{err}");
    assert!(!err.contains("outlive"), "{err}");
    assert!(table.contains("conv3x3: 1x64x64 64>32") && table.contains("inf"), "{table}");
}
