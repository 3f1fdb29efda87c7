//! Linear layers over few rows: the time embedding's, one row an image. Everything is float32 on every device.
//!
//! ```text
//! y[n,k]  = sum_c f(x[n,c]) W[c,k] + b[k]          f = silu or identity
//! dW[c,k] += sum_n f(x[n,c]) dy[n,k]               db[k] += sum_n dy[n,k]
//! dx[n,c]  = f'(x[n,c]) sum_k W[c,k] dy[n,k]       added to what is there, where asked
//! ```
//!
//! W lies in memory as [C, K] (files: PyTorch's [K, C]). Gradients of parameters accumulate.

pub mod cpu;
mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LinearDims {
    /// Rows: images.
    pub n: u32,
    /// Input channels.
    pub c: u32,
    /// Output channels.
    pub k: u32,
    /// 1: SiLU before the product.
    pub silu: u32,
}

/// Refuses empty extents and views of the wrong length: `views` are (name, found, expected).
pub(crate) fn check(d: &LinearDims, views: &[(&str, usize, usize)]) -> Result<()> {
    if d.n == 0 || d.c == 0 || d.k == 0 {
        return Err(Error::Shape { op: "linear", what: format!("unusable extents {d:?}") });
    }
    views.iter().try_for_each(|&(name, got, want)| super::expect_len("linear", name, got, want))
}

/// What [`Linear::linear_backward`] writes.
pub struct LinearGradients<'a, M: Memory> {
    /// [N, C].
    pub dx: Option<M::SliceMut<'a>>,
    /// `dx` is added to what is there, instead of overwriting it.
    pub accumulate: bool,
    /// [C, K], accumulates.
    pub dw: M::SliceMut<'a>,
    /// `[K]`, accumulates.
    pub db: M::SliceMut<'a>,
}

/// Linear layers of a device.
pub trait Linear: Memory {
    /// y [N, K] from x [N, C], w [C, K], b `[K]`.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn linear(
        &self,
        dims: &LinearDims,
        x: Self::Slice<'_>,
        w: Self::Slice<'_>,
        b: Self::Slice<'_>,
        y: Self::SliceMut<'_>,
    ) -> Result<()>;

    /// Gradients from dy [N, K].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn linear_backward(
        &self,
        dims: &LinearDims,
        x: Self::Slice<'_>,
        w: Self::Slice<'_>,
        dy: Self::Slice<'_>,
        out: LinearGradients<'_, Self>,
    ) -> Result<()>
    where
        Self: Sized;
}
