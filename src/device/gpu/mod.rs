//! Devices that run the kernels of `kernels/*.cu`: [`Gpu`] over a [`Launcher`].
//!
//! Activations are float32 or bfloat16, as the [`Arithmetic`] says; everything else (parameters, statistics, losses, gradients of
//! parameters) is float32. Views know their element type, and operations choose their kernels by it.

mod memory;

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use bytemuck::Pod;

use super::launcher::{LaunchConfig, Launcher};
use crate::error::{Error, Result};
use crate::kernels::{self, KernelEntry};

pub use super::launcher::DevicePtr;
use memory::Store;
pub use memory::{GpuBuffer, GpuBytes, GpuReadBack, GpuSlice, GpuSliceMut, Recording};

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// How convolutions compute, and what activations are kept in. Sums are float32 everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// float32 activations; products with the accuracy of float32 (three tf32 products for one).
    Fp32,
    /// float32 activations; factors rounded to tf32 (10 bits of fraction).
    Tf32,
    /// bfloat16 activations and factors.
    Bf16,
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Arithmetic::Fp32 => "fp32",
            Arithmetic::Tf32 => "tf32",
            Arithmetic::Bf16 => "bf16",
        })
    }
}

/// A device behind a launcher, with its memory and its way of computing.
pub struct Gpu<L: Launcher> {
    launcher: Rc<L>,
    arithmetic: Arithmetic,
    /// The arena in use: a recording has one of its own.
    store: RefCell<Rc<RefCell<Store<L>>>>,
    /// The arenas of recordings that live.
    recorded: RefCell<Vec<Weak<RefCell<Store<L>>>>>,
    kernels: RefCell<Vec<Option<L::Kernel>>>,
    /// Names of the kernels launched, where someone wants to know.
    launched: RefCell<Option<Vec<&'static str>>>,
}

impl<L: Launcher> Gpu<L> {
    /// A device with this way of computing.
    pub fn new(launcher: L, arithmetic: Arithmetic) -> Self {
        let launcher = Rc::new(launcher);
        let store = RefCell::new(Rc::new(RefCell::new(Store::new(Rc::clone(&launcher)))));
        let kernels = RefCell::new(vec![None; kernels::ALL.len() + kernels::LADDER.len()]);
        Gpu { launcher, arithmetic, store, recorded: RefCell::default(), kernels, launched: RefCell::default() }
    }

    /// How convolutions compute.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Element type of activations.
    pub fn activation_dtype(&self) -> Dtype {
        match self.arithmetic {
            Arithmetic::Fp32 | Arithmetic::Tf32 => Dtype::F32,
            Arithmetic::Bf16 => Dtype::Bf16,
        }
    }

    /// The launcher.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }

    /// New buffers hold NaN from now on, so that a read before the first write shows.
    pub fn poison_new_buffers(&self) {
        self.store.borrow().borrow_mut().poison = true;
    }

    /// Every buffer is a block of its own from now on, so that the simulator's checker sees an access beyond its end.
    pub fn separate_buffers(&self) {
        self.store.borrow().borrow_mut().separate = true;
    }

    /// Launches a kernel. `args` is its parameter.
    ///
    /// # Errors
    /// The kernel is missing or takes another parameter, or the device refuses.
    pub fn launch<A: Pod>(
        &self,
        entry: &'static KernelEntry,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &A,
    ) -> Result<()> {
        if size_of::<A>() != entry.args_size {
            let (got, want) = (size_of::<A>(), entry.args_size);
            let what = format!("kernel {} takes a parameter of {want} bytes, {got} given", entry.name);
            return Err(Error::Failed(what));
        }
        if grid.contains(&0) {
            return Ok(()); // nothing to do, and not a launch that a driver accepts
        }
        if let Some(launched) = &mut *self.launched.borrow_mut() {
            launched.push(entry.name);
        }
        let known = self.kernels.borrow()[entry.index];
        let kernel = match known {
            Some(kernel) => kernel,
            None => {
                let kernel = self.launcher.kernel(entry)?;
                self.kernels.borrow_mut()[entry.index] = Some(kernel);
                kernel
            }
        };
        self.launcher.launch(kernel, LaunchConfig { grid, block, shared }, bytemuck::bytes_of(args))
    }
}

/// Blocks of `threads` that cover `elements`.
pub(crate) fn blocks(elements: usize, threads: usize) -> u32 {
    u32::try_from(elements.div_ceil(threads)).unwrap_or(u32::MAX)
}
