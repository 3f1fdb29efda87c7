//! What the GPU compiler said of the kernels, and what it made of them, against `kernels/budget.toml`. Needs a build with nvcc, and
//! cuobjdump for the instructions; a build without says that it skips.

mod budget_support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use budget_support::Budget;
use ddim_engine::kernels::{self, KernelEntry};

/// Registers of a multiprocessor, on every architecture that is compiled for.
const REGISTERS: u32 = 65_536;

/// The file is read and written by one test at a time.
static BUDGET: Mutex<()> = Mutex::new(());

/// One kernel on one architecture, as ptxas reports it.
#[derive(Debug)]
struct Report {
    kernel: String,
    arch: String,
    registers: u32,
    spilled: u32,
    stack: u32,
    /// Bytes of shared memory that it declares.
    shared: u32,
}

fn number_before(text: &str, unit: &str) -> u32 {
    let before = text.split(unit).next().unwrap_or("").trim_end();
    before.rsplit([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// All reports of a log of `nvcc -Xptxas -v`.
fn reports(log: &str) -> Vec<Report> {
    let mut found: Vec<Report> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let (kernel, arch) = (quoted.next().unwrap_or(""), quoted.nth(1).unwrap_or(""));
            let report =
                Report { kernel: kernel.into(), arch: arch.into(), registers: 0, spilled: 0, stack: 0, shared: 0 };
            found.push(report);
        } else if let Some(last) = found.last_mut() {
            if line.contains("bytes stack frame") {
                last.stack = number_before(line, " bytes stack frame");
                last.spilled = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            }
            if let Some((_, used)) = line.split_once("Used ") {
                last.registers = number_before(used, " registers");
                last.shared = if used.contains(" bytes smem") { number_before(used, " bytes smem") } else { 0 };
            }
        }
    }
    found
}

/// The engine's kernels, and those of the ladder.
fn all_kernels() -> impl Iterator<Item = &'static KernelEntry> {
    kernels::ALL.iter().chain(&kernels::LADDER)
}

fn logs() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("DDIM_PTXAS_LOGS"));
    let modules: std::collections::BTreeSet<&str> = all_kernels().map(|k| k.module).collect();
    let read = |module: &&str| {
        let path = folder.join(format!("{module}.ptxas.log"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, text)
    };
    modules.iter().map(read).collect()
}

/// The number in `__launch_bounds__(N` of a kernel's definition.
fn block_threads(kernel: &str) -> Option<u32> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let entries = std::fs::read_dir(folder.join("ladder")).unwrap().chain(std::fs::read_dir(&folder).unwrap());
    for entry in entries.flatten() {
        if entry.path().extension().is_none_or(|e| e != "cu") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        for definition in text.split("extern \"C\" __global__").skip(1) {
            let head = definition.split('{').next().unwrap_or("");
            if head.contains(&format!(" {kernel}(")) {
                let bounds = head.split_once("__launch_bounds__(")?.1;
                return bounds.split([',', ')']).next()?.trim().parse().ok();
            }
        }
    }
    None
}

/// Past the capture of the test harness: a skip must be seen.
fn say_skipped(why: impl std::fmt::Display) {
    std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).ok();
}

#[test]
fn every_kernel_has_a_budget() {
    let _alone = BUDGET.lock().unwrap_or_else(|e| e.into_inner());
    let mut budget = Budget::read();
    budget.matches_the_kernels();
    budget.write();
}

#[test]
fn no_kernel_spills_and_every_block_fits() {
    if let Some(why) = kernels::NO_IMAGES {
        say_skipped(format!("no GPU kernels in this build: {why}"));
        return;
    }
    let _alone = BUDGET.lock().unwrap_or_else(|e| e.into_inner());
    let mut budget = Budget::read();
    budget.matches_the_kernels();
    let (mut seen, mut over) = (BTreeMap::new(), Vec::new());
    for (path, log) in logs() {
        assert!(!log.contains("C7510") && !log.contains("C7508"), "{}: wgmma or setmaxnreg ignored", path.display());
        for report in reports(&log) {
            assert_eq!(report.spilled, 0, "{report:?} spills");
            assert_eq!(report.stack, 0, "{report:?} has a stack frame");
            assert!(report.registers > 0, "{report:?}");
            if let Some(threads) = block_threads(&report.kernel) {
                assert!(report.registers * threads <= REGISTERS, "{report:?} with {threads} threads");
            }
            over.extend(against(&report, &mut budget));
            seen.entry(report.kernel.clone()).or_insert_with(Vec::new).push((report.arch, report.registers));
        }
    }
    for kernel in all_kernels() {
        assert!(seen.contains_key(kernel.name), "ptxas reports nothing of {}", kernel.name);
    }
    for (kernel, archs) in &seen {
        println!("{kernel:<44} registers {archs:?}");
    }
    assert!(over.is_empty(), "more than kernels/budget.toml allows:\n{}", over.join("\n"));
    budget.write();
}

/// Where a report is over its budget; a budget that is to be written takes what is found.
fn against(report: &Report, budget: &mut Budget) -> Vec<String> {
    let Some(kernel) = budget.kernels.get_mut(&report.kernel) else { return Vec::new() };
    let mut over = Vec::new();
    let mut hold = |what: &str, budget: &mut Option<u32>, found: u32, restart: bool| {
        if budget_support::writes() {
            *budget = Some(if restart { found } else { found.max(budget.unwrap_or(0)) });
        } else if budget.is_none_or(|most| found > most) {
            let most = budget.map_or("none".to_string(), |most| most.to_string());
            over.push(format!("{}: {what}: {found}, budget {most}", report.kernel));
        }
    };
    if let Some(registers) = kernel.registers(&report.arch) {
        hold(&format!("registers on {}", report.arch), registers, report.registers, true);
    }
    // The same on all architectures, so far.
    hold("static shared memory", &mut kernel.static_shared, report.shared, report.arch == "sm_80");
    over
}

/// SASS of every kernel of an image, by (architecture, kernel).
fn disassemble(cuobjdump: &Path, image: &Path) -> BTreeMap<(String, String), String> {
    let output = Command::new(cuobjdump).arg("-sass").arg(image).output().unwrap();
    assert!(output.status.success(), "{}: {}", image.display(), String::from_utf8_lossy(&output.stderr));
    let (mut arch, mut kernel) = (String::new(), None);
    let mut found: BTreeMap<(String, String), String> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(name) = line.trim().strip_prefix("arch = ") {
            (arch, kernel) = (name.into(), None);
        } else if let Some(name) = line.trim().strip_prefix("Function : ") {
            kernel = Some(name.to_string());
        } else if let Some(kernel) = &kernel {
            let text = found.entry((arch.clone(), kernel.clone())).or_default();
            text.push_str(line);
            text.push('\n');
        }
    }
    found
}

/// Kernels whose product must run on tensor cores: those of convolutions and attention, but for packing, merging, rows' sums and the direct ones;
/// and the rungs of the ladder whose idea it is.
fn claims_tensor_cores(kernel: &str) -> bool {
    if kernel.starts_with("ladder_") {
        return ["ladder_conv3x3_3", "ladder_conv3x3_4", "ladder_attention_3"].contains(&kernel);
    }
    let other = ["direct", "pack", "merge", "reduce", "delta"];
    let products = ["conv_", "conv2d_", "attention_"];
    products.iter().any(|family| kernel.starts_with(family)) && !other.iter().any(|word| kernel.contains(word))
}

#[test]
fn products_use_tensor_cores_and_wide_accesses() {
    if let Some(why) = kernels::NO_IMAGES {
        say_skipped(format!("no GPU kernels in this build: {why}"));
        return;
    }
    let Some(cuobjdump) = cuobjdump() else {
        say_skipped("cuobjdump was found neither beside nvcc nor on PATH: instructions are not looked at");
        return;
    };
    let mut checked = 0;
    let images = Path::new(env!("DDIM_PTXAS_LOGS"));
    let _alone = BUDGET.lock().unwrap_or_else(|e| e.into_inner());
    let mut budget = Budget::read();
    budget.matches_the_kernels();
    let instruction_of = |budget: &Budget, kernel: &str| budget.kernels.get(kernel).and_then(|k| k.tensor.clone());
    let wanted =
        |name: &str| budget_support::writes() || claims_tensor_cores(name) || instruction_of(&budget, name).is_some();
    let modules: std::collections::BTreeSet<&str> =
        all_kernels().filter(|k| wanted(k.name)).map(|k| k.module).collect();
    let mut found = BTreeMap::new();
    for module in modules {
        for ((arch, kernel), sass) in disassemble(&cuobjdump, &images.join(format!("{module}.fatbin"))) {
            // The newest architecture of a fatbin comes last.
            let has = ["HGMMA", "HMMA"].into_iter().find(|instruction| sass.contains(instruction));
            found.insert(kernel.clone(), has);
            if let Some(must) = instruction_of(&budget, &kernel).filter(|_| !budget_support::writes()) {
                // HGMMA is Hopper's alone.
                let other = must == "HGMMA" && !arch.starts_with("sm_90");
                assert!(other || sass.contains(&must), "{kernel} on {arch}: no {must}, which its budget wants");
            }
            if !claims_tensor_cores(&kernel) {
                continue;
            }
            assert!(has.is_some(), "{kernel} on {arch}: no tensor-core instruction");
            let wide = ["LDG.E.128", "LDGSTS.E.BYPASS.128", "LDG.E.128.CONSTANT"];
            assert!(wide.iter().any(|w| sass.contains(w)), "{kernel} on {arch}: no 16-byte load from global memory");
            checked += 1;
        }
    }
    println!("{checked} kernels of products looked at");
    assert!(checked > 0);
    for (kernel, has) in found {
        let entry = budget.kernels.get_mut(&kernel);
        if let Some(entry) = entry.filter(|_| budget_support::writes()) {
            entry.tensor = has.map(str::to_string);
        }
    }
    budget.write();
}

fn cuobjdump() -> Option<PathBuf> {
    let beside = option_env!("DDIM_CUDA_BIN").map(|bin| Path::new(bin).join("cuobjdump"));
    let candidates = beside.into_iter().chain([PathBuf::from("cuobjdump")]);
    let runs = |c: &PathBuf| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success());
    candidates.into_iter().find(runs)
}

#[test]
fn the_log_reader_reads() {
    let log = "ptxas info    : Compiling entry function 'k' for 'sm_80'\nptxas info    : Function properties for k\n    \
               16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\nptxas info    : Used 18 registers, used 1 barriers, 2080 bytes smem, 400 bytes cmem[0]";
    let found = reports(log);
    assert_eq!(found.len(), 1);
    let r = &found[0];
    assert_eq!((r.kernel.as_str(), r.arch.as_str(), r.registers), ("k", "sm_80", 18));
    assert_eq!((r.spilled, r.stack, r.shared), (12, 16, 2080));
}
