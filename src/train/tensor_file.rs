//! Safetensors files of f32 tensors, written and read as a stream: each byte is touched once, hashed on the way, and never held
//! twice in memory.
//!
//! The header is written here, not by the `safetensors` crate, because that one keeps metadata in a hash map: with two entries
//! the bytes of a file would differ from run to run. Reading goes through the crate's own header type and its checks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const _: () = assert!(cfg!(target_endian = "little"), "tensors are cast to little-endian bytes as they lie in memory");

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor by name, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Name, unique in its file.
    pub name: String,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Values, row major; as many as the product of `shape`.
    pub data: Vec<f32>,
}

/// Size and checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digested {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal digits.
    pub sha256: String,
}

/// What [`read`] found in a file.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The `__metadata__` of the header.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<NamedTensor>,
    /// Types that were widened or narrowed to F32, such as `F16`; only [`read_any_float`] finds any.
    pub converted: Vec<String>,
    /// Size and checksum of the whole file.
    pub digest: Digested,
}

/// Hashes and counts what passes through to `inner`.
struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Hashing { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (T, Digested) {
        (self.inner, Digested { bytes: self.bytes, sha256: format!("{:x}", self.hasher.finalize()) })
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Writes `tensors`, sorted by name, and syncs the file. The same arguments give the same bytes, in any order of `tensors`.
///
/// Errors name the file; refused are two tensors of one name and data that do not fill their shape.
pub fn write(path: &Path, metadata: &BTreeMap<String, String>, tensors: &[NamedTensor]) -> Result<Digested> {
    let mut sorted: Vec<&NamedTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let header = header(metadata, &sorted)?;
    let stream = || -> io::Result<Digested> {
        let mut out = Hashing::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in &sorted {
            out.write_all(bytemuck::cast_slice(&tensor.data))?;
        }
        let (buffered, digest) = out.finish();
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(digest)
    };
    stream().map_err(Error::io(path, "write the tensors"))
}

/// The JSON header: metadata first, then the tensors as they will lie, padded with spaces to whole 8 bytes so that data are aligned.
fn header(metadata: &BTreeMap<String, String>, sorted: &[&NamedTensor]) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0usize;
    for tensor in sorted {
        let elements = tensor.shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        if elements != Some(tensor.data.len()) {
            let what = format!("{} has shape {:?} but {} values", tensor.name, tensor.shape, tensor.data.len());
            return Err(Error::Shape { op: "tensor file", what });
        }
        let end = offset + size_of_val(tensor.data.as_slice());
        let info = serde_json::json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end] });
        if tensor.name == "__metadata__" || entries.insert(tensor.name.clone(), info).is_some() {
            let what = format!("two tensors are named {:?}, or the name is reserved", tensor.name);
            return Err(Error::Shape { op: "tensor file", what });
        }
        offset = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Reads a whole safetensors file. Tensors must be F32, or I32 (timesteps, labels); integer counters that PyTorch keeps beside batch norms
/// (`num_batches_tracked`) are passed over.
pub fn read(path: &Path) -> Result<Contents> {
    read_as(path, false)
}

/// As [`read`]; tensors of F16 and BF16 are widened to F32 exactly, those of F64 rounded to it, and [`Contents::converted`] says so.
pub fn read_any_float(path: &Path) -> Result<Contents> {
    read_as(path, true)
}

fn read_as(path: &Path, any_float: bool) -> Result<Contents> {
    let io = |source: io::Error| Error::Io { path: path.into(), action: "read the tensors".into(), source };
    let bad = |what: String| Error::input(path, format!("not a whole safetensors file: {what}"));

    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if length < 8 {
        return Err(bad(format!("found {length} bytes, expected at least 8")));
    }
    let mut input = Hashing::new(file);
    let mut prefix = [0u8; 8];
    input.read_exact(&mut prefix).map_err(io)?;
    let header_length = u64::from_le_bytes(prefix);
    if header_length > MAX_HEADER || header_length > length - 8 {
        return Err(bad(format!("its header claims {header_length} bytes, the file has {length}")));
    }
    let mut header = vec![0u8; header_length as usize];
    input.read_exact(&mut header).map_err(io)?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| bad(format!("its header: {e}")))?;
    // Before anything is allocated by what the header says.
    let expected = 8 + header_length + header.data_len() as u64;
    if expected != length {
        return Err(bad(format!("found {length} bytes, its header expects {expected}")));
    }

    let (mut tensors, mut converted) = (Vec::new(), std::collections::BTreeSet::new());
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        if info.dtype == Dtype::I32 {
            let mut whole = vec![0i32; bytes / size_of::<i32>()];
            input.read_exact(bytemuck::cast_slice_mut(&mut whole)).map_err(io)?;
            tensors.push(NamedTensor {
                name,
                shape: info.shape.clone(),
                data: whole.into_iter().map(|i| i as f32).collect(),
            });
            continue;
        }
        if info.dtype != Dtype::F32 {
            if name.ends_with("num_batches_tracked") {
                io::copy(&mut Read::by_ref(&mut input).take(bytes as u64), &mut io::sink()).map_err(io)?;
                continue;
            }
            if any_float && matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F64) {
                let mut raw = vec![0u8; bytes];
                input.read_exact(&mut raw).map_err(io)?;
                converted.insert(format!("{:?}", info.dtype));
                tensors.push(NamedTensor { name, shape: info.shape.clone(), data: to_f32(&raw, info.dtype) });
                continue;
            }
            let what = format!("tensor {name} is {:?}, expected F32; convert the file to float32", info.dtype);
            return Err(Error::input(path, what));
        }
        let mut data = vec![0f32; bytes / size_of::<f32>()];
        input.read_exact(bytemuck::cast_slice_mut(&mut data)).map_err(io)?;
        tensors.push(NamedTensor { name, shape: info.shape.clone(), data });
    }
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(Contents { metadata, tensors, converted: converted.into_iter().collect(), digest: input.finish().1 })
}

/// Little-endian floats of another type as F32.
fn to_f32(raw: &[u8], dtype: Dtype) -> Vec<f32> {
    let halves = |of: fn([u8; 2]) -> f32| raw.chunks_exact(2).map(|b| of([b[0], b[1]])).collect();
    match dtype {
        Dtype::F16 => halves(|b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => halves(|b| half::bf16::from_le_bytes(b).to_f32()),
        _ => bytemuck::pod_collect_to_vec::<u8, f64>(raw).into_iter().map(|v| v as f32).collect(),
    }
}

/// Size and checksum of a file, streamed.
pub fn digest(path: &Path) -> Result<Digested> {
    let hash = || -> io::Result<Digested> {
        let mut input = Hashing::new(File::open(path)?);
        let mut buffer = vec![0u8; 1 << 20];
        while input.read(&mut buffer)? > 0 {}
        Ok(input.finish().1)
    };
    hash().map_err(Error::io(path, "read the file"))
}
