//! Named ranges of time for a profiler (NVTX): what the host was asking for, above the kernels that a tool such as `nsys` sees by itself.
//!
//! NVTX is no library to link with but a protocol. A tool names its own library in the environment variable `NVTX_INJECTION64_PATH`; a
//! program that has ranges opens it at the first of them and calls its `InitializeInjectionNvtx2` with a function that gives out tables.
//! From these the tool learns where the program keeps the pointers to the functions of NVTX, and writes its own there. What it leaves
//! empty does nothing, and where there is no tool, no such library, or one that refuses, nothing does anything and nobody is told: a
//! program must not behave differently for being watched. (NVIDIA's own headers look in one more place, a tool that the CUDA
//! driver hands out; this does not.)
//!
//! Without a tool a range costs two loads; its name is not made.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Version of the protocol.
const VERSION: u32 = 3;
/// Entries of the tables of the modules 1 to 6 (core, CUDA, OpenCL, CUDA runtime, domains, synchronisation), the unused entry 0 among
/// them. Only the core is called here, but a tool may ask for any, and count on its size.
const SIZES: [usize; 6] = [16, 9, 15, 7, 16, 7];
const LONGEST: usize = 16;
/// Places in the table of the core.
const PUSH: usize = 9;
const POP: usize = 11;

/// Where a tool writes the address of a function of its own. It may do so at any time, so it is read at every call.
type Slot = AtomicPtr<c_void>;
/// Places of slots: entry 0 is empty, and so is one behind the last, which a tool that reads too far stumbles over.
type Table = [Option<&'static Slot>; LONGEST + 1];

static SLOTS: [[Slot; LONGEST]; SIZES.len()] = [const { [const { Slot::new(null_mut()) }; LONGEST] }; SIZES.len()];
static TABLES: [Table; SIZES.len()] = {
    let mut tables: [Table; SIZES.len()] = [[None; LONGEST + 1]; SIZES.len()];
    let mut module = 0;
    while module < SIZES.len() {
        let mut at = 1;
        while at < SIZES[module] {
            tables[module][at] = Some(&SLOTS[module][at]);
            at += 1;
        }
        module += 1;
    }
    tables
};

/// Where a tool wants to have the address of a table.
type Entries = MaybeUninit<*const Option<&'static Slot>>;

/// The table that a tool gets the other ones by.
#[repr(C)]
struct Callbacks {
    struct_size: usize,
    module_table: extern "C" fn(c_int, Option<&mut Entries>, Option<&mut MaybeUninit<c_uint>>) -> c_int,
}

/// The table that tells a tool what it speaks with.
#[repr(C)]
struct VersionInfo {
    struct_size: usize,
    version: u32,
    reserved: u32,
    set_tool_version: extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks { struct_size: size_of::<Callbacks>(), module_table };
static VERSION_INFO: VersionInfo =
    VersionInfo { struct_size: size_of::<VersionInfo>(), version: VERSION, reserved: 0, set_tool_version };

/// Gives a tool the table of a module and its size, each where it asks for it; 0 where there is no such module.
extern "C" fn module_table(
    module: c_int,
    table: Option<&mut Entries>,
    size: Option<&mut MaybeUninit<c_uint>>,
) -> c_int {
    let Some(index) = usize::try_from(module).ok().and_then(|module| module.checked_sub(1)) else { return 0 };
    let (Some(entries), Some(&count)) = (TABLES.get(index), SIZES.get(index)) else { return 0 };
    if let Some(size) = size {
        size.write(count as c_uint);
    }
    if let Some(table) = table {
        table.write(entries.as_ptr());
    }
    1
}

/// A tool tells its version; nothing here depends on it.
extern "C" fn set_tool_version(_: u32) {}

/// Gives a tool the table of a number.
extern "C" fn export_table(id: u32) -> *const c_void {
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION_INFO).cast(),
        _ => std::ptr::null(),
    }
}

type ExportTable = extern "C" fn(u32) -> *const c_void;
type Initialize = unsafe extern "C" fn(ExportTable) -> c_int;
type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// Looks for a tool and lets it write into the slots; whether there is one that wants to.
fn attach() -> bool {
    let variable = if cfg!(target_pointer_width = "32") { "NVTX_INJECTION32_PATH" } else { "NVTX_INJECTION64_PATH" };
    let Some(path) = std::env::var_os(variable).and_then(|path| CString::new(path.into_vec()).ok()) else {
        return false;
    };
    // SAFETY: a path that ends with 0. What the library does as it is opened is up to whoever set the variable, as for every program that
    // has NVTX ranges.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
    if library.is_null() {
        return false;
    }
    // SAFETY: the library is open, the name ends with 0.
    let entry = unsafe { libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr()) };
    let attached = !entry.is_null() && {
        // SAFETY: a function of this name has this type by the protocol; it is not null.
        let initialize = unsafe { std::mem::transmute::<*mut c_void, Initialize>(entry) };
        // SAFETY: called as the protocol has it: once, with a function whose tables live as long as the program.
        unsafe { initialize(export_table) != 0 }
    };
    if !attached {
        // SAFETY: open, and closed once; what a tool that refused has left in the slots is never called.
        unsafe { libc::dlclose(library) };
    }
    attached
}

/// What a tool has put into a slot of the core; `None` where nothing, or where there is no tool.
fn slot(at: usize) -> Option<*mut c_void> {
    static ATTACHED: OnceLock<bool> = OnceLock::new();
    if !ATTACHED.get_or_init(attach) {
        return None;
    }
    let function = SLOTS[0][at].load(Ordering::Acquire);
    (!function.is_null()).then_some(function)
}

/// A range of time on this thread, from its making to its end of life. Ranges of a thread lie within one another.
#[must_use = "a range ends where it is dropped"]
pub struct Range {
    pushed: bool,
    /// Ends on the thread that it began on.
    _thread: PhantomData<*const ()>,
}

impl Range {
    fn begin<N: AsRef<CStr>>(name: impl FnOnce() -> Option<N>) -> Self {
        // Both, or a range that begins would never end.
        let push = slot(PUSH).filter(|_| slot(POP).is_some());
        let pushed = match push.and_then(|push| Some((push, name()?))) {
            Some((push, name)) => {
                // SAFETY: what a tool writes into this slot has this type by the protocol; it is not null.
                let push = unsafe { std::mem::transmute::<*mut c_void, Push>(push) };
                // SAFETY: the name ends with 0 and lives until the call returns; a tool copies it. The library stays open. The depth that is
                // returned is of no use here.
                unsafe { push(name.as_ref().as_ptr()) };
                true
            }
            None => false,
        };
        Range { pushed, _thread: PhantomData }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if !self.pushed {
            return;
        }
        if let Some(pop) = slot(POP) {
            // SAFETY: as in `begin`.
            let pop = unsafe { std::mem::transmute::<*mut c_void, Pop>(pop) };
            // SAFETY: on the thread of the range, as the protocol has it.
            unsafe { pop() };
        }
    }
}

/// Begins a range.
pub fn range(name: &'static CStr) -> Range {
    Range::begin(|| Some(name))
}

/// Begins a range whose name has to be made, which happens only where a tool is there to read it.
pub fn range_named(name: impl FnOnce() -> String) -> Range {
    Range::begin(|| CString::new(name()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_sizes_of_the_protocol() {
        for (module, size) in (1..).zip([16, 9, 15, 7, 16, 7]) {
            let (mut table, mut count) = (Entries::new(std::ptr::null()), MaybeUninit::new(0));
            assert_eq!(module_table(module, Some(&mut table), Some(&mut count)), 1);
            // SAFETY: both had a value before.
            let (table, count) = unsafe { (table.assume_init(), count.assume_init() as usize) };
            assert_eq!(count, size, "{module}");
            // SAFETY: every table has an entry more than it counts.
            let entries = unsafe { std::slice::from_raw_parts(table, count + 1) };
            let there: Vec<bool> = entries.iter().map(Option::is_some).collect();
            assert!(!there[0] && !there[count] && there[1..count].iter().all(|&there| there), "{module}: {there:?}");
            assert_eq!(module_table(module, None, None), 1);
        }
        assert!([-1, 0, 7, c_int::MAX].iter().all(|&module| module_table(module, None, None) == 0));
    }

    #[test]
    fn export_tables_begin_with_their_size() {
        for (id, size) in [(1, 2 * size_of::<usize>()), (3, 2 * size_of::<usize>() + 8)] {
            // SAFETY: both tables begin with a `usize`.
            assert_eq!(unsafe { *export_table(id).cast::<usize>() }, size);
        }
        assert!([0, 2, 4, u32::MAX].iter().all(|&id| export_table(id).is_null()));
    }

    #[test]
    fn a_name_is_not_made_where_nobody_reads_it() {
        // No tool watches tests.
        drop(range(c"nobody"));
        drop(range_named(|| unreachable!("a name was made")));
    }
}
