//! The network of "De-noising Diffusion with torch" (Falbel and Keydana 2023), exactly: batch norm, no attention.
//!
//! 1x1 convolution to e channels, concatenated with the noise embedding (e channels, constant over the picture); down levels of
//! residual blocks, each block's output a skip, then 2x2 average pool; two blocks in the middle; up levels: bilinear x2, then
//! blocks that take the skips last in, first out; 1x1 convolution back, zero at the start.
//!
//! Gradients of parameters accumulate into the flat buffer; the network's input gets no gradient.

use std::rc::Rc;

use super::params::{ConvParams, Layout, Weights};
use super::res_block::{ResBlock, ResBlockCtx, pack_dgrad};
use super::{Act, Mode};
use crate::config::Config;
use crate::device::Memory;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::conv::{ConvDims, Epilogue, Operand, Output, Prologue, WeightGradients};
use crate::tensor::{Shape, Tensor};

/// Extents of the network, from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedDims {
    /// Channels of the pictures.
    pub channels: usize,
    /// Channels of the first convolution and of the embedding.
    pub embedding: usize,
    /// Channels of each level.
    pub widths: Vec<usize>,
    /// Blocks of each level.
    pub depth: usize,
}

impl From<&Config> for SeedDims {
    fn from(c: &Config) -> Self {
        SeedDims { channels: c.channels, embedding: c.embedding_dim, widths: c.widths.clone(), depth: c.block_depth }
    }
}

/// The network: blocks and where their parameters lie. Holds no memory of a device.
#[derive(Debug)]
pub struct SeedUnet {
    /// Names and places of the parameters.
    pub layout: Rc<Layout>,
    dims: SeedDims,
    stem: ConvParams,
    stem_slot: usize,
    down: Vec<Vec<ResBlock>>,
    mid: [ResBlock; 2],
    up: Vec<Vec<ResBlock>>,
    head: ConvParams,
    head_slot: usize,
}

/// What backward needs, block by block.
pub struct SeedCtx<B: Backend> {
    down: Vec<Vec<ResBlockCtx<B>>>,
    mid: [ResBlockCtx<B>; 2],
    up: Vec<Vec<ResBlockCtx<B>>>,
    /// The last block's output: the input of the last convolution.
    last: Rc<Act<B>>,
}

/// A 1x1 convolution's extents.
fn pointwise(s: Shape, c: usize, k: usize) -> ConvDims {
    let (n, h, w) = (s.n as u32, s.h as u32, s.w as u32);
    ConvDims { n, h, w, c0: c as u32, c1: 0, r0: 0, r1: 0, k: k as u32, side: 1 }
}

fn alloc_stats<M: Memory>(memory: &M, mode: Mode, s: Shape) -> Result<Option<M::Buffer>> {
    match mode {
        Mode::Train => Ok(Some(memory.alloc(s.n * s.c * 2)?)),
        Mode::Eval => Ok(None),
    }
}

impl SeedUnet {
    /// Declares the parameters, in the order of PyTorch's modules.
    pub fn new(dims: SeedDims) -> Self {
        let mut layout = Layout::default();
        let l = &mut layout;
        let (e, depth, widths) = (dims.embedding, dims.depth, &dims.widths);
        let levels = widths.len();
        let block =
            |l: &mut Layout, path: String, c, k, constant| ResBlock::new(l, &format!("unet.{path}"), c, k, constant);
        let mut down = Vec::new();
        for (i, &k) in widths.iter().enumerate() {
            let level = (0..depth)
                .map(|j| {
                    let path = format!("down_blocks.{i}.resnet_blocks.{j}");
                    match (i, j) {
                        (0, 0) => block(l, path, (e, e), k, true),
                        (_, 0) => block(l, path, (widths[i - 1], 0), k, false),
                        _ => block(l, path, (k, 0), k, false),
                    }
                })
                .collect();
            down.push(level);
        }
        let bottom = widths[levels - 1];
        let mid = [
            block(l, "mid_blocks.0".into(), (bottom, 0), 2 * bottom, false),
            block(l, "mid_blocks.1".into(), (2 * bottom, 0), bottom, false),
        ];
        let mut up = Vec::new();
        for i in 0..levels {
            let c = widths[levels - 1 - i];
            let k = if i + 1 < levels { widths[levels - 2 - i] } else { e };
            let level = (0..depth)
                .map(|j| {
                    let x = if j == 0 { c } else { k };
                    block(l, format!("up_blocks.{i}.resnet_blocks.{j}"), (x, c), k, false)
                })
                .collect();
            up.push(level);
        }
        let stem = l.conv("conv", e, dims.channels, 1, false);
        let head = l.conv("conv_out", dims.channels, e, 1, true);
        let (stem_slot, head_slot) = (l.slot(), l.slot());
        SeedUnet { layout: Rc::new(layout), dims, stem, stem_slot, down, mid, up, head, head_slot }
    }

    /// Refuses pictures that the levels cannot halve.
    fn check_input(&self, s: Shape) -> Result<()> {
        let multiple = 1 << self.dims.widths.len();
        if s.c == self.dims.channels && s.h.is_multiple_of(multiple) && s.w.is_multiple_of(multiple) && !s.is_empty() {
            return Ok(());
        }
        let what =
            format!("input {s}; height and width must be multiples of {multiple}, channels {}", self.dims.channels);
        Err(Error::Shape { op: "seed_unet", what })
    }

    /// Prediction [N, H, W, C] from noisy pictures [N, H, W, C] and the embedding [N, 1, 1, E].
    ///
    /// # Errors
    /// Shapes that do not fit, out of memory, a failing device.
    pub fn forward<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        mode: Mode,
        noisy: &Tensor<B>,
        embedding: Act<B>,
    ) -> Result<(Tensor<B>, Option<SeedCtx<B>>)> {
        self.check_input(noisy.shape)?;
        let s = noisy.shape;
        let embedding = Rc::new(embedding);
        let mut x = Rc::new(self.stem_forward(backend, weights, mode, noisy)?);
        let mut ctx_down = Vec::new();
        let mut skips: Vec<Vec<Rc<Act<B>>>> = Vec::new();
        for level in &self.down {
            let (mut contexts, mut level_skips) = (Vec::new(), Vec::new());
            for (j, block) in level.iter().enumerate() {
                let constant = ctx_down.is_empty() && skips.is_empty() && j == 0;
                let x1 = if constant { Some(&embedding) } else { None };
                let (y, ctx) = block.forward(backend, weights, mode, &x, x1)?;
                x = Rc::new(y);
                level_skips.push(Rc::clone(&x));
                contexts.extend(ctx);
            }
            x = Rc::new(pool_forward(backend, mode, &x)?);
            ctx_down.push(contexts);
            skips.push(level_skips);
        }
        drop(embedding);
        let (y, ctx0) = self.mid[0].forward(backend, weights, mode, &x, None)?;
        let (y, ctx1) = self.mid[1].forward(backend, weights, mode, &Rc::new(y), None)?;
        x = Rc::new(y);
        let mut ctx_up = Vec::new();
        for level in &self.up {
            x = Rc::new(upsample_forward(backend, mode, &x)?);
            let mut contexts = Vec::new();
            let mut level_skips = skips.pop().unwrap_or_default();
            for block in level {
                let skip = level_skips.pop();
                let (y, ctx) = block.forward(backend, weights, mode, &x, skip.as_ref())?;
                x = Rc::new(y);
                contexts.extend(ctx);
            }
            ctx_up.push(contexts);
        }

        let (e, channels) = (self.dims.embedding, self.dims.channels);
        let dims = pointwise(s, e, channels);
        weights.pack(backend, self.head_slot, &dims, &self.head, None)?;
        let mut pred = Tensor::new(backend, s)?;
        backend.conv(
            &dims,
            Operand::one(x.tensor.view()),
            Prologue::none(),
            None,
            weights.packed(self.head_slot)?,
            Epilogue { bias: Some(weights.param(self.head.b)), ..Epilogue::default() },
            Output { y0: pred.view_mut(), y1: None, k0: channels, stats: None },
        )?;
        let ctx = match (ctx0, ctx1) {
            (Some(ctx0), Some(ctx1)) => Some(SeedCtx { down: ctx_down, mid: [ctx0, ctx1], up: ctx_up, last: x }),
            _ => None,
        };
        Ok((pred, ctx))
    }

    fn stem_forward<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        mode: Mode,
        noisy: &Tensor<B>,
    ) -> Result<Act<B>> {
        let s = noisy.shape.with_c(self.dims.embedding);
        let dims = pointwise(s, self.dims.channels, s.c);
        weights.pack(backend, self.stem_slot, &dims, &self.stem, None)?;
        let mut tensor = Tensor::activation(backend, s)?;
        let mut stats = alloc_stats(backend, mode, s)?;
        backend.conv(
            &dims,
            Operand::one(noisy.view()),
            Prologue::none(),
            None,
            weights.packed(self.stem_slot)?,
            Epilogue { bias: Some(weights.param(self.stem.b)), ..Epilogue::default() },
            Output { y0: tensor.view_mut(), y1: None, k0: s.c, stats: stats.as_mut().map(B::all_mut) },
        )?;
        Ok(Act { tensor, stats })
    }

    /// Accumulates the gradients of all parameters from `dpred` [N, H, W, C]; `noisy` is the input that forward had.
    ///
    /// # Errors
    /// Shapes that do not fit, out of memory, a failing device.
    pub fn backward<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: SeedCtx<B>,
        noisy: &Tensor<B>,
        dpred: Tensor<B>,
    ) -> Result<()> {
        let s = dpred.shape;
        let SeedCtx { mut down, mid, mut up, last } = ctx;
        let (e, channels) = (self.dims.embedding, self.dims.channels);

        // The last convolution.
        let at = |id| self.layout.range(id);
        let [dw, db] = B::slices_mut(grads, [at(self.head.w), at(self.head.b)]);
        let out = WeightGradients { dw, dw_res: None, db: Some(db), db_res: None, border_sums: None };
        let x = Operand::one(last.tensor.view());
        backend.conv_wgrad(&pointwise(s, e, channels), x, Prologue::none(), None, dpred.view(), out)?;
        drop(last);
        let through = pointwise(s, channels, e);
        let packed = pack_dgrad(backend, weights, &through, &self.head, None, None)?;
        let mut dy = Tensor::activation(backend, s.with_c(e))?;
        backend.conv(
            &through,
            Operand::one(dpred.view()),
            Prologue::none(),
            None,
            B::all(&packed),
            Epilogue::default(),
            Output { y0: dy.view_mut(), y1: None, k0: e, stats: None },
        )?;
        drop((packed, dpred));

        // Up levels, last first. Gradients of the skips wait for the down levels.
        let mut skip_grads: Vec<Vec<Option<Tensor<B>>>> = Vec::new();
        for level in self.up.iter().rev() {
            let mut contexts = up.pop().unwrap_or_default();
            let mut grads_of_level = Vec::new();
            for block in level.iter().rev() {
                let ctx = contexts.pop().ok_or_else(lost_context)?;
                let dx = block.backward(backend, weights, grads, ctx, dy, None)?;
                dy = dx.dx0;
                grads_of_level.push(dx.dx1);
            }
            let large = dy.shape;
            let mut dx = Tensor::activation(backend, Shape { h: large.h / 2, w: large.w / 2, ..large })?;
            backend.upsample_backward(&large.into(), dy.view(), dx.view_mut())?;
            dy = dx;
            // Blocks ran last first, so the gradients stand in the order of the down level's blocks: the first skip is first.
            skip_grads.push(grads_of_level);
        }
        let [ctx0, ctx1] = mid;
        dy = self.mid[1].backward(backend, weights, grads, ctx1, dy, None)?.dx0;
        dy = self.mid[0].backward(backend, weights, grads, ctx0, dy, None)?.dx0;

        // Down levels, last first. A skip's gradient joins where the block's output was used next: in the pooling for the last
        // block of a level, in the following block for the others.
        for level in self.down.iter().rev() {
            let mut contexts = down.pop().unwrap_or_default();
            let mut waiting = skip_grads.pop().unwrap_or_default();
            let small = dy.shape;
            let large = Shape { h: 2 * small.h, w: 2 * small.w, ..small };
            let add = waiting.pop().flatten();
            let mut dx = Tensor::activation(backend, large)?;
            backend.avg_pool_backward(&large.into(), dy.view(), add.as_ref().map(Tensor::view), dx.view_mut())?;
            drop(add);
            dy = dx;
            for block in level.iter().rev() {
                let ctx = contexts.pop().ok_or_else(lost_context)?;
                let add = waiting.pop().flatten();
                dy = block.backward(backend, weights, grads, ctx, dy, add)?.dx0;
            }
        }

        // The first convolution.
        let [dw, db] = B::slices_mut(grads, [at(self.stem.w), at(self.stem.b)]);
        let out = WeightGradients { dw, dw_res: None, db: Some(db), db_res: None, border_sums: None };
        let x = Operand::one(noisy.view());
        backend.conv_wgrad(&pointwise(s, channels, e), x, Prologue::none(), None, dy.view(), out)
    }
}

fn lost_context() -> Error {
    Error::Failed("a block's context is missing: the context does not come from this network".into())
}

fn pool_forward<B: Backend>(backend: &B, mode: Mode, x: &Act<B>) -> Result<Act<B>> {
    let large = x.tensor.shape;
    let small = Shape { h: large.h / 2, w: large.w / 2, ..large };
    let mut tensor = Tensor::activation(backend, small)?;
    let mut stats = alloc_stats(backend, mode, small)?;
    let out = stats.as_mut().map(B::all_mut);
    backend.avg_pool_forward(&large.into(), x.tensor.view(), tensor.view_mut(), out)?;
    Ok(Act { tensor, stats })
}

fn upsample_forward<B: Backend>(backend: &B, mode: Mode, x: &Act<B>) -> Result<Act<B>> {
    let small = x.tensor.shape;
    let large = Shape { h: 2 * small.h, w: 2 * small.w, ..small };
    let mut tensor = Tensor::activation(backend, large)?;
    let mut stats = alloc_stats(backend, mode, large)?;
    let out = stats.as_mut().map(B::all_mut);
    backend.upsample_forward(&large.into(), x.tensor.view(), tensor.view_mut(), out)?;
    Ok(Act { tensor, stats })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_network_has_the_published_number_of_parameters() {
        let net = SeedUnet::new(SeedDims::from(&Config::seed_preset()));
        assert_eq!(net.layout.parameter_count(), 3_562_211);
        assert_eq!(net.layout.specs()[0].name, "unet.down_blocks.0.resnet_blocks.0.conv_res.weight");
    }
}
