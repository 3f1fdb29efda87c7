//! Floor 2: the networks. Parameters and their walk, the residual block, the seed's U-Net; forward and backward side by side.
//!
//! `forward` returns a context, `backward` takes it by value: there is no tape. Gradients of parameters accumulate into one flat
//! buffer, gradients of activations are returned as new tensors.

pub mod net;
pub mod params;
pub mod res_block;
pub mod seed_unet;
pub mod unet2d;

pub use net::{Condition, Net, NetCtx, NetNoise};

use crate::device::Memory;
use crate::tensor::Tensor;

/// Which statistics batch norm uses, and whether a context for backward is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; running ones are updated; contexts are kept.
    Train,
    /// Running statistics; nothing is kept.
    Eval,
}

/// An activation with the statistics that its producer took ([N, C, 2], only in training).
pub struct Act<M: Memory> {
    /// The activation; of shape [N, 1, 1, C] where it is constant over the picture.
    pub tensor: Tensor<M>,
    /// Mean and sum of squared deviations per image and channel.
    pub stats: Option<M::Buffer>,
}

impl<M: Memory> Act<M> {
    /// A view of the statistics.
    pub fn stats(&self) -> Option<M::Slice<'_>> {
        self.stats.as_ref().map(M::all)
    }
}
