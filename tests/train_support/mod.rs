//! A folder of its own for each test, the built program run inside it, and what runs leave read back.
#![allow(dead_code)] // each test file uses a part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ddim_engine::train::checkpoint::{self, NamedTensor};
use ddim_engine::train::metrics_log::{self, Record};
use image::{Rgb, RgbImage};

/// A network of a few thousand parameters on pictures of 8x8: a step takes about a millisecond.
const TINY: &[&str] = &[
    "image_size=8",
    "widths=4,6",
    "embedding_dim=4",
    "block_depth=1",
    "batch_size=8",
    "sample_count=4",
    "sample_steps=3",
];

/// What a run of the program said, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Said {
    /// Ended with `code`, with all `needles` in an `error:`, and without a panic.
    #[track_caller]
    pub fn fails(&self, code: i32, needles: &[&str]) -> &Self {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(!self.err.contains("panicked"), "{}", self.err);
        let at = self.err.find("error: ").unwrap_or_else(|| panic!("no error: in {}", self.err));
        for needle in needles {
            assert!(self.err[at..].contains(needle), "{needle:?} is not in: {}", self.err);
        }
        self
    }
}

/// The arguments of a run of a test, in its folder.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty folder.
    pub fn new() -> Self {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    /// With `pictures`: 36 of them, of which 29 are trained on, so an epoch has three batches of 8 and one of 5.
    pub fn with_pictures() -> Self {
        let place = Place::new();
        place.draw_pictures("pictures", 36);
        place
    }

    /// `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a folder of small pictures, each of its own colours and not its own mirror image.
    pub fn draw_pictures(&self, folder: &str, count: u32) {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..count {
            let value = |x: u32, y: u32, k: u32| (x * (9 + i % 5) + y * (5 + k) + i * 37 * (k + 1)) as u8;
            let picture = RgbImage::from_fn(12, 12, |x, y| Rgb([0, 1, 2].map(|k| value(x, y, k))));
            picture.save(folder.join(format!("{i:03}.png"))).unwrap();
        }
    }

    /// The program, to be run in the folder, with a cache of its own.
    pub fn program<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddim-engine"));
        command.args(args.iter().map(AsRef::as_ref)).current_dir(self.dir.path()).stdin(Stdio::null());
        command
            .env("XDG_CACHE_HOME", self.path("user-cache"))
            .env_remove("DDIM_DATA_DIR")
            .env_remove("DDIM_ISA")
            .env_remove("DDIM_BF16");
        command
    }

    /// Runs it.
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Said {
        self.program(args).output().unwrap().into()
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub fn ok<S: AsRef<str>>(&self, args: &[S]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{said:#?}");
        said
    }

    /// Runs it; it must end with 2, print nothing, and say why.
    #[track_caller]
    pub fn refused<S: AsRef<str>>(&self, args: &[S], needles: &[&str]) -> Said {
        let said = self.run(args);
        said.fails(2, needles);
        assert_eq!(said.out, "");
        said
    }

    /// Trains the tiny network into the folder `run`; returns it.
    #[track_caller]
    pub fn train(&self, run: &str, args: &[&str]) -> PathBuf {
        self.ok(&tiny(run, args));
        self.path(run)
    }
}

/// The arguments that train the tiny network on `pictures` into the folder `run`; those of `args` win.
pub fn tiny(run: &str, args: &[&str]) -> Vec<String> {
    let mut all: Vec<&str> = vec!["train", "--run-dir", run];
    if !args.contains(&"--data") {
        all.extend(["--data", "pictures"]);
    }
    all.extend(TINY.iter().flat_map(|set| ["--set", set]));
    all.extend(args);
    all.into_iter().map(String::from).collect()
}

/// The folder of a run's checkpoint.
pub fn checkpoint_at(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// Both tensor files of a run's checkpoint.
#[track_caller]
pub fn tensor_bytes(run: &Path, step: u64) -> [Vec<u8>; 2] {
    let folder = checkpoint_at(run, step);
    ["model.safetensors", "state.safetensors"]
        .map(|name| fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{}: {e}", folder.join(name).display())))
}

/// The tensors of a run's checkpoint that are learned or average what is learned.
#[track_caller]
pub fn tensors(run: &Path, step: u64) -> Vec<NamedTensor> {
    let checkpoint = checkpoint::load(&checkpoint_at(run, step)).unwrap();
    let all = checkpoint.model.into_iter().chain(checkpoint.optimizer);
    all.filter(|t| !t.name.starts_with("normalizer.")).collect()
}

/// Steps of a run's checkpoints.
pub fn steps_saved(run: &Path) -> Vec<u64> {
    checkpoint::list(run).unwrap().into_iter().map(|entry| entry.step).collect()
}

/// The records of a run without their timings.
#[track_caller]
pub fn records(run: &Path) -> Vec<Record> {
    let records = metrics_log::read(&run.join("metrics.jsonl")).unwrap();
    records.into_iter().map(|r| Record { images_per_second: 0.0, seconds: 0.0, ..r }).collect()
}

/// The files of a folder, by name, with their bytes.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}
