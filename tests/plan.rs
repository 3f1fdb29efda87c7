//! What a GPU would be asked for, on a machine without one: `ddim-engine bench plan`.

use std::io::Write;
use std::process::Command;

use ddim_engine::bench::kernels::{self as listed, Options};
use ddim_engine::bench::plan::gpus::{GPUS, GpuSpec};
use ddim_engine::bench::plan::{Launch, What, plan};
use ddim_engine::bench::timing::Effort;
use ddim_engine::config::{Config, Layers, PRESETS};
use ddim_engine::device::cpu::Cpu;
use ddim_engine::device::gpu::Arithmetic;
use ddim_engine::kernels;
use serde_json::Value;

fn config(preset: &str, sets: &[&str]) -> Config {
    let sets = sets.iter().map(|set| set.to_string()).collect();
    Config::resolve(&Layers { preset: Some(preset.into()), sets, ..Layers::default() }).unwrap()
}

fn command(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ddim-engine")).args(["bench", "plan"]).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The operations of a step are the same on every device, so their products and bytes are those that `bench kernels --list` tells.
#[test]
fn the_work_is_that_of_the_step() {
    let h200 = GpuSpec::named("h200").unwrap();
    for preset in ["seed", "unet2d-tiny"] {
        let config = config(preset, &["batch_size=2"]);
        for (arithmetic, bytes_of_activations) in [(Arithmetic::Fp32, 1.0), (Arithmetic::Bf16, 0.5)] {
            let step = plan(&config, h200, arithmetic, What::Step).unwrap();
            let cpu = Cpu::new(1).unwrap();
            let presets = vec![(preset.to_string(), config.clone())];
            let options = Options { presets, only: Vec::new(), effort: Effort::default(), list: true };
            let rows = listed::measure(&cpu, &options, &mut |_| {}).unwrap();
            let of_step = format!("{preset} step");
            let total = |of: &dyn Fn(&listed::Row) -> u64| -> u64 {
                let count = |row: &listed::Row| row.uses.iter().find(|(name, _)| *name == of_step).map_or(0, |u| u.1);
                rows.iter().map(|row| count(row) as u64 * of(row)).sum()
            };
            assert_eq!(step.sum().flops, total(&|row| row.seen.call.flops), "{preset} {arithmetic}");
            let ratio = step.sum().bytes as f64 / total(&|row| row.seen.call.bytes) as f64;
            assert!(ratio < 1.1 && ratio > 0.8 * bytes_of_activations, "{preset} {arithmetic}: {ratio}");
        }
    }
}

#[test]
fn launches_have_extents_and_a_time() {
    let h200 = GpuSpec::named("h200").unwrap();
    let step = plan(&config("seed", &[]), h200, Arithmetic::Bf16, What::Step).unwrap();
    let sum = step.sum();
    assert!((80..400).contains(&sum.launches), "{sum:?}");
    // 359 GFLOP; no faster than the floor of the plan, no slower than several times it.
    assert!((3.4e11..3.7e11).contains(&(sum.flops as f64)), "{sum:?}");
    assert!(sum.floor > 0.5e-3 && sum.floor < 1.5e-3, "{sum:?}");
    assert!(sum.predicted > sum.floor && sum.predicted < 6e-3, "{sum:?}");
    for launch in &step.launches {
        assert!(launch.predicted >= launch.floor, "{launch:?}");
        assert!(launch.shared <= h200.shared_block, "{launch:?}");
        match (launch.kernel, launch.occupancy) {
            ("fill" | "copy", occupancy) => assert!(occupancy.is_none() && launch.blocks == 0, "{launch:?}"),
            (_, Some(occupancy)) => {
                assert!(occupancy.blocks > 0, "does not fit: {launch:?}");
                assert!(launch.waves(h200).unwrap() > 0.0);
            }
            (_, None) => assert!(kernels::NO_IMAGES.is_some(), "{launch:?}"),
        }
    }
    let call = plan(&config("seed", &[]), h200, Arithmetic::Tf32, What::Sample).unwrap().sum();
    assert!(call.launches < sum.launches / 2, "{call:?}");
    assert!((1.1e11..1.3e11).contains(&(call.flops as f64)), "{call:?}");
}

/// Every preset in every arithmetic fits every GPU, the one with the least shared memory among them.
#[test]
fn every_gpu_can_train() {
    let least = GPUS.iter().map(|gpu| gpu.shared_block).min().unwrap();
    for gpu in &GPUS {
        for (preset, _) in PRESETS {
            let all = [Arithmetic::Bf16, Arithmetic::Tf32, Arithmetic::Fp32];
            for &arithmetic in if gpu.shared_block == least { &all[..] } else { &all[..1] } {
                // Networks as in the preset, fewer pictures: the extents of tiles do not depend on their number.
                let config = config(preset, &["batch_size=8"]);
                let step = plan(&config, gpu, arithmetic, What::Step);
                let step = step.unwrap_or_else(|e| panic!("{preset} in {arithmetic} on {}: {e}", gpu.title));
                let fits = |l: &Launch| l.occupancy.is_none_or(|o| o.blocks > 0) && l.shared <= gpu.shared_block;
                let too_large = step.launches.iter().find(|launch| launch.blocks > 0 && !fits(launch));
                assert!(too_large.is_none(), "{preset} in {arithmetic} on {}: {too_large:?}", gpu.title);
            }
        }
    }
}

#[test]
fn the_same_list_every_time() {
    let args = ["--preset", "seed", "--set", "image_size=16", "--set", "batch_size=4", "--json", "-"];
    let (code, first, err) = command(&args);
    assert_eq!(code, 0, "{err}");
    assert_eq!(first, command(&args).1);
    let plan: Value = serde_json::from_str(&first).unwrap();
    let rows = plan["launches"].as_array().unwrap();
    let launches: u64 = rows.iter().map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!(plan["sum"]["launches"], launches);
    assert!(rows.iter().all(|row| row["measured"] == false));
    assert_eq!(plan["gpu"], "H200");
}

#[test]
fn the_table_says_that_nothing_was_measured() {
    let (code, out, err) = command(&["--preset", "seed", "--set", "image_size=16", "--kernels", "--gpu", "a100"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("predicted for A100") && out.contains("nothing here was measured"), "{out}");
    assert!(out.lines().any(|line| line.starts_with("conv_fwd_")), "{out}");
    assert!(out.lines().last().unwrap_or_default().starts_with("all "), "{out}");
    if let Some(why) = kernels::NO_IMAGES {
        std::io::stderr()
            .write_all(format!("skipped: registers, no GPU kernels in this build: {why}\n").as_bytes())
            .ok();
    } else {
        assert!(!out.lines().any(|line| line.starts_with("conv_") && line.contains(" ? ")), "{out}");
    }
    let (code, _, err) = command(&["--gpu", "h300"]);
    assert_eq!(code, 2);
    assert!(err.contains("--gpu h300") && err.contains("rtx4090"), "{err}");
}
