//! The simulator's runtime in a build without it: the same names, and nothing to call them on.

use super::counts::Counts;
use crate::device::launcher::{DevicePtr, LaunchConfig};
use crate::error::{Error, Result};

/// A runtime; there is none in this build.
#[derive(Clone, Copy, Debug)]
pub enum Library {}

/// A kernel of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {}

impl Library {
    /// The fast variant.
    pub(super) fn fast() -> Result<Self> {
        let why = crate::kernels::NO_SIMULATOR.unwrap_or("the build left it out");
        Err(Error::Usage(format!("this build has no simulator: {why}")))
    }
    /// The checker.
    pub(super) fn checked() -> Result<Self> {
        Self::fast()
    }
    /// Sets an option of the runtime.
    ///
    /// # Errors
    /// Never: there is none to call it on.
    pub fn set_option(self, _: &str, _: &str) -> Result<()> {
        match self {}
    }
    pub(super) fn find(self, _: &str) -> Option<Kernel> {
        match self {}
    }
    pub(super) fn args_size(self, _: Kernel) -> usize {
        match self {}
    }
    pub(super) fn launch(
        self,
        _: Kernel,
        _: LaunchConfig,
        _: &[u8],
        _: Option<&mut Counts>,
    ) -> std::result::Result<(), String> {
        match self {}
    }
    pub(super) fn count_lines(self) -> String {
        match self {}
    }
    pub(super) fn alloc(self, _: usize) -> Option<DevicePtr> {
        match self {}
    }
    pub(super) fn free(self, _: DevicePtr) {
        match self {}
    }
    pub(super) fn fill(self, _: DevicePtr, _: usize, _: u32, _: usize) {
        match self {}
    }
    pub(super) fn copy(self, _: DevicePtr, _: DevicePtr, _: usize) {
        match self {}
    }
    pub(super) fn copy_in(self, _: &[u8], _: DevicePtr) {
        match self {}
    }
    pub(super) fn copy_out(self, _: DevicePtr, _: &mut [u8]) {
        match self {}
    }
}
