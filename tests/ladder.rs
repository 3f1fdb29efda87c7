//! The ladder: every rung of `kernels/ladder/` against the float64 reference of its operation, on the simulator always (where it was
//! built), under its checker, and on a GPU where there is one; the command that measures them; the page that explains them.

mod ops_support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use ddim_engine::bench::ladder::attention::{AttentionExtents, AttentionSteps};
use ddim_engine::bench::ladder::conv::{ConvExtents, ConvSteps};
use ddim_engine::bench::ladder::group_norm::{NormExtents, NormSteps};
use ddim_engine::bench::ladder::{self, Extents, Options, Steps};
use ddim_engine::bench::timing::Effort;
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::kernels;
use ops_support::{assert_shape_error, devices};
use serde_json::Value;

/// Largest error over the largest value. A result is rounded to bfloat16: by 2^-8 of itself at most. The engine's convolution rounds what its
/// prologue makes too, and the attentions on tensor cores their exponentials.
fn tolerance(rung: &str) -> f64 {
    match rung {
        "conv3x3_5" | "attention_3" | "attention_4" => 8e-3,
        "group_norm_5" => 1e-5,
        _ => 4e-3,
    }
}

/// Runs every rung twice: the same bits, and close to float64; or refused, where `takes` says that it does not take these extents. Returns the
/// results.
fn climb<L: Launcher, S: Steps<L>>(
    gpu: &Gpu<L>,
    extents: S::Extents,
    takes: impl Fn(usize) -> bool,
) -> Vec<Option<Vec<u32>>> {
    let mut steps = S::new(gpu, extents).unwrap();
    let mut results = Vec::new();
    for (number, rung) in S::Extents::RUNGS.iter().enumerate() {
        let name = format!("{} of {}", rung.name, extents.shape());
        if !takes(number) {
            assert_shape_error(&name, steps.run(gpu, number));
            results.push(None);
            continue;
        }
        let mut bits = || {
            let error = steps.error(gpu, number).unwrap();
            println!("{name}: {error:.2e}");
            assert!(error <= tolerance(rung.name), "{name}: error {error:.2e}");
            steps.result(gpu).unwrap().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let first = bits();
        assert!(first == bits(), "{name}: two runs differ");
        results.push(Some(first));
    }
    results
}

/// A test on a device of any kind.
trait OnGpu {
    fn run<L: Launcher>(&self, gpu: &Gpu<L>);
}

fn on_all_devices(test: &impl OnGpu) {
    devices::run_or_skip("sim", devices::no_sim(), || test.run(&devices::sim(Arithmetic::Bf16)));
    devices::run_or_skip("cuda", devices::no_cuda(), || test.run(&devices::cuda(Arithmetic::Bf16)));
}

/// Pictures smaller than a tile, as large, and neither; channels that are whole vectors and chunks, and such that are not.
struct Convolutions;

impl OnGpu for Convolutions {
    fn run<L: Launcher>(&self, gpu: &Gpu<L>) {
        let of = |n, h, w, c, k| ConvExtents { n, h, w, c, k };
        for d in [
            of(1, 16, 16, 64, 32),
            of(2, 5, 7, 8, 8),
            of(1, 8, 16, 32, 32),
            of(3, 9, 17, 24, 40),
            of(2, 1, 1, 40, 72),
            of(1, 33, 3, 96, 64),
            of(2, 4, 4, 16, 5),
            of(1, 3, 6, 3, 8),
        ] {
            let takes = |rung| match rung {
                0 | 5 => true,
                1 => d.c % 8 == 0,
                _ => d.c % 8 == 0 && d.k % 8 == 0,
            };
            let results = climb::<L, ConvSteps<L>>(gpu, d, takes);
            // What their comments claim.
            for (one, other) in [(0, 1), (3, 4)] {
                if let (Some(one), Some(other)) = (&results[one], &results[other]) {
                    assert!(one == other, "{}: the bits differ", d.shape());
                }
            }
        }
    }
}

#[test]
fn the_convolution() {
    on_all_devices(&Convolutions);
}

/// Groups of one channel and of all; pixels fewer than a block's and more.
struct Norms;

impl OnGpu for Norms {
    fn run<L: Launcher>(&self, gpu: &Gpu<L>) {
        let of = |n, pixels, c, groups| NormExtents { n, pixels, c, groups };
        for d in [
            of(1, 256, 64, 32),
            of(2, 1, 32, 4),
            of(2, 35, 32, 32),
            of(3, 130, 96, 12),
            of(1, 1029, 32, 1),
            of(2, 300, 24, 3),
            of(2, 50, 96, 2),
            of(1, 77, 5, 5),
        ] {
            let takes = |rung| match rung {
                2 | 3 => d.c % 32 == 0 && 32 % (d.c / d.groups) == 0,
                4 => d.c % 8 == 0,
                _ => true,
            };
            climb::<L, NormSteps<L>>(gpu, d, takes);
        }
    }
}

#[test]
fn the_group_norm() {
    on_all_devices(&Norms);
}

/// Tokens on both sides of warps, tiles and steps; heads of one vector and of many.
struct Attentions;

impl OnGpu for Attentions {
    fn run<L: Launcher>(&self, gpu: &Gpu<L>) {
        let of = |n, tokens, heads, d| AttentionExtents { n, tokens, heads, d };
        for d in [
            of(1, 64, 2, 32),
            of(2, 1, 1, 8),
            of(2, 17, 3, 24),
            of(1, 33, 2, 64),
            of(1, 100, 1, 40),
            of(1, 256, 1, 64),
            of(1, 300, 1, 16),
            of(1, 20, 2, 12),
            of(1, 9, 1, 72),
        ] {
            let takes = |rung| matches!(rung, 0 | 4) || d.tokens <= 256 && d.d <= 64 && d.d % 8 == 0;
            let results = climb::<L, AttentionSteps<L>>(gpu, d, takes);
            assert!(results[1] == results[2], "{}: the bits of rungs 1 and 2 differ", d.shape());
        }
    }
}

#[test]
fn the_attention() {
    on_all_devices(&Attentions);
}

/// No race, no access out of bounds, no read of what was never written; and every kernel of the ladder was there.
#[test]
fn under_the_checker() {
    let missing = Sim::checked().err().map(|error| error.to_string());
    devices::run_or_skip("sim-checker", missing, || {
        let gpu = Gpu::new(Sim::checked().unwrap(), Arithmetic::Bf16);
        gpu.separate_buffers();
        climb::<Sim, ConvSteps<Sim>>(&gpu, ConvExtents { n: 2, h: 9, w: 18, c: 40, k: 40 }, |_| true);
        climb::<Sim, NormSteps<Sim>>(&gpu, NormExtents { n: 2, pixels: 141, c: 64, groups: 16 }, |_| true);
        climb::<Sim, AttentionSteps<Sim>>(&gpu, AttentionExtents { n: 1, tokens: 70, heads: 2, d: 24 }, |_| true);
        let used = gpu.launcher().used();
        let missed: Vec<&str> = kernels::LADDER.iter().map(|k| k.name).filter(|name| !used.contains(name)).collect();
        assert_eq!(missed, [""; 0], "no rung launches them");
    });
}

fn run(args: &[&str]) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_ddim-engine"))
        .args(["bench", "kernels", "--ladder"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap_or(-1), text(&done.stdout), text(&done.stderr))
}

/// Names of all rungs, in order.
fn names() -> Vec<&'static str> {
    let all = [ConvExtents::RUNGS, NormExtents::RUNGS, AttentionExtents::RUNGS];
    all.into_iter().flatten().map(|rung| rung.name).collect()
}

#[test]
fn the_command_measures_every_rung() {
    devices::run_or_skip("sim", devices::no_sim(), || {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ladder.json");
        let (code, table, err) = run(&["--device", "sim", "--json", file.to_str().unwrap()]);
        assert_eq!(code, 0, "{err}");
        assert!(table.contains("they say nothing about a GPU") && table.contains("not measured"), "{table}");
        let result: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let rows = result["rows"].as_array().unwrap();
        let found: Vec<&str> = rows.iter().map(|row| row["operation"].as_str().unwrap()).collect();
        assert_eq!(found, names().iter().map(|name| format!("ladder_{name}")).collect::<Vec<_>>());
        for (row, name) in rows.iter().zip(names()) {
            assert!(table.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} is not in {table}");
            let positive = |value: &Value| value.as_f64().is_some_and(|v| v.is_finite() && v > 0.0);
            assert!(positive(&row["hot"]["median"]) && positive(&row["gb_per_second"]), "{row}");
            assert!(positive(&row["h200_predicted_seconds"]) && row["roofline"].is_null(), "{row}");
            assert!(row["error"].as_f64().unwrap() <= tolerance(name), "{row}");
            assert_eq!(positive(&row["gain"]), !name.ends_with("_0"), "{row}");
            assert!(row["plan"].as_str().unwrap().len() > 3, "{row}");
        }
        let (code, table, err) = run(&["--device", "sim", "--only", "conv3x3_2"]);
        assert!(code == 0 && table.contains("conv3x3_2") && !table.contains("conv3x3_1"), "{table}{err}");
    });
}

#[test]
fn what_it_cannot_do_is_said() {
    let refused = |args: &[&str], needles: &[&str]| {
        let (code, out, err) = run(args);
        assert!(code == 2 && out.is_empty(), "{args:?}: {code} {out}");
        needles.iter().for_each(|needle| assert!(err.contains(needle), "{args:?}: {needle:?} is not in {err}"));
    };
    refused(&["--device", "cpu"], &["--ladder", "cpu", "--device cuda", "--device sim"]);
    refused(&["--preset", "seed"], &["--preset", "--ladder"]);
    refused(&["--list", "--only", "pool"], &["pool", "--list"]);
    if devices::no_sim().is_none() {
        refused(&["--device", "sim", "--precision", "fp32"], &["--precision fp32", "bf16"]);
    }
    let (code, table, err) = run(&["--device", "cpu", "--list"]);
    assert!(code == 0 && names().iter().all(|name| table.contains(name)), "{table}{err}");
}

/// The page has a section for every rung, and the figures that the program predicts.
#[test]
fn the_page_is_of_these_rungs() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ladder.md")).unwrap();
    let options = Options { only: vec![], effort: Effort::default(), small: false, batch: None };
    let rows = ladder::list(&options).unwrap();
    assert_eq!(rows.iter().map(|row| row.rung.name).collect::<Vec<_>>(), names());
    let mut files = BTreeSet::new();
    for row in rows {
        let (time, bound) = row.predicted;
        let time = ddim_engine::bench::table::seconds(time);
        let line = page.lines().find(|line| line.starts_with(&format!("| {} |", row.rung.name)));
        let line = line.unwrap_or_else(|| panic!("the tables have no {}", row.rung.name));
        assert!(
            line.contains(&format!("| {time} |")) && line.contains(bound),
            "{}: {time} by {bound}: {line}",
            row.rung.name
        );
        assert!(page.contains(&format!("kernels/{}", row.rung.file)), "{} is not named", row.rung.file);
        files.insert(row.rung.file.to_string());
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ladder");
    let there = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    for file in there.filter(|name| name.ends_with(".cu")) {
        assert!(files.contains(&format!("ladder/{file}")), "{file} is no rung");
    }
}
