//! DDIM sampling as the seed counts it: `steps` points of time from 1 to 0, so `steps - 1` network calls, each of which predicts
//! noise and image at the current rates and remixes them at the next; the result is the last predicted image.

use super::Diffusion;
use crate::error::{Error, Result};
use crate::model::params::Weights;
use crate::model::seed_unet::SeedUnet;
use crate::model::{Act, Mode};
use crate::ops::Backend;
use crate::ops::ddim::DdimDims;
use crate::ops::loss::predict_code;
use crate::tensor::Tensor;

/// The time grid linspace(1, 0, steps) in float32, point for point as PyTorch computes it (both halves from their own end).
pub fn time_grid(steps: usize) -> Vec<f32> {
    let step = -1.0 / (steps.max(2) - 1) as f32;
    let at = |i: usize| if i < steps / 2 { 1.0 + step * i as f32 } else { 0.0 - step * (steps - 1 - i) as f32 };
    (0..steps).map(at).collect()
}

/// Turns noise into normalised pictures.
///
/// `on_step` is called after each network call with its number (from 1) and the picture predicted so far.
///
/// # Errors
/// Fewer than 2 steps, shapes that do not fit, a failing device, or an error of `on_step`.
pub fn sample<B: Backend>(
    backend: &B,
    net: &SeedUnet,
    weights: &mut Weights<B>,
    diffusion: &Diffusion,
    noise: Tensor<B>,
    steps: usize,
    mut on_step: impl FnMut(usize, &Tensor<B>) -> Result<()>,
) -> Result<Tensor<B>> {
    if steps < 2 {
        return Err(Error::Usage(format!("sampling needs at least 2 steps, {steps} given")));
    }
    let shape = noise.shape;
    let dims = DdimDims {
        n: shape.n as u32,
        per_image: (shape.h * shape.w * shape.c) as u32,
        predict: predict_code(diffusion.predict),
    };
    let diffusion = diffusion.in_single();
    let condition = |t: f32| {
        let mut times = backend.alloc(shape.n)?;
        backend.fill(B::all_mut(&mut times), t)?;
        diffusion.condition(backend, &times)
    };
    let mut x = noise;
    let mut image = Tensor::new(backend, shape)?;
    let grid = time_grid(steps);
    let mut now = condition(grid[0])?;
    for (call, &t) in grid[1..].iter().enumerate() {
        let next = condition(t)?;
        let embedding = Act { tensor: now.embedding.tensor, stats: None };
        let (pred, _) = net.forward(backend, weights, Mode::Eval, &x, embedding)?;
        let (rates_now, rates_next) = (B::all(&now.rates), B::all(&next.rates));
        backend.ddim_step(&dims, pred.view(), rates_now, rates_next, x.view_mut(), Some(image.view_mut()))?;
        on_step(call + 1, &image)?;
        now = next;
    }
    Ok(image)
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
