//! `ddim-engine bench`: rows with all fields, parts that add up, comparisons that name what differs, files that are refused.

use std::path::Path;
use std::process::{Command, Stdio};

use ddim_engine::bench::kernels::{self, Options};
use ddim_engine::bench::probe::{Kind, Probe, Watch};
use ddim_engine::bench::step::{self, Training};
use ddim_engine::bench::timing::Effort;
use ddim_engine::config::{Config, PRESETS};
use ddim_engine::device::Memory;
use ddim_engine::device::cpu::Cpu;
use serde_json::{Value, json};

/// Keys of a network that takes no time.
const TINY: [&str; 6] = ["--set", "image_size=8", "--set", "widths=8,16", "--set", "embedding_dim=8"];

fn run(args: &[&str]) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_ddim-engine"))
        .args(args)
        .env_remove("DDIM_ISA")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap_or(-1), text(&done.stdout), text(&done.stderr))
}

fn json_of(args: &[&str]) -> Value {
    let (code, out, err) = run(&[args, &["--device", "cpu", "--json", "-"]].concat());
    assert_eq!(code, 0, "{args:?}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|why| panic!("{args:?}: {why}: {out}"))
}

/// A number above 0.
#[track_caller]
fn positive(value: &Value) -> f64 {
    match value.as_f64() {
        Some(number) if number.is_finite() && number > 0.0 => number,
        _ => panic!("{value} is no number above 0"),
    }
}

#[track_caller]
fn check_samples(value: &Value) {
    let [low, median, high] = ["p20", "median", "p80"].map(|key| positive(&value[key]));
    assert!(low <= median && median <= high && positive(&value["n"]) >= 1.0, "{value}");
}

fn tiny(name: &str) -> Config {
    let mut config = Config::preset(name).unwrap();
    config.batch_size = 2;
    config.accumulate = 1;
    config.image_size = 16;
    if config.unet.is_none() {
        (config.image_size, config.widths, config.embedding_dim) = (8, vec![8, 16], 8);
    }
    config
}

fn quickly() -> Effort {
    Effort { repeat: 1, budget: 0.0, sample_seconds: 0.0, cold: false, evict_len: 1 << 10 }
}

#[test]
fn every_operation_is_a_row_with_all_fields() {
    let args = ["bench", "kernels", "--preset", "quick", "--batch", "2", "--repeat", "3", "--budget", "0"];
    let result = json_of(&[&args[..], &TINY].concat());
    assert_eq!((&result["format"], &result["what"]), (&json!("ddim-engine-bench/1"), &json!("kernels")));
    for key in ["flops_one_core", "flops", "copy_bytes_per_second", "triad_bytes_per_second"] {
        positive(&result["ceilings"][key]);
    }
    positive(&result["machine"]["cores"]);
    let rows = result["rows"].as_array().unwrap();
    let has = |operation: &str, kind: &str| rows.iter().any(|r| r["operation"] == operation && r["kind"] == kind);
    for (operation, kind) in [
        ("conv", "conv forward"),
        ("conv", "conv dgrad"),
        ("conv_wgrad", "conv wgrad"),
        ("batch_norm_train", "norm"),
        ("batch_norm_eval", "norm"),
        ("batch_norm_backward", "norm backward"),
        ("adam_step", "adam"),
        ("loss", "loss"),
        ("upsample_forward", "resample"),
        ("ddim_step", "sampler update"),
    ] {
        assert!(has(operation, kind), "{operation} ({kind}) is missing");
    }
    for row in rows {
        check_samples(&row["hot"]);
        check_samples(&row["cold"]);
        for key in ["bytes", "predicted_seconds", "gb_per_second", "roofline", "roofline_cold"] {
            positive(&row[key]);
        }
        assert!(row["dtype"] == "float32" && row["shape"].is_string() && row["options"].is_string(), "{row}");
        let uses = row["uses"].as_object().unwrap();
        assert!(!uses.is_empty() && uses.keys().all(|k| k == "quick step" || k == "quick sample"), "{row}");
        let of_products = row["flops"].as_u64().unwrap() > 0;
        assert_eq!(row["tflops"].as_f64().unwrap() > 0.0, of_products, "{row}");
        let unchecked = ["conv_pack", "resample_conv_pack", "copy", "fill", "normalize", "combine"];
        match row["error"].as_f64() {
            Some(error) => assert!(error < 2e-4, "{row}"),
            None => assert!(unchecked.contains(&row["operation"].as_str().unwrap()), "{row}"),
        }
    }
}

#[test]
fn the_family_unet2d_is_measured_and_right_too() {
    let cpu = Cpu::new(1).unwrap();
    let presets = vec![("unet2d-tiny".to_string(), tiny("unet2d-tiny"))];
    let options = Options { presets, only: vec![], effort: quickly(), list: false };
    let rows = kernels::measure(&cpu, &options, &mut |_| {}).unwrap();
    for operation in [
        "attention",
        "attention_backward",
        "group_norm_coefficients",
        "group_norm_backward",
        "linear",
        "linear_backward",
        "embed_timesteps",
        "gather_levels",
        "resample_conv",
        "resample_conv_backward",
        "sampler_step",
    ] {
        let row = rows.iter().find(|row| row.seen.call.operation == operation);
        let row = row.unwrap_or_else(|| panic!("{operation} is missing"));
        assert!(row.seen.measured.as_ref().unwrap().error.is_some(), "{operation} is not compared");
    }
    for row in &rows {
        let error = row.seen.measured.as_ref().unwrap().error;
        assert!(
            error.is_none_or(|error| error < 2e-4),
            "{} {}: {error:?}",
            row.seen.call.operation,
            row.seen.call.shape
        );
    }
}

#[test]
fn operations_are_selected_and_listed() {
    let args = ["bench", "kernels", "--preset", "all", "--batch", "1", "--list", "--only", "wgrad"];
    let result = json_of(&args);
    let rows = result["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["kind"] == "conv wgrad" && row["hot"].is_null()), "{result}");
    // Every preset for use has a convolution, and the larger ones have their own.
    for (name, _) in PRESETS.iter().filter(|(name, _)| *name != "quick") {
        let uses = format!("{name} step");
        assert!(rows.iter().any(|row| row["uses"][&uses].as_u64() > Some(0)), "{name}");
    }
    let (_, table, _) = run(&[&args[..], &["--device", "cpu"]].concat());
    assert!(table.starts_with("operation") && table.contains("conv_wgrad"), "{table}");
}

#[test]
fn measuring_in_place_changes_nothing() {
    let cpu = Cpu::new(1).unwrap();
    for name in ["quick", "unet2d-tiny"] {
        let weights = |watch: Watch| {
            let probe = Probe::new(&cpu).unwrap();
            let mut training = Training::new(&probe, &tiny(name)).unwrap();
            training.step(&probe).unwrap();
            probe.set(watch);
            training.step(&probe).unwrap();
            probe.set(Watch::Off);
            training.step(&probe).unwrap();
            let params = &training.state.weights.params;
            let mut values = vec![0.0; Cpu::buffer_len(params)];
            cpu.download(Cpu::all(params), &mut values).unwrap();
            values
        };
        let plain = weights(Watch::Off);
        assert!(plain == weights(Watch::Measure(Effort { repeat: 2, ..quickly() })), "{name}: measured");
        assert!(plain == weights(Watch::Time), "{name}: timed");
    }
}

#[test]
fn the_parts_of_a_step_lie_within_it() {
    let args = ["bench", "step", "--preset", "quick", "--set", "batch_size=2", "--repeat", "2", "--breakdown"];
    let result = json_of(&[&args[..], &TINY].concat());
    for key in ["seconds_per_step_min", "seconds_per_step_median", "seconds_first_step", "images_per_second"] {
        positive(&result[key]);
    }
    check_samples(&result["rows"][0]["hot"]);
    let breakdown = &result["breakdown"];
    let whole = positive(&breakdown["seconds_per_step"]);
    let sum = |list: &str| -> f64 { breakdown[list].as_array().unwrap().iter().map(|p| positive(&p["seconds"])).sum() };
    assert!(sum("parts") <= whole, "{breakdown}");
    assert!((sum("parts") - sum("operations")).abs() < 1e-9, "{breakdown}");
    let parts: Vec<&str> = breakdown["parts"].as_array().unwrap().iter().map(|p| p["part"].as_str().unwrap()).collect();
    for part in ["conv forward", "conv dgrad", "conv wgrad", "norm", "norm backward", "adam", "loss", "resample"] {
        assert!(parts.contains(&part), "{part} is not among {parts:?}");
    }
    let without = json_of(&[&args[..args.len() - 1], &TINY].concat());
    assert!(without["breakdown"].is_null());
}

#[test]
fn a_breakdown_has_the_products_that_the_network_has() {
    let cpu = Cpu::new(1).unwrap();
    let breakdown = step::breakdown(&cpu, &tiny("quick"), 1).unwrap();
    let flops = |kind: Kind| breakdown.parts.iter().find(|part| part.kind == kind).unwrap().flops;
    // Every forward product has one for its weights; the gradient of the network's input is asked for by nobody.
    assert_eq!(flops(Kind::Forward), flops(Kind::Wgrad));
    assert!(flops(Kind::Dgrad) < flops(Kind::Forward) && flops(Kind::Dgrad) > 0.4 * flops(Kind::Forward));
    assert_eq!(breakdown.launches, None, "a CPU launches no kernels");
}

#[test]
fn sampling_is_timed() {
    let args = ["bench", "sample", "--preset", "quick", "--images", "3", "--batch", "2", "--sample-steps", "3"];
    let result = json_of(&[&args[..], &["--repeat", "2"], &TINY].concat());
    for key in ["seconds_min", "seconds_median", "seconds_first", "images_per_second", "arena_peak_mib"] {
        positive(&result[key]);
    }
    assert_eq!((&result["images"], &result["batch_size"], &result["repeat"]), (&json!(3), &json!(2), &json!(2)));
}

fn written(dir: &Path, name: &str, value: &Value) -> String {
    let path = dir.join(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path.to_str().unwrap().to_string()
}

fn result_of(rows: &[(&str, f64)], device: &str) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|(name, median)| {
            let hot = json!({"median": median, "p20": 0.95 * median, "p80": 1.05 * median, "n": 5});
            json!({"operation": name, "shape": "s", "options": "", "hot": hot, "cold": null})
        })
        .collect();
    json!({"format": "ddim-engine-bench/1", "what": "kernels", "device": device, "rows": rows})
}

#[test]
fn two_results_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let a =
        written(dir.path(), "a.json", &result_of(&[("slow", 1.0), ("same", 1.0), ("fast", 1.0), ("gone", 1.0)], "x"));
    let b =
        written(dir.path(), "b.json", &result_of(&[("slow", 2.0), ("same", 1.02), ("fast", 0.5), ("new", 1.0)], "y"));
    let (code, out, err) = run(&["bench", "--compare", &a, &b]);
    assert_eq!(code, 0, "{err}");
    let line = |name: &str| out.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {out}"));
    assert!(line("slow s (hot)").contains("2.000") && line("slow s (hot)").ends_with("slower"), "{out}");
    assert!(line("fast s (hot)").contains("0.500") && line("fast s (hot)").ends_with("faster"), "{out}");
    assert!(line("same s (hot)").trim_end().ends_with("1.020"), "{out}");
    for needle in ["only in A: gone s (hot)", "only in B: new s (hot)", "differs: device: \"x\" in A, \"y\" in B"] {
        assert!(out.contains(needle), "{needle:?} is not in {out}");
    }
}

#[test]
fn what_is_no_result_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = written(dir.path(), "good.json", &result_of(&[("a", 1.0)], "x"));
    let other = written(dir.path(), "other.json", &json!({"format": "else/1"}));
    let empty = written(dir.path(), "empty.json", &result_of(&[], "x"));
    let wrong = written(dir.path(), "wrong.json", &result_of(&[("a", -1.0)], "x"));
    let text = dir.path().join("text.json");
    std::fs::write(&text, "hello").unwrap();
    let refused = |args: &[&str], needles: &[&str]| {
        let (code, out, err) = run(args);
        assert!(code == 2 && out.is_empty(), "{args:?}: {code} {out}");
        for needle in needles {
            assert!(err.contains(needle), "{args:?}: {needle:?} is not in: {err}");
        }
    };
    let wanted = "bench --json wrote";
    refused(&["bench", "--compare", &good, "no/such.json"], &["no/such.json", "no such file", wanted]);
    refused(&["bench", "--compare", text.to_str().unwrap(), &good], &["text.json", "is no JSON", wanted]);
    refused(&["bench", "--compare", &good, &other], &["other.json", "else/1", "ddim-engine-bench/1"]);
    refused(&["bench", "--compare", &good, &empty], &["empty.json", "no rows with times"]);
    refused(&["bench", "--compare", &good, &wrong], &["wrong.json", "rows[0].hot", "median"]);
    refused(&["bench", "--compare", &good], &["--compare"]);
    refused(&["bench", "kernels", "--preset", "sed"], &["unknown preset `sed`"]);
    refused(&["bench", "kernels", "--batch", "0"], &["--batch"]);
    refused(&["bench", "kernels", "--budget", "-1"], &["--budget"]);
    refused(&["bench", "sample", "--preset", "seed", "--sample-steps", "1", "--images", "1"], &["at least 2 steps"]);
}
