//! Changes of resolution by a 3x3 convolution: of stride 2 (diffusers' `Downsample2D`), and after doubling every pixel (`Upsample2D`).

use std::rc::Rc;

use super::layers::{ConvLayer, Pass, new_act, operand, parts};
use crate::error::Result;
use crate::model::Act;
use crate::model::params::{Layout, Weights};
use crate::ops::Backend;
use crate::ops::conv::{Epilogue, Operand, Prologue};
use crate::tensor::{Shape, Tensor};

/// The convolution of stride 2, as one of stride 1 of which every fourth pixel is kept (see [`crate::ops::resize`]).
#[derive(Debug)]
pub(super) struct Downsample {
    conv: ConvLayer,
    c: usize,
    /// The row and column that is kept of two.
    offset: u32,
}

impl Downsample {
    pub fn new(l: &mut Layout, name: &str, c: usize, padding: usize) -> Self {
        // With zeros all around, output (i, j) looks at rows 2i-1 to 2i+1; without those above and to the left, at 2i to 2i+2.
        Downsample { conv: ConvLayer::new(l, &format!("{name}.conv"), c, c, 3), c, offset: u32::from(padding == 0) }
    }

    pub fn forward<B: Backend>(&self, pass: &Pass<'_, '_, B>, weights: &mut Weights<B>, x: &Act<B>) -> Result<Act<B>> {
        let backend = pass.backend;
        let s = x.tensor.shape;
        let mut all = Tensor::activation(backend, s)?;
        let (input, epilogue) = (operand(x, None), Epilogue::default());
        let place = (all.view_mut(), None);
        self.conv.forward(
            backend,
            weights,
            &self.conv.dims(s, self.c, 0),
            input,
            Prologue::none(),
            None,
            epilogue,
            place,
        )?;
        let mut y = new_act(backend, Shape { h: s.h / 2, w: s.w / 2, ..s })?;
        let (kept, stats) = parts(&mut y);
        backend.keep_forward(&s.into(), self.offset, all.view(), kept, stats)?;
        Ok(y)
    }

    pub fn backward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        x: &Act<B>,
        dy: Tensor<B>,
        add: Option<Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let backend = pass.backend;
        let s = x.tensor.shape;
        let mut all = Tensor::activation(backend, s)?;
        backend.keep_backward(&s.into(), self.offset, dy.view(), all.view_mut())?;
        drop(dy);
        let (input, extents) = (operand(x, None), self.conv.dims(s, self.c, 0));
        self.conv.wgrad(backend, weights, grads, &extents, input, Prologue::none(), None, all.view())?;
        self.conv.dgrad(backend, weights, s, &all, add.as_ref())
    }
}

/// The convolution after doubling every pixel.
#[derive(Debug)]
pub(super) struct Upsample {
    conv: ConvLayer,
    c: usize,
}

impl Upsample {
    pub fn new(l: &mut Layout, name: &str, c: usize) -> Self {
        Upsample { conv: ConvLayer::new(l, &format!("{name}.conv"), c, c, 3), c }
    }

    fn doubled<B: Backend>(&self, backend: &B, x: &Act<B>) -> Result<Tensor<B>> {
        let s = x.tensor.shape;
        let mut large = Tensor::activation(backend, Shape { h: 2 * s.h, w: 2 * s.w, ..s })?;
        backend.double_forward(&large.shape.into(), x.tensor.view(), large.view_mut(), None)?;
        Ok(large)
    }

    pub fn forward<B: Backend>(&self, pass: &Pass<'_, '_, B>, weights: &mut Weights<B>, x: &Act<B>) -> Result<Act<B>> {
        let backend = pass.backend;
        let large = self.doubled(backend, x)?;
        let mut y = new_act(backend, large.shape)?;
        let (input, extents) = (Operand::one(large.view()), self.conv.dims(large.shape, self.c, 0));
        let epilogue = Epilogue::default();
        self.conv.forward(backend, weights, &extents, input, Prologue::none(), None, epilogue, parts(&mut y))?;
        Ok(y)
    }

    pub fn backward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        x: &Rc<Act<B>>,
        dy: Tensor<B>,
    ) -> Result<Tensor<B>> {
        let backend = pass.backend;
        let large = self.doubled(backend, x)?;
        let (input, extents) = (Operand::one(large.view()), self.conv.dims(large.shape, self.c, 0));
        self.conv.wgrad(backend, weights, grads, &extents, input, Prologue::none(), None, dy.view())?;
        let s = large.shape;
        drop(large);
        let dlarge = self.conv.dgrad(backend, weights, s, &dy, None)?;
        drop(dy);
        let mut dx = Tensor::activation(backend, x.tensor.shape)?;
        backend.double_backward(&s.into(), dlarge.view(), None, dx.view_mut())?;
        Ok(dx)
    }
}
