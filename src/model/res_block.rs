//! The seed's residual block: y = conv_res(x) + conv2(silu(conv1(batch_norm(x)))), x one tensor or two that stand for their
//! concatenation.
//!
//! Two launches forward:
//! - `h1 = conv1(bn(x)) + b1`: the norm is conv1's prologue;
//! - `y = conv2(silu(h1)) + conv_res(x) + biases`: SiLU is the prologue, conv_res rides along as extra K, and the statistics that
//!   the next norm needs are taken on the way out.
//!
//! Five backward, from dy:
//! - `dh1 = conv2^T(dy) * silu'(h1)`;
//! - `dW2, dWres, db2, dbres` in one pass over dy;
//! - `D, B, db1`: the weight gradient of conv1 against xhat, and the border sums of dh1;
//! - batch norm's coefficients from them, dW1, dgamma, dbeta (no pass over pixels: see [`crate::ops::batch_norm`]);
//! - `dx = conv1^T(dh1; W1 scaled) + conv_res^T(dy) + a x + b`, plus the gradients of x's other uses: final, in one pass.
//!
//! Gradients of parameters accumulate; gradients of activations are new tensors.

use std::rc::Rc;

use super::params::{ConvParams, Layout, ParamId, Weights};
use super::{Act, Mode};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::batch_norm::{AffineParams, BackwardInput, BackwardOutput, BatchNormDims, RunningMut, row};
use crate::ops::conv::{ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::tensor::{Shape, Tensor};

/// Parameters and extents of a block.
#[derive(Debug)]
pub struct ResBlock {
    /// Channels of the two inputs (the second may be 0) and of the output.
    c0: usize,
    c1: usize,
    k: usize,
    /// The second input is the same at every pixel and needs no gradient (the noise embedding).
    x1_constant: bool,
    conv_res: ConvParams,
    gamma: ParamId,
    beta: ParamId,
    running_mean: ParamId,
    running_var: ParamId,
    conv1: ConvParams,
    conv2: ConvParams,
    slot1: usize,
    slot2: usize,
}

/// What backward needs: the inputs, h1 and batch norm's coefficients.
pub struct ResBlockCtx<B: Backend> {
    x0: Rc<Act<B>>,
    x1: Option<Rc<Act<B>>>,
    h1: Tensor<B>,
    coefficients: B::Buffer,
}

/// Gradients of the two inputs.
pub struct InputGradients<B: Backend> {
    /// Of the first.
    pub dx0: Tensor<B>,
    /// Of the second, unless it is constant or absent.
    pub dx1: Option<Tensor<B>>,
}

fn operand<'a, B: Backend>(x0: &'a Act<B>, x1: Option<&'a Act<B>>, x1_constant: bool) -> Operand<'a, B> {
    Operand { x0: x0.tensor.view(), x1: x1.map(|x| x.tensor.view()), x1_constant }
}

impl ResBlock {
    /// Declares the block's parameters under `name`, in PyTorch's order.
    pub fn new(layout: &mut Layout, name: &str, c: (usize, usize), k: usize, x1_constant: bool) -> Self {
        let (c0, c1) = c;
        let conv_res = layout.conv(&format!("{name}.conv_res"), k, c0 + c1, 1, false);
        let norm = format!("{name}.batch_norm1");
        let gamma = layout.vector(format!("{norm}.weight"), c0 + c1, 1.0);
        let beta = layout.vector(format!("{norm}.bias"), c0 + c1, 0.0);
        let running_mean = layout.running(format!("{norm}.running_mean"), c0 + c1, 0.0);
        let running_var = layout.running(format!("{norm}.running_var"), c0 + c1, 1.0);
        let conv1 = layout.conv(&format!("{name}.conv1"), k, c0 + c1, 3, false);
        let conv2 = layout.conv(&format!("{name}.conv2"), k, k, 3, false);
        let (slot1, slot2) = (layout.slot(), layout.slot());
        ResBlock {
            c0,
            c1,
            k,
            x1_constant,
            conv_res,
            gamma,
            beta,
            running_mean,
            running_var,
            conv1,
            conv2,
            slot1,
            slot2,
        }
    }

    fn dims1(&self, s: Shape) -> ConvDims {
        let (c0, c1, k) = (self.c0 as u32, self.c1 as u32, self.k as u32);
        ConvDims { n: s.n as u32, h: s.h as u32, w: s.w as u32, c0, c1, r0: 0, r1: 0, k, side: 3 }
    }

    fn dims2(&self, s: Shape) -> ConvDims {
        let (r0, r1, k) = (self.c0 as u32, self.c1 as u32, self.k as u32);
        ConvDims { n: s.n as u32, h: s.h as u32, w: s.w as u32, c0: k, c1: 0, r0, r1, k, side: 3 }
    }

    fn norm_dims(&self, s: Shape) -> BatchNormDims {
        BatchNormDims { n: s.n as u32, pixels: s.pixels() as u32, c0: self.c0 as u32, c1: self.c1 as u32 }
    }

    /// y [N, H, W, K] from x0 [N, H, W, C0] and x1 [N, H, W, C1] (or [N, 1, 1, C1] where constant).
    ///
    /// # Errors
    /// Shapes that do not fit, out of memory, a failing device.
    pub fn forward<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        mode: Mode,
        x0: &Rc<Act<B>>,
        x1: Option<&Rc<Act<B>>>,
    ) -> Result<(Act<B>, Option<ResBlockCtx<B>>)> {
        let s = x0.tensor.shape;
        let (dims1, dims2) = (self.dims1(s), self.dims2(s));
        weights.pack(backend, self.slot1, &dims1, &self.conv1, None)?;
        weights.pack(backend, self.slot2, &dims2, &self.conv2, Some(&self.conv_res))?;
        let coefficients = self.normalize(backend, weights, mode, x0, x1.map(Rc::as_ref))?;
        let x = || operand::<B>(x0, x1.map(Rc::as_ref), self.x1_constant);
        let row = |r: usize| B::slice(&coefficients, r * (self.c0 + self.c1)..(r + 1) * (self.c0 + self.c1));

        let mut h1 = Tensor::activation(backend, s.with_c(self.k))?;
        backend.conv(
            &dims1,
            x(),
            Prologue { affine: Some((row(row::SCALE), row(row::SHIFT))), silu: false },
            None,
            weights.packed(self.slot1)?,
            Epilogue { bias: Some(weights.param(self.conv1.b)), ..Epilogue::default() },
            Output { y0: h1.view_mut(), y1: None, k0: self.k, stats: None },
        )?;
        let mut y = Tensor::activation(backend, s.with_c(self.k))?;
        let mut stats = match mode {
            Mode::Train => Some(backend.alloc(s.n * self.k * 2)?),
            Mode::Eval => None,
        };
        backend.conv(
            &dims2,
            Operand::one(h1.view()),
            Prologue::silu(),
            Some(x()),
            weights.packed(self.slot2)?,
            Epilogue {
                bias: Some(weights.param(self.conv2.b)),
                bias_res: Some(weights.param(self.conv_res.b)),
                ..Epilogue::default()
            },
            Output { y0: y.view_mut(), y1: None, k0: self.k, stats: stats.as_mut().map(B::all_mut) },
        )?;
        let ctx = match mode {
            Mode::Train => Some(ResBlockCtx { x0: Rc::clone(x0), x1: x1.map(Rc::clone), h1, coefficients }),
            Mode::Eval => None,
        };
        Ok((Act { tensor: y, stats }, ctx))
    }

    /// Batch norm's coefficients [5, C] for this input.
    fn normalize<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        mode: Mode,
        x0: &Act<B>,
        x1: Option<&Act<B>>,
    ) -> Result<B::Buffer> {
        let dims = self.norm_dims(x0.tensor.shape);
        let mut coefficients = backend.alloc(row::COUNT * dims.c())?;
        let layout = &weights.layout;
        let (mean, var) = (layout.range(self.running_mean), layout.range(self.running_var));
        let gamma = B::slice(&weights.params, layout.range(self.gamma));
        let beta = B::slice(&weights.params, layout.range(self.beta));
        let params = AffineParams { gamma, beta };
        match mode {
            Mode::Train => {
                let missing = || Error::Failed("an input of a block in training has no statistics".into());
                let stats0 = x0.stats().ok_or_else(missing)?;
                let stats1 = x1.map(|x| x.stats().ok_or_else(missing)).transpose()?;
                let [mean, var] = B::slices_mut(&mut weights.running, [mean, var]);
                let out = B::all_mut(&mut coefficients);
                backend.batch_norm_train(&dims, stats0, stats1, params, RunningMut { mean, var }, out)?;
            }
            Mode::Eval => {
                let (mean, var) = (B::slice(&weights.running, mean), B::slice(&weights.running, var));
                backend.batch_norm_eval(&dims, params, mean, var, B::all_mut(&mut coefficients))?;
            }
        }
        Ok(coefficients)
    }

    /// Gradients of the inputs from `dy` [N, H, W, K]; gradients of parameters accumulate into `grads`. `add0` is the
    /// gradient that another use of x0 has left.
    ///
    /// # Errors
    /// Shapes that do not fit, out of memory, a failing device.
    pub fn backward<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: ResBlockCtx<B>,
        dy: Tensor<B>,
        add0: Option<Tensor<B>>,
    ) -> Result<InputGradients<B>> {
        let s = dy.shape;
        let (c, k) = (self.c0 + self.c1, self.k);
        let ResBlockCtx { x0, x1, h1, coefficients } = ctx;
        let (x0, x1) = (x0.as_ref(), x1.as_deref());
        let row = |r: usize| B::slice(&coefficients, r * c..(r + 1) * c);

        // dh1 = conv2^T(dy) * silu'(h1)
        let through2 = ConvDims { c0: k as u32, r0: 0, r1: 0, ..self.dims2(s) };
        let packed = pack_dgrad(backend, weights, &through2, &self.conv2, None, None)?;
        let mut dh1 = Tensor::activation(backend, s.with_c(k))?;
        backend.conv(
            &through2,
            Operand::one(dy.view()),
            Prologue::none(),
            None,
            B::all(&packed),
            Epilogue { silu_grad: Some(h1.view()), ..Epilogue::default() },
            Output { y0: dh1.view_mut(), y1: None, k0: k, stats: None },
        )?;
        drop(packed);

        // dW2, dWres and both biases
        let at = |id: ParamId| weights.layout.range(id);
        let [dw, dw_res, db, db_res] =
            B::slices_mut(grads, [at(self.conv2.w), at(self.conv_res.w), at(self.conv2.b), at(self.conv_res.b)]);
        backend.conv_wgrad(
            &self.dims2(s),
            Operand::one(h1.view()),
            Prologue::silu(),
            Some(operand::<B>(x0, x1, self.x1_constant)),
            dy.view(),
            WeightGradients { dw, dw_res: Some(dw_res), db: Some(db), db_res: Some(db_res), border_sums: None },
        )?;
        drop(h1);

        // D = wgrad of conv1 against xhat, B = border sums of dh1
        let mut dw_hat = backend.alloc(9 * c * k)?;
        backend.fill(B::all_mut(&mut dw_hat), 0.0)?;
        let mut border_sums = backend.alloc(9 * k)?;
        let [db] = B::slices_mut(grads, [at(self.conv1.b)]);
        backend.conv_wgrad(
            &self.dims1(s),
            operand::<B>(x0, x1, self.x1_constant),
            Prologue { affine: Some((row(row::RSTD), row(row::XHAT_SHIFT))), silu: false },
            None,
            dh1.view(),
            WeightGradients {
                dw: B::all_mut(&mut dw_hat),
                dw_res: None,
                db: Some(db),
                db_res: None,
                border_sums: Some(B::all_mut(&mut border_sums)),
            },
        )?;

        // Batch norm: dW1, dgamma, dbeta, and the two coefficients of dx
        let mut ab = backend.alloc(2 * c)?;
        let [dw, dgamma, dbeta] = B::slices_mut(grads, [at(self.conv1.w), at(self.gamma), at(self.beta)]);
        backend.batch_norm_backward(
            &self.norm_dims(s),
            BackwardInput {
                w: weights.param(self.conv1.w),
                dw_hat: B::all(&dw_hat),
                border_sums: B::all(&border_sums),
                coefficients: B::all(&coefficients),
                params: AffineParams { gamma: weights.param(self.gamma), beta: weights.param(self.beta) },
                taps: 9,
                k,
            },
            BackwardOutput { dw, dgamma, dbeta, ab: B::all_mut(&mut ab) },
        )?;
        drop((dw_hat, border_sums));

        // dx, final; the constant second input needs none
        let out_c = if self.x1_constant { self.c0 } else { c };
        let through1 = ConvDims { c0: k as u32, c1: 0, r0: k as u32, r1: 0, k: out_c as u32, ..self.dims1(s) };
        let scale = row(row::SCALE);
        let packed = pack_dgrad(backend, weights, &through1, &self.conv1, Some(&self.conv_res), Some(scale))?;
        let mut dx0 = Tensor::activation(backend, s.with_c(self.c0))?;
        let mut dx1 = if out_c > self.c0 { Some(Tensor::activation(backend, s.with_c(self.c1))?) } else { None };
        let x1 = if dx1.is_some() { x1 } else { None };
        backend.conv(
            &through1,
            Operand::one(dh1.view()),
            Prologue::none(),
            Some(Operand::one(dy.view())),
            B::all(&packed),
            Epilogue {
                affine: Some((operand::<B>(x0, x1, false), B::slice(&ab, 0..out_c), B::slice(&ab, c..c + out_c))),
                add0: add0.as_ref().map(Tensor::view),
                ..Epilogue::default()
            },
            Output { y0: dx0.view_mut(), y1: dx1.as_mut().map(Tensor::view_mut), k0: self.c0, stats: None },
        )?;
        Ok(InputGradients { dx0, dx1 })
    }
}

/// A filter turned round for the product of backward, in memory that lives as long as that product.
pub(super) fn pack_dgrad<'a, B: Backend>(
    backend: &B,
    weights: &'a Weights<B>,
    dims: &ConvDims,
    w: &ConvParams,
    w_res: Option<&ConvParams>,
    scale: Option<B::Slice<'a>>,
) -> Result<B::Buffer> {
    let mut packed = backend.alloc_activation(backend.conv_packed_len(dims))?;
    let filter = Filter { w: weights.param(w.w), w_res: w_res.map(|r| weights.param(r.w)), forward_c: w.c, scale };
    backend.conv_pack(dims, Direction::Dgrad, filter, B::all_mut(&mut packed))?;
    Ok(packed)
}
