//! NVTX ranges: a tool of our own on the other side of the protocol hears of ranges that lie within one another and are named as the parts of
//! a step; a tool that is not there, refuses, or listens to nothing changes nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ddim_engine::kernels;

/// The tool's library; `None`, said aloud, where it cannot be made.
fn fake_tool(dir: &Path) -> Option<PathBuf> {
    let library = dir.join("libfake_nvtx.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fake_nvtx.cpp");
    let built = Command::new("g++").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output();
    match built {
        Ok(output) if output.status.success() => Some(library),
        Ok(output) => panic!("g++: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            std::io::stderr().write_all(b"skipped: g++ is not there to make the fake tool\n").unwrap();
            None
        }
    }
}

/// Keys of a network that takes no time.
const TINY: &str = "--preset quick --set image_size=8 --set widths=8,16 --set embedding_dim=8";

/// Arguments of the program for such a network, on a CPU unless they say otherwise.
fn tiny(args: &str) -> Vec<String> {
    let device = if args.contains("--device") { "" } else { " --device cpu" };
    format!("{args} {TINY}{device}").split(' ').map(Into::into).collect()
}

/// A step of two pictures, its parts timed too.
const STEP: &str = "bench step --repeat 1 --breakdown --set batch_size=2";

/// What a step does on the device.
const PARTS: [&str; 8] = ["normalize", "noise", "q_sample", "forward", "loss", "zero_grad", "backward", "adam"];

/// What a tool of a kind hears of a run of the program, line by line; nothing where it never came to speak.
fn heard(dir: &Path, library: &Path, kind: &str, args: &str) -> Vec<String> {
    let file = dir.join(kind);
    std::fs::remove_file(&file).ok();
    let output = Command::new(env!("CARGO_BIN_EXE_ddim-engine"))
        .args(tiny(args))
        .env("NVTX_INJECTION64_PATH", library)
        .env("FAKE_NVTX", kind)
        .env("FAKE_NVTX_FILE", &file)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{kind}, {args:?}: {err}");
    assert!(!err.to_lowercase().contains("nvtx"), "{kind}, {args:?}: {err}");
    let lines: Vec<String> = std::fs::read_to_string(&file).unwrap_or_default().lines().map(Into::into).collect();
    assert!(lines.iter().all(|line| !line.starts_with("wrong")), "{kind}, {args:?}: {lines:#?}");
    lines
}

/// The ranges in the order of their beginning, each as the names of those around it and its own; every one must end, on its own thread.
fn paths(lines: &[String]) -> Vec<Vec<&str>> {
    let (first, lines) = lines.split_first().expect("the tool was never asked");
    assert_eq!(first, "attached");
    let mut thread = None;
    let (mut open, mut all): (Vec<&str>, Vec<Vec<&str>>) = (Vec::new(), Vec::new());
    for line in lines {
        let (of, name) = match line.split_once(' ') {
            Some((of, name)) => (of, Some(name)),
            None => (line.as_str(), None),
        };
        let of: u32 = of[1..].parse().unwrap_or_else(|_| panic!("{line}"));
        // The program asks for everything from one thread.
        assert_eq!(*thread.get_or_insert(of), of, "{line}");
        match name {
            Some(name) => {
                assert!(line.starts_with('+'), "{line}");
                open.push(name);
                all.push(open.clone());
            }
            None => assert!(line.starts_with('-') && open.pop().is_some(), "{line}: an end without a beginning"),
        }
    }
    assert!(open.is_empty(), "without an end: {open:?}");
    all
}

/// How many ranges have exactly this path.
fn count(all: &[Vec<&str>], path: &[&str]) -> usize {
    all.iter().filter(|ranges| *ranges == path).count()
}

/// Names of the ranges right below this path, in order.
fn below<'a>(all: &[Vec<&'a str>], path: &[&str]) -> Vec<&'a str> {
    let inside = |ranges: &&Vec<&str>| ranges.len() == path.len() + 1 && ranges.starts_with(path);
    all.iter().filter(inside).map(|ranges| ranges[path.len()]).collect()
}

#[test]
fn a_step_is_ranges_of_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tool) = fake_tool(dir.path()) else { return };
    let lines = heard(dir.path(), &tool, "works", &format!("{STEP} --json result.json"));
    let all = paths(&lines);
    // Two that do not count and one that is timed; two, one whose launches are counted, and one that is watched.
    let steps = 7;
    assert_eq!((count(&all, &["step"]), count(&all, &["wait"])), (steps, steps));
    let parts = [&["upload"], &PARTS[..]].concat();
    // In this order, and nothing of a step outside them.
    assert_eq!(below(&all, &["step"]), parts.repeat(steps));
    // Operations in the step that is watched: as often, and by the names, as the table of the same run has them.
    let result = std::fs::read(dir.path().join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
    let mut rows = Vec::new();
    for row in result["breakdown"]["operations"].as_array().unwrap() {
        let [operation, shape, options] = ["operation", "shape", "options"].map(|key| row[key].as_str().unwrap());
        let name = format!("{operation} {shape} {options}").trim_end().to_string();
        rows.extend(std::iter::repeat_n(name, row["calls"].as_f64().unwrap() as usize));
    }
    let mut operations: Vec<&str> = all.iter().filter(|ranges| ranges.len() == 3).map(|ranges| ranges[2]).collect();
    rows.sort_unstable();
    operations.sort_unstable();
    assert_eq!(operations, rows);
    assert!(operations.len() > 100 && all.iter().all(|ranges| ranges.len() <= 3), "{all:#?}");
    for (part, name) in [
        ("upload", "upload_bytes 384"),
        ("forward", "conv 2x8x8 8>8 3x3 res 8+8 silu+stats"),
        ("backward", "conv_wgrad "),
        ("adam", "adam_step "),
    ] {
        let inside = below(&all, &["step", part]);
        assert!(inside.iter().any(|inside| inside.starts_with(name)), "{part}: {inside:#?}");
    }
}

#[test]
fn sampling_and_operations_are_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tool) = fake_tool(dir.path()) else { return };
    let sample = "bench sample --repeat 1 --images 2 --sample-steps 4 --set batch_size=2";
    let lines = heard(dir.path(), &tool, "works", sample);
    let all = paths(&lines);
    // Once that does not count, and once more: of three network calls each.
    assert_eq!((count(&all, &["pictures"]), count(&all, &["pictures", "sample"])), (2, 2), "{all:?}");
    for part in ["forward", "update"] {
        assert_eq!(count(&all, &["pictures", "sample", part]), 6, "{all:?}");
    }

    let kernels = "bench kernels --repeat 1 --budget 0 --only adam --only ddim --batch 2";
    let lines = heard(dir.path(), &tool, "works", kernels);
    let all = paths(&lines);
    let one = |path: &[&str], name: &str| {
        let found: Vec<&str> = below(&all, path).into_iter().filter(|n| n.starts_with(name)).collect();
        assert_eq!(found.len(), 1, "{path:?} {name}: {found:?}");
        assert_eq!(below(&all, &[path, &found].concat()), ["hot", "cold"]);
    };
    one(&["step", "adam"], "adam_step ");
    one(&["pictures", "sample", "update"], "ddim_step ");
}

#[test]
fn a_step_that_is_repeated_shows_its_parts_once() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tool) = fake_tool(dir.path()) else { return };
    if let Some(why) = kernels::NO_SIMULATOR {
        std::io::stderr().write_all(format!("skipped: no simulator: {why}\n").as_bytes()).unwrap();
        return;
    }
    let lines = heard(dir.path(), &tool, "works", "bench step --repeat 1 --set batch_size=2 --device sim");
    let all = paths(&lines);
    // The first is carried out and recorded, two more are repeated.
    let first = [&["upload"], &PARTS[..], &["record"]].concat();
    assert_eq!(below(&all, &["step"]), [&first[..], &["upload", "replay"].repeat(2)].concat());
    assert_eq!(below(&all, &["step", "record"]), PARTS);
    let sample = "bench sample --repeat 2 --images 2 --sample-steps 3 --set batch_size=2 --device sim";
    let lines = heard(dir.path(), &tool, "works", sample);
    let all = paths(&lines);
    assert_eq!(below(&all, &["pictures"]), ["sample", "record", "sample", "sample"]);
    assert_eq!(below(&all, &["pictures", "record", "sample"]), ["forward", "update"].repeat(2));
    assert_eq!(count(&all, &["pictures", "sample", "replay"]), 2);
}

#[test]
fn training_is_ranges_of_steps() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tool) = fake_tool(dir.path()) else { return };
    let train = "train --data procedural --steps 3 --run-dir run --quiet --set batch_size=2";
    let lines = heard(dir.path(), &tool, "works", train);
    let all = paths(&lines);
    assert_eq!(count(&all, &["step"]), 3, "{all:?}");
    assert_eq!(count(&all, &["step", "backward"]), 3, "{all:?}");
}

#[test]
fn a_tool_that_is_not_there_or_does_not_want_to_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let no_library = dir.path().join("text");
    std::fs::write(&no_library, "no library").unwrap();
    for path in [Path::new(""), Path::new("./."), &dir.path().join("missing.so"), &no_library] {
        assert!(heard(dir.path(), path, "works", STEP).is_empty());
    }
    let Some(tool) = fake_tool(dir.path()) else { return };
    for kind in ["refuses", "push", "nothing"] {
        assert_eq!(heard(dir.path(), &tool, kind, STEP), ["attached"], "{kind}");
    }
}
