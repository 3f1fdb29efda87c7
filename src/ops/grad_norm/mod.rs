//! The norm of all gradients together, and the factor that keeps it at a limit (Pascanu, Mikolov, Bengio 2013), as PyTorch's
//! `clip_grad_norm_` computes it.
//!
//! ```text
//! norm    sqrt( sum over all elements of g^2 )
//! factor  min(1, limit / (norm + 1e-6));     not a number where the norm is not finite, so that Adam takes no step
//! ```
//!
//! Nothing accumulates. The gradients themselves stay as they are: Adam multiplies by the factor as it reads them.
//!
//! Squares are summed in pieces that depend on the number of elements only, then over the pieces, in a fixed order.

pub mod cpu;
pub mod gpu;
pub mod reference;

use crate::device::Memory;
use crate::error::Result;

/// Added to the norm in the denominator, as PyTorch has it.
pub const EPS: f64 = 1e-6;

/// The norm of a device.
pub trait GradNorm: Memory {
    /// Writes the norm of `grads` and the factor for `limit` to `out` `[2]`.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where `out` is not two slots.
    fn grad_norm(&self, limit: f32, grads: Self::Slice<'_>, out: Self::SliceMut<'_>) -> Result<()>;
}
