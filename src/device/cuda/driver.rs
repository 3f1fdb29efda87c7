//! The driver API by what this crate needs of it: owned handles, and the driver's codes as [`Error`]s. The only module that calls
//! the driver.
//!
//! Nothing here may be called before [`super::probe`] has found a driver: without one, cudarc's functions panic (and so does
//! printing one of its errors).

use std::ffi::{CString, c_void};
use std::rc::Rc;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute};
use cudarc::driver::{DriverError, result};

use crate::device::launcher::DevicePtr;
use crate::error::{Error, Result};

/// The driver's refusal, with what was tried and, where there is something to do, what.
pub(super) fn failed(action: &str) -> impl FnOnce(DriverError) -> Error {
    move |e| {
        let name = e.error_name().map_or("an unknown error".into(), |n| n.to_string_lossy().into_owned());
        let advice = match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => "; the GPU's memory is full: use a smaller batch (batch_size)",
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | sys::CUresult::CUDA_ERROR_INVALID_PTX => {
                "; this build has no kernels for this GPU: build with DDIM_CUDA_ARCHS naming its architecture"
            }
            sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => "; the driver is older than the kernels: update it",
            sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS | sys::CUresult::CUDA_ERROR_LAUNCH_FAILED => {
                "; a kernel made an illegal access: run compute-sanitizer on the same command and report it"
            }
            _ => "",
        };
        Error::Failed(format!("GPU: cannot {action}: {name}{advice}"))
    }
}

/// What the driver says of itself, without touching a device; an error where there is none to talk to.
pub(super) fn version() -> std::result::Result<i32, String> {
    // SAFETY: only tries to open the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver (libcuda.so.1) on this machine".into());
    }
    let name = |e: DriverError| e.error_name().map_or("unknown".into(), |n| n.to_string_lossy().into_owned());
    result::init().map_err(|e| format!("the CUDA driver does not start: {}", name(e)))?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| format!("the CUDA driver does not tell its version: {}", name(e)))?;
    Ok(version)
}

/// Number of devices.
pub(super) fn device_count() -> Result<usize> {
    Ok(usize::try_from(result::device::get_count().map_err(failed("count the GPUs"))?).unwrap_or(0))
}

/// A device, not opened.
#[derive(Clone, Copy)]
pub(super) struct Device(sys::CUdevice);

impl Device {
    pub(super) fn get(ordinal: usize) -> Result<Self> {
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        Ok(Device(result::device::get(ordinal).map_err(failed(&format!("open GPU {ordinal}")))?))
    }
    pub(super) fn name(self) -> Result<String> {
        result::device::get_name(self.0).map_err(failed("read the GPU's name"))
    }
    pub(super) fn memory(self) -> Result<usize> {
        // SAFETY: `self` came from the driver.
        unsafe { result::device::total_mem(self.0) }.map_err(failed("read the GPU's memory"))
    }
    fn attribute(self, attribute: Attribute) -> Result<i32> {
        // SAFETY: `self` came from the driver.
        unsafe { result::device::get_attribute(self.0, attribute) }.map_err(failed("read an attribute of the GPU"))
    }
    /// Compute capability: major, minor.
    pub(super) fn capability(self) -> Result<(i32, i32)> {
        Ok((
            self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }
    /// Bytes of shared memory that a block may have where it asks for more than usual.
    fn shared_limit(self) -> Result<i32> {
        self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }
}

/// The primary context of a device, current on the thread that made it.
pub(super) struct Context {
    device: Device,
    shared_limit: i32,
}

impl Context {
    pub(super) fn new(device: Device) -> Result<Rc<Self>> {
        // SAFETY: `device` came from the driver; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device.0) }.map_err(failed("open the GPU"))?;
        let this = Rc::new(Context { device, shared_limit: device.shared_limit()? });
        // SAFETY: `context` was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(failed("make the GPU current"))?;
        Ok(this)
    }

    /// Bytes of shared memory that a block may have.
    pub(super) fn shared_limit(&self) -> usize {
        usize::try_from(self.shared_limit).unwrap_or(0)
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        // SAFETY: contents of the block are not read before they are written (the arena's contract).
        let ptr = unsafe { result::malloc_sync(bytes) };
        Ok(DevicePtr(ptr.map_err(failed(&format!("have {} MiB more", bytes.div_ceil(1 << 20))))?))
    }

    pub(super) fn free(&self, ptr: DevicePtr) {
        // SAFETY: `ptr` came from `alloc` and is not used any more; cuMemFree waits for what is under way. A driver that has failed
        // before refuses; then there is nothing left to free.
        unsafe { result::free_sync(ptr.0) }.ok();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `new`; every handle that needs it holds an `Rc` of it and is gone.
        unsafe { result::primary_ctx::release(self.device.0) }.ok();
    }
}

/// An event without timing.
pub(super) struct Event {
    event: sys::CUevent,
    _context: Rc<Context>,
}

impl Event {
    pub(super) fn new(context: &Rc<Context>) -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = result::event::create(flags).map_err(failed("make an event"))?;
        Ok(Event { event, _context: Rc::clone(context) })
    }
    /// What was recorded is done (or nothing was recorded).
    pub(super) fn is_done(&self) -> Result<bool> {
        // SAFETY: the event is live.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(failed("ask for an event")(e)),
        }
    }
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("wait for the GPU"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is live, and its context with it.
        unsafe { result::event::destroy(self.event) }.ok();
    }
}

/// Host memory that the GPU reads and writes by itself.
pub(super) struct Pinned {
    ptr: *mut u8,
    len: usize,
    _context: Rc<Context>,
}

impl Pinned {
    pub(super) fn new(context: &Rc<Context>, len: usize) -> Result<Self> {
        // SAFETY: a fresh block, freed on drop. Flags 0: cached, so that the host can read it.
        let ptr = unsafe { result::malloc_host(len, 0) }.map_err(failed("pin host memory"))?.cast::<u8>();
        // SAFETY: `len` bytes that nothing else has; initialised so that slices of it may be made.
        unsafe { ptr.write_bytes(0, len) };
        Ok(Pinned { ptr, len, _context: Rc::clone(context) })
    }
    pub(super) fn len(&self) -> usize {
        self.len
    }
    /// The bytes. No copy may be under way.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes; the users of this module wait for the event of a copy before they look.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
    /// The bytes, to be written. No copy may be under way.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: from `malloc_host`; users wait for the last copy before they drop it.
        unsafe { result::free_host(self.ptr.cast::<c_void>()) }.ok();
    }
}

/// A stream of its own (not the default one, which cannot be captured).
pub(super) struct Stream {
    stream: sys::CUstream,
    context: Rc<Context>,
}

impl Stream {
    pub(super) fn new(context: &Rc<Context>) -> Result<Self> {
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("make a stream"))?;
        Ok(Stream { stream, context: Rc::clone(context) })
    }
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("wait for the GPU"))
    }
    pub(super) fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both are live and of one context.
        unsafe { result::event::record(event.event, self.stream) }.map_err(failed("record an event"))
    }
    pub(super) fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are live and of one context.
        unsafe { result::stream::wait_event(self.stream, event.event, flags) }.map_err(failed("order two streams"))
    }
    /// Host to device. `src` stays as it is until the copy is done (the caller records an event and waits for it).
    pub(super) fn copy_in(&self, src: &Pinned, len: usize, dst: DevicePtr) -> Result<()> {
        // SAFETY: `dst` begins at least `len` bytes of a live block; see the contract above for `src`.
        unsafe { result::memcpy_htod_async(dst.0, &src.bytes()[..len], self.stream) }.map_err(failed("copy to the GPU"))
    }
    /// Device to pinned host memory. `dst` is not read before the caller has waited for an event recorded after this.
    pub(super) fn copy_out(&self, src: DevicePtr, dst: &mut Pinned, len: usize) -> Result<()> {
        // SAFETY: `src` begins at least `len` bytes of a live block; see the contract above for `dst`.
        unsafe { result::memcpy_dtoh_async(&mut dst.bytes_mut()[..len], src.0, self.stream) }
            .map_err(failed("copy from the GPU"))
    }
    /// Device to any host memory; waits.
    pub(super) fn copy_out_now(&self, src: DevicePtr, dst: &mut [u8]) -> Result<()> {
        // SAFETY: `src` begins at least `dst.len()` bytes of a live block; `dst` is borrowed until the copy is done.
        unsafe { result::memcpy_dtoh_async(dst, src.0, self.stream) }.map_err(failed("copy from the GPU"))?;
        self.synchronize()
    }
    pub(super) fn copy(&self, src: DevicePtr, dst: DevicePtr, bytes: usize) -> Result<()> {
        // SAFETY: both begin at least `bytes` bytes of live blocks.
        unsafe { result::memcpy_dtod_async(dst.0, src.0, bytes, self.stream) }.map_err(failed("copy on the GPU"))
    }
    pub(super) fn fill(&self, dst: DevicePtr, width: usize, pattern: u32, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `dst` begins at least `width * count` bytes of a live block, aligned to `width` (elements are).
        let status = unsafe {
            match width {
                1 => sys::cuMemsetD8Async(dst.0, pattern as u8, count, self.stream),
                2 => sys::cuMemsetD16Async(dst.0, pattern as u16, count, self.stream),
                _ => sys::cuMemsetD32Async(dst.0, pattern, count, self.stream),
            }
        };
        status.result().map_err(failed("fill memory of the GPU"))
    }
    /// Launches a kernel; `args` are the bytes of its one parameter.
    pub(super) fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[u8],
    ) -> Result<()> {
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        let mut parameters = [args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the function is of a module that is never unloaded; it takes one parameter of `args.len()` bytes (checked when it was
        // looked up and by `Gpu::launch`), which the driver copies during the call. The addresses in it are those of live blocks: the
        // operations check every view against their dims before they launch, and blocks return to an arena whose next user is
        // ordered behind this launch by the stream.
        unsafe {
            let stream = self.stream;
            result::launch_kernel(function.0, (gx, gy, gz), (bx, by, bz), shared, stream, &mut parameters)
        }
        .map_err(failed("launch a kernel"))
    }
    /// Begins to record instead of doing.
    pub(super) fn begin_capture(&self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("begin a recording"))
    }
    /// Ends a recording and makes it ready to run.
    pub(super) fn end_capture(&self) -> Result<Graph> {
        // SAFETY: the stream is live and recording.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(failed("end a recording"))?;
        // SAFETY: `graph` was just made; it is destroyed below, the executable does not need it.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above.
        unsafe { result::graph::destroy(graph) }.ok();
        let executable = executable.map_err(failed("make a recording ready"))?;
        // SAFETY: both are live.
        unsafe { result::graph::upload(executable, self.stream) }.map_err(failed("bring a recording to the GPU"))?;
        Ok(Graph { executable, _context: Rc::clone(&self.context) })
    }
    pub(super) fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both are live; what the graph touches is kept by its owner.
        unsafe { result::graph::launch(graph.executable, self.stream) }.map_err(failed("run a recording"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is live; what is under way is finished first.
        unsafe {
            result::stream::synchronize(self.stream).ok();
            result::stream::destroy(self.stream).ok();
        }
    }
}

/// A recording, ready to run.
pub(super) struct Graph {
    executable: sys::CUgraphExec,
    _context: Rc<Context>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: live until here. The driver keeps it until its last run is over.
        unsafe { result::graph::exec_destroy(self.executable) }.ok();
    }
}

/// A kernel. Its module is never unloaded: kernels live as long as the context.
#[derive(Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

/// The kernels of one image.
pub(super) struct Module {
    module: sys::CUmodule,
    context: Rc<Context>,
}

impl Module {
    pub(super) fn load(context: &Rc<Context>, name: &str, image: &[u8]) -> Result<Self> {
        // SAFETY: `image` is a fat binary as nvcc wrote it, with its length in its header.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(failed(&format!("load the kernels of {name}.cu")))?;
        Ok(Module { module, context: Rc::clone(context) })
    }

    /// A kernel that takes one parameter of `args_size` bytes, allowed all the shared memory that the GPU gives a block.
    pub(super) fn function(&self, name: &str, args_size: usize) -> Result<Function> {
        let c_name = CString::new(name).map_err(|_| Error::Failed(format!("{name:?} is no name of a kernel")))?;
        // SAFETY: the module is live.
        let function = unsafe { result::module::get_function(self.module, c_name) };
        let function = function.map_err(failed(&format!("find kernel {name}")))?;
        let (mut offset, mut size) = (0, 0);
        // SAFETY: `function` is live; two integers are written.
        unsafe { sys::cuFuncGetParamInfo(function, 0, &mut offset, &mut size) }
            .result()
            .map_err(failed(&format!("read the parameter of kernel {name}")))?;
        // SAFETY: as above.
        let second = unsafe { sys::cuFuncGetParamInfo(function, 1, &mut offset, &mut 0) };
        if size != args_size || second == sys::CUresult::CUDA_SUCCESS {
            let what = format!("kernel {name} takes other parameters than one of {args_size} bytes");
            return Err(Error::Failed(format!("{what}: its image and this program do not belong together")));
        }
        let fixed = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: `function` is live.
        let fixed = unsafe { result::function::get_function_attribute(function, fixed) }
            .map_err(failed(&format!("read the shared memory of kernel {name}")))?;
        let dynamic = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let most = self.context.shared_limit - fixed;
        // SAFETY: as above.
        unsafe { result::function::set_function_attribute(function, dynamic, most) }
            .map_err(failed(&format!("give kernel {name} its shared memory")))?;
        Ok(Function(function))
    }
}
