//! Launches of the simulator's test kernels (`kernels/sim/tests`), in every order of threads.

#![allow(dead_code)] // each test program uses a part

use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use bytemuck::{Pod, Zeroable};
use ddim_engine::device::launcher::{DevicePtr, LaunchConfig, Launcher};
use ddim_engine::device::sim::{Counts, Sim};
use ddim_engine::error::Result;

/// Orders in which the simulator runs the threads that can run.
pub const ORDERS: [&str; 5] = ["fwd", "rev", "rand:1", "rand:2", "rand:3"];

/// The kernels' parameter, as in `kernels/sim/tests/args.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    input: DevicePtr,
    output: DevicePtr,
    extra: DevicePtr,
    n: u32,
    option: u32,
}

/// Options are of the whole process: one test at a time.
static OPTIONS: Mutex<()> = Mutex::new(());

/// A launch of one test kernel.
#[derive(Clone, Default)]
pub struct Case {
    pub kernel: &'static str,
    pub grid: u32,
    pub block: u32,
    pub shared: u32,
    pub n: u32,
    pub option: u32,
    /// Words of the three buffers, before.
    pub input: Vec<u32>,
    pub output: Vec<u32>,
    pub extra: Vec<u32>,
}

/// A variant of the simulator, for as long as nothing else may change its options.
pub struct Bench {
    sim: Sim,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    /// The fast variant, or `None`, said on the terminal, where this build has none.
    pub fn fast() -> Option<Self> {
        Self::of(Sim::new())
    }

    /// The checker likewise.
    pub fn checked() -> Option<Self> {
        Self::of(Sim::checked())
    }

    fn of(sim: Result<Sim>) -> Option<Self> {
        match sim {
            Ok(sim) => Some(Bench { sim, _alone: OPTIONS.lock().unwrap_or_else(|e| e.into_inner()) }),
            Err(why) => {
                // Past the capture of the test harness: a skip must be seen.
                std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).ok();
                None
            }
        }
    }

    /// Sets the order of threads.
    pub fn order(&self, order: &str) {
        self.sim.library().set_option("order", order).unwrap();
    }

    /// Runs a kernel. Returns the words of `output` and `extra`.
    pub fn run(&self, case: &Case) -> Result<(Vec<u32>, Vec<u32>)> {
        let upload = |words: &[u32]| {
            let ptr = self.sim.alloc(words.len() * 4).unwrap();
            self.sim.copy_in(bytemuck::cast_slice(words), ptr).unwrap();
            ptr
        };
        let [input, output, extra] = [&case.input, &case.output, &case.extra].map(|words| upload(words));
        let args = Args { input, output, extra, n: case.n, option: case.option };
        let config = LaunchConfig { grid: [case.grid, 1, 1], block: [case.block, 1, 1], shared: case.shared };
        let result = self.sim.launch_named(case.kernel, config, bytemuck::bytes_of(&args));
        let download = |ptr, len| {
            let mut words = vec![0u32; len];
            self.sim.copy_out(ptr, bytemuck::cast_slice_mut(&mut words)).unwrap();
            words
        };
        let after = (download(output, case.output.len()), download(extra, case.extra.len()));
        for (ptr, words) in [(input, &case.input), (output, &case.output), (extra, &case.extra)] {
            self.sim.free(ptr, words.len() * 4);
        }
        result.map(|()| after)
    }

    /// What the last launch of a kernel asked of memory; the checker counts.
    pub fn count(&self, case: &Case) -> Counts {
        self.sim.count_launches().unwrap();
        self.run(case).unwrap_or_else(|e| panic!("{}: {e}", case.kernel));
        let [launch] = self.sim.take_counts().try_into().expect("one launch");
        assert_eq!((launch.kernel.as_str(), launch.config.block[0]), (case.kernel, case.block));
        launch.counts
    }

    /// See [`Sim::take_costly_lines`].
    pub fn costly_lines(&self) -> String {
        self.sim.take_costly_lines()
    }

    /// The runtime's own size check.
    pub fn run_with_args(&self, kernel: &str, args: &[u8]) -> Result<()> {
        self.sim.launch_named(kernel, LaunchConfig { grid: [1, 1, 1], block: [32, 1, 1], shared: 0 }, args)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.sim.library().set_option("order", "fwd").ok();
    }
}

/// Runs a correct kernel on both variants in every order; all must give the same words, which are returned.
pub fn everywhere(case: &Case) -> Option<(Vec<u32>, Vec<u32>)> {
    let mut first = None;
    for bench in [Bench::fast, Bench::checked] {
        let Some(bench) = bench() else { continue };
        for order in ORDERS {
            bench.order(order);
            let got = bench.run(case).unwrap_or_else(|e| panic!("{} in order {order}: {e}", case.kernel));
            let first = first.get_or_insert_with(|| got.clone());
            assert_eq!(&got, first, "{} in order {order}", case.kernel);
        }
    }
    first
}

/// Floats as words.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Words as floats.
pub fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|w| f32::from_bits(*w)).collect()
}
