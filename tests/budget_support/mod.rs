//! `kernels/budget.toml`: what each kernel may need. Two test programs hold the kernels to it, each to its half of an entry, and write
//! that half anew where `DDIM_WRITE_BUDGET` is set.

#![allow(dead_code)] // each test program uses a part

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use ddim_engine::kernels;
use serde::Deserialize;

/// The head of the file.
const HEAD: &str = "\
# What each kernel may need, and what it needs at present: a kernel that needs more fails a test.
#
#   DDIM_WRITE_BUDGET=1 cargo test --release --test kernels_compiled --test kernel_counts
#
# writes the entries anew from what is found (the reasons under [[bytes]] stay); a look at the difference says what a change costs.
#
# Of the compiler, tests/kernels_compiled.rs:
#   sm_80, sm_90a  registers of a thread, at most (nvcc 13.0.88)
#   static         bytes of shared memory that the kernel declares, at most
#   tensor         the tensor-core instruction that it must have
# Of the simulator's counters, tests/kernel_counts.rs, over all launches of that test; absent where it does not launch the kernel:
#   dynamic        bytes of shared memory that a launch asks for, at most
#   wide           share of the bytes in global memory that 16-byte accesses move, at least
#   conflicts      wavefronts that conflicts of banks add in shared memory, for one without, at most
";
/// The head of the second table.
const BYTES_HEAD: &str = "
# Operations whose kernels may move more than 1.15 times the bytes of their operands: up to `ratio` times, and why.
";

/// What a kernel may need.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    pub sm_80: Option<u32>,
    pub sm_90a: Option<u32>,
    #[serde(rename = "static")]
    pub static_shared: Option<u32>,
    pub tensor: Option<String>,
    pub dynamic: Option<u32>,
    pub wide: Option<f64>,
    pub conflicts: Option<f64>,
}

impl Kernel {
    /// The budget of registers on an architecture.
    pub fn registers(&mut self, arch: &str) -> Option<&mut Option<u32>> {
        match arch {
            "sm_80" => Some(&mut self.sm_80),
            "sm_90a" => Some(&mut self.sm_90a),
            _ => None,
        }
    }
}

/// An operation that may move more than its operands.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bytes {
    pub operation: String,
    pub ratio: f64,
    pub why: String,
}

/// The file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub kernels: BTreeMap<String, Kernel>,
    #[serde(default)]
    pub bytes: Vec<Bytes>,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels/budget.toml")
}

/// Whether the file is to be written anew.
pub fn writes() -> bool {
    std::env::var_os("DDIM_WRITE_BUDGET").is_some_and(|value| !value.is_empty() && value != "0")
}

impl Budget {
    /// Reads the file.
    pub fn read() -> Budget {
        let path = path();
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
            Err(_) if writes() => Budget::default(),
            Err(e) => panic!("{}: {e}; DDIM_WRITE_BUDGET=1 makes it", path.display()),
        }
    }

    /// Has an entry for every kernel and no other, or fails; where the file is written, makes it so.
    pub fn matches_the_kernels(&mut self) {
        let known: Vec<&str> = kernels::ALL.iter().map(|k| k.name).collect();
        if writes() {
            self.kernels.retain(|name, _| known.contains(&name.as_str()));
            for name in &known {
                self.kernels.entry(name.to_string()).or_default();
            }
            return;
        }
        let missing: Vec<&&str> = known.iter().filter(|name| !self.kernels.contains_key(**name)).collect();
        let stale: Vec<&String> = self.kernels.keys().filter(|name| !known.contains(&name.as_str())).collect();
        let what = "kernels/budget.toml (DDIM_WRITE_BUDGET=1 cargo test --release --test kernels_compiled --test kernel_counts)";
        assert!(missing.is_empty(), "{what} lacks {missing:?}");
        assert!(stale.is_empty(), "{what} has entries of kernels that do not exist: {stale:?}");
    }

    /// Writes the file where that is wanted.
    pub fn write(&self) {
        if !writes() {
            return;
        }
        let mut text = format!("{HEAD}[kernels]\n");
        for (name, k) in &self.kernels {
            let mut fields = Vec::new();
            let mut add =
                |name: &str, value: Option<String>| fields.extend(value.map(|value| format!("{name} = {value}")));
            add("sm_80", k.sm_80.map(|v| v.to_string()));
            add("sm_90a", k.sm_90a.map(|v| v.to_string()));
            add("static", k.static_shared.map(|v| v.to_string()));
            add("tensor", k.tensor.as_ref().map(|v| format!("{v:?}")));
            add("dynamic", k.dynamic.map(|v| v.to_string()));
            add("wide", k.wide.map(|v| format!("{v:?}")));
            add("conflicts", k.conflicts.map(|v| format!("{v:?}")));
            writeln!(text, "{name} = {{ {} }}", fields.join(", ")).unwrap();
        }
        text.push_str(BYTES_HEAD);
        for b in &self.bytes {
            writeln!(text, "[[bytes]]\noperation = {:?}\nratio = {:?}\nwhy = {:?}", b.operation, b.ratio, b.why)
                .unwrap();
        }
        std::fs::write(path(), text).unwrap();
        println!("{} is written", path().display());
    }
}
