//! Floor 1: the operations. One folder each: the contract and mathematics in `mod.rs`, the CPU kernels in `cpu.rs`, the launches of
//! the CUDA kernels in `gpu.rs`, the naive float64 truth in `reference.rs`.
//!
//! Rules that hold everywhere:
//! - Activations are NHWC. Views are contiguous. Outputs are overwritten unless the operation says that it accumulates:
//!   gradients of parameters accumulate, gradients of activations overwrite.
//! - An operation checks the lengths of its views on entry and returns [`Error::Shape`].
//! - The dims structs are plain old data with a fixed layout: they cross to a device by value.
//! - Results do not depend on the number of threads.
//! - What changes from step to step (the step's number, the learning rate, the normaliser) is read from device memory, so that the
//!   launches of a step can be recorded once and replayed.

pub mod adam;
pub mod attention;
pub mod batch_norm;
pub mod bilinear;
pub mod conv;
pub mod conv2d;
pub mod ddim;
pub mod embed;
pub mod grad_norm;
pub mod group_norm;
pub mod images;
pub mod levels;
pub mod linear;
pub mod loss;
pub mod noise;
pub mod pool;
pub mod resample_conv;
pub mod resize;
pub mod sampler_step;
pub mod schedule;
pub(crate) mod stats;
pub mod upsample;
pub mod window_pool;

use crate::device::Replay;
use crate::device::gpu::{Dtype, GpuSlice};
use crate::error::{Error, Result};

/// A device that can do everything that the model families and the networks of [`crate::metrics`] need.
pub trait Backend:
    Replay
    + adam::Adam
    + attention::Attention
    + batch_norm::BatchNorm
    + bilinear::Bilinear
    + conv::Conv
    + conv2d::Conv2d
    + ddim::DdimStep
    + embed::Embed
    + grad_norm::GradNorm
    + group_norm::GroupNorm
    + images::Images
    + levels::Levels
    + linear::Linear
    + loss::Loss
    + noise::Noise
    + pool::AvgPool2
    + resample_conv::ResampleConv
    + resize::Resize
    + sampler_step::SamplerStep
    + schedule::Schedule
    + upsample::Upsample2
    + window_pool::WindowPool
{
}

impl<B> Backend for B where
    B: Replay
        + adam::Adam
        + attention::Attention
        + batch_norm::BatchNorm
        + bilinear::Bilinear
        + conv::Conv
        + conv2d::Conv2d
        + ddim::DdimStep
        + embed::Embed
        + grad_norm::GradNorm
        + group_norm::GroupNorm
        + images::Images
        + levels::Levels
        + linear::Linear
        + loss::Loss
        + noise::Noise
        + pool::AvgPool2
        + resample_conv::ResampleConv
        + resize::Resize
        + sampler_step::SamplerStep
        + schedule::Schedule
        + upsample::Upsample2
        + window_pool::WindowPool
{
}

/// Refuses a view of the wrong length, by name.
pub(crate) fn expect_len(op: &'static str, name: &str, got: usize, want: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Shape { op, what: format!("`{name}` has {got} elements, its dims ask for {want}") })
}

/// Refuses a view of device memory that is not float32 or has the wrong length, by name.
pub(crate) fn expect_f32(op: &'static str, name: &str, view: GpuSlice<'_>, want: usize) -> Result<()> {
    expect_len(op, name, view.len(), want)?;
    if view.dtype() == Dtype::F32 {
        return Ok(());
    }
    Err(Error::Shape { op, what: format!("`{name}` must be float32") })
}
