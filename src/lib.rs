//! `ddim-engine`: trains and samples denoising diffusion models with hand-written compute kernels, without autograd.
//!
//! Floors of the house; a module imports only from floors below it:
//!
//! | floor | modules | what |
//! |---|---|---|
//! | 6 | `cli` (of the binary) | arguments to configuration to a library call to print |
//! | 5 | [`lab`], [`bench`](mod@bench) | what people do around a model: learning-rate finder, sweeps, table of runs, figures, report; how fast it is, and by what measure |
//! | 4 | [`train`], [`check`], [`sample`], [`interop`], [`metrics`] | the training loop, checkpoints, run directory; replay of reference files; pictures from a model; models of other programs; how good a model is |
//! | 3 | [`diffusion`] | schedules, objectives, normaliser, sampler |
//! | 2 | [`model`] | parameters, residual block, U-Net: forward and backward, side by side |
//! | 1 | [`ops`] | one folder per operation: contract, CPU kernels, GPU launches, float64 reference |
//! | 0 | [`device`], [`data`], [`tensor`], [`rng`], [`config`], [`error`], [`kernels`] | memory and launch; pictures in, batches out; the table of `kernels/*.cu` |
//!
//! # A course in eight chapters
//!
//! The documentation of the modules is written to be read in this order. Every chapter says what it is about, where it stands, and what to
//! run beside it.
//!
//! ## 1. Signal and noise
//!
//! A picture x is mixed with standard normal noise e: `noisy = signal x + noise e`, with signal² + noise² = 1. How the two rates go from a
//! picture to noise is the schedule: [`diffusion::levels`] for its points, [`ops::schedule`] for the times of a training batch. The noise
//! itself is a function of counters ([`rng`], [`ops::noise`]), so no state of a generator has to be saved.
//!
//! ```
//! use ddim_engine::config::{Config, ScheduleKind};
//! use ddim_engine::diffusion::levels::Levels;
//!
//! let config = Config::seed_preset();
//! let levels = Levels::seed_times(ScheduleKind::Cosine, config.min_signal_rate, config.max_signal_rate, 5);
//! for level in levels.all() {
//!     println!("t {:.2}   signal {:.3}   noise {:.3}", level.timestep, level.signal, level.noise);
//!     assert!((level.signal.powi(2) + level.noise.powi(2) - 1.0).abs() < 1e-6);
//! }
//! // t 0 is not quite a picture, and t 1 not quite noise.
//! assert!((levels.at(0).signal - 0.95).abs() < 1e-6 && (levels.at(4).signal - 0.02).abs() < 1e-6);
//! ```
//!
//! Beside it: `ddim-engine plot schedules`, `ddim-engine plot embedding`.
//!
//! ## 2. What the network is asked, and the loss
//!
//! The network sees the noisy picture and how noisy it is, and says what the noise was, or the picture, or a mixture of both (velocity);
//! each follows from the others. [`ops::loss`] has the objectives with their weights and derivatives; [`diffusion`] puts schedule and
//! objective together; [`diffusion::normalizer`] brings pixels to mean 0 and deviation 1.
//!
//! ## 3. One operation, from the mathematics to three devices
//!
//! An operation is a folder of [`ops`]: contract and mathematics in `mod.rs`, CPU kernels, launches of CUDA kernels, and a float64
//! reference that the tests hold both against. Begin with a small one, [`ops::upsample`]; then [`ops::batch_norm`] for a backward pass
//! that is derived by hand, [`ops::conv`] for the fused convolution that everything else leans on, [`ops::attention`] for one that
//! recomputes what it does not keep. Forward and backward stand next to each other; there is no tape. Twice as large and back:
//!
//! ```
//! use ddim_engine::device::Memory;
//! use ddim_engine::device::cpu::Cpu;
//! use ddim_engine::ops::upsample::{ResampleDims, Upsample2};
//! use ddim_engine::tensor::{Shape, Tensor};
//!
//! # fn main() -> ddim_engine::error::Result<()> {
//! let cpu = Cpu::new(1)?;
//! let (small, large) = (Shape::new(1, 2, 2, 1), Shape::new(1, 4, 4, 1));
//! let (mut x, mut y, mut dx) = (Tensor::new(&cpu, small)?, Tensor::new(&cpu, large)?, Tensor::new(&cpu, small)?);
//! cpu.upload(&[0.0, 1.0, 2.0, 3.0], x.view_mut())?;
//! cpu.upsample_forward(&ResampleDims::from(large), x.view(), y.view_mut(), None)?;
//! let mut rows = [0.0; 16];
//! cpu.download(y.view(), &mut rows)?;
//! assert_eq!(rows[..4], [0.0, 0.25, 0.75, 1.0]);
//! // Backward is the transpose: a gradient of 1 everywhere gives each input the four outputs that it made.
//! cpu.fill(y.view_mut(), 1.0)?;
//! cpu.upsample_backward(&ResampleDims::from(large), y.view(), dx.view_mut())?;
//! let mut gradient = [0.0; 4];
//! cpu.download(dx.view(), &mut gradient)?;
//! assert_eq!(gradient, [4.0; 4]);
//! # Ok(())
//! # }
//! ```
//!
//! Beside it: `kernels/README.md` of the repository, for the CUDA kernels and the simulator that runs them.
//!
//! ## 4. The networks
//!
//! [`model::seed_unet`] is the small U-Net of the blog post, made of [`model::res_block`]; [`model::unet2d`] is the modern one, with group
//! norm, a time embedding and attention. `forward` returns a context that `backward` takes by value. All parameters lie in one flat
//! buffer and are walked by name ([`model::params`]).
//!
//! ## 5. A step of training
//!
//! [`train::state`] holds what a step changes; [`train::stepper`] carries it out, as a recording that a GPU repeats. The optimiser is one
//! pass over the flat buffer ([`ops::adam`]).
//!
//! ```
//! use ddim_engine::config::Config;
//! use ddim_engine::data::render_procedural;
//! use ddim_engine::device::ReadBack;
//! use ddim_engine::device::cpu::Cpu;
//! use ddim_engine::diffusion::normalizer::Normalizer;
//! use ddim_engine::tensor::Shape;
//! use ddim_engine::train::{state::TrainState, stepper::Stepper};
//!
//! # fn main() -> ddim_engine::error::Result<()> {
//! let cpu = Cpu::new(1)?;
//! let config = Config { image_size: 8, widths: vec![8, 16], embedding_dim: 8, batch_size: 16, ..Config::quick_preset() };
//! let shape = Shape::new(config.batch_size, 8, 8, 3);
//! let mut pixels = vec![0; shape.len()];
//! render_procedural(0, 0, 8, 3, &mut pixels);
//! let mut normalizer = Normalizer::of(&config);
//! normalizer.gather(&pixels);
//! let mut state = TrainState::new(&cpu, &config)?;
//! let mut stepper = Stepper::new(&cpu, 3, config.seed)?;
//! let mut losses = Vec::new();
//! for _ in 0..60 {
//!     losses.push(stepper.step(&cpu, &mut state, &normalizer, shape, &pixels)?.wait()?[0]);
//! }
//! let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
//! assert!(mean(&losses[50..]) < 0.8 * mean(&losses[..10]), "{losses:?}");
//! # Ok(())
//! # }
//! ```
//!
//! ## 6. A run
//!
//! [`train::trainer`] is the loop: order and flips of the pictures ([`train::feed`], [`data`]), validation, samples, metrics, and
//! checkpoints that a run goes on from to the same bits ([`train::checkpoint`]). Beside it: `ddim-engine train`.
//!
//! ## 7. From noise to pictures
//!
//! A sampler is a list of network calls with the factors of the update behind each: [`diffusion::samplers`] works them out in float64,
//! [`ops::sampler_step`] carries one out, [`diffusion::sampler`] runs them all. Beside it: `ddim-engine sample`,
//! `ddim-engine plot steps`, `ddim-engine plot reverse`.
//!
//! ## 8. Is it any good?
//!
//! [`metrics`] measures a model: losses by noise level, and the distance of its pictures from real ones as a network that classifies
//! pictures sees it ([`metrics::inception`]). [`lab`] is what surrounds a model: the learning-rate finder, grids of runs, their table,
//! figures, and a page that shows a run. And the devices under all of it: [`device`] (memory, launches, recordings), the CPU's kernels
//! ([`device::cpu`]), and one type for NVIDIA GPUs and the simulator ([`device::gpu`]).

pub mod bench;
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
