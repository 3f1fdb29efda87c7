//! A network of either family, behind one interface.

use super::params::{Layout, Weights};
use super::seed_unet::{SeedCtx, SeedDims, SeedUnet};
use super::unet2d::{Unet2d, Unet2dCtx};
use super::{Act, Mode};
use crate::config::{Config, Family};
use crate::device::{Memory, nvtx};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::noise::NoiseKey;
use crate::tensor::Tensor;
use std::rc::Rc;

/// What a network is told besides the noisy pictures.
pub struct Condition<M: Memory> {
    /// Signal rate and noise rate of each image, [N, 2].
    pub rates: M::Buffer,
    /// The seed family's embedding of the noise, [N, 1, 1, E].
    pub embedding: Option<Act<M>>,
    /// The family unet2d's timesteps, `[N]`.
    pub timesteps: Option<M::Buffer>,
    /// Classes of the images, `[N]` whole numbers, where the network knows classes.
    pub labels: Option<M::Buffer>,
    /// What the loss of each image weighs, `[N]`, where they differ.
    pub weights: Option<M::Buffer>,
}

/// Randomness inside the network: dropout.
pub struct NetNoise<'a, M: Memory> {
    /// Seed and index of the first image.
    pub key: NoiseKey,
    /// The step, see [`crate::ops::noise::step_word`].
    pub step: M::Slice<'a>,
}

impl<M: Memory> Clone for NetNoise<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Memory> Copy for NetNoise<'_, M> {}

/// The network of a run.
#[derive(Debug)]
pub enum Net {
    /// That of "De-noising Diffusion with torch".
    Seed(Box<SeedUnet>),
    /// diffusers' `UNet2DModel`.
    Unet2d(Box<Unet2d>),
}

/// What backward needs.
pub enum NetCtx<B: Backend> {
    /// Of the seed family.
    Seed(Box<SeedCtx<B>>),
    /// Of the family unet2d.
    Unet2d(Box<Unet2dCtx<B>>),
}

impl Net {
    /// The network that a configuration describes.
    ///
    /// # Errors
    /// Options that do not fit each other.
    pub fn new(config: &Config) -> Result<Self> {
        match (config.family, &config.unet) {
            (Family::Seed, _) => Ok(Net::Seed(Box::new(SeedUnet::new(SeedDims::from(config))))),
            (Family::Unet2d, Some(unet)) => Ok(Net::Unet2d(Box::new(Unet2d::new(unet, config.channels)?))),
            (Family::Unet2d, None) => Err(Error::Usage("family unet2d has no options under unet.".into())),
        }
    }

    /// Names and places of the parameters.
    pub fn layout(&self) -> &Rc<Layout> {
        match self {
            Net::Seed(net) => &net.layout,
            Net::Unet2d(net) => &net.layout,
        }
    }

    /// The network drops activations out in training: it then needs random numbers.
    pub fn has_dropout(&self) -> bool {
        match self {
            Net::Seed(_) => false,
            Net::Unet2d(net) => net.has_dropout(),
        }
    }

    /// Prediction [N, H, W, C] from noisy pictures [N, H, W, C]. `noise` is needed in training where the network drops activations out.
    ///
    /// # Errors
    /// Shapes that do not fit, a condition that is missing, out of memory, a failing device.
    pub fn forward<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        mode: Mode,
        noisy: &Tensor<B>,
        condition: &mut Condition<B>,
        noise: Option<NetNoise<'_, B>>,
    ) -> Result<(Tensor<B>, Option<NetCtx<B>>)> {
        let _range = nvtx::range(c"forward");
        match self {
            Net::Seed(net) => {
                let missing = || Error::Failed("the seed family's embedding is missing".into());
                let embedding = condition.embedding.take().ok_or_else(missing)?;
                let (pred, ctx) = net.forward(backend, weights, mode, noisy, embedding)?;
                Ok((pred, ctx.map(|ctx| NetCtx::Seed(Box::new(ctx)))))
            }
            Net::Unet2d(net) => {
                let missing = || Error::Failed("the timesteps of the family unet2d are missing".into());
                let timesteps = condition.timesteps.as_ref().ok_or_else(missing)?;
                let labels = condition.labels.as_ref();
                let (pred, ctx) = net.forward(backend, weights, mode, noisy, timesteps, labels, noise)?;
                Ok((pred, ctx.map(|ctx| NetCtx::Unet2d(Box::new(ctx)))))
            }
        }
    }

    /// Accumulates the gradients of all parameters from `dpred` [N, H, W, C]; `noisy`, `condition` and `noise` are those that forward had.
    ///
    /// # Errors
    /// Shapes that do not fit, out of memory, a failing device.
    #[allow(clippy::too_many_arguments)] // what forward had, and the gradients
    pub fn backward<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: NetCtx<B>,
        noisy: &Tensor<B>,
        condition: &Condition<B>,
        noise: Option<NetNoise<'_, B>>,
        dpred: Tensor<B>,
    ) -> Result<()> {
        let _range = nvtx::range(c"backward");
        match (self, ctx) {
            (Net::Seed(net), NetCtx::Seed(ctx)) => net.backward(backend, weights, grads, *ctx, noisy, dpred),
            (Net::Unet2d(net), NetCtx::Unet2d(ctx)) => {
                let timesteps = condition.timesteps.as_ref();
                net.backward(backend, weights, grads, *ctx, noisy, timesteps, condition.labels.as_ref(), noise, dpred)
            }
            _ => Err(Error::Failed("a context of another network".into())),
        }
    }
}
