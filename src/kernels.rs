//! The kernels of `kernels/*.cu` and of `kernels/ladder/*.cu`, as the build found and compiled them: one constant for each, their GPU
//! images, and the constants that host code shares with them.

/// A kernel, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelEntry {
    /// Position in [`ALL`], or in [`LADDER`] behind it.
    pub index: usize,
    /// Name of the function.
    pub name: &'static str,
    /// The file it stands in, without extension: also the name of its image.
    pub module: &'static str,
    /// Bytes of its one parameter, a struct by value.
    pub args_size: usize,
}

/// What a kernel takes of a multiprocessor, as ptxas reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptxas {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// What it was compiled for, such as `sm_90a`.
    pub arch: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
