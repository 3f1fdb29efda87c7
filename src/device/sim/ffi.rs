//! The simulator's runtime, by its C interface. The only module that calls it.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, Once};

use super::counts::Counts;
use crate::device::launcher::{DevicePtr, LaunchConfig};
use crate::error::{Error, Result};

type Launch = unsafe extern "C" fn(
    kernel: *const c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    args: *const *const c_void,
    error: *mut c_char,
    error_len: usize,
) -> c_int;

/// The functions of one variant.
struct Interface {
    register_all: unsafe extern "C" fn(),
    find: unsafe extern "C" fn(*const c_char) -> *const c_void,
    nparams: unsafe extern "C" fn(*const c_void) -> c_int,
    param_size: unsafe extern "C" fn(*const c_void, c_int) -> c_uint,
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    set_option: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int,
    launch: Launch,
    counts: unsafe extern "C" fn(*mut u64, c_int) -> c_int,
    count_lines: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    registered: Once,
}

macro_rules! interface {
    ($name:ident: $register_all:ident, $find:ident, $nparams:ident, $param_size:ident, $malloc:ident, $free:ident,
     $set_option:ident, $launch:ident, $counts:ident, $count_lines:ident) => {
        unsafe extern "C" {
            fn $register_all();
            fn $find(name: *const c_char) -> *const c_void;
            fn $nparams(kernel: *const c_void) -> c_int;
            fn $param_size(kernel: *const c_void, index: c_int) -> c_uint;
            fn $malloc(bytes: usize) -> *mut c_void;
            fn $free(ptr: *mut c_void);
            fn $set_option(key: *const c_char, value: *const c_char) -> c_int;
            fn $counts(values: *mut u64, n: c_int) -> c_int;
            fn $count_lines(text: *mut c_char, size: usize) -> usize;
            #[allow(clippy::too_many_arguments)] // as CUDA's own
            fn $launch(
                kernel: *const c_void,
                grid_x: c_uint,
                grid_y: c_uint,
                grid_z: c_uint,
                block_x: c_uint,
                block_y: c_uint,
                block_z: c_uint,
                shared: c_uint,
                args: *const *const c_void,
                error: *mut c_char,
                error_len: usize,
            ) -> c_int;
        }
        static $name: Interface = Interface {
            register_all: $register_all,
            find: $find,
            nparams: $nparams,
            param_size: $param_size,
            malloc: $malloc,
            free: $free,
            set_option: $set_option,
            launch: $launch,
            counts: $counts,
            count_lines: $count_lines,
            registered: Once::new(),
        };
    };
}

interface!(FAST: simt_register_all, simt_find, simt_nparams, simt_param_size, simt_malloc, simt_free, simt_set_option,
           simt_launch, simt_counts, simt_count_lines);
#[cfg(have_sim_check)]
interface!(CHECKED: simtc_register_all, simtc_find, simtc_nparams, simtc_param_size, simtc_malloc, simtc_free,
           simtc_set_option, simtc_launch, simtc_counts, simtc_count_lines);

/// The checker keeps one shadow of all memory: one thing at a time.
static CHECKER: Mutex<()> = Mutex::new(());

/// A variant of the runtime.
#[derive(Clone, Copy)]
pub struct Library {
    interface: &'static Interface,
    checks: bool,
}

/// A kernel: the address of its record, which lives as long as the program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(*const c_void);

impl Library {
    /// The fast variant.
    pub(super) fn fast() -> Result<Self> {
        Ok(Self::registered(&FAST, false))
    }

    /// The checker.
    #[cfg(have_sim_check)]
    pub(super) fn checked() -> Result<Self> {
        Ok(Self::registered(&CHECKED, true))
    }

    /// The checker.
    #[cfg(not(have_sim_check))]
    pub(super) fn checked() -> Result<Self> {
        Err(Error::Usage("this build's simulator has no checker (it needs GNU ld and objcopy)".into()))
    }

    fn registered(interface: &'static Interface, checks: bool) -> Self {
        // SAFETY: takes no arguments; fills the runtime's table, once.
        interface.registered.call_once(|| unsafe { (interface.register_all)() });
        Library { interface, checks }
    }

    /// Sets an option of the runtime for the whole process: "order" (fwd, rev, rand:SEED), "threads", "poison"; of the
    /// checker "count" too, which [`super::Sim::count_launches`] sets.
    ///
    /// # Errors
    /// There is no such option.
    pub fn set_option(self, key: &str, value: &str) -> Result<()> {
        let text = |s: &str| CString::new(s).map_err(|_| Error::Usage(format!("{s:?} holds a NUL")));
        let (c_key, c_value) = (text(key)?, text(value)?);
        // SAFETY: two C strings that outlive the call.
        match unsafe { (self.interface.set_option)(c_key.as_ptr(), c_value.as_ptr()) } {
            0 => Ok(()),
            _ => Err(Error::Usage(format!("the simulator has no option {key:?}"))),
        }
    }

    fn exclusive(self) -> Option<MutexGuard<'static, ()>> {
        // A test that panicked while it held the lock has not harmed the runtime.
        self.checks.then(|| CHECKER.lock().unwrap_or_else(|e| e.into_inner()))
    }

    pub(super) fn find(self, name: &str) -> Option<Kernel> {
        let name = CString::new(name).ok()?;
        // SAFETY: `name` is a C string that outlives the call.
        let kernel = unsafe { (self.interface.find)(name.as_ptr()) };
        (!kernel.is_null()).then_some(Kernel(kernel))
    }

    /// Bytes of the kernel's one parameter; 0 where it has another number of parameters.
    pub(super) fn args_size(self, kernel: Kernel) -> usize {
        // SAFETY: `kernel` came from `find` of this variant.
        unsafe {
            match (self.interface.nparams)(kernel.0) {
                1 => (self.interface.param_size)(kernel.0, 0) as usize,
                _ => 0,
            }
        }
    }

    /// `counts`: what the launch asked of memory, which takes longer and which only the checker can tell.
    pub(super) fn launch(
        self,
        kernel: Kernel,
        c: LaunchConfig,
        args: &[u8],
        counts: Option<&mut Counts>,
    ) -> std::result::Result<(), String> {
        let _one_at_a_time = self.exclusive();
        if counts.is_some() {
            self.set_option("count", "1").map_err(|e| e.to_string())?;
        }
        // Aligned as the kernel's parameter may have to be.
        let mut aligned = vec![0u128; args.len().div_ceil(16)];
        bytemuck::cast_slice_mut(&mut aligned)[..args.len()].copy_from_slice(args);
        let args = [aligned.as_ptr().cast::<c_void>()];
        let mut error = [0 as c_char; 4096];
        let ([gx, gy, gz], [bx, by, bz]) = (c.grid, c.block);
        // SAFETY: `kernel` came from `find` and takes one parameter of this size (checked when it was looked up); the runtime
        // reads it during the call only, and writes a C string of at most `error.len()` bytes. What the kernel itself touches are the
        // addresses in its parameter: those of buffers that the caller holds. An access elsewhere comes back as an error.
        let failed = unsafe {
            let (args, message, len) = (args.as_ptr(), error.as_mut_ptr(), error.len());
            (self.interface.launch)(kernel.0, gx, gy, gz, bx, by, bz, c.shared, args, message, len)
        };
        if let Some(counts) = counts {
            let values: &mut [u64] = bytemuck::cast_slice_mut(bytemuck::bytes_of_mut(counts));
            // SAFETY: writes at most as many numbers as it is told that there is room for.
            let known = unsafe { (self.interface.counts)(values.as_mut_ptr(), values.len() as c_int) };
            self.set_option("count", "0").map_err(|e| e.to_string())?;
            if known as usize != values.len() {
                return Err(format!("the simulator has {known} counters, {} are known", values.len()));
            }
        }
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the runtime has written a C string into `error`.
        Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Lines of kernels whose accesses cost more than they had to in counted launches since the last call, the worst first.
    pub(super) fn count_lines(self) -> String {
        let _one_at_a_time = self.exclusive();
        let mut text = vec![0u8; 1 << 18];
        // SAFETY: writes at most as many bytes as it is told that there is room for.
        let len = unsafe { (self.interface.count_lines)(text.as_mut_ptr().cast(), text.len()) };
        text.truncate(len);
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(super) fn alloc(self, bytes: usize) -> Option<DevicePtr> {
        let _one_at_a_time = self.exclusive();
        // SAFETY: no preconditions.
        let ptr = unsafe { (self.interface.malloc)(bytes) };
        (!ptr.is_null()).then_some(DevicePtr(ptr as u64))
    }

    pub(super) fn free(self, ptr: DevicePtr) {
        let _one_at_a_time = self.exclusive();
        // SAFETY: the launcher's contract: `ptr` came from `alloc` and is not used any more.
        unsafe { (self.interface.free)(ptr.0 as *mut c_void) }
    }

    pub(super) fn fill(self, dst: DevicePtr, width: usize, pattern: u32, count: usize) {
        let pattern = pattern.to_le_bytes();
        // SAFETY: the launcher's contract: `dst` begins `width * count` bytes of a live block, which nothing else accesses now.
        let bytes = unsafe { std::slice::from_raw_parts_mut(dst.0 as *mut u8, width * count) };
        bytes.chunks_exact_mut(width).for_each(|element| element.copy_from_slice(&pattern[..width]));
    }

    pub(super) fn copy(self, src: DevicePtr, dst: DevicePtr, bytes: usize) {
        // SAFETY: the launcher's contract: both are live blocks of at least `bytes`; `copy` allows them to overlap.
        unsafe { std::ptr::copy(src.0 as *const u8, dst.0 as *mut u8, bytes) }
    }

    pub(super) fn copy_in(self, src: &[u8], dst: DevicePtr) {
        // SAFETY: as in `copy`; `src` is host memory of its own.
        unsafe { std::ptr::copy(src.as_ptr(), dst.0 as *mut u8, src.len()) }
    }

    pub(super) fn copy_out(self, src: DevicePtr, dst: &mut [u8]) {
        // SAFETY: as in `copy`; `dst` is host memory of its own.
        unsafe { std::ptr::copy(src.0 as *const u8, dst.as_mut_ptr(), dst.len()) }
    }
}
