//! What the kernels ask of memory, counted by the simulator's checker, against `kernels/budget.toml` and against the plan: an operation
//! should move each of its operands once. `cargo test --release --test kernel_counts -- --nocapture` prints the tables.
//!
//! Counted are a first training step and a sampling call of small networks of both families, with extents that are just large enough for sectors
//! and edges not to decide. An operation moves the distinct bytes of each of its launches, so that whatever one kernel hands to the next is
//! counted on both sides.

mod budget_support;

use std::collections::BTreeMap;
use std::io::Write;

use budget_support::{Budget, Bytes};
use ddim_engine::bench::kernels::launches;
use ddim_engine::bench::probe::Call;
use ddim_engine::config::unet::{DownBlock, UpBlock};
use ddim_engine::config::{Config, UnetConfig};
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::sim::{CountedLaunch, Counts, Sim};

/// What an operation may move, for each byte of its operands, where the budget does not say otherwise.
const RATIO: f64 = 1.15;
/// Operations with fewer bytes of operands are held to their budget together with the others of their name: sectors and edges decide alone.
const SMALL: u64 = 64 << 10;

/// Networks with the layers of the presets `seed` and `unet2d-32` in small; smaller ones for arithmetic of which only the kernels count.
fn networks(arithmetic: Arithmetic) -> Vec<(&'static str, Config)> {
    let whole = arithmetic == Arithmetic::Bf16;
    let seed = Config {
        image_size: if whole { 32 } else { 16 },
        widths: vec![32, 64],
        block_depth: 1,
        batch_size: 2,
        ..Config::seed_preset()
    };
    let unet = Config {
        image_size: 16,
        batch_size: 1,
        unet: Some(UnetConfig {
            block_out_channels: vec![64, if whole { 128 } else { 64 }],
            layers_per_block: 1,
            down_block_types: vec![DownBlock::DownBlock2D, DownBlock::AttnDownBlock2D],
            up_block_types: vec![UpBlock::AttnUpBlock2D, UpBlock::UpBlock2D],
            attention_head_dim: Some(64),
            norm_num_groups: 32,
            dropout: 0.1,
            ..UnetConfig::default()
        }),
        ..Config::unet2d_tiny_preset()
    };
    vec![("seed", seed), ("unet2d", unet)]
}

/// Operations of the same name, extents and options.
struct Row {
    call: Call,
    calls: u64,
    /// Bytes of operands of all calls.
    plan: u64,
    kernels: String,
    counts: Counts,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.counts.distinct_bytes() as f64 / self.plan as f64
    }
}

/// The operations that `config` asks for, and all launches.
fn count(gpu: &Gpu<Sim>, config: &Config, sampling: bool) -> (Vec<Row>, Vec<CountedLaunch>) {
    gpu.launcher().take_counts();
    let watched = launches(gpu, config, sampling).unwrap();
    let mut counted = gpu.launcher().take_counts();
    let of_operations: usize = watched.iter().map(|w| w.kernels.len()).sum();
    let mut counted_of_operations = counted.split_off(counted.len() - of_operations).into_iter();
    let (mut rows, mut all): (Vec<Row>, _) = (Vec::new(), Vec::new());
    for watched in watched {
        let mut counts = Counts::default();
        for kernel in &watched.kernels {
            let launch = counted_of_operations.next().expect("as many as were noted");
            assert_eq!(launch.kernel, *kernel, "{:?}", watched.call);
            counts += launch.counts;
            all.push(launch);
        }
        if watched.kernels.is_empty() {
            continue; // copies and fills are the driver's
        }
        let call = watched.call;
        let same = |row: &&mut Row| {
            (row.call.operation, &row.call.shape, &row.call.options) == (call.operation, &call.shape, &call.options)
        };
        match rows.iter_mut().find(same) {
            Some(row) => {
                row.calls += 1;
                row.plan += call.bytes;
                row.counts += counts;
            }
            None => {
                let kernels = watched.kernels.join("+");
                rows.push(Row { plan: call.bytes, call, calls: 1, kernels, counts });
            }
        }
    }
    (rows, all)
}

/// What is known of a kernel's launches.
#[derive(Default)]
struct Launches {
    launches: u64,
    dynamic: u32,
    counts: Counts,
}

fn print_rows(title: &str, rows: &[Row]) {
    println!("\n{title}");
    println!(
        "{:>9} {:>9} {:>5} {:>5} {:>6} {:>6}  operation",
        "plan KB", "moved KB", "ratio", "asked", "16 B", "banks"
    );
    for row in rows {
        let c = &row.counts;
        let asked = (c.sectors * Counts::SECTOR) as f64 / c.distinct_bytes().max(1) as f64;
        println!(
            "{:9.1} {:9.1} {:5.2} {asked:5.1} {:5.0}% {:5.0}%  {} {} {} x{}: {}",
            row.plan as f64 / 1e3,
            c.distinct_bytes() as f64 / 1e3,
            row.ratio(),
            100.0 * c.wide_share(),
            100.0 * c.extra_wavefronts(),
            row.call.operation,
            row.call.shape,
            row.call.options,
            row.calls,
            row.kernels,
        );
    }
}

/// Rows whose ratio must be held: large ones, and the sum of the small ones of an operation.
fn held(rows: &[Row]) -> Vec<(String, String, f64)> {
    let mut held = Vec::new();
    let mut small: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for row in rows {
        if row.plan / row.calls >= SMALL {
            let title = format!("{} {} {}", row.call.operation, row.call.shape, row.call.options);
            held.push((row.call.operation.to_string(), title, row.ratio()));
        } else {
            let sum = small.entry(row.call.operation).or_default();
            *sum = (sum.0 + row.counts.distinct_bytes(), sum.1 + row.plan);
        }
    }
    for (operation, (moved, plan)) in small {
        if plan >= SMALL {
            held.push((operation.to_string(), format!("{operation}, small ones together"), moved as f64 / plan as f64));
        }
    }
    held
}

fn up(value: f64) -> f64 {
    (value * 100.0 - 1e-6).ceil() / 100.0 + 0.0 // never -0
}

/// Holds a kernel to its entry, or makes the entry.
fn hold_kernel(name: &str, found: &Launches, entry: &mut budget_support::Kernel, over: &mut Vec<String>) {
    let (wide, conflicts) = (found.counts.wide_share(), found.counts.extra_wavefronts());
    if budget_support::writes() {
        entry.dynamic = Some(found.dynamic);
        entry.wide = Some((wide * 100.0 + 1e-6).floor() / 100.0);
        entry.conflicts = Some(up(conflicts));
        return;
    }
    let mut complain = |what: &str, found: f64, budget: Option<f64>| {
        over.push(format!("{name}: {what} {found:.3}, budget {budget:?}"));
    };
    if entry.dynamic.is_none_or(|most| found.dynamic > most) {
        complain("bytes of dynamic shared memory", f64::from(found.dynamic), entry.dynamic.map(f64::from));
    }
    if entry.wide.is_none_or(|least| wide < least - 1e-9) {
        complain("share of 16-byte accesses", wide, entry.wide);
    }
    if entry.conflicts.is_none_or(|most| conflicts > most + 1e-9) {
        complain("extra wavefronts", conflicts, entry.conflicts);
    }
}

#[test]
fn kernels_move_what_was_planned() {
    if let Err(why) = Sim::checked() {
        std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).ok();
        return;
    }
    let mut budget = Budget::read();
    budget.matches_the_kernels();
    let mut kernels: BTreeMap<String, Launches> = BTreeMap::new();
    let mut ratios = Vec::new();
    for arithmetic in [Arithmetic::Bf16, Arithmetic::Tf32, Arithmetic::Fp32] {
        for (name, config) in networks(arithmetic) {
            for sampling in [false, true].into_iter().take(if arithmetic == Arithmetic::Bf16 { 2 } else { 1 }) {
                let gpu = Gpu::new(Sim::checked().unwrap(), arithmetic);
                gpu.launcher().count_launches().unwrap();
                let began = std::time::Instant::now();
                let (rows, launches) = count(&gpu, &config, sampling);
                let what = if sampling { "sampling" } else { "a training step" };
                print_rows(&format!("{name} {arithmetic}, {what} ({:.1} s)", began.elapsed().as_secs_f64()), &rows);
                ratios.extend(held(&rows));
                for launch in launches {
                    let sum = kernels.entry(launch.kernel).or_default();
                    sum.launches += 1;
                    sum.dynamic = sum.dynamic.max(launch.config.shared);
                    sum.counts += launch.counts;
                }
            }
        }
    }
    let mut over = Vec::new();
    println!("\n{:>8} {:>8} {:>6} {:>6} {:>6}  kernel", "launches", "shared", "sect.", "16 B", "banks");
    for (name, found) in &kernels {
        let c = &found.counts;
        println!(
            "{:8} {:8} {:6.2} {:5.0}% {:5.0}%  {name}",
            found.launches,
            found.dynamic,
            c.sectors as f64 / c.fewest_sectors.max(1) as f64,
            100.0 * c.wide_share(),
            100.0 * c.extra_wavefronts(),
        );
        if let Some(entry) = budget.kernels.get_mut(name) {
            hold_kernel(name, found, entry, &mut over);
        }
    }
    println!("\nlines of kernels that cost more than they had to:");
    let lines = Sim::checked().unwrap().take_costly_lines();
    lines.lines().take(60).for_each(|line| println!("  {line}"));
    for (name, entry) in &mut budget.kernels {
        let counted = kernels.contains_key(name);
        if !counted && budget_support::writes() {
            (entry.dynamic, entry.wide, entry.conflicts) = (None, None, None);
        }
        if !counted && entry.wide.is_some() {
            over.push(format!("{name} has a budget of accesses, but this test no longer launches it"));
        }
    }
    let not_counted: Vec<&String> = budget.kernels.keys().filter(|name| !kernels.contains_key(*name)).collect();
    println!("\n{} of {} kernels counted; not: {not_counted:?}", kernels.len(), budget.kernels.len());
    hold_bytes(&ratios, &mut budget, &mut over);
    budget.write();
    assert!(over.is_empty(), "more than kernels/budget.toml allows:\n{}", over.join("\n"));
}

/// Holds operations to 1.15 or to what the budget gives them.
fn hold_bytes(ratios: &[(String, String, f64)], budget: &mut Budget, over: &mut Vec<String>) {
    let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
    for (operation, title, ratio) in ratios {
        let worst = worst.entry(operation).or_default();
        *worst = worst.max(*ratio);
        let most = budget.bytes.iter().find(|b| b.operation == *operation).map_or(RATIO, |b| b.ratio);
        if *ratio > most && !budget_support::writes() {
            over.push(format!("{title}: moves {ratio:.2} times its operands, budget {most}"));
        }
    }
    if budget_support::writes() {
        let old = std::mem::take(&mut budget.bytes);
        for (operation, ratio) in worst.into_iter().filter(|(_, ratio)| *ratio > RATIO) {
            let why = old.iter().find(|b| b.operation == operation).map_or(String::new(), |b| b.why.clone());
            budget.bytes.push(Bytes { operation: operation.into(), ratio: up(ratio), why });
        }
    }
    for exception in &budget.bytes {
        if exception.why.trim().is_empty() {
            over.push(format!("[[bytes]] of {}: say why", exception.operation));
        }
        if !ratios.iter().any(|(operation, _, ratio)| *operation == exception.operation && *ratio > RATIO) {
            over.push(format!("[[bytes]] of {} is not needed any more", exception.operation));
        }
    }
}
