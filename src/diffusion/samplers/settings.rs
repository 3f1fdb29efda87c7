//! From what a run's configuration says of sampling, and what is asked for beyond it, to a sampler's options.

use std::rc::Rc;

use super::{Method, Plan, SamplerOptions, Spacing, Variance};
use crate::config::{Config, Family, SamplerKind, SpacingKind, VarianceKind};
use crate::diffusion::Diffusion;
use crate::diffusion::levels::Levels;
use crate::error::{Error, Result};
use crate::ops::sampler_step::Threshold;
use crate::ops::schedule::LINEAR_STEPS;

impl From<SamplerKind> for Method {
    fn from(kind: SamplerKind) -> Self {
        match kind {
            SamplerKind::Ddim => Method::Ddim,
            SamplerKind::Ddpm => Method::Ddpm,
            SamplerKind::DpmPlusPlus2M => Method::DpmPlusPlus2M,
            SamplerKind::Heun => Method::Heun,
        }
    }
}

impl From<SpacingKind> for Spacing {
    fn from(kind: SpacingKind) -> Self {
        match kind {
            SpacingKind::Leading => Spacing::Leading,
            SpacingKind::Trailing => Spacing::Trailing,
            SpacingKind::Linspace => Spacing::Linspace,
            SpacingKind::Quadratic => Spacing::Quadratic,
            SpacingKind::Karras => Spacing::Karras,
        }
    }
}

/// What a run's configuration says of sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    seed_family: bool,
    method: Method,
    spacing: Spacing,
    steps_offset: usize,
    threshold: Threshold,
    most: f32,
    variance: Variance,
    set_alpha_to_one: bool,
    /// Classes that the network knows, that of no class among them.
    pub classes: Option<usize>,
    /// The class of pictures without one, where the network has learned it.
    pub null_class: Option<usize>,
}

impl Sampling {
    /// From a configuration.
    pub fn new(config: &Config) -> Self {
        let threshold = match (config.sample_quantile > 0.0, config.sample_clip > 0.0) {
            (true, _) => {
                Threshold::Dynamic { quantile: config.sample_quantile, most: config.sample_quantile_max as f32 }
            }
            (false, true) => Threshold::Clamp(config.sample_clip as f32),
            (false, false) => Threshold::None,
        };
        let classes = config.unet.as_ref().and_then(|unet| unet.num_class_embeds);
        Sampling {
            seed_family: config.family == Family::Seed,
            method: config.sampler.into(),
            spacing: config.sample_spacing.into(),
            steps_offset: config.sample_offset,
            threshold,
            most: if config.sample_quantile > 0.0 { config.sample_quantile_max as f32 } else { f32::INFINITY },
            variance: match config.sample_variance {
                VarianceKind::Small => Variance::Small,
                VarianceKind::Large => Variance::Large,
            },
            set_alpha_to_one: config.sample_to_clean,
            classes,
            null_class: classes.filter(|_| config.label_dropout > 0.0).map(|n| n - 1),
        }
    }
}

/// What is asked for beyond the configuration; nothing of it, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wishes {
    /// How a step is taken.
    pub method: Option<Method>,
    /// Share of the ancestral noise that DDIM adds.
    pub eta: Option<f64>,
    /// Which points of the schedule.
    pub spacing: Option<Spacing>,
    /// Predicted pictures are clamped to this distance from 0; 0 leaves them as they are.
    pub clip: Option<f64>,
    /// They are clamped to this quantile of their own, and divided by it.
    pub dynamic_threshold: Option<f64>,
}

impl Diffusion {
    /// The seed family's own sampler is meant: see [`crate::diffusion::sampler`].
    pub fn is_seeds_sampler(&self, wishes: &Wishes) -> bool {
        self.sampling.seed_family && *wishes == Wishes::default()
    }

    /// DDIM at equal steps of time, whatever sampler the configuration names: `calls` network calls from the schedule's end to behind its
    /// first step, and then the clean picture.
    ///
    /// # Errors
    /// The schedule has fewer points.
    pub fn even_plan(&self, calls: usize) -> Result<Plan> {
        let levels = match &self.levels {
            Some(levels) => Rc::clone(levels),
            None => Rc::new(self.levels_of_times(calls.max(1) + 1)),
        };
        if calls == 0 || calls >= levels.len() {
            let most = levels.len() - 1;
            return Err(Error::Usage(format!("{calls} steps of time: the schedule has room for 1 to {most}")));
        }
        let node = |i: usize| levels.at((i * (levels.len() - 1)).div_ceil(calls));
        let nodes: Vec<_> = (1..=calls).rev().map(node).collect();
        Ok(Plan::through(&nodes, self.predict, self.sampling.threshold))
    }

    /// Schedule and options of a sampler with `steps` network calls (twice as many with `heun`); the first `skip` are left out.
    ///
    /// # Errors
    /// Wishes that do not go together.
    pub fn sampler_options(&self, wishes: &Wishes, steps: usize, skip: usize) -> Result<(Rc<Levels>, SamplerOptions)> {
        let ours = &self.sampling;
        let method = wishes.method.unwrap_or(if ours.seed_family { Method::Ddim } else { ours.method });
        let spacing = match (wishes.spacing, method) {
            (Some(spacing), _) => spacing,
            (None, Method::Heun) if method != ours.method || ours.seed_family => Spacing::Karras,
            (None, _) if ours.seed_family => Spacing::Grid,
            (None, Method::DpmPlusPlus2M) if method != ours.method => Spacing::Linspace,
            (None, Method::Ddpm) if ours.spacing == Spacing::Karras => Spacing::Leading,
            (None, _) => ours.spacing,
        };
        let threshold = match (wishes.clip, wishes.dynamic_threshold) {
            (Some(clip), Some(q)) => {
                let what = "a predicted picture is limited in one way; leave one of them out";
                return Err(Error::Usage(format!("--clip {clip} and --dynamic-threshold {q}: {what}")));
            }
            (Some(clip), None) if clip.is_nan() || clip < 0.0 => {
                return Err(Error::Usage(format!("--clip {clip}: expected a number above 0, or 0 for none")));
            }
            (None, Some(q)) if q.is_nan() || q <= 0.0 || q > 1.0 => {
                return Err(Error::Usage(format!(
                    "--dynamic-threshold {q}: expected above 0 and at most 1, such as 0.995"
                )));
            }
            (Some(0.0), None) => Threshold::None,
            (Some(clip), None) => Threshold::Clamp(clip as f32),
            (None, Some(quantile)) => Threshold::Dynamic { quantile, most: ours.most },
            // The public library's solvers do not clip, whatever the scheduler that they are made from does.
            (None, None) if method == ours.method || method == Method::Ddpm || method == Method::Ddim => ours.threshold,
            (None, None) => Threshold::None,
        };
        let options = SamplerOptions {
            method,
            steps,
            spacing,
            steps_offset: if spacing == Spacing::Leading { ours.steps_offset } else { 0 },
            predict: self.predict,
            threshold,
            eta: wishes.eta.unwrap_or(0.0),
            variance: ours.variance,
            set_alpha_to_one: ours.set_alpha_to_one,
            skip,
        };
        let levels = match &self.levels {
            Some(levels) => Rc::clone(levels),
            // The seed's times are continuous: as many points as the grid has, or as its linear schedule has.
            None if spacing == Spacing::Grid => Rc::new(self.levels_of_times(steps + 1)),
            None => Rc::new(self.levels_of_times(LINEAR_STEPS)),
        };
        options.check(&levels)?;
        Ok((levels, options))
    }
}
