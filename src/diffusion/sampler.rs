//! DDIM sampling as the seed counts it: `steps` points of time from 1 to 0, so `steps - 1` network calls, each of which predicts
//! noise and image at the current rates and remixes them at the next; the result is the last predicted image.

use super::Diffusion;
use crate::error::{Error, Result};
use crate::model::params::Weights;
use crate::model::{Act, Mode, Net};
use crate::ops::Backend;
use crate::ops::ddim::DdimDims;
use crate::ops::loss::predict_code;
use crate::tensor::{Shape, Tensor};

/// The time grid linspace(1, 0, steps) in float32, point for point as PyTorch computes it (both halves from their own end).
pub fn time_grid(steps: usize) -> Vec<f32> {
    let step = -1.0 / (steps.max(2) - 1) as f32;
    let at = |i: usize| if i < steps / 2 { 1.0 + step * i as f32 } else { 0.0 - step * (steps - 1 - i) as f32 };
    (0..steps).map(at).collect()
}

/// Turns noise into normalised pictures, one batch after the other of the same shape.
pub struct Sampler<'a, B: Backend> {
    backend: &'a B,
    net: &'a Net,
    weights: &'a mut Weights<B>,
    diffusion: Diffusion,
    steps: usize,
    /// The noise at first, then ever cleaner.
    x: Tensor<B>,
    /// The picture predicted last.
    image: Tensor<B>,
    graph: Option<B::Graph>,
}

impl<'a, B: Backend> Sampler<'a, B> {
    /// For batches of `shape` and `steps` points of the time grid. The weights must not change while this lives.
    ///
    /// # Errors
    /// Fewer than 2 steps; out of memory.
    pub fn new(
        backend: &'a B,
        net: &'a Net,
        weights: &'a mut Weights<B>,
        diffusion: &Diffusion,
        shape: Shape,
        steps: usize,
    ) -> Result<Self> {
        if steps < 2 {
            return Err(Error::Usage(format!("sampling needs at least 2 steps, {steps} given")));
        }
        let (x, image) = (Tensor::new(backend, shape)?, Tensor::new(backend, shape)?);
        Ok(Sampler { backend, net, weights, diffusion: diffusion.clone().in_single(), steps, x, image, graph: None })
    }

    /// Shape of a batch.
    pub fn shape(&self) -> Shape {
        self.x.shape
    }

    /// Where the noise of the next batch goes.
    pub fn noise(&mut self) -> B::SliceMut<'_> {
        self.x.view_mut()
    }

    /// Samples from the noise at hand. `on_step` is called after each network call with its number (from 1) and the picture predicted
    /// so far; the last one is the result.
    ///
    /// # Errors
    /// Out of memory, a failing device, or an error of `on_step`.
    pub fn run(&mut self, mut on_step: impl FnMut(usize, &Tensor<B>) -> Result<()>) -> Result<&Tensor<B>> {
        let (backend, shape) = (self.backend, self.x.shape);
        let dims = DdimDims {
            n: shape.n as u32,
            per_image: (shape.h * shape.w * shape.c) as u32,
            predict: predict_code(self.diffusion.predict),
        };
        let condition = |t: f32| {
            let mut times = backend.alloc(shape.n)?;
            backend.fill(B::all_mut(&mut times), t)?;
            self.diffusion.condition(backend, None, &times)
        };
        let grid = time_grid(self.steps);
        let mut now = condition(grid[0])?;
        for (call, &t) in grid[1..].iter().enumerate() {
            let next = condition(t)?;
            now.embedding = now.embedding.map(|e| Act { tensor: e.tensor, stats: None });
            let (pred, _) = self.net.forward(backend, self.weights, Mode::Eval, &self.x, &mut now, None)?;
            let (rates_now, rates_next) = (B::all(&now.rates), B::all(&next.rates));
            let (x, image) = (self.x.view_mut(), Some(self.image.view_mut()));
            backend.ddim_step(&dims, pred.view(), rates_now, rates_next, x, image)?;
            on_step(call + 1, &self.image)?;
            now = next;
        }
        Ok(&self.image)
    }

    /// As [`Sampler::run`]; the whole loop is recorded the first time and repeated after that, where the device can.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn run_recorded(&mut self) -> Result<&Tensor<B>> {
        let backend = self.backend;
        match self.graph.take() {
            Some(graph) => {
                backend.replay(&graph)?;
                self.graph = Some(graph);
            }
            None => self.graph = backend.record(&mut || self.run(|_, _| Ok(())).map(|_| ()))?,
        }
        Ok(&self.image)
    }
}

#[cfg(test)]
mod tests {
    use super::time_grid;

    #[test]
    fn the_grid_is_pytorchs() {
        assert_eq!(time_grid(2), [1.0, 0.0]);
        assert_eq!(time_grid(5), [1.0, 0.75, 0.5, 0.25, 0.0]);
        // torch.linspace(1, 0, 6): 1 - 1/5 and 1 - 2/5 rounded from above, the second half exact multiples of 1/5.
        assert_eq!(time_grid(6), [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]);
        assert_eq!(time_grid(20).len(), 20);
        assert!(time_grid(20).windows(2).all(|w| w[0] > w[1]));
    }
}
