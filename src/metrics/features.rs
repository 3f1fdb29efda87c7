//! From pictures to features: the network that makes them, as a seam, and the cache of those of real pictures.
//!
//! A cache file is a safetensors file whose metadata hold a key (which network with which weights, how many pictures of which size, and
//! the SHA-256 of their pixels) and the checksum of the features. What fails its check is computed again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::inception::{FEATURES, Inception, Variant};
use super::matrix::Features;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::train::progress::Progress;
use crate::train::tensor_file::{self, NamedTensor};

/// Pictures that a network of features takes at once at most: they are large inside it.
const BATCH: usize = 32;

/// A network that turns pictures into features.
pub trait Extractor {
    /// Which network with which weights, for people.
    fn name(&self) -> String;
    /// Everything that decides the features of given pixels. Caches are kept apart by it.
    fn identity(&self) -> String;
    /// Features of a picture.
    fn length(&self) -> usize;
    /// Features [n, length] of `n` pictures: 8-bit RGB, NHWC, square of `size`.
    ///
    /// # Errors
    /// Out of memory; the device failed.
    fn features(&mut self, pictures: &[u8], n: usize, size: usize) -> Result<Vec<f32>>;
}

/// Inception-v3 on a device.
pub struct InceptionOn<'b, B: Backend> {
    backend: &'b B,
    net: Inception<B>,
    name: String,
    identity: String,
}

impl<'b, B: Backend> InceptionOn<'b, B> {
    /// Reads the weights. `variant`: where none is given, the one that the file is for, else torchvision's. `arithmetic`: how the device
    /// computes.
    ///
    /// # Errors
    /// There is no such file; as [`Inception::load`].
    pub fn load(backend: &'b B, path: &Path, variant: Option<Variant>, arithmetic: &str) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::input(path, format!("there is no such file; expected {WEIGHTS}")));
        }
        // A file that cannot be read is refused by `load`, which says more.
        let of_file = || Variant::of_file(path).ok().flatten().unwrap_or(Variant::Torchvision);
        let variant = variant.unwrap_or_else(of_file);
        let net = Inception::load(backend, path, variant)?;
        let variant = match variant {
            Variant::Torchvision => "torchvision",
            Variant::Fid => "fid",
        };
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = format!("{file} ({variant}), SHA-256 {}", net.sha256());
        let identity = format!("inception-v3 {variant} weights {} {arithmetic}", net.sha256());
        Ok(InceptionOn { backend, net, name, identity })
    }
}

/// What `--inception` expects, and where people get it.
pub const WEIGHTS: &str = "a safetensors file of Inception-v3 with torchvision's names, such as model.safetensors of \
     timm/inception_v3.tv_in1k on the Hugging Face hub";

impl<B: Backend> Extractor for InceptionOn<'_, B> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn length(&self) -> usize {
        FEATURES
    }

    fn features(&mut self, pictures: &[u8], n: usize, size: usize) -> Result<Vec<f32>> {
        self.net.features(self.backend, pictures, n, size)
    }
}

/// Square pictures of 8 bits a channel, NHWC.
#[derive(Clone, Copy, Debug)]
pub struct Pixels<'a> {
    /// All bytes.
    pub bytes: &'a [u8],
    /// Height and width.
    pub size: usize,
    /// 1 (grey), 3 (RGB) or 4 (RGBA).
    pub channels: usize,
}

impl Pixels<'_> {
    /// Pictures.
    pub fn count(&self) -> usize {
        self.bytes.len() / (self.size * self.size * self.channels).max(1)
    }
}

/// RGB: grey is repeated, what is transparent is laid on white.
fn rgb(bytes: &[u8], channels: usize) -> Cow<'_, [u8]> {
    match channels {
        1 => bytes.iter().flat_map(|&v| [v; 3]).collect::<Vec<u8>>().into(),
        4 => {
            let on_white =
                |v: u8, alpha: u8| ((u32::from(v) * u32::from(alpha) + 255 * u32::from(255 - alpha) + 127) / 255) as u8;
            let pixel = |p: &[u8]| [0, 1, 2].map(|i| on_white(p[i], p[3]));
            bytes.chunks_exact(4).flat_map(pixel).collect::<Vec<u8>>().into()
        }
        _ => bytes.into(),
    }
}

/// Features of all pictures, `batch` at once.
///
/// # Errors
/// As [`Extractor::features`]; features that are not finite.
pub fn extract(
    extractor: &mut dyn Extractor,
    pictures: Pixels<'_>,
    what: &str,
    batch: usize,
    progress: &Progress,
) -> Result<Features> {
    let count = pictures.count();
    let task = progress.task(&format!("features of {what} pictures"), count as u64, "pictures");
    let bytes = pictures.size * pictures.size * pictures.channels;
    let mut values = Vec::with_capacity(count * extractor.length());
    for part in pictures.bytes.chunks(batch.clamp(1, BATCH) * bytes) {
        let n = part.len() / bytes;
        values.extend(extractor.features(&rgb(part, pictures.channels), n, pictures.size)?);
        task.advance(n as u64);
    }
    task.finish();
    Features::new(extractor.length(), values)
}

/// As [`extract`], from the cache in `folder` where it has them, else kept there.
///
/// # Errors
/// As [`extract`]. A cache that cannot be read or written is told of, and no error.
pub fn extract_cached(
    extractor: &mut dyn Extractor,
    pictures: Pixels<'_>,
    batch: usize,
    folder: Option<&Path>,
    progress: &Progress,
) -> Result<Features> {
    let Some(folder) = folder else { return extract(extractor, pictures, "real", batch, progress) };
    let key = key(extractor, pictures);
    let path = cache_path(folder, &key);
    if path.exists() {
        match read_cache(&path, &key, extractor.length(), pictures.count()) {
            Ok(features) => {
                progress.line(&format!("features of {} real pictures from {}", features.n, path.display()));
                return Ok(features);
            }
            Err(why) => progress
                .line(&format!("{}: the cache of features is damaged ({why}); computing them again", path.display())),
        }
    }
    let features = extract(extractor, pictures, "real", batch, progress)?;
    if let Err(why) = write_cache(&path, &key, &features) {
        progress.line(&format!("{why}; the features will be computed again next time"));
    }
    Ok(features)
}

fn key(extractor: &dyn Extractor, pictures: Pixels<'_>) -> String {
    let Pixels { bytes, size, channels } = pictures;
    let (n, sha256) = (pictures.count(), format!("{:x}", Sha256::digest(bytes)));
    format!("{}\n{n} pictures of {size}x{size}x{channels}, SHA-256 {sha256}", extractor.identity())
}

fn cache_path(folder: &Path, key: &str) -> PathBuf {
    let digest = format!("{:x}", Sha256::digest(key));
    folder.join(format!("features-{}.safetensors", &digest[..16]))
}

fn checksum(values: &[f32]) -> String {
    format!("{:x}", Sha256::digest(bytemuck::cast_slice::<f32, u8>(values)))
}

fn read_cache(path: &Path, key: &str, d: usize, n: usize) -> std::result::Result<Features, String> {
    let contents = tensor_file::read(path).map_err(|why| match why {
        Error::Input { what, .. } => what,
        other => other.to_string(),
    })?;
    if contents.metadata.get("key").map(String::as_str) != Some(key) {
        return Err("it is of other pictures or another network".into());
    }
    let tensor = contents.tensors.into_iter().find(|t| t.name == "features" && t.shape == [n, d]);
    let tensor = tensor.ok_or_else(|| format!("it has no tensor `features` of shape [{n}, {d}]"))?;
    if contents.metadata.get("sha256") != Some(&checksum(&tensor.data)) {
        return Err("the features fail their checksum".into());
    }
    Features::new(d, tensor.data).map_err(|why| why.to_string())
}

fn write_cache(path: &Path, key: &str, features: &Features) -> Result<()> {
    let failed = || Error::io(path, "write the cache of features");
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed())?;
    let temporary = tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(failed())?;
    let metadata = BTreeMap::from([("key".into(), key.to_string()), ("sha256".into(), checksum(&features.values))]);
    let tensor =
        NamedTensor { name: "features".into(), shape: vec![features.n, features.d], data: features.values.clone() };
    tensor_file::write(temporary.path(), &metadata, &[tensor])?;
    temporary.persist(path).map_err(|e| failed()(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_and_transparent_pictures_become_rgb() {
        assert_eq!(*rgb(&[1, 200], 1), [1, 1, 1, 200, 200, 200]);
        assert_eq!(
            *rgb(&[10, 20, 30, 255, 10, 20, 30, 0, 0, 100, 255, 128], 4),
            [10, 20, 30, 255, 255, 255, 127, 177, 255]
        );
        assert_eq!(*rgb(&[1, 2, 3], 3), [1, 2, 3]);
    }
}
