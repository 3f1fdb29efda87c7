//! Gzipped tar archives to files, trusting nothing in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::data::Progress;
use crate::data::folder::is_picture_name;
use crate::error::{Error, Result};

/// The largest file that is taken from an archive.
const LARGEST_FILE: u64 = 64 << 20;
/// The most that all files of an archive may have together.
const LARGEST_ARCHIVE: u64 = 16 << 30;
/// The most files.
const MOST_FILES: usize = 1 << 20;

/// Writes the pictures of the archive `from` below `to`; SHA-256 in hex by their paths there.
pub(super) fn pictures(
    from: &Path,
    to: &Path,
    expected: usize,
    stop: &dyn Fn() -> bool,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, String>> {
    let mut sums = BTreeMap::new();
    progress.start("unpacking", Some(expected as u64));
    let outcome = walk(from, stop, |name, entry| {
        if !is_picture_name(name) {
            return Ok(());
        }
        let path = to.join(name);
        let write = |entry: &mut dyn Read| -> Result<String> {
            let parent = path.parent().unwrap_or(to);
            fs::create_dir_all(parent).map_err(Error::io(parent, "make a folder for pictures"))?;
            // Never over a file of the same archive: names that differ in case only would meet on some disks.
            let mut file = File::create_new(&path).map_err(Error::io(&path, "write a picture"))?;
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 16];
            loop {
                let got = entry.read(&mut buffer).map_err(|why| damaged(from, &why))?;
                if got == 0 {
                    break;
                }
                hash.update(&buffer[..got]);
                file.write_all(&buffer[..got]).map_err(Error::io(&path, "write a picture"))?;
            }
            Ok(format!("{:x}", hash.finalize()))
        };
        let sum = write(entry)?;
        sums.insert(name.to_string(), sum);
        progress.advance(1);
        Ok(())
    });
    progress.finish();
    outcome?;
    if sums.len() != expected {
        return Err(Error::input(
            from,
            format!("the archive has {} pictures; expected {expected}. Remove it and fetch it again", sums.len()),
        ));
    }
    Ok(sums)
}

/// The texts of the files of the archive `from` with these names.
pub(super) fn texts(from: &Path, names: &[&str], stop: &dyn Fn() -> bool) -> Result<Vec<String>> {
    let mut found: Vec<Option<String>> = vec![None; names.len()];
    walk(from, stop, |name, entry| {
        if let Some(at) = names.iter().position(|wanted| *wanted == name) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|why| damaged(from, &why))?;
            found[at] = Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(())
    })?;
    let missing = |name: &&str| Error::input(from, format!("the archive has no file `{name}`"));
    names.iter().zip(found).map(|(name, text)| text.ok_or_else(|| missing(name))).collect()
}

/// Visits the plain files of an archive. Refuses links, devices, paths that lead elsewhere and sizes beyond reason.
fn walk(from: &Path, stop: &dyn Fn() -> bool, mut visit: impl FnMut(&str, &mut dyn Read) -> Result<()>) -> Result<()> {
    let file = File::open(from).map_err(Error::io(from, "open the archive"))?;
    let plain = MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file)).take(LARGEST_ARCHIVE);
    let mut archive = tar::Archive::new(plain);
    let (mut files, mut bytes) = (0, 0);
    for entry in archive.entries().map_err(|why| damaged(from, &why))? {
        if stop() {
            return Err(Error::Interrupted("stopped while unpacking; the same command begins to unpack again".into()));
        }
        let mut entry = entry.map_err(|why| damaged(from, &why))?;
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::Directory) {
            continue;
        }
        if !kind.is_file() {
            let what = format!("the archive has a member `{raw}` that is not a plain file (a link, perhaps); refused");
            return Err(Error::input(from, what));
        }
        let Some(name) = inside(&raw) else {
            return Err(Error::input(
                from,
                format!("the archive has a member `{raw}` that leads out of its folder; refused"),
            ));
        };
        files += 1;
        bytes += entry.size();
        if entry.size() > LARGEST_FILE || bytes > LARGEST_ARCHIVE || files > MOST_FILES {
            return Err(Error::input(
                from,
                format!(
                    "the archive is beyond reason at `{raw}` (file {files} of {} bytes, {bytes} in all); refused",
                    entry.size()
                ),
            ));
        }
        visit(&name, &mut entry)?;
    }
    Ok(())
}

/// A member's path with `/` and without `.`; None where it is absolute or goes up.
fn inside(raw: &str) -> Option<String> {
    let path = PathBuf::from(raw);
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?.to_string()),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty() && !raw.contains(['\\', '\0'])).then(|| parts.join("/"))
}

fn damaged(from: &Path, why: &io::Error) -> Error {
    Error::input(from, format!("the archive is damaged ({why}); remove it and fetch it again"))
}

#[cfg(test)]
mod tests {
    use super::inside;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(inside("./jpg/a.jpg").as_deref(), Some("jpg/a.jpg"));
        for path in ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "a\\..\\b.jpg", ".", ""] {
            assert_eq!(inside(path), None, "{path}");
        }
    }
}
