//! Everything that training changes: weights, gradients, moments, moving average; one step of it, and the evaluation of a batch.

use std::rc::Rc;

use crate::config::{Config, OptimizerKind};
use crate::device::{ReadBack, nvtx};
use crate::diffusion::Diffusion;
use crate::error::{Error, Result};
use crate::model::params::{Weights, load_flat, visit_flat};
use crate::model::{Condition, Mode, Net, NetCtx, NetNoise};
use crate::ops::Backend;
use crate::ops::adam::{AdamParams, AdamScalars, AdamState};
use crate::ops::loss::{LossDims, LossInput, LossValues};
use crate::ops::noise::{NoiseKey, step_word};
use crate::tensor::Tensor;
use crate::train::lr::LrPlan;
use crate::train::tensor_file::NamedTensor;

/// A network in training.
pub struct TrainState<B: Backend> {
    /// The network.
    pub net: Net,
    /// Its weights.
    pub weights: Weights<B>,
    /// Schedule and objective.
    pub diffusion: Diffusion,
    /// The points of the schedule, on the device, where it has points.
    table: Option<B::Buffer>,
    /// Gradients of the last step, one flat buffer.
    pub grads: B::Buffer,
    m: B::Buffer,
    v: B::Buffer,
    /// Moving average of the weights, where the configuration asks for one.
    pub ema: Option<B::Buffer>,
    /// Moving average of the running statistics, beside `ema`: weights and the statistics they were seen with belong together.
    ema_running: Option<B::Buffer>,
    /// What changes from step to step, on the device: [`AdamScalars`], then the step's number.
    numbers: B::Buffer,
    /// Loss, noise loss, image loss; the norm of the gradients and the factor that Adam takes them by.
    losses: B::Buffer,
    /// Largest norm of the gradients, where they are clipped.
    grad_clip: Option<f32>,
    /// Images of the parts that a batch is computed in.
    pub part: usize,
    /// Optimiser steps taken.
    pub step: u64,
    lr: LrPlan,
    weight_decay: f64,
    decoupled: bool,
    ema_decay: f64,
    ema_warmup: bool,
    /// Strength of the noise that is the same over a channel.
    pub offset_noise: f32,
}

/// The operands of a step. Shapes [N, H, W, C]; times `[N]`.
pub struct Batch<'a, B: Backend> {
    /// Normalised pictures.
    pub images: &'a Tensor<B>,
    /// The noise to mix in.
    pub noise: &'a Tensor<B>,
    /// Diffusion times in [0, 1].
    pub times: &'a B::Buffer,
    /// Classes, where the network knows classes.
    pub labels: Option<&'a B::Buffer>,
    /// For dropout, where the network drops activations out: seed and first image.
    pub dropout: Option<NoiseKey>,
}

/// Which part of a batch a [`Batch`] is, where one is computed in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Images of the whole batch.
    pub of: usize,
    /// The first part: gradients and losses start from it.
    pub first: bool,
}

impl Part {
    /// All of a batch of `n` images.
    pub fn whole(n: usize) -> Self {
        Part { of: n, first: true }
    }
}

/// The forward half of a step: the network's output, the noisy input and the loss.
struct Forward<B: Backend> {
    noisy: Tensor<B>,
    pred: Tensor<B>,
    ctx: Option<NetCtx<B>>,
    condition: Condition<B>,
}

impl<B: Backend> TrainState<B> {
    /// A fresh network by the configuration's seed.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, config: &Config) -> Result<Self> {
        let net = Net::new(config)?;
        let weights = Weights::init(backend, net.layout(), config.seed)?;
        let len = net.layout().flat_len();
        let diffusion = Diffusion::new(config)?;
        let zeros = || -> Result<B::Buffer> {
            let mut buffer = backend.alloc(len)?;
            backend.fill(B::all_mut(&mut buffer), 0.0)?;
            Ok(buffer)
        };
        let mut state = TrainState {
            table: diffusion.table(backend)?,
            diffusion,
            grads: zeros()?,
            m: zeros()?,
            v: zeros()?,
            ema: if config.ema_decay > 0.0 { Some(zeros()?) } else { None },
            ema_running: if config.ema_decay > 0.0 {
                Some(backend.alloc(B::buffer_len(&weights.running))?)
            } else {
                None
            },
            numbers: backend.alloc(AdamScalars::LEN + 1)?,
            losses: backend.alloc(5)?,
            grad_clip: (config.grad_clip > 0.0).then_some(config.grad_clip as f32),
            part: config.batch_size / config.accumulate,
            step: 0,
            lr: LrPlan::new(config, config.steps as u64),
            weight_decay: config.weight_decay,
            decoupled: config.optimizer == OptimizerKind::AdamW,
            ema_decay: config.ema_decay,
            ema_warmup: config.ema_warmup,
            offset_noise: config.offset_noise as f32,
            net,
            weights,
        };
        state.restart_ema(backend)?;
        Ok(state)
    }

    /// Sets the moving average to the weights.
    ///
    /// # Errors
    /// The device failed.
    pub fn restart_ema(&mut self, backend: &B) -> Result<()> {
        if let (Some(ema), Some(running)) = (&mut self.ema, &mut self.ema_running) {
            backend.copy(B::all(&self.weights.params), B::all_mut(ema))?;
            backend.copy(B::all(&self.weights.running), B::all_mut(running))?;
        }
        Ok(())
    }

    fn forward(&mut self, backend: &B, mode: Mode, batch: &Batch<'_, B>) -> Result<Forward<B>> {
        let range = nvtx::range(c"q_sample");
        let mut condition = self.diffusion.condition(backend, self.table.as_ref(), batch.times)?;
        if let Some(labels) = batch.labels {
            let mut copy = backend.alloc(B::buffer_len(labels))?;
            backend.copy(B::all(labels), B::all_mut(&mut copy))?;
            condition.labels = Some(copy);
        }
        let mut noisy = Tensor::new(backend, batch.images.shape)?;
        let rates = B::all(&condition.rates);
        backend.q_sample(batch.images.view(), batch.noise.view(), rates, noisy.view_mut())?;
        drop(range);
        let step = B::slice(&self.numbers, AdamScalars::LEN..AdamScalars::LEN + 1);
        let noise = batch.dropout.map(|key| NetNoise { key, step });
        let (pred, ctx) = self.net.forward(backend, &mut self.weights, mode, &noisy, &mut condition, noise)?;
        Ok(Forward { noisy, pred, ctx, condition })
    }

    /// Asks for the loss of a forward pass, into `self.losses`; of a part of a batch where `part` says so.
    fn loss(
        &mut self,
        backend: &B,
        batch: &Batch<'_, B>,
        part: Part,
        forward: &Forward<B>,
        dpred: Option<&mut Tensor<B>>,
    ) -> Result<()> {
        let _range = nvtx::range(c"loss");
        let input = LossInput {
            pred: forward.pred.view(),
            noisy: forward.noisy.view(),
            images: batch.images.view(),
            noise: batch.noise.view(),
            rates: B::all(&forward.condition.rates),
            weights: forward.condition.weights.as_ref().map(B::all),
        };
        let dims = self.diffusion.loss_dims(batch.images.shape);
        let dims = LossDims { of: part.of as u32, add: u32::from(!part.first), ..dims };
        #[allow(clippy::single_range_in_vec_init)] // one view, not a list of numbers
        let [losses] = B::slices_mut(&mut self.losses, [0..3]);
        backend.loss(&dims, input, dpred.map(Tensor::view_mut), losses)
    }

    /// Where the last step or evaluation left loss, noise loss and image loss, `[3]`; where gradients are clipped, with the norm of the
    /// last step's behind them, `[4]`.
    pub fn losses(&self) -> B::Slice<'_> {
        B::slice(&self.losses, 0..if self.grad_clip.is_some() { 4 } else { 3 })
    }

    fn read_losses(&self, backend: &B) -> Result<LossValues> {
        Ok(LossValues::from_slots(&backend.read_back(B::slice(&self.losses, 0..3))?.wait()?))
    }

    /// Asks for the gradients of one batch: forward, loss and backward, nothing read back.
    fn differentiate(&mut self, backend: &B, batch: &Batch<'_, B>) -> Result<()> {
        self.differentiate_part(backend, batch, Part::whole(batch.images.shape.n))
    }

    /// The same for a part of a batch: gradients and losses are the batch's after its last part.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn differentiate_part(&mut self, backend: &B, batch: &Batch<'_, B>, part: Part) -> Result<()> {
        let mut forward = self.forward(backend, Mode::Train, batch)?;
        let mut dpred = Tensor::new(backend, batch.images.shape)?;
        self.loss(backend, batch, part, &forward, Some(&mut dpred))?;
        let ctx = forward.ctx.take();
        let Forward { noisy, pred, condition, .. } = forward;
        drop(pred);
        let ctx = ctx.ok_or_else(|| Error::Failed("the network kept no context in training".into()))?;
        if part.first {
            let _range = nvtx::range(c"zero_grad");
            backend.fill(B::all_mut(&mut self.grads), 0.0)?;
        }
        let step = B::slice(&self.numbers, AdamScalars::LEN..AdamScalars::LEN + 1);
        let noise = batch.dropout.map(|key| NetNoise { key, step });
        self.net.backward(backend, &self.weights, &mut self.grads, ctx, &noisy, &condition, noise, dpred)
    }

    /// Gradients of one batch into `grads`, without a step of the optimiser. Batch norm's running statistics move.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn gradients(&mut self, backend: &B, batch: &Batch<'_, B>) -> Result<LossValues> {
        self.differentiate(backend, batch)?;
        self.read_losses(backend)
    }

    /// Sets the number of steps of the whole run, which a falling learning rate ends with. Until then it is the configuration's `steps`.
    pub fn plan(&mut self, config: &Config, total: u64) {
        self.lr = LrPlan::new(config, total);
    }

    /// Sets the learning rates of the steps to come.
    pub fn set_lr_plan(&mut self, plan: LrPlan) {
        self.lr = plan;
    }

    /// The learning rate of the last step; before the first, that of the first.
    pub fn lr(&self) -> f64 {
        self.lr.at(self.step.saturating_sub(1))
    }

    /// Counts a step, and brings to the device what changes with it.
    ///
    /// # Errors
    /// The device failed.
    pub fn begin_step(&mut self, backend: &B) -> Result<()> {
        let began = self.step;
        self.step += 1;
        let step = u32::try_from(self.step).unwrap_or(u32::MAX);
        let mut params = AdamParams::new(self.lr.at(began), self.weight_decay, self.decoupled, step);
        params.ema_decay = self.ema_decay;
        if self.ema_warmup {
            // An average over t steps cannot remember more than t of them.
            params.ema_decay = self.ema_decay.min((1.0 + f64::from(step)) / (10.0 + f64::from(step)));
        }
        let mut numbers = bytemuck::cast::<AdamScalars, [f32; AdamScalars::LEN]>(params.scalars()?).to_vec();
        numbers.push(step_word(began));
        backend.upload(&numbers, B::all_mut(&mut self.numbers))
    }

    /// The number of the step that has begun (counted from 0), as the random numbers read it: `[1]`.
    pub fn step_slot(&self) -> B::Slice<'_> {
        B::slice(&self.numbers, AdamScalars::LEN..AdamScalars::LEN + 1)
    }

    /// Asks for one training step, after [`TrainState::begin_step`]: nothing is read back, so that a device can record it. The
    /// weights stay as they are where the loss is not finite.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn run_step(&mut self, backend: &B, batch: &Batch<'_, B>) -> Result<()> {
        self.differentiate(backend, batch)?;
        self.finish_step(backend)
    }

    /// The optimiser's half of [`TrainState::run_step`], after [`TrainState::differentiate_part`] for every part of the batch.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn finish_step(&mut self, backend: &B) -> Result<()> {
        self.apply(backend, true)
    }

    /// One step of the optimiser with the gradients at hand.
    ///
    /// # Errors
    /// The device failed.
    pub fn optimize(&mut self, backend: &B) -> Result<()> {
        self.begin_step(backend)?;
        self.apply(backend, false)
    }

    fn apply(&mut self, backend: &B, guarded: bool) -> Result<()> {
        let _range = nvtx::range(c"adam");
        if let Some(limit) = self.grad_clip {
            #[allow(clippy::single_range_in_vec_init)] // one view, not a list of numbers
            let [out] = B::slices_mut(&mut self.losses, [3..5]);
            backend.grad_norm(limit, B::all(&self.grads), out)?;
        }
        let scalars = B::slice(&self.numbers, 0..AdamScalars::LEN);
        let guard = guarded.then(|| B::slice(&self.losses, 0..1));
        let state = AdamState {
            params: B::all_mut(&mut self.weights.params),
            grads: B::all(&self.grads),
            m: B::all_mut(&mut self.m),
            v: B::all_mut(&mut self.v),
            ema: self.ema.as_mut().map(B::all_mut),
            clip: self.grad_clip.map(|_| B::slice(&self.losses, 4..5)),
        };
        backend.adam_step(scalars, guard, state)?;
        self.weights.touch();
        if let Some(ema) = &mut self.ema_running {
            backend.ema_update(scalars, guard, B::all(&self.weights.running), B::all_mut(ema))?;
        }
        Ok(())
    }

    /// Loss and metrics of a batch in evaluation mode, with the weights as trained.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn evaluate(&mut self, backend: &B, batch: &Batch<'_, B>) -> Result<LossValues> {
        let forward = self.forward(backend, Mode::Eval, batch)?;
        self.loss(backend, batch, Part::whole(batch.images.shape.n), &forward, None)?;
        self.read_losses(backend)
    }

    /// Predicted noise and image of a batch, in either mode.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn predict(&mut self, backend: &B, mode: Mode, batch: &Batch<'_, B>) -> Result<Predictions<B>> {
        let Forward { noisy, pred, condition, .. } = self.forward(backend, mode, batch)?;
        let rates = condition.rates;
        let shape = noisy.shape;
        let (mut noise, mut image) = (Tensor::new(backend, shape)?, Tensor::new(backend, shape)?);
        let dims = self.diffusion.loss_dims(shape);
        let (p, x, r) = (pred.view(), noisy.view(), B::all(&rates));
        backend.split_prediction(&dims, p, x, r, noise.view_mut(), image.view_mut())?;
        Ok(Predictions { noisy, noise, image, rates })
    }

    /// A copy of the weights for sampling: the moving average where there is one.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn sampling_weights(&self, backend: &B) -> Result<Weights<B>> {
        let mut copy = self.weights.with_params(backend, self.ema.as_ref().unwrap_or(&self.weights.params))?;
        if let Some(running) = &self.ema_running {
            backend.copy(B::all(running), B::all_mut(&mut copy.running))?;
        }
        Ok(copy)
    }

    /// Moments and moving average by name, for a checkpoint.
    ///
    /// # Errors
    /// The device failed.
    pub fn export_optimizer(&self, backend: &B) -> Result<Vec<NamedTensor>> {
        let mut tensors = Vec::new();
        for (prefix, buffer) in self.optimizer_buffers() {
            visit_flat(backend, self.net.layout(), [Some(buffer), None], |spec, values| {
                let (name, shape) = (format!("{prefix}.{}", spec.name), spec.shape.file_shape());
                tensors.push(NamedTensor { name, shape, data: values.to_vec() });
                Ok(())
            })?;
        }
        visit_flat(backend, self.net.layout(), [None, self.ema_running.as_ref()], |spec, values| {
            let (name, shape) = (format!("ema.{}", spec.name), spec.shape.file_shape());
            tensors.push(NamedTensor { name, shape, data: values.to_vec() });
            Ok(())
        })?;
        Ok(tensors)
    }

    fn optimizer_buffers(&self) -> impl Iterator<Item = (&'static str, &B::Buffer)> {
        [("exp_avg", &self.m), ("exp_avg_sq", &self.v)].into_iter().chain(self.ema.as_ref().map(|e| ("ema", e)))
    }

    /// Weights and running statistics by name, for a checkpoint.
    ///
    /// # Errors
    /// The device failed.
    pub fn export_model(&self, backend: &B) -> Result<Vec<NamedTensor>> {
        let mut tensors = Vec::new();
        self.weights.visit(backend, |spec, values| {
            tensors.push(NamedTensor {
                name: spec.name.clone(),
                shape: spec.shape.file_shape(),
                data: values.to_vec(),
            });
            Ok(())
        })?;
        Ok(tensors)
    }

    /// Takes moments and moving average from a checkpoint.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn import_optimizer(&mut self, backend: &B, tensors: &[NamedTensor], step: u64) -> Result<()> {
        self.step = step;
        let layout = Rc::clone(self.net.layout());
        let buffers = [("exp_avg", Some(&mut self.m)), ("exp_avg_sq", Some(&mut self.v)), ("ema", self.ema.as_mut())];
        for (prefix, buffer) in buffers {
            let Some(buffer) = buffer else { continue };
            for spec in layout.specs().iter().filter(|s| s.learned) {
                let name = format!("{prefix}.{}", spec.name);
                load_flat(backend, spec, find(tensors, &name, &spec.shape.file_shape())?, buffer)?;
            }
        }
        if let Some(running) = &mut self.ema_running {
            for spec in layout.specs().iter().filter(|s| !s.learned) {
                let values = find(tensors, &format!("ema.{}", spec.name), &spec.shape.file_shape())?;
                load_flat(backend, spec, values, running)?;
            }
        }
        Ok(())
    }
}

/// What [`TrainState::predict`] gives.
pub struct Predictions<B: Backend> {
    /// The noisy pictures.
    pub noisy: Tensor<B>,
    /// Predicted noise.
    pub noise: Tensor<B>,
    /// Predicted pictures.
    pub image: Tensor<B>,
    /// Signal and noise rates [N, 2].
    pub rates: B::Buffer,
}

/// Takes weights and running statistics from a checkpoint or a model file.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn import_model<B: Backend>(backend: &B, weights: &mut Weights<B>, tensors: &[NamedTensor]) -> Result<()> {
    let layout = Rc::clone(&weights.layout);
    for spec in layout.specs() {
        weights.load(backend, spec, find(tensors, &spec.name, &spec.shape.file_shape())?)?;
    }
    Ok(())
}

/// A tensor by name, of the expected shape.
fn find<'a>(tensors: &'a [NamedTensor], name: &str, shape: &[usize]) -> Result<&'a [f32]> {
    let Some(tensor) = tensors.iter().find(|t| t.name == name) else {
        return Err(Error::Usage(format!("tensor `{name}` is missing: the file is of another configuration")));
    };
    if tensor.shape != shape {
        let what = format!("tensor `{name}` has shape {:?}, expected {shape:?}", tensor.shape);
        return Err(Error::Usage(format!("{what}: the file is of another configuration")));
    }
    Ok(&tensor.data)
}
