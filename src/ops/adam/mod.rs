//! Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019) with the exponential moving average of the weights, one pass
//! over flat buffers. As PyTorch computes it, at step t = 1, 2, ...:
//!
//! ```text
//! adam   g += wd p                adamw  p *= 1 - lr wd
//! m = b1 m + (1-b1) g             v = b2 v + (1-b2) g^2
//! p -= lr / (1 - b1^t) * m / ( sqrt(v) / sqrt(1 - b2^t) + eps )
//! ema = d ema + (1-d) p
//! ```
//!
//! Where gradients are clipped, g is first multiplied by a factor from [`crate::ops::grad_norm`].

pub mod cpu;
pub mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

/// Hyper-parameters of one step.
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

/// Numbers of a step as the operations read them from device memory, in this order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AdamScalars {
    /// 1 - beta1, rounded once: 1 - (0.999 in float32) would be off by 1.3e-5, and so would the second moment.
    pub gain1: f32,
    /// 1 - beta2.
    pub gain2: f32,
    /// lr / (1 - beta1^t).
    pub step_size: f32,
    /// 1 / sqrt(1 - beta2^t).
    pub correction: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// AdamW: factor of the weight. Adam: 1.
    pub shrink: f32,
    /// Adam: factor of the weight in the gradient. AdamW: 0.
    pub decay: f32,
    /// 1 - decay of the average.
    pub gain_ema: f32,
}

impl AdamScalars {
    /// Slots.
    pub const LEN: usize = size_of::<AdamScalars>() / size_of::<f32>();
}

impl AdamParams {
    /// What the step computes with, in float32 as it is applied.
    ///
    /// # Errors
    /// [`Error::Shape`] where the step is 0.
    pub fn scalars(&self) -> Result<AdamScalars> {
        if self.step == 0 {
            return Err(Error::Shape { op: "adam", what: "steps are counted from 1".into() });
        }
        let t = f64::from(self.step);
        let decoupled = self.decoupled != 0;
        Ok(AdamScalars {
            gain1: (1.0 - self.beta1) as f32,
            gain2: (1.0 - self.beta2) as f32,
            step_size: (self.lr / (1.0 - self.beta1.powf(t))) as f32,
            correction: (1.0 / (1.0 - self.beta2.powf(t)).sqrt()) as f32,
            eps: self.eps as f32,
            shrink: if decoupled { (1.0 - self.lr * self.weight_decay) as f32 } else { 1.0 },
            decay: if decoupled { 0.0 } else { self.weight_decay as f32 },
            gain_ema: (1.0 - self.ema_decay) as f32,
        })
    }
}

/// The flat buffers of one step, all of the same length: `'a` those that change, `'g` those that are read.
pub struct AdamState<'a, 'g, M: Memory> {
    /// Weights.
    pub params: M::SliceMut<'a>,
    /// Their gradients.
    pub grads: M::Slice<'g>,
    /// First moments.
    pub m: M::SliceMut<'a>,
    /// Second moments.
    pub v: M::SliceMut<'a>,
    /// Moving average of the weights.
    pub ema: Option<M::SliceMut<'a>>,
    /// `[1]`: factor of the gradients; 1 where there is none.
    pub clip: Option<M::Slice<'g>>,
}

/// The optimiser of a device.
pub trait Adam: Memory {
    /// One step with `scalars` ([`AdamScalars`], one slot each). Nothing changes where `guard` `[1]`, the loss, or the
    /// factor `clip` is not finite.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn adam_step(
        &self,
        scalars: Self::Slice<'_>,
        guard: Option<Self::Slice<'_>>,
        state: AdamState<'_, '_, Self>,
    ) -> Result<()>
    where
        Self: Sized;

    /// The moving average alone, of values that are not learned: `ema` += gain_ema (`src` - `ema`), under the same guard.
    ///
    /// # Errors
    /// [`Error::Shape`] where a view does not fit.
    fn ema_update(
        &self,
        scalars: Self::Slice<'_>,
        guard: Option<Self::Slice<'_>>,
        src: Self::Slice<'_>,
        ema: Self::SliceMut<'_>,
    ) -> Result<()>;
}
