//! The last test program of a `cargo test` run (programs run in the order of their names): how many operation cases ran on which device.

mod ops_support;

use std::collections::BTreeMap;
use std::io::Write;

use ops_support::devices::counts_file;

#[test]
fn operation_cases_of_this_run() {
    let text = std::fs::read_to_string(counts_file()).unwrap_or_default();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (device, n) in text.lines().filter_map(|line| line.split_once(' ')) {
        *counts.entry(device).or_default() += n.parse::<usize>().unwrap();
    }
    let of = |device: &str| counts.get(device).copied().unwrap_or(0);
    let line = format!(
        "operation cases: cpu {}, sim {} (skipped {}), cuda {} (skipped {})\n",
        of("cpu"),
        of("sim"),
        of("sim-skipped"),
        of("cuda"),
        of("cuda-skipped")
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    std::fs::remove_file(counts_file()).ok(); // the next run counts anew, should it get the same process number
}
