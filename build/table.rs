//! The table of kernels: what `kernels/*.cu` and `kernels/ladder/*.cu` define, read from their text.
//!
//! Two conventions make this possible without a C++ parser: a kernel takes one struct by value, spelled
//! `extern "C" __global__ void name(const __grid_constant__ Args a)`, and the struct's size is asserted as
//! `static_assert(sizeof(Args) == 96, ...)`. Constants that Rust needs are lines of the form
//! `static constexpr int NAME = 128;  // rust`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::nvcc::Images;

/// A kernel of a source file.
pub struct Kernel {
    /// Its name, which is that of the symbol.
    pub name: String,
    /// Bytes of its parameter.
    pub args_size: usize,
}

/// A `.cu` file.
pub struct Source {
    pub path: PathBuf,
    pub stem: String,
    pub kernels: Vec<Kernel>,
    pub constants: Vec<(String, String)>,
}

impl Source {
    pub fn kernel_names(&self) -> Vec<String> {
        self.kernels.iter().map(|k| k.name.clone()).collect()
    }
}

/// Reads all kernels of a folder.
pub fn scan(folder: &Path) -> Result<Vec<Source>, String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(|e| format!("{}: {e}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .collect();
    paths.sort();
    let mut texts = Vec::new();
    let (mut sizes, mut owners) = (BTreeMap::new(), BTreeMap::new());
    for path in &paths {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        sizes.extend(struct_sizes(&strip_comments(&text)));
        texts.push(text);
    }
    let mut sources = Vec::new();
    for (path, text) in paths.iter().zip(&texts) {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_string();
        let mut kernels = Vec::new();
        for (name, args) in signatures(&strip_comments(text)).map_err(|what| format!("{}: {what}", path.display()))? {
            let Some(&args_size) = sizes.get(&args) else {
                let want = format!("static_assert(sizeof({args}) == BYTES, \"...\")");
                return Err(format!(
                    "{}: kernel {name} takes {args}, whose size is asserted nowhere: {want}",
                    path.display()
                ));
            };
            if let Some(other) = owners.insert(name.clone(), stem.clone()) {
                return Err(format!("kernel {name} is defined in {other}.cu and in {stem}.cu"));
            }
            kernels.push(Kernel { name, args_size });
        }
        sources.push(Source { path: path.clone(), stem, kernels, constants: constants(text) });
    }
    sources.retain(|s| !s.kernels.is_empty() || !s.constants.is_empty());
    Ok(sources)
}

/// Refuses names of the ladder that could be taken for the engine's: images and kernels are found by name alone.
pub fn check_ladder(sources: &[Source], ladder: &[Source]) -> Result<(), String> {
    for step in ladder {
        let path = step.path.display();
        if sources.iter().any(|source| source.stem == step.stem) {
            return Err(format!("{path}: kernels/ has a file of this name too: rename the one of the ladder"));
        }
        let names = step.kernels.iter().map(|k| &k.name).chain(step.constants.iter().map(|(name, _)| name));
        if let Some(name) = names.into_iter().find(|name| !name.to_lowercase().starts_with("ladder_")) {
            return Err(format!("{path}: {name}: names of the ladder begin with ladder_"));
        }
    }
    Ok(())
}

fn strip_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    loop {
        let next = match (rest.find("//"), rest.find("/*")) {
            (None, None) => break,
            (line, block) if line.unwrap_or(usize::MAX) < block.unwrap_or(usize::MAX) => (line.unwrap_or(0), "\n"),
            (_, block) => (block.unwrap_or(0), "*/"),
        };
        out.push_str(&rest[..next.0]);
        out.push(' ');
        rest = &rest[next.0 + 2..];
        match rest.find(next.1) {
            Some(end) => rest = &rest[end + if next.1 == "\n" { 0 } else { 2 }..],
            None => rest = "",
        }
    }
    out + rest
}

/// (struct, bytes) of every size assertion.
fn struct_sizes(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for part in text.split("static_assert(sizeof(").skip(1) {
        let Some((name, rest)) = part.split_once(')') else { continue };
        let digits: String =
            rest.trim_start().trim_start_matches("==").trim_start().chars().take_while(char::is_ascii_digit).collect();
        if let Ok(bytes) = digits.parse() {
            found.push((name.trim().to_string(), bytes));
        }
    }
    found
}

/// (kernel, struct) of every kernel.
fn signatures(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for part in text.split("extern \"C\" __global__").skip(1) {
        let mut rest = part.trim_start();
        // `void` and `__launch_bounds__(...)` in either order.
        for _ in 0..2 {
            rest = rest.strip_prefix("void").unwrap_or(rest).trim_start();
            if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
                rest = after_parentheses(bounds).ok_or("unbalanced __launch_bounds__")?.trim_start();
            }
        }
        let (name, rest) = rest.split_once('(').ok_or("a kernel without parameters")?;
        let (parameters, _) = rest.split_once(')').ok_or("a kernel without end of parameters")?;
        let words: Vec<&str> = parameters.split_whitespace().collect();
        match words[..] {
            ["const", "__grid_constant__", args, _] => found.push((name.trim().to_string(), args.to_string())),
            _ => {
                let want = "(const __grid_constant__ Args a)";
                return Err(format!("kernel {} takes ({parameters}), expected {want}", name.trim()));
            }
        }
    }
    Ok(found)
}

/// What follows a balanced pair of parentheses.
fn after_parentheses(text: &str) -> Option<&str> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[i + 1..]);
                }
            }
            _ => {}
        }
    }
    None
}

/// (name, value) of the lines marked `// rust`.
fn constants(text: &str) -> Vec<(String, String)> {
    let marked = text.lines().filter_map(|line| line.trim().strip_suffix("// rust"));
    let parse = |line: &str| {
        let (name, value) = line.trim().strip_prefix("static constexpr int ")?.split_once('=')?;
        Some((name.trim().to_string(), value.trim().trim_end_matches(';').trim().to_string()))
    };
    marked.filter_map(parse).collect()
}

/// The generated Rust file. `ladder`: the files of `kernels/ladder`, a table of their own behind the engine's.
pub fn render(
    sources: &[Source],
    ladder: &[Source],
    images: &Result<Images, String>,
    sim: &Result<(), String>,
) -> String {
    let mut text = String::from("// Generated by build.rs from kernels/*.cu and kernels/ladder/*.cu.\n\n");
    let all = entries(&mut text, "kernels", sources, 0);
    let (count, names) = (all.len(), all.join(", "));
    let _ = writeln!(
        text,
        "\n/// Every kernel of the engine, by index.\npub const ALL: [KernelEntry; {count}] = [{names}];\n"
    );
    let steps = entries(&mut text, "kernels/ladder", ladder, count);
    let (count, names) = (steps.len(), steps.join(", "));
    let _ = writeln!(
        text,
        "\n/// Every kernel of the ladder, which no operation launches; indices go on behind [`ALL`].\n\
         pub const LADDER: [KernelEntry; {count}] = [{names}];"
    );
    let files = images.as_ref().map_or(&[][..], |images| &images.files);
    let entries: Vec<String> =
        files.iter().map(|(stem, path)| format!("({stem:?}, include_bytes!({path:?}))")).collect();
    let _ = writeln!(text, "\n/// GPU images by module, empty where the build had no nvcc.");
    let _ = writeln!(text, "pub const IMAGES: &[(&str, &[u8])] = &[{}];", entries.join(", "));
    let architectures = images.as_ref().map_or("", |images| images.architectures.as_str());
    let _ = writeln!(text, "\n/// What they were compiled for.");
    let _ = writeln!(text, "pub const ARCHITECTURES: &str = {architectures:?};");
    let reports = images.as_ref().map_or(&[][..], |images| &images.reports);
    let reports: Vec<String> = (reports.iter())
        .map(|r| {
            let (kernel, arch, registers, shared) = (&r.kernel, &r.arch, r.registers, r.shared);
            format!("Ptxas {{ kernel: {kernel:?}, arch: {arch:?}, registers: {registers}, shared: {shared} }}")
        })
        .collect();
    let _ = writeln!(text, "\n/// What ptxas reports of each kernel, empty where the build had no nvcc.");
    let _ = writeln!(text, "pub const PTXAS: &[Ptxas] = &[{}];", reports.join(", "));
    let state = |built: Option<&String>| built.map_or("None".to_string(), |why| format!("Some({why:?})"));
    let _ = writeln!(text, "\n/// Why there are no GPU images, if so.");
    let _ = writeln!(text, "pub const NO_IMAGES: Option<&str> = {};", state(images.as_ref().err()));
    let _ = writeln!(text, "\n/// Why there is no simulator, if so.");
    let _ = writeln!(text, "pub const NO_SIMULATOR: Option<&str> = {};", state(sim.as_ref().err()));
    text
}

/// Writes a constant for each kernel, counted from `first`, and the constants that host code shares; returns the kernels' constants.
fn entries(text: &mut String, folder: &str, sources: &[Source], first: usize) -> Vec<String> {
    let mut all = Vec::new();
    for source in sources {
        let stem = &source.stem;
        for kernel in &source.kernels {
            let (name, constant, size) = (&kernel.name, kernel.name.to_uppercase(), kernel.args_size);
            let index = first + all.len();
            let _ = writeln!(
                text,
                "/// `{name}` of `{folder}/{stem}.cu`.\npub const {constant}: KernelEntry = KernelEntry {{ index: {index}, \
                 name: {name:?}, module: {stem:?}, args_size: {size} }};"
            );
            all.push(constant);
        }
        for (name, value) in &source.constants {
            let _ = writeln!(text, "/// Of `{folder}/{stem}`.\npub const {name}: u32 = {value};");
        }
    }
    all
}
