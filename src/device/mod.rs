//! Floor 0: memory and launch. What differs between a CPU, a GPU and the simulator, and nothing else.
//!
//! [`Memory`] is what every device has: blocks of `f32` that live as long as their owner, views of them, copies in and out.
//! [`Launcher`] adds what a device with kernels of its own has: launches by name, capture and replay. The operations stand on
//! these two (see [`crate::ops`]); the model stands on the operations and never asks which device it runs on.

pub mod arena;
pub mod cpu;

use std::ops::Range;

use crate::error::Result;

/// Memory of one device. Buffers are arena blocks: allocating in the same order gives the same addresses in every step, and
/// after the first step nothing is asked of the operating system or driver any more.
pub trait Memory {
    /// An owned block of `f32` elements; dropping it returns it to the arena.
    type Buffer;
    /// A shared view of part of a buffer.
    type Slice<'a>: Copy;
    /// An exclusive view of part of a buffer.
    type SliceMut<'a>;
    /// An owned block of bytes, for pixels on their way in.
    type Bytes;

    /// A block of `len` elements with unspecified contents.
    ///
    /// # Errors
    /// Out of memory.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;
    /// Elements of a buffer.
    fn buffer_len(buffer: &Self::Buffer) -> usize;
    /// A view of `range`. Panics if the range does not fit: a defect of the caller.
    fn slice(buffer: &Self::Buffer, range: Range<usize>) -> Self::Slice<'_>;
    /// Disjoint exclusive views. Panics if ranges overlap or do not fit: a defect of the caller.
    fn slices_mut<const N: usize>(buffer: &mut Self::Buffer, ranges: [Range<usize>; N]) -> [Self::SliceMut<'_>; N];
    /// Host to device; lengths must be equal.
    fn upload(&self, src: &[f32], dst: Self::SliceMut<'_>) -> Result<()>;
    /// Device to host; lengths must be equal. Waits for the device.
    fn download(&self, src: Self::Slice<'_>, dst: &mut [f32]) -> Result<()>;
    /// Pixels to the device.
    fn upload_bytes(&self, src: &[u8]) -> Result<Self::Bytes>;
    /// Fills a view with one value.
    fn fill(&self, dst: Self::SliceMut<'_>, value: f32) -> Result<()>;
    /// Bytes that the arena holds, and the most that were in use at once.
    fn memory_use(&self) -> MemoryUse;

    /// A view of the whole buffer.
    fn all(buffer: &Self::Buffer) -> Self::Slice<'_> {
        Self::slice(buffer, 0..Self::buffer_len(buffer))
    }
    /// An exclusive view of the whole buffer.
    fn all_mut(buffer: &mut Self::Buffer) -> Self::SliceMut<'_> {
        let len = Self::buffer_len(buffer);
        #[allow(clippy::single_range_in_vec_init)] // one view, not a list of numbers
        let [all] = Self::slices_mut(buffer, [0..len]);
        all
    }
}

/// What the arena holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use now.
    pub live: usize,
    /// The most in use at once.
    pub peak: usize,
}

/// A device that runs kernels compiled from `kernels/*.cu`: an NVIDIA GPU, or the simulator that runs the same sources on the
/// host. Grid arithmetic, argument order and workspaces live above this seam, so that a machine without a GPU tests them.
pub trait Launcher: Memory {
    /// A kernel, looked up once by its name in the table that the build makes.
    type Kernel: Copy;
    /// A recorded sequence of launches.
    type Graph;

    /// Finds a kernel by name.
    ///
    /// # Errors
    /// The name is not in the table, or its image does not load on this device.
    fn kernel(&self, name: &'static str) -> Result<Self::Kernel>;
    /// Launches `kernel` over `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory. `args` holds the
    /// kernel's parameters in order, each as the bytes of a plain-old-data value.
    fn launch(&self, kernel: Self::Kernel, grid: [u32; 3], block: [u32; 3], shared: u32, args: &[&[u8]]) -> Result<()>;
    /// Waits until everything launched has finished.
    fn synchronize(&self) -> Result<()>;
    /// Records what `body` launches instead of running it.
    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;
    /// Runs a recorded sequence.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}
