//! The learning-rate finder: what it writes and suggests, that it leaves a run as it was, and what it refuses.

mod train_support;

use std::fs;
use std::path::{Path, PathBuf};

use ddim_engine::lab::find_lr::{Point, suggest};
use train_support::Place;

const SETTINGS: &[&str] = &["image_size=8", "widths=4,6", "embedding_dim=4", "block_depth=1", "batch_size=8"];

fn find(args: &[&str]) -> Vec<String> {
    let mut all = vec!["find-lr", "--data", "pictures"];
    if !args.contains(&"--run") {
        all.extend(SETTINGS.iter().flat_map(|set| ["--set", set]));
    }
    all.extend(args);
    all.into_iter().map(String::from).collect()
}

fn points(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Everything below a folder, with its bytes.
fn everything(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| (entry.path().to_path_buf(), fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_sweep_writes_its_points_and_plots_and_says_what_it_found() {
    let place = Place::with_pictures();
    let said = place.ok(&find(&["--steps", "60", "--from", "1e-5", "--to", "1e-1", "--out", "lr.tiny"]));
    for needle in ["60 steps", "steepest fall of the loss", "--set lr=", "lr.tiny.png", "lr.tiny.svg", "lr.tiny.jsonl"]
    {
        assert!(said.out.contains(needle), "{needle:?} is not in: {}", said.out);
    }
    let points = points(&place.path("lr.tiny.jsonl"));
    assert_eq!(points.len(), 60);
    let of = |i: usize, key: &str| points[i][key].as_f64().unwrap();
    assert!((of(0, "lr") - 1e-5).abs() < 1e-12 && (of(59, "lr") - 1e-1).abs() < 1e-9);
    let factor = 1e4f64.powf(1.0 / 59.0);
    assert!((1..60).all(|i| (of(i, "lr") / of(i - 1, "lr") / factor - 1.0).abs() < 1e-9));
    // The average of one value is that value; of two, weighted by 0.9 and 1.
    assert_eq!(of(0, "loss"), of(0, "smoothed"));
    let second = (0.9 * of(0, "loss") + of(1, "loss")) / 1.9;
    assert!((of(1, "smoothed") - second).abs() < 1e-12);
    // It learns: the loss is not what it was before the first step.
    assert!((0..60).any(|i| of(i, "smoothed") < 0.97 * of(0, "loss")));
    let svg = fs::read_to_string(place.path("lr.tiny.svg")).unwrap();
    for needle in ["learning rate", "training loss", "smoothed", "steepest"] {
        assert!(svg.contains(needle), "{needle:?} is not in the plot");
    }
    assert!(image::open(place.path("lr.tiny.png")).unwrap().width() >= 600);
    // Nothing else is left.
    assert!(!place.path("runs").exists());
}

#[test]
fn the_same_seed_gives_the_same_points_whatever_the_threads() {
    let place = Place::with_pictures();
    place.ok(&find(&["--steps", "12", "--out", "a", "--threads", "1"]));
    place.ok(&find(&["--steps", "12", "--out", "b", "--threads", "2"]));
    place.ok(&find(&["--steps", "12", "--out", "c", "--seed", "5"]));
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    assert_eq!(bytes("a.jsonl"), bytes("b.jsonl"));
    assert_ne!(bytes("a.jsonl"), bytes("c.jsonl"));
}

#[test]
fn a_run_that_it_starts_from_stays_as_it_was_and_goes_on_as_if_nothing_had_been() {
    let place = Place::with_pictures();
    let run = place.train("run", &["--steps", "8"]);
    let before = everything(&run);
    let said = place.ok(&find(&["--run", "run", "--steps", "12"]));
    assert!(said.err.contains("only read"), "{}", said.err);
    assert_eq!(before, everything(&run));
    // From the weights of the run: its first loss is below that of a network that has learned nothing.
    place.ok(&find(&["--steps", "12", "--out", "fresh"]));
    let first = |name: &str| points(&place.path(name))[0]["loss"].as_f64().unwrap();
    assert!(first("find-lr.jsonl") < first("fresh.jsonl"), "{} {}", first("find-lr.jsonl"), first("fresh.jsonl"));
}

#[test]
fn a_loss_that_explodes_ends_the_sweep_early_and_says_where() {
    let place = Place::with_pictures();
    let said = place.ok(&find(&["--steps", "80", "--from", "1e-3", "--to", "10", "--set", "loss=mse"]));
    assert!(said.out.contains("stopped early: the"), "{}", said.out);
    assert!(points(&place.path("find-lr.jsonl")).len() < 80);
}

#[test]
fn what_cannot_be_is_refused_with_the_option_by_name() {
    let place = Place::with_pictures();
    place.refused(&find(&["--from", "1e-1", "--to", "1e-3"]), &["--from 0.1 --to 0.001", "from < to"]);
    place.refused(&find(&["--from", "0"]), &["--from 0", "0 < from"]);
    place.refused(&find(&["--steps", "3"]), &["--steps 3", "10 or more"]);
    place.refused(&find(&["--smoothing", "1"]), &["--smoothing 1", "below 1"]);
    place.refused(&find(&["--set", "lrr=1"]), &["lrr", "did you mean `lr`"]);
    place.refused(&find(&["--run", "nowhere"]), &["nowhere", "no such run"]);
    assert!(!place.path("find-lr.jsonl").exists());
}

fn curve(loss: impl Fn(f64) -> f64) -> Vec<Point> {
    (0..101)
        .map(|i| {
            let lr = 1e-7 * 1e6f64.powf(i as f64 / 100.0);
            Point { step: i + 1, lr, loss: loss(lr), smoothed: loss(lr) }
        })
        .collect()
}

#[test]
fn the_steepest_fall_and_the_minimum_are_found_on_known_curves() {
    // Falls along a sigmoid of log10(lr) around 1e-4, and rises beyond 1e-2.
    let points = curve(|lr| {
        let x = lr.log10();
        1.0 - 0.5 / (1.0 + (-3.0 * (x + 4.0)).exp()) + 0.4 * (x + 2.0).max(0.0).powi(2)
    });
    let found = suggest(&points).unwrap();
    assert!((found.steepest.log10() + 4.0).abs() < 0.15, "{found:?}");
    assert!((found.minimum.log10() + 2.0).abs() < 0.15, "{found:?}");
    assert_eq!(found.tenth_of_minimum, found.minimum / 10.0);
    // A loss that only rises suggests nothing, and neither do a few points.
    assert_eq!(suggest(&curve(|lr| lr)), None);
    assert_eq!(suggest(&points[..8]), None);
}
