//! Checkpoints: exact round trips, equal bytes for equal content, and every kind of damage refused by name; a full disk and a
//! killed process leave the earlier checkpoint whole.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ddim_engine::error::Error;
use ddim_engine::train::checkpoint::{self, Checkpoint, NamedTensor};
use serde_json::json;

/// Tells a test, run again as a child process, which folder to work in.
const CHILD: &str = "DDIM_ENGINE_TEST_CHILD";

fn tensor(name: &str, shape: &[usize], first: f32) -> NamedTensor {
    let data = (0..shape.iter().product::<usize>()).map(|i| first + i as f32 * 0.37).collect();
    NamedTensor { name: name.into(), shape: shape.to_vec(), data }
}

/// A small checkpoint with awkward values; the model's tensors are in the order of their names.
fn sample(step: u64) -> Checkpoint {
    let mut odd = tensor("b.odd", &[2, 3], step as f32);
    odd.data[..5].copy_from_slice(&[f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 8.0, f32::MAX]);
    Checkpoint {
        config_toml: "lr = 0.001\ndata = \"a \\\"quoted\\\" folder, ü\"\n".into(),
        step,
        epoch: step / 10,
        state: json!({ "zulu": 1, "best": 0.1 + 0.2, "mean": [1.0e-310, 0.3f32 as f64], "data": { "count": u64::MAX } }),
        model: vec![
            tensor("a.weight", &[4, 1, 3, 3], 0.5),
            odd,
            tensor("c.scalar", &[], 2.0),
            tensor("d.none", &[0, 7], 0.0),
        ],
        optimizer: vec![tensor("adam.m", &[300], 1.0), tensor("adam.v", &[300], 2.0)],
    }
}

/// A checkpoint whose model file alone is about `kib` KiB.
fn sized(step: u64, kib: usize) -> Checkpoint {
    Checkpoint { model: vec![tensor("w", &[kib * 256], step as f32)], ..sample(step) }
}

/// Equality by bits, so that NaN equals itself.
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    let bits = |tensors: &[NamedTensor]| -> Vec<(String, Vec<usize>, Vec<u32>)> {
        tensors
            .iter()
            .map(|t| (t.name.clone(), t.shape.clone(), t.data.iter().map(|v| v.to_bits()).collect()))
            .collect()
    };
    assert_eq!((&a.config_toml, a.step, a.epoch, &a.state), (&b.config_toml, b.step, b.epoch, &b.state));
    assert_eq!(a.state.to_string(), b.state.to_string(), "the order of keys");
    assert_eq!(bits(&a.model), bits(&b.model));
    assert_eq!(bits(&a.optimizer), bits(&b.optimizer));
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Flips one bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A run with valid checkpoints of steps 10, 20 and 30.
fn run_of_three() -> (tempfile::TempDir, PathBuf, Vec<PathBuf>) {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoints");
    let paths = [10, 20, 30].map(|step| checkpoint::save(&folder, &sample(step)).unwrap()).to_vec();
    (run, folder, paths)
}

fn refusal(path: &Path) -> String {
    match checkpoint::load(path) {
        Err(e @ Error::Input { .. }) => e.to_string(),
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn what_is_loaded_is_what_was_saved() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoints");
    let path = checkpoint::save(&folder, &sample(500)).unwrap();
    assert_eq!(path, folder.join("step-00000500"));
    assert_eq!(names(&path), ["manifest.json", "model.safetensors", "state.safetensors"]);
    assert_same(&checkpoint::load(&path).unwrap(), &sample(500));
}

#[test]
fn the_safetensors_crate_reads_the_files() {
    let run = tempfile::tempdir().unwrap();
    let path = checkpoint::save(run.path(), &sample(1)).unwrap();
    let bytes = fs::read(path.join("model.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((8 + header) % 8, 0, "data are aligned");
    let metadata = metadata.metadata().clone().unwrap();
    assert_eq!(metadata["format"], "pt");
    assert_eq!(metadata["ddim_engine.config"], sample(1).config_toml);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weight = file.tensor("a.weight").unwrap();
    assert_eq!(weight.shape(), [4, 1, 3, 3]);
    assert_eq!(weight.data()[4..8], (0.5f32 + 0.37).to_le_bytes());
    assert_eq!(file.tensor("d.none").unwrap().data().len(), 0);
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut shuffled = sample(7);
    shuffled.model.reverse();
    shuffled.optimizer.reverse();
    let a = checkpoint::save(a.path(), &sample(7)).unwrap();
    let b = checkpoint::save(b.path(), &shuffled).unwrap();
    for name in names(&a) {
        assert_eq!(fs::read(a.join(&name)).unwrap(), fs::read(b.join(&name)).unwrap(), "{name}");
    }
    let loaded = checkpoint::load(&b).unwrap();
    let c = tempfile::tempdir().unwrap();
    let c = checkpoint::save(c.path(), &loaded).unwrap();
    assert_eq!(fs::read(a.join("manifest.json")).unwrap(), fs::read(c.join("manifest.json")).unwrap());
}

#[test]
fn a_truncated_model_is_refused_and_the_previous_checkpoint_offered() {
    let (run, _, paths) = run_of_three();
    let model = paths[2].join("model.safetensors");
    let whole = fs::read(&model).unwrap();
    fs::write(&model, &whole[..whole.len() - 3]).unwrap();
    let text = refusal(&paths[2]);
    assert!(text.starts_with(&format!("{}: torn: found {} bytes", model.display(), whole.len() - 3)), "{text}");
    assert!(text.contains(&format!("expected {}", whole.len())), "{text}");
    assert!(text.ends_with(&format!("resume from {0} with --resume {0}", paths[1].display())), "{text}");

    let latest = checkpoint::latest(run.path()).unwrap().unwrap();
    assert_eq!((latest.path, latest.step), (paths[1].clone(), 20));
    assert_eq!(latest.skipped.len(), 1);
    assert_eq!((latest.skipped[0].step, &latest.skipped[0].path), (30, &paths[2]));
}

#[test]
fn one_flipped_bit_anywhere_is_found() {
    let (run, _, paths) = run_of_three();
    for (name, at) in [("model.safetensors", 12), ("model.safetensors", usize::MAX), ("state.safetensors", 200)] {
        let file = paths[2].join(name);
        let length = fs::metadata(&file).unwrap().len() as usize;
        let at = at.min(length - 1);
        flip(&file, at);
        let text = refusal(&paths[2]);
        assert!(text.starts_with(&format!("{}: changed since it was saved: found SHA-256 ", file.display())), "{text}");
        assert!(text.contains(&paths[1].display().to_string()), "{text}");
        // Manifest and sizes are as they were: only the checksum can tell.
        assert!(checkpoint::list(run.path()).unwrap().iter().all(|entry| entry.problem.is_none()));
        assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 20);
        flip(&file, at);
        assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 30);
    }
}

#[test]
fn every_single_byte_of_a_manifest_counts() {
    let run = tempfile::tempdir().unwrap();
    let path = checkpoint::save(run.path(), &sample(3)).unwrap();
    let manifest = path.join("manifest.json");
    for at in 0..fs::metadata(&manifest).unwrap().len() as usize {
        flip(&manifest, at);
        let text = refusal(&path);
        assert!(text.starts_with(&manifest.display().to_string()), "byte {at}: {text}");
        assert!(text.ends_with("there is no earlier valid checkpoint beside it"), "byte {at}: {text}");
        flip(&manifest, at);
    }
    checkpoint::load(&path).unwrap();
}

#[test]
fn missing_and_edited_manifests_and_other_formats_are_refused() {
    let (run, _, paths) = run_of_three();
    let manifest = paths[2].join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let cases = [
        (
            text.replace("\"step\": 30", "\"step\": 31"),
            "torn or edited: its text does not match its own manifest_sha256",
        ),
        (text.replace("\"version\": 1", "\"version\": 2"), "its version is 2, this program reads version 1"),
        (
            text.replace("ddim-engine checkpoint", "other"),
            "its format is \"other\", expected \"ddim-engine checkpoint\"",
        ),
        (text[..text.len() / 2].to_string(), "torn or edited: not JSON"),
        (String::new(), "torn or edited: not JSON"),
    ];
    for (edited, expected) in cases {
        assert_ne!(edited, text);
        fs::write(&manifest, edited).unwrap();
        let found = refusal(&paths[2]);
        assert!(found.starts_with(&format!("{}: {expected}", manifest.display())), "{found}");
        assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 20);
    }
    fs::remove_file(&manifest).unwrap();
    assert!(refusal(&paths[2]).contains("manifest.json: missing: not a checkpoint, or one that was never finished"));
    fs::write(&manifest, &text).unwrap();
    fs::remove_file(paths[2].join("state.safetensors")).unwrap();
    assert!(refusal(&paths[2]).contains("state.safetensors: missing from its checkpoint"));
    assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 20);
}

#[test]
fn a_folder_renamed_to_another_step_is_not_picked_up() {
    let (run, folder, paths) = run_of_three();
    fs::rename(&paths[2], folder.join("step-00000099")).unwrap();
    assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 20);
    let list = checkpoint::list(run.path()).unwrap();
    assert!(
        list[2].problem.as_deref().unwrap().contains("its manifest is of step 30, its folder is named for step 99")
    );
}

#[test]
fn only_damaged_checkpoints_is_an_error_and_none_is_not() {
    let (run, folder, paths) = run_of_three();
    paths.iter().for_each(|path| fs::write(path.join("model.safetensors"), "x").unwrap());
    let text = checkpoint::latest(run.path()).unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}: no valid checkpoint among 3; ", folder.display())), "{text}");
    assert!(text.contains("found 1 bytes"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(checkpoint::latest(empty.path()).unwrap(), None);
    assert_eq!(checkpoint::latest(&empty.path().join("nowhere")).unwrap(), None);
}

#[test]
fn leftovers_of_dead_runs_are_ignored_and_removed_but_not_those_of_the_living() {
    let (run, folder, _) = run_of_three();
    let dead = folder.join(".tmp-step-00000040-1-0");
    let living = folder.join(".tmp-step-00000050-2-0");
    for path in [&dead, &living] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("model.safetensors"), "half").unwrap();
    }
    let writer = fs::File::open(&living).unwrap();
    writer.lock().unwrap();
    assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 30);
    assert_eq!(checkpoint::list(run.path()).unwrap().len(), 3);
    checkpoint::save(&folder, &sample(40)).unwrap();
    assert!(!dead.exists());
    assert!(living.exists());
}

#[test]
fn saving_a_step_again_replaces_it() {
    let (run, folder, paths) = run_of_three();
    let mut changed = sample(30);
    changed.model[0].data[0] = 99.0;
    assert_eq!(checkpoint::save(&folder, &changed).unwrap(), paths[2]);
    assert_same(&checkpoint::load(&paths[2]).unwrap(), &changed);
    assert_eq!(names(&folder), ["step-00000010", "step-00000020", "step-00000030"]);
    // A damaged one too.
    fs::remove_file(paths[2].join("manifest.json")).unwrap();
    checkpoint::save(&folder, &sample(30)).unwrap();
    assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 30);
}

#[test]
fn a_checkpoint_moved_aside_by_a_crash_counts_and_comes_back() {
    // What a crash between the two renames of a filesystem without exchange leaves.
    let (run, folder, paths) = run_of_three();
    let aside = folder.join(".old-step-00000030");
    fs::rename(&paths[2], &aside).unwrap();
    let latest = checkpoint::latest(run.path()).unwrap().unwrap();
    assert_eq!((latest.step, &latest.path), (30, &aside));
    checkpoint::load(&aside).unwrap();
    checkpoint::save(&folder, &sample(40)).unwrap();
    assert!(!aside.exists());
    assert_same(&checkpoint::load(&paths[2]).unwrap(), &sample(30));
}

#[test]
fn pruning_keeps_the_newest_and_never_the_last_valid() {
    let (run, folder, paths) = run_of_three();
    for step in [40, 50] {
        checkpoint::save(&folder, &sample(step)).unwrap();
    }
    assert_eq!(checkpoint::prune(run.path(), 3).unwrap(), [paths[1].clone(), paths[0].clone()]);
    assert_eq!(names(&folder), ["step-00000030", "step-00000040", "step-00000050"]);
    // The newest looks well and is not; the one before is the newest valid.
    flip(&folder.join("step-00000050/state.safetensors"), 200);
    checkpoint::prune(run.path(), 1).unwrap();
    assert_eq!(names(&folder), ["step-00000040", "step-00000050"]);
    assert_eq!(checkpoint::prune(run.path(), 0).unwrap(), [] as [PathBuf; 0]);
    assert_eq!(checkpoint::latest(run.path()).unwrap().unwrap().step, 40);
    // None valid: nothing goes.
    fs::remove_file(folder.join("step-00000040/manifest.json")).unwrap();
    checkpoint::prune(run.path(), 1).unwrap();
    assert_eq!(names(&folder), ["step-00000040", "step-00000050"]);
}

#[test]
fn a_model_is_found_by_run_checkpoint_or_file() {
    let (run, folder, paths) = run_of_three();
    let model = paths[2].join("model.safetensors");
    for path in [run.path(), &folder, &paths[2], &model] {
        assert_eq!(checkpoint::resolve(path).unwrap(), model);
        let found = checkpoint::load_model_file(path).unwrap();
        assert_eq!(found.path, model);
        assert_eq!(found.config_toml.as_deref(), Some(sample(30).config_toml.as_str()));
        assert_eq!(found.tensors.len(), 4);
        let (step, state) = found.step_and_state.unwrap();
        assert_eq!((step, state), (30, sample(30).state));
    }
    // On its own it is a model still, without the state.
    let bare = run.path().join("bare.safetensors");
    fs::copy(&model, &bare).unwrap();
    let found = checkpoint::load_model_file(&bare).unwrap();
    assert!(found.step_and_state.is_none() && found.config_toml.is_some());
    // In its checkpoint it must match the manifest.
    let last = fs::metadata(&model).unwrap().len() as usize - 1;
    flip(&model, last);
    let text = checkpoint::load_model_file(&model).unwrap_err().to_string();
    assert!(text.contains("changed since it was saved") && text.contains(&paths[1].display().to_string()), "{text}");
    assert_eq!(checkpoint::resolve(run.path()).unwrap(), paths[1].join("model.safetensors"));
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let with_header =
        |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    let half = r#"{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    let huge = r#"{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
    let cases = [
        (file("notes.txt", b"hello"), "expected a .safetensors file"),
        (file("short.safetensors", b"hell"), "found 4 bytes, expected at least 8"),
        (file("text.safetensors", b"hello, this is text"), "its header claims"),
        (file("half.safetensors", &with_header(half, &[0; 4])), "tensor w is F16, expected F32"),
        (file("cut.safetensors", &with_header(half, &[0; 3])), "its header expects"),
        (file("huge.safetensors", &with_header(huge, &[0; 4])), "its header expects 4000000000"),
        (folder.path().join("nowhere"), "no such file or folder"),
        (folder.path().to_path_buf(), "holds no checkpoint; expected a run directory"),
    ];
    for (path, expected) in cases {
        let text = checkpoint::load_model_file(&path).unwrap_err().to_string();
        assert!(text.starts_with(&path.display().to_string()) && text.contains(expected), "{text}");
    }
    // PyTorch's integer counters are passed over.
    let counted = r#"{"n.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    let path = file("counted.safetensors", &with_header(counted, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 63]));
    let tensors = checkpoint::load_model_file(&path).unwrap().tensors;
    assert_eq!(tensors, [NamedTensor { name: "w".into(), shape: vec![1], data: vec![1.0] }]);
}

#[test]
fn tensors_that_cannot_be_saved_are_refused_and_leave_nothing() {
    let run = tempfile::tempdir().unwrap();
    let mut twice = sample(1);
    twice.model.push(tensor("a.weight", &[1], 0.0));
    let mut short = sample(1);
    short.optimizer[0].data.pop();
    for (checkpoint, expected) in
        [(twice, "two tensors are named \"a.weight\""), (short, "has shape [300] but 299 values")]
    {
        let error = checkpoint::save(run.path(), &checkpoint).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }) && error.to_string().contains(expected), "{error}");
        assert_eq!(names(run.path()), [] as [&str; 0]);
    }
}

/// This test again, as a child process that works in `folder`.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, folder);
    command
}

/// Saves step 1, then fails to save step 2 and a larger step 1 because there is no room; all else must be as it was.
fn save_until_it_is_full(folder: &Path, mut fill: impl FnMut(), reason: &str) {
    let first = sized(1, 64);
    let path = checkpoint::save(folder, &first).unwrap();
    fill();
    for step in [2, 1] {
        let error = checkpoint::save(folder, &sized(step, 4096)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        let text = error.to_string();
        let file = folder.join(format!("step-0000000{step}")).join("model.safetensors");
        assert!(text.starts_with(&format!("{}: cannot write the tensors", file.display())), "{text}");
        assert!(text.contains(&format!("(the earlier checkpoint {} is untouched)", path.display())), "{text}");
        assert!(text.contains(reason), "{text}");
        assert_eq!(names(folder), ["step-00000001"], "nothing half written stays");
        assert_same(&checkpoint::load(&path).unwrap(), &first);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_write_that_the_system_refuses_leaves_the_earlier_checkpoint() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        // SAFETY: ignoring a signal and lowering a limit touch no memory of this process; the pointer is to a live value.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        return save_until_it_is_full(Path::new(&folder), || {}, "File too large");
    }
    let folder = tempfile::tempdir().unwrap();
    let output =
        child("a_write_that_the_system_refuses_leaves_the_earlier_checkpoint", folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The limit is gone with the child.
    checkpoint::save(folder.path(), &sized(2, 4096)).unwrap();
    assert_eq!(checkpoint::latest(folder.path()).unwrap().unwrap().step, 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_earlier_checkpoint() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let folder = Path::new(&folder);
        let filler = folder.with_file_name("filler");
        let fill = || fill_up(&mut fs::File::create(&filler).unwrap());
        return save_until_it_is_full(folder, fill, "No space left on device");
    }
    // A small disk of its own, in a namespace that needs no privileges where the system allows such.
    let name = "a_full_disk_leaves_the_earlier_checkpoint";
    let disk = tempfile::tempdir().unwrap();
    let inner = child(name, &disk.path().join("checkpoints"));
    let mount = "mount -t tmpfs -o size=2m tmpfs \"$0\" || exit 77; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", mount])
        .arg(disk.path())
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(CHILD, disk.path().join("checkpoints"))
        .output();
    let skip = |why: &str| {
        // Not through eprintln, which the test harness would hold back.
        writeln!(std::io::stderr(), "skipped: {name}: cannot mount a small disk here ({})", why.trim()).unwrap();
    };
    match output {
        Err(e) => skip(&e.to_string()),
        Ok(output) => {
            let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            // The child's harness speaks once it runs; before that, it was mounting that failed.
            match output.status.success() {
                true => assert!(stdout.contains("1 passed"), "{stdout}"),
                false if stdout.is_empty() => skip(&stderr),
                false => panic!("{stdout}{stderr}"),
            }
        }
    }
}

/// Fills the disk to the last byte.
fn fill_up(file: &mut fs::File) {
    for size in [1 << 16, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
}

#[test]
fn a_process_killed_while_saving_leaves_a_valid_checkpoint() {
    if let Some(folder) = std::env::var_os(CHILD) {
        for round in 0u64.. {
            // New steps and old ones again.
            checkpoint::save(Path::new(&folder), &sized(1 + round / 2, 256)).unwrap();
            println!("saved");
        }
    }
    let run = tempfile::tempdir().unwrap();
    for round in 0..6u64 {
        let mut child = child("a_process_killed_while_saving_leaves_a_valid_checkpoint", run.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("saved")), "the child saved nothing");
        // Some way into one of the next saves.
        std::thread::sleep(std::time::Duration::from_micros(1700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let latest = checkpoint::latest(run.path()).unwrap().unwrap();
        assert_eq!(latest.skipped, [], "a killed process must not leave a damaged checkpoint");
        assert_same(&checkpoint::load(&latest.path).unwrap(), &sized(latest.step, 256));
    }
    checkpoint::save(run.path(), &sized(1, 1)).unwrap();
    assert!(names(run.path()).iter().all(|name| name.starts_with("step-")), "{:?}", names(run.path()));
}
