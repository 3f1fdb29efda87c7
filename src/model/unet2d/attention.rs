//! Self-attention over the pixels, with a residual (diffusers' `Attention` as its U-Net uses it):
//!
//! ```text
//! y = x + out( attention( [q k v] = qkv(norm(x)) ) )
//! ```
//!
//! The three linear layers that make q, k and v are one product, the norm is its prologue.

use std::rc::Rc;

use super::layers::{ConvLayer, Norm, Normed, Pass, new_act, operand, parts};
use crate::config::UnetConfig;
use crate::error::Result;
use crate::model::Act;
use crate::model::params::{Layout, Weights};
use crate::ops::Backend;
use crate::ops::attention::AttentionDims;
use crate::ops::conv::{Epilogue, Operand, Prologue};
use crate::ops::group_norm::{NormGradients, OtherGradients};
use crate::tensor::{Shape, Tensor};

/// Parameters and extents of a block.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    norm: Option<Norm>,
    qkv: ConvLayer,
    out: ConvLayer,
    c: usize,
    heads: usize,
    head_dim: usize,
}

/// What backward needs.
pub(super) struct AttentionCtx<B: Backend> {
    x: Rc<Act<B>>,
    normed: Option<Normed<B>>,
    qkv: Tensor<B>,
    y: Tensor<B>,
    lse: B::Buffer,
}

impl AttentionBlock {
    /// `groups`: of the norm in front, where there is one.
    pub fn new(l: &mut Layout, name: &str, c: usize, groups: Option<usize>, config: &UnetConfig) -> Self {
        let (heads, head_dim) = config.heads(c);
        let inner = heads * head_dim;
        AttentionBlock {
            norm: groups.map(|groups| Norm::new(l, &format!("{name}.group_norm"), c, groups, config)),
            qkv: ConvLayer::fused(l, &["to_q", "to_k", "to_v"].map(|part| format!("{name}.{part}")), inner, c),
            out: ConvLayer::linear(l, &format!("{name}.to_out.0"), c, inner),
            c,
            heads,
            head_dim,
        }
    }

    fn dims(&self, s: Shape) -> AttentionDims {
        let [n, tokens, heads, head_dim] = [s.n, s.pixels(), self.heads, self.head_dim].map(|x| x as u32);
        AttentionDims { n, tokens, heads, head_dim }
    }

    /// y of the shape of x.
    pub fn forward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &mut Weights<B>,
        x: &Rc<Act<B>>,
    ) -> Result<(Act<B>, Option<AttentionCtx<B>>)> {
        let backend = pass.backend;
        let s = x.tensor.shape;
        let (dims, inner) = (self.dims(s), self.heads * self.head_dim);
        let normed = match &self.norm {
            Some(norm) => Some(norm.coefficients(backend, weights, x, None, false, None)?),
            None => None,
        };
        let prologue = || normed.as_ref().map_or(Prologue::none(), Normed::prologue);
        let mut qkv = Tensor::activation(backend, s.with_c(3 * inner))?;
        let dims_qkv = self.qkv.dims(s, self.c, 0);
        let (input, epilogue) = (operand(x, None), Epilogue::default());
        self.qkv.forward(backend, weights, &dims_qkv, input, prologue(), None, epilogue, (qkv.view_mut(), None))?;
        let mut y = Tensor::activation(backend, s.with_c(inner))?;
        let mut lse = backend.alloc(dims.lse_len())?;
        backend.attention(&dims, qkv.view(), y.view_mut(), B::all_mut(&mut lse))?;
        let mut out = new_act(backend, s)?;
        let epilogue = Epilogue { add0: Some(x.tensor.view()), ..Epilogue::default() };
        let (input, dims_out) = (Operand::one(y.view()), self.out.dims(s, inner, 0));
        self.out.forward(backend, weights, &dims_out, input, Prologue::none(), None, epilogue, parts(&mut out))?;
        let ctx = pass.training().then(|| AttentionCtx { x: Rc::clone(x), normed, qkv, y, lse });
        Ok((out, ctx))
    }

    /// The gradient of x from `dy`; those of parameters accumulate into `grads`. `add` is the gradient that another use of x has left.
    pub fn backward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: AttentionCtx<B>,
        dy: Tensor<B>,
        add: Option<Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let backend = pass.backend;
        let AttentionCtx { x, normed, qkv, y, lse } = ctx;
        let s = x.tensor.shape;
        let (dims, inner) = (self.dims(s), self.heads * self.head_dim);
        let dims_out = self.out.dims(s, inner, 0);
        let input = Operand::one(y.view());
        self.out.wgrad(backend, weights, grads, &dims_out, input, Prologue::none(), None, dy.view())?;
        let through = self.out.dgrad(backend, weights, s, &dy, None)?;
        let mut dqkv = Tensor::activation(backend, s.with_c(3 * inner))?;
        let lse = B::all(&lse);
        backend.attention_backward(&dims, qkv.view(), y.view(), lse, through.view(), dqkv.view_mut())?;
        drop((through, qkv, y));
        let prologue = normed.as_ref().map_or(Prologue::none(), Normed::prologue);
        let dims_qkv = self.qkv.dims(s, self.c, 0);
        self.qkv.wgrad(backend, weights, grads, &dims_qkv, operand(&x, None), prologue, None, dqkv.view())?;
        let (Some(norm), Some(normed)) = (&self.norm, &normed) else {
            let dx = self.qkv.dgrad(backend, weights, s, &dqkv, Some(&dy))?;
            return match add {
                Some(add) => super::layers::sum(backend, &dx, &add),
                None => Ok(dx),
            };
        };
        let g = self.qkv.dgrad(backend, weights, s, &dqkv, None)?;
        drop(dqkv);
        let mut dx = Tensor::activation(backend, s)?;
        let at = |id| weights.layout.range(id);
        let [dgamma, dbeta] = B::slices_mut(grads, [at(norm.gamma), at(norm.beta)]);
        let out = NormGradients { dx0: dx.view_mut(), dx1: None, dgamma, dbeta, dmodulation: None, sums: None };
        let other = OtherGradients { to0: [Some(dy.view()), add.as_ref().map(Tensor::view)], to1: None };
        let (input, params) = (normed.input(&x, None), norm.params(weights, None));
        backend.group_norm_backward(&normed.dims, input, params, None, g.view(), other, out)?;
        Ok(dx)
    }
}
