//! The simulator: the kernels of `kernels/*.cu`, compiled with g++, on fibers of the host's threads.
//!
//! Device memory is host memory. Capture keeps a list of what was asked for; replay goes through it.

#[cfg_attr(have_sim, path = "ffi.rs")]
#[cfg_attr(not(have_sim), path = "absent.rs")]
mod ffi;

mod counts;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::launcher::{DevicePtr, LaunchConfig, Launcher};
use crate::error::{Error, Result};
use crate::kernels::KernelEntry;

pub use counts::{CountedLaunch, Counts};
pub use ffi::Library;

/// What a recording repeats.
enum Node {
    Launch { kernel: ffi::Kernel, config: LaunchConfig, args: Vec<u8> },
    Fill { dst: DevicePtr, width: usize, pattern: u32, count: usize },
    Copy { src: DevicePtr, dst: DevicePtr, bytes: usize },
}

/// A recorded sequence.
pub struct SimGraph(Vec<Node>);

/// The simulator as a device.
pub struct Sim {
    library: Library,
    recording: RefCell<Option<Vec<Node>>>,
    /// Kernels that were looked up, which is done before the first launch of each.
    used: RefCell<BTreeSet<&'static str>>,
    shared_limit: usize,
    /// Names of kernels that stand in for others, for tests.
    stand_ins: RefCell<BTreeMap<&'static str, String>>,
    /// Launches with their counts, where someone wants to know.
    counted: RefCell<Option<Vec<CountedLaunch>>>,
    /// Names of kernels that were looked up.
    names: RefCell<BTreeMap<ffi::Kernel, String>>,
}

impl Sim {
    /// The fast variant.
    ///
    /// # Errors
    /// This build has no simulator.
    pub fn new() -> Result<Self> {
        Library::fast().map(Sim::with)
    }

    /// The variant that finds races, accesses out of bounds and reads of memory that was never written; a hundred times slower.
    ///
    /// # Errors
    /// This build does not have it.
    pub fn checked() -> Result<Self> {
        Library::checked().map(Sim::with)
    }

    fn with(library: Library) -> Self {
        Sim {
            library,
            recording: RefCell::new(None),
            used: RefCell::default(),
            shared_limit: 227 << 10, // as on Hopper
            stand_ins: RefCell::default(),
            counted: RefCell::default(),
            names: RefCell::default(),
        }
    }

    /// The same as a GPU whose blocks may have so many bytes of shared memory.
    pub fn with_shared_limit(self, bytes: usize) -> Self {
        Sim { shared_limit: bytes, ..self }
    }

    /// Names of the kernels that were launched so far.
    pub fn used(&self) -> BTreeSet<&'static str> {
        self.used.borrow().clone()
    }

    /// Counts what each launch asks of memory, from now on; see [`Sim::take_counts`].
    ///
    /// # Errors
    /// This is not the checker.
    pub fn count_launches(&self) -> Result<()> {
        self.library.set_option("count", "0")?;
        *self.counted.borrow_mut() = Some(Vec::new());
        Ok(())
    }

    /// The launches that were counted since the last call, in their order.
    pub fn take_counts(&self) -> Vec<CountedLaunch> {
        self.counted.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Lines of kernels whose accesses needed more sectors of global memory or more wavefronts of shared memory than the fewest possible, in
    /// all counted launches of this process since the last call, the worst first: kernel, file:line, `global` or `shared`, `read` or
    /// `write`, such accesses of warps, needed, fewest.
    pub fn take_costly_lines(&self) -> String {
        self.library.count_lines()
    }

    /// Launches the kernel `other` of the simulator wherever `entry` is asked for, from its first launch on: a test sees what an
    /// operation says with a kernel that has a fault.
    pub fn stand_in(&self, entry: &'static KernelEntry, other: &str) {
        self.stand_ins.borrow_mut().insert(entry.name, other.to_string());
    }

    /// Launches a kernel of the simulator by its name, whether or not the crate's table has it: its own tests do.
    ///
    /// # Errors
    /// There is no such kernel, its parameter has another size, or it failed.
    pub fn launch_named(&self, name: &str, config: LaunchConfig, args: &[u8]) -> Result<()> {
        let kernel = self.library.find(name);
        let kernel = kernel.ok_or_else(|| Error::Failed(format!("the simulator has no kernel {name}")))?;
        self.names.borrow_mut().insert(kernel, name.to_string());
        let size = self.library.args_size(kernel);
        if size != args.len() {
            return Err(Error::Failed(format!("kernel {name} takes {size} bytes, not {}", args.len())));
        }
        self.run(Node::Launch { kernel, config, args: args.to_vec() })
    }

    /// The runtime behind it, for its options.
    pub fn library(&self) -> Library {
        self.library
    }

    fn run(&self, node: Node) -> Result<()> {
        if let Some(nodes) = self.recording.borrow_mut().as_mut() {
            nodes.push(node);
            return Ok(());
        }
        self.execute(&node)
    }

    fn execute(&self, node: &Node) -> Result<()> {
        match node {
            Node::Launch { kernel, config, args } => {
                let mut counted = self.counted.borrow_mut();
                let mut counts = counted.is_some().then(Counts::default);
                self.library.launch(*kernel, *config, args, counts.as_mut()).map_err(Error::Failed)?;
                if let (Some(counted), Some(counts)) = (&mut *counted, counts) {
                    let kernel = self.names.borrow().get(kernel).cloned().unwrap_or_default();
                    counted.push(CountedLaunch { kernel, config: *config, counts });
                }
                Ok(())
            }
            Node::Fill { dst, width, pattern, count } => {
                self.library.fill(*dst, *width, *pattern, *count);
                Ok(())
            }
            Node::Copy { src, dst, bytes } => {
                self.library.copy(*src, *dst, *bytes);
                Ok(())
            }
        }
    }

    fn not_recording(&self, what: &str) -> Result<()> {
        if self.recording.borrow().is_some() {
            return Err(Error::Failed(format!("{what} cannot be part of a recorded sequence")));
        }
        Ok(())
    }
}

impl Launcher for Sim {
    type Kernel = ffi::Kernel;
    type Graph = SimGraph;
    type Pending = Vec<u8>;

    fn shared_limit(&self) -> usize {
        self.shared_limit
    }

    fn chunk_bytes(&self) -> usize {
        4 << 20
    }

    fn kernel(&self, entry: &'static KernelEntry) -> Result<ffi::Kernel> {
        self.used.borrow_mut().insert(entry.name);
        let stand_in = self.stand_ins.borrow().get(entry.name).cloned();
        let kernel = self.library.find(stand_in.as_deref().unwrap_or(entry.name)).ok_or_else(|| {
            Error::Failed(format!(
                "the simulator has no kernel {}: this build's table and its kernels differ",
                entry.name
            ))
        })?;
        self.names.borrow_mut().insert(kernel, entry.name.to_string());
        let size = self.library.args_size(kernel);
        if size != entry.args_size {
            let (name, want) = (entry.name, entry.args_size);
            return Err(Error::Failed(format!("kernel {name} takes {size} bytes, the table says {want}")));
        }
        Ok(kernel)
    }

    fn launch(&self, kernel: ffi::Kernel, config: LaunchConfig, args: &[u8]) -> Result<()> {
        self.run(Node::Launch { kernel, config, args: args.to_vec() })
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.not_recording("an allocation")?;
        self.library.alloc(bytes).ok_or_else(|| {
            Error::Failed(format!(
                "out of memory: the simulator cannot have {} MiB more; use a smaller batch",
                bytes >> 20
            ))
        })
    }

    fn free(&self, ptr: DevicePtr, _bytes: usize) {
        self.library.free(ptr);
    }

    fn fill(&self, dst: DevicePtr, width: usize, pattern: u32, count: usize) -> Result<()> {
        self.run(Node::Fill { dst, width, pattern, count })
    }

    fn copy_in(&self, src: &[u8], dst: DevicePtr) -> Result<()> {
        self.not_recording("a copy from the host")?;
        self.library.copy_in(src, dst);
        Ok(())
    }

    fn copy_out(&self, src: DevicePtr, dst: &mut [u8]) -> Result<()> {
        self.not_recording("a copy to the host")?;
        self.library.copy_out(src, dst);
        Ok(())
    }

    fn copy_out_later(&self, src: DevicePtr, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.copy_out(src, &mut out)?;
        Ok(out)
    }

    fn is_ready(_: &Vec<u8>) -> Result<bool> {
        Ok(true)
    }

    fn wait(pending: Vec<u8>) -> Result<Vec<u8>> {
        Ok(pending)
    }

    fn copy(&self, src: DevicePtr, dst: DevicePtr, bytes: usize) -> Result<()> {
        self.run(Node::Copy { src, dst, bytes })
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<SimGraph> {
        self.not_recording("a recording")?;
        *self.recording.borrow_mut() = Some(Vec::new());
        let result = body();
        let nodes = self.recording.borrow_mut().take().unwrap_or_default();
        result.map(|()| SimGraph(nodes))
    }

    fn replay(&self, graph: &SimGraph) -> Result<()> {
        graph.0.iter().try_for_each(|node| self.execute(node))
    }
}
