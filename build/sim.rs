//! The simulator: the kernel files and its runtime, compiled with g++.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What was built.
pub struct Simulator {
    /// Static libraries to link, in order.
    pub archives: Vec<PathBuf>,
    /// The race and bounds checker is among them.
    pub has_checker: bool,
}

/// Compiles the simulator. `kernel_files`: each file with the names of its kernels.
pub fn build_simulator(
    gxx: &Path,
    kernels: &Path,
    kernel_files: &[(PathBuf, Vec<String>)],
    out: &Path,
) -> Result<Simulator, String> {
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let write = |path: &Path, text: String| fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
    let (mut units, mut calls) = (Vec::new(), String::new());
    let mut declarations = String::new();
    for (file, names) in kernel_files.iter().filter(|(_, names)| !names.is_empty()) {
        let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let registrations: String = names.iter().map(|n| format!("  SIMT_KERNEL({n});\n")).collect();
        let unit = out.join(format!("reg_{stem}.cpp"));
        write(&unit, format!("#include {file:?}\nextern \"C\" void simt_reg_{stem}() {{\n{registrations}}}\n"))?;
        units.push(unit);
        declarations.push_str(&format!("extern \"C\" void simt_reg_{stem}();\n"));
        calls.push_str(&format!("  simt_reg_{stem}();\n"));
    }
    let all = out.join("reg_all.cpp");
    write(&all, format!("{declarations}extern \"C\" void simt_register_all() {{\n{calls}}}\n"))?;
    units.push(all);
    let sim = kernels.join("sim");
    units.extend([sim.join("simt.cpp"), sim.join("simt_nocheck.cpp")]);
    let mut objects = Vec::new();
    for unit in &units {
        let object = out.join(unit.file_name().unwrap_or_default()).with_extension("o");
        let mut command = Command::new(gxx);
        command.args("-std=c++17 -O3 -march=x86-64-v3 -g1 -fPIC -fno-extern-tls-init -w".split(' '));
        command.arg("-I").arg(sim.join("shim")).arg("-I").arg(kernels).arg("-I").arg(&sim);
        if unit.starts_with(out) {
            command.args(["-x", "c++", "-include", "simt.h"]);
        }
        let output = command.arg("-c").arg(unit).arg("-o").arg(&object).output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(format!("g++ refused {}: {}", unit.display(), String::from_utf8_lossy(&output.stderr)));
        }
        objects.push(object);
    }
    let archive = out.join("libsimt_kernels.a");
    fs::remove_file(&archive).ok(); // `ar` would add to it
    let status = Command::new("ar").arg("rcs").arg(&archive).args(&objects).status().map_err(|e| e.to_string())?;
    if !status.success() {
        return Err("ar failed".into());
    }
    Ok(Simulator { archives: vec![archive], has_checker: false })
}
