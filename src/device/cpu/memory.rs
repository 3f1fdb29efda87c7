//! Memory of the CPU device: few large anonymous mappings, advised to be huge pages, under the common [`Arena`].

use std::cell::RefCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use memmap2::MmapMut;

use super::Cpu;
use crate::device::arena::{Arena, Place};
use crate::device::{Extent, Memory, MemoryUse, ReadBack, Replay};
use crate::error::{Error, Result};

/// Elements of a chunk. Address space only: pages become real when they are first touched.
const CHUNK: usize = 256 << 20;

/// The chunks and their bookkeeping.
#[derive(Default)]
pub(super) struct Store {
    arena: Arena,
    chunks: Vec<Chunk>,
    pub(super) poison: bool,
}

/// Anonymous zeroed memory; freed when dropped.
struct Chunk {
    map: MmapMut,
    base: NonNull<f32>,
}

impl Chunk {
    fn new(len: usize) -> Result<Self> {
        let failed = |why: std::io::Error| {
            Error::Failed(format!("out of memory: cannot reserve {} MiB ({why}); use a smaller batch", len >> 18))
        };
        let mut map = MmapMut::map_anon(len * size_of::<f32>()).map_err(failed)?;
        #[cfg(target_os = "linux")]
        map.advise(memmap2::Advice::HugePage).ok(); // advice only: a kernel without huge pages is slower, not wrong
        let base = NonNull::from(&mut map[0]).cast();
        Ok(Chunk { map, base })
    }
}

/// An owned block of the CPU's arena.
pub struct CpuBuffer {
    ptr: NonNull<f32>,
    len: usize,
    place: Place,
    store: Rc<RefCell<Store>>,
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        self.store.borrow_mut().arena.give(self.place);
    }
}

impl CpuBuffer {
    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `ptr..ptr+len` lies in a chunk that `store` keeps alive, is initialised (mappings start as zeros), and no other buffer
        // overlaps it while this one lives (the arena hands out disjoint places).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The elements, exclusively.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the view exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Memory for Cpu {
    type Buffer = CpuBuffer;
    type Slice<'a> = &'a [f32];
    type SliceMut<'a> = &'a mut [f32];
    type Bytes = Vec<u8>;
    type ReadBack = CpuReadBack;

    fn alloc(&self, len: usize) -> Result<CpuBuffer> {
        let mut store = self.store.borrow_mut();
        let place = match store.arena.take(len) {
            Some(place) => place,
            None => {
                let chunk_len = Arena::granules(len).max(CHUNK);
                let chunk = Chunk::new(chunk_len).or_else(|_| Chunk::new(Arena::granules(len)))?;
                let chunk_len = chunk.map.len() / size_of::<f32>();
                store.chunks.push(chunk);
                store.arena.add_chunk(chunk_len);
                store.arena.take(len).ok_or_else(|| Error::Failed("arena: a new chunk did not fit its block".into()))?
            }
        };
        // SAFETY: the arena keeps `offset + len` inside the chunk.
        let ptr = unsafe { store.chunks[place.chunk].base.add(place.offset) };
        let poison = store.poison;
        drop(store);
        let mut buffer = CpuBuffer { ptr, len, place, store: Rc::clone(&self.store) };
        if poison {
            buffer.as_mut_slice().fill(f32::NAN);
        }
        Ok(buffer)
    }

    fn buffer_len(buffer: &CpuBuffer) -> usize {
        buffer.len
    }

    fn slice(buffer: &CpuBuffer, range: Range<usize>) -> &[f32] {
        &buffer.as_slice()[range]
    }

    fn slices_mut<const N: usize>(buffer: &mut CpuBuffer, ranges: [Range<usize>; N]) -> [&mut [f32]; N] {
        let len = buffer.len;
        match buffer.as_mut_slice().get_disjoint_mut(ranges.clone()) {
            Ok(views) => views,
            Err(e) => panic!("slices_mut: {e}: {ranges:?} of {len} elements"),
        }
    }

    fn upload(&self, src: &[f32], dst: &mut [f32]) -> Result<()> {
        same_len("upload", src.len(), dst.len())?;
        dst.copy_from_slice(src);
        Ok(())
    }

    fn download(&self, src: &[f32], dst: &mut [f32]) -> Result<()> {
        same_len("download", src.len(), dst.len())?;
        dst.copy_from_slice(src);
        Ok(())
    }

    fn copy(&self, src: &[f32], dst: &mut [f32]) -> Result<()> {
        same_len("copy", src.len(), dst.len())?;
        dst.copy_from_slice(src);
        Ok(())
    }

    fn read_back(&self, src: &[f32]) -> Result<CpuReadBack> {
        Ok(CpuReadBack(src.to_vec()))
    }

    fn alloc_bytes(&self, len: usize) -> Result<Vec<u8>> {
        Ok(vec![0; len])
    }

    fn upload_bytes(&self, src: &[u8], dst: &mut Vec<u8>) -> Result<()> {
        same_len("upload_bytes", src.len(), dst.len())?;
        dst.copy_from_slice(src);
        Ok(())
    }

    fn fill(&self, dst: &mut [f32], value: f32) -> Result<()> {
        dst.fill(value);
        Ok(())
    }

    fn extent(view: &[f32]) -> Extent {
        Extent { address: view.as_ptr() as u64, len: view.len(), bytes: size_of_val(view) }
    }

    fn shared<'a>(view: &'a &mut [f32]) -> &'a [f32] {
        view
    }

    fn lend<'a>(view: &'a mut &mut [f32]) -> &'a mut [f32] {
        view
    }

    fn memory_use(&self) -> MemoryUse {
        let (live, peak) = self.store.borrow().arena.usage();
        MemoryUse { live: live * size_of::<f32>(), peak: peak * size_of::<f32>() }
    }
}

/// Numbers of the CPU's memory are on the host already.
pub struct CpuReadBack(Vec<f32>);

impl ReadBack for CpuReadBack {
    fn is_ready(&self) -> Result<bool> {
        Ok(true)
    }
    fn wait(self) -> Result<Vec<f32>> {
        Ok(self.0)
    }
}

impl Replay for Cpu {
    /// There are none: the CPU computes each time.
    type Graph = std::convert::Infallible;
    const LAUNCHES: bool = false;

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
        body()?;
        Ok(None)
    }

    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }

    fn note_plans(&self, begin: bool) -> Vec<&'static str> {
        let fresh = begin.then(Vec::new);
        self.plans.replace(fresh).unwrap_or_default()
    }
}

fn same_len(op: &'static str, src: usize, dst: usize) -> Result<()> {
    if src == dst {
        return Ok(());
    }
    Err(Error::Shape { op, what: format!("{src} elements given, {dst} expected") })
}
