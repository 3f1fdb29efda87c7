//! Inception-v3 (Szegedy et al. 2015), forward only: the 2048 pooled features of a picture.
//!
//! Tensors have torchvision's names (`layers.rs` has its structure); batch norms (epsilon 0.001) are folded into the convolutions when a file is
//! read, and branches write their parts of a concatenation in place. The heads that classify are not read.
//!
//! Pictures come to the network as 2 v - 1, v in [0, 1], in both variants: torchvision's `transform_input` undoes the means and deviations that
//! its pictures have been normalised with, and the port for FID scales so itself.

mod layers;
mod load;

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::bilinear::BilinearDims;
use crate::ops::conv2d::Conv2dDims;
use crate::ops::window_pool::{Pooling, WindowPoolDims};
use crate::train::tensor_file::{self, NamedTensor};
use layers::{Block, Branch, ConvLayer, Pool};

/// Which Inception-v3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// torchvision's `inception_v3` in evaluation, with `transform_input`.
    Torchvision,
    /// The port of the TensorFlow network that FID is computed with: means of 3x3 windows leave out the padding, and the last block has a
    /// maximum instead of one.
    Fid,
}

impl Variant {
    /// Which one a file of weights is for, by the classes of its last layer (1000: torchvision's, 1008: the port's); `None` where the layer is
    /// absent or has others. Reads only the header.
    ///
    /// # Errors
    /// The file is no safetensors file.
    pub fn of_file(path: &Path) -> Result<Option<Self>> {
        load::classes(path).map(|classes| classes.and_then(Self::of_classes))
    }

    fn of_classes(classes: usize) -> Option<Self> {
        match classes {
            1000 => Some(Variant::Torchvision),
            1008 => Some(Variant::Fid),
            _ => None,
        }
    }
}

/// Height and width of the network's pictures.
pub const SIZE: usize = 299;
/// Features of a picture.
pub const FEATURES: usize = 2048;
/// Pictures that go through the network together: they bound its memory, at some 8 MB each.
const BATCH: usize = 16;
/// Multiplications and additions that the convolutions of a picture ask for.
pub const FLOPS: f64 = 11.4e9;

/// A convolution with its batch norm folded in, on a device.
struct Weights<B: Backend> {
    filter: B::Buffer,
    bias: B::Buffer,
}

/// Activations [n, h, w, c].
struct Activation<B: Backend> {
    buffer: B::Buffer,
    h: u32,
    w: u32,
    c: u32,
}

/// The network with its weights on a device.
pub struct Inception<B: Backend> {
    blocks: Vec<Block>,
    weights: BTreeMap<String, Weights<B>>,
    mean_std: B::Buffer,
    sha256: String,
}

impl<B: Backend> Inception<B> {
    /// Reads a safetensors file with torchvision's names; numbers may be F32, F16 or BF16.
    ///
    /// # Errors
    /// The file is no whole safetensors file, or of another network (the first missing tensor is named), or of the other variant (see
    /// [`Variant::of_file`]), or holds numbers that make no batch norm; out of memory.
    pub fn load(backend: &B, path: &Path, variant: Variant) -> Result<Self> {
        let contents = tensor_file::read_any_float(path)?;
        let mut net = Self::from_tensors(backend, path, contents.tensors, variant)?;
        net.sha256 = contents.digest.sha256;
        Ok(net)
    }

    /// As [`Inception::load`], of tensors that have been read from `path` already.
    ///
    /// # Errors
    /// As [`Inception::load`].
    pub fn from_tensors(backend: &B, path: &Path, tensors: Vec<NamedTensor>, variant: Variant) -> Result<Self> {
        let tensors: BTreeMap<String, NamedTensor> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        load::expect_variant(path, &tensors, variant)?;
        let blocks = layers::blocks(variant);
        let mut weights = BTreeMap::new();
        for layer in blocks.iter().flat_map(Block::convolutions) {
            let (filter, bias) = load::folded(path, &tensors, layer)?;
            let filter = backend.conv2d_filter(&dims_of(layer, 1, [SIZE as u32; 2], layer.k, 0), &filter)?;
            weights.insert(layer.name.clone(), Weights { filter, bias: uploaded(backend, &bias)? });
        }
        Ok(Inception { blocks, weights, mean_std: uploaded(backend, &[0.5; 6])?, sha256: String::new() })
    }

    /// SHA-256 of the file that was read, in hexadecimal digits; empty for weights that came from none.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Features [n, 2048] of `n` pictures, 8-bit RGB, NHWC, square of `size`: resized to 299 (bilinear, without smoothing before), scaled, and
    /// run through the network, some at a time.
    ///
    /// # Errors
    /// `pictures` has not `n` pictures; out of memory; the device failed.
    pub fn features(&mut self, backend: &B, pictures: &[u8], n: usize, size: usize) -> Result<Vec<f32>> {
        let picture = size * size * 3;
        if picture == 0 || pictures.len() != n * picture {
            let what = format!("{} bytes given, {n} pictures of {size}x{size} have {}", pictures.len(), n * picture);
            return Err(Error::Shape { op: "inception", what });
        }
        let mut features = Vec::with_capacity(n * FEATURES);
        for some in pictures.chunks(BATCH * picture) {
            let n = some.len() / picture;
            let last = self.forward(backend, some, n as u32, size as u32, &mut |_, _| Ok(()))?;
            let at = features.len();
            features.resize(at + n * FEATURES, 0.0);
            backend.download(B::all(&last.buffer), &mut features[at..])?;
        }
        Ok(features)
    }

    /// Mean and root of the mean square of what each block gives, by the block's name in order, for pictures as in [`Inception::features`]. For
    /// finding where two implementations part.
    ///
    /// # Errors
    /// As [`Inception::features`].
    pub fn trace(&mut self, backend: &B, pictures: &[u8], n: usize, size: usize) -> Result<Vec<(String, [f64; 2])>> {
        let mut found = Vec::new();
        self.forward(backend, pictures, n as u32, size as u32, &mut |block, x| {
            let mut numbers = vec![0.0; B::buffer_len(&x.buffer)];
            backend.download(B::all(&x.buffer), &mut numbers)?;
            let sum = |of: fn(f64) -> f64| numbers.iter().map(|&v| of(f64::from(v))).sum::<f64>();
            let count = numbers.len() as f64;
            found.push((block.to_string(), [sum(|v| v) / count, (sum(|v| v * v) / count).sqrt()]));
            Ok(())
        })?;
        Ok(found)
    }

    /// Pooled features [n, 1, 1, 2048]; `seen` is shown every block's output.
    fn forward(
        &self,
        backend: &B,
        pictures: &[u8],
        n: u32,
        size: u32,
        seen: &mut dyn FnMut(&str, &Activation<B>) -> Result<()>,
    ) -> Result<Activation<B>> {
        let mut bytes = backend.alloc_bytes(pictures.len())?;
        backend.upload_bytes(pictures, &mut bytes)?;
        let mut small = backend.alloc(pictures.len())?;
        backend.normalize(&bytes, B::all(&self.mean_std), B::all_mut(&mut small))?;
        let side = SIZE as u32;
        let d = BilinearDims { n, h: size, w: size, c: 3, out_h: side, out_w: side };
        let mut x = activation(backend, n, [side, side], 3)?;
        backend.bilinear(&d, B::all(&small), B::all_mut(&mut x.buffer))?;
        drop(small);
        for block in &self.blocks {
            x = self.block(backend, n, block, &x)?;
            seen(&block.name, &x)?;
        }
        Ok(x)
    }

    fn block(&self, backend: &B, n: u32, block: &Block, x: &Activation<B>) -> Result<Activation<B>> {
        let channels = block.branches.iter().map(|branch| branch.channels(x.c)).sum();
        // All branches end with the same extents; those of the last one are the cheapest to find.
        let mut y = activation(backend, n, block.extents([x.h, x.w]), channels)?;
        let mut first = 0;
        for branch in &block.branches {
            self.branch(backend, n, branch, x, &mut y, first)?;
            first += branch.channels(x.c);
        }
        Ok(y)
    }

    /// Writes a branch's channels of `y`, from `first` on.
    fn branch(
        &self,
        backend: &B,
        n: u32,
        branch: &Branch,
        x: &Activation<B>,
        y: &mut Activation<B>,
        mut first: u32,
    ) -> Result<()> {
        let mut own: Option<Activation<B>> = None;
        if let Some(pool) = &branch.pool {
            if branch.ends.is_empty() {
                return self.pool(backend, n, pool, x, y, first);
            }
            let mut pooled = activation(backend, n, pool.extents([x.h, x.w]), x.c)?;
            self.pool(backend, n, pool, x, &mut pooled, 0)?;
            own = Some(pooled);
        }
        for layer in &branch.chain {
            let x = own.as_ref().unwrap_or(x);
            let mut next = activation(backend, n, layer.extents([x.h, x.w]), layer.k)?;
            self.conv(backend, n, layer, x, &mut next, 0)?;
            own = Some(next);
        }
        for layer in &branch.ends {
            self.conv(backend, n, layer, own.as_ref().unwrap_or(x), y, first)?;
            first += layer.k;
        }
        Ok(())
    }

    fn conv(
        &self,
        backend: &B,
        n: u32,
        layer: &ConvLayer,
        x: &Activation<B>,
        y: &mut Activation<B>,
        first: u32,
    ) -> Result<()> {
        let Some(weights) = self.weights.get(&layer.name) else {
            return Err(Error::Failed(format!("inception: {} has no weights", layer.name)));
        };
        let d = dims_of(layer, n, [x.h, x.w], y.c, first);
        let (filter, bias) = (B::all(&weights.filter), B::all(&weights.bias));
        backend.conv2d(&d, B::all(&x.buffer), filter, bias, B::all_mut(&mut y.buffer))
    }

    fn pool(
        &self,
        backend: &B,
        n: u32,
        pool: &Pool,
        x: &Activation<B>,
        y: &mut Activation<B>,
        first: u32,
    ) -> Result<()> {
        let &Pool { pooling, kernel, stride, pad } = pool;
        let (h, w, c) = (x.h, x.w, x.c);
        let d = WindowPoolDims { n, h, w, c, kernel, stride, pad, y_channels: y.c, y_first: first };
        backend.window_pool(&d, pooling, B::all(&x.buffer), B::all_mut(&mut y.buffer))
    }
}

fn dims_of(layer: &ConvLayer, n: u32, [h, w]: [u32; 2], y_channels: u32, y_first: u32) -> Conv2dDims {
    let &ConvLayer { c, k, kernel: [kernel_h, kernel_w], stride, pad: [pad_h, pad_w], .. } = layer;
    Conv2dDims { n, h, w, c, k, kernel_h, kernel_w, stride, pad_h, pad_w, y_channels, y_first, relu: 1 }
}

fn activation<B: Backend>(backend: &B, n: u32, [h, w]: [u32; 2], c: u32) -> Result<Activation<B>> {
    let len = [n, h, w, c].iter().map(|&e| e as usize).product();
    Ok(Activation { buffer: backend.alloc(len)?, h, w, c })
}

fn uploaded<B: Backend>(backend: &B, numbers: &[f32]) -> Result<B::Buffer> {
    let mut buffer = backend.alloc(numbers.len())?;
    backend.upload(numbers, B::all_mut(&mut buffer))?;
    Ok(buffer)
}
