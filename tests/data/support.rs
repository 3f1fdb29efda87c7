//! Folders that vanish, pictures made by hand, and a progress that remembers.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ddim_engine::data::{self, DataSpec, Dataset, Progress, Silent};
use ddim_engine::error::{Error, Result};

/// A folder for one test: `pictures/` to load from; the cache goes beside it.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("pictures")).expect("pictures/");
        Place { dir }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn pictures(&self) -> PathBuf {
        self.dir.path().join("pictures")
    }

    /// Writes `pictures/name`, with the folders that it needs.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.pictures().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    /// `n` tiny pictures, `good-000.png` and on, each of one grey: its index modulo 251.
    pub fn put_many(&self, n: usize) {
        for i in 0..n {
            self.put(&format!("good-{i:03}.png"), grey_png(8, 8, &[(i % 251) as u8; 64]));
        }
    }

    pub fn spec(&self, size: usize, channels: usize) -> DataSpec {
        self.spec_of(&self.pictures(), size, channels)
    }

    pub fn spec_of(&self, source: &Path, size: usize, channels: usize) -> DataSpec {
        DataSpec {
            channels,
            data_dir: Some(self.root().to_path_buf()),
            ..DataSpec::new(source.to_string_lossy(), size)
        }
    }

    /// The one cache file, if any.
    pub fn cache_files(&self) -> Vec<PathBuf> {
        let Ok(dir) = std::fs::read_dir(self.root().join("cache")) else { return Vec::new() };
        dir.map(|e| e.expect("an entry").path()).collect()
    }
}

/// Decodes one picture: loads a folder with two copies of it, without a cache.
pub fn decode(name: &str, bytes: &[u8], size: usize, channels: usize) -> Vec<u8> {
    let place = Place::new();
    place.put(&format!("a/{name}"), bytes);
    place.put(&format!("b/{name}"), bytes);
    let ds = data::load(&DataSpec { cache: false, ..place.spec(size, channels) }, &Silent).expect("a dataset");
    assert_eq!((ds.len(), ds.image(0)), (2, ds.image(1)));
    ds.image(0).to_vec()
}

/// What is said about a picture that cannot be read.
pub fn refusal(name: &str, bytes: &[u8]) -> String {
    let place = Place::new();
    place.put(name, bytes);
    input_error(data::load(&place.spec(8, 3), &Silent))
}

/// The text of an error that must be about the input: exit code 2.
pub fn input_error(result: Result<Dataset>) -> String {
    match result {
        Err(error @ Error::Input { .. }) => {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        }
        Err(other) => panic!("not an input error: {other:?}"),
        Ok(ds) => panic!("loaded: {}", ds.description()),
    }
}

/// A PNG of any kind.
pub fn png(
    (width, height): (u32, u32),
    colour: png::ColorType,
    depth: png::BitDepth,
    data: &[u8],
    palette: Option<(&[u8], Option<&[u8]>)>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if let Some((colours, alphas)) = palette {
        encoder.set_palette(colours.to_vec());
        if let Some(alphas) = alphas {
            encoder.set_trns(alphas.to_vec());
        }
    }
    let mut writer = encoder.write_header().expect("header");
    writer.write_image_data(data).expect("pixels");
    writer.finish().expect("end");
    out
}

pub fn grey_png(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    png((width, height), png::ColorType::Grayscale, png::BitDepth::Eight, data, None)
}

pub fn rgb_png(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    png((width, height), png::ColorType::Rgb, png::BitDepth::Eight, data, None)
}

/// A JPEG of an RGB picture, quality 100.
pub fn jpeg(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 100)
        .encode(data, width, height, image::ExtendedColorType::Rgb8)
        .expect("a JPEG");
    out
}

/// An archive of (name, bytes).
pub fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).expect("a member");
    }
    builder.into_inner().expect("an archive")
}

/// Remembers what it is told.
#[derive(Default)]
pub struct Recorder {
    pub notes: Mutex<Vec<String>>,
    pub started: Mutex<Vec<(String, Option<u64>)>>,
    pub advanced: AtomicU64,
    pub finished: AtomicU64,
}

impl Recorder {
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().expect("notes").clone()
    }
}

impl Progress for Recorder {
    fn start(&self, what: &str, total: Option<u64>) {
        self.started.lock().expect("started").push((what.to_string(), total));
    }
    fn advance(&self, n: u64) {
        self.advanced.fetch_add(n, Ordering::Relaxed);
    }
    fn note(&self, line: &str) {
        assert!(!line.contains('\n'), "one line: {line}");
        self.notes.lock().expect("notes").push(line.to_string());
    }
    fn finish(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }
}

/// Largest difference between bytes of two pictures.
pub fn apart(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}
