//! The simulator's runtime, by its C interface.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::Once;

use crate::device::launcher::{DevicePtr, LaunchConfig};
use crate::error::Result;

unsafe extern "C" {
    fn simt_register_all();
    fn simt_find(name: *const c_char) -> *const c_void;
    fn simt_nparams(kernel: *const c_void) -> c_int;
    fn simt_param_size(kernel: *const c_void, index: c_int) -> c_uint;
    fn simt_malloc(bytes: usize) -> *mut c_void;
    fn simt_free(ptr: *mut c_void);
    #[allow(clippy::too_many_arguments)]
    fn simt_launch(
        kernel: *const c_void,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared: c_uint,
        args: *const *const c_void,
        error: *mut c_char,
        error_len: usize,
    ) -> c_int;
}

/// A variant of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// As fast as it can be.
    Fast,
}

/// A kernel: the address of its record, which lives as long as the program.
#[derive(Clone, Copy, Debug)]
pub struct Kernel(*const c_void);

static REGISTER: Once = Once::new();

impl Library {
    /// The fast variant.
    pub(super) fn fast() -> Result<Self> {
        // SAFETY: takes no arguments; only fills the runtime's table, once.
        REGISTER.call_once(|| unsafe { simt_register_all() });
        Ok(Library::Fast)
    }

    /// The checker.
    pub(super) fn checked() -> Result<Self> {
        Err(crate::error::Error::Usage("this build has no checker".into()))
    }

    pub(super) fn find(self, name: &str) -> Option<Kernel> {
        let name = CString::new(name).ok()?;
        // SAFETY: `name` is a C string that outlives the call.
        let kernel = unsafe { simt_find(name.as_ptr()) };
        (!kernel.is_null()).then_some(Kernel(kernel))
    }

    pub(super) fn args_size(self, kernel: Kernel) -> usize {
        // SAFETY: `kernel` came from `simt_find`.
        unsafe { if simt_nparams(kernel.0) == 1 { simt_param_size(kernel.0, 0) as usize } else { 0 } }
    }

    pub(super) fn launch(self, kernel: Kernel, c: LaunchConfig, args: &[u8]) -> std::result::Result<(), String> {
        // The struct must be aligned as the kernel's parameter is.
        let mut aligned = vec![0u128; args.len().div_ceil(16)];
        bytemuck::cast_slice_mut(&mut aligned)[..args.len()].copy_from_slice(args);
        let args = [aligned.as_ptr().cast::<c_void>()];
        let mut error = [0 as c_char; 2048];
        // SAFETY: `kernel` came from `simt_find` and takes one parameter of this size (checked when it was looked up); the runtime
        // reads it during the call only, and writes at most `error.len()` bytes of message. What the kernel itself touches are the
        // addresses in its parameter: those of buffers that the caller holds.
        let failed = unsafe {
            let ([gx, gy, gz], [bx, by, bz]) = (c.grid, c.block);
            let (args, error, len) = (args.as_ptr(), error.as_mut_ptr(), error.len());
            simt_launch(kernel.0, gx, gy, gz, bx, by, bz, c.shared, args, error, len)
        };
        if failed == 0 {
            return Ok(());
        }
        let bytes: Vec<u8> = error.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
        Err(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn alloc(self, bytes: usize) -> Option<DevicePtr> {
        // SAFETY: no preconditions.
        let ptr = unsafe { simt_malloc(bytes) };
        (!ptr.is_null()).then_some(DevicePtr(ptr as u64))
    }

    pub(super) fn free(self, ptr: DevicePtr) {
        // SAFETY: the launcher's contract: `ptr` came from `alloc` and is not used any more.
        unsafe { simt_free(ptr.0 as *mut c_void) }
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
