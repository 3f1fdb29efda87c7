//! Devices with kernels as test devices, and the count of cases that ran on each.
//!
//! Every test program writes its counts to a file of the whole `cargo test` run; `zz_operation_cases` prints the sums.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use ddim_engine::device::cuda::{self, Cuda};
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::sim::Sim;
use ddim_engine::kernels;

use super::{Leads, with_leads};

/// Why no case can run on the simulator, if so.
pub fn no_sim() -> Option<String> {
    kernels::NO_SIMULATOR.map(str::to_string)
}

/// Why no case can run on a GPU, if so.
pub fn no_cuda() -> Option<String> {
    kernels::NO_IMAGES.map(str::to_string).or_else(|| cuda::probe().err())
}

/// The simulator with poisoned memory.
pub fn sim(arithmetic: Arithmetic) -> Gpu<Sim> {
    let gpu = Gpu::new(Sim::new().unwrap(), arithmetic);
    gpu.poison_new_buffers();
    gpu
}

/// The first GPU with poisoned memory.
pub fn cuda(arithmetic: Arithmetic) -> Gpu<Cuda> {
    let gpu = Gpu::new(Cuda::new(0).unwrap(), arithmetic);
    gpu.poison_new_buffers();
    gpu
}

/// Says that something is skipped, past the capture of the test harness: it must be seen.
pub fn say_skipped(why: impl std::fmt::Display) {
    std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).ok();
}

/// Runs a case on a device if it can, and counts it.
pub fn run_or_skip(device: &str, missing: Option<String>, case: impl FnOnce()) {
    match missing {
        None => {
            case();
            count(device, 1);
        }
        Some(why) => {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                // Past the capture of the test harness: a skip must be seen.
                let line = format!("skipped on {device} in this program: {}\n", why.lines().next().unwrap_or(""));
                std::io::stderr().write_all(line.as_bytes()).ok();
            }
            count(&format!("{device}-skipped"), 1);
        }
    }
}

/// The file of counts of this `cargo test` run.
pub fn counts_file() -> std::path::PathBuf {
    let run = std::os::unix::process::parent_id();
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("operation-cases-{run}.log"))
}

/// Counts cases of a device.
pub fn count(device: &str, cases: usize) {
    let line = format!("{device} {cases}\n");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(counts_file());
    // Lines this short are appended whole, whatever other programs and threads append.
    file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
}

/// Runs a case on every CPU of `cpus`, and on the simulator and a GPU in float32. The case checks its own results.
#[macro_export]
macro_rules! check_all {
    ($cpus:expr, $name:expr, |$backend:ident, $n:ident| $body:expr) => {{
        let label = $name.to_string();
        $cpus.check(&label, |$backend, $n| $body);
        $crate::check_gpus!(ddim_engine::device::gpu::Arithmetic::Fp32, label, |$backend, $n| $body);
    }};
}

/// Runs a case on a device three times: with aligned views, twice, which must give the same numbers to the bit, and with views that
/// begin anywhere. The case checks its own results.
pub fn check_views<B>(backend: &B, name: &str, case: impl Fn(&B, &str) -> Vec<f32>) {
    let aligned = || with_leads(Leads::Aligned, || case(backend, name)).0.into_iter().map(f32::to_bits);
    assert!(aligned().eq(aligned()), "{name}: two runs differ");
    with_leads(Leads::Turns, || case(backend, &format!("{name}, views anywhere")));
}

/// Runs a case on the simulator and on a GPU, in one arithmetic, as [`check_views`](ops_support::devices::check_views) does.
#[macro_export]
macro_rules! check_gpus {
    ($arithmetic:expr, $name:expr, |$backend:ident, $n:ident| $body:expr) => {{
        use $crate::ops_support::devices;
        devices::run_or_skip("sim", devices::no_sim(), || {
            let name = format!("{} on sim in {}", $name, $arithmetic);
            devices::check_views(&devices::sim($arithmetic), &name, |$backend, $n| $body);
        });
        devices::run_or_skip("cuda", devices::no_cuda(), || {
            let name = format!("{} on cuda in {}", $name, $arithmetic);
            devices::check_views(&devices::cuda($arithmetic), &name, |$backend, $n| $body);
        });
    }};
}
