//! Reads the numeric arrays of a MATLAB file (level 5, as `save` writes without `-v7.3`).
//!
//! Written after the published description "MAT-File Format" (MathWorks): a header of 128 bytes, then elements of a tag (type, length) and
//! data padded to 8 bytes; an element of type 15 is another element behind zlib. Arrays of other kinds (text, cells, structures) are passed
//! over.

use std::collections::BTreeMap;
use std::io::Read;

/// The most that a compressed element may become.
const LARGEST_ELEMENT: u64 = 64 << 20;

const INT8: u32 = 1;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// A numeric array.
#[derive(Clone, Debug, PartialEq)]
pub struct MatArray {
    /// Its extents, at least two.
    pub shape: Vec<usize>,
    /// Its real parts, columns first.
    pub values: Vec<f64>,
}

impl MatArray {
    /// The values as whole numbers.
    pub fn integers(&self) -> Option<Vec<u32>> {
        let whole = |&v: &f64| (v.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&v)).then_some(v as u32);
        self.values.iter().map(whole).collect()
    }
}

/// The numeric arrays of a file, by name. The error says what was found instead.
pub fn read_mat(bytes: &[u8]) -> Result<BTreeMap<String, MatArray>, String> {
    if bytes.starts_with(b"\x89HDF") || bytes.get(512..).is_some_and(|rest| rest.starts_with(b"\x89HDF")) {
        return Err("a MATLAB file of version 7.3 (HDF5); expected level 5 (save -v7)".into());
    }
    let header: &[u8; 128] = bytes
        .first_chunk()
        .ok_or_else(|| format!("{} bytes, too short for the header of a MATLAB file (128 bytes)", bytes.len()))?;
    let big = match &header[126..128] {
        b"IM" => false,
        b"MI" => true,
        _ => return Err("the header is not that of a MATLAB file of level 5".into()),
    };
    let mut arrays = BTreeMap::new();
    let mut rest = Elements { bytes: &bytes[128..], big };
    while let Some((kind, data)) = rest.next()? {
        let inflated;
        let (kind, data) = match kind {
            COMPRESSED => {
                inflated = inflate(data)?;
                let Some(element) = (Elements { bytes: &inflated, big }).next()? else { continue };
                element
            }
            _ => (kind, data),
        };
        if kind == MATRIX
            && let Some((name, array)) = matrix(data, big)?
        {
            arrays.insert(name, array);
        }
    }
    Ok(arrays)
}

fn inflate(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut decoder = flate2::read::ZlibDecoder::new(data).take(LARGEST_ELEMENT + 1);
    decoder.read_to_end(&mut out).map_err(|why| format!("a compressed array is damaged: {why}"))?;
    if out.len() as u64 > LARGEST_ELEMENT {
        return Err("a compressed array of more than 64 MiB".into());
    }
    Ok(out)
}

/// A sequence of elements.
struct Elements<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Elements<'a> {
    /// Type and data of the next element; None at the end.
    fn next(&mut self) -> Result<Option<(u32, &'a [u8])>, String> {
        let cut = || "the file is cut short within an array".to_string();
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let word = |at: usize| self.bytes.get(at..at + 4).and_then(|w| w.try_into().ok()).map(|w| u32_of(w, self.big));
        let first = word(0).ok_or_else(cut)?;
        // Up to four bytes of data may sit in the second half of the tag, with their number in the upper half of the type.
        let (kind, start, len, end) = match first >> 16 {
            0 => {
                let len = word(4).ok_or_else(cut)? as usize;
                // Compressed elements are not padded.
                let padded = if first == COMPRESSED { len } else { len.next_multiple_of(8) };
                (first, 8, len, 8 + padded)
            }
            len if len <= 4 => (first & 0xffff, 4, len as usize, 8),
            _ => return Err("the tag of an array is damaged".into()),
        };
        let data = self.bytes.get(start..start + len).ok_or_else(cut)?;
        self.bytes = self.bytes.get(end..).unwrap_or_default();
        Ok(Some((kind, data)))
    }

    /// The data of the next element, which must be of type `kind`.
    fn expect(&mut self, kind: u32) -> Result<&'a [u8], String> {
        match self.next()? {
            Some((found, data)) if found == kind => Ok(data),
            found => Err(format!("found an element of type {:?}, expected {kind}", found.map(|(found, _)| found))),
        }
    }
}

/// Name and values of an array, if it is one of numbers.
fn matrix(data: &[u8], big: bool) -> Result<Option<(String, MatArray)>, String> {
    let mut parts = Elements { bytes: data, big };
    let flags = parts.expect(UINT32)?;
    let flags = flags.first_chunk::<4>().map(|w| u32_of(*w, big)).ok_or("an array without flags")?;
    // Double, single, and whole numbers of 8 to 64 bits.
    if !(6..=15).contains(&(flags & 0xff)) {
        return Ok(None);
    }
    let shape: Vec<usize> =
        parts.expect(INT32)?.chunks_exact(4).map(|w| u32_of([w[0], w[1], w[2], w[3]], big) as usize).collect();
    let name = String::from_utf8_lossy(parts.expect(INT8)?).into_owned();
    let (kind, data) = parts.next()?.ok_or_else(|| format!("the array `{name}` has no values"))?;
    let values = numbers(kind, data, big).ok_or_else(|| format!("the array `{name}` has values of type {kind}"))?;
    let expected = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
    if expected != Some(values.len()) {
        return Err(format!("the array `{name}` has {} values, which is not its shape {shape:?}", values.len()));
    }
    Ok(Some((name, MatArray { shape, values })))
}

/// Numbers as they are stored, which may be narrower than the class of the array.
fn numbers(kind: u32, data: &[u8], big: bool) -> Option<Vec<f64>> {
    fn read<const N: usize>(data: &[u8], big: bool, of: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        let one = |chunk: &[u8]| {
            let mut word = [0; N];
            word.copy_from_slice(chunk);
            if big {
                word.reverse();
            }
            of(word)
        };
        data.chunks_exact(N).map(one).collect()
    }
    Some(match kind {
        1 => read(data, big, |w: [u8; 1]| f64::from(i8::from_le_bytes(w))),
        2 => read(data, big, |w: [u8; 1]| f64::from(w[0])),
        3 => read(data, big, |w| f64::from(i16::from_le_bytes(w))),
        4 => read(data, big, |w| f64::from(u16::from_le_bytes(w))),
        5 => read(data, big, |w| f64::from(i32::from_le_bytes(w))),
        6 => read(data, big, |w| f64::from(u32::from_le_bytes(w))),
        7 => read(data, big, |w| f64::from(f32::from_le_bytes(w))),
        9 => read(data, big, f64::from_le_bytes),
        12 => read(data, big, |w| i64::from_le_bytes(w) as f64),
        13 => read(data, big, |w| u64::from_le_bytes(w) as f64),
        _ => return None,
    })
}

fn u32_of(word: [u8; 4], big: bool) -> u32 {
    if big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
}
