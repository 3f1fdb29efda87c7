//! The cache of decoded pictures: one file, written beside and renamed, mapped when it is used.
//!
//! ```text
//! 0   magic, 8 bytes
//! 8   length of the header, u64 little endian
//! 16  SHA-256 of the header, 32 bytes
//! 48  header, JSON: key, shape, names, description, fingerprint, skipped pictures, CRC-32 of every piece of the pixels
//! ..  zeros up to a multiple of 4096
//! ..  pixels, NHWC
//! ```
//! Every byte is checked when the file is opened: the header by its digest, the pixels by the CRCs, in parallel.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::gather::Built;
use super::{DataSpec, Dataset, Pixels, Skipped};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"DDIMPIX1";
/// Bytes before the header.
const PREFIX: usize = 48;
/// Pixels begin at a multiple of the page size.
const ALIGN: usize = 4096;
/// Bytes under one CRC.
const PIECE: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    count: usize,
    image_size: usize,
    channels: usize,
    names: Vec<String>,
    description: String,
    fingerprint: String,
    skipped: Vec<Skipped>,
    crc32: Vec<u32>,
}

/// What a cache file turned out to be.
pub(super) enum Lookup {
    /// Whole and right.
    Hit(Box<Dataset>),
    /// Not there, or of another state of the source or another version of the program.
    Miss,
    /// Meant for this source but broken: how.
    Damaged(String),
}

/// The cache file of a source: named by its first key line, so that a changed source replaces its old file rather than adding one. The
/// first of `dirs` that has it, else the first that can be written to, else the first.
pub(super) fn path_for(dirs: &[PathBuf], label: &str, spec: &DataSpec, key: &str) -> Option<PathBuf> {
    let identity = key.lines().next().unwrap_or(key);
    let digest = format!("{:x}", Sha256::digest(identity));
    let label: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).take(60).collect();
    let name = format!("{label}-{0}x{0}x{1}-{2}.pixels", spec.image_size, spec.channels, &digest[..16]);
    let found = dirs.iter().find(|dir| dir.join(&name).is_file());
    let usable = || dirs.iter().find(|dir| fs::create_dir_all(dir).is_ok() && tempfile::tempfile_in(dir).is_ok());
    found.or_else(usable).or(dirs.first()).map(|dir| dir.join(name))
}

/// Writes `built` to `path`, at once or not at all.
pub(super) fn write(path: &Path, key: &str, spec: &DataSpec, built: &Built) -> Result<()> {
    let header = Header {
        key: key.to_string(),
        count: built.count,
        image_size: spec.image_size,
        channels: spec.channels,
        names: built.names.clone(),
        description: built.description.clone(),
        fingerprint: built.fingerprint.clone(),
        skipped: built.skipped.clone(),
        crc32: crc32(&built.pixels),
    };
    let io = |e: std::io::Error| Error::io(path, "write the cache of decoded pictures")(e);
    let header = serde_json::to_vec(&header).map_err(|e| io(e.into()))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(io)?;
    let temporary = tempfile::Builder::new().prefix(".writing-").suffix(".pixels").tempfile_in(dir).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 16, temporary);
    let write = |out: &mut BufWriter<tempfile::NamedTempFile>| {
        out.write_all(MAGIC)?;
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&Sha256::digest(&header))?;
        out.write_all(&header)?;
        out.write_all(&vec![0; offset(header.len()) - PREFIX - header.len()])?;
        out.write_all(&built.pixels)?;
        out.flush()
    };
    write(&mut out).map_err(io)?;
    let temporary = out.into_inner().map_err(|e| io(e.into_error()))?;
    // Not synced to the disk: a file torn by a power cut fails its checksums and is made again, which is cheaper than waiting always.
    temporary.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// Maps the cache at `path` if it is whole and was made for `key`.
pub(super) fn open(path: &Path, key: &str) -> Lookup {
    let Ok(file) = File::open(path) else { return Lookup::Miss };
    // SAFETY: the file is private to this program's cache, is never changed in place (writers rename a new one over it, which leaves
    // this mapping on the old one), and is only read as plain bytes. Someone truncating it by hand would end this process.
    let map = match unsafe { Mmap::map(&file) } {
        Ok(map) => map,
        Err(error) => return Lookup::Damaged(format!("the cache cannot be mapped ({error})")),
    };
    match check(&map, key) {
        Ok(Some((header, offset))) => Lookup::Hit(Box::new(Dataset {
            pixels: Pixels::Mapped { map, offset },
            count: header.count,
            image_size: header.image_size,
            channels: header.channels,
            names: header.names,
            description: header.description,
            fingerprint: header.fingerprint,
            skipped: header.skipped,
            own: Default::default(),
        })),
        Ok(None) => Lookup::Miss,
        Err(why) => Lookup::Damaged(format!("the cache is damaged ({why})")),
    }
}

/// `Ok(None)`: a sound header, but for other pictures.
fn check(bytes: &[u8], key: &str) -> std::result::Result<Option<(Header, usize)>, String> {
    let prefix: &[u8; PREFIX] =
        bytes.first_chunk().ok_or_else(|| format!("{} bytes, too short for a header", bytes.len()))?;
    let (magic, rest) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("its first bytes are not those of a cache".into());
    }
    let (len, digest) = rest.split_at(8);
    let len = len.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
    let header = usize::try_from(len).ok().and_then(|n| bytes[PREFIX..].get(..n)).ok_or("the header is cut short")?;
    if Sha256::digest(header).as_slice() != digest {
        return Err("the header fails its checksum".into());
    }
    let offset = offset(header.len());
    // A sound header that does not parse was written by another version.
    let Ok(header) = serde_json::from_slice::<Header>(header) else { return Ok(None) };
    if header.key != key {
        return Ok(None);
    }
    let want = header
        .count
        .checked_mul(header.image_size * header.image_size * header.channels)
        .ok_or("an impossible size")?;
    let pixels = bytes.get(offset..).unwrap_or_default();
    if pixels.len() != want {
        return Err(format!("{} bytes of pixels, expected {want}", pixels.len()));
    }
    let found = crc32(pixels);
    if found != header.crc32 {
        let bad = found.iter().zip(&header.crc32).filter(|(a, b)| a != b).count();
        return Err(format!("{bad} of {} pieces fail their checksum", found.len()));
    }
    Ok(Some((header, offset)))
}

fn offset(header_len: usize) -> usize {
    (PREFIX + header_len).next_multiple_of(ALIGN)
}

fn crc32(pixels: &[u8]) -> Vec<u32> {
    pixels.par_chunks(PIECE).map(crc32fast::hash).collect()
}
