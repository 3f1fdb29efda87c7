//! The run directory: never overwritten, held by one process, its files whole; the metrics file across a resume; Ctrl-C.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ddim_engine::error::Error;
use ddim_engine::train::interrupt::Interrupt;
use ddim_engine::train::metrics_log::{self, MetricsLog, Record, Split};
use ddim_engine::train::run_dir::{RunDir, write_atomic};

/// Tells a test, run again as a child process, which folder to work in.
const CHILD: &str = "DDIM_ENGINE_TEST_CHILD";

/// This test again, as a child process that works in `folder`; returns once it has printed `ready`.
fn child(test: &str, folder: &Path) -> (std::process::Child, impl Iterator<Item = String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.any(|line| line.contains("ready")), "the child ended early");
    (child, lines)
}

#[test]
fn a_new_run_has_a_name_of_its_own() {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().join("deep/runs");
    let runs: Vec<RunDir> = (0..3).map(|_| RunDir::create_under(&base, "seed ../x").unwrap()).collect();
    let names: Vec<String> =
        runs.iter().map(|r| r.root().file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(fs::read_dir(&base).unwrap().count(), 3);
    let (date, rest) = names[0].split_once('-').unwrap();
    let (time, name) = rest.split_once('-').unwrap();
    assert!(date.len() == 8 && date.starts_with("20") && date.parse::<u32>().is_ok(), "{names:?}");
    assert!(time.len() == 6 && time.parse::<u32>().is_ok(), "{names:?}");
    assert_eq!(name, "seed-..-x");
}

#[test]
fn a_given_directory_must_be_empty() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("mine");
    let run = RunDir::create(Some(&path), "unused").unwrap();
    assert_eq!(run.root(), path);
    drop(run);
    // Empty but for the lock: a run that failed before it wrote anything.
    let run = RunDir::create(Some(&path), "unused").unwrap();
    run.write_config("lr = 1.0\n").unwrap();
    drop(run);
    let error = RunDir::create(Some(&path), "unused").unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("already holds config.toml"), "{text}");
    assert!(text.contains(&format!("--resume {}", path.display())), "{text}");
    assert_eq!(fs::read_to_string(path.join("config.toml")).unwrap(), "lr = 1.0\n");
    // A file where the directory should be.
    let file = base.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(RunDir::create(Some(&file), "unused").unwrap_err().to_string().contains(&file.display().to_string()));
}

#[test]
fn a_run_is_found_from_what_lies_in_it() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("run");
    let run = RunDir::create(Some(&root), "unused").unwrap();
    run.write_config("seed = 3\n").unwrap();
    let checkpoint = run.checkpoints().join("step-00000010");
    fs::create_dir_all(&checkpoint).unwrap();
    fs::write(checkpoint.join("model.safetensors"), "").unwrap();
    drop(run);
    for path in [root.clone(), root.join("checkpoints"), checkpoint.clone(), checkpoint.join("model.safetensors")] {
        assert_eq!(RunDir::root_of(&path).unwrap(), root);
        assert_eq!(RunDir::resume(&path).unwrap().read_config().unwrap(), "seed = 3\n");
    }
    let winding = checkpoint.join("..").join("..").join("checkpoints");
    assert_eq!(fs::canonicalize(RunDir::root_of(&winding).unwrap()).unwrap(), fs::canonicalize(&root).unwrap());
    let text = RunDir::resume(base.path()).unwrap_err().to_string();
    assert!(text.contains("not a run directory: no config.toml"), "{text}");
    let text = RunDir::resume(&base.path().join("nowhere")).unwrap_err().to_string();
    assert!(text.contains("nowhere: no such run directory"), "{text}");
}

#[test]
fn files_of_a_run_lie_where_the_readme_says() {
    let base = tempfile::tempdir().unwrap();
    let run = RunDir::create(Some(base.path()), "unused").unwrap();
    assert_eq!(run.sample_path(7), base.path().join("samples/epoch-0007.png"));
    run.write_summary(&serde_json::json!({ "loss": 0.25, "a": 1 })).unwrap();
    let text = fs::read_to_string(base.path().join("summary.json")).unwrap();
    assert_eq!(text, "{\n  \"loss\": 0.25,\n  \"a\": 1\n}\n");
}

#[test]
fn files_are_replaced_whole_and_readable_by_others() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("new folder/file");
    write_atomic(&path, b"first").unwrap();
    write_atomic(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing temporary stays");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = base.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
    // Where a folder is in the way, the message names the file and nothing is left.
    let folder = base.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let text = write_atomic(&folder, b"x").unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}: cannot write the file", folder.display())), "{text}");
    assert!(fs::read_dir(base.path()).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with(".tmp")));
}

#[test]
fn two_processes_cannot_train_in_one_directory() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let _run = RunDir::resume(Path::new(&folder)).unwrap();
        println!("ready");
        // Until killed.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let base = tempfile::tempdir().unwrap();
    RunDir::create(Some(base.path()), "unused").unwrap().write_config("").unwrap();
    let (mut holder, _lines) = child("two_processes_cannot_train_in_one_directory", base.path());
    let error = RunDir::resume(base.path()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error:?}");
    assert!(
        error.to_string().contains(&format!("process {} is training in this run directory", holder.id())),
        "{error}"
    );
    // A killed process leaves its lock file, which is no lock.
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(base.path().join(".lock").exists());
    let run = RunDir::resume(base.path()).unwrap();
    // Nor can one process hold it twice.
    assert!(RunDir::resume(base.path()).is_err());
    drop(run);
    RunDir::resume(base.path()).unwrap();
}

fn record(step: u64, split: Split) -> Record {
    Record {
        step,
        epoch: 1 + step / 10,
        split,
        loss: 1.0 / step as f64,
        noise_loss: 0.1,
        image_loss: 0.5,
        lr: 1e-3,
        images_per_second: 100.0,
        seconds: step as f64,
        grad_norm: None,
    }
}

#[test]
fn a_line_has_the_keys_in_order_and_null_for_what_json_cannot_say() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    log.append(&record(2, Split::Train)).unwrap();
    let strange = Record { loss: f64::NAN, image_loss: f64::INFINITY, ..record(4, Split::Valid) };
    log.append(&strange).unwrap();
    // Not closed: each line is in the file at once.
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        concat!(
            r#"{"step":2,"epoch":1,"split":"train","loss":0.5,"noise_loss":0.1,"image_loss":0.5,"lr":0.001,"images_per_second":100.0,"seconds":2.0}"#,
            "\n",
            r#"{"step":4,"epoch":1,"split":"valid","loss":null,"noise_loss":0.1,"image_loss":null,"lr":0.001,"images_per_second":100.0,"seconds":4.0}"#,
            "\n"
        )
    );
    let records = metrics_log::read(&path).unwrap();
    assert_eq!(records[0], record(2, Split::Train));
    assert!(records[1].loss.is_nan() && records[1].image_loss.is_nan());
    assert_eq!(Record { loss: 0.0, image_loss: 0.0, ..records[1] }, Record { loss: 0.0, image_loss: 0.0, ..strange });
}

#[test]
fn a_resumed_file_equals_that_of_a_run_in_one_piece() {
    let base = tempfile::tempdir().unwrap();
    let (whole, parts) = (base.path().join("whole.jsonl"), base.path().join("parts.jsonl"));
    let log_steps = |log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>| {
        for step in steps {
            log.append(&record(step, Split::Train)).unwrap();
            if step % 5 == 0 {
                log.append(&record(step, Split::Valid)).unwrap();
            }
        }
    };
    log_steps(&mut MetricsLog::create(&whole).unwrap(), 1..=20);
    // The checkpoint is of step 10, the crash came in step 13.
    log_steps(&mut MetricsLog::create(&parts).unwrap(), 1..=12);
    fs::OpenOptions::new().append(true).open(&parts).unwrap().write_all(b"{\"step\":13,\"epo").unwrap();
    assert_eq!(metrics_log::read(&parts).unwrap().len(), 14, "the torn line is passed over");
    let mut log = MetricsLog::resume(&parts, 10).unwrap();
    assert_eq!(metrics_log::read(&parts).unwrap().last(), Some(&record(10, Split::Valid)));
    log_steps(&mut log, 11..=20);
    assert_eq!(fs::read(&parts).unwrap(), fs::read(&whole).unwrap());
    // Resumed past the end, from before the start, and without a file.
    MetricsLog::resume(&parts, 99).unwrap();
    assert_eq!(fs::read(&parts).unwrap(), fs::read(&whole).unwrap());
    MetricsLog::resume(&parts, 0).unwrap();
    assert_eq!(fs::metadata(&parts).unwrap().len(), 0);
    fs::remove_file(&parts).unwrap();
    MetricsLog::resume(&parts, 5).unwrap();
    assert_eq!(metrics_log::read(&parts).unwrap(), []);
}

#[test]
fn torn_ends_are_dropped_and_damage_elsewhere_is_named() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("metrics.jsonl");
    let line = format!("{}\n", serde_json::to_string(&record(1, Split::Train)).unwrap());
    // Whole JSON without its line feed, half of it, and the zeros that a power cut leaves.
    for end in [line.trim_end(), "{\"st", "\0\0\0\0", "\0\0\n"] {
        fs::write(&path, format!("{line}{end}")).unwrap();
        assert_eq!(metrics_log::read(&path).unwrap().len(), 1, "{end:?}");
        MetricsLog::resume(&path, 9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line, "{end:?}");
    }
    fs::write(&path, format!("{line}oops\n{line}")).unwrap();
    let text = metrics_log::read(&path).unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}: line 2 is not a metrics record", path.display())), "{text}");
    assert!(MetricsLog::resume(&path, 9).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{line}oops\n{line}"), "nothing is dropped unasked");
}

#[test]
fn a_manual_interrupt_is_seen_by_its_clones() {
    let interrupt = Interrupt::manual();
    let clone = interrupt.clone();
    assert!(!clone.requested());
    interrupt.request();
    assert!(clone.requested());
    assert!(!Interrupt::manual().requested());
}

#[cfg(unix)]
#[test]
fn the_first_signal_asks_and_the_second_ends() {
    if std::env::var_os(CHILD).is_some() {
        let again = Interrupt::install().unwrap();
        let interrupt = Interrupt::install().unwrap();
        println!("ready");
        let began = Instant::now();
        while !interrupt.requested() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(again.requested());
        println!("saving");
        // A save that takes longer than the user's patience.
        std::thread::sleep(Duration::from_secs(20));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for signals in [[libc::SIGINT, libc::SIGINT], [libc::SIGTERM, libc::SIGINT]] {
        let (mut child, mut lines) = child("the_first_signal_asks_and_the_second_ends", folder.path());
        // SAFETY: sends a signal to the child, which is not waited for yet, so its number is its own.
        let send = |signal| assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        send(signals[0]);
        assert!(lines.any(|line| line.contains("saving")));
        send(signals[1]);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("finishing this step, then saving (press Ctrl-C again to stop at once)"), "{said}");
    }
}

/// Who looks whether a run is held locks it for a moment: that keeps nobody from training in it.
#[test]
fn a_lock_that_is_held_for_a_moment_does_not_refuse_a_run() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("run");
    drop(RunDir::create(Some(&root), "x").unwrap());
    fs::write(root.join("config.toml"), "").unwrap();
    let looking = fs::File::open(root.join(".lock")).unwrap();
    looking.lock_shared().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(looking);
        });
        RunDir::resume(&root).unwrap();
    });
}
