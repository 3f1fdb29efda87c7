//! Floor 4: how good a model is. Losses by noise level, and what a picture-classifying network says of generated pictures.
//!
//! | module | what |
//! |---|---|
//! | [`evaluate`] | a model measured: losses and distances, `evaluation.json` |
//! | [`losses`] | losses of pictures held back, over all noise levels and by level |
//! | [`inception`] | Inception-v3, forward: 2048 features of a picture |
//! | [`features`] | pictures to features, and the cache of those of real pictures |
//! | [`kid`], [`fid`], [`neighbours`] | distances of two sets of features: kernel and Frechet inception distance, precision and recall |
//! | [`matrix`] | features of pictures, and their products |

use serde::{Deserialize, Serialize};

pub mod evaluate;
pub mod features;
pub mod fid;
pub mod inception;
pub mod kid;
pub mod losses;
pub mod matrix;
pub mod neighbours;

/// Losses of the pictures whose noise level lies in one bin of diffusion times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelLoss {
    /// Least and greatest diffusion time of the bin, in [0, 1] (family unet2d: timestep over their number).
    pub time: [f64; 2],
    /// Noise rates at these times.
    pub noise_rate: [f64; 2],
    /// Pictures in the bin.
    pub count: usize,
    /// Mean absolute error of the noise.
    pub noise_loss: f64,
    /// Mean absolute error of the picture.
    pub image_loss: f64,
}

/// Distances of generated from real pictures in the features of Inception-v3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// `engine`: one set of pictures, subsets of it; `seed`: a mean of estimates of batches.
    pub protocol: String,
    /// The file of weights, and its SHA-256.
    pub inception: String,
    /// Real and generated pictures.
    pub pictures: [usize; 2],
    /// Steps asked for, and network calls made, of the sampler.
    pub sampler: String,
    /// See `sampler`.
    pub steps: usize,
    /// See `sampler`.
    pub network_calls: usize,
    /// Kernel inception distance: mean over subsets.
    pub kid: f64,
    /// Standard deviation over subsets.
    pub kid_std: f64,
    /// Subsets, and pictures of each.
    pub kid_subsets: [usize; 2],
    /// Frechet inception distance.
    pub fid: Option<f64>,
    /// Share of generated pictures that lie among real ones (k nearest neighbours, Kynkäänniemi et al. 2019).
    pub precision: Option<f64>,
    /// Share of real pictures that lie among generated ones.
    pub recall: Option<f64>,
}

/// What `ddim-engine evaluate` found of a model; `evaluation.json` in a run's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps of training that the weights have had.
    pub step: u64,
    /// `moving average` or `as trained`.
    pub weights: String,
    /// What the pictures are.
    pub data: String,
    /// `valid` or `all`.
    pub split: String,
    /// Pictures that the losses are of.
    pub pictures: usize,
    /// The training loss.
    pub loss: f64,
    /// Mean absolute error of the noise.
    pub noise_loss: f64,
    /// Mean absolute error of the picture.
    pub image_loss: f64,
    /// The losses by noise level.
    pub levels: Vec<LevelLoss>,
    /// Distances of generated pictures, where they were asked for.
    pub quality: Option<Quality>,
    /// Where it was computed.
    pub device: String,
    /// How long it took.
    pub seconds: f64,
}

impl Evaluation {
    /// Its name in the folder of a run.
    pub const FILE: &'static str = "evaluation.json";
}
