//! Memory of the watched device, and no recordings: every operation must pass the probe.

use std::ops::Range;

use super::{Call, Kind, Probe, Watch, need, unchecked};
use crate::device::{Extent, Memory, MemoryUse, Replay};
use crate::error::Result;
use crate::ops::Backend;

impl<B: Backend> Memory for Probe<'_, B> {
    type Buffer = B::Buffer;
    type Slice<'a> = B::Slice<'a>;
    type SliceMut<'a> = B::SliceMut<'a>;
    type Bytes = B::Bytes;
    type ReadBack = B::ReadBack;

    fn alloc(&self, len: usize) -> Result<B::Buffer> {
        self.inner.alloc(len)
    }
    fn alloc_activation(&self, len: usize) -> Result<B::Buffer> {
        self.inner.alloc_activation(len)
    }
    fn buffer_len(buffer: &B::Buffer) -> usize {
        B::buffer_len(buffer)
    }
    fn slice(buffer: &B::Buffer, range: Range<usize>) -> B::Slice<'_> {
        B::slice(buffer, range)
    }
    fn slices_mut<const N: usize>(buffer: &mut B::Buffer, ranges: [Range<usize>; N]) -> [B::SliceMut<'_>; N] {
        B::slices_mut(buffer, ranges)
    }
    fn upload(&self, src: &[f32], dst: B::SliceMut<'_>) -> Result<()> {
        if self.watch.get() != Watch::Time {
            return self.inner.upload(src, dst);
        }
        let call = Call::new("upload", Kind::Copy, src.len().to_string());
        self.call(call, lent!(B; Some(dst)), |[dst]| self.inner.upload(src, need(dst)?), unchecked)
    }
    fn download(&self, src: B::Slice<'_>, dst: &mut [f32]) -> Result<()> {
        self.inner.download(src, dst)
    }
    fn copy(&self, src: B::Slice<'_>, dst: B::SliceMut<'_>) -> Result<()> {
        let from = B::extent(src);
        let call = Call::new("copy", Kind::Copy, from.len.to_string()).reads([Some(from)]);
        self.call(call, lent!(B; Some(dst)), |[dst]| self.inner.copy(src, need(dst)?), unchecked)
    }
    fn read_back(&self, src: B::Slice<'_>) -> Result<B::ReadBack> {
        self.inner.read_back(src)
    }
    fn alloc_bytes(&self, len: usize) -> Result<B::Bytes> {
        self.inner.alloc_bytes(len)
    }
    fn upload_bytes(&self, src: &[u8], dst: &mut B::Bytes) -> Result<()> {
        if self.watch.get() != Watch::Time {
            return self.inner.upload_bytes(src, dst);
        }
        let mut call = Call::new("upload_bytes", Kind::Copy, src.len().to_string());
        call.bytes = src.len() as u64;
        self.call(call, [], |[]| self.inner.upload_bytes(src, dst), unchecked)
    }
    fn fill(&self, dst: B::SliceMut<'_>, value: f32) -> Result<()> {
        let call = Call::new("fill", Kind::Copy, B::extent(B::shared(&dst)).len.to_string());
        self.call(call, lent!(B; Some(dst)), |[dst]| self.inner.fill(need(dst)?, value), unchecked)
    }
    fn memory_use(&self) -> MemoryUse {
        self.inner.memory_use()
    }
    fn extent(view: B::Slice<'_>) -> Extent {
        B::extent(view)
    }
    fn shared<'a>(view: &'a B::SliceMut<'_>) -> B::Slice<'a> {
        B::shared(view)
    }
    fn lend<'a>(view: &'a mut B::SliceMut<'_>) -> B::SliceMut<'a> {
        B::lend(view)
    }
}

impl<B: Backend> Replay for Probe<'_, B> {
    /// There are none.
    type Graph = std::convert::Infallible;
    const LAUNCHES: bool = B::LAUNCHES;

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
        body().map(|()| None)
    }
    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }
    fn note_plans(&self, begin: bool) -> Vec<&'static str> {
        self.inner.note_plans(begin)
    }
}
