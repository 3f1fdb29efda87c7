//! Choices of the keys that tell how pictures are drawn, and how pixels become what the network sees.

use serde::{Deserialize, Serialize};

/// How pixels are brought to the network's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// By the mean and deviation of each channel, gathered over the first batches.
    Measured,
    /// To [-1, 1]: mean 0.5 and deviation 0.5, as the diffusers library has it.
    Fixed,
}

/// The sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SamplerKind {
    /// Song, Meng, Ermon 2021.
    #[serde(rename = "ddim")]
    Ddim,
    /// Ancestral: Ho, Jain, Abbeel 2020.
    #[serde(rename = "ddpm")]
    Ddpm,
    /// DPM-Solver++(2M): Lu et al. 2022.
    #[serde(rename = "dpm++2m")]
    DpmPlusPlus2M,
    /// Karras et al. 2022, algorithm 2.
    #[serde(rename = "heun")]
    Heun,
}

/// Which points of a discrete schedule the network is called at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpacingKind {
    /// Multiples of T / N, from 0 on.
    Leading,
    /// Multiples of T / N, from T back.
    Trailing,
    /// From 0 to T - 1 in equal steps.
    Linspace,
    /// Squares.
    Quadratic,
    /// Equal steps of sigma^(1/7).
    Karras,
}

/// Variance of the noise that the sampler `ddpm` adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VarianceKind {
    /// Of the posterior for a known picture.
    Small,
    /// Of the forward step.
    Large,
}
