//! The built program: what it says, and how it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ddim_engine::config::{Config, KEYS};
use ddim_engine::device::cuda;
use ddim_engine::kernels;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddim-engine"));
    command.args(args).env_remove("DDIM_ISA").env_remove("DDIM_BF16").env_remove("DDIM_DATA_DIR").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    spoken(&program(args).output().unwrap())
}

fn spoken(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Ends with 2, says why in an `error:` with all `needles`, and does not panic.
#[track_caller]
fn refused(args: &[&str], needles: &[&str]) {
    let (code, out, err) = run(args);
    assert_eq!(code, 2, "{args:?}: {err}");
    assert!(out.is_empty(), "{args:?}: {out}");
    assert!(err.starts_with("error: "), "{args:?}: {err}");
    assert!(!err.contains("panicked") && !err.contains("backtrace"), "{args:?}: {err}");
    for needle in needles {
        assert!(err.contains(needle), "{args:?}: {needle:?} is not in: {err}");
    }
}

#[track_caller]
fn says(args: &[&str], needles: &[&str]) -> String {
    let (code, out, err) = run(args);
    assert_eq!(code, 0, "{args:?}: {err}");
    for needle in needles {
        assert!(out.contains(needle), "{args:?}: {needle:?} is not in: {out}");
    }
    out
}

#[test]
fn without_arguments_it_says_what_to_try() {
    says(&[], &["ddim-engine train\n", "doctor", "--help"]);
}

#[test]
fn help_has_commands_examples_and_keys() {
    says(&["--help"], &["train", "sample", "check", "doctor", "bench", "First command to try", "Exit codes", "130"]);
    says(&["--version"], &["ddim-engine ", env!("CARGO_PKG_VERSION")]);
    let train = says(
        &["train", "--help"],
        &[
            "--preset",
            "--config",
            "--set",
            "--data-dir",
            "--resume",
            "--run-dir",
            "--epochs",
            "Examples",
            "quick",
            "seed",
        ],
    );
    for key in KEYS {
        assert!(train.contains(&format!("\n  {} ", key.name)), "{}", key.name);
    }
    assert!(train.contains("widths=[32,64,96,128]"), "the values of the other presets");
    says(&["train", "-h"], &["Examples", "--print-config"]);
    says(&["sample", "--help"], &["--gif", "--individual", "--weights", "default: 36", "default: 20", "Examples"]);
    says(&["check", "--help"], &["REFERENCE.safetensors", "Exit code 1"]);
    says(&["doctor", "--help"], &["--data-dir"]);
    says(&["bench", "--help"], &["kernels", "step", "sample", "--compare", "Examples"]);
    for args in [
        &["--help"][..],
        &["train", "--help"],
        &["train", "-h"],
        &["sample", "-h"],
        &["check", "-h"],
        &["doctor", "-h"],
        &["bench", "-h"],
        &["bench", "kernels", "-h"],
        &["bench", "step", "-h"],
        &["bench", "sample", "-h"],
    ] {
        for line in says(args, &[]).lines() {
            assert!(line.chars().count() <= 100, "{args:?}: {line}");
        }
    }
}

#[test]
fn the_resolved_configuration_is_printed() {
    let toml =
        says(&["train", "--preset", "seed", "--set", "widths=8,16", "--seed", "7", "--print-config"], &["seed = 7"]);
    let config = Config::from_toml(&toml).unwrap();
    assert_eq!(config, Config { widths: vec![8, 16], seed: 7, ..Config::seed_preset() });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.toml");
    std::fs::write(&file, &toml).unwrap();
    let again = says(&["train", "--config", file.to_str().unwrap(), "--print-config"], &[]);
    assert_eq!(again, toml);
}

#[test]
fn bad_settings_are_refused() {
    refused(&["train", "--preset", "sed"], &["unknown preset `sed`", "did you mean `seed`?", "quick"]);
    refused(&["train", "--preset", "unet2d-small"], &["unknown preset `unet2d-small`", "unet2d-tiny", "quick", "seed"]);
    refused(&["train", "--set", "learning_rate=1"], &["unknown key `learning_rate`", "`lr`", "image_size"]);
    refused(&["train", "--set", "lr"], &["key=value"]);
    refused(&["train", "--set"], &["--set"]);
    refused(&["train", "--set", "lr=0"], &["--set lr=0", "expected a number"]);
    refused(&["train", "--set", "image_size=30"], &["image_size 30 with 3 levels", "24 or 32"]);
    refused(&["train", "--epochs", "0"], &["--epochs 0", "whole number from 1"]);
    refused(&["train", "--epochs", "-3"], &["--epochs -3", "whole number from 1"]);
    refused(&["train", "--steps", "many"], &["--steps many"]);
    refused(&["train", "--seed", "1.5"], &["--seed 1.5"]);
    refused(&["train", "--epochs", "1", "--steps", "1"], &["--epochs", "--steps"]);
    refused(&["train", "--precision", "fp16"], &["--precision fp16", "auto, fp32, tf32, bf16"]);
    refused(
        &["train", "--device", "cpu", "--precision", "tf32"],
        &["precision tf32", "not available on the CPU", "--precision auto"],
    );
    refused(&["train", "--config", "no/such.toml"], &["no/such.toml"]);
    refused(&["train", "--threads", "x"], &["--threads"]);
    refused(&["train", "--nonsense"], &["--nonsense"]);
    refused(&["train", "extra"], &["extra"]);
    refused(&["trian"], &["trian"]);
    refused(&["bench", "step", "--set", "lr=0"], &["lr=0"]);
}

#[test]
fn devices_that_are_not_here() {
    refused(&["train", "--device", "cuda:x"], &["expected auto, cpu"]);
    refused(&["train", "--device", "gpu"], &["expected auto, cpu"]);
    let missing = match (kernels::NO_IMAGES, cuda::probe()) {
        (Some(_), _) => Some("no GPU kernels"),
        (None, Err(_)) => Some("use --device cpu"),
        (None, Ok(_)) => None,
    };
    match missing {
        Some(why) => {
            for device in ["cuda", "cuda:1"] {
                refused(&["train", "--device", device], &[&format!("--device {device}"), why, "--device cpu"]);
                refused(&["sample", ".", "--device", device], &[why]);
                refused(&["check", "x.safetensors", "--device", device], &[why]);
            }
        }
        None => refused(&["train", "--device", "cuda:999"], &["--device cuda:999", "this machine has cuda:0"]),
    }
    match kernels::NO_SIMULATOR {
        Some(_) => refused(&["train", "--device", "sim"], &["--device sim", "no simulator"]),
        None => refused(&["check", "no/such.safetensors", "--device", "sim"], &["no/such.safetensors"]),
    }
}

#[test]
fn resume_refuses_other_settings_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().to_str().unwrap();
    refused(&["train", "--resume", run_dir], &[run_dir, "config.toml"]);
    refused(&["train", "--resume", "no/such/run"], &["no/such/run", "no such folder"]);
    let run = Config { steps: 5, ..Config::quick_preset() };
    std::fs::write(dir.path().join("config.toml"), run.to_toml()).unwrap();
    refused(
        &["train", "--resume", run_dir, "--preset", "seed", "--set", "lr=1", "--seed", "3"],
        &["--preset, --set, --seed cannot be changed", "--epochs"],
    );
    refused(&["train", "--resume", run_dir, "--run-dir", "x"], &["--run-dir"]);
    refused(&["train", "--resume", run_dir, "--config", "x.toml"], &["--config"]);
    refused(&["train", "--resume", run_dir, "--precision", "fp32"], &["--precision"]);
    let toml = says(&["train", "--resume", run_dir, "--epochs", "9", "--data", "pets", "--print-config"], &[]);
    assert_eq!(Config::from_toml(&toml).unwrap(), Config { steps: 0, epochs: 9, data: "pets".into(), ..run });
    std::fs::write(dir.path().join("config.toml"), "lr = 1").unwrap();
    refused(&["train", "--resume", run_dir], &["config.toml", "missing keys"]);
}

#[test]
fn bad_samples_and_checks_are_refused() {
    refused(&["sample"], &["RUN_OR_CHECKPOINT"]);
    refused(&["sample", "no/such/run"], &["no/such/run", "ddim-engine train"]);
    refused(&["sample", ".", "--count", "0"], &["--count"]);
    refused(&["sample", ".", "--steps", "1"], &["--steps"]);
    refused(&["sample", ".", "--batch", "0"], &["--batch"]);
    refused(&["sample", ".", "--weights", "best"], &["--weights", "ema"]);
    refused(&["sample", ".", "--out", "x.jpg"], &["--out x.jpg", ".png"]);
    refused(&["sample", ".", "--gif", "x"], &["--gif x", ".gif"]);
    refused(&["check"], &["REFERENCE.safetensors"]);
    refused(&["check", "no/such.safetensors"], &["no/such.safetensors", "no such file"]);
    refused(&["check", "."], &["is not a file"]);
    let on_cpu = ["--device", "cpu", "--precision", "tf32"];
    let arguments = [&["check", "x.safetensors"][..], &on_cpu].concat();
    refused(&arguments, &["precision tf32", "not available on the CPU"]);
}

fn doctor(vars: &[(&str, &Path)], args: &[&str]) -> String {
    let mut command = program(&["doctor"]);
    command.args(args).envs(vars.iter().copied());
    let (code, out, err) = spoken(&command.output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(err.is_empty(), "{err}");
    out
}

#[test]
fn doctor_says_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("flowers.tar"), "x").unwrap();
    std::fs::create_dir(dir.path().join("cache")).unwrap();
    std::fs::write(dir.path().join("cache/a"), vec![0; 3 << 20]).unwrap();
    for out in
        [doctor(&[("DDIM_DATA_DIR", dir.path())], &[]), doctor(&[], &["--data-dir", dir.path().to_str().unwrap()])]
    {
        for needle in [
            env!("CARGO_PKG_VERSION"),
            "features",
            "GPU kernels",
            "simulator",
            "gpu ",
            "cpu",
            "cores",
            "instruction sets",
            "portable",
            "memory",
            "huge pages",
            "flowers.tar",
            "pets             ",
            "not found",
            "1 file, 3.0 MiB",
            "terminal",
            "What to do",
            "--data pets",
            "ddim-engine train",
        ] {
            assert!(out.contains(needle), "{needle:?} is not in\n{out}");
        }
        assert!(!out.contains("--data flowers"), "{out}");
    }
}

#[test]
fn doctor_knows_forced_instruction_sets_and_missing_folders() {
    let out = doctor(&[("DDIM_ISA", Path::new("portable"))], &[]);
    assert!(out.contains("portable, forced by DDIM_ISA"), "{out}");
    let out = doctor(&[("DDIM_ISA", Path::new("mmx"))], &[]);
    assert!(out.contains("DDIM_ISA=\"mmx\" is not one of") && out.contains("unset DDIM_ISA"), "{out}");
    assert!(out.contains("--precision bf16   bf16 computed in fp32") || out.contains("bf16 by vdpbf16ps"), "{out}");
    let out = doctor(&[("DDIM_BF16", Path::new("dot"))], &[]);
    assert!(out.contains("--precision bf16   bf16 emulated") || out.contains("bf16 by vdpbf16ps"), "{out}");
    let out = doctor(&[("DDIM_BF16", Path::new("yes"))], &[]);
    assert!(out.contains("expected fp32 or dot") && out.contains("unset DDIM_BF16"), "{out}");
    let out = doctor(&[("HOME", Path::new("")), ("XDG_CACHE_HOME", Path::new(""))], &[]);
    assert!(out.contains("set DDIM_DATA_DIR"), "{out}");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    for args in [&[][..], &["doctor"], &["train", "--print-config"], &["train", "--help"]] {
        let mut child = program(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let (code, _, err) = spoken(&child.wait_with_output().unwrap());
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, _, err) = spoken(&program(&["train", "--print-config"]).stdout(full).output().unwrap());
    assert_eq!(code, 1, "{err}");
    assert!(err.starts_with("error: standard output: cannot write"), "{err}");
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"lr=\xff");
    let (code, _, err) = spoken(&program(&["train", "--set"]).arg(odd).output().unwrap());
    assert_eq!(code, 2, "{err}");
    assert!(!err.contains("panicked"), "{err}");
}
