//! `ddim-engine doctor`: what was built, what this machine has, and what to do about what is missing.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use ddim_engine::device::cpu::{Isa, Products};
use ddim_engine::device::cuda;
use ddim_engine::error::Result;
use ddim_engine::kernels;

use super::{device, print};

/// Show what was built and what this machine has
///
/// Shows what was built, what this machine has, which pictures are there, and what to do about what is missing. Always ends with
/// exit code 0.
#[derive(clap::Args)]
#[command(after_help = "Example\n  ddim-engine doctor --data-dir PICTURES")]
pub struct Args {
    /// Where `flowers` and `pets` are looked for [default: $DDIM_DATA_DIR, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut report = Report::default();
        report.build();
        report.gpus();
        report.cpu();
        report.bf16();
        report.memory();
        report.folders(self.data_dir);
        report.line("terminal", terminal());
        print::stdout(&report.text())
    }
}

/// Lines of what is there, and of what to do.
#[derive(Default)]
struct Report {
    lines: Vec<(&'static str, String)>,
    remedies: Vec<String>,
}

impl Report {
    fn line(&mut self, label: &'static str, value: impl Into<String>) {
        self.lines.push((label, value.into()));
    }

    fn remedy(&mut self, what: impl Into<String>) {
        self.remedies.push(what.into());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (label, value) in &self.lines {
            text.push_str(&format!("{label:<18} {value}\n"));
        }
        if self.remedies.is_empty() {
            text.push_str("\nNothing is missing.\n");
        } else {
            text.push_str("\nWhat to do\n");
            self.remedies.iter().for_each(|what| text.push_str(&format!("  - {what}\n")));
        }
        text.push_str("\nTo begin: ddim-engine train\n");
        text
    }

    fn build(&mut self) {
        let kind = if cfg!(debug_assertions) { "debug" } else { "release" };
        self.line("version", format!("{} ({kind} build)", env!("CARGO_PKG_VERSION")));
        if cfg!(debug_assertions) {
            self.remedy("this is a debug build, many times slower: build with cargo build --release");
        }
        let tensorboard = cfg!(feature = "tensorboard");
        self.line("features", if tensorboard { "tensorboard" } else { "none" });
        if !tensorboard {
            self.remedy("no TensorBoard files in this build: build with --features tensorboard, or read metrics.jsonl");
        }
        match kernels::NO_IMAGES {
            None => {
                let (count, archs) = (kernels::ALL.len() + kernels::LADDER.len(), kernels::ARCHITECTURES);
                self.line("GPU kernels", format!("{count} in this build, for {archs}"));
            }
            Some(why) => {
                self.line("GPU kernels", "none in this build");
                self.remedy(format!("for GPUs: {why}; then build again"));
            }
        }
        match kernels::NO_SIMULATOR {
            None => self.line("simulator", "built: --device sim runs the CUDA kernels on this CPU, for tests"),
            Some(why) => {
                self.line("simulator", "not in this build");
                self.remedy(format!("for tests of the CUDA kernels without a GPU: {why}; then build again"));
            }
        }
    }

    fn gpus(&mut self) {
        match cuda::probe() {
            Ok(gpus) => {
                for gpu in gpus {
                    match gpu.unusable() {
                        None => self.line("gpu", gpu.to_string()),
                        Some(why) => self.line("gpu", format!("cuda:{} cannot be used: {why}", gpu.ordinal)),
                    }
                }
            }
            Err(why) => self.line("gpu", format!("none: {why}")),
        }
    }

    fn cpu(&mut self) {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
        self.line("cpu", name);
        self.line("cores", format!("{} usable", device::cores()));
        let has: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.available()).map(|isa| isa.to_string()).collect();
        self.line("instruction sets", has.join(", "));
        let forced = std::env::var_os("DDIM_ISA").map(|text| text.to_string_lossy().into_owned());
        let used = Isa::detect();
        let Some(forced) = forced.filter(|text| !text.is_empty()) else {
            self.line("in use", used.to_string());
            if used == Isa::Portable {
                self.remedy("neither AVX2 nor AVX-512 on this CPU: the kernels run, several times slower");
            }
            return;
        };
        if used.to_string().eq_ignore_ascii_case(&forced) {
            self.line("in use", format!("{used}, forced by DDIM_ISA"));
        } else {
            self.line("in use", format!("{used} (DDIM_ISA={forced:?} is not one of {})", has.join(", ")));
            self.remedy("unset DDIM_ISA, or set it to an instruction set of this CPU");
        }
    }

    fn bf16(&mut self) {
        let isa = Isa::detect();
        match Products::for_bf16(isa) {
            Ok(products) => self.line("--precision bf16", products.describe(isa)),
            Err(error) => {
                self.line("--precision bf16", format!("refused: {error}"));
                self.remedy("unset DDIM_BF16");
            }
        }
    }

    fn memory(&mut self) {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| -> Option<u64> {
            info.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        };
        let available = kib("MemAvailable:").map(|kib| kib << 10);
        let total = kib("MemTotal:").map(|kib| kib << 10);
        // In a container the limit of its group counts, where it has one.
        let limit =
            fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse::<u64>().ok());
        match (available, total) {
            (Some(available), Some(total)) => {
                let limited = limit.filter(|limit| *limit < total);
                let limited_text = limited.map_or(String::new(), |n| format!(", limited to {}", size(n)));
                self.line("memory", format!("{} available of {}{limited_text}", size(available), size(total)));
                if limited.unwrap_or(available).min(available) < 2 << 30 {
                    self.remedy("little memory: use a smaller batch, such as --set batch_size=16");
                }
            }
            _ => self.line("memory", "unknown on this system"),
        }
        let pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let setting =
            pages.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("unknown", |(word, _)| word);
        match setting {
            "always" | "madvise" => self.line("huge pages", format!("{setting}: in use")),
            "never" => {
                self.line("huge pages", "never: off");
                self.remedy(
                    "huge pages make a step faster: echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
                );
            }
            _ => self.line("huge pages", "unknown on this system"),
        }
    }

    fn folders(&mut self, named: Option<PathBuf>) {
        let cache_home = cache_home();
        let from_env = || std::env::var_os("DDIM_DATA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let (dir, origin) = match (named, from_env()) {
            (Some(dir), _) => (Some(dir), "--data-dir"),
            (None, Some(dir)) => (Some(dir), "DDIM_DATA_DIR"),
            (None, None) => (cache_home.clone(), "the user's cache folder"),
        };
        let Some(dir) = dir else {
            self.line("data folder", "none: HOME and XDG_CACHE_HOME are unset");
            self.remedy("name a folder for pictures and caches: set DDIM_DATA_DIR");
            return;
        };
        let is_dir = dir.is_dir();
        let state = if is_dir { "" } else { ", does not exist" };
        self.line("data folder", format!("{} ({origin}{state})", dir.display()));
        for (label, name) in [("  flowers", "flowers"), ("  pets", "pets")] {
            let found = places(name).iter().map(|place| dir.join(place)).find(|path| path.exists());
            match found {
                Some(path) => self.line(label, format!("found: {}", path.display())),
                None => {
                    self.line(label, "not found");
                    self.remedy(format!(
                        "for --data {name}: put the pictures into {} as a folder `{name}` or as {name}.tar",
                        dir.display()
                    ));
                }
            }
        }
        self.line("  procedural", "built in");
        let cache = if is_dir || origin == "the user's cache folder" { Some(dir) } else { cache_home };
        match cache.map(|dir| dir.join("cache")) {
            Some(cache) => self.line("cache folder", format!("{} ({})", cache.display(), contents(&cache))),
            None => self.line("cache folder", "none: pictures are decoded anew in every run"),
        }
    }
}

/// The user's cache folder for this program.
fn cache_home() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    Some(var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")))?.join("ddim-engine"))
}

/// Where a known set may lie in the data folder.
fn places(name: &str) -> &'static [&'static str] {
    match name {
        "flowers" => &[
            "flowers.tar",
            "flowers",
            "flowers64.tar",
            "flowers64-jpeg95.tar",
            "102flowers.tar",
            "102flowers",
            "flowers-102/jpg",
            "jpg",
        ],
        _ => &["pets.tar", "pets", "pets64.tar", "oxford-iiit-pet/images", "images"],
    }
}

/// Files and bytes below `dir`, in words.
fn contents(dir: &Path) -> String {
    let files = walkdir::WalkDir::new(dir).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    let (count, bytes) = files.filter(|meta| meta.is_file()).fold((0, 0), |(n, sum), meta| (n + 1, sum + meta.len()));
    match count {
        0 => "empty".into(),
        1 => format!("1 file, {}", size(bytes)),
        n => format!("{n} files, {}", size(bytes)),
    }
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

fn terminal() -> String {
    let name = std::env::var("TERM").ok().filter(|name| !name.is_empty());
    let name = name.map_or(String::new(), |name| format!(" (TERM={name})"));
    if std::io::stderr().is_terminal() {
        format!("yes{name}: progress is a bar")
    } else {
        format!("no{name}: progress is plain lines")
    }
}
