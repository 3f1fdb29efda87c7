//! What sampling begins with: noise (of a seed, between two seeds or pictures, or from a file), pictures that are known, and masks.

use std::path::{Path, PathBuf};

use super::{Model, Request};
use crate::config::Config;
use crate::data;
use crate::diffusion::sampler::Sampler;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::noise::{NoiseKey, step_word};
use crate::rng::{Purpose, Stream};
use crate::tensor::{Shape, nchw_to_nhwc, nhwc_to_nchw};
use crate::train::tensor_file::{self, NamedTensor};

/// The two ends of an interpolation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interpolate {
    /// The first samples of two seeds.
    Seeds(u64, u64),
    /// Two pictures.
    Pictures(PathBuf, PathBuf),
}

impl Interpolate {
    /// Reads `3:7`, or `a.png:b.png`.
    ///
    /// # Errors
    /// Not two ends.
    pub fn parse(text: &str) -> Result<Self> {
        let ends: Vec<&str> = text.split(':').collect();
        match ends[..] {
            [a, b] if !a.is_empty() && !b.is_empty() => match (a.parse(), b.parse()) {
                (Ok(a), Ok(b)) => Ok(Interpolate::Seeds(a, b)),
                _ => Ok(Interpolate::Pictures(a.into(), b.into())),
            },
            _ => {
                let what = "expected two seeds or two picture files with a colon between, such as 3:7 or a.png:b.png";
                Err(Error::Usage(format!("--interpolate {text}: {what}")))
            }
        }
    }
}

/// The noise of all pictures of a command.
pub(super) enum Noise {
    /// Picture i has that of the stream (seed, i).
    Seed,
    /// Given, NHWC.
    Given(Vec<f32>),
}

/// What is known of every picture, NHWC of one picture, normalised.
pub(super) struct KnownPicture {
    pub picture: Vec<f32>,
    /// 1 where it is drawn anew.
    pub mask: Option<Vec<f32>>,
    /// Sampling begins with the picture and some noise.
    pub begin: bool,
}

/// What sampling begins with, for all batches of a command.
pub(super) struct Start {
    pub noise: Noise,
    pub known: Option<KnownPicture>,
    /// Picture i is of class `classes[i % len]`; empty: in turn.
    pub classes: Vec<usize>,
    /// The class of no class, and the weight of the difference.
    pub guidance: Option<(usize, f64)>,
}

impl Start {
    /// Noise of the seed, nothing known.
    pub fn plain() -> Self {
        Start { noise: Noise::Seed, known: None, classes: Vec::new(), guidance: None }
    }

    /// Brings what a batch begins with to its sampler.
    pub fn prepare<B: Backend>(&self, backend: &B, sampler: &mut Sampler<'_, B>, request: &Request) -> Result<()> {
        let s = sampler.shape();
        let per = s.h * s.w * s.c;
        sampler.set_first_image(request.first)?;
        if let Some(count) = sampler.classes() {
            let image = |i: usize| request.first + i;
            let labels: Vec<usize> = match self.classes.len() {
                0 => (0..s.n).map(|i| image(i) % count).collect(),
                len => (0..s.n).map(|i| self.classes[image(i) % len]).collect(),
            };
            sampler.set_classes(&labels, self.guidance)?;
        }
        if let Some(known) = &self.known {
            let mask = known.mask.as_ref().map(|mask| mask.repeat(s.n));
            sampler.set_known(&known.picture.repeat(s.n), known.begin, mask.as_deref())?;
        }
        match &self.noise {
            Noise::Given(all) => backend.upload(&all[request.first * per..][..s.n * per], sampler.noise()),
            Noise::Seed => {
                let key = NoiseKey { seed: request.seed, purpose: Purpose::Sample, first_image: request.first as u64 };
                let mut step = backend.alloc(1)?;
                backend.upload(&[step_word(0)], B::all_mut(&mut step))?;
                backend.fill_normal(key, B::all(&step), per, sampler.noise())
            }
        }
    }
}

/// The noise of the first sample of a seed: the bits that devices draw.
pub(crate) fn noise_of_seed(seed: u64, len: usize) -> Vec<f32> {
    let mut noise = vec![0.0; len];
    Stream::new(seed, Purpose::Sample, 0, 0).fill_normal(&mut noise);
    noise
}

/// `count` points on the arc from `a` to `b`, ends included: slerp (Shoemake 1985). Between noises of equal length lengths stay equal, as
/// those of noise must.
pub(super) fn slerp(a: &[f32], b: &[f32], count: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let weights = |t: f64| match angle.sin() {
        sine if sine.abs() < 1e-6 => (1.0 - t, t), // one direction: the straight line
        sine => (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine),
    };
    let point = |i: usize| {
        let (wa, wb) = match i {
            0 => (1.0, 0.0),
            _ if i + 1 == count => (0.0, 1.0),
            _ => weights(i as f64 / (count - 1) as f64),
        };
        a.iter().zip(b).map(move |(&a, &b)| (wa * f64::from(a) + wb * f64::from(b)) as f32)
    };
    (0..count).flat_map(point).collect()
}

/// Shape of `count` pictures.
pub(super) fn shape(config: &Config, count: usize) -> Shape {
    Shape::new(count, config.image_size, config.image_size, config.channels)
}

/// A picture file as bytes, cut and resized as training pictures are.
pub(super) fn picture_bytes(path: &Path, config: &Config) -> Result<Vec<u8>> {
    data::read_picture(path, config.image_size, config.channels)
}

/// Pixels to what the network sees.
pub(super) fn normalized(bytes: &[u8], model: &Model<'_>) -> Vec<f32> {
    let c = model.mean.len();
    let value = |(i, &byte): (usize, &u8)| {
        ((f64::from(byte) / 255.0 - f64::from(model.mean[i % c])) / f64::from(model.std[i % c])) as f32
    };
    bytes.iter().enumerate().map(value).collect()
}

/// A mask file: 1 where it is nearer to white, for every channel of the model.
pub(super) fn mask(path: &Path, config: &Config) -> Result<Vec<f32>> {
    let grey = data::read_picture(path, config.image_size, 1)?;
    let white = |&g: &u8| std::iter::repeat_n(if g >= 128 { 1.0 } else { 0.0 }, config.channels);
    let mask: Vec<f32> = grey.iter().flat_map(white).collect();
    if !mask.contains(&1.0) {
        return Err(Error::input(
            path,
            "the mask has no white, so nothing is to be drawn; white is what is drawn anew",
        ));
    }
    Ok(mask)
}

/// Reads noise from a tensor file: `noise` [N, C, H, W].
pub(super) fn read_noise(path: &Path, config: &Config) -> Result<Vec<f32>> {
    if !path.is_file() {
        return Err(Error::input(
            path,
            "there is no such file; expected one with a tensor `noise` of shape [N, C, H, W]",
        ));
    }
    let contents = tensor_file::read(path)?;
    let Some(tensor) = contents.tensors.into_iter().find(|t| t.name == "noise") else {
        return Err(Error::input(path, "has no tensor `noise`; expected one of shape [N, C, H, W]"));
    };
    let (c, size) = (config.channels, config.image_size);
    match tensor.shape[..] {
        [n, channels, h, w] if n > 0 && (channels, h, w) == (c, size, size) => {
            Ok(nchw_to_nhwc(&tensor.data, shape(config, n)))
        }
        _ => {
            let found = &tensor.shape;
            Err(Error::input(path, format!("`noise` has shape {found:?}; the model needs [N, {c}, {size}, {size}]")))
        }
    }
}

/// Writes a tensor [N, C, H, W] of the name `name` from NHWC values.
pub(super) fn write_tensor(path: &Path, name: &str, values: &[f32], config: &Config) -> Result<()> {
    let s = shape(config, values.len() / shape(config, 1).len());
    let data = nhwc_to_nchw(values, s);
    let tensor = NamedTensor { name: name.into(), shape: vec![s.n, s.c, s.h, s.w], data };
    tensor_file::write(path, &Default::default(), &[tensor]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arcs_keep_lengths_and_ends() {
        let (a, b) = (noise_of_seed(1, 300), noise_of_seed(2, 300));
        let arc = slerp(&a, &b, 5);
        assert_eq!((&arc[..300], &arc[1200..]), (&a[..], &b[..]));
        let norm = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>().sqrt();
        let (least, most) = (norm(&a).min(norm(&b)), norm(&a).max(norm(&b)));
        for point in arc.chunks(300) {
            assert!(norm(point) > 0.97 * least && norm(point) < 1.03 * most, "{}", norm(point));
        }
        let same = slerp(&a, &a, 3);
        assert!(same[300..600].iter().zip(&a).all(|(s, a)| (s - a).abs() < 1e-6));
        assert_eq!(slerp(&a, &b, 1), a);
    }

    #[test]
    fn ends_of_an_interpolation() {
        assert_eq!(Interpolate::parse("3:7").unwrap(), Interpolate::Seeds(3, 7));
        assert_eq!(
            Interpolate::parse("a.png:b.png").unwrap(),
            Interpolate::Pictures(PathBuf::from("a.png"), PathBuf::from("b.png"))
        );
        for bad in ["", "3", "3:", ":b", "a:b:c"] {
            assert!(Interpolate::parse(bad).is_err(), "{bad}");
        }
    }
}
