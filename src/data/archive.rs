//! The pictures in a tar archive: where each member lies, checked against the length of the file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::Progress;
use super::folder::is_picture_name;
use crate::error::{Error, Result};

/// A member of the archive that calls itself a picture.
#[derive(Debug)]
pub(super) struct Member {
    /// Its path in the archive.
    pub name: String,
    offset: u64,
    len: u64,
}

impl Member {
    /// The bytes of the member, or why not.
    pub fn read(&self, archive: &mut File) -> std::result::Result<Vec<u8>, String> {
        // `list` has checked the length against the file, so this allocates no more than is there.
        let mut bytes = vec![0; usize::try_from(self.len).map_err(|_| "too large".to_string())?];
        archive
            .seek(SeekFrom::Start(self.offset))
            .and_then(|_| archive.read_exact(&mut bytes))
            .map_err(|e| format!("cannot be read: {e}"))?;
        Ok(bytes)
    }
}

/// Lists the pictures in the archive at `path`, which has `file_len` bytes.
pub(super) fn list(path: &Path, file_len: u64, progress: &dyn Progress) -> Result<Vec<Member>> {
    let fail = |what: String| Error::input(path, what);
    if file_len == 0 {
        return Err(fail("the file is empty (0 bytes); expected a tar archive of pictures".into()));
    }
    let mut file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    refuse_other_formats(path, &mut file)?;
    let mut archive = ::tar::Archive::new(BufReader::with_capacity(1 << 16, file));
    let mut members: Vec<Member> = Vec::new();
    let (mut others, mut end) = (0usize, 0u64);
    let mut last = String::from("its first header");
    for entry in archive.entries_with_seek().map_err(|e| fail(broken(&last, &e)))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if end == 0 => {
                return Err(fail(format!("not a tar archive ({error}); expected a .tar of pictures, or a folder")));
            }
            Err(error) => return Err(fail(broken(&last, &error))),
        };
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
        let (offset, len) = (entry.raw_file_position(), entry.size());
        let kind = entry.header().entry_type();
        end = offset.saturating_add(len);
        if end > file_len {
            return Err(fail(format!(
                "the archive is cut short: `{name}` needs bytes {offset} to {end}, but the file ends at {file_len}; copy or download it again"
            )));
        }
        last = format!("`{name}`");
        if kind.is_file() && is_picture_name(&name) {
            members.push(Member { name, offset, len });
        } else if !kind.is_dir() {
            others += 1;
        }
    }
    if members.is_empty() {
        return Err(fail(format!(
            "no picture among the {others} files of the archive; expected .jpg, .jpeg, .png or .gif"
        )));
    }
    // Two blocks of zeros end an archive. One that stops after a whole member lacks them: nothing else tells that it was cut there.
    if file_len < end.next_multiple_of(512) + 1024 {
        progress.note(&format!("{}: no end mark after {last}; the archive may be cut short", path.display()));
    }
    // A name that comes twice was appended anew: the later one counts, as when unpacking.
    members.sort_by(|a, b| a.name.cmp(&b.name).then(b.offset.cmp(&a.offset)));
    members.dedup_by(|later, first| later.name == first.name);
    Ok(members)
}

fn broken(last: &str, error: &std::io::Error) -> String {
    format!("the archive is damaged or cut short after {last} ({error}); copy or download it again")
}

/// Compressed archives and single pictures get a better answer than "not a tar archive".
fn refuse_other_formats(path: &Path, file: &mut File) -> Result<()> {
    let mut head = [0u8; 8];
    let got = file
        .read(&mut head)
        .and_then(|n| file.rewind().map(|()| n))
        .map_err(|e| Error::input(path, format!("cannot be read: {e}")))?;
    let what = match &head[..got] {
        [0x1f, 0x8b, ..] => "a gzip file; unpack it first (gunzip FILE, or tar xzf FILE and give the folder)",
        [b'P', b'K', 3, 4, ..] => "a zip archive; unpack it and give the folder",
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            "a compressed archive; unpack it first"
        }
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] => "a single picture; give the folder that holds it",
        _ => return Ok(()),
    };
    Err(Error::input(path, format!("this is {what}; expected a .tar of pictures, or a folder")))
}
