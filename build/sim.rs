//! The simulator: the kernel files and its runtime, compiled with g++ in two variants that live in one program.
//!
//! The fast one is compiled with all optimisations. The checker is compiled with the instrumentation of `-fsanitize=thread`, whose calls
//! go to functions of our own that find races, accesses out of bounds and reads of what was never written. Both define the same symbols,
//! so the checker is linked into one relocatable object, in which only its C interface, renamed, stays visible.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::table::Source;
use crate::write_if_changed;

/// What was built.
pub struct Simulator {
    /// Static libraries to link, in order.
    pub archives: Vec<PathBuf>,
    /// The checker is among them.
    pub has_checker: bool,
}

/// A file with kernels.
pub struct KernelFile {
    pub path: PathBuf,
    pub names: Vec<String>,
    /// Put in front of each name.
    pub prefix: String,
    /// A comment for the translation unit. When it changes, the file is compiled again.
    pub note: String,
}

impl KernelFile {
    pub fn new(source: &Source) -> Self {
        let (prefix, note) = (String::new(), String::new());
        KernelFile { path: source.path.clone(), names: source.kernel_names(), prefix, note }
    }
}

/// The C interface of the runtime (`simt_*`; the checker's is `simtc_*`).
const INTERFACE: [&str; 10] = [
    "register_all",
    "find",
    "nparams",
    "param_size",
    "malloc",
    "free",
    "launch",
    "set_option",
    "counts",
    "count_lines",
];
/// The runtime, but for what differs between the variants.
const RUNTIME: [&str; 7] =
    ["fibers.cpp", "barriers.cpp", "copies.cpp", "tensor.cpp", "memory.cpp", "lines.cpp", "launch.cpp"];
/// `-fno-gnu-unique`: symbols that the linker would merge between the variants become ordinary ones that can be hidden.
/// `-gdwarf-4`: the table of lines that `lines.cpp` reads, see [`LINES`].
/// `-fstack-clash-protection`: a stack that is too small meets its guard page, however large a function's variables are.
const FLAGS: &str =
    "-std=c++17 -march=x86-64-v3 -g1 -gdwarf-4 -fPIC -fno-extern-tls-init -fno-gnu-unique -fstack-clash-protection -w";
/// Only the table of lines stays of what g++ writes for debuggers, which is ten times as large, under a name that stripping the program
/// leaves alone.
const LINES: [&str; 3] =
    ["--remove-section=.debug_*", "--remove-section=!.debug_line", "--rename-section=.debug_line=.simt_lines"];
/// Of the runtime in both variants, and of kernels in the fast one.
const FAST: &str = "-O3";
const CHECKER: &str = "-DSIMT_CHECKER -Dsimt_tls_anchor=simtc_tls_anchor";
const CHECKED_KERNELS: &str = "-O1 -fsanitize=thread,bounds,alignment --param=tsan-instrument-func-entry-exit=0";

/// Objects, and the flags that are common to them.
type Variant = (Vec<PathBuf>, Vec<String>);

/// One file to compile.
struct Unit {
    source: PathBuf,
    /// The kernel file that it includes.
    kernels: Option<PathBuf>,
    /// Headers beside that file, where it lies in a folder of its own.
    headers: Vec<PathBuf>,
    object: PathBuf,
    flags: Vec<String>,
}

/// Compiles the simulator of these kernels. `planted`: kernels that only the checker gets.
pub fn build_simulator(
    gxx: &Path,
    kernels: &Path,
    files: &[KernelFile],
    planted: &[KernelFile],
    out: &Path,
) -> Result<Simulator, String> {
    fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let (sim, ladder) = (kernels.join("sim"), kernels.join("ladder"));
    let ordinary: Vec<&KernelFile> = files.iter().collect();
    let registrations = write_registrations(&ordinary, "reg_all", out)?;
    let all: Vec<&KernelFile> = files.iter().chain(planted).collect();
    let checked_registrations = write_registrations(&all, "reg_all_checked", out)?;
    let include = |dir: &Path| vec!["-I".to_string(), dir.display().to_string()];
    let includes = [include(&sim.join("shim")), include(kernels), include(&sim)].concat();
    // Messages name files below these folders.
    let shorter = [kernels, &out.join("planted")].map(|dir| format!("-fmacro-prefix-map={}/=", dir.display()));
    let (mut units, mut variants) = (Vec::new(), Vec::new());
    for (variant, flags, kernel_flags, hooks, registrations) in [
        ("fast", "", FAST, &["nocheck.cpp"][..], &registrations),
        ("check", CHECKER, CHECKED_KERNELS, &["check.cpp", "count.cpp"], &checked_registrations),
    ] {
        let words = |text: &str| text.split(' ').filter(|w| !w.is_empty()).map(str::to_string).collect::<Vec<_>>();
        let base = [words(FLAGS), words(flags), includes.clone(), shorter.to_vec()].concat();
        let object = |source: &Path| {
            let stem = source.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            out.join(format!("{variant}_{stem}.o"))
        };
        let of_kernels = [base.clone(), words(kernel_flags), words("-x c++ -include simt.h")].concat();
        let mut objects = Vec::new();
        for (source, kernels) in registrations {
            let (object, source, kernels) = (object(source), source.clone(), kernels.clone());
            objects.push(object.clone());
            let headers = match kernels.as_ref().and_then(|file| file.parent()) {
                Some(folder) if folder.starts_with(&ladder) => headers_of(folder)?,
                _ => Vec::new(),
            };
            units.push(Unit { source, kernels, headers, object, flags: of_kernels.clone() });
        }
        for source in RUNTIME.iter().chain(hooks).map(|name| sim.join(name)) {
            objects.push(object(&source));
            let flags = [base.clone(), words(FAST)].concat();
            units.push(Unit { object: object(&source), source, kernels: None, headers: Vec::new(), flags });
        }
        variants.push((objects, base));
    }
    let headers = fingerprint(kernels)?;
    compile_all(gxx, &units, headers)?;
    let merged = |i: usize, name: &str| merge(gxx, &variants[i], headers, name, out);
    let fast = archive(&[merged(0, "fast")?], &out.join("libsimt_fast.a"))?;
    Ok(match merged(1, "check").and_then(|whole| checker(&whole, out)) {
        Ok(checker) => Simulator { archives: vec![fast, checker], has_checker: true },
        Err(why) => {
            println!("cargo::warning=the simulator's checker is left out: {why}");
            Simulator { archives: vec![fast], has_checker: false }
        }
    })
}

/// A translation unit for each kernel file that includes it and enters its kernels into the runtime's table, and one that calls all.
/// Returns (unit, kernel file).
fn write_registrations(
    files: &[&KernelFile],
    all: &str,
    out: &Path,
) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let (mut units, mut calls, mut declarations) = (Vec::new(), String::new(), String::new());
    for file in files.iter().filter(|file| !file.names.is_empty()) {
        let stem = file.path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let (stem, prefix) = (format!("{}{stem}", file.prefix), &file.prefix);
        let (mut renames, mut entries) = (String::new(), String::new());
        for name in &file.names {
            if !prefix.is_empty() {
                renames.push_str(&format!("#define {name} {prefix}{name}\n"));
            }
            // The kernel's name is the text of the argument, which a macro would not change there.
            entries.push_str(&format!("  SIMT_KERNEL({prefix}{name});\n"));
        }
        let unit = out.join(format!("reg_{stem}.cpp"));
        let (note, path) = (&file.note, &file.path);
        let text = format!("{note}{renames}#include {path:?}\nextern \"C\" void simt_reg_{stem}() {{\n{entries}}}\n");
        write_if_changed(&unit, &text)?;
        units.push((unit, Some(file.path.clone())));
        declarations.push_str(&format!("extern \"C\" void simt_reg_{stem}();\n"));
        calls.push_str(&format!("  simt_reg_{stem}();\n"));
    }
    let all = out.join(format!("{all}.cpp"));
    write_if_changed(&all, &format!("{declarations}extern \"C\" void simt_register_all() {{\n{calls}}}\n"))?;
    units.push((all, None));
    Ok(units)
}

/// Compiles what changed, as many at a time as there are cores.
fn compile_all(gxx: &Path, units: &[Unit], headers: u64) -> Result<(), String> {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).min(units.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = compile(gxx, unit, headers)
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
        None => Ok(()),
    }
}

fn compile(gxx: &Path, unit: &Unit, headers: u64) -> Result<(), String> {
    let read = |path: &PathBuf| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut text = vec![read(&unit.source)?, unit.kernels.as_ref().map_or(Ok(Vec::new()), read)?];
    for header in &unit.headers {
        text.push(read(header)?);
    }
    let mut hasher = DefaultHasher::new();
    (text, headers, gxx, &unit.flags).hash(&mut hasher);
    let (key, stamp) = (hasher.finish().to_string(), unit.object.with_extension("stamp"));
    if unit.object.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(());
    }
    let mut command = Command::new(gxx);
    command.args(&unit.flags).arg("-c").arg(&unit.source).arg("-o").arg(&unit.object);
    run(command)?;
    fs::write(&stamp, key).map_err(|e| format!("{}: {e}", stamp.display()))
}

/// Headers of a folder, in order.
fn headers_of(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let is_header = |path: &PathBuf| path.extension().is_some_and(|e| e == "cuh");
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(is_header).collect();
    paths.sort();
    Ok(paths)
}

/// A fingerprint of the headers of kernels and runtime: a change in any recompiles everything.
fn fingerprint(kernels: &Path) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    for (folder, endings) in [("", &["cuh"][..]), ("sim", &["h"]), ("sim/shim", &["h"]), ("sim/tests", &["cuh"])] {
        let folder = kernels.join(folder);
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let is_header = |p: &PathBuf| p.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e));
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(is_header).collect();
        paths.sort();
        for path in paths {
            fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?.hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

fn archive(objects: &[PathBuf], archive: &Path) -> Result<PathBuf, String> {
    fs::remove_file(archive).ok(); // `ar` would add to it
    let mut command = Command::new("ar");
    command.arg("rcs").arg(archive).args(objects);
    run(command)?;
    Ok(archive.to_path_buf())
}

/// One object of a variant, `NAME_all.o`, that knows its static shared arrays and has nothing that only a debugger would want.
///
/// A static shared array is a thread-local variable of a function, which nothing outside of the function can name. As soon as all of them
/// lie in one section, their distances from each other stay: a table of them is compiled and linked to the rest. Then the program may be
/// stripped of its symbols. Tables of lines are renamed only here, since one may tell of a function of which another object has the
/// copy that stays, and linkers tolerate this under the name that debuggers know alone.
fn merge(gxx: &Path, (objects, flags): &Variant, headers: u64, name: &str, out: &Path) -> Result<PathBuf, String> {
    let [script, linked, whole] =
        ["tls.ld".to_string(), format!("{name}_linked.o"), format!("{name}_all.o")].map(|file| out.join(file));
    write_if_changed(&script, "SECTIONS { .tbss 0 : { *(.tbss .tbss.*) } }\n")?;
    let link = |objects: &[PathBuf], whole: &Path| {
        let mut command = Command::new("ld");
        command.args(["-r", "--force-group-allocation", "-T"]).arg(&script).arg("-o").arg(whole).args(objects);
        run(command)
    };
    link(objects, &linked)?;
    let mut command = Command::new("readelf");
    command.arg("-sW").arg(&linked);
    let arrays = static_arrays(&run(command)?)?;
    let source = out.join(format!("{name}_arrays.cpp"));
    let text =
        format!("#include \"runtime.h\"\nconst std::vector<simt::Region> simt::static_arrays = {{\n{arrays}}};\n");
    write_if_changed(&source, &text)?;
    let (object, flags) = (source.with_extension("o"), flags.to_vec());
    let table = Unit { object, source, kernels: None, headers: Vec::new(), flags };
    compile(gxx, &table, headers)?;
    link(&[linked, table.object], &whole)?;
    let mut command = Command::new("objcopy");
    command.args(LINES).arg(&whole);
    run(command)?;
    Ok(whole)
}

/// Entries of the table of static shared arrays: symbol `_ZZ<function>E<name>`, distance from the anchor, bytes. `symbols` is what
/// `readelf -sW` tells: number, value, size, type, binding, visibility, section, name.
fn static_arrays(symbols: &str) -> Result<String, String> {
    let mut found = Vec::new();
    let mut anchor = None;
    for line in symbols.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[_, value, size, "TLS", _, _, _, name] = words.as_slice() else { continue };
        let at = i64::from_str_radix(value, 16).map_err(|e| format!("readelf: {value}: {e}"))?;
        if name.ends_with("_tls_anchor") {
            anchor = Some(at);
        } else if name.starts_with("_ZZ") && !name.starts_with("_ZZN4simt") {
            found.push((name, at, size));
        }
    }
    let anchor = anchor.ok_or("readelf: the simulator's anchor of thread-local variables is not there")?;
    Ok(found.iter().map(|(name, at, size)| format!("  {{\"{name}\", {}, {size}}},\n", at - anchor)).collect())
}

/// The checker as an archive of its one object, which then shows nothing but its renamed interface.
fn checker(whole: &Path, out: &Path) -> Result<PathBuf, String> {
    let [renamed, hidden] = ["check_renamed.o", "check_hidden.o"].map(|name| out.join(name));
    let write = |name: &str, lines: Vec<String>| {
        let path = out.join(name);
        fs::write(&path, lines.join("\n") + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
        Ok::<_, String>(path)
    };
    let names = write("interface.names", INTERFACE.iter().map(|f| format!("simt_{f} simtc_{f}")).collect())?;
    let keep = write("interface.keep", INTERFACE.iter().map(|f| format!("simtc_{f}")).collect())?;
    let mut command = Command::new("objcopy");
    command.arg(format!("--redefine-syms={}", names.display())).arg(whole).arg(&renamed);
    run(command)?;
    let mut command = Command::new("objcopy");
    command.arg(format!("--keep-global-symbols={}", keep.display())).arg(&renamed).arg(&hidden);
    run(command)?;
    archive(&[hidden], &out.join("libsimt_check.a"))
}

/// What `command` printed.
fn run(mut command: Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let log = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = log.lines().filter(|l| l.contains("error")).take(5).collect();
    let errors = if errors.is_empty() { log.lines().take(3).collect() } else { errors };
    Err(format!("{program} failed: {}", errors.join("; ")))
}
