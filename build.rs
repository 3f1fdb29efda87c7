//! Builds the kernels of `kernels/` and `kernels/ladder/`: GPU images with nvcc, the simulator with g++, and one table of both.
//!
//! Neither compiler is needed: what is missing is left out, said in one line, and `ddim-engine doctor` says it again. No GPU is
//! looked for.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/planted.rs"]
mod planted;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/sim.rs"]
mod sim;
#[path = "build/table.rs"]
mod table;

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    for cfg in ["have_cuda_images", "have_sim", "have_sim_check"] {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    println!("cargo::rerun-if-env-changed=DDIM_KERNELS_OUT");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // Clippy's build scripts have another folder than those of a build: where both follow each other, as in CI, one of both saves
    // minutes. What lies there is known by its text, compiler and options.
    let shared =
        std::env::var_os("DDIM_KERNELS_OUT").filter(|folder| !folder.is_empty()).map(|folder| root.join(folder));
    if let Err(what) = run(&root, &out, shared.as_ref().unwrap_or(&out)) {
        // Not a warning: the sources of the kernels are wrong, and a table without them would not compile either.
        println!("cargo::error={what}");
    }
}

/// The table goes to `out`, compiled kernels to `compiled`.
fn run(root: &Path, out: &Path, compiled: &Path) -> Result<(), String> {
    let kernels = root.join("kernels");
    let sources = table::scan(&kernels)?;
    let ladder = table::scan(&kernels.join("ladder"))?;
    table::check_ladder(&sources, &ladder)?;
    let all: Vec<&table::Source> = sources.iter().chain(&ladder).collect();
    let images = nvcc::build(root, &kernels, &all, compiled);
    let simulator = simulator(&kernels, &all, compiled);
    let text = table::render(&sources, &ladder, &images, &simulator);
    write_if_changed(&out.join("kernels.rs"), &text)
}

/// The simulator, or why there is none.
fn simulator(kernels: &Path, sources: &[&table::Source], out: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=CXX");
    let target = std::env::var("TARGET").unwrap_or_default();
    let wanted = target.starts_with("x86_64-") && target.contains("-linux-gnu");
    let built = if !wanted {
        Err(format!("the simulator runs on x86_64 Linux, this build is for {target}"))
    } else {
        match find_gxx() {
            None => Err("g++ was not found: install it (Debian: apt install g++), or set CXX".to_string()),
            Some(gxx) => {
                let out = out.join("sim");
                // Kernels that test the simulator are in it, but not in the crate's table.
                let of_tests = table::scan(&kernels.join("sim/tests"));
                // A fault that no longer fits its kernel is a mistake in this repository, not something that a machine lacks.
                let planted = planted::write(kernels, &out.join("planted")).unwrap_or_else(|what| {
                    println!("cargo::error={what}");
                    Vec::new()
                });
                of_tests.and_then(|of_tests| {
                    let files: Vec<_> = sources.iter().copied().chain(&of_tests).map(sim::KernelFile::new).collect();
                    sim::build_simulator(&gxx, kernels, &files, &planted, &out)
                })
            }
        }
    };
    match built {
        Ok(simulator) => {
            println!("cargo::rustc-cfg=have_sim");
            if simulator.has_checker {
                println!("cargo::rustc-cfg=have_sim_check");
            }
            for archive in &simulator.archives {
                let (dir, name) = (archive.parent(), archive.file_stem().and_then(|n| n.to_str()));
                if let (Some(dir), Some(name)) = (dir, name) {
                    println!("cargo::rustc-link-search=native={}", dir.display());
                    println!("cargo::rustc-link-lib=static={}", name.trim_start_matches("lib"));
                }
            }
            println!("cargo::rustc-link-lib=dylib=stdc++");
            Ok(())
        }
        Err(why) => {
            println!("cargo::warning=no simulator in this build: {}", why.lines().next().unwrap_or_default());
            Err(why)
        }
    }
}

fn find_gxx() -> Option<PathBuf> {
    let named = std::env::var_os("CXX").filter(|name| !name.is_empty()).map(PathBuf::from);
    let candidates = named.into_iter().chain([PathBuf::from("g++")]);
    candidates.into_iter().find(|gxx| {
        // Clang answers to the same options but compiles the simulator's thread-local tricks differently.
        let output = std::process::Command::new(gxx).arg("--version").output();
        output.is_ok_and(|o| {
            o.status.success() && String::from_utf8_lossy(&o.stdout).contains("Free Software Foundation")
        })
    })
}

/// Writes a generated file, leaving it (and so what depends on it) alone where nothing changed.
fn write_if_changed(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
