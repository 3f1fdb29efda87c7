//! An NVIDIA GPU through its driver, which is opened at run time: a program built with kernels runs on machines without one.
//!
//! One stream does the work. Copies to the device go through pinned memory; pixels go on a second stream, so that the next batch
//! travels while a step is computed (see `staging.rs`).

mod driver;
mod staging;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use driver::{Context, Device, Event, Function, Graph, Module, Pinned, Stream};
use staging::{Inbox, Outbox};

use super::launcher::{DevicePtr, LaunchConfig, Launcher};
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};

/// The CUDA version whose driver the kernels need, as the driver counts.
const DRIVER: i32 = 13000;
/// The architecture that the kernels need at least: bfloat16 on tensor cores, asynchronous copies.
const CAPABILITY: (i32, i32) = (8, 0);

/// A GPU of this machine.
#[derive(Clone, Debug)]
pub struct GpuInfo {
    /// Its number: `cuda:N`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub memory: usize,
    /// Compute capability.
    pub capability: (i32, i32),
    /// The driver's CUDA version, as the driver counts (13020 is 13.2).
    pub driver: i32,
}

impl GpuInfo {
    /// Why its kernels cannot run on it, if so.
    pub fn unusable(&self) -> Option<String> {
        let ((major, minor), (want_major, want_minor)) = (self.capability, CAPABILITY);
        (self.capability < CAPABILITY).then(|| {
            format!(
                "{} is of compute capability {major}.{minor}, the kernels need {want_major}.{want_minor}",
                self.name
            )
        })
    }
}

impl std::fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((major, minor), gib) = (self.capability, self.memory as f64 / (1u64 << 30) as f64);
        let (cuda_major, cuda_minor) = (self.driver / 1000, self.driver % 1000 / 10);
        write!(
            f,
            "cuda:{} ({}, sm_{major}{minor}, {gib:.0} GiB, CUDA {cuda_major}.{cuda_minor})",
            self.ordinal, self.name
        )
    }
}

/// The GPUs that this machine has, or why none can be used, in a sentence that ends with what to do. Never panics, with or without a
/// driver.
///
/// # Errors
/// No driver, an old one, no device.
pub fn probe() -> std::result::Result<Vec<GpuInfo>, String> {
    let version = driver::version()?;
    if version < DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!(
            "the driver supports CUDA {major}.{minor}, the kernels need 13.0: update it to 580 or newer"
        ));
    }
    let info = |ordinal: usize| -> Result<GpuInfo> {
        let device = Device::get(ordinal)?;
        let (name, memory, capability) = (device.name()?, device.memory()?, device.capability()?);
        Ok(GpuInfo { ordinal, name, memory, capability, driver: version })
    };
    let count = driver::device_count().map_err(|e| e.to_string())?;
    let gpus: Vec<GpuInfo> = (0..count).map(info).collect::<Result<_>>().map_err(|e| e.to_string())?;
    if gpus.is_empty() {
        return Err("there is a CUDA driver, but no GPU (CUDA_VISIBLE_DEVICES may hide it)".into());
    }
    Ok(gpus)
}

/// A GPU as a launcher of kernels.
pub struct Cuda {
    // Dropped in this order: what needs the context before it.
    inbox: RefCell<Inbox>,
    outbox: Rc<RefCell<Outbox>>,
    stream: Stream,
    modules: RefCell<BTreeMap<&'static str, Module>>,
    context: Rc<Context>,
    recording: Cell<bool>,
}

/// Bytes on their way to the host.
pub struct CudaPending {
    slot: Option<(Pinned, Event)>,
    bytes: usize,
    outbox: Rc<RefCell<Outbox>>,
}

impl Drop for CudaPending {
    fn drop(&mut self) {
        if let Some((pinned, event)) = self.slot.take() {
            // The memory must not be used again before the copy into it is over; if the device has failed it never will be.
            if event.wait().is_ok() {
                self.outbox.borrow_mut().give(pinned, event);
            }
        }
    }
}

/// GPU number `ordinal`, if kernels of this build can run on it.
///
/// # Errors
/// This build has no GPU kernels; no driver, an old one, no such device, one that is too old: each names the option `--device`.
pub fn find(ordinal: usize) -> Result<GpuInfo> {
    let refuse = |why: String| Err(Error::Usage(format!("--device cuda:{ordinal}: {why}; use --device cpu")));
    if let Some(why) = kernels::NO_IMAGES {
        return refuse(format!("this build has no GPU kernels: {why}"));
    }
    let mut gpus = match probe() {
        Ok(gpus) => gpus,
        Err(why) => return refuse(why),
    };
    if ordinal >= gpus.len() {
        return refuse(format!("this machine has cuda:0 to cuda:{}", gpus.len() - 1));
    }
    let gpu = gpus.swap_remove(ordinal);
    match gpu.unusable() {
        Some(why) => refuse(why),
        None => Ok(gpu),
    }
}

impl Cuda {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// As [`find`]; the driver fails.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::open(&find(ordinal)?)
    }

    /// Opens a GPU that was found.
    ///
    /// # Errors
    /// The driver fails.
    pub fn open(gpu: &GpuInfo) -> Result<Self> {
        let context = Context::new(Device::get(gpu.ordinal)?)?;
        Ok(Cuda {
            inbox: RefCell::new(Inbox::new(&context)?),
            outbox: Rc::default(),
            stream: Stream::new(&context)?,
            modules: RefCell::default(),
            context,
            recording: Cell::new(false),
        })
    }

    fn not_recording(&self, what: &str) -> Result<()> {
        if self.recording.get() {
            return Err(Error::Failed(format!("{what} cannot be part of a recorded sequence")));
        }
        Ok(())
    }
}

impl Launcher for Cuda {
    type Kernel = CudaKernel;
    type Graph = CudaGraph;
    type Pending = CudaPending;

    fn shared_limit(&self) -> usize {
        self.context.shared_limit()
    }

    fn chunk_bytes(&self) -> usize {
        256 << 20
    }

    fn kernel(&self, entry: &'static KernelEntry) -> Result<CudaKernel> {
        self.not_recording("loading a kernel")?;
        let mut modules = self.modules.borrow_mut();
        if !modules.contains_key(entry.module) {
            let Some((_, image)) = kernels::IMAGES.iter().find(|(stem, _)| *stem == entry.module) else {
                return Err(Error::Failed(format!("this build has no image of {}.cu", entry.module)));
            };
            modules.insert(entry.module, Module::load(&self.context, entry.module, image)?);
        }
        modules[entry.module].function(entry.name, entry.args_size).map(CudaKernel)
    }

    fn launch(&self, kernel: CudaKernel, config: LaunchConfig, args: &[u8]) -> Result<()> {
        self.stream.launch(kernel.0, config.grid, config.block, config.shared, args)
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.not_recording("an allocation")?;
        self.context.alloc(bytes)
    }

    fn free(&self, ptr: DevicePtr, _bytes: usize) {
        self.context.free(ptr);
    }

    fn fill(&self, dst: DevicePtr, width: usize, pattern: u32, count: usize) -> Result<()> {
        self.stream.fill(dst, width, pattern, count)
    }

    fn copy_in(&self, src: &[u8], dst: DevicePtr) -> Result<()> {
        self.not_recording("a copy from the host")?;
        self.inbox.borrow_mut().send(&self.context, &self.stream, src, dst)
    }

    fn copy_in_beside(&self, src: &[u8], dst: DevicePtr) -> Result<()> {
        self.not_recording("a copy from the host")?;
        self.inbox.borrow_mut().send_beside(&self.context, &self.stream, src, dst)
    }

    fn copy_out(&self, src: DevicePtr, dst: &mut [u8]) -> Result<()> {
        self.not_recording("a copy to the host")?;
        self.stream.copy_out_now(src, dst)
    }

    fn copy_out_later(&self, src: DevicePtr, bytes: usize) -> Result<CudaPending> {
        self.not_recording("a copy to the host")?;
        let (mut pinned, event) = self.outbox.borrow_mut().take(&self.context, bytes)?;
        self.stream.copy_out(src, &mut pinned, bytes)?;
        self.stream.record(&event)?;
        Ok(CudaPending { slot: Some((pinned, event)), bytes, outbox: Rc::clone(&self.outbox) })
    }

    fn is_ready(pending: &CudaPending) -> Result<bool> {
        pending.slot.as_ref().map_or(Ok(true), |(_, event)| event.is_done())
    }

    fn wait(pending: CudaPending) -> Result<Vec<u8>> {
        let Some((pinned, event)) = &pending.slot else { return Ok(Vec::new()) };
        event.wait()?;
        Ok(pinned.bytes()[..pending.bytes].to_vec())
    }

    fn copy(&self, src: DevicePtr, dst: DevicePtr, bytes: usize) -> Result<()> {
        self.stream.copy(src, dst, bytes)
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<CudaGraph> {
        self.not_recording("a recording")?;
        self.stream.begin_capture()?;
        self.recording.set(true);
        let result = body();
        self.recording.set(false);
        // Ended whatever happened, or the stream would go on recording.
        let graph = self.stream.end_capture();
        result?;
        graph.map(CudaGraph)
    }

    fn replay(&self, graph: &CudaGraph) -> Result<()> {
        self.stream.replay(&graph.0)
    }
}

/// A kernel of a GPU.
#[derive(Clone, Copy)]
pub struct CudaKernel(Function);

/// A CUDA graph, ready to run.
pub struct CudaGraph(Graph);
