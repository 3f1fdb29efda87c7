//! `ddim-engine`: trains and samples denoising diffusion models with hand-written compute kernels, without autograd.
//!
//! Floors of the house; a module imports only from floors below it:
//!
//! | floor | modules | what |
//! |---|---|---|
//! | 6 | `cli` (of the binary) | arguments to configuration to a library call to print |
//! | 5 | [`lab`] | what people do around a model: learning-rate finder, sweeps, table of runs, figures, report |
//! | 4 | [`train`], [`check`], [`sample`], [`interop`], [`metrics`] | the training loop, checkpoints, run directory; replay of reference files; pictures from a model; models of other programs; how good a model is |
//! | 3 | [`diffusion`] | schedules, objectives, normaliser, sampler |
//! | 2 | [`model`] | parameters, residual block, U-Net: forward and backward, side by side |
//! | 1 | [`ops`] | one folder per operation: contract, CPU kernels, GPU launches, float64 reference |
//! | 0 | [`device`], [`data`], [`tensor`], [`rng`], [`config`], [`error`], [`kernels`] | memory and launch; pictures in, batches out; the table of `kernels/*.cu` |

pub mod check;
pub mod config;
pub mod data;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod interop;
pub mod kernels;
pub mod lab;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod rng;
pub mod sample;
pub mod tensor;
pub mod train;
