//! All pictures of a source, in parallel, into one buffer; the rules about those that cannot be read.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::decode::Decoder;
use super::source::Source;
use super::{DataSpec, Dataset, Pixels, Progress, Skipped, parquet, procedural};
use crate::error::{Error, Result};

/// Pictures that may be unreadable, one in so many; more is an error.
const TOLERATED: usize = 100;
/// Unreadable pictures that an error names.
const NAMED: usize = 3;
/// Bytes hashed by one task of the fingerprint.
const HASHED: usize = 1 << 20;

/// The work of decoding one source.
pub(super) struct Job<'a> {
    pub spec: &'a DataSpec,
    pub source: &'a Source,
    pub progress: &'a dyn Progress,
}

/// Decoded pictures in memory.
pub(super) struct Built {
    pub pixels: Vec<u8>,
    pub count: usize,
    pub names: Vec<String>,
    pub description: String,
    pub fingerprint: String,
    pub skipped: Vec<Skipped>,
}

impl Built {
    pub fn into_dataset(self, spec: &DataSpec) -> Dataset {
        Dataset {
            pixels: Pixels::Owned(self.pixels),
            count: self.count,
            image_size: spec.image_size,
            channels: spec.channels,
            names: self.names,
            description: self.description,
            fingerprint: self.fingerprint,
            skipped: self.skipped,
            own: Default::default(),
        }
    }
}

impl Job<'_> {
    /// Decodes or makes all pictures.
    pub fn build(&self) -> Result<Built> {
        let (spec, label) = (self.spec, self.source.label());
        let size = spec.image_size;
        let mut pixels = self.allocate()?;
        let doing = match self.source {
            Source::Procedural { .. } => format!("drawing {label} pictures at {size}x{size}"),
            _ => format!("decoding {label} to {size}x{size}"),
        };
        self.progress.start(&doing, Some(self.source.len() as u64));
        let outcome = self.fill(&mut pixels);
        self.progress.finish();
        let skipped = outcome?;
        let count = self.source.len() - skipped.len();
        let (description, fingerprint) = match self.source {
            Source::Procedural { seed, .. } => {
                // Not of the pixels: another processor may round one of them differently, and that is no reason to refuse a resume.
                let recipe = format!(
                    "procedural {} seed {seed} count {count} size {size} channels {}",
                    procedural::VERSION,
                    spec.channels
                );
                (
                    format!("{count} {label} pictures at {size}x{size} (seed {seed})"),
                    format!("{:x}", Sha256::digest(recipe)),
                )
            }
            _ => (format!("{count} pictures from {label} at {size}x{size}"), fingerprint(&pixels, spec)),
        };
        let mut left_out = skipped.iter().map(|s| s.name.as_str()).peekable();
        // Both lists are in the order of the source.
        let mut names = self.source.names();
        names.retain(|name| left_out.next_if(|out| out == name).is_none());
        Ok(Built { pixels, count, names, description, fingerprint, skipped })
    }

    fn allocate(&self) -> Result<Vec<u8>> {
        let refuse = || {
            let (size, channels) = (self.spec.image_size, self.spec.channels);
            let what = format!(
                "{} pictures of {size}x{size}x{channels} bytes do not fit into memory; use a smaller image_size",
                self.source.len()
            );
            Error::input(self.source.path(), what)
        };
        let bytes = self.source.len().checked_mul(self.spec.image_bytes()).ok_or_else(refuse)?;
        // Reserving first turns an impossible size into an error; pages are touched only when pictures arrive.
        let mut probe: Vec<u8> = Vec::new();
        probe.try_reserve_exact(bytes).map_err(|_| refuse())?;
        drop(probe);
        Ok(vec![0; bytes])
    }

    /// Fills `pixels` and closes the gaps of unreadable pictures, which it returns.
    fn fill(&self, pixels: &mut Vec<u8>) -> Result<Vec<Skipped>> {
        let (spec, bytes) = (self.spec, self.spec.image_bytes());
        let enlarged = AtomicUsize::new(0);
        let decode = |decoder: &mut Decoder, raw: std::result::Result<Vec<u8>, String>, out: &mut [u8]| {
            let side = decoder.decode(&raw?, spec.image_size, spec.channels, out)?;
            if (side as usize) < spec.image_size {
                enlarged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let failures: Vec<(usize, Skipped)> = match self.source {
            Source::Procedural { seed, .. } => {
                procedural::render_all(*seed, spec.image_size, spec.channels, pixels, |n| self.progress.advance(n));
                return Ok(Vec::new());
            }
            Source::Folder { entries, .. } => pixels
                .par_chunks_exact_mut(bytes)
                .zip(entries)
                .enumerate()
                .map_init(Decoder::new, |decoder, (i, (out, entry))| {
                    let failed = decode(decoder, entry.read(), out).err();
                    self.progress.advance(1);
                    failed.map(|reason| (i, entry.skipped(reason)))
                })
                .flatten()
                .collect(),
            Source::Parquet(table) => self.fill_from(table, pixels, decode)?,
            Source::Tar { path, members, .. } => pixels
                .par_chunks_exact_mut(bytes)
                .zip(members)
                .enumerate()
                .map_init(
                    // Every thread seeks in a handle of its own.
                    || {
                        (
                            Decoder::new(),
                            File::open(path).map_err(|e| format!("the archive cannot be opened again: {e}")),
                        )
                    },
                    |(decoder, file), (i, (out, member))| {
                        let raw = file.as_mut().map_err(|e| e.clone()).and_then(|file| member.read(file));
                        let failed = decode(decoder, raw, out).err();
                        self.progress.advance(1);
                        failed.map(|reason| (i, Skipped { name: member.name.clone(), reason }))
                    },
                )
                .flatten()
                .collect(),
        };
        let total = self.source.len();
        let (gaps, skipped): (Vec<usize>, Vec<Skipped>) = failures.into_iter().unzip();
        self.judge(total, &skipped)?;
        close_gaps(pixels, &gaps, bytes);
        let enlarged = enlarged.into_inner();
        if enlarged > 0 {
            let size = spec.image_size;
            self.progress
                .note(&format!("{enlarged} of {total} pictures are smaller than {size} pixels and were enlarged"));
        }
        Ok(skipped)
    }

    /// Decodes the rows of parquet files, some hundred at a time.
    fn fill_from(
        &self,
        table: &parquet::Table,
        pixels: &mut [u8],
        decode: impl Fn(&mut Decoder, std::result::Result<Vec<u8>, String>, &mut [u8]) -> std::result::Result<(), String>
        + Sync,
    ) -> Result<Vec<(usize, Skipped)>> {
        let bytes = self.spec.image_bytes();
        let (mut done, mut failures) = (0, Vec::new());
        let mut rest = pixels;
        table.read(|rows| {
            let all = std::mem::take(&mut rest);
            let (out, later) = all.split_at_mut((rows.len() * bytes).min(all.len()));
            rest = later;
            let failed: Vec<(usize, Skipped)> = out
                .par_chunks_exact_mut(bytes)
                .zip(rows)
                .enumerate()
                .map_init(Decoder::new, |decoder, (i, (out, row))| {
                    let raw = row.map(|row| row.data().to_vec()).ok_or("the row has no bytes of a picture".to_string());
                    let failed = decode(decoder, raw, out).err();
                    self.progress.advance(1);
                    failed.map(|reason| (done + i, Skipped { name: table.names[done + i].clone(), reason }))
                })
                .flatten()
                .collect();
            done += out.len() / bytes;
            failures.extend(failed);
        })?;
        if done != table.names.len() {
            return Err(Error::input(&table.path, "the file changed while it was read; try again"));
        }
        Ok(failures)
    }

    /// Names unreadable pictures; fails where they are too many.
    fn judge(&self, total: usize, skipped: &[Skipped]) -> Result<()> {
        let usable = total - skipped.len();
        let named: Vec<String> = skipped.iter().take(NAMED).map(|s| format!("{} ({})", s.name, s.reason)).collect();
        let more = if skipped.len() > NAMED { format!(" and {} more", skipped.len() - NAMED) } else { String::new() };
        let named = format!("{}{more}", named.join("; "));
        if skipped.len() * TOLERATED > total {
            let what = format!(
                "{} of {total} pictures cannot be read, more than 1 in {TOLERATED}: {named}. Remove or mend them",
                skipped.len()
            );
            return Err(Error::input(self.source.path(), what));
        }
        if usable < 2 {
            let what = format!("{usable} picture that can be read; expected at least 2");
            return Err(Error::input(self.source.path(), what));
        }
        if !skipped.is_empty() {
            self.progress
                .note(&format!("{} of {total} pictures cannot be read and are left out: {named}", skipped.len()));
        }
        Ok(())
    }
}

/// Moves pictures together over those at the sorted indices `gaps`.
fn close_gaps(pixels: &mut Vec<u8>, gaps: &[usize], bytes: usize) {
    let total = pixels.len() / bytes;
    for (k, &gap) in gaps.iter().enumerate() {
        let next = gaps.get(k + 1).copied().unwrap_or(total);
        pixels.copy_within((gap + 1) * bytes..next * bytes, (gap - k) * bytes);
    }
    pixels.truncate((total - gaps.len()) * bytes);
}

/// Digest of the pixels and their shape: a hash of the hashes of equal pieces, so that all cores can take part.
fn fingerprint(pixels: &[u8], spec: &DataSpec) -> String {
    let pieces: Vec<[u8; 32]> = pixels.par_chunks(HASHED).map(|piece| Sha256::digest(piece).into()).collect();
    let mut hash = Sha256::new();
    hash.update(format!("{} bytes size {} channels {}\n", pixels.len(), spec.image_size, spec.channels));
    pieces.iter().for_each(|piece| hash.update(piece));
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::close_gaps;

    #[test]
    fn gaps_close_in_order() {
        for (gaps, want) in [
            (&[][..], &[0, 0, 1, 1, 2, 2, 3, 3, 4, 4][..]),
            (&[0], &[1, 1, 2, 2, 3, 3, 4, 4]),
            (&[4], &[0, 0, 1, 1, 2, 2, 3, 3]),
            (&[1, 2], &[0, 0, 3, 3, 4, 4]),
            (&[0, 2, 4], &[1, 1, 3, 3]),
        ] {
            let mut pixels = vec![0, 0, 1, 1, 2, 2, 3, 3, 4, 4];
            close_gaps(&mut pixels, gaps, 2);
            assert_eq!(pixels, want, "{gaps:?}");
        }
    }
}
