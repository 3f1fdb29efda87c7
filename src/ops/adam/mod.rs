//! Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019) with the exponential moving average of the weights, one pass
//! over flat buffers. As PyTorch computes it, at step t = 1, 2, ...:
//!
//! ```text
//! adam   g += wd p                adamw  p *= 1 - lr wd
//! m = b1 m + (1-b1) g             v = b2 v + (1-b2) g^2
//! p -= lr / (1 - b1^t) * m / ( sqrt(v) / sqrt(1 - b2^t) + eps )
//! ema = d ema + (1-d) p
//! ```

pub mod cpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::Result;

/// Hyper-parameters of one step, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AdamParams {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decay of the moving average; used where there is one.
    pub ema_decay: f64,
    /// This step's number, from 1.
    pub step: u32,
    /// 1: AdamW (decoupled decay); 0: Adam.
    pub decoupled: u32,
}

impl AdamParams {
    /// PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8.
    pub fn new(lr: f64, weight_decay: f64, decoupled: bool, step: u32) -> Self {
        let decoupled = u32::from(decoupled);
        AdamParams { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, ema_decay: 0.0, step, decoupled }
    }
}

/// The flat buffers of one step, all of the same length.
pub struct AdamState<'a, M: Memory> {
    /// Weights.
    pub params: M::SliceMut<'a>,
    /// Their gradients.
    pub grads: M::Slice<'a>,
    /// First moments.
    pub m: M::SliceMut<'a>,
    /// Second moments.
    pub v: M::SliceMut<'a>,
    /// Moving average of the weights.
    pub ema: Option<M::SliceMut<'a>>,
}

/// The optimiser of a device.
pub trait Adam: Memory {
    /// One step.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn adam_step(&self, params: &AdamParams, state: AdamState<'_, Self>) -> Result<()>
    where
        Self: Sized;
}
