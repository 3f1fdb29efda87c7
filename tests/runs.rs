//! The table of runs, through the built program, on run directories made here.

mod train_support;

use std::fs;
use std::path::Path;
use std::time::Instant;

use ddim_engine::config::{Config, LossKind};
use serde_json::{Value, json};
use train_support::Place;

/// A run directory as training leaves it, without its checkpoints: 20 steps, the loss at the end, and whether it ended.
fn make(root: &Path, config: &Config, loss: f64, ended: bool) {
    fs::create_dir_all(root).unwrap();
    fs::write(root.join("config.toml"), config.to_toml()).unwrap();
    let line = |step: u64, split: &str, loss: f64| {
        json!({"step": step, "epoch": step.div_ceil(10), "split": split, "loss": loss, "noise_loss": loss / 2.0,
            "image_loss": loss / 4.0, "lr": config.lr, "images_per_second": 100.5, "seconds": step as f64 / 4.0})
        .to_string()
            + "\n"
    };
    let text: String =
        [10, 20].map(|step| line(step, "train", loss * 20.0 / step as f64) + &line(step, "valid", loss * 1.1)).concat();
    fs::write(root.join("metrics.jsonl"), text).unwrap();
    if ended {
        let summary = json!({"preset": "quick", "device": "cpu (portable, 1 thread): told elsewhere", "parameters": 1234, "steps": 20,
            "epochs": 2, "seconds": 65.0, "images_per_second": 99.4});
        fs::write(root.join("summary.json"), summary.to_string()).unwrap();
    }
}

fn evaluate(root: &Path, kid: f64) {
    let quality = json!({"protocol": "engine", "inception": "x", "pictures": [10, 10], "sampler": "ddim", "steps": 20,
        "network_calls": 19, "kid": kid, "kid_std": 0.01, "kid_subsets": [2, 5], "fid": 100.0 * kid, "precision": null, "recall": null});
    let evaluation = json!({"step": 20, "weights": "moving average", "data": "procedural", "split": "valid", "pictures": 10, "loss": 0.1,
        "noise_loss": 0.1, "image_loss": 0.1, "levels": [], "quality": quality, "device": "cpu", "seconds": 1.0});
    fs::write(root.join("evaluation.json"), evaluation.to_string()).unwrap();
}

/// `runs/a`, `b` (evaluated), `sweep/lr=0.1` (stopped), and two damaged ones.
fn place() -> Place {
    let place = Place::new();
    let config = Config { epochs: 2, ..Config::quick_preset() };
    let mse = Config { loss: LossKind::Mse, widths: vec![8, 16], ..config.clone() };
    make(&place.path("runs/a"), &config, 0.4, true);
    make(&place.path("runs/b"), &mse, 0.2, true);
    evaluate(&place.path("runs/b"), 0.0934);
    make(&place.path("runs/sweep/lr=0.1"), &Config { lr: 0.1, ..config.clone() }, 0.3, false);
    make(&place.path("runs/torn"), &config, 0.3, true);
    fs::write(place.path("runs/torn/summary.json"), "{\"preset\"").unwrap();
    make(&place.path("runs/worse"), &config, 0.3, true);
    fs::write(place.path("runs/worse/config.toml"), "lr = ").unwrap();
    place
}

/// The first column of the table's rows.
fn names(out: &str) -> Vec<&str> {
    let rows = out.lines().skip(1).take_while(|line| !line.contains(" run: ") && !line.contains(" runs: "));
    rows.map(|line| line.split_whitespace().next().unwrap()).collect()
}

#[test]
fn the_table_has_what_differs_and_names_what_is_damaged() {
    let place = place();
    let said = place.ok(&["runs"]);
    let lines: Vec<_> = said.out.lines().collect();
    let words =
        |line: &str| line.split("  ").map(str::trim).filter(|w| !w.is_empty()).map(String::from).collect::<Vec<_>>();
    assert_eq!(
        words(lines[0])[..14],
        [
            "run",
            "status",
            "widths",
            "loss",
            "lr",
            "steps",
            "train",
            "valid",
            "noise_loss",
            "image_loss",
            "kid",
            "fid",
            "time",
            "images/s"
        ]
    );
    let b = words(lines[2]);
    let wanted =
        ["b", "finished", "[8, 16]", "mse", "0.002", "20/20", "0.2000", "0.2200", "0.1100", "0.0550", "0.0934", "9.34"];
    assert_eq!(b[..12], wanted, "{}", said.out);
    assert_eq!(b[12..15], ["1 min 05 s", "99", "cpu (portable, 1 thread)"], "{}", said.out);
    // Of a stopped run: the steps that its epochs make, and the last line's numbers.
    assert_eq!(
        words(lines[3])[..6],
        ["sweep/lr=0.1", "stopped", "[32, 64, 96]", "mae", "0.1", "20/20"],
        "{}",
        said.out
    );
    assert!(lines[3].contains("5.0 s"), "{}", said.out);
    assert_eq!(lines[4], "3 runs: 2 finished, 1 stopped");
    assert_eq!(lines[5], "damaged");
    assert!(lines[6].contains("runs/torn: summary.json: not JSON"), "{}", said.out);
    assert!(lines[7].contains("runs/worse: config.toml: not TOML"), "{}", said.out);
    // All columns start below their headings: rows are as wide as the headings, or less at the end.
    assert!(
        lines[1..4].iter().all(|line| line.find("20/20").unwrap() + 5 == lines[0].find("steps").unwrap() + 5),
        "{}",
        said.out
    );
}

#[test]
fn sorting_filters_and_limits() {
    let place = place();
    let listed = |args: &[&str]| {
        let said = place.ok(&[&["runs"], args].concat());
        names(&said.out).into_iter().map(String::from).collect::<Vec<_>>()
    };
    let (a, b, s) = ("a", "b", "sweep/lr=0.1");
    assert_eq!(listed(&[]), [a, b, s]);
    assert_eq!(listed(&["--reverse"]), [s, b, a]);
    assert_eq!(listed(&["--sort", "valid_loss"]), [b, s, a]);
    // The table's own heading does as well.
    assert_eq!(listed(&["--sort", "valid"]), [b, s, a]);
    assert_eq!(listed(&["--sort", "valid_loss", "--reverse"]), [a, s, b]);
    assert_eq!(listed(&["--sort", "lr", "--reverse", "--limit", "1"]), [s]);
    // Runs without a value come last either way.
    assert_eq!(listed(&["--sort", "kid"])[0], b);
    assert_eq!(listed(&["--sort", "kid", "--reverse"])[0], b);
    assert_eq!(listed(&["--filter", "loss=mse"]), [b]);
    assert_eq!(listed(&["--filter", "widths=8,16"]), [b]);
    assert_eq!(listed(&["--filter", "train_loss>=0.3", "--filter", "status=finished"]), [a]);
    assert_eq!(listed(&["--filter", "lr!=0.002"]), [s]);
    assert_eq!(listed(&["--filter", "name~sweep"]), [s]);
    assert_eq!(place.ok(&["runs", "--filter", "lr>5"]).out.lines().next(), Some("no runs"));
    // One folder by itself, a run by itself, and two that overlap.
    assert_eq!(listed(&["runs/sweep"]), ["lr=0.1"]);
    assert_eq!(listed(&["runs/a"]), [a]);
    assert_eq!(listed(&["runs/a", "runs"]), ["a", "runs/b", "runs/sweep/lr=0.1"]);
    assert!(place.ok(&["runs", "--limit", "2"]).out.contains("; the first 2 are shown"));
}

#[test]
fn programs_can_read_it() {
    let place = place();
    let all: Value = serde_json::from_str(&place.ok(&["runs", "--json"]).out).unwrap();
    let b = &all["runs"][1];
    assert_eq!(b["name"], "b");
    assert_eq!(b["settings"]["widths"], json!([8, 16]));
    assert_eq!(
        (&b["settings"]["lr"], &b["settings"]["flip"], &b["settings"]["loss"]),
        (&json!(0.002), &json!(true), &json!("mse"))
    );
    assert_eq!(
        (&b["step"], &b["total_steps"], &b["train_loss"], &b["kid"]),
        (&json!(20), &json!(20), &json!(0.2), &json!(0.0934))
    );
    assert_eq!(b["evaluation"]["quality"]["fid"], json!(9.34));
    assert_eq!(all["runs"][0]["kid"], Value::Null);
    assert_eq!(all["damaged"].as_array().unwrap().len(), 2);
    assert!(b["begun"].as_str().unwrap().ends_with('Z'));

    let said = place.ok(&["runs", "--csv", "--columns", "name,widths,train_loss,kid"]);
    assert_eq!(
        said.out,
        "name,widths,train_loss,kid\na,\"[32, 64, 96]\",0.4,\nb,\"[8, 16]\",0.2,0.0934\nsweep/lr=0.1,\"[32, 64, 96]\",0.3,\n"
    );
    assert_eq!(said.err.matches("left out, as it is damaged: ").count(), 2, "{}", said.err);
    let whole = place.ok(&["runs", "--csv", "--all"]).out;
    assert!(whole.lines().next().unwrap().contains(",step,total_steps,train_loss,"), "{whole}");
    assert!(whole.lines().next().unwrap().contains("image_size"), "{whole}");
}

#[test]
fn two_runs_are_compared() {
    let place = place();
    let said = place.ok(&["runs", "diff", "runs/a", "runs/b"]);
    for needle in [
        "A  runs/a",
        "B  runs/b",
        "widths",
        "[8, 16]",
        "mae",
        "0.4000",
        "9.34",
        "differ from step 10 on (train): loss 0.8 and 0.4",
    ] {
        assert!(said.out.contains(needle), "{needle}: {}", said.out);
    }
    assert!(!said.out.contains("image_size"), "{}", said.out);
    let json: Value = serde_json::from_str(&place.ok(&["runs", "diff", "runs/a", "runs/b", "--json"]).out).unwrap();
    assert_eq!((&json["first_step"], &json["settings"]["loss"]), (&json!(10), &json!(["mae", "mse"])));

    // The same run, further on and not.
    let text = fs::read_to_string(place.path("runs/a/metrics.jsonl")).unwrap();
    make(&place.path("runs/c"), &Config { epochs: 2, ..Config::quick_preset() }, 0.4, false);
    let same = place.ok(&["runs", "diff", "runs/a", "runs/c"]).out;
    assert!(
        same.contains("the settings are the same") && same.contains("the same in all 4 records, to step 20"),
        "{same}"
    );
    fs::write(place.path("runs/c/metrics.jsonl"), text.split_inclusive('\n').take(2).collect::<String>()).unwrap();
    let shorter = place.ok(&["runs", "diff", "runs/a", "runs/c"]).out;
    assert!(shorter.contains("the same as far as B goes, to step 10; A goes on to step 20"), "{shorter}");
    // Without records that is said, and the rest compared.
    fs::remove_file(place.path("runs/c/metrics.jsonl")).unwrap();
    assert!(place.ok(&["runs", "diff", "runs/a", "runs/c"]).out.contains("runs/c: has no metrics.jsonl"));

    let shown = place.ok(&["runs", "show", "runs/b"]).out;
    for needle in
        ["status      finished", "checkpoints none", "widths", "ddim-engine train --config runs/b/config.toml"]
    {
        assert!(shown.contains(needle), "{needle}: {shown}");
    }
}

#[test]
fn slips_are_refused() {
    let place = place();
    place.refused(&["runs", "nowhere"], &["nowhere: there is no such folder", "expected a run, or a folder of runs"]);
    place
        .refused(&["runs", "--sort", "valid_los"], &["no column or setting `valid_los`", "did you mean `valid_loss`?"]);
    place.refused(&["runs", "--filter", "widhts=3"], &["no column or setting `widhts`", "did you mean `widths`?"]);
    place.refused(&["runs", "--filter", "lr"], &["--filter lr", "expected key=value"]);
    place.refused(&["runs", "--filter", "lr>x"], &["> compares numbers"]);
    place.refused(&["runs", "--columns", "name,kidd"], &["`kidd`", "did you mean `kid`?"]);
    place.refused(&["runs", "--json", "--csv"], &["--csv"]);
    place.refused(&["runs", "diff", "runs/a"], &["RUN_B"]);
    place.refused(&["runs", "diff", "runs/a", "runs/torn"], &["runs/torn/summary.json: not JSON"]);
    place.refused(&["runs", "show", "runs"], &["not a run directory"]);
    fs::remove_dir_all(place.path("runs")).unwrap();
    place.refused(&["runs"], &["runs: there is no such folder here yet", "ddim-engine train"]);
}

/// The bound is generous: a machine may be busy. On a free one it is a fraction of a second.
#[test]
fn two_thousand_runs_list_in_a_moment() {
    let place = Place::new();
    // In memory where that is to be had: making them on a disk takes far longer than listing them.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let config = Config { epochs: 2, ..Config::quick_preset() };
    for i in 0..2000u64 {
        let config = Config { seed: i % 50, lr: 1e-4 * (1 + i % 7) as f64, ..config.clone() };
        make(&dir.path().join(format!("group-{}/run-{i:04}", i % 10)), &config, 0.1 + i as f64 * 1e-4, i % 5 > 0);
    }
    let began = Instant::now();
    let said = place.ok(&["runs", dir.path().to_str().unwrap(), "--sort", "valid_loss"]);
    let seconds = began.elapsed().as_secs_f64();
    println!("2000 runs: {seconds:.2} s");
    assert_eq!(names(&said.out)[0], "group-0/run-0000");
    assert!(said.out.ends_with("2000 runs: 1600 finished, 400 stopped\n"));
    assert!(seconds < 3.0, "{seconds} s");
}
