//! One file from a web server to the disk: goes on where it broke off, and is not believed before its checksum fits.
//!
//! `NAME.part` grows; `NAME.part.json` beside it remembers from where, of which length and of which version (ETag, Last-Modified). Only a
//! file whose MD5 fits gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, header};

use super::catalog::Archive;
use super::meter::{Meter, size};
use crate::data::Progress;
use crate::error::{Error, Result};

/// Bytes by which an attempt that broke off counts as progress.
const GAIN: u64 = 16 << 10;

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The longest wait for a connection.
    pub connect: Duration,
    /// The longest silence of a server within a file.
    pub stall: Duration,
    /// The first pause before another attempt; each later one is twice as long, up to 30 s.
    pub backoff: Duration,
    /// Failed attempts in a row, with less than 16 KiB gained each, after which it gives up.
    pub attempts: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            backoff: Duration::from_secs(1),
            attempts: 6,
        }
    }
}

/// What a partial file is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    url: String,
    total: Option<u64>,
    etag: Option<String>,
    last_modified: Option<String>,
}

/// Why an attempt did not bring the file.
enum Failure {
    /// Another attempt may.
    Broken(String),
    /// What is on the disk is of no use; another attempt from zero may.
    Useless(String),
    /// None will.
    Final(Error),
}

/// One download.
pub(super) struct Download<'a> {
    pub archive: &'a Archive,
    /// Its address: the official one, or at a mirror.
    pub url: String,
    /// Folder of the file.
    pub folder: &'a Path,
    pub rules: Rules,
    pub stop: &'a dyn Fn() -> bool,
    pub progress: &'a dyn Progress,
}

impl Download<'_> {
    /// Brings the file; its path. One that is there and has the right checksum is used.
    pub fn run(&self) -> Result<PathBuf> {
        let done = self.folder.join(&self.archive.file);
        if done.is_file() {
            match self.check(&done)? {
                None => return Ok(done),
                Some(why) => {
                    self.progress.note(&format!("{}: {why}; downloading it again", done.display()));
                    fs::remove_file(&done).map_err(Error::io(&done, "remove the damaged download"))?;
                }
            }
        }
        let began = Instant::now();
        let (mut failures, mut best, mut restarted) = (0, self.have(), false);
        loop {
            let before = self.have();
            let failure = match self.attempt() {
                Ok(()) => match self.check(&self.part())? {
                    None => break,
                    // Pieces of two versions, or of two mirrors, may have been put together.
                    Some(why) if before > 0 && !restarted => {
                        restarted = true;
                        Failure::Useless(format!("put together from several attempts, {why}"))
                    }
                    Some(why) => {
                        self.discard()?;
                        return Err(self.wrong(&why));
                    }
                },
                Err(failure) => failure,
            };
            let why = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Useless(why) => {
                    self.discard()?;
                    why
                }
                Failure::Broken(why) => why,
            };
            let have = self.have();
            failures = if have >= best + GAIN { 1 } else { failures + 1 };
            best = best.max(have);
            if failures >= self.rules.attempts {
                return Err(self.gave_up(&why));
            }
            let kept = if have > 0 { format!(" ({} are here)", size(have)) } else { String::new() };
            let pause = self.rules.backoff.saturating_mul(1 << (failures - 1).min(8)).min(Duration::from_secs(30));
            self.progress.note(&format!("{}: {why}{kept}; trying again in {:.0?}", self.archive.file, pause));
            self.wait(pause)?;
        }
        fs::rename(self.part(), &done).map_err(Error::io(&done, "name the finished download"))?;
        let _ = fs::remove_file(self.sidecar()); // it has served; one that stays is harmless
        self.progress.note(&format!(
            "{}: {} in {:.1} s, checksum right",
            self.archive.file,
            size(self.archive.bytes),
            began.elapsed().as_secs_f64()
        ));
        Ok(done)
    }

    fn part(&self) -> PathBuf {
        self.folder.join(format!("{}.part", self.archive.file))
    }

    fn sidecar(&self) -> PathBuf {
        self.folder.join(format!("{}.part.json", self.archive.file))
    }

    /// Bytes that are here.
    fn have(&self) -> u64 {
        fs::metadata(self.part()).map_or(0, |meta| meta.len())
    }

    fn discard(&self) -> Result<()> {
        for path in [self.part(), self.sidecar()] {
            match fs::remove_file(&path) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(&path, "remove the useless download")(why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits, but not on someone who wants to stop.
    fn wait(&self, pause: Duration) -> Result<()> {
        let until = Instant::now() + pause;
        loop {
            if (self.stop)() {
                return Err(self.stopped());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// What is wrong with the file at `path`; None where its checksum is right.
    fn check(&self, path: &Path) -> Result<Option<String>> {
        check_md5(path, self.archive, self.progress)
    }

    /// Asks the server for what is missing, and writes what comes.
    fn attempt(&self) -> std::result::Result<(), Failure> {
        let mut have = self.have();
        if have > self.archive.bytes {
            return Err(Failure::Useless(format!("{} are here, more than the whole", size(have))));
        }
        if have == self.archive.bytes {
            return Ok(());
        }
        let origin = self.origin().filter(|origin| origin.url == self.url);
        let mut request = self.agent().get(&self.url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
            // Without one the checksum of the whole must tell whether the pieces belong together.
            let version = origin.as_ref().and_then(Origin::version);
            if let Some(version) = version {
                request = request.header(header::IF_RANGE, version);
            }
        }
        let mut response = request.call().map_err(|why| Failure::Broken(self.spoken(&why.to_string())))?;
        let status = response.status().as_u16();
        let headers = response.headers();
        let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(content_range);
        let length = text_of(headers, header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
        let total = match (status, range) {
            (200, _) => {
                if have > 0 {
                    self.progress.note(&format!(
                        "{}: the server sends the whole file instead of the rest; from the beginning",
                        self.archive.file
                    ));
                    have = 0;
                }
                length
            }
            (206, Some((Some(start), total))) if start == have => total.or(length.map(|length| have + length)),
            (206, _) => return Err(Failure::Useless("the server sent another piece than was asked for".into())),
            (416, Some((_, Some(total)))) => {
                return Err(Failure::Useless(format!("the server has {total} bytes, not more than the {have} here")));
            }
            (408 | 425 | 429 | 500..=599, _) => return Err(Failure::Broken(format!("the server answered {status}"))),
            _ => return Err(Failure::Final(self.refused(status))),
        };
        if let Some(total) = total.filter(|&total| total != self.archive.bytes) {
            return Err(Failure::Final(self.other_size(&format!("the server offers {total} bytes"))));
        }
        let now = Origin {
            url: self.url.clone(),
            total,
            etag: text_of(headers, header::ETAG.as_str()),
            last_modified: text_of(headers, header::LAST_MODIFIED.as_str()),
        };
        let mut part = self.open(have).map_err(Failure::Final)?;
        let json = serde_json::to_vec(&now).map_err(|why| Failure::Final(Error::Failed(why.to_string())))?;
        fs::write(self.sidecar(), json)
            .map_err(|why| Failure::Final(Error::io(self.sidecar(), "note where a download comes from")(why)))?;
        self.copy(&mut response.body_mut().as_reader(), &mut part, have)
    }

    fn copy(&self, body: &mut impl Read, part: &mut File, mut have: u64) -> std::result::Result<(), Failure> {
        let (whole, path) = (self.archive.bytes, self.part());
        let meter = Meter::start(self.progress, &self.archive.file, whole, have);
        let mut buffer = vec![0; 1 << 16];
        while have < whole {
            if (self.stop)() {
                return Err(Failure::Final(self.stopped()));
            }
            let got = match body.read(&mut buffer) {
                Ok(0) => return Err(Failure::Broken(format!("the connection ended after {have} of {whole} bytes"))),
                Ok(got) => got,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => return Err(Failure::Broken(self.spoken(&why.to_string()))),
            };
            if have + got as u64 > whole {
                return Err(Failure::Final(self.other_size("the server sends more than that")));
            }
            // Unbuffered: what has come is on the disk whatever ends this process.
            part.write_all(&buffer[..got])
                .map_err(|why| Failure::Final(Error::io(&path, "write the download")(why)))?;
            have += got as u64;
            meter.advance(got as u64);
        }
        // A body without a length may go on; one with a length ends here.
        match body.read(&mut buffer[..1]) {
            Ok(more) if more > 0 => Err(Failure::Final(self.other_size("the server sends more than that"))),
            _ => Ok(()),
        }
    }

    fn open(&self, have: u64) -> Result<File> {
        let path = self.part();
        let open = || -> io::Result<File> {
            if have == 0 {
                return File::create(&path);
            }
            OpenOptions::new().append(true).open(&path)
        };
        open().map_err(Error::io(&path, "write the download"))
    }

    fn origin(&self) -> Option<Origin> {
        serde_json::from_slice(&fs::read(self.sidecar()).ok()?).ok()
    }

    fn agent(&self) -> ureq::Agent {
        let host = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let here = ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| host.starts_with(name));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("ddim-engine/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(self.rules.connect))
            .timeout_recv_response(Some(self.rules.stall))
            .timeout_per_read(Some(self.rules.stall));
        // No proxy of the environment leads to a server on this machine.
        if here { config.proxy(None).build().into() } else { config.build().into() }
    }

    /// The words of the network library in ours, where they are not clear.
    fn spoken(&self, why: &str) -> String {
        if why.contains("timeout") {
            return format!("nothing came for {:.0?}", self.rules.stall);
        }
        why.trim_start_matches("io: ").to_string()
    }

    fn stopped(&self) -> Error {
        Error::Interrupted(format!(
            "stopped; {} of {} of {} are kept, and the same command goes on from there",
            size(self.have()),
            size(self.archive.bytes),
            self.archive.file
        ))
    }

    fn remedy(&self) -> String {
        format!(
            "name a mirror that has {0} with --mirror URL, or put {0} into {1} by other means and call this command again",
            self.archive.file,
            self.folder.display()
        )
    }

    fn refused(&self, status: u16) -> Error {
        let means = match status {
            401 | 403 => " (it does not give the file to everybody)",
            404 | 410 => " (there is no such file)",
            300..=399 => " (it points elsewhere too often, or nowhere)",
            _ => "",
        };
        Error::Failed(format!("{}: the server answered {status}{means}; {}", self.url, self.remedy()))
    }

    fn other_size(&self, found: &str) -> Error {
        Error::Failed(format!(
            "{}: {found}; expected {} bytes, so it is another file. {} are kept; {}",
            self.url,
            self.archive.bytes,
            size(self.have()),
            self.remedy()
        ))
    }

    fn wrong(&self, why: &str) -> Error {
        Error::Failed(format!("{}: {why}; it was removed. Try again, or {}", self.url, self.remedy()))
    }

    fn gave_up(&self, why: &str) -> Error {
        let kept = match self.have() {
            0 => String::new(),
            have => format!("; {} are kept, and the same command goes on from there", size(have)),
        };
        Error::Failed(format!(
            "{}: {why}; gave up after {} attempts{kept}. Try later, {}",
            self.url,
            self.rules.attempts,
            self.remedy()
        ))
    }
}

impl Origin {
    /// What If-Range may say: a strong ETag, else the date.
    fn version(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/")).or(self.last_modified.as_deref())
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|text| text.trim().to_string())
}

/// `bytes 5-9/10` as (5, 10); `bytes */10` as (None, 10); a `*` for the total is None.
fn content_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some((start, total.trim().parse().ok()))
}

/// What is wrong with the file at `path`, of which `archive` tells length and MD5; None where both fit.
pub(super) fn check_md5(path: &Path, archive: &Archive, progress: &dyn Progress) -> Result<Option<String>> {
    let fail = |why| Error::io(path, "read the download")(why);
    let mut file = File::open(path).map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    if bytes != archive.bytes {
        return Ok(Some(format!("found {bytes} bytes, expected {}", archive.bytes)));
    }
    let meter = Meter::start(progress, &format!("checking {}", archive.file), bytes, 0);
    let mut md5 = Md5::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let got = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            Err(why) => return Err(Error::io(path, "read the download")(why)),
        };
        md5.update(&buffer[..got]);
        meter.advance(got as u64);
    }
    let found: String = md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((found != archive.md5.to_ascii_lowercase()).then(|| format!("found MD5 {found}, expected {}", archive.md5)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(content_range("bytes */10"), Some((None, Some(10))));
        assert_eq!(content_range("bytes 0-3/*"), Some((Some(0), None)));
        assert_eq!(content_range("pages 1-2/3"), None);
    }

    #[test]
    fn weak_versions_do_not_count() {
        let origin = |etag: &str| Origin {
            etag: Some(etag.into()),
            last_modified: Some("Mon, 01 Jan 2024 00:00:00 GMT".into()),
            ..Origin::default()
        };
        assert_eq!(origin("\"a\"").version(), Some("\"a\""));
        assert_eq!(origin("W/\"a\"").version(), Some("Mon, 01 Jan 2024 00:00:00 GMT"));
        assert_eq!(Origin::default().version(), None);
    }
}
