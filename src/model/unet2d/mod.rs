//! The family unet2d: the `UNet2DModel` of the public diffusers library, with its names and options.
//!
//! 3x3 convolution in; down levels of residual blocks (with attention or without) whose every output is a skip, and between levels half the
//! resolution; two residual blocks with attention between them; up levels of residual blocks that take the skips last in, first out, and between
//! levels twice the resolution; group norm, SiLU, 3x3 convolution out. A time embedding reaches every residual block.
//!
//! Gradients of parameters accumulate into the flat buffer; the network's input gets no gradient.

mod attention;
mod layers;
mod resample;
mod resnet;
mod time;

use std::rc::Rc;

use super::params::{Layout, Weights};
use super::{Act, Mode, NetNoise};
use crate::config::UnetConfig;
use crate::config::unet::{DownBlock, MidBlock, ResampleType, TimeScaleShift, UpBlock};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::conv::{Epilogue, Operand, Prologue};
use crate::ops::group_norm::{NormGradients, OtherGradients};
use crate::tensor::{Shape, Tensor};
use attention::{AttentionBlock, AttentionCtx};
use layers::{ConvLayer, Norm, Normed, Pass, lost, new_act, parts, rows, sum};
use resample::ResampleLayer;
use resnet::{Resample, Resnet, ResnetCtx};
use time::{TimeCtx, TimeMlp};

/// A residual block and the attention behind it.
#[derive(Debug)]
struct Stage {
    resnet: Resnet,
    attention: Option<AttentionBlock>,
}

/// What stands between two levels.
#[derive(Debug)]
enum Between {
    Down(ResampleLayer),
    Up(ResampleLayer),
    Resnet(Box<Resnet>),
}

#[derive(Debug)]
struct Level {
    stages: Vec<Stage>,
    between: Option<Between>,
}

/// The network: blocks and where their parameters lie. Holds no memory of a device.
#[derive(Debug)]
pub struct Unet2d {
    /// Names and places of the parameters.
    pub layout: Rc<Layout>,
    channels: usize,
    halvings: usize,
    center: bool,
    dropout: bool,
    time: TimeMlp,
    conv_in: ConvLayer,
    down: Vec<Level>,
    mid: Option<(Resnet, Option<AttentionBlock>, Resnet)>,
    up: Vec<Level>,
    norm_out: Norm,
    conv_out: ConvLayer,
}

struct StageCtx<B: Backend> {
    resnet: ResnetCtx<B>,
    attention: Option<AttentionCtx<B>>,
}

enum BetweenCtx<B: Backend> {
    Input(Rc<Act<B>>),
    Resnet(ResnetCtx<B>),
}

/// An activation, and what its backward needs, in training.
type Made<B, C> = (Rc<Act<B>>, Option<C>);

struct LevelCtx<B: Backend> {
    stages: Vec<StageCtx<B>>,
    between: Option<BetweenCtx<B>>,
}

/// What backward needs, block by block.
pub struct Unet2dCtx<B: Backend> {
    temb: B::Buffer,
    time: Option<TimeCtx<B>>,
    down: Vec<LevelCtx<B>>,
    mid: Option<(StageCtx<B>, ResnetCtx<B>)>,
    up: Vec<LevelCtx<B>>,
    last: Rc<Act<B>>,
    normed: Normed<B>,
}

impl Unet2d {
    /// Declares the parameters, in the order of the library's modules.
    ///
    /// # Errors
    /// Options that do not fit each other.
    pub fn new(config: &UnetConfig, channels: usize) -> Result<Self> {
        config.validate().map_err(Error::Usage)?;
        let mut layout = Layout::default();
        let l = &mut layout;
        let widths = &config.block_out_channels;
        let (levels, groups) = (widths.len(), config.norm_num_groups);
        let mut dropouts = 0;
        let mut resnet = |l: &mut Layout, name: String, c: (usize, usize), k: usize, resample: Resample| {
            dropouts += 1;
            Resnet::new(l, &name, c, k, resample, config, dropouts - 1)
        };
        let conv_in = ConvLayer::new(l, "conv_in", widths[0], channels, 3);
        let time = TimeMlp::new(l, config);
        // Channels of the skips, in the order in which they are made.
        let mut skips = vec![widths[0]];
        let mut down = Vec::new();
        let mut c = widths[0];
        for (i, (&k, kind)) in widths.iter().zip(&config.down_block_types).enumerate() {
            let name = format!("down_blocks.{i}");
            let mut stages = Vec::new();
            for j in 0..config.layers_per_block {
                let block = resnet(l, format!("{name}.resnets.{j}"), (c, 0), k, Resample::None);
                c = k;
                let attention = (*kind == DownBlock::AttnDownBlock2D)
                    .then(|| AttentionBlock::new(l, &format!("{name}.attentions.{j}"), k, Some(groups), config));
                stages.push(Stage { resnet: block, attention });
                skips.push(k);
            }
            let by_resnet = match kind {
                DownBlock::DownBlock2D => false,
                DownBlock::AttnDownBlock2D => config.downsample_type == ResampleType::Resnet,
                DownBlock::ResnetDownsampleBlock2D => true,
            };
            let path = format!("{name}.downsamplers.0");
            let between = match (i + 1 < levels, by_resnet) {
                (false, _) => None,
                (true, true) => Some(Between::Resnet(Box::new(resnet(l, path, (k, 0), k, Resample::Down)))),
                (true, false) => Some(Between::Down(ResampleLayer::down(l, &path, k, config.downsample_padding))),
            };
            if between.is_some() {
                skips.push(k);
            }
            down.push(Level { stages, between });
        }
        let bottom = widths[levels - 1];
        let mid_groups = match (config.attn_norm_num_groups, config.resnet_time_scale_shift) {
            (Some(groups), _) => Some(groups),
            (None, TimeScaleShift::Default) => Some(groups),
            (None, TimeScaleShift::ScaleShift) => None,
        };
        let mid = (config.mid_block_type == MidBlock::UNetMidBlock2D).then(|| {
            let first = resnet(l, "mid_block.resnets.0".into(), (bottom, 0), bottom, Resample::None);
            let attention = config
                .add_attention
                .then(|| AttentionBlock::new(l, "mid_block.attentions.0", bottom, mid_groups, config));
            (first, attention, resnet(l, "mid_block.resnets.1".into(), (bottom, 0), bottom, Resample::None))
        });
        let mut up = Vec::new();
        let mut c = bottom;
        for (i, (&k, kind)) in widths.iter().rev().zip(&config.up_block_types).enumerate() {
            let name = format!("up_blocks.{i}");
            let mut stages = Vec::new();
            for j in 0..config.layers_per_block + 1 {
                let skip = skips.pop().ok_or_else(|| Error::Failed("a level of unet2d has no skip left".into()))?;
                let block = resnet(l, format!("{name}.resnets.{j}"), (c, skip), k, Resample::None);
                c = k;
                let attention = (*kind == UpBlock::AttnUpBlock2D)
                    .then(|| AttentionBlock::new(l, &format!("{name}.attentions.{j}"), k, Some(groups), config));
                stages.push(Stage { resnet: block, attention });
            }
            let by_resnet = match kind {
                UpBlock::UpBlock2D => false,
                UpBlock::AttnUpBlock2D => config.upsample_type == ResampleType::Resnet,
                UpBlock::ResnetUpsampleBlock2D => true,
            };
            let path = format!("{name}.upsamplers.0");
            let between = match (i + 1 < levels, by_resnet) {
                (false, _) => None,
                (true, true) => Some(Between::Resnet(Box::new(resnet(l, path, (k, 0), k, Resample::Up)))),
                (true, false) => Some(Between::Up(ResampleLayer::up(l, &path, k))),
            };
            up.push(Level { stages, between });
        }
        let norm_out = Norm::new(l, "conv_norm_out", widths[0], groups, config);
        let conv_out = ConvLayer::new(l, "conv_out", channels, widths[0], 3);
        Ok(Unet2d {
            layout: Rc::new(layout),
            channels,
            halvings: config.halvings(),
            center: config.center_input_sample,
            dropout: config.dropout > 0.0,
            time,
            conv_in,
            down,
            mid,
            up,
            norm_out,
            conv_out,
        })
    }

    /// Training draws random numbers inside the network.
    pub fn has_dropout(&self) -> bool {
        self.dropout
    }

    /// Refuses pictures that the levels cannot halve.
    fn check_input(&self, s: Shape) -> Result<()> {
        let multiple = 1 << self.halvings;
        if s.c == self.channels && s.h.is_multiple_of(multiple) && s.w.is_multiple_of(multiple) && !s.is_empty() {
            return Ok(());
        }
        let what = format!("input {s}; height and width must be multiples of {multiple}, channels {}", self.channels);
        Err(Error::Shape { op: "unet2d", what })
    }

    fn stage_forward<B: Backend>(
        stage: (&Resnet, Option<&AttentionBlock>),
        pass: &Pass<'_, '_, B>,
        weights: &mut Weights<B>,
        x0: &Rc<Act<B>>,
        x1: Option<&Rc<Act<B>>>,
        temb: &B::Buffer,
    ) -> Result<Made<B, StageCtx<B>>> {
        let (y, resnet) = stage.0.forward(pass, weights, x0, x1, temb)?;
        let mut y = Rc::new(y);
        let mut attention = None;
        if let Some(block) = stage.1 {
            let (z, ctx) = block.forward(pass, weights, &y)?;
            (y, attention) = (Rc::new(z), ctx);
        }
        Ok((y, resnet.map(|resnet| StageCtx { resnet, attention })))
    }

    fn between_forward<B: Backend>(
        between: &Between,
        pass: &Pass<'_, '_, B>,
        weights: &mut Weights<B>,
        x: &Rc<Act<B>>,
        temb: &B::Buffer,
    ) -> Result<Made<B, BetweenCtx<B>>> {
        let y = match between {
            Between::Down(layer) | Between::Up(layer) => layer.forward(pass, weights, x)?,
            Between::Resnet(resnet) => {
                let (y, ctx) = resnet.forward(pass, weights, x, None, temb)?;
                return Ok((Rc::new(y), ctx.map(BetweenCtx::Resnet)));
            }
        };
        Ok((Rc::new(y), pass.training().then(|| BetweenCtx::Input(Rc::clone(x)))))
    }

    /// The first convolution's prologue: 2 x - 1 where the input is centred.
    fn centring<B: Backend>(&self, backend: &B) -> Result<Option<[B::Buffer; 2]>> {
        if !self.center {
            return Ok(None);
        }
        let (mut scale, mut shift) = (backend.alloc(self.channels)?, backend.alloc(self.channels)?);
        backend.fill(B::all_mut(&mut scale), 2.0)?;
        backend.fill(B::all_mut(&mut shift), -1.0)?;
        Ok(Some([scale, shift]))
    }

    /// Prediction [N, H, W, C] from noisy pictures [N, H, W, C], `timesteps` `[N]` and, where the network knows classes, `labels` `[N]`.
    ///
    /// # Errors
    /// Shapes that do not fit, labels missing or too many, out of memory, a failing device.
    #[allow(clippy::too_many_arguments)] // the network's inputs
    pub fn forward<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        mode: Mode,
        noisy: &Tensor<B>,
        timesteps: &B::Buffer,
        labels: Option<&B::Buffer>,
        noise: Option<NetNoise<'_, B>>,
    ) -> Result<(Tensor<B>, Option<Unet2dCtx<B>>)> {
        self.check_input(noisy.shape)?;
        let s = noisy.shape;
        let pass = &Pass { backend, mode, noise };
        let (temb, time) = self.time.forward(pass, weights, timesteps, labels)?;

        let mut x = new_act(backend, s.with_c(self.conv_in.k))?;
        let centring = self.centring(backend)?;
        let affine = centring.as_ref().map(|[scale, shift]| (B::all(scale), B::all(shift)));
        let (input, prologue) = (Operand::one(noisy.view()), Prologue { affine, silu: false });
        let (dims, epilogue) = (self.conv_in.dims(s, s.c, 0), Epilogue::default());
        self.conv_in.forward(backend, weights, &dims, input, prologue, None, epilogue, parts(&mut x))?;
        drop(centring);

        let mut x = Rc::new(x);
        let mut skips = vec![Rc::clone(&x)];
        let mut down = Vec::new();
        for level in &self.down {
            let mut ctx = LevelCtx { stages: Vec::new(), between: None };
            for Stage { resnet, attention } in &level.stages {
                let stage = (resnet, attention.as_ref());
                let (y, kept) = Self::stage_forward(stage, pass, weights, &x, None, &temb)?;
                x = y;
                skips.push(Rc::clone(&x));
                ctx.stages.extend(kept);
            }
            if let Some(between) = &level.between {
                (x, ctx.between) = Self::between_forward(between, pass, weights, &x, &temb)?;
                skips.push(Rc::clone(&x));
            }
            down.push(ctx);
        }
        let mut mid = None;
        if let Some((first, attention, second)) = &self.mid {
            let (y, ctx0) = Self::stage_forward((first, attention.as_ref()), pass, weights, &x, None, &temb)?;
            let (y, ctx1) = second.forward(pass, weights, &y, None, &temb)?;
            x = Rc::new(y);
            mid = ctx0.zip(ctx1);
        }
        let mut up = Vec::new();
        for level in &self.up {
            let mut ctx = LevelCtx { stages: Vec::new(), between: None };
            for Stage { resnet, attention } in &level.stages {
                let skip = skips.pop();
                let stage = (resnet, attention.as_ref());
                let (y, kept) = Self::stage_forward(stage, pass, weights, &x, skip.as_ref(), &temb)?;
                x = y;
                ctx.stages.extend(kept);
            }
            if let Some(between) = &level.between {
                (x, ctx.between) = Self::between_forward(between, pass, weights, &x, &temb)?;
            }
            up.push(ctx);
        }

        let normed = self.norm_out.coefficients(backend, weights, &x, None, true, None)?;
        let mut pred = Tensor::new(backend, s)?;
        let (input, dims) = (Operand::one(x.tensor.view()), self.conv_out.dims(s, x.tensor.shape.c, 0));
        let place = (pred.view_mut(), None);
        let epilogue = Epilogue::default();
        self.conv_out.forward(backend, weights, &dims, input, normed.prologue(), None, epilogue, place)?;
        if self.time.divides() {
            backend.divide_by_timesteps(B::all(timesteps), pred.view_mut())?;
        }
        let ctx = pass.training().then(|| Unet2dCtx { temb, time, down, mid, up, last: x, normed });
        Ok((pred, ctx))
    }

    /// Accumulates the gradients of all parameters from `dpred` [N, H, W, C]; the other operands are those that forward had.
    ///
    /// # Errors
    /// Shapes that do not fit, out of memory, a failing device.
    #[allow(clippy::too_many_arguments)] // what forward had, and the gradients
    pub fn backward<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: Unet2dCtx<B>,
        noisy: &Tensor<B>,
        timesteps: Option<&B::Buffer>,
        labels: Option<&B::Buffer>,
        noise: Option<NetNoise<'_, B>>,
        mut dpred: Tensor<B>,
    ) -> Result<()> {
        let s = dpred.shape;
        let pass = &Pass { backend, mode: Mode::Train, noise };
        let Unet2dCtx { temb, time, mut down, mid, mut up, last, normed } = ctx;
        let at = |id| weights.layout.range(id);
        if self.time.divides() {
            let Some(timesteps) = timesteps else { return lost() };
            backend.divide_by_timesteps(B::all(timesteps), dpred.view_mut())?;
        }
        let mut dtemb = rows(backend, s.n, self.time.e())?;
        backend.fill(B::all_mut(&mut dtemb), 0.0)?;

        // The last convolution and its norm.
        let (input, dims) = (Operand::one(last.tensor.view()), self.conv_out.dims(s, last.tensor.shape.c, 0));
        self.conv_out.wgrad(backend, weights, grads, &dims, input, normed.prologue(), None, dpred.view())?;
        let g = self.conv_out.dgrad(backend, weights, s, &dpred, None)?;
        drop(dpred);
        let mut dy = Tensor::activation(backend, last.tensor.shape)?;
        let [dgamma, dbeta] = B::slices_mut(grads, [at(self.norm_out.gamma), at(self.norm_out.beta)]);
        let out = NormGradients { dx0: dy.view_mut(), dx1: None, dgamma, dbeta, dmodulation: None, sums: None };
        let (input, params) = (normed.input(&last, None), self.norm_out.params(weights, None));
        let none = OtherGradients::default();
        backend.group_norm_backward(&normed.dims, input, params, None, g.view(), none, out)?;
        drop((g, last, normed));

        // Up levels, last first: the gradients of the skips come in the order in which forward made them.
        let mut skip_grads: Vec<Option<Tensor<B>>> = Vec::new();
        for level in self.up.iter().rev() {
            let Some(LevelCtx { mut stages, between }) = up.pop() else { return lost() };
            match (&level.between, between) {
                (None, None) => {}
                (Some(Between::Up(layer)), Some(BetweenCtx::Input(x))) => {
                    dy = layer.backward(pass, weights, grads, &x, &dy, None)?;
                }
                (Some(Between::Resnet(resnet)), Some(BetweenCtx::Resnet(ctx))) => {
                    dy = resnet.backward(pass, weights, grads, ctx, &temb, &mut dtemb, dy, None)?.dx0;
                }
                _ => return lost(),
            }
            for stage in level.stages.iter().rev() {
                let Some(StageCtx { resnet, attention }) = stages.pop() else { return lost() };
                if let (Some(block), Some(ctx)) = (&stage.attention, attention) {
                    dy = block.backward(pass, weights, grads, ctx, dy, None)?;
                }
                let dx = stage.resnet.backward(pass, weights, grads, resnet, &temb, &mut dtemb, dy, None)?;
                dy = dx.dx0;
                skip_grads.push(dx.dx1);
            }
        }

        // The middle. Its input is the last skip; without a middle the two gradients of the last skip meet here.
        match (&self.mid, mid) {
            (Some((first, attention, second)), Some((ctx0, ctx1))) => {
                dy = second.backward(pass, weights, grads, ctx1, &temb, &mut dtemb, dy, None)?.dx0;
                if let (Some(block), Some(ctx)) = (attention, ctx0.attention) {
                    dy = block.backward(pass, weights, grads, ctx, dy, None)?;
                }
                let add = skip_grads.pop().flatten();
                dy = first.backward(pass, weights, grads, ctx0.resnet, &temb, &mut dtemb, dy, add)?.dx0;
            }
            (None, None) => {
                if let Some(add) = skip_grads.pop().flatten() {
                    dy = sum(backend, &dy, &add)?;
                }
            }
            _ => return lost(),
        }

        // Down levels, last first. A skip's gradient joins where the skip was used next.
        for level in self.down.iter().rev() {
            let Some(LevelCtx { mut stages, between }) = down.pop() else { return lost() };
            match (&level.between, between) {
                (None, None) => {}
                (Some(Between::Down(layer)), Some(BetweenCtx::Input(x))) => {
                    let add = skip_grads.pop().flatten();
                    dy = layer.backward(pass, weights, grads, &x, &dy, add.as_ref())?;
                }
                (Some(Between::Resnet(resnet)), Some(BetweenCtx::Resnet(ctx))) => {
                    let add = skip_grads.pop().flatten();
                    dy = resnet.backward(pass, weights, grads, ctx, &temb, &mut dtemb, dy, add)?.dx0;
                }
                _ => return lost(),
            }
            for stage in level.stages.iter().rev() {
                let Some(StageCtx { resnet, attention }) = stages.pop() else { return lost() };
                if let (Some(block), Some(ctx)) = (&stage.attention, attention) {
                    dy = block.backward(pass, weights, grads, ctx, dy, None)?;
                }
                let add = skip_grads.pop().flatten();
                dy = stage.resnet.backward(pass, weights, grads, resnet, &temb, &mut dtemb, dy, add)?.dx0;
            }
        }

        // The first convolution and the time embedding.
        let centring = self.centring(backend)?;
        let affine = centring.as_ref().map(|[scale, shift]| (B::all(scale), B::all(shift)));
        let prologue = Prologue { affine, silu: false };
        let (input, dims) = (Operand::one(noisy.view()), self.conv_in.dims(s, s.c, 0));
        self.conv_in.wgrad(backend, weights, grads, &dims, input, prologue, None, dy.view())?;
        self.time.backward(pass, weights, grads, time, labels, &dtemb)
    }
}
