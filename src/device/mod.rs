//! Floor 0: memory and launch. What differs between a CPU, a GPU and the simulator, and nothing else.
//!
//! [`Memory`] is what every device has: blocks of elements that live as long as their owner, views of them, copies in and out;
//! [`Replay`] is work that is recorded once and repeated. The operations stand on these two (see [`crate::ops`]); the model stands
//! on the operations and never asks which device it runs on.
//!
//! Devices that run the kernels of `kernels/*.cu` are one type, [`gpu::Gpu`], over a [`launcher::Launcher`]: an NVIDIA GPU or the
//! simulator. Grid arithmetic, argument order and workspaces live above that seam, so that a machine without a GPU tests them.

pub mod arena;
pub mod cpu;
pub mod cuda;
pub mod dry;
pub mod gpu;
pub mod launcher;
pub mod nvtx;
pub mod sim;

use std::ops::Range;

use crate::error::Result;

/// Memory of one device. Buffers are arena blocks: allocating in the same order gives the same addresses in every step, and
/// after the first step nothing is asked of the operating system or driver any more.
pub trait Memory {
    /// An owned block of elements; dropping it returns it to the arena.
    type Buffer;
    /// A shared view of part of a buffer.
    type Slice<'a>: Copy;
    /// An exclusive view of part of a buffer.
    type SliceMut<'a>;
    /// An owned block of bytes, for pixels on their way in.
    type Bytes;
    /// Numbers on their way out: see [`Memory::read_back`].
    type ReadBack: ReadBack;

    /// A block of `len` float32 elements with unspecified contents.
    ///
    /// # Errors
    /// Out of memory.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;
    /// A block of `len` elements of the type that this device keeps activations in: float32, or bfloat16.
    ///
    /// # Errors
    /// Out of memory.
    fn alloc_activation(&self, len: usize) -> Result<Self::Buffer> {
        self.alloc(len)
    }
    /// Elements of a buffer.
    fn buffer_len(buffer: &Self::Buffer) -> usize;
    /// A view of `range`. Panics if the range does not fit: a defect of the caller.
    fn slice(buffer: &Self::Buffer, range: Range<usize>) -> Self::Slice<'_>;
    /// Disjoint exclusive views. Panics if ranges overlap or do not fit: a defect of the caller.
    fn slices_mut<const N: usize>(buffer: &mut Self::Buffer, ranges: [Range<usize>; N]) -> [Self::SliceMut<'_>; N];
    /// Host to device; lengths must be equal. Numbers are rounded to the nearest where the buffer holds bfloat16. `src` may be
    /// changed as soon as this returns.
    fn upload(&self, src: &[f32], dst: Self::SliceMut<'_>) -> Result<()>;
    /// Device to host; lengths must be equal. Waits for the device.
    fn download(&self, src: Self::Slice<'_>, dst: &mut [f32]) -> Result<()>;
    /// Device to device; lengths and element types must be equal.
    fn copy(&self, src: Self::Slice<'_>, dst: Self::SliceMut<'_>) -> Result<()>;
    /// Starts a copy to the host of what `src` (float32) holds once everything asked of the device so far is done, without waiting.
    fn read_back(&self, src: Self::Slice<'_>) -> Result<Self::ReadBack>;
    /// A block of `len` bytes with unspecified contents.
    ///
    /// # Errors
    /// Out of memory.
    fn alloc_bytes(&self, len: usize) -> Result<Self::Bytes>;
    /// Pixels to the device, beside the work that it is doing; the next operation sees them. Lengths must be equal. `src` may be
    /// changed as soon as this returns.
    fn upload_bytes(&self, src: &[u8], dst: &mut Self::Bytes) -> Result<()>;
    /// Fills a view with one value.
    fn fill(&self, dst: Self::SliceMut<'_>, value: f32) -> Result<()>;
    /// Bytes that the arena holds, and the most that were in use at once.
    fn memory_use(&self) -> MemoryUse;

    /// Where a view lies and how much it holds.
    fn extent(view: Self::Slice<'_>) -> Extent;
    /// An exclusive view, shared for as long as it is not used.
    fn shared<'a>(view: &'a Self::SliceMut<'_>) -> Self::Slice<'a>;
    /// An exclusive view lent to a call, so that it can be used again after it.
    fn lend<'a>(view: &'a mut Self::SliceMut<'_>) -> Self::SliceMut<'a>;

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

/// Numbers on their way from a device to the host.
pub trait ReadBack {
    /// They are here: [`ReadBack::wait`] will not wait.
    ///
    /// # Errors
    /// The device failed.
    fn is_ready(&self) -> Result<bool>;
    /// The numbers.
    ///
    /// # Errors
    /// The device failed.
    fn wait(self) -> Result<Vec<f32>>;
}

/// Work that is recorded once and then repeated: a CUDA graph, or the simulator's list of launches.
pub trait Replay: Memory {
    /// A recording.
    type Graph;
    /// Whether what [`Replay::note_plans`] notes are kernels, one for each launch.
    const LAUNCHES: bool;

    /// Runs `body`, and records what it asks of the device where the device can repeat such a recording; `None` where it cannot.
    ///
    /// `body` may be called twice: it must depend on nothing but the device's memory, and must not copy between host and device. What
    /// it allocates comes from an arena that belongs to the recording.
    ///
    /// # Errors
    /// What `body` returns; the device cannot record.
    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Repeats a recording.
    ///
    /// # Errors
    /// The device failed.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
    /// Begins (`true`) or ends to note what operations choose: the names of the kernels that a GPU launches, or of the variants that a
    /// CPU takes where it has several. Returns, in order, what was noted since it began.
    fn note_plans(&self, begin: bool) -> Vec<&'static str>;
}

/// Where a view lies and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Address on its device.
    pub address: u64,
    /// Elements.
    pub len: usize,
    /// Bytes.
    pub bytes: usize,
}

/// What the arena holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use now.
    pub live: usize,
    /// The most in use at once.
    pub peak: usize,
}
