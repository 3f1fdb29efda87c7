//! Sampling: a plan ([`super::samplers`]) carried out with a network, or the seed family's own sampler.
//!
//! The seed's own is DDIM as it counts it: `steps` points of time from 1 to 0, so `steps - 1` network calls, each of which predicts
//! noise and image at the current rates and remixes them at the next; the result is the last predicted image. Its rates are float32 and its
//! updates [`crate::ops::ddim`], as in PyTorch.
//!
//! What changes between batches (noise, numbers of the images, classes, known pictures) lies in device memory, so that the loop is recorded
//! once and repeated.

use super::Diffusion;
use super::levels::Level;
use super::samplers::{Plan, Wishes};
use crate::device::nvtx;
use crate::error::{Error, Result};
use crate::model::params::Weights;
use crate::model::{Act, Condition, Mode, Net};
use crate::ops::Backend;
use crate::ops::ddim::DdimDims;
use crate::ops::loss::predict_code;
use crate::ops::noise::step_word;
use crate::ops::sampler_step::{StepDims, StepNoise, StepState};
use crate::tensor::{Shape, Tensor};

/// The time grid linspace(1, 0, steps) in float32, point for point as PyTorch computes it (both halves from their own end).
pub fn time_grid(steps: usize) -> Vec<f32> {
    let step = -1.0 / (steps.max(2) - 1) as f32;
    let at = |i: usize| if i < steps / 2 { 1.0 + step * i as f32 } else { 0.0 - step * (steps - 1 - i) as f32 };
    (0..steps).map(at).collect()
}

/// How to get from noise to pictures.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// The seed family's own sampler, with this many points of its time grid.
    SeedGrid(usize),
    /// Any other.
    Plan(Plan),
}

impl Way {
    /// The way to draw pictures in `steps` steps, as users count them: points of the time grid for the seed family, one network call fewer;
    /// steps of the sampler for the family unet2d.
    ///
    /// # Errors
    /// Fewer steps than there can be; wishes that do not go together.
    pub fn new(diffusion: &Diffusion, wishes: &Wishes, steps: usize) -> Result<Self> {
        let calls = Self::calls(diffusion, steps)?;
        if diffusion.is_seeds_sampler(wishes) {
            return Ok(Way::SeedGrid(steps));
        }
        let (levels, options) = diffusion.sampler_options(wishes, calls, 0)?;
        Ok(Way::Plan(Plan::new(&levels, &options)?))
    }

    /// Steps of a sampler that users count as `steps`.
    ///
    /// # Errors
    /// Fewer than there can be.
    pub fn calls(diffusion: &Diffusion, steps: usize) -> Result<usize> {
        let least = if diffusion.levels.is_none() { 2 } else { 1 };
        if steps < least {
            return Err(Error::Usage(format!("sampling needs at least {least} steps, {steps} given")));
        }
        Ok(if diffusion.levels.is_none() { steps - 1 } else { steps })
    }

    /// Whole steps: how often [`Sampler::run`] calls `on_step`.
    pub fn steps(&self) -> usize {
        match self {
            Way::SeedGrid(points) => points - 1,
            Way::Plan(plan) => plan.calls.iter().filter(|call| call.reached.is_some()).count(),
        }
    }

    /// Network calls for a picture, those of guidance apart.
    pub fn network_calls(&self) -> usize {
        match self {
            Way::SeedGrid(points) => points - 1,
            Way::Plan(plan) => plan.calls.len(),
        }
    }
}

/// Classes of the images of a batch.
struct Classes<B: Backend> {
    labels: B::Buffer,
    /// With guidance: the labels of no class, and the weight of the difference.
    guidance: Option<(B::Buffer, f32)>,
}

/// What is known of the pictures of a batch.
struct Known<B: Backend> {
    pictures: Tensor<B>,
    /// Sampling begins with them and some noise, not with noise alone.
    begin: bool,
    /// 1 where a picture is to be drawn, 0 where it is known.
    mask: Option<Tensor<B>>,
}

/// Turns noise into normalised pictures, one batch after the other of the same shape.
pub struct Sampler<'a, B: Backend> {
    backend: &'a B,
    net: &'a Net,
    weights: &'a mut Weights<B>,
    diffusion: Diffusion,
    way: Way,
    /// Seed of the noise that is added on the way.
    seed: u64,
    /// The noise of the batch, of a plan.
    noise: Option<Tensor<B>>,
    /// The noise at first, then ever cleaner.
    x: Tensor<B>,
    /// The picture predicted last.
    image: Tensor<B>,
    kept: Option<Tensor<B>>,
    /// Number of the first image: see [`StepNoise`].
    first_image: B::Buffer,
    classes: Option<Classes<B>>,
    known: Option<Known<B>>,
    graph: Option<B::Graph>,
}

impl<'a, B: Backend> Sampler<'a, B> {
    /// For batches of `shape` and `steps` steps (see [`Way::new`]), as the run's configuration has it. The weights must not change while
    /// this lives.
    ///
    /// # Errors
    /// Too few steps; out of memory.
    pub fn new(
        backend: &'a B,
        net: &'a Net,
        weights: &'a mut Weights<B>,
        diffusion: &Diffusion,
        shape: Shape,
        steps: usize,
    ) -> Result<Self> {
        let way = Way::new(diffusion, &Wishes::default(), steps)?;
        Self::with_way(backend, net, weights, diffusion, shape, way)
    }

    /// As [`Sampler::new`], by any way. A network that knows classes draws them in turn, unless [`Sampler::set_classes`] says otherwise.
    ///
    /// # Errors
    /// Out of memory.
    pub fn with_way(
        backend: &'a B,
        net: &'a Net,
        weights: &'a mut Weights<B>,
        diffusion: &Diffusion,
        shape: Shape,
        way: Way,
    ) -> Result<Self> {
        let (x, image) = (Tensor::new(backend, shape)?, Tensor::new(backend, shape)?);
        let (noise, kept) = match &way {
            Way::SeedGrid(_) => (None, None),
            Way::Plan(plan) => {
                let kept = if plan.keeps() { Some(Tensor::new(backend, shape)?) } else { None };
                (Some(Tensor::new(backend, shape)?), kept)
            }
        };
        let first_image = backend.alloc(1)?;
        let diffusion = diffusion.clone().in_single();
        let mut sampler = Sampler {
            backend,
            net,
            weights,
            diffusion,
            way,
            seed: 0,
            noise,
            x,
            image,
            kept,
            first_image,
            classes: None,
            known: None,
            graph: None,
        };
        sampler.set_first_image(0)?;
        if let Some(count) = sampler.classes() {
            let labels: Vec<usize> = (0..shape.n).map(|i| i % count).collect();
            sampler.set_classes(&labels, None)?;
        }
        Ok(sampler)
    }

    /// Shape of a batch.
    pub fn shape(&self) -> Shape {
        self.x.shape
    }

    /// Classes that can be drawn, where the network knows classes: all but that of no class.
    pub fn classes(&self) -> Option<usize> {
        let sampling = &self.diffusion.sampling;
        sampling.classes.map(|n| (n - usize::from(sampling.null_class.is_some())).max(1))
    }

    /// Where the noise of the next batch goes.
    pub fn noise(&mut self) -> B::SliceMut<'_> {
        match &mut self.noise {
            Some(noise) => noise.view_mut(),
            None => self.x.view_mut(),
        }
    }

    /// Seed of the noise that is added on the way. Before the first batch.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
        self.graph = None;
    }

    /// Number of the next batch's first image: the noise that is added on the way is a function of it.
    ///
    /// # Errors
    /// The device failed.
    pub fn set_first_image(&mut self, first: usize) -> Result<()> {
        self.backend.upload(&[step_word(first as u64)], B::all_mut(&mut self.first_image))
    }

    /// Classes of the next batch. `guidance`: the class of no class, and the weight w of prediction + (w - 1) (prediction - that without a
    /// class) (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance").
    ///
    /// # Errors
    /// A batch of another size; a network that knows no classes; out of memory, or the device failed.
    pub fn set_classes(&mut self, labels: &[usize], guidance: Option<(usize, f64)>) -> Result<()> {
        let n = self.x.shape.n;
        let Some(count) = self.diffusion.sampling.classes else {
            return Err(Error::Usage("the network knows no classes; leave --class out".into()));
        };
        if let Some(label) = labels.iter().find(|&&label| label >= count) {
            return Err(Error::Usage(format!("--class {label}: the network knows the classes 0 to {}", count - 1)));
        }
        if labels.len() != n {
            return Err(Error::Shape { op: "sampler", what: format!("{} classes for {n} images", labels.len()) });
        }
        if self.classes.as_ref().is_none_or(|c| c.guidance.as_ref().map(|g| g.1) != guidance.map(|g| g.1 as f32)) {
            let guidance = match guidance {
                Some((null, weight)) => {
                    let mut labels = self.backend.alloc(n)?;
                    self.backend.fill(B::all_mut(&mut labels), null as f32)?;
                    Some((labels, weight as f32))
                }
                None => None,
            };
            self.classes = Some(Classes { labels: self.backend.alloc(n)?, guidance });
            self.graph = None;
        }
        let labels: Vec<f32> = labels.iter().map(|&label| label as f32).collect();
        match &mut self.classes {
            Some(classes) => self.backend.upload(&labels, B::all_mut(&mut classes.labels)),
            None => Ok(()),
        }
    }

    /// Pictures (normalised, NHWC) that are known. `begin`: sampling begins with them and some noise. `mask` (as many elements): 1 where a
    /// picture is to be drawn, 0 where it stays as it is known.
    ///
    /// # Errors
    /// The seed family's own sampler, which begins with noise; a batch of another size; out of memory, or the device failed.
    pub fn set_known(&mut self, pictures: &[f32], begin: bool, mask: Option<&[f32]>) -> Result<()> {
        if let Way::SeedGrid(_) = self.way {
            return Err(Error::Failed("the seed's own sampler cannot begin with pictures: it needs a plan".into()));
        }
        let (backend, shape) = (self.backend, self.x.shape);
        if self.known.as_ref().is_none_or(|k| k.begin != begin || k.mask.is_some() != mask.is_some()) {
            let empty = if mask.is_some() { Some(Tensor::new(backend, shape)?) } else { None };
            self.known = Some(Known { pictures: Tensor::new(backend, shape)?, begin, mask: empty });
            self.graph = None;
        }
        if let Some(known) = &mut self.known {
            backend.upload(pictures, known.pictures.view_mut())?;
            if let (Some(tensor), Some(mask)) = (&mut known.mask, mask) {
                backend.upload(mask, tensor.view_mut())?;
            }
        }
        Ok(())
    }

    /// Samples from the noise at hand. `on_step` is called after each step with its number (from 1) and the picture predicted
    /// so far; the last one is the result.
    ///
    /// # Errors
    /// Out of memory, a failing device, or an error of `on_step`.
    pub fn run(&mut self, mut on_step: impl FnMut(usize, &Tensor<B>) -> Result<()>) -> Result<&Tensor<B>> {
        self.run_watched(|step, _, image| on_step(step, image))
    }

    /// As [`Sampler::run`]; `on_step` sees the pictures on their way too: number, what the step came to, picture predicted so far. What
    /// the last step of the seed family's own sampler comes to still has the noise of time 0.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn run_watched(
        &mut self,
        on_step: impl FnMut(usize, &Tensor<B>, &Tensor<B>) -> Result<()>,
    ) -> Result<&Tensor<B>> {
        let _range = nvtx::range(c"sample");
        match &self.way {
            Way::SeedGrid(points) => self.run_grid(time_grid(*points), on_step)?,
            Way::Plan(plan) => {
                let plan = plan.clone();
                self.run_plan(&plan, on_step)?;
            }
        }
        Ok(self.result())
    }

    fn result(&self) -> &Tensor<B> {
        match self.way {
            Way::SeedGrid(_) => &self.image,
            Way::Plan(_) => &self.x,
        }
    }

    /// The result of the last batch.
    pub fn into_result(self) -> Tensor<B> {
        match self.way {
            Way::SeedGrid(_) => self.image,
            Way::Plan(_) => self.x,
        }
    }

    fn run_grid(
        &mut self,
        grid: Vec<f32>,
        mut on_step: impl FnMut(usize, &Tensor<B>, &Tensor<B>) -> Result<()>,
    ) -> Result<()> {
        let (backend, shape) = (self.backend, self.x.shape);
        let dims = DdimDims {
            n: shape.n as u32,
            per_image: (shape.h * shape.w * shape.c) as u32,
            predict: predict_code(self.diffusion.predict),
        };
        let mut now = self.seed_condition(grid[0])?;
        for (call, &t) in grid[1..].iter().enumerate() {
            let next = self.seed_condition(t)?;
            let (pred, _) = self.net.forward(backend, self.weights, Mode::Eval, &self.x, &mut now, None)?;
            let (rates_now, rates_next) = (B::all(&now.rates), B::all(&next.rates));
            let (x, image) = (self.x.view_mut(), Some(self.image.view_mut()));
            let range = nvtx::range(c"update");
            backend.ddim_step(&dims, pred.view(), rates_now, rates_next, x, image)?;
            drop(range);
            on_step(call + 1, &self.x, &self.image)?;
            now = next;
        }
        Ok(())
    }

    /// What the seed family's network is told at a time.
    fn seed_condition(&self, time: f32) -> Result<Condition<B>> {
        let mut times = self.backend.alloc(self.x.shape.n)?;
        self.backend.fill(B::all_mut(&mut times), time)?;
        let mut condition = self.diffusion.condition(self.backend, None, &times)?;
        condition.embedding = condition.embedding.map(|e| Act { tensor: e.tensor, stats: None });
        Ok(condition)
    }

    fn run_plan(
        &mut self,
        plan: &Plan,
        mut on_step: impl FnMut(usize, &Tensor<B>, &Tensor<B>) -> Result<()>,
    ) -> Result<()> {
        self.begin(plan)?;
        let (backend, shape) = (self.backend, self.x.shape);
        let dims = StepDims { n: shape.n as u32, per_image: (shape.h * shape.w * shape.c) as u32 };
        let (mut steps, all) = (0, self.way.steps());
        for (number, call) in plan.calls.iter().enumerate() {
            let scaled = match call.input_scale {
                1.0 => None,
                scale => {
                    let mut input = Tensor::new(backend, shape)?;
                    backend.combine(scale as f32, self.x.view(), 0.0, None, input.view_mut())?;
                    Some(input)
                }
            };
            let pred = self.predict(call.level, scaled.as_ref())?;
            let noise = StepNoise { seed: self.seed, call: number as u32, first_image: B::all(&self.first_image) };
            let state = StepState {
                x: self.x.view_mut(),
                x0: self.image.view_mut(),
                kept: self.kept.as_mut().map(Tensor::view_mut),
            };
            let coefficients = call.update.coefficients();
            let range = nvtx::range(c"update");
            backend.sampler_step(&dims, &coefficients, plan.threshold, pred.view(), Some(noise), state)?;
            drop(range);
            if let Some(rates) = call.reached {
                self.keep_known(rates)?;
                steps += 1;
                on_step(steps, &self.x, if steps == all { &self.x } else { &self.image })?;
            }
        }
        Ok(())
    }

    /// x at the beginning.
    fn begin(&mut self, plan: &Plan) -> Result<()> {
        let backend = self.backend;
        let Some(noise) = &self.noise else {
            return Err(Error::Failed("a plan without a place for noise".into()));
        };
        let x = self.x.view_mut();
        match &self.known {
            Some(known) if known.begin => {
                let [signal, noise_rate] = plan.start.map(|rate| rate as f32);
                let noise = if noise_rate == 0.0 { None } else { Some(noise.view()) };
                backend.combine(signal, known.pictures.view(), noise_rate, noise, x)?;
            }
            _ => backend.combine(plan.noise_scale as f32, noise.view(), 0.0, None, x)?,
        }
        self.keep_known(plan.start)
    }

    /// Puts what is known in its place, with the noise of the moment.
    fn keep_known(&mut self, rates: [f64; 2]) -> Result<()> {
        let (Some(Known { pictures, mask: Some(mask), .. }), Some(noise)) = (&self.known, &self.noise) else {
            return Ok(());
        };
        let rates = rates.map(|rate| rate as f32);
        self.backend.blend(rates, mask.view(), pictures.view(), noise.view(), self.x.view_mut())
    }

    /// What the network is told at a level; `null`: that the pictures are of no class.
    fn told(&self, level: Level, null: bool) -> Result<Condition<B>> {
        let (backend, n) = (self.backend, self.x.shape.n);
        let mut condition = match self.net {
            Net::Seed(_) => self.seed_condition(level.timestep)?,
            Net::Unet2d(_) => {
                let mut timesteps = backend.alloc(n)?;
                backend.fill(B::all_mut(&mut timesteps), level.timestep)?;
                let rates = backend.alloc(1)?; // nobody reads them
                Condition { rates, embedding: None, timesteps: Some(timesteps), labels: None, weights: None }
            }
        };
        let labels = self.classes.as_ref().and_then(|classes| match (&classes.guidance, null) {
            (Some((none, _)), true) => Some(none),
            (None, true) => None,
            (_, false) => Some(&classes.labels),
        });
        if let Some(labels) = labels {
            let mut copy = backend.alloc(n)?;
            backend.copy(B::all(labels), B::all_mut(&mut copy))?;
            condition.labels = Some(copy);
        }
        Ok(condition)
    }

    /// The network's prediction for x, or for `input` in place of it; with guidance, where it is asked for.
    fn predict(&mut self, level: Level, input: Option<&Tensor<B>>) -> Result<Tensor<B>> {
        let backend = self.backend;
        let mut condition = self.told(level, false)?;
        let input = input.unwrap_or(&self.x);
        let (pred, _) = self.net.forward(backend, self.weights, Mode::Eval, input, &mut condition, None)?;
        let Some(Classes { guidance: Some((_, weight)), .. }) = self.classes else { return Ok(pred) };
        let mut condition = self.told(level, true)?;
        let (without, _) = self.net.forward(backend, self.weights, Mode::Eval, input, &mut condition, None)?;
        let mut guided = Tensor::new(backend, pred.shape)?;
        backend.combine(1.0 - weight, without.view(), weight, Some(pred.view()), guided.view_mut())?;
        Ok(guided)
    }

    /// As [`Sampler::run`]; the whole loop is recorded the first time and repeated after that, where the device can.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn run_recorded(&mut self) -> Result<&Tensor<B>> {
        let backend = self.backend;
        match self.graph.take() {
            Some(graph) => {
                let _range = nvtx::range(c"sample");
                backend.replay(&graph)?;
                self.graph = Some(graph);
            }
            None => self.graph = backend.record(&mut || self.run(|_, _| Ok(())).map(|_| ()))?,
        }
        Ok(self.result())
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
