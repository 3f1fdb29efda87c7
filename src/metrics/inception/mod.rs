//! Inception-v3 (Szegedy et al. 2015), forward only: the 2048 pooled features of a picture.

use std::path::Path;

use crate::error::{Error, Result};
use crate::ops::Backend;

/// Which Inception-v3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// torchvision's `inception_v3` in evaluation, with `transform_input`.
    Torchvision,
    /// The port of the TensorFlow network that FID is computed with: poolings differ.
    Fid,
}

/// Height and width of the network's pictures.
pub const SIZE: usize = 299;
/// Features of a picture.
pub const FEATURES: usize = 2048;

/// The network with its weights on a device.
pub struct Inception<B: Backend> {
    _device: std::marker::PhantomData<B>,
}

impl<B: Backend> Inception<B> {
    /// Reads a safetensors file with torchvision's names.
    ///
    /// # Errors
    /// The file is no safetensors file, or of another network: the first missing tensor is named.
    pub fn load(backend: &B, path: &Path, variant: Variant) -> Result<Self> {
        let (_, _, _) = (backend, path, variant);
        Err(Error::Failed("not built yet".into()))
    }

    /// Features [n, 2048] of `n` pictures, 8-bit RGB, NHWC, square of `size`: resized (bilinear, as the variant does it), scaled, and run
    /// through the network.
    ///
    /// # Errors
    /// Out of memory; the device failed.
    pub fn features(&mut self, backend: &B, pictures: &[u8], n: usize, size: usize) -> Result<Vec<f32>> {
        let (_, _, _, _) = (backend, pictures, n, size);
        Err(Error::Failed("not built yet".into()))
    }
}
