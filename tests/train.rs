//! The built program, and the library under it, from pictures to samples: what a run leaves, that it goes on to the same bytes, and
//! how it ends when something is wrong.

mod train_support;

use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ddim_engine::config::Config;
use ddim_engine::device::cpu::Cpu;
use ddim_engine::error::Error;
use ddim_engine::train::checkpoint;
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::metrics_log::{Record, Split};
use ddim_engine::train::trainer::{self, TrainOptions};
use image::AnimationDecoder;
use train_support::{Place, Said, checkpoint_at, files, records, steps_saved, tensor_bytes, tensors, tiny};

fn size(png: &Path) -> (u32, u32) {
    let picture = image::open(png).unwrap_or_else(|e| panic!("{}: {e}", png.display()));
    (picture.width(), picture.height())
}

#[test]
fn a_run_leaves_everything_and_can_be_repeated() {
    let place = Place::new();
    let said = place.ok(&tiny("run", &["--data", "procedural", "--steps", "12", "--seed", "3"]));
    let run = place.path("run");
    for needle in ["trained 12 steps", "run/samples/epoch-0001.png", "step-00000012", "sample run", "--resume run"] {
        assert!(said.out.contains(needle), "{needle:?} is not in {}", said.out);
    }
    for needle in ["data    4096 procedural pictures", "model   seed family", "plan    12 steps of 8 images", "valid"] {
        assert!(said.err.contains(needle), "{needle:?} is not in {}", said.err);
    }
    assert_eq!(steps_saved(&run), [12]);
    let grid = run.join("samples/epoch-0001.png");
    // 2 by 2 pictures of 8 with 2 pixels around each, eight times as large.
    assert_eq!(size(&grid), (176, 176));

    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let keys = "step epoch split loss noise_loss image_loss lr images_per_second seconds";
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let found: Vec<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(found.join(" "), keys);
    }
    let of = |split| records(&run).iter().filter(|r| r.split == split).map(|r| r.step).collect::<Vec<_>>();
    assert_eq!((of(Split::Train), of(Split::Valid)), (vec![10, 12], vec![12]));
    assert!(records(&run).iter().all(|r| r.loss > 0.0 && r.loss == r.noise_loss && r.epoch == 1 && r.lr == 0.002));

    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).expect("summary.json");
    assert_eq!((&summary["steps"], &summary["epochs"], &summary["preset"]), (&12.into(), &1.into(), &"quick".into()));
    assert_eq!(summary["valid"][1], records(&run).last().unwrap().noise_loss);
    for (name, least) in [("seconds", 0.0), ("images_per_second", 1.0), ("parameters", 1000.0)] {
        assert!(summary[name].as_f64().unwrap() > least, "{summary:#}");
    }
    assert!(place.path(summary["checkpoint"].as_str().unwrap()).is_dir(), "{summary:#}");
    if cfg!(feature = "tensorboard") {
        let events = files_named(&run, "events.out.tfevents.");
        assert_eq!(events.len(), 1);
        assert!(events[0].1.len() > fs::metadata(&grid).unwrap().len() as usize, "no picture in the event file");
    }

    place.ok(&["train", "--config", "run/config.toml", "--run-dir", "again", "--quiet"]);
    let again = place.path("again");
    assert_eq!(records(&again), records(&run));
    assert_eq!(tensor_bytes(&again, 12), tensor_bytes(&run, 12));
    for name in ["config.toml", "samples/epoch-0001.png"] {
        assert!(fs::read(again.join(name)).unwrap() == fs::read(run.join(name)).unwrap(), "{name}");
    }
}

fn files_named(folder: &Path, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_file());
    let all = names.map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap()));
    all.filter(|(name, _)| name.starts_with(prefix)).collect()
}

/// 7 steps end in the middle of an epoch of 4, of the window of 10 that a record averages, and of the normaliser's 9 batches.
const AWKWARD: &[&str] = &["--set", "normalize_batches=9", "--set", "ema_decay=0.95", "--set", "flip=true", "--quiet"];

#[test]
fn a_resumed_run_goes_on_to_the_same_bytes() {
    let place = Place::with_pictures();
    let whole = place.train("whole", &[AWKWARD, &["--steps", "14"]].concat());
    let parts = place.train("parts", &[AWKWARD, &["--steps", "7"]].concat());
    assert_eq!(steps_saved(&parts), [4, 7]);
    let said = place.ok(&["train", "--resume", "parts", "--steps", "14"]);
    assert!(said.err.contains("resumed from parts/checkpoints/step-00000007 (step 7)"), "{}", said.err);
    // Older ones are pruned.
    assert_eq!((steps_saved(&whole), steps_saved(&parts)), (vec![8, 12, 14], vec![8, 12, 14]));
    for step in [8, 12, 14] {
        assert!(tensor_bytes(&parts, step) == tensor_bytes(&whole, step), "step {step}");
    }
    let names: Vec<String> = tensors(&whole, 14).into_iter().map(|t| t.name).collect();
    for part in ["exp_avg.", "exp_avg_sq.", "ema.", "running_mean", "running_var"] {
        assert!(names.iter().any(|name| name.contains(part)), "{part} is not among {names:?}");
    }
    // The end at 7 made records that the whole run does not have.
    let but_7 = |run| records(run).into_iter().filter(|r| r.step != 7).collect::<Vec<_>>();
    assert_eq!(but_7(&parts), records(&whole));
    assert_eq!(records(&whole).iter().filter(|r| r.split == Split::Train).count(), 2);
    assert_eq!(records(&parts).len(), records(&whole).len() + 2);
    assert!(files(&parts.join("samples")).iter().any(|f| files(&whole.join("samples")).last() == Some(f)));

    let said = place.refused(&["train", "--resume", "parts", "--steps", "14"], &["has 14 steps already", "--steps"]);
    assert!(!said.err.contains("trained"), "{}", said.err);
}

#[test]
fn a_run_can_go_on_from_one_of_its_checkpoints() {
    let place = Place::with_pictures();
    let run = place.train("run", &[AWKWARD, &["--epochs", "2"]].concat());
    let before = tensor_bytes(&run, 8);
    let from = "run/checkpoints/step-00000004";
    let said = place.ok(&["train", "--resume", from, "--steps", "8"]);
    assert!(said.err.contains("resumed from run/checkpoints/step-00000004 (step 4)"), "{}", said.err);
    let [model, state] = tensor_bytes(&run, 8);
    assert!(state == before[1], "moments and average");
    let again = checkpoint::load(&checkpoint_at(&run, 8)).unwrap();
    assert!(model != before[0] && again.config_toml.contains("steps = 8"), "the configuration is in the file");
    assert_eq!(records(&run).iter().filter(|r| r.split == Split::Valid).map(|r| r.step).collect::<Vec<_>>(), [4, 8]);
}

#[test]
fn results_depend_on_the_seed_and_not_on_threads() {
    let place = Place::with_pictures();
    let args = |threads, seed| [AWKWARD, &["--steps", "9", "--threads", threads, "--seed", seed]].concat();
    let one = place.train("one", &args("1", "5"));
    let two = place.train("two", &args("2", "5"));
    let other = place.train("other", &args("2", "6"));
    assert!(tensor_bytes(&one, 9) == tensor_bytes(&two, 9));
    assert_eq!(records(&one), records(&two));
    assert_eq!(files(&one.join("samples")), files(&two.join("samples")));
    for (a, b) in tensors(&one, 9).iter().zip(tensors(&other, 9)) {
        assert_eq!(a.name, b.name);
        assert!(a.data != b.data || a.data.len() <= 1, "{} is the same with another seed", a.name);
    }
    assert!(records(&one).iter().zip(records(&other)).all(|(a, b)| a.step == b.step && a.loss != b.loss));
}

#[test]
fn the_loss_goes_down() {
    let place = Place::new();
    let sets = ["widths=8,16", "embedding_dim=8", "batch_size=16", "lr=0.005", "sample_count=0"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let args = [&sets[..], &["--data", "procedural", "--steps", "150", "--quiet"]].concat();
    let run = place.train("run", &args);
    let train: Vec<f64> = records(&run).iter().filter(|r| r.split == Split::Train).map(|r| r.noise_loss).collect();
    assert_eq!(train.len(), 15);
    let (first, last) = (train[0], train[10..].iter().sum::<f64>() / 5.0);
    let valid = records(&run).last().unwrap().noise_loss;
    assert!(last < 0.75 * first && valid < 0.8 * first, "{first} {last} {valid}");
    assert!(!run.join("samples").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_run_goes_on() {
    let place = Place::with_pictures();
    let args = ["--set", "repeat=10000", "--set", "sample_count=0"];
    let mut child = place
        .program(&tiny("run", &[&args[..], &["--steps", "100000000"]].concat()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (run, began) = (place.path("run"), Instant::now());
    while !fs::read_to_string(run.join("metrics.jsonl")).is_ok_and(|text| text.lines().count() >= 2) {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(20), "it does not train");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: a signal to a process that this test started and has not yet waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(30), "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = Said::from(child.wait_with_output().unwrap());
    let [step] = steps_saved(&run)[..] else { panic!("{:?}", steps_saved(&run)) };
    said.fails(130, &[&format!("stopped after step {step} of 100000000"), "saved", "ddim-engine train --resume run"]);
    assert!(said.err.contains("finishing this step, then saving"), "{}", said.err);
    assert!(step >= 20, "{step}");

    let end = (step + 3).to_string();
    place.ok(&["train", "--resume", "run", "--steps", &end]);
    let straight = place.train("straight", &[&args[..], &["--steps", &end, "--quiet"]].concat());
    assert!(tensor_bytes(&run, step + 3) == tensor_bytes(&straight, step + 3));
    assert_eq!(records(&run), records(&straight));
}

#[test]
fn the_library_stops_when_asked_and_goes_on() {
    let place = Place::new();
    let config = Config {
        image_size: 8,
        widths: vec![4, 6],
        embedding_dim: 4,
        batch_size: 2,
        steps: 3,
        data: "debug".into(),
        repeat: 10,
        valid_fraction: 0.0,
        sample_count: 1,
        sample_steps: 2,
        ..Config::quick_preset()
    };
    let run_dir = place.path("run");
    let options = TrainOptions {
        config,
        preset_name: "mine".into(),
        run_dir: Some(run_dir.clone()),
        resume: None,
        data_dir: None,
        quiet: true,
        device: "a processor".into(),
    };
    let cpu = Cpu::new(1).unwrap();
    let interrupt = Interrupt::manual();
    interrupt.request();
    let stopped = trainer::run(&cpu, &options, &interrupt).unwrap_err();
    assert!(matches!(stopped, Error::Interrupted(_)) && stopped.exit_code() == 130, "{stopped}");
    assert_eq!(steps_saved(&run_dir), [1]);
    let options = TrainOptions { run_dir: None, resume: Some(run_dir.clone()), ..options };
    let summary = trainer::run(&cpu, &options, &Interrupt::manual()).unwrap();
    assert_eq!((summary.steps, summary.epochs, summary.valid), (3, 1, None));
    assert_eq!((summary.preset.as_str(), summary.device.as_str()), ("mine", "a processor"));
    assert_eq!(summary.samples, Some(run_dir.join("samples/epoch-0001.png")));
    assert_eq!(summary.checkpoint, checkpoint_at(&run_dir, 3));
}

/// Decoupled decay multiplies the weights by 1 - 0.25 * 10 in each step, so they grow by half until something overflows.
const DIVERGING: &[&str] =
    &["--set", "lr=0.25", "--set", "weight_decay=10", "--set", "loss=mse", "--steps", "400", "--quiet"];

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let place = Place::with_pictures();
    // The first checkpoint would come after 363 steps.
    let said = place.run(&tiny("run", &[DIVERGING, &["--set", "repeat=100"]].concat()));
    said.fails(1, &["the loss is ", " at step ", "training stopped", "no checkpoint had been saved", "(lr = 0.25)"]);
    assert!(records(&place.path("run")).len() < 36);
    assert!(steps_saved(&place.path("run")).is_empty());
    place.refused(&["train", "--resume", "run"], &["run", "no checkpoint yet"]);
}

#[test]
fn numbers_that_are_not_finite_are_not_saved() {
    let place = Place::with_pictures();
    for (name, samples) in [("without", "sample_count=0"), ("with", "sample_count=4")] {
        let said = place.run(&tiny(name, &[DIVERGING, &["--set", samples]].concat()));
        let kept_in = format!("training stopped and the last good checkpoint is {name}/checkpoints/step-");
        said.fails(1, &[" at step ", &kept_in, "learning rate"]);
        let number = |after: &str| {
            let rest = &said.err[said.err.find(after).unwrap() + after.len()..];
            rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap()].parse::<u64>().unwrap()
        };
        let (failed, good) = (number(" at step "), number(&kept_in));
        assert!(good < failed && failed <= good + 4, "{}", said.err);
        let run = place.path(name);
        assert_eq!(steps_saved(&run).last(), Some(&good));
        assert!(tensors(&run, good).iter().all(|t| t.data.iter().all(|v| v.is_finite())), "{}", said.err);
        // Where it goes on, it ends in the same way.
        let again = place.run(&["train", "--resume", name, "--quiet"]);
        assert_eq!((again.code, &again.err), (1, &said.err));
        assert_eq!(steps_saved(&run).last(), Some(&good));
    }
}

#[test]
fn a_last_batch_of_one_picture_is_trained_on() {
    let place = Place::new();
    place.draw_pictures("pictures", 31);
    // 25 to train: the fourth batch has one picture, of which the innermost level sees one value per channel.
    let run = place.train("run", &["--set", "image_size=4", "--epochs", "3", "--quiet"]);
    assert_eq!(steps_saved(&run), [4, 8, 12]);
    assert!(tensors(&run, 12).iter().all(|t| t.data.iter().all(|v| v.is_finite())));
    assert!(records(&run).iter().all(|r| r.loss.is_finite()), "{:?}", records(&run));
}

#[test]
fn samples_are_written_and_repeat() {
    let place = Place::with_pictures();
    let run = place.train("run", &["--epochs", "2", "--seed", "4", "--quiet"]);
    let sample = |name: &str, args: &[&str]| {
        let (grid, single) = (format!("{name}.png"), format!("{name}-single"));
        place.ok(&[&["sample", "run", "--steps", "4", "--out", &grid, "--individual", &single], args].concat());
        files(&place.path(&single))
    };
    let said = place.ok(&[
        "sample",
        "run",
        "--count",
        "7",
        "--steps",
        "4",
        "--batch",
        "3",
        "--threads",
        "1",
        "--out",
        "a.png",
        "--individual",
        "a",
        "--gif",
        "a.gif",
    ]);
    for needle in ["7 pictures in a.png", "7 single pictures in a", "3 frames in a.gif"] {
        assert!(said.out.contains(needle), "{needle:?} is not in {}", said.out);
    }
    let first = files(&place.path("a"));
    assert_eq!(
        first.iter().map(|f| &f.0[..]).collect::<Vec<_>>().join(" "),
        (0..7).map(|i| format!("{i:04}.png")).collect::<Vec<_>>().join(" ")
    );
    assert!((0..7).all(|i| size(&place.path(&format!("a/{i:04}.png"))) == (8, 8)));
    assert!((1..7).all(|i| first[i].1 != first[0].1), "every picture has noise of its own");
    // 3 by 3 pictures of 8 with 2 pixels around each, eight times as large.
    assert_eq!(size(&place.path("a.png")), (256, 256));
    let gif = BufReader::new(fs::File::open(place.path("a.gif")).unwrap());
    let frames = image::codecs::gif::GifDecoder::new(gif).unwrap().into_frames().collect_frames().unwrap();
    assert_eq!(frames.iter().map(|f| f.buffer().dimensions()).collect::<Vec<_>>(), [(256, 256); 3]);

    assert!(sample("b", &["--count", "7", "--batch", "5", "--threads", "2"]) == first);
    assert!(sample("more", &["--count", "9"])[..7] == first, "a larger count begins with the same pictures");
    let other = sample("c", &["--count", "7", "--seed", "1"]);
    assert!(other.iter().zip(&first).all(|(a, b)| a.0 == b.0 && a.1 != b.1));

    // The grid that training drew last, once more from the checkpoint.
    place.ok(&["sample", "run", "--count", "4", "--steps", "3", "--seed", "4", "--out", "d.png"]);
    assert!(fs::read(place.path("d.png")).unwrap() == fs::read(run.join("samples/epoch-0002.png")).unwrap());
}

#[test]
fn samples_come_from_runs_checkpoints_and_model_files() {
    let place = Place::with_pictures();
    let run = place.train("run", &["--epochs", "2", "--quiet"]);
    let sample = |source: &str, weights: &str| {
        place.ok(&["sample", source, "--count", "2", "--steps", "3", "--weights", weights, "--out", "new/out.png"]);
        fs::read(place.path("new/out.png")).unwrap()
    };
    let (average, raw) = (sample("run", "ema"), sample("run", "raw"));
    assert!(average != raw);
    assert!(sample("run", "auto") == average);
    let newest = "run/checkpoints/step-00000008";
    assert!(sample(newest, "auto") == average && sample(newest, "raw") == raw);
    assert!(sample("run/checkpoints", "raw") == raw);
    assert!(sample("run/checkpoints/step-00000004", "raw") != raw);
    // A model file holds the weights as trained, and everything that sampling needs.
    fs::copy(checkpoint_at(&run, 8).join("model.safetensors"), place.path("bare.safetensors")).unwrap();
    assert!(sample("bare.safetensors", "auto") == raw);
    assert!(sample("run/checkpoints/step-00000008/model.safetensors", "raw") == raw);
    place.refused(&["sample", "bare.safetensors", "--weights", "ema"], &["bare.safetensors", "--weights raw"]);

    let plain = place.train("plain", &["--set", "ema_decay=0", "--steps", "3", "--quiet"]);
    place.refused(&["sample", "plain", "--weights", "ema"], &["plain", "no moving average", "--weights raw"]);
    assert!(sample("plain", "auto") == sample("plain", "raw"));
    assert!(tensors(&plain, 3).iter().all(|t| !t.name.starts_with("ema.")));
    fs::create_dir(place.path("nothing")).unwrap();
    place.refused(&["sample", "nothing"], &["nothing", "not a run directory"]);
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused() {
    let place = Place::with_pictures();
    let run = place.train("run", &["--steps", "3", "--quiet"]);
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    let before = tensor_bytes(&run, 3);
    for (from, to) in
        [("lr = 0.002", "lr = 0.003"), ("widths = [4, 6]", "widths = [4, 8]"), ("flip = true", "flip = false")]
    {
        assert!(config.contains(from), "{config}");
        fs::write(run.join("config.toml"), config.replace(from, to)).unwrap();
        let (key, ours) = to.split_once(" = ").unwrap();
        let theirs = from.split_once(" = ").unwrap().1;
        let what = format!("{key} is {theirs} there and {ours} here");
        place.refused(
            &["train", "--resume", "run", "--steps", "5"],
            &["run/checkpoints/step-00000003", "another configuration", &what],
        );
    }
    fs::write(run.join("config.toml"), &config).unwrap();
    place.draw_pictures("others", 37);
    place.refused(&["train", "--resume", "run", "--steps", "5", "--data", "others"], &["pictures", "others"]);
    assert!(tensor_bytes(&run, 3) == before && fs::read_to_string(run.join("config.toml")).unwrap() == config);
    // The same pictures elsewhere are welcome.
    fs::rename(place.path("pictures"), place.path("moved")).unwrap();
    place.ok(&["train", "--resume", "run", "--steps", "5", "--data", "moved"]);
}

#[test]
fn a_torn_checkpoint_is_passed_over_or_refused() {
    let place = Place::with_pictures();
    let run = place.train("run", &["--epochs", "3", "--quiet"]);
    let whole = tensor_bytes(&run, 12);
    let (newest, before) = ("run/checkpoints/step-00000012", "run/checkpoints/step-00000008");
    fs::write(checkpoint_at(&run, 12).join("model.safetensors"), &whole[0][..whole[0].len() / 2]).unwrap();
    let file = format!("{newest}/model.safetensors");
    let torn = ["torn", &file, before];
    place.refused(&["sample", newest], &torn);
    place.refused(&["sample", &file], &["changed since it was saved", &file, before]);
    // What the message says can be done.
    let said = place.refused(&["train", "--resume", newest], &torn);
    assert!(said.err.contains(&format!("--resume {before}")), "{}", said.err);
    let said = place.ok(&["sample", "run", "--count", "1", "--steps", "2"]);
    assert!(said.err.contains(before) && said.err.contains(&format!("passed over {newest}")), "{}", said.err);

    let said = place.ok(&["train", "--resume", "run"]);
    assert!(said.err.contains(&format!("passed over {newest}: {file}: torn")), "{}", said.err);
    assert!(said.err.contains(&format!("resumed from {before} (step 8)")), "{}", said.err);
    assert!(tensor_bytes(&run, 12) == whole, "the step is made again as it was");
    for step in [4, 8, 12] {
        fs::write(checkpoint_at(&run, step).join("state.safetensors"), "").unwrap();
    }
    place.refused(&["train", "--resume", "run", "--epochs", "4"], &["no valid checkpoint among 3", "step-00000004"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_checkpoint_before() {
    use std::os::unix::process::CommandExt;
    let place = Place::with_pictures();
    let settings = ["--set", "sample_count=0", "--quiet"];
    let run = place.train("run", &[&settings[..], &["--epochs", "1"]].concat());
    let before = tensor_bytes(&run, 4);
    // No file may grow as large as the model's.
    let most = before[0].len() as libc::rlim_t - 1;
    let mut program = place.program(&["train", "--resume", "run", "--epochs", "2"]);
    // SAFETY: between fork and exec only two system calls are made, which allocate nothing and take no locks.
    unsafe {
        program.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let said = Said::from(program.output().unwrap());
    said.fails(1, &["run/checkpoints/step-00000008/model.safetensors", "cannot write", "step-00000004 is untouched"]);
    assert_eq!((steps_saved(&run), files_left(&run)), (vec![4], 1));
    assert!(tensor_bytes(&run, 4) == before);
    place.ok(&["train", "--resume", "run", "--epochs", "2"]);
    let straight = place.train("straight", &[&settings[..], &["--epochs", "2"]].concat());
    assert!(tensor_bytes(&run, 8) == tensor_bytes(&straight, 8));
    // The end at 4 made a record of training that the straight run does not have.
    let but_4 = |r: &Record| !(r.step == 4 && r.split == Split::Train);
    assert_eq!(records(&run).into_iter().filter(but_4).collect::<Vec<_>>(), records(&straight));
}

/// Everything in the folder of checkpoints, half-written ones included.
#[cfg(target_os = "linux")]
fn files_left(run: &Path) -> usize {
    fs::read_dir(run.join("checkpoints")).unwrap().count()
}

#[test]
fn an_unreadable_picture_among_many_is_named() {
    let place = Place::new();
    place.draw_pictures("pictures", 200);
    fs::write(place.path("pictures/letter.png"), "Dear picture, ...").unwrap();
    let said = place.ok(&tiny("run", &["--steps", "2"]));
    for needle in ["1 of 201 pictures cannot be read", "letter.png", "200 pictures from pictures at 8x8 (160 to train"]
    {
        assert!(said.err.contains(needle), "{needle:?} is not in {}", said.err);
    }
    place.draw_pictures("few", 5);
    fs::write(place.path("few/letter.png"), "Dear picture, ...").unwrap();
    place.refused(&tiny("few-run", &["--data", "few"]), &["few", "1 of 6 pictures cannot be read", "letter.png"]);
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    let place = Place::with_pictures();
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("zero.tar"), "").unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("pictures", place.path("pictures")).unwrap();
    let tar = tar.into_inner().unwrap();
    fs::write(place.path("whole.tar"), &tar).unwrap();
    fs::write(place.path("torn.tar"), &tar[..tar.len() / 2 + 100]).unwrap();
    let refused = |args: &[&str], needles: &[&str]| place.refused(&tiny("run", args), needles);
    refused(&["--data", "empty"], &["empty: the folder is empty", ".png"]);
    refused(&["--data", "zero.tar"], &["zero.tar", "0 bytes"]);
    refused(&["--data", "torn.tar"], &["torn.tar", "cut short", "copy or download it again"]);
    refused(&["--data", "nowhere"], &["nowhere", "no such file or folder", "procedural"]);
    refused(&["--data", "flowers"], &["flowers", "--data procedural"]);
    refused(
        &["--set", "widths=4,6,8,10"],
        &["image_size 8 with 4 levels", "multiple of 16", "nearest: 16", "at most 3"],
    );
    assert!(!place.path("run").exists());

    place.train("run", &["--data", "whole.tar", "--steps", "2", "--quiet"]);
    place.refused(&tiny("run", &["--steps", "2"]), &["--run-dir run", "already holds", "--resume run"]);
    assert_eq!(steps_saved(&place.path("run")), [2]);
    fs::write(place.path("file"), "").unwrap();
    place.run(&tiny("file", &["--steps", "2"])).fails(1, &["file", "run directory"]);
    place.ok(&tiny("made/below", &["--steps", "1", "--quiet"]));
}
