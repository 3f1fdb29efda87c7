//! What the blocks of the family unet2d are made of: norms as coefficients, convolutions with their packed filters, and their gradients.

use crate::config::UnetConfig;
use crate::device::Memory;
use crate::error::{Error, Result};
use crate::model::params::{ConvParams, Layout, ParamId, Weights};
use crate::model::res_block::pack_dgrad;
use crate::model::{Act, Mode, NetNoise};
use crate::ops::Backend;
use crate::ops::conv::{ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::ops::group_norm::{GroupNormDims, NormInput, NormParams};
use crate::ops::resample_conv::{ResampleConvDims, ResampleConvGradients, Resampling};
use crate::tensor::{Shape, Tensor};

/// What every layer of a pass needs.
pub(super) struct Pass<'p, 'n, B: Backend> {
    pub backend: &'p B,
    pub mode: Mode,
    /// For dropout.
    pub noise: Option<NetNoise<'n, B>>,
}

impl<B: Backend> Pass<'_, '_, B> {
    pub fn training(&self) -> bool {
        self.mode == Mode::Train
    }
}

/// An activation of the pass with room for its statistics.
pub(super) fn new_act<B: Backend>(backend: &B, s: Shape) -> Result<Act<B>> {
    Ok(Act { tensor: Tensor::activation(backend, s)?, stats: Some(backend.alloc(s.n * s.c * 2)?) })
}

/// The two halves of an activation that an operation writes.
pub(super) fn parts<B: Backend>(act: &mut Act<B>) -> (B::SliceMut<'_>, Option<B::SliceMut<'_>>) {
    (act.tensor.view_mut(), act.stats.as_mut().map(B::all_mut))
}

/// A group norm's parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub gamma: ParamId,
    pub beta: ParamId,
    groups: usize,
    eps: f64,
}

/// A group norm of one input: its extents and coefficients.
pub(super) struct Normed<B: Backend> {
    pub dims: GroupNormDims,
    pub coefficients: B::Buffer,
}

impl<B: Backend> Normed<B> {
    /// As the prologue of a convolution.
    pub fn prologue(&self) -> Prologue<'_, B> {
        let n = self.dims.affine_len();
        let (scale, shift) = (B::slice(&self.coefficients, 0..n), B::slice(&self.coefficients, n..2 * n));
        Prologue { affine: Some((scale, shift)), silu: self.dims.silu != 0 }
    }

    /// As the input of the norm's own operations.
    pub fn input<'a>(&'a self, x0: &'a Act<B>, x1: Option<&'a Act<B>>) -> NormInput<'a, B> {
        NormInput { x0: x0.tensor.view(), x1: x1.map(|x| x.tensor.view()), coefficients: B::all(&self.coefficients) }
    }
}

impl Norm {
    pub fn new(l: &mut Layout, name: &str, c: usize, groups: usize, config: &UnetConfig) -> Self {
        let gamma = l.vector(format!("{name}.weight"), c, 1.0);
        let beta = l.vector(format!("{name}.bias"), c, 0.0);
        Norm { gamma, beta, groups, eps: config.norm_eps }
    }

    pub fn params<'a, B: Backend>(
        &self,
        weights: &'a Weights<B>,
        modulation: Option<B::Slice<'a>>,
    ) -> NormParams<'a, B> {
        NormParams { gamma: weights.param(self.gamma), beta: weights.param(self.beta), modulation }
    }

    /// The coefficients of the norm of `x0` and `x1`.
    pub fn coefficients<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        x0: &Act<B>,
        x1: Option<&Act<B>>,
        silu: bool,
        modulation: Option<&B::Buffer>,
    ) -> Result<Normed<B>> {
        let s = x0.tensor.shape;
        let dims = GroupNormDims {
            eps: self.eps,
            n: s.n as u32,
            pixels: s.pixels() as u32,
            c0: s.c as u32,
            c1: x1.map_or(0, |x| x.tensor.shape.c) as u32,
            groups: self.groups as u32,
            silu: u32::from(silu),
        };
        let missing = || Error::Failed("an input of a group norm has no statistics".into());
        let stats0 = x0.stats().ok_or_else(missing)?;
        let stats1 = x1.map(|x| x.stats().ok_or_else(missing)).transpose()?;
        let mut coefficients = backend.alloc(dims.coefficients_len())?;
        let params = self.params(weights, modulation.map(B::all));
        backend.group_norm_coefficients(&dims, stats0, stats1, params, B::all_mut(&mut coefficients))?;
        Ok(Normed { dims, coefficients })
    }
}

/// A convolution with its kept packed filter.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvLayer {
    pub params: ConvParams,
    pub k: usize,
    side: usize,
    slot: usize,
}

impl ConvLayer {
    pub fn new(l: &mut Layout, name: &str, k: usize, c: usize, side: usize) -> Self {
        ConvLayer { params: l.conv(name, k, c, side, false), k, side, slot: l.slot() }
    }

    /// A linear layer over every pixel.
    pub fn linear(l: &mut Layout, name: &str, k: usize, c: usize) -> Self {
        ConvLayer { params: l.linear(name, k, c), k, side: 1, slot: l.slot() }
    }

    /// Several linear layers of `k` channels as one.
    pub fn fused(l: &mut Layout, names: &[String], k: usize, c: usize) -> Self {
        ConvLayer { params: l.fused_linear(names, k, c), k: names.len() * k, side: 1, slot: l.slot() }
    }

    /// Extents for inputs of `c0` and `c1` channels at the pixels of `s`.
    pub fn dims(&self, s: Shape, c0: usize, c1: usize) -> ConvDims {
        let [n, h, w, c0, c1, k, side] = [s.n, s.h, s.w, c0, c1, self.k, self.side].map(|x| x as u32);
        ConvDims { n, h, w, c0, c1, r0: 0, r1: 0, k, side }
    }

    /// As [`ConvLayer::dims`], where the convolution changes the resolution; `large` are the pixels of the large side.
    pub fn resample_dims(&self, large: Shape, resampling: Resampling) -> ResampleConvDims {
        let [n, h, w, c, k] = [large.n, large.h, large.w, self.params.c, self.k].map(|x| x as u32);
        ResampleConvDims { n, h, w, c, k, resampling }
    }

    /// The convolution of x that changes the resolution; `bias` is added to the layer's own.
    pub fn resample_forward<B: Backend>(
        &self,
        backend: &B,
        weights: &mut Weights<B>,
        dims: &ResampleConvDims,
        x: &Tensor<B>,
        bias: Option<&B::Buffer>,
        (y, stats): (B::SliceMut<'_>, Option<B::SliceMut<'_>>),
    ) -> Result<()> {
        weights.pack_resampled(backend, self.slot, dims, &self.params)?;
        let weights = &*weights;
        let biases = [Some(weights.param(self.params.b)), bias.map(B::all)];
        backend.resample_conv(dims, x.view(), weights.packed(self.slot)?, biases, y, stats)
    }

    /// Its gradients: those of filter and bias, and as result that of x, which `add` joins.
    #[allow(clippy::too_many_arguments)] // what forward had, and the gradients
    pub fn resample_backward<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        dims: &ResampleConvDims,
        x: &Tensor<B>,
        dy: &Tensor<B>,
        add: Option<&Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let mut packed = backend.alloc_activation(backend.resample_conv_packed_len(dims, Direction::Dgrad))?;
        backend.resample_conv_pack(dims, Direction::Dgrad, weights.param(self.params.w), B::all_mut(&mut packed))?;
        let mut dx = Tensor::activation(backend, x.shape)?;
        let at = |id: ParamId| weights.layout.range(id);
        let [dw, db] = B::slices_mut(grads, [at(self.params.w), at(self.params.b)]);
        let out = ResampleConvGradients { dx: dx.view_mut(), dw, db };
        backend.resample_conv_backward(dims, x.view(), B::all(&packed), dy.view(), add.map(Tensor::view), out)?;
        Ok(dx)
    }

    /// The product of `input` with this filter, and with `shortcut` of `residual` where given.
    #[allow(clippy::too_many_arguments)] // operand, residual, epilogue and output of a fused convolution
    pub fn forward<'a, 'o, B: Backend>(
        &self,
        backend: &B,
        weights: &'a mut Weights<B>,
        dims: &ConvDims,
        input: Operand<'a, B>,
        prologue: Prologue<'a, B>,
        shortcut: Option<(&ConvLayer, Operand<'a, B>)>,
        mut epilogue: Epilogue<'a, B>,
        (y0, stats): (B::SliceMut<'o>, Option<B::SliceMut<'o>>),
    ) -> Result<()> {
        weights.pack(backend, self.slot, dims, &self.params, shortcut.as_ref().map(|(layer, _)| &layer.params))?;
        let weights = &*weights;
        epilogue.bias = Some(weights.param(self.params.b));
        if let Some((layer, _)) = &shortcut {
            epilogue.bias_res = Some(weights.param(layer.params.b));
        }
        let out = Output { y0, y1: None, k0: self.k, stats };
        backend.conv(
            dims,
            input,
            prologue,
            shortcut.map(|(_, operand)| operand),
            weights.packed(self.slot)?,
            epilogue,
            out,
        )
    }

    /// Gradients of filter and bias, and of `shortcut`'s, from `dy`.
    #[allow(clippy::too_many_arguments)] // as forward
    pub fn wgrad<'a, B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        dims: &ConvDims,
        input: Operand<'a, B>,
        prologue: Prologue<'a, B>,
        shortcut: Option<(&ConvLayer, Operand<'a, B>)>,
        dy: B::Slice<'a>,
    ) -> Result<()> {
        let at = |id: ParamId| weights.layout.range(id);
        let (w, b) = (at(self.params.w), at(self.params.b));
        match shortcut {
            Some((layer, operand)) => {
                let [dw, db, dw_res, db_res] = B::slices_mut(grads, [w, b, at(layer.params.w), at(layer.params.b)]);
                let out =
                    WeightGradients { dw, db: Some(db), dw_res: Some(dw_res), db_res: Some(db_res), border_sums: None };
                backend.conv_wgrad(dims, input, prologue, Some(operand), dy, out)
            }
            None => {
                let [dw, db] = B::slices_mut(grads, [w, b]);
                let out = WeightGradients { dw, db: Some(db), dw_res: None, db_res: None, border_sums: None };
                backend.conv_wgrad(dims, input, prologue, None, dy, out)
            }
        }
    }

    /// The gradient of the (prologued) input, from `dy` of the pixels of `s`; `add` joins it.
    pub fn dgrad<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        s: Shape,
        dy: &Tensor<B>,
        add: Option<&Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let mut dx = Tensor::activation(backend, s.with_c(self.params.c))?;
        self.dgrad_split(backend, weights, s, dy, add, &mut dx, None)?;
        Ok(dx)
    }

    /// As [`ConvLayer::dgrad`], into the first input's channels and the second's; `add` joins the first.
    #[allow(clippy::too_many_arguments)] // two outputs with what joins them
    pub fn dgrad_split<B: Backend>(
        &self,
        backend: &B,
        weights: &Weights<B>,
        s: Shape,
        dy: &Tensor<B>,
        add: Option<&Tensor<B>>,
        d0: &mut Tensor<B>,
        d1: Option<&mut Tensor<B>>,
    ) -> Result<()> {
        let dims = ConvDims { k: self.params.c as u32, ..self.dims(s, self.k, 0) };
        let packed = pack_dgrad(backend, weights, &dims, &self.params, None, None)?;
        split(backend, &dims, &packed, dy, add, d0, d1)
    }
}

/// A product whose output channels go to `d0` and, where there are more, to `d1`.
fn split<B: Backend>(
    backend: &B,
    dims: &ConvDims,
    packed: &B::Buffer,
    dy: &Tensor<B>,
    add: Option<&Tensor<B>>,
    d0: &mut Tensor<B>,
    d1: Option<&mut Tensor<B>>,
) -> Result<()> {
    let k0 = d0.shape.c;
    let out = Output { y0: d0.view_mut(), y1: d1.map(Tensor::view_mut), k0, stats: None };
    let epilogue = Epilogue { add0: add.map(Tensor::view), ..Epilogue::default() };
    backend.conv(dims, Operand::one(dy.view()), Prologue::none(), None, B::all(packed), epilogue, out)
}

/// Takes the gradient of a concatenation apart; `add` joins the first part.
pub(super) fn take_apart<B: Backend>(
    backend: &B,
    dy: &Tensor<B>,
    add: Option<&Tensor<B>>,
    d0: &mut Tensor<B>,
    d1: Option<&mut Tensor<B>>,
) -> Result<()> {
    let [n, h, w, c] = [dy.shape.n, dy.shape.h, dy.shape.w, dy.shape.c].map(|x| x as u32);
    let dims = ConvDims { n, h, w, c0: c, c1: 0, r0: 0, r1: 0, k: c, side: 1 };
    let packed = packed_with_identity(backend, &dims, None)?;
    split(backend, &dims, &packed, dy, add, d0, d1)
}

/// The matrix that changes nothing, [C, C], packed as a 1x1 filter, or as the residual beside the filter `w`: it brings two tensors together, or
/// takes them apart.
pub(super) fn packed_with_identity<B: Backend>(
    backend: &B,
    dims: &ConvDims,
    w: Option<(&Weights<B>, ParamId)>,
) -> Result<B::Buffer> {
    let c = dims.k as usize;
    let mut identity = backend.alloc(c * c)?;
    backend.fill(B::all_mut(&mut identity), 0.0)?;
    for i in 0..c {
        #[allow(clippy::single_range_in_vec_init)] // one element, not a list of numbers
        let [one] = B::slices_mut(&mut identity, [i * (c + 1)..i * (c + 1) + 1]);
        backend.fill(one, 1.0)?;
    }
    let mut packed = backend.alloc_activation(backend.conv_packed_len(dims))?;
    let filter = match w {
        Some((weights, id)) => {
            Filter { w: weights.param(id), w_res: Some(B::all(&identity)), forward_c: dims.c(), scale: None }
        }
        None => Filter { w: B::all(&identity), w_res: None, forward_c: dims.c(), scale: None },
    };
    backend.conv_pack(dims, Direction::Forward, filter, B::all_mut(&mut packed))?;
    Ok(packed)
}

/// a + b. Only networks without a middle add gradients outside of an operation.
pub(super) fn sum<B: Backend>(backend: &B, a: &Tensor<B>, b: &Tensor<B>) -> Result<Tensor<B>> {
    let mut y = Tensor::activation(backend, a.shape)?;
    take_apart(backend, a, Some(b), &mut y, None)?;
    Ok(y)
}

/// A context that another network made.
pub(super) fn lost<T>() -> Result<T> {
    Err(Error::Failed("a block's context is missing: the context does not come from this network".into()))
}

/// As an operand of a convolution.
pub(super) fn operand<'a, B: Backend>(x0: &'a Act<B>, x1: Option<&'a Act<B>>) -> Operand<'a, B> {
    Operand { x0: x0.tensor.view(), x1: x1.map(|x| x.tensor.view()), x1_constant: false }
}

/// An uninitialised float32 matrix of a row for each image.
pub(super) fn rows<M: Memory>(memory: &M, n: usize, c: usize) -> Result<M::Buffer> {
    memory.alloc(n * c)
}
