//! Memory of a GPU (or of the simulator): chunks from the launcher under the common [`Arena`], views that know their type.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::{Rc, Weak};

use half::bf16;

use super::{Dtype, Gpu};
use crate::device::arena::{Arena, Place};
use crate::device::launcher::{DevicePtr, Launcher};
use crate::device::{Extent, Memory, MemoryUse, ReadBack, Replay, nvtx};
use crate::error::{Error, Result};

/// The arena counts in units of this many bytes.
const UNIT: usize = 4;

/// The chunks and their bookkeeping.
pub(super) struct Store<L: Launcher> {
    launcher: Rc<L>,
    arena: Arena,
    /// Address and bytes of each chunk.
    chunks: Vec<(DevicePtr, usize)>,
    pub(super) poison: bool,
    pub(super) separate: bool,
}

impl<L: Launcher> Store<L> {
    pub(super) fn new(launcher: Rc<L>) -> Self {
        Store { launcher, arena: Arena::default(), chunks: Vec::new(), poison: false, separate: false }
    }

    fn take(&mut self, bytes: usize) -> Result<Block> {
        if self.separate {
            return Ok(Block { ptr: self.launcher.alloc(bytes.max(1))?, bytes: bytes.max(1), place: None });
        }
        let units = bytes.div_ceil(UNIT);
        let place = match self.arena.take(units) {
            Some(place) => place,
            None => {
                let least = Arena::granules(units) * UNIT;
                let wanted = least.max(self.launcher.chunk_bytes());
                let (ptr, bytes) = match self.launcher.alloc(wanted) {
                    Ok(ptr) => (ptr, wanted),
                    // A little may be left where a whole chunk is not.
                    Err(_) => (self.launcher.alloc(least)?, least),
                };
                self.chunks.push((ptr, bytes));
                self.arena.add_chunk(bytes / UNIT);
                let place = self.arena.take(units);
                place.ok_or_else(|| Error::Failed("arena: a new chunk did not fit its block".into()))?
            }
        };
        let ptr = self.chunks[place.chunk].0.offset(place.offset * UNIT);
        Ok(Block { ptr, bytes, place: Some(place) })
    }

    fn give(&mut self, block: &Block) {
        match block.place {
            Some(place) => self.arena.give(place),
            None => self.launcher.free(block.ptr, block.bytes),
        }
    }
}

impl<L: Launcher> Drop for Store<L> {
    fn drop(&mut self) {
        for &(ptr, bytes) in &self.chunks {
            self.launcher.free(ptr, bytes);
        }
    }
}

/// A piece of device memory.
struct Block {
    ptr: DevicePtr,
    bytes: usize,
    place: Option<Place>,
}

/// A block that goes back to its arena.
struct Owned<L: Launcher> {
    block: Block,
    store: Rc<RefCell<Store<L>>>,
}

impl<L: Launcher> Drop for Owned<L> {
    fn drop(&mut self) {
        self.store.borrow_mut().give(&self.block);
    }
}

/// An owned block of elements.
pub struct GpuBuffer<L: Launcher> {
    owned: Owned<L>,
    len: usize,
    dtype: Dtype,
}

impl<L: Launcher> GpuBuffer<L> {
    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// An owned block of bytes.
pub struct GpuBytes<L: Launcher> {
    owned: Owned<L>,
    len: usize,
}

impl<L: Launcher> GpuBytes<L> {
    /// Address of the first byte.
    pub fn ptr(&self) -> DevicePtr {
        self.owned.block.ptr
    }
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A shared view of device memory.
#[derive(Clone, Copy, Debug)]
pub struct GpuSlice<'a> {
    ptr: DevicePtr,
    len: usize,
    dtype: Dtype,
    owner: PhantomData<&'a ()>,
}

/// An exclusive view of device memory.
#[derive(Debug)]
pub struct GpuSliceMut<'a> {
    ptr: DevicePtr,
    len: usize,
    dtype: Dtype,
    owner: PhantomData<&'a mut ()>,
}

macro_rules! view {
    ($name:ident) => {
        impl $name<'_> {
            /// Address of the first element.
            pub fn ptr(&self) -> DevicePtr {
                self.ptr
            }
            /// Elements.
            pub fn len(&self) -> usize {
                self.len
            }
            /// True where there are none.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
            /// Element type.
            pub fn dtype(&self) -> Dtype {
                self.dtype
            }
            /// Bytes.
            pub fn bytes(&self) -> usize {
                self.len * self.dtype.size()
            }
        }
    };
}
view!(GpuSlice);
view!(GpuSliceMut);

impl GpuSliceMut<'_> {
    /// The same elements, shared, for as long as this view is not used.
    pub fn shared(&self) -> GpuSlice<'_> {
        GpuSlice { ptr: self.ptr, len: self.len, dtype: self.dtype, owner: PhantomData }
    }
}

/// Numbers on their way to the host.
pub struct GpuReadBack<L: Launcher>(L::Pending);

impl<L: Launcher> ReadBack for GpuReadBack<L> {
    fn is_ready(&self) -> Result<bool> {
        L::is_ready(&self.0)
    }
    fn wait(self) -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(&L::wait(self.0)?))
    }
}

/// A recorded sequence, with the arena that it works in.
pub struct Recording<L: Launcher> {
    graph: L::Graph,
    /// The launches of the graph use these chunks: they live as long as it does.
    _store: Rc<RefCell<Store<L>>>,
}

impl<L: Launcher> Gpu<L> {
    fn own(&self, bytes: usize) -> Result<Owned<L>> {
        let store = Rc::clone(&self.store.borrow());
        let block = store.borrow_mut().take(bytes)?;
        let poison = store.borrow().poison;
        let owned = Owned { block, store };
        if poison {
            self.launcher.fill(owned.block.ptr, 1, 0xff, bytes)?;
        }
        Ok(owned)
    }

    fn buffer(&self, len: usize, dtype: Dtype) -> Result<GpuBuffer<L>> {
        Ok(GpuBuffer { owned: self.own(len * dtype.size())?, len, dtype })
    }
}

impl<L: Launcher> Memory for Gpu<L> {
    type Buffer = GpuBuffer<L>;
    type Slice<'a> = GpuSlice<'a>;
    type SliceMut<'a> = GpuSliceMut<'a>;
    type Bytes = GpuBytes<L>;
    type ReadBack = GpuReadBack<L>;

    fn alloc(&self, len: usize) -> Result<GpuBuffer<L>> {
        self.buffer(len, Dtype::F32)
    }

    fn alloc_activation(&self, len: usize) -> Result<GpuBuffer<L>> {
        self.buffer(len, self.activation_dtype())
    }

    fn buffer_len(buffer: &GpuBuffer<L>) -> usize {
        buffer.len
    }

    fn slice(buffer: &GpuBuffer<L>, range: Range<usize>) -> GpuSlice<'_> {
        assert!(range.start <= range.end && range.end <= buffer.len, "slice: {range:?} of {} elements", buffer.len);
        let ptr = buffer.owned.block.ptr.offset(range.start * buffer.dtype.size());
        GpuSlice { ptr, len: range.len(), dtype: buffer.dtype, owner: PhantomData }
    }

    fn slices_mut<const N: usize>(buffer: &mut GpuBuffer<L>, ranges: [Range<usize>; N]) -> [GpuSliceMut<'_>; N] {
        let mut order: Vec<&Range<usize>> = ranges.iter().filter(|r| !r.is_empty()).collect();
        order.sort_by_key(|r| r.start);
        let apart = order.windows(2).all(|pair| pair[0].end <= pair[1].start);
        let inside = ranges.iter().all(|r| r.start <= r.end && r.end <= buffer.len);
        assert!(apart && inside, "slices_mut: {ranges:?} of {} elements", buffer.len);
        let (ptr, dtype) = (buffer.owned.block.ptr, buffer.dtype);
        ranges.map(|range| GpuSliceMut {
            ptr: ptr.offset(range.start * dtype.size()),
            len: range.len(),
            dtype,
            owner: PhantomData,
        })
    }

    fn upload(&self, src: &[f32], dst: GpuSliceMut<'_>) -> Result<()> {
        same_len("upload", src.len(), dst.len)?;
        match dst.dtype {
            Dtype::F32 => self.launcher.copy_in(bytemuck::cast_slice(src), dst.ptr),
            Dtype::Bf16 => {
                let rounded: Vec<bf16> = src.iter().map(|&v| bf16::from_f32(v)).collect();
                self.launcher.copy_in(bytemuck::cast_slice(&rounded), dst.ptr)
            }
        }
    }

    fn download(&self, src: GpuSlice<'_>, dst: &mut [f32]) -> Result<()> {
        same_len("download", src.len, dst.len())?;
        match src.dtype {
            Dtype::F32 => self.launcher.copy_out(src.ptr, bytemuck::cast_slice_mut(dst)),
            Dtype::Bf16 => {
                let mut narrow = vec![bf16::ZERO; dst.len()];
                self.launcher.copy_out(src.ptr, bytemuck::cast_slice_mut(&mut narrow))?;
                dst.iter_mut().zip(narrow).for_each(|(wide, narrow)| *wide = narrow.to_f32());
                Ok(())
            }
        }
    }

    fn copy(&self, src: GpuSlice<'_>, dst: GpuSliceMut<'_>) -> Result<()> {
        same_len("copy", src.len, dst.len)?;
        if src.dtype != dst.dtype {
            return Err(Error::Shape { op: "copy", what: format!("from {:?} to {:?}", src.dtype, dst.dtype) });
        }
        self.launcher.copy(src.ptr, dst.ptr, src.bytes())
    }

    fn read_back(&self, src: GpuSlice<'_>) -> Result<GpuReadBack<L>> {
        if src.dtype != Dtype::F32 {
            return Err(Error::Shape { op: "read_back", what: format!("{:?} given, F32 expected", src.dtype) });
        }
        Ok(GpuReadBack(self.launcher.copy_out_later(src.ptr, src.bytes())?))
    }

    fn alloc_bytes(&self, len: usize) -> Result<GpuBytes<L>> {
        Ok(GpuBytes { owned: self.own(len)?, len })
    }

    fn upload_bytes(&self, src: &[u8], dst: &mut GpuBytes<L>) -> Result<()> {
        same_len("upload_bytes", src.len(), dst.len)?;
        self.launcher.copy_in_beside(src, dst.owned.block.ptr)
    }

    fn fill(&self, dst: GpuSliceMut<'_>, value: f32) -> Result<()> {
        match dst.dtype {
            Dtype::F32 => self.launcher.fill(dst.ptr, 4, value.to_bits(), dst.len),
            Dtype::Bf16 => self.launcher.fill(dst.ptr, 2, u32::from(bf16::from_f32(value).to_bits()), dst.len),
        }
    }

    fn extent(view: GpuSlice<'_>) -> Extent {
        Extent { address: view.ptr.0, len: view.len, bytes: view.bytes() }
    }

    fn shared<'a>(view: &'a GpuSliceMut<'_>) -> GpuSlice<'a> {
        view.shared()
    }

    fn lend<'a>(view: &'a mut GpuSliceMut<'_>) -> GpuSliceMut<'a> {
        GpuSliceMut { ptr: view.ptr, len: view.len, dtype: view.dtype, owner: PhantomData }
    }

    fn memory_use(&self) -> MemoryUse {
        let recorded: Vec<_> = self.recorded.borrow().iter().filter_map(Weak::upgrade).collect();
        let own = Rc::clone(&self.store.borrow());
        let (mut live, mut peak) = (0, 0);
        for store in recorded.iter().chain([&own]) {
            let usage = store.borrow().arena.usage();
            (live, peak) = (live + usage.0, peak + usage.1);
        }
        MemoryUse { live: live * UNIT, peak: peak * UNIT }
    }
}

impl<L: Launcher> Replay for Gpu<L> {
    type Graph = Recording<L>;
    const LAUNCHES: bool = true;

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recording<L>>> {
        if self.store.borrow().borrow().separate {
            // Every buffer is an allocation, which cannot be recorded.
            return body().map(|()| None);
        }
        // What the recording works in must never be handed to anyone else while it can be replayed.
        let mut own = Store::new(Rc::clone(&self.launcher));
        own.poison = self.store.borrow().borrow().poison;
        let own = Rc::new(RefCell::new(own));
        self.recorded.borrow_mut().retain(|store| store.strong_count() > 0);
        self.recorded.borrow_mut().push(Rc::downgrade(&own));
        let outer = self.store.replace(Rc::clone(&own));
        // The first run finds the kernels and fills the arena: a capture can do neither.
        let graph = body().and_then(|()| {
            let _range = nvtx::range(c"record");
            self.launcher.capture(body)
        });
        self.store.replace(outer);
        Ok(Some(Recording { graph: graph?, _store: own }))
    }

    fn replay(&self, graph: &Recording<L>) -> Result<()> {
        let _range = nvtx::range(c"replay");
        self.launcher.replay(&graph.graph)
    }

    fn note_plans(&self, begin: bool) -> Vec<&'static str> {
        let fresh = begin.then(Vec::new);
        self.launched.replace(fresh).unwrap_or_default()
    }
}

fn same_len(op: &'static str, src: usize, dst: usize) -> Result<()> {
    if src == dst {
        return Ok(());
    }
    Err(Error::Shape { op, what: format!("{src} elements given, {dst} expected") })
}
