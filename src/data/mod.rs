//! Pictures in, batches out. Knows no device.
//!
//! [`load`] turns a source (`procedural`, `flowers`, `pets`, `debug`, a folder, a `.tar` or a `.parquet`) into a [`Dataset`]: all pictures
//! decoded, cropped to the centre square, resized, as 8-bit NHWC pixels. Decoding happens once; later runs map the cache file
//! ([`cache`](self) in the user's cache folder, or in `DATA_DIR/cache` where a data directory was named).
//!
//! | file | role |
//! |---|---|
//! | `source.rs` | which pictures: names of sources, places that are looked at |
//! | `folder.rs`, `archive.rs` | sorted lists of the pictures in a folder or a tar archive |
//! | `parquet.rs` | rows of Hugging Face style parquet files |
//! | `official.rs` | classes and splits that came with the pictures |
//! | `decode.rs`, `jpeg.rs` | one picture: bytes to pixels |
//! | `gather.rs` | all pictures in parallel; which are skipped, when that is too many |
//! | `cache.rs` | the checksummed file of decoded pixels |
//! | `labels.rs` | classes of pictures, from a CSV file |
//! | [`fetch`] | known sets from the web to the data directory |
//! | `procedural/` | flowers made by the program |
//! | `batch.rs` | split, order of an epoch, batches with flips |
//!
//! What is done to a picture:
//! - EXIF orientation is applied. Colour profiles are ignored.
//! - CMYK and YCCK JPEGs become RGB by the plain formula, Adobe's inverted ones included.
//! - 16-bit samples are rounded to 8 bits; palettes are looked up; of an animation the first frame counts.
//! - Transparent pictures are laid on white where `channels` is 1 or 3; with `channels` 4 their alpha is kept.
//! - The centre square is cut out (an odd pixel more stays off the right or bottom) and resized with an antialiased Lanczos filter;
//!   a picture that has the size already keeps its exact bytes.
//! - With `channels` 1, colours become luma (Rec. 709 weights); with 3, grey is repeated.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};

mod archive;
mod batch;
mod cache;
mod decode;
pub mod fetch;
mod folder;
mod gather;
mod jpeg;
mod labels;
mod official;
mod parquet;
mod procedural;
mod source;

pub use batch::{FlipKey, Split, epoch_order, fill_batch, split};
pub use labels::{AUTO, Labels};
pub use procedural::{render as render_procedural, render_one as render_procedural_one};
pub use source::{data_dir, default_data_dir};

/// Largest `image_size`.
pub const MAX_IMAGE_SIZE: usize = 4096;

/// What to load, and how.
#[derive(Clone, Debug)]
pub struct DataSpec {
    /// `procedural`, `flowers`, `pets`, `debug`, a folder (searched recursively), a `.tar` or a `.parquet` file, or a folder of those.
    pub source: String,
    /// Where `flowers` and `pets` are looked for and, if it exists, where the cache goes (`cache/` in it). `None`: the environment
    /// variable `DDIM_DATA_DIR`, else [`default_data_dir`].
    pub data_dir: Option<PathBuf>,
    /// Height and width of the square pictures.
    pub image_size: usize,
    /// 1 (grey), 3 (RGB) or 4 (RGBA).
    pub channels: usize,
    /// Keep the decoded pictures in a cache file, and use one that is there. Off: everything stays in memory.
    pub cache: bool,
    /// Number of pictures of `procedural`.
    pub procedural_count: usize,
    /// Seed of the pictures of `procedural`.
    pub procedural_seed: u64,
}

impl DataSpec {
    /// `source` at `image_size`, in RGB, cached; 4096 pictures where they are procedural.
    pub fn new(source: impl Into<String>, image_size: usize) -> Self {
        DataSpec {
            source: source.into(),
            data_dir: None,
            image_size,
            channels: 3,
            cache: true,
            procedural_count: 4096,
            procedural_seed: 0,
        }
    }

    fn check(&self) -> Result<()> {
        if self.image_size == 0 || self.image_size > MAX_IMAGE_SIZE {
            return Err(Error::Usage(format!("image_size is {}; expected 1 to {MAX_IMAGE_SIZE}", self.image_size)));
        }
        if !matches!(self.channels, 1 | 3 | 4) {
            return Err(Error::Usage(format!("channels is {}; expected 1 (grey), 3 (RGB) or 4 (RGBA)", self.channels)));
        }
        Ok(())
    }

    fn image_bytes(&self) -> usize {
        self.image_size * self.image_size * self.channels
    }
}

/// A picture that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Its path within the folder or archive.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Hears how loading goes; called from several threads.
pub trait Progress: Sync {
    /// A piece of work begins; `total` is its number of units, if known.
    fn start(&self, what: &str, total: Option<u64>);
    /// As `start`, of units that are not pictures but, say, "MB".
    fn start_units(&self, what: &str, total: Option<u64>, unit: &str) {
        let _ = unit;
        self.start(what, total);
    }
    /// `n` more units are done.
    fn advance(&self, n: u64);
    /// Something that the user should read, one line.
    fn note(&self, line: &str);
    /// The piece of work that began last is done.
    fn finish(&self);
}

/// A [`Progress`] that says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, _n: u64) {}
    fn note(&self, _line: &str) {}
    fn finish(&self) {}
}

/// Where the pixels live: never both.
#[derive(Debug)]
enum Pixels {
    Owned(Vec<u8>),
    Mapped { map: memmap2::Mmap, offset: usize },
}

impl Pixels {
    fn bytes(&self) -> &[u8] {
        match self {
            Pixels::Owned(bytes) => bytes,
            Pixels::Mapped { map, offset } => &map[*offset..],
        }
    }
}

/// Decoded pictures: 8-bit NHWC, all of one size.
#[derive(Debug)]
pub struct Dataset {
    pixels: Pixels,
    count: usize,
    image_size: usize,
    channels: usize,
    names: Vec<String>,
    description: String,
    fingerprint: String,
    skipped: Vec<Skipped>,
    own: official::Own,
}

impl Dataset {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none; [`load`] never returns such a set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Picture `i`: `image_size * image_size * channels` bytes, rows from the top, channels innermost.
    ///
    /// # Panics
    /// Where `i` is not below [`Dataset::len`].
    pub fn image(&self, i: usize) -> &[u8] {
        let bytes = self.image_bytes();
        &self.pixels.bytes()[i * bytes..(i + 1) * bytes]
    }

    /// Bytes of a picture.
    pub fn image_bytes(&self) -> usize {
        self.image_size * self.image_size * self.channels
    }

    /// Height and width.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// 1, 3 or 4.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Path of each picture within its folder or archive; empty where the pictures are procedural.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// One line, such as "8189 pictures from flowers64.tar at 64x64".
    pub fn description(&self) -> &str {
        &self.description
    }

    /// SHA-256 in hex: of the pixels, or of the recipe where the pictures are procedural. A resumed run compares it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Pictures that could not be used, by name.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Whether the pixels are a mapped cache file rather than memory of this process.
    pub fn is_mapped(&self) -> bool {
        matches!(self.pixels, Pixels::Mapped { .. })
    }
}

/// One picture file as `image_size * image_size * channels` bytes, cut and resized as the pictures of a data set are.
///
/// # Errors
/// [`Error::Input`]: it cannot be read, or is no picture.
pub fn read_picture(path: &Path, image_size: usize, channels: usize) -> Result<Vec<u8>> {
    let refuse = |why: String| Error::input(path, format!("{why}; expected a picture file (JPEG, PNG or GIF)"));
    let bytes = std::fs::read(path).map_err(|e| refuse(format!("cannot be read: {e}")))?;
    let mut out = vec![0; image_size * image_size * channels];
    decode::Decoder::new().decode(&bytes, image_size, channels, &mut out).map_err(refuse)?;
    Ok(out)
}

/// The folder that caches are kept in, made if it is missing: `cache/` in the data directory, or in the user's own. `None` where there is
/// no place that can be written to.
pub fn cache_folder(data_dir: Option<&Path>) -> Option<PathBuf> {
    let spec = DataSpec { data_dir: data_dir.map(Path::to_path_buf), ..DataSpec::new("", 1) };
    source::cache_dirs(&spec).into_iter().find(|dir| std::fs::create_dir_all(dir).is_ok())
}

/// Loads the pictures of `spec`.
///
/// # Errors
/// [`Error::Usage`] for a size or number of channels that cannot be; [`Error::Input`] for a source that is missing, empty, damaged or
/// has too many pictures that cannot be read (more than 1 %, or fewer than 2 that can).
pub fn load(spec: &DataSpec, progress: &dyn Progress) -> Result<Dataset> {
    spec.check()?;
    let source = source::resolve(spec, progress)?;
    let mut dataset = load_pixels(spec, &source, progress)?;
    dataset.own = official::Own::of(&source, &dataset, &spec.source, progress)?;
    Ok(dataset)
}

/// The pictures of `source`, from the cache or decoded.
fn load_pixels(spec: &DataSpec, source: &source::Source, progress: &dyn Progress) -> Result<Dataset> {
    let job = gather::Job { spec, source, progress };
    if !spec.cache || source.is_quick(spec) {
        return Ok(job.build()?.into_dataset(spec));
    }
    let key = source.cache_key(spec);
    let Some(path) = cache::path_for(&source::cache_dirs(spec), &source.label(), spec, &key) else {
        progress.note("no folder for the cache (neither XDG_CACHE_HOME nor HOME is set); pictures stay in memory");
        return Ok(job.build()?.into_dataset(spec));
    };
    match cache::open(&path, &key) {
        cache::Lookup::Hit(dataset) => return Ok(*dataset),
        cache::Lookup::Miss => {}
        cache::Lookup::Damaged(why) => {
            progress.note(&format!("{}: {why}; decoding the pictures again", path.display()))
        }
    }
    let started = Instant::now();
    let built = job.build()?;
    if let Err(error) = cache::write(&path, &key, spec, &built) {
        progress.note(&format!("{error}; pictures stay in memory and will be decoded again next time"));
        return Ok(built.into_dataset(spec));
    }
    match cache::open(&path, &key) {
        cache::Lookup::Hit(dataset) => {
            // Only now is the memory given back: had the mapping failed, the pictures would still be there.
            drop(built);
            let seconds = started.elapsed().as_secs_f64();
            progress.note(&format!(
                "{} pictures decoded in {seconds:.1} s, cached in {}",
                dataset.len(),
                path.display()
            ));
            Ok(*dataset)
        }
        _ => Ok(built.into_dataset(spec)),
    }
}
