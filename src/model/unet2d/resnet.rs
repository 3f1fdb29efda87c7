//! The residual block of the family unet2d (diffusers' `ResnetBlock2D`):
//!
//! ```text
//! h = conv1( resample?( silu(norm1(x)) ) ) + b1 + t            t = proj(silu(temb)), one number per image and channel
//! y = conv2( drop( silu(norm2(h)) ) ) + b2 + shortcut(resample?(x))
//! ```
//!
//! or, with `scale_shift`, no t but norm2(h) (1 + s) + t. The shortcut is a 1x1 convolution where the numbers of channels differ. x may be two
//! tensors that stand for their concatenation.
//!
//! Forward: both norms are the prologues of the convolutions behind them, the shortcut rides along as extra K. Where the block resamples or
//! drops out, the activation is written. Backward, from dy: conv2's dgrad gives the gradient behind norm2, whose own backward gives dh and dt;
//! conv1's dgrad gives that behind norm1, whose backward joins the shortcut's gradient and those of x's other uses.

use std::rc::Rc;

use super::layers::{ConvLayer, Norm, Normed, Pass, new_act, operand, packed_with_identity, parts, rows, take_apart};
use crate::config::UnetConfig;
use crate::config::unet::TimeScaleShift;
use crate::error::{Error, Result};
use crate::model::Act;
use crate::model::params::{ConvParams, Layout, ParamId, Weights};
use crate::ops::Backend;
use crate::ops::conv::{ConvDims, Epilogue, Operand, Output, Prologue};
use crate::ops::group_norm::{Dropout, NormGradients, OtherGradients};
use crate::ops::linear::{LinearDims, LinearGradients};
use crate::ops::resample_conv::Resampling;
use crate::tensor::{Shape, Tensor};

/// What a block does to the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resample {
    None,
    /// Halves it by averages.
    Down,
    /// Doubles every pixel.
    Up,
}

/// Parameters and extents of a block.
#[derive(Debug)]
pub(super) struct Resnet {
    c0: usize,
    c1: usize,
    k: usize,
    resample: Resample,
    norm1: Norm,
    conv1: ConvLayer,
    time: ConvParams,
    time_k: usize,
    norm2: Norm,
    conv2: ConvLayer,
    shortcut: Option<ConvLayer>,
    dropout: f32,
    /// Number of this block's dropout in the network.
    layer: u32,
}

/// What backward needs.
pub(super) struct ResnetCtx<B: Backend> {
    x0: Rc<Act<B>>,
    x1: Option<Rc<Act<B>>>,
    normed1: Normed<B>,
    /// Conv1's input where the block resamples: the activation behind norm1, halved already, or not yet doubled.
    resampled: Option<Tensor<B>>,
    h: Act<B>,
    normed2: Normed<B>,
    /// The activation behind norm2, where some of it was dropped.
    dropped: Option<Tensor<B>>,
    /// s and t, [N, 2K].
    modulation: Option<B::Buffer>,
}

/// Gradients of the two inputs.
pub(super) struct InputGradients<B: Backend> {
    pub dx0: Tensor<B>,
    pub dx1: Option<Tensor<B>>,
}

impl Resnet {
    #[allow(clippy::too_many_arguments)] // name, extents and options of a block
    pub fn new(
        l: &mut Layout,
        name: &str,
        (c0, c1): (usize, usize),
        k: usize,
        resample: Resample,
        config: &UnetConfig,
        layer: u32,
    ) -> Self {
        let (c, groups) = (c0 + c1, config.norm_num_groups);
        let time_k = if config.resnet_time_scale_shift == TimeScaleShift::ScaleShift { 2 * k } else { k };
        Resnet {
            c0,
            c1,
            k,
            resample,
            norm1: Norm::new(l, &format!("{name}.norm1"), c, groups, config),
            conv1: ConvLayer::new(l, &format!("{name}.conv1"), k, c, 3),
            time: l.linear(&format!("{name}.time_emb_proj"), time_k, config.time_dim()),
            time_k,
            norm2: Norm::new(l, &format!("{name}.norm2"), k, groups, config),
            conv2: ConvLayer::new(l, &format!("{name}.conv2"), k, k, 3),
            shortcut: (c != k).then(|| ConvLayer::new(l, &format!("{name}.conv_shortcut"), k, c, 1)),
            dropout: config.dropout as f32,
            layer,
        }
    }

    fn time_dims(&self, n: usize) -> LinearDims {
        LinearDims { n: n as u32, c: self.time.c as u32, k: self.time_k as u32, silu: 1 }
    }

    fn modulated(&self) -> bool {
        self.time_k != self.k
    }

    /// The shape of the pixels behind the resampling.
    fn resized(&self, s: Shape) -> Shape {
        match self.resample {
            Resample::None => s,
            Resample::Down => Shape { h: s.h / 2, w: s.w / 2, ..s },
            Resample::Up => Shape { h: s.h * 2, w: s.w * 2, ..s },
        }
    }

    fn resample_forward<B: Backend>(&self, backend: &B, s: Shape, x: B::Slice<'_>) -> Result<Tensor<B>> {
        let to = self.resized(s);
        let mut y = Tensor::activation(backend, to)?;
        match self.resample {
            Resample::Up => backend.double_forward(&to.into(), x, y.view_mut(), None)?,
            _ => backend.avg_pool_forward(&s.into(), x, y.view_mut(), None)?,
        }
        Ok(y)
    }

    fn resample_backward<B: Backend>(
        &self,
        backend: &B,
        s: Shape,
        dy: B::Slice<'_>,
        add: Option<B::Slice<'_>>,
    ) -> Result<Tensor<B>> {
        let mut dx = Tensor::activation(backend, s)?;
        match self.resample {
            Resample::Up => backend.double_backward(&self.resized(s).into(), dy, add, dx.view_mut())?,
            _ => backend.avg_pool_backward(&s.into(), dy, add, dx.view_mut())?,
        }
        Ok(dx)
    }

    fn dropout<'a, B: Backend>(&self, pass: &Pass<'_, 'a, B>) -> Result<Option<Dropout<'a, B>>> {
        if self.dropout == 0.0 || !pass.training() {
            return Ok(None);
        }
        let noise = pass.noise.ok_or_else(|| Error::Failed("dropout without random numbers".into()))?;
        Ok(Some(Dropout { p: self.dropout, key: noise.key, layer: self.layer, step: noise.step }))
    }

    /// y [N, H', W', K] from x0 [N, H, W, C0], x1 [N, H, W, C1] and the time embedding [N, E].
    pub fn forward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &mut Weights<B>,
        x0: &Rc<Act<B>>,
        x1: Option<&Rc<Act<B>>>,
        temb: &B::Buffer,
    ) -> Result<(Act<B>, Option<ResnetCtx<B>>)> {
        let backend = pass.backend;
        let s = x0.tensor.shape;
        let (to, second) = (self.resized(s).with_c(self.k), x1.map(Rc::as_ref));
        let normed1 = self.norm1.coefficients(backend, weights, x0, second, true, None)?;
        let mut time = rows(backend, s.n, self.time_k)?;
        let (w, b) = (weights.param(self.time.w), weights.param(self.time.b));
        backend.linear(&self.time_dims(s.n), B::all(temb), w, b, B::all_mut(&mut time))?;

        // conv1
        let resampled = match self.resample {
            Resample::None => None,
            _ => {
                let mut a = Tensor::activation(backend, s)?;
                backend.group_norm_apply(&normed1.dims, normed1.input(x0, second), None, a.view_mut())?;
                let doubles = self.resample == Resample::Up;
                Some(if doubles { a } else { self.resample_forward(backend, s, a.view())? })
            }
        };
        let mut h = new_act(backend, to)?;
        let time_bias = if self.modulated() { None } else { Some(&time) };
        match (&resampled, self.resample) {
            (Some(a), Resample::Up) => {
                let dims = self.conv1.resample_dims(to, Resampling::Double);
                self.conv1.resample_forward(backend, weights, &dims, a, time_bias, parts(&mut h))?;
            }
            _ => {
                let (input, prologue) = match &resampled {
                    Some(a) => (Operand::one(a.view()), Prologue::none()),
                    None => (operand(x0, second), normed1.prologue()),
                };
                let epilogue = Epilogue { bias_res: time_bias.map(B::all), ..Epilogue::default() };
                let dims = self.conv1.dims(to, self.c0, self.c1);
                self.conv1.forward(backend, weights, &dims, input, prologue, None, epilogue, parts(&mut h))?;
            }
        }
        let modulation = if self.modulated() { Some(time) } else { None };

        // conv2
        let normed2 = self.norm2.coefficients(backend, weights, &h, None, true, modulation.as_ref())?;
        let dropped = match self.dropout(pass)? {
            None => None,
            Some(dropout) => {
                let mut a = Tensor::activation(backend, to)?;
                backend.group_norm_apply(&normed2.dims, normed2.input(&h, None), Some(dropout), a.view_mut())?;
                Some(a)
            }
        };
        let mut y = new_act(backend, to)?;
        let (input, prologue) = match &dropped {
            Some(a) => (Operand::one(a.view()), Prologue::none()),
            None => (Operand::one(h.tensor.view()), normed2.prologue()),
        };
        let dims2 = self.conv2.dims(to, self.k, 0);
        match (&self.shortcut, x1) {
            (Some(shortcut), _) => {
                let dims2 = ConvDims { r0: self.c0 as u32, r1: self.c1 as u32, ..dims2 };
                let shortcut = Some((shortcut, operand(x0, second)));
                let epilogue = Epilogue::default();
                self.conv2.forward(backend, weights, &dims2, input, prologue, shortcut, epilogue, parts(&mut y))?;
            }
            (None, None) => {
                let resized = match self.resample {
                    Resample::None => None,
                    _ => Some(self.resample_forward(backend, s, x0.tensor.view())?),
                };
                let x = resized.as_ref().map_or(x0.tensor.view(), Tensor::view);
                let epilogue = Epilogue { add0: Some(x), ..Epilogue::default() };
                self.conv2.forward(backend, weights, &dims2, input, prologue, None, epilogue, parts(&mut y))?;
            }
            // As many channels as two inputs have together: the identity brings them together.
            (None, Some(_)) => {
                let dims2 = ConvDims { r0: self.c0 as u32, r1: self.c1 as u32, ..dims2 };
                let packed = packed_with_identity(backend, &dims2, Some((weights, self.conv2.params.w)))?;
                let bias = Some(weights.param(self.conv2.params.b));
                let (y0, stats) = parts(&mut y);
                let out = Output { y0, y1: None, k0: self.k, stats };
                let epilogue = Epilogue { bias, ..Epilogue::default() };
                let residual = Some(operand(x0, second));
                backend.conv(&dims2, input, prologue, residual, B::all(&packed), epilogue, out)?;
            }
        }
        let ctx = pass.training().then(|| ResnetCtx {
            x0: Rc::clone(x0),
            x1: x1.map(Rc::clone),
            normed1,
            resampled,
            h,
            normed2,
            dropped,
            modulation,
        });
        Ok((y, ctx))
    }

    /// Gradients of the inputs from `dy`; those of parameters accumulate into `grads`, that of the time embedding into `dtemb` [N, E].
    /// `add` is the gradient that another use of x0 has left.
    #[allow(clippy::too_many_arguments)] // what forward had, and the gradients
    pub fn backward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: ResnetCtx<B>,
        temb: &B::Buffer,
        dtemb: &mut B::Buffer,
        dy: Tensor<B>,
        add: Option<Tensor<B>>,
    ) -> Result<InputGradients<B>> {
        let backend = pass.backend;
        let ResnetCtx { x0, x1, normed1, resampled, h, normed2, dropped, modulation } = ctx;
        let (x0, x1) = (x0.as_ref(), x1.as_deref());
        let (s, to) = (x0.tensor.shape, dy.shape);
        let at = |id: ParamId| weights.layout.range(id);

        // conv2 and the shortcut
        let dims2 = self.conv2.dims(to, self.k, 0);
        let (input, prologue) = match &dropped {
            Some(a) => (Operand::one(a.view()), Prologue::none()),
            None => (Operand::one(h.tensor.view()), normed2.prologue()),
        };
        match &self.shortcut {
            Some(shortcut) => {
                let dims2 = ConvDims { r0: self.c0 as u32, r1: self.c1 as u32, ..dims2 };
                let shortcut = Some((shortcut, operand(x0, x1)));
                self.conv2.wgrad(backend, weights, grads, &dims2, input, prologue, shortcut, dy.view())?;
            }
            None => self.conv2.wgrad(backend, weights, grads, &dims2, input, prologue, None, dy.view())?,
        }
        drop(dropped);
        let g = self.conv2.dgrad(backend, weights, to, &dy, None)?;

        // norm2: dh, and what reaches the time embedding
        let mut dh = Tensor::activation(backend, to)?;
        let mut dtime = rows(backend, s.n, self.time_k)?;
        let [dgamma, dbeta] = B::slices_mut(grads, [at(self.norm2.gamma), at(self.norm2.beta)]);
        let (dmodulation, sums) = match modulation {
            Some(_) => (Some(B::all_mut(&mut dtime)), None),
            None => (None, Some(B::all_mut(&mut dtime))),
        };
        let out = NormGradients { dx0: dh.view_mut(), dx1: None, dgamma, dbeta, dmodulation, sums };
        let params = self.norm2.params(weights, modulation.as_ref().map(B::all));
        let (input, dropout) = (normed2.input(&h, None), self.dropout(pass)?);
        let none = OtherGradients::default();
        backend.group_norm_backward(&normed2.dims, input, params, dropout, g.view(), none, out)?;
        drop((g, h, normed2));
        let [dw, db] = B::slices_mut(grads, [at(self.time.w), at(self.time.b)]);
        let out = LinearGradients { dx: Some(B::all_mut(dtemb)), accumulate: true, dw, db };
        let (w, dtime) = (weights.param(self.time.w), B::all(&dtime));
        backend.linear_backward(&self.time_dims(s.n), B::all(temb), w, dtime, out)?;

        // conv1
        let g = match (&resampled, self.resample) {
            (Some(a), Resample::Up) => {
                let dims = self.conv1.resample_dims(to, Resampling::Double);
                self.conv1.resample_backward(backend, weights, grads, &dims, a, &dh, None)?
            }
            _ => {
                let dims = self.conv1.dims(to, self.c0, self.c1);
                let (input, prologue) = match &resampled {
                    Some(a) => (Operand::one(a.view()), Prologue::none()),
                    None => (operand(x0, x1), normed1.prologue()),
                };
                self.conv1.wgrad(backend, weights, grads, &dims, input, prologue, None, dh.view())?;
                let g = self.conv1.dgrad(backend, weights, to, &dh, None)?;
                if resampled.is_some() { self.resample_backward(backend, s, g.view(), None)? } else { g }
            }
        };
        drop((resampled, dh));

        // The shortcut's gradient, with that of x0's other use.
        let (s0, s1) = (s.with_c(self.c0), s.with_c(self.c1));
        let (mut of0, mut of1) = (None, None);
        match &self.shortcut {
            None if x1.is_none() && self.resample == Resample::None => {}
            None if x1.is_none() => {
                of0 = Some(self.resample_backward(backend, s, dy.view(), add.as_ref().map(Tensor::view))?);
            }
            _ => {
                let mut d0 = Tensor::activation(backend, s0)?;
                let mut d1 = if x1.is_some() { Some(Tensor::activation(backend, s1)?) } else { None };
                match &self.shortcut {
                    Some(shortcut) => {
                        shortcut.dgrad_split(backend, weights, s, &dy, add.as_ref(), &mut d0, d1.as_mut())?;
                    }
                    None => take_apart(backend, &dy, add.as_ref(), &mut d0, d1.as_mut())?,
                }
                (of0, of1) = (Some(d0), d1);
            }
        }

        // norm1
        let mut dx0 = Tensor::activation(backend, s0)?;
        let mut dx1 = if x1.is_some() { Some(Tensor::activation(backend, s1)?) } else { None };
        let to0 = match &of0 {
            Some(of0) => [Some(of0.view()), None],
            None => [Some(dy.view()), add.as_ref().map(Tensor::view)],
        };
        let [dgamma, dbeta] = B::slices_mut(grads, [at(self.norm1.gamma), at(self.norm1.beta)]);
        let out = NormGradients {
            dx0: dx0.view_mut(),
            dx1: dx1.as_mut().map(Tensor::view_mut),
            dgamma,
            dbeta,
            dmodulation: None,
            sums: None,
        };
        let (input, params) = (normed1.input(x0, x1), self.norm1.params(weights, None));
        let other = OtherGradients { to0, to1: of1.as_ref().map(Tensor::view) };
        backend.group_norm_backward(&normed1.dims, input, params, None, g.view(), other, out)?;
        Ok(InputGradients { dx0, dx1 })
    }
}
