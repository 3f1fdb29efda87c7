//! Samplers as plans: a list of network calls, each with the level that the network is told and the factors of the update behind it.
//!
//! A plan is arithmetic on the host, in float64, without a network or a device. [`super::sampler`] carries it out with
//! [`crate::ops::sampler_step`], the same way for every method:
//!
//! | method | source |
//! |---|---|
//! | `ddim` | Song, Meng, Ermon 2021, equation 12, with eta |
//! | `ddpm` | Ho, Jain, Abbeel 2020, equation 7: ancestral, with the smaller or the larger variance |
//! | `dpm++2m` | Lu et al. 2022, "DPM-Solver++", algorithm 2: two steps, midpoint, first order at both ends |
//! | `heun` | Karras et al. 2022, algorithm 2 without churn: two calls a step |
//!
//! Points in time and factors are those of the public library's schedulers; tests/samplers.rs holds them to its numbers. Pictures on
//! their way are signal x + noise e with signal^2 + noise^2 = 1, except for `heun`, where they are x + sigma e.

mod nodes;
mod settings;
mod updates;

pub use settings::{Sampling, Wishes};
pub use updates::{Inversion, invert};

use super::levels::{Level, Levels};
use crate::config::Predict;
use crate::error::{Error, Result};
use crate::ops::sampler_step::{Coefficients, Threshold};

/// How a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Implicit; with eta above 0 some noise is added.
    Ddim,
    /// Ancestral.
    Ddpm,
    /// DPM-Solver++ of second order, multistep.
    DpmPlusPlus2M,
    /// Heun's method on EDM's equation.
    Heun,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 4] = [Method::Ddim, Method::Ddpm, Method::DpmPlusPlus2M, Method::Heun];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Ddim => "ddim",
            Method::Ddpm => "ddpm",
            Method::DpmPlusPlus2M => "dpm++2m",
            Method::Heun => "heun",
        }
    }

    /// The method called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Method::ALL.into_iter().find(|m| m.name() == name);
        found.ok_or_else(|| Error::Usage(format!("--sampler {name}: expected ddim, ddpm, dpm++2m or heun")))
    }
}

/// Which points of a schedule the network is called at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of T / N, from 0 on.
    Leading,
    /// Multiples of T / N, from T back.
    Trailing,
    /// From 0 to T - 1 in equal steps.
    Linspace,
    /// Squares, which lie closer together where there is little noise.
    Quadratic,
    /// Equal steps of sigma^(1/7) (Karras et al. 2022, equation 5).
    Karras,
    /// Every point but the first, in place of which stands the clean picture: the seed's grid of times.
    Grid,
}

impl Spacing {
    /// Those that can be asked for.
    pub const NAMED: [Spacing; 5] =
        [Spacing::Leading, Spacing::Trailing, Spacing::Linspace, Spacing::Quadratic, Spacing::Karras];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Spacing::Leading => "leading",
            Spacing::Trailing => "trailing",
            Spacing::Linspace => "linspace",
            Spacing::Quadratic => "quadratic",
            Spacing::Karras => "karras",
            Spacing::Grid => "grid",
        }
    }

    /// The spacing called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Spacing::NAMED.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| {
            Error::Usage(format!("--spacing {name}: expected leading, trailing, linspace, quadratic or karras"))
        })
    }
}

/// Variance of the noise that ancestral sampling adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// That of the posterior for a picture that is known: the lower bound.
    Small,
    /// That of the forward step: the upper bound.
    Large,
}

/// A sampler and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// How a step is taken.
    pub method: Method,
    /// Steps: one network call each, two with `heun`.
    pub steps: usize,
    /// Where.
    pub spacing: Spacing,
    /// Added to the points of leading spacing.
    pub steps_offset: usize,
    /// What the network predicts.
    pub predict: Predict,
    /// What becomes of a predicted picture.
    pub threshold: Threshold,
    /// Share of the ancestral noise that `ddim` adds, from 0 to 1.
    pub eta: f64,
    /// Of `ddpm`.
    pub variance: Variance,
    /// `ddim` ends at a clean picture, not at the first point of the schedule.
    pub set_alpha_to_one: bool,
    /// Steps left out at the beginning, where one starts from a picture with noise instead of noise alone.
    pub skip: usize,
}

impl SamplerOptions {
    /// DDIM in `steps` steps with the public library's defaults, without a threshold.
    pub fn ddim(steps: usize, predict: Predict) -> Self {
        SamplerOptions {
            method: Method::Ddim,
            steps,
            spacing: Spacing::Leading,
            steps_offset: 0,
            predict,
            threshold: Threshold::None,
            eta: 0.0,
            variance: Variance::Small,
            set_alpha_to_one: true,
            skip: 0,
        }
    }

    /// Noise is added on the way.
    pub fn is_stochastic(&self) -> bool {
        self.method == Method::Ddpm || self.eta > 0.0
    }

    /// Refuses what does not go together, naming both.
    ///
    /// # Errors
    /// Settings that do not go together or with the schedule.
    pub fn check(&self, levels: &Levels) -> Result<()> {
        let (name, refuse) = (self.method.name(), |what: String| Err(Error::Usage(what)));
        if !(0.0..=1.0).contains(&self.eta) {
            return refuse(format!("--eta {}: expected a number from 0 to 1", self.eta));
        }
        if self.eta > 0.0 && self.method != Method::Ddim {
            let what = format!("--eta {} and --sampler {name}: only ddim has an eta", self.eta);
            return refuse(format!("{what}; leave --eta out, or take --sampler ddim"));
        }
        if self.method == Method::Ddpm && self.spacing == Spacing::Karras {
            let why = "ancestral steps are between points of the schedule, and Karras' levels lie between these";
            return refuse(format!("--spacing karras and --sampler ddpm: {why}; take leading, trailing or linspace"));
        }
        if levels.zero_terminal_snr() && self.predict == Predict::Noise {
            let why = "where no signal is left, a picture cannot be told from its noise";
            return refuse(format!(
                "rescale_betas_zero_snr and a network that predicts the noise (epsilon): {why}; \
                 such a schedule needs predict velocity or image"
            ));
        }
        let most = levels.len().saturating_sub(usize::from(self.spacing == Spacing::Grid));
        if self.steps == 0 || self.steps > most {
            return refuse(format!("--steps {}: the schedule allows 1 to {most} network calls", self.steps));
        }
        if self.skip >= self.steps {
            return refuse(format!("all {} steps would be left out; take a larger --strength", self.steps));
        }
        Ok(())
    }
}

/// One network call, and the update behind it, in the words of [`crate::ops::sampler_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// What the network is told.
    pub level: Level,
    /// The network's input is this times the picture on its way.
    pub input_scale: f64,
    /// Factors of the update.
    pub update: Update,
    /// Behind this call, a picture that is known would be on its way as `reached[0]` times it plus `reached[1]` times its noise; `None`
    /// in the middle of a step.
    pub reached: Option<[f64; 2]>,
}

/// [`Coefficients`] in float64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs)] // as in the formula
pub struct Update {
    pub cx: f64,
    pub cp: f64,
    pub a: f64,
    pub b: f64,
    pub c: f64,
    pub d: f64,
    pub e: f64,
    pub f: f64,
    pub keep: bool,
}

impl Update {
    /// Rounded, for a device.
    pub fn coefficients(&self) -> Coefficients {
        let Update { cx, cp, a, b, c, d, e, f, keep } = *self;
        let [cx, cp, a, b, c, d, e, f] = [cx, cp, a, b, c, d, e, f].map(|v| v as f32);
        Coefficients { cx, cp, a, b, c, d, e, f, keep }
    }
}

/// What a sampler does, call by call.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// From noise alone one starts with this times the noise.
    pub noise_scale: f64,
    /// From a picture one starts with `start[0]` times it plus `start[1]` times the noise.
    pub start: [f64; 2],
    /// What becomes of predicted pictures.
    pub threshold: Threshold,
}

impl Plan {
    /// The plan of a sampler on a schedule.
    ///
    /// # Errors
    /// Settings that do not go together: see [`SamplerOptions::check`].
    pub fn new(levels: &Levels, options: &SamplerOptions) -> Result<Self> {
        options.check(levels)?;
        let calls = match options.method {
            Method::Ddim => updates::ddim(&nodes::transitions(levels, options)?, options),
            Method::Ddpm => updates::ddpm(&nodes::transitions(levels, options)?, options),
            Method::DpmPlusPlus2M => updates::dpm(&nodes::solver_nodes(levels, options)?, options),
            Method::Heun => updates::heun(&nodes::solver_nodes(levels, options)?, options),
        };
        let first = calls.first().map_or(Level::CLEAN, |call| call.level);
        let (noise_scale, start) = match options.method {
            Method::Heun => (first.sigma(), [1.0, first.sigma()]),
            _ => (1.0, [first.signal, first.noise]),
        };
        Ok(Plan { calls, noise_scale, start, threshold: options.threshold })
    }

    /// DDIM without noise on the way, which calls the network at each of `nodes`, noisiest first, and ends at the clean picture.
    pub fn through(nodes: &[Level], predict: Predict, threshold: Threshold) -> Self {
        let next = nodes.iter().skip(1).copied().chain([Level::CLEAN]);
        let step = |(&now, next)| nodes::Transition { now, next, at_first_point: false };
        let steps: Vec<_> = nodes.iter().zip(next).map(step).collect();
        let calls = updates::ddim(&steps, &SamplerOptions::ddim(nodes.len(), predict));
        let first = nodes.first().copied().unwrap_or(Level::CLEAN);
        Plan { calls, noise_scale: 1.0, start: [first.signal, first.noise], threshold }
    }

    /// What was kept is needed.
    pub fn keeps(&self) -> bool {
        self.calls.iter().any(|call| call.update.keep)
    }

    /// Noise is added on the way.
    pub fn is_stochastic(&self) -> bool {
        self.calls.iter().any(|call| call.update.f != 0.0)
    }
}
