//! A device that computes nothing and remembers what it was asked for: the launches of a step can be looked at without a GPU.

use std::cell::{Cell, RefCell};

use super::launcher::{DevicePtr, LaunchConfig, Launcher};
use crate::error::{Error, Result};
use crate::kernels::KernelEntry;

/// Something that a GPU would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A kernel.
    Launch(&'static KernelEntry, LaunchConfig),
    /// Bytes that are filled.
    Fill(usize),
    /// Bytes that are copied on the device.
    Copy(usize),
}

/// The launcher: memory is addresses without anything behind them, what is read back is zeros, a kernel is a line in a list.
pub struct Dry {
    shared_limit: usize,
    next: Cell<u64>,
    nodes: RefCell<Vec<Node>>,
}

/// Blocks begin at multiples of this, as a driver's.
const ALIGNMENT: u64 = 512;

impl Dry {
    /// A device whose blocks may have `shared_limit` bytes of shared memory.
    pub fn new(shared_limit: usize) -> Self {
        Dry { shared_limit, next: Cell::new(1 << 40), nodes: RefCell::default() }
    }

    /// What was asked for since the last call.
    pub fn take(&self) -> Vec<Node> {
        self.nodes.take()
    }
}

impl Launcher for Dry {
    type Kernel = &'static KernelEntry;
    type Graph = Vec<Node>;
    type Pending = Vec<u8>;

    fn chunk_bytes(&self) -> usize {
        64 << 20
    }

    fn shared_limit(&self) -> usize {
        self.shared_limit
    }

    fn kernel(&self, entry: &'static KernelEntry) -> Result<Self::Kernel> {
        Ok(entry)
    }

    fn launch(&self, kernel: Self::Kernel, config: LaunchConfig, _: &[u8]) -> Result<()> {
        if config.shared as usize > self.shared_limit {
            let (name, asked, limit) = (kernel.name, config.shared, self.shared_limit);
            return Err(Error::Failed(format!(
                "kernel {name} asks for {asked} bytes of shared memory, a block has {limit}"
            )));
        }
        self.nodes.borrow_mut().push(Node::Launch(kernel, config));
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let at = self.next.get();
        self.next.set(at + (bytes as u64).next_multiple_of(ALIGNMENT));
        Ok(DevicePtr(at))
    }

    fn free(&self, _: DevicePtr, _: usize) {}

    fn fill(&self, _: DevicePtr, width: usize, _: u32, count: usize) -> Result<()> {
        self.nodes.borrow_mut().push(Node::Fill(width * count));
        Ok(())
    }

    fn copy_in(&self, _: &[u8], _: DevicePtr) -> Result<()> {
        Ok(())
    }

    fn copy_out(&self, _: DevicePtr, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    fn copy_out_later(&self, _: DevicePtr, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn is_ready(_: &Vec<u8>) -> Result<bool> {
        Ok(true)
    }

    fn wait(pending: Vec<u8>) -> Result<Vec<u8>> {
        Ok(pending)
    }

    fn copy(&self, _: DevicePtr, _: DevicePtr, bytes: usize) -> Result<()> {
        self.nodes.borrow_mut().push(Node::Copy(bytes));
        Ok(())
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Node>> {
        let before = self.nodes.take();
        let done = body();
        let recorded = self.nodes.replace(before);
        done.map(|()| recorded)
    }

    fn replay(&self, graph: &Vec<Node>) -> Result<()> {
        self.nodes.borrow_mut().extend(graph);
        Ok(())
    }
}
