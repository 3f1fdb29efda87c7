//! A web server that does what each answer of its script says, once for each request, and a set to fetch from it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ddim_engine::data::fetch::{self, Archive, FetchOptions, Fetched, Holds, KnownSet, Rules};
use ddim_engine::data::{Progress, Silent};
use ddim_engine::error::{Error, Result};
use md5::{Digest, Md5};

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// All that is asked for, ranges honoured.
    Right,
    /// The same without a Content-Length: the connection's end ends the body.
    NoLength,
    /// As `Right`, but after so many bytes of body the connection ends.
    Drop(usize),
    /// As `NoLength`, but after so many bytes the connection ends.
    DropNoLength(usize),
    /// As `Right`, but after so many bytes nothing more comes.
    Stall(usize),
    /// The whole file whatever range is asked for, ended after so many bytes.
    IgnoreRange(usize),
    /// A Content-Length that is off by this much.
    Length(i64),
    /// So many bytes more than the file, without a Content-Length.
    Surplus(usize),
    /// One byte of the body is another.
    Corrupt,
    /// Another version: another ETag and other bytes; If-Range is honoured.
    NewVersion,
    /// A piece that does not begin where it was asked to.
    WrongPiece,
    /// A status without a file.
    Status(u16),
    /// To this path.
    Redirect(&'static str),
}

/// A request as it came: its path and its headers in small letters.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

pub struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves `files` by name; the answers in turn, the last one for ever.
    pub fn new(files: Vec<(String, Vec<u8>)>, answers: Vec<Answer>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for (turn, stream) in listener.incoming().flatten().enumerate() {
                let answer = answers[turn.min(answers.len() - 1)].clone();
                let (files, seen) = (files.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &files, answer, &seen));
            }
        });
        Server { port, requests }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mirror/", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, files: &[(String, Vec<u8>)], answer: Answer, seen: &Mutex<Vec<Request>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut request = Request { path, headers: Vec::new() };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
    seen.lock().unwrap().push(request.clone());
    let mut out = stream;
    let name = request.path.rsplit('/').next()?.to_string();
    let Some((_, file)) = files.iter().find(|(n, _)| *n == name) else {
        return out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
    };
    let mut file = file.clone();
    let mut etag = "\"one\"";
    match answer {
        Answer::Status(status) => {
            let head = format!("HTTP/1.1 {status} So\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
            return out.write_all(head.as_bytes()).ok();
        }
        Answer::Redirect(to) => {
            let head = format!(
                "HTTP/1.1 302 Found\r\nLocation: {to}/{name}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return out.write_all(head.as_bytes()).ok();
        }
        Answer::NewVersion => {
            etag = "\"two\"";
            file.iter_mut().for_each(|byte| *byte ^= 0xff);
        }
        Answer::Corrupt => {
            let middle = file.len() / 2;
            file[middle] ^= 1;
        }
        Answer::Surplus(more) => file.extend(vec![7; more]),
        _ => {}
    }
    let asked =
        request.header("range").and_then(|r| r.strip_prefix("bytes=")?.trim_end_matches('-').parse::<usize>().ok());
    let same = request.header("if-range").is_none_or(|version| version == etag);
    let start = asked.filter(|_| same && !matches!(answer, Answer::IgnoreRange(_)));
    if start.is_some_and(|start| start >= file.len()) {
        let head = format!(
            "HTTP/1.1 416 No\r\nContent-Range: bytes */{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            file.len()
        );
        return out.write_all(head.as_bytes()).ok();
    }
    let body = &file[start.unwrap_or(0)..];
    let mut head = match start {
        None => "HTTP/1.1 200 OK\r\n".to_string(),
        Some(start) => {
            let said = if matches!(answer, Answer::WrongPiece) { start + 1 } else { start };
            format!("HTTP/1.1 206 Partial\r\nContent-Range: bytes {said}-{}/{}\r\n", file.len() - 1, file.len())
        }
    };
    head.push_str(&format!("ETag: {etag}\r\nConnection: close\r\n"));
    match answer {
        Answer::NoLength | Answer::DropNoLength(_) | Answer::Surplus(_) => {}
        Answer::Length(off) => head.push_str(&format!("Content-Length: {}\r\n", body.len() as i64 + off)),
        _ => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
    }
    out.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    match answer {
        Answer::Drop(n) | Answer::DropNoLength(n) | Answer::IgnoreRange(n) => {
            out.write_all(&body[..n.min(body.len())]).ok()
        }
        Answer::Stall(n) => {
            out.write_all(&body[..n.min(body.len())]).ok()?;
            std::thread::sleep(Duration::from_secs(5));
            None
        }
        _ => out.write_all(body).ok(),
    }
}

pub fn md5_of(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An entry of a catalogue for these bytes; its address leads nowhere: tests name a mirror.
pub fn archive(file: &str, bytes: &[u8], holds: Holds) -> Archive {
    Archive {
        file: file.into(),
        url: format!("http://127.0.0.1:9/nowhere/{file}"),
        md5: md5_of(bytes),
        bytes: bytes.len() as u64,
        holds,
    }
}

/// Patience for tests.
pub fn rules() -> Rules {
    Rules {
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(200),
        backoff: Duration::from_millis(1),
        attempts: 3,
    }
}

pub fn fetch_from(mirror: &str, set: &KnownSet, data_dir: &Path, progress: &dyn Progress) -> Result<Fetched> {
    let options = FetchOptions {
        data_dir: data_dir.to_path_buf(),
        mirror: Some(mirror.to_string()),
        keep_archives: false,
        rules: rules(),
        stop: &|| false,
    };
    fetch::fetch(set, &options, progress)
}

pub fn fetch_silently(mirror: &str, set: &KnownSet, data_dir: &Path) -> Result<Fetched> {
    fetch_from(mirror, set, data_dir, &Silent)
}

/// The text of an error of the kind of a download that went wrong.
#[track_caller]
pub fn failure(result: Result<Fetched>, needles: &[&str]) -> String {
    let text = match result {
        Err(error @ (Error::Failed(_) | Error::Input { .. })) => error.to_string(),
        other => panic!("expected a failure: {other:?}"),
    };
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is not in: {text}");
    }
    text
}
