//! One deterministic DDIM update (Song, Meng and Ermon 2021, equation 12 with sigma = 0), fused with the split of the prediction:
//!
//! ```text
//! (pred_noise, pred_image) from p, x and the rates now, as in [`super::loss`]
//! x <- signal_next * pred_image + noise_next * pred_noise           one read and one write of x
//! ```
//!
//! `pred_image` is written out where asked (the last step returns it). No backward: sampling is not trained through.

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::Result;

/// Extents and kind, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DdimDims {
    /// Images.
    pub n: u32,
    /// Elements of an image.
    pub per_image: u32,
    /// 0 noise, 1 image, 2 velocity.
    pub predict: u32,
}

/// The DDIM update of a device.
pub trait DdimStep: Memory {
    /// Updates `x` [N, per image] in place. Rates are [N, 2]: signal, noise.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn ddim_step(
        &self,
        dims: &DdimDims,
        pred: Self::Slice<'_>,
        rates_now: Self::Slice<'_>,
        rates_next: Self::Slice<'_>,
        x: Self::SliceMut<'_>,
        pred_image: Option<Self::SliceMut<'_>>,
    ) -> Result<()>;
}
