//! Sample grids for a page: which of them it takes, and how it comes by them.

use std::fs;
use std::path::PathBuf;

use base64::Engine;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::lab::record::RunRecord;

/// The most grids of a run on a page: a slider has no use for more.
const MOST: usize = 240;

/// A sample grid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frame {
    /// The epoch that it was drawn after.
    pub epoch: u64,
    /// A `data:` address with the picture in it, or a path on the server of the page.
    pub src: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// The sample grids of a run that a page shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// In the order of epochs.
    pub frames: Vec<Frame>,
    /// How many the run has.
    pub total: usize,
}

/// A file among the sample grids.
struct Found {
    epoch: u64,
    path: PathBuf,
    bytes: usize,
    size: (u32, u32),
}

impl Samples {
    /// Grids of at most `bytes` in all, within the page: all, or an even part with the first and the last.
    ///
    /// # Errors
    /// A grid that cannot be read.
    pub fn embedded(record: &RunRecord, bytes: usize) -> Result<Self> {
        let found = list(record)?;
        let total = found.len();
        let mut frames = Vec::new();
        for i in even_part(&found.iter().map(|f| f.bytes).collect::<Vec<_>>(), bytes) {
            let Found { epoch, path, size: (width, height), .. } = &found[i];
            let png = fs::read(path).map_err(Error::io(path, "read the sample grid"))?;
            let src = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png));
            frames.push(Frame { epoch: *epoch, src, width: *width, height: *height });
        }
        Ok(Samples { frames, total })
    }

    /// All grids, as paths under `samples/` of the server that serves the page: `samples/RUN/EPOCH.png`.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn linked(record: &RunRecord, run: usize) -> Result<Self> {
        let found = list(record)?;
        let total = found.len();
        let part = even_part(&vec![0; total], usize::MAX);
        let frame = |f: &Found| {
            let src = format!("samples/{run}/{}.png", f.epoch);
            Frame { epoch: f.epoch, src, width: f.size.0, height: f.size.1 }
        };
        Ok(Samples { frames: part.into_iter().map(|i| frame(&found[i])).collect(), total })
    }
}

/// The grids that are PNG files; what else lies there under such a name is left out.
fn list(record: &RunRecord) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (epoch, path) in record.samples()? {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if let Some(size) = png_size(&path).filter(|_| meta.is_file()) {
            found.push(Found { epoch, path, bytes: meta.len() as usize, size });
        }
    }
    Ok(found)
}

/// Width and height from the first chunk of a PNG file.
fn png_size(path: &std::path::Path) -> Option<(u32, u32)> {
    let mut head = [0; 24];
    std::io::Read::read_exact(&mut fs::File::open(path).ok()?, &mut head).ok()?;
    let number = |at: usize| Some(u32::from_be_bytes(head[at..at + 4].try_into().ok()?));
    (head.starts_with(b"\x89PNG\r\n\x1a\n") && &head[12..16] == b"IHDR").then_some(())?;
    Some((number(16)?, number(20)?))
}

/// Indices of the longest even part of files of these sizes that is within `bytes`, with the first and the last; at least the last.
fn even_part(sizes: &[usize], bytes: usize) -> Vec<usize> {
    let total = sizes.len();
    let part = |n: usize| -> Vec<usize> {
        match n {
            0 => Vec::new(),
            1 => vec![total - 1],
            n => (0..n).map(|k| (k * (total - 1) + (n - 1) / 2) / (n - 1)).collect(),
        }
    };
    let fits = |n: &usize| part(*n).into_iter().map(|i| sizes[i]).fold(0, usize::saturating_add) <= bytes;
    let most = total.min(MOST);
    part((1..=most).rev().find(fits).unwrap_or(most.min(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_part_has_first_and_last() {
        assert_eq!(even_part(&[], 10), Vec::<usize>::new());
        assert_eq!(even_part(&[5], 1), [0], "at least the last");
        assert_eq!(even_part(&[5; 4], 20), [0, 1, 2, 3]);
        assert_eq!(even_part(&[5; 9], 15), [0, 4, 8]);
        assert_eq!(even_part(&[5; 9], 14), [0, 8]);
        assert_eq!(even_part(&[5; 9], 9), [8]);
        let many = even_part(&vec![1; 1000], usize::MAX);
        assert_eq!((many.len(), many[0], many[MOST - 1]), (MOST, 0, 999));
        assert!(many.windows(2).all(|w| (4..=5).contains(&(w[1] - w[0]))));
    }
}
