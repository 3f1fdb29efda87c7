//! The seam between kernels and where they run: raw memory, launches by name, capture and replay.

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::kernels::KernelEntry;

/// An address in a device's memory; 0 stands for "absent" in the parameters of kernels.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No operand.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// This address moved by `bytes`.
    pub fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// Extents of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A device that runs the kernels of `kernels/*.cu`: an NVIDIA GPU through its driver, or the simulator on the host.
///
/// Everything is ordered as it is called (one stream). Addresses are those that `alloc` gave, plus offsets inside the block.
pub trait Launcher: 'static {
    /// A kernel, ready to launch.
    type Kernel: Copy;
    /// A recorded sequence of launches, fills and device-to-device copies.
    type Graph;
    /// Bytes on their way to the host.
    type Pending;

    /// Bytes that the arena asks for at once.
    fn chunk_bytes(&self) -> usize;
    /// Bytes of shared memory that a block may have.
    fn shared_limit(&self) -> usize;
    /// Finds a kernel.
    ///
    /// # Errors
    /// Its image is missing or does not load on this device, or takes parameters of another size.
    fn kernel(&self, entry: &'static KernelEntry) -> Result<Self::Kernel>;
    /// Launches `kernel` with its parameter's bytes.
    ///
    /// # Errors
    /// Extents that the device refuses; a device that failed earlier.
    fn launch(&self, kernel: Self::Kernel, config: LaunchConfig, args: &[u8]) -> Result<()>;
    /// A block of device memory, aligned for every kernel.
    ///
    /// # Errors
    /// Out of memory.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr>;
    /// Returns a block once everything asked for so far is done.
    fn free(&self, ptr: DevicePtr, bytes: usize);
    /// Fills `count` elements of `width` bytes (1, 2 or 4) with the low bytes of `pattern`.
    ///
    /// # Errors
    /// The device failed.
    fn fill(&self, dst: DevicePtr, width: usize, pattern: u32, count: usize) -> Result<()>;
    /// Host to device; `src` may change after the call.
    ///
    /// # Errors
    /// The device failed; a sequence is being recorded.
    fn copy_in(&self, src: &[u8], dst: DevicePtr) -> Result<()>;
    /// As [`Launcher::copy_in`], beside the work in progress where the device can.
    ///
    /// # Errors
    /// As [`Launcher::copy_in`].
    fn copy_in_beside(&self, src: &[u8], dst: DevicePtr) -> Result<()> {
        self.copy_in(src, dst)
    }
    /// Device to host; waits.
    ///
    /// # Errors
    /// The device failed; a sequence is being recorded.
    fn copy_out(&self, src: DevicePtr, dst: &mut [u8]) -> Result<()>;
    /// Starts a copy to the host.
    ///
    /// # Errors
    /// As [`Launcher::copy_out`].
    fn copy_out_later(&self, src: DevicePtr, bytes: usize) -> Result<Self::Pending>;
    /// The copy is done.
    ///
    /// # Errors
    /// The device failed.
    fn is_ready(pending: &Self::Pending) -> Result<bool>;
    /// Waits for the copy.
    ///
    /// # Errors
    /// The device failed.
    fn wait(pending: Self::Pending) -> Result<Vec<u8>>;
    /// Device to device.
    ///
    /// # Errors
    /// The device failed.
    fn copy(&self, src: DevicePtr, dst: DevicePtr, bytes: usize) -> Result<()>;
    /// Records what `body` asks for instead of doing it. Kernels must have been looked up before, memory allocated before.
    ///
    /// # Errors
    /// What `body` returns; something that cannot be recorded.
    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;
    /// Does what was recorded.
    ///
    /// # Errors
    /// The device failed.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}
