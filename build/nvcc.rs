//! GPU images: finds nvcc, compiles each kernel file for the architectures asked for, in parallel, only what changed.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ptxas;
use crate::table::Source;

/// Architectures compiled for: Ampere and everything after it through the embedded PTX, Hopper with its own instructions.
const DEFAULT_ARCHS: &str = "sm_80,sm_90a,compute_80";
/// nvcc's options besides the architectures. Compressed images make the program 12 MB smaller.
const OPTIONS: [&str; 7] =
    ["-fatbin", "-O3", "-std=c++17", "-lineinfo", "--compress-mode=size", "-Xptxas", "-v,-warn-spills"];
const INSTALL: &str = "pip install --no-deps --target .cuda nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
                       nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85";

/// Images of all kernel files.
pub struct Images {
    /// (module, image file).
    pub files: Vec<(String, PathBuf)>,
    /// What they were compiled for.
    pub architectures: String,
    /// What each kernel takes.
    pub reports: Vec<ptxas::Report>,
}

/// The images, or why there are none.
pub fn build(root: &Path, kernels: &Path, sources: &[&Source], out: &Path) -> Result<Images, String> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "DDIM_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-env=DDIM_PTXAS_LOGS={}", out.join("cuda").display());
    let built = compile_all(root, kernels, sources, &out.join("cuda"));
    match &built {
        Ok(_) => println!("cargo::rustc-cfg=have_cuda_images"),
        Err(why) => {
            println!("cargo::warning=no GPU kernels in this build: {}", why.lines().next().unwrap_or_default());
        }
    }
    built
}

fn compile_all(root: &Path, kernels: &Path, sources: &[&Source], out: &Path) -> Result<Images, String> {
    let Some(nvcc) = find(root) else {
        return Err(format!("nvcc was not found; it installs without a GPU: {INSTALL}"));
    };
    if let Some(bin) = nvcc.parent() {
        println!("cargo::rustc-env=DDIM_CUDA_BIN={}", bin.display()); // for the test that disassembles
    }
    let named = std::env::var("DDIM_CUDA_ARCHS").ok().filter(|archs| !archs.trim().is_empty());
    let architectures = named.unwrap_or(DEFAULT_ARCHS.into());
    let archs = gencodes(&architectures)?;
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let sources: Vec<&Source> = sources.iter().copied().filter(|s| !s.kernels.is_empty()).collect();
    let common = headers(kernels)?;
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let compiled = headers_of(source, kernels, common)
                        .and_then(|headers| compile(&nvcc, kernels, source, &archs, headers, out));
                    if let Err(what) = compiled
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push(what);
                    }
                }
            });
        }
    });
    match failures.into_inner().ok().and_then(|f| f.into_iter().next()) {
        Some(what) => Err(what),
        None => {
            let image = |s: &&Source| (s.stem.clone(), out.join(format!("{}.fatbin", s.stem)));
            let reports = ptxas::read(out, sources.iter().map(|s| s.stem.as_str()));
            Ok(Images { files: sources.iter().map(image).collect(), architectures, reports })
        }
    }
}

/// Compiles one file unless its image is of the same text, headers, compiler and options.
fn compile(
    nvcc: &Path,
    kernels: &Path,
    source: &Source,
    archs: &[String],
    headers: u64,
    out: &Path,
) -> Result<(), String> {
    let image = out.join(format!("{}.fatbin", source.stem));
    let stamp = out.join(format!("{}.stamp", source.stem));
    let text = fs::read(&source.path).map_err(|e| format!("{}: {e}", source.path.display()))?;
    let mut hasher = DefaultHasher::new();
    (text, headers, nvcc, archs, OPTIONS).hash(&mut hasher);
    let key = hasher.finish().to_string();
    if image.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(());
    }
    let mut command = Command::new(nvcc);
    command.args(OPTIONS);
    command.arg("-I").arg(kernels).args(archs).arg(&source.path).arg("-o").arg(&image);
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let log = [output.stdout, output.stderr].concat();
    fs::write(out.join(format!("{}.ptxas.log", source.stem)), &log).ok(); // read by a test; not needed otherwise
    if !output.status.success() {
        let log = String::from_utf8_lossy(&log);
        let errors: Vec<&str> = log.lines().filter(|l| l.contains("error")).take(5).collect();
        return Err(format!("nvcc refused {}: {}", source.path.display(), errors.join("; ")));
    }
    fs::write(&stamp, key).map_err(|e| format!("{}: {e}", stamp.display()))
}

/// A fingerprint of the headers that a file may include: those of `kernels/`, and of its own folder where that is another.
fn headers_of(source: &Source, kernels: &Path, common: u64) -> Result<u64, String> {
    match source.path.parent() {
        Some(folder) if folder != kernels => {
            let mut hasher = DefaultHasher::new();
            (common, headers(folder)?).hash(&mut hasher);
            Ok(hasher.finish())
        }
        _ => Ok(common),
    }
}

/// A fingerprint of all headers of a folder: a change in any recompiles everything.
fn headers(kernels: &Path) -> Result<u64, String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(kernels)
        .map_err(|e| format!("{}: {e}", kernels.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cuh"))
        .collect();
    paths.sort();
    let mut hasher = DefaultHasher::new();
    for path in paths {
        fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// nvcc's options for `sm_80,compute_90,...`.
fn gencodes(archs: &str) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    for arch in archs.split([',', ' ', ';']).filter(|a| !a.is_empty()) {
        let Some((kind, number)) = arch.split_once('_').filter(|(kind, _)| matches!(*kind, "sm" | "compute")) else {
            return Err(format!("DDIM_CUDA_ARCHS: {arch:?} is neither sm_NN nor compute_NN"));
        };
        options.push("-gencode".into());
        options.push(format!("arch=compute_{number},code={kind}_{number}"));
    }
    Ok(options)
}

/// The first nvcc that runs: NVCC, CUDA_HOME, a `.cuda/` folder of the repository or a Python environment filled from PyPI,
/// /usr/local/cuda, PATH.
fn find(root: &Path) -> Option<PathBuf> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut candidates: Vec<PathBuf> = env("NVCC").into_iter().collect();
    candidates.extend(["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env).map(|home| home.join("bin/nvcc")));
    candidates.push(root.join(".cuda/nvidia/cu13/bin/nvcc"));
    for venv in env("VIRTUAL_ENV").into_iter().chain([root.join(".cuda"), root.join(".venv")]) {
        let libs = fs::read_dir(venv.join("lib")).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
        candidates.extend(libs.map(|lib| lib.join("site-packages/nvidia/cu13/bin/nvcc")));
    }
    candidates.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    candidates.push(PathBuf::from("nvcc"));
    let runs = |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output().is_ok_and(|o| o.status.success());
    candidates.into_iter().find(runs)
}
