//! Sweeps through the built program: grids, what is written where, going on after kills, refusals.

mod train_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use train_support::{Place, Said, checkpoint_at, records, steps_saved};

/// A tiny network; an epoch of the 36 pictures is 4 steps.
const SETTINGS: &str = "\
image_size = 8
widths = [4, 6]
embedding_dim = 4
block_depth = 1
batch_size = 8
sample_count = 4
sample_steps = 3
data = \"pictures\"
epochs = 2
";

const GRID: [&str; 4] =
    ["predict=noise,loss=mae", "predict=noise,loss=mse", "predict=image,loss=mae", "predict=image,loss=mse"];

/// A folder with pictures and `grid.toml`: 2 x 2 runs of two epochs.
fn place() -> Place {
    let place = Place::with_pictures();
    let grid = "[grid]\nloss = [\"mae\", \"mse\"]\npredict = [\"noise\", \"image\"]\n";
    fs::write(place.path("base.toml"), SETTINGS).unwrap();
    fs::write(place.path("grid.toml"), format!("{SETTINGS}{grid}")).unwrap();
    place
}

fn run(place: &Place, dir: &str, name: &str) -> PathBuf {
    place.path(dir).join(name)
}

/// Waits until `done` holds.
#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A sweep of one run that would take minutes, in the background, once it has a checkpoint.
fn long_sweep(place: &Place, dir: &str) -> (Child, PathBuf) {
    let args = ["sweep", "--config", "base.toml", "--grid", "lr=0.001", "--epochs", "100000", "--sweep-dir", dir];
    let child = place.program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = run(place, dir, "lr=0.001");
    wait_for("a checkpoint", || !steps_saved(&run).is_empty());
    (child, run)
}

/// The process that trains in a run.
fn owner(run: &Path) -> i32 {
    fs::read_to_string(run.join(".lock")).unwrap().trim().parse().unwrap()
}

fn signal(process: i32, signal: i32) {
    // SAFETY: a plain system call, to a process that this test has started.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

#[test]
fn a_grid_is_run_once_and_grows() {
    let place = place();
    let dry = place.ok(&["sweep", "grid.toml", "--dry-run"]);
    assert!(GRID.iter().all(|name| dry.out.contains(&format!("{name}  "))), "{}", dry.out);
    assert!(dry.out.contains("4 runs in runs/sweep-grid, 4 to do"), "{}", dry.out);
    assert!(!place.path("runs").exists(), "a dry run writes nothing");

    let said = place.ok(&["sweep", "grid.toml"]);
    assert_eq!(said.err.matches("done  ").count(), 4, "{}", said.err);
    // The table has the settings that differ, and no others.
    let heading = said.out.lines().next().unwrap();
    assert!(heading.contains("loss") && heading.contains("predict") && !heading.contains("widths"), "{}", said.out);
    assert!(said.out.ends_with("4 runs: 4 finished\n"), "{}", said.out);
    for name in GRID {
        let run = run(&place, "runs/sweep-grid", name);
        let config = fs::read_to_string(run.join("config.toml")).unwrap();
        for setting in name.split(',') {
            let (key, value) = setting.split_once('=').unwrap();
            assert!(config.contains(&format!("\n{key} = \"{value}\"")), "{name}: {config}");
        }
        assert_eq!(records(&run).last().unwrap().step, 8);
        let log = fs::read_to_string(place.path("runs/sweep-grid/logs").join(format!("{name}.log"))).unwrap();
        assert!(log.starts_with("$ ddim-engine train --preset quick --set ") && log.contains("8 steps"), "{log}");
    }

    // Again: nothing is left to do. With another value: two more.
    let again = place.ok(&["sweep", "--resume", "runs/sweep-grid"]);
    assert!(again.err.contains("4 of 4 runs are finished already") && !again.err.contains("begins"), "{}", again.err);
    let more = place.ok(&["sweep", "grid.toml", "--grid", "loss=mae,mse,huber", "--jobs", "2"]);
    assert_eq!((more.err.matches("begins").count(), more.err.matches("done  ").count()), (2, 2), "{}", more.err);
    assert!(more.err.contains("2 at a time") && more.out.ends_with("6 runs: 6 finished\n"), "{more:?}");

    // A run that was killed behind its last checkpoint only lacks its summary; one whose checkpoints are damaged begins anew.
    let [whole, damaged] = [GRID[0], GRID[1]].map(|name| run(&place, "runs/sweep-grid", name));
    let before = records(&whole);
    fs::remove_file(whole.join("summary.json")).unwrap();
    fs::remove_file(damaged.join("summary.json")).unwrap();
    for step in steps_saved(&damaged) {
        fs::write(checkpoint_at(&damaged, step).join("manifest.json"), "{").unwrap();
    }
    let mended = place.ok(&["sweep", "--resume", "runs/sweep-grid"]);
    assert!(
        mended.err.contains("goes on after step 8") && mended.err.contains("its remains are now"),
        "{}",
        mended.err
    );
    assert!(mended.out.ends_with("6 runs: 6 finished\n"), "{}", mended.out);
    assert_eq!((records(&whole), records(&damaged).len()), (before.clone(), before.len()));
}

#[test]
fn side_by_side_gives_the_same_and_so_does_train() {
    let place = place();
    place.ok(&["sweep", "grid.toml", "--sweep-dir", "one", "--quiet"]);
    place.ok(&["sweep", "grid.toml", "--sweep-dir", "two", "--jobs", "2", "--quiet"]);
    for name in GRID {
        assert_eq!(records(&run(&place, "one", name)), records(&run(&place, "two", name)), "{name}");
    }
    place.ok(&["train", "--config", "base.toml", "--set", "loss=mse", "--run-dir", "alone", "--quiet"]);
    assert_eq!(records(&place.path("alone")), records(&run(&place, "one", GRID[1])));
}

#[test]
fn a_killed_run_fails_alone_and_goes_on_to_the_same_numbers() {
    let place = place();
    let grid = ["--config", "base.toml", "--grid", "lr=0.001,0.002", "--epochs", "4", "--set", "repeat=50"];
    let args = |dir: &'static str, more: &[&'static str]| [&["sweep"][..], &grid, &["--sweep-dir", dir], more].concat();
    let whole = place.ok(&args("whole", &["--quiet"]));
    assert!(whole.out.ends_with("2 runs: 2 finished\n"), "{}", whole.out);

    let broken = place.program(&args("broken", &["--keep-going"]));
    let child = { broken }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = run(&place, "broken", "lr=0.001");
    wait_for("a checkpoint", || !steps_saved(&first).is_empty());
    signal(owner(&first), libc::SIGKILL);
    let said: Said = child.wait_with_output().unwrap().into();
    said.fails(1, &["1 of 2 runs failed: lr=0.001: was ended by signal 9", "sweep --resume broken --keep-going"]);
    assert!(said.out.ends_with("2 runs: 1 finished, 1 stopped\n"), "{}", said.out);
    assert!(!first.join("summary.json").exists(), "it was killed too late to show anything");

    let said = place.ok(&["sweep", "--resume", "broken"]);
    assert!(
        said.err.contains("1 of 2 runs are finished already") && said.err.contains("goes on after step"),
        "{}",
        said.err
    );
    for name in ["lr=0.001", "lr=0.002"] {
        assert_eq!(records(&run(&place, "broken", name)), records(&run(&place, "whole", name)), "{name}");
    }
}

#[test]
fn an_interrupt_lets_the_runs_save() {
    let place = place();
    let (child, run) = long_sweep(&place, "long");
    signal(child.id() as i32, libc::SIGINT);
    let said: Said = child.wait_with_output().unwrap().into();
    said.fails(130, &["stopped with 0 of 1 runs finished", "ddim-engine sweep --resume long"]);
    assert!(said.err.contains("stopped  lr=0.001: after step "), "{}", said.err);
    let saved = *steps_saved(&run).last().unwrap();
    let dry = place.ok(&["sweep", "--resume", "long", "--dry-run"]);
    assert!(dry.out.contains(&format!("lr=0.001  goes on after step {saved}\n")), "{}", dry.out);

    // What a run left before its first checkpoint is moved aside, and said.
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    assert!(place.ok(&["sweep", "--resume", "long", "--dry-run"]).out.contains("begins anew"));
    let child = place.program(&["sweep", "--resume", "long"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a checkpoint", || !steps_saved(&run).is_empty());
    signal(child.id() as i32, libc::SIGTERM);
    let said: Said = child.wait_with_output().unwrap().into();
    said.fails(130, &[]);
    let moved = "it stopped before its first checkpoint; its remains are now long/logs/lr=0.001.remains-1";
    assert!(said.err.contains(moved), "{}", said.err);
    assert!(place.path("long/logs/lr=0.001.remains-1/metrics.jsonl").is_file());
    assert!(place.ok(&["runs", "long"]).out.ends_with("1 run: 1 stopped\n"), "remains are no run");
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_sweep_leaves_no_run_behind() {
    let place = place();
    let (mut child, run) = long_sweep(&place, "long");
    let refused =
        place.refused(&["sweep", "--resume", "long"], &["long/lr=0.001: another process is training in this run"]);
    assert!(!refused.err.contains("begins"));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the end of the run", || !ddim_engine::train::run_dir::is_locked(&run));
    assert!(!run.join("summary.json").exists());
    assert!(place.ok(&["sweep", "--resume", "long", "--dry-run"]).out.contains("goes on after step"));
}

#[test]
fn a_failed_run_ends_the_sweep_unless_told_otherwise() {
    let place = place();
    // The second folder has no pictures.
    fs::create_dir(place.path("empty")).unwrap();
    let grid = ["sweep", "--config", "base.toml", "--grid", "data=pictures,empty,pictures/.", "--sweep-dir"];
    let said = place.run(&[&grid[..], &["stops"]].concat());
    said.fails(1, &["1 of 3 runs failed: data=empty: ", "empty", "1 not begun (--keep-going", "--resume stops"]);
    assert!(said.out.contains("1 run: 1 finished"), "{}", said.out);
    let said = place.run(&[&grid[..], &["goes", "--keep-going"]].concat());
    said.fails(1, &["1 of 3 runs failed"]);
    assert!(said.out.contains("2 runs: 2 finished") && said.err.contains("FAILED   data=empty"), "{said:?}");
}

#[test]
fn slips_are_refused_before_anything_is_written() {
    let place = place();
    let refused = |args: &[&str], needles: &[&str]| drop(place.refused(&[&["sweep"], args].concat(), needles));
    refused(&[], &["a sweep without a grid", "--grid key=a,b"]);
    refused(&["base.toml"], &["a sweep without a grid"]);
    refused(&["--grid", "lr"], &["--grid lr", "expected key=a,b"]);
    refused(&["--grid", "lr="], &["an empty value"]);
    refused(&["--grid", "learning_rate=1,2"], &["unknown key `learning_rate`", "did you mean `lr`?"]);
    refused(&["--grid", "unet.droput=0,0.1"], &["unknown option `unet.droput`", "did you mean `unet.dropout`?"]);
    refused(&["--grid", "lr=0.1,20"], &["--grid lr=0.1,20", "found 20", "expected a number"]);
    refused(&["--grid", "loss=mae,mae"], &["the value mae is there twice"]);
    refused(&["--grid", "widths=32,64"], &["is that one list or several values?", "widths=[32,64]", "widths=32|64"]);
    refused(&["--grid", "lr=0.1", "--grid", "lr=0.2"], &["--grid lr=0.2", "has a --grid already"]);
    refused(&["--grid", "lr=0.1,0.2", "--set", "lr=0.1"], &["--set lr=0.1 and the grid both give lr"]);
    refused(&["--grid", "seed=0,1", "--seed", "3"], &["--seed and the grid both give seed"]);
    refused(&["--grid", "epochs=1,2", "--steps", "5"], &["epochs means nothing"]);
    refused(
        &["--grid", "image_size=8,12", "--set", "widths=4,6,8"],
        &["the run image_size=12 of the grid: ", "image_size 12 with 3 levels"],
    );
    refused(&["--grid", "family=seed,unet2d", "--grid", "schedule=cosine,sigmoid"], &["family=seed,schedule=sigmoid"]);
    let seeds: Vec<_> = (0..101).map(|seed| seed.to_string()).collect();
    let (seeds, more) = (format!("seed={}", seeds.join(",")), format!("repeat={}", seeds[1..].join(",")));
    refused(
        &["--grid", &seeds, "--grid", &more, "--grid", "flip=true,false"],
        &["more than 10000 runs", "101 of seed"],
    );
    refused(&["--resume", "grid.toml", "--grid", "lr=1"], &["--resume"]);
    refused(&["--resume", "pictures"], &["pictures: is not the folder of a sweep"]);
    refused(&["no/such.toml"], &["no/such.toml: cannot read"]);
    refused(&["--grid", "lr=0.1", "--jobs", "0"], &["--jobs"]);
    refused(&["--grid", "precision=fp32,tf32", "--device", "cpu"], &["precision tf32 is not available on the CPU"]);
    for (text, needles) in [
        ("lr = ", &["line 1: not TOML"][..]),
        ("lr = 1\nlearning_rate = 2", &["unknown key `learning_rate`", "did you mean `lr`?"]),
        ("lr = 100.0", &["lr: found 100", "expected a number"]),
        ("preset = 1", &["preset: found 1"]),
        ("preset = \"sed\"\n[grid]\nlr = [1.0]", &["unknown preset `sed`"]),
        ("grid = 3", &["expected a table"]),
        ("[grid]\nlr = 0.1", &["[grid] lr: expected a list of values, such as [0.1]"]),
        ("[grid]\nlr = []", &["[grid] lr: has no values"]),
        ("[grid]\nwidths = [4, 6]", &["[grid] widths: found 4", "give a list of lists"]),
        ("[grid]\nloos = [\"mae\"]", &["[grid] loos: unknown key `loos`", "did you mean `loss`?"]),
        ("loss = \"mae\"\n[grid]\nloss = [\"mse\"]", &["loss is both a setting and in [grid]"]),
    ] {
        fs::write(place.path("bad.toml"), text).unwrap();
        refused(&["bad.toml"], needles);
    }
    assert!(!place.path("runs").exists());
}

#[test]
fn folders_of_others_are_refused() {
    let place = place();
    let grid = ["sweep", "--config", "base.toml", "--grid", "loss=mae,mse", "--epochs", "1", "--quiet"];
    place.ok(&grid);
    // Other settings: of the sweep, and of one run.
    place.refused(
        &[&grid[..], &["--set", "lr=0.5"]].concat(),
        &["runs/sweep-loss/sweep.toml: is of a sweep with lr 0.002, and this one has lr 0.5", "--sweep-dir"],
    );
    fs::remove_file(place.path("runs/sweep-loss/sweep.toml")).unwrap();
    place.refused(
        &[&grid[..], &["--set", "lr=0.5"]].concat(),
        &["runs/sweep-loss/loss=mae: its config.toml has lr 0.002, and the sweep asks for lr 0.5"],
    );
    // A run, and a file.
    let args = |dir: &'static str| [&grid[..], &["--sweep-dir", dir]].concat();
    place.refused(&args("runs/sweep-loss/loss=mae"), &["is a run itself"]);
    place.refused(&args("base.toml"), &["base.toml: is not a folder"]);
}
