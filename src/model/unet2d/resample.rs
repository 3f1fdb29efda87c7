//! Changes of resolution by a 3x3 convolution: of stride 2 (diffusers' `Downsample2D`), and after doubling every pixel (`Upsample2D`).

use super::layers::{ConvLayer, Pass, new_act, parts};
use crate::error::Result;
use crate::model::Act;
use crate::model::params::{Layout, Weights};
use crate::ops::Backend;
use crate::ops::resample_conv::{ResampleConvDims, Resampling};
use crate::tensor::{Shape, Tensor};

/// A convolution that halves or doubles the resolution (see [`crate::ops::resample_conv`]).
#[derive(Debug)]
pub(super) struct ResampleLayer {
    conv: ConvLayer,
    resampling: Resampling,
}

impl ResampleLayer {
    /// The convolution of stride 2.
    pub fn down(l: &mut Layout, name: &str, c: usize, padding: usize) -> Self {
        // With zeros all around, output (i, j) looks at rows 2i-1 to 2i+1; without those above and to the left, at 2i to 2i+2.
        let resampling = Resampling::Keep { offset: u32::from(padding == 0) };
        ResampleLayer { conv: ConvLayer::new(l, &format!("{name}.conv"), c, c, 3), resampling }
    }

    /// The convolution after doubling every pixel.
    pub fn up(l: &mut Layout, name: &str, c: usize) -> Self {
        ResampleLayer { conv: ConvLayer::new(l, &format!("{name}.conv"), c, c, 3), resampling: Resampling::Double }
    }

    /// The convolution's extents for inputs of shape `s`, and the output's shape.
    fn extents(&self, s: Shape) -> (ResampleConvDims, Shape) {
        let (large, out) = match self.resampling {
            Resampling::Double => {
                let large = Shape { h: 2 * s.h, w: 2 * s.w, ..s };
                (large, large)
            }
            Resampling::Keep { .. } => (s, Shape { h: s.h / 2, w: s.w / 2, ..s }),
        };
        (self.conv.resample_dims(large, self.resampling), out.with_c(self.conv.k))
    }

    pub fn forward<B: Backend>(&self, pass: &Pass<'_, '_, B>, weights: &mut Weights<B>, x: &Act<B>) -> Result<Act<B>> {
        let (dims, out) = self.extents(x.tensor.shape);
        let mut y = new_act(pass.backend, out)?;
        self.conv.resample_forward(pass.backend, weights, &dims, &x.tensor, None, parts(&mut y))?;
        Ok(y)
    }

    /// The gradient of x, with that of its other use where `add` is given; those of filter and bias accumulate.
    pub fn backward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        x: &Act<B>,
        dy: &Tensor<B>,
        add: Option<&Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let (dims, _) = self.extents(x.tensor.shape);
        self.conv.resample_backward(pass.backend, weights, grads, &dims, &x.tensor, dy, add)
    }
}
