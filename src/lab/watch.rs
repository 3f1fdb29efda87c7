//! The page of a run, live: a small server that reads the run's folder, never the trainer's memory, and changes nothing.
//!
//! It answers GET and HEAD for three things: `/` (the page), `/data.json` (what the page asks for again and again) and
//! `/samples/RUN/EPOCH.png`, two numbers that are looked up among the grids which the runs have; no other text of a request reaches the
//! file system. It listens on this machine alone unless an address is given, and answers only requests that name it by an
//! address that a page from elsewhere cannot take on (DNS rebinding).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tiny_http::{Header, Method, Request, Response, Server};

use crate::error::{Error, Result};
use crate::lab::record::RunRecord;
use crate::lab::report::{self, Page};
use crate::train::run_dir;

/// The port where none is given.
pub const DEFAULT_PORT: u16 = 8600;
/// Threads that answer: a slow reader or three do not keep the others waiting.
const THREADS: usize = 4;
/// The largest sample grid that is served.
const LARGEST: u64 = 64 << 20;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The option that said so, for messages.
    option: &'static str,
    /// As given; this machine alone where it is missing.
    host: Option<String>,
    /// 0: any that is free.
    port: u16,
}

impl Address {
    /// Reads `PORT`, `ADDR:PORT` or `ADDR`, which stands for its port [`DEFAULT_PORT`]; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// [`Error::Usage`], which names `option`: none of these.
    pub fn parse(option: &'static str, text: &str) -> Result<Self> {
        let refuse = || {
            let what =
                "expected a port (0 to 65535) or an address and a port, such as 8600, 0.0.0.0:8600 or [::1]:8600";
            Error::Usage(format!("{option} {text}: {what}; runs and other options go before it"))
        };
        if let Ok(port) = text.parse() {
            return Ok(Address { option, host: None, port });
        }
        let (host, port) = match text.rsplit_once(':') {
            // Within an IPv6 address a colon parts no port.
            Some((host, port)) if host.ends_with(']') || !host.contains(':') => {
                (host, port.parse().map_err(|_| refuse())?)
            }
            _ => (text, DEFAULT_PORT),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let named = bare == "localhost" || bare.parse::<IpAddr>().is_ok() || {
            // A host name; a word alone is more likely a slip.
            bare.contains('.') && bare.chars().all(is_name) && !bare.starts_with('.')
        };
        if !named {
            return Err(refuse());
        }
        Ok(Address { option, host: Some(bare.to_ascii_lowercase()), port })
    }
}

/// A place to serve from, taken: nobody else can take it now.
#[derive(Debug)]
pub struct Watch {
    listener: TcpListener,
    local: SocketAddr,
    host: Option<String>,
}

impl Watch {
    /// Takes the address.
    ///
    /// # Errors
    /// [`Error::Usage`]: the port is in use, or not for this user, or the address is not of this machine; with what to do.
    pub fn bind(address: Address) -> Result<Self> {
        let Address { option, host, port } = address;
        let shown = host.clone().unwrap_or_else(|| Ipv4Addr::LOCALHOST.to_string());
        let refuse = |why: &std::io::Error| {
            let what = match why.kind() {
                std::io::ErrorKind::AddrInUse => {
                    let other = port.checked_add(1).unwrap_or(DEFAULT_PORT);
                    format!(
                        "port {port} of {shown} is in use, perhaps by another run that is watched; \
                         give another, such as {option} {other}, or {option} 0 for any that is free"
                    )
                }
                std::io::ErrorKind::PermissionDenied => {
                    format!("port {port} of {shown} is not for this user; give one from 1024 up, such as {option} 8600")
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    format!(
                        "{shown} is not an address of this machine; 127.0.0.1 is for this machine alone, 0.0.0.0 for all"
                    )
                }
                _ => format!("cannot listen on {shown}, port {port}: {why}"),
            };
            Error::Usage(format!("{option}: {what}"))
        };
        let addresses = match &host {
            None => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
            Some(host) => (host.as_str(), port).to_socket_addrs().map_err(|why| refuse(&why))?.collect(),
        };
        let listener = TcpListener::bind(&addresses[..]).map_err(|why| refuse(&why))?;
        let local = listener.local_addr().map_err(|why| refuse(&why))?;
        Ok(Watch { listener, local, host })
    }

    /// What to say where others than this machine can look.
    pub fn warning(&self) -> Option<String> {
        let open = !self.local.ip().is_loopback();
        open.then(|| {
            format!(
                "warning: everyone who reaches {} can look at this run: there is no password and no encryption",
                self.local
            )
        })
    }

    /// Serves the page of these runs until the server is dropped; a folder may be one that a run is about to be made in.
    ///
    /// # Errors
    /// The system refuses threads.
    pub fn serve(self, roots: Vec<PathBuf>, title: Option<String>, device: Option<&str>) -> Result<Running> {
        let failed = |why: &dyn std::fmt::Display| Error::Failed(format!("the page cannot be served: {why}"));
        let server = Server::from_listener(self.listener, None).map_err(|why| failed(&why))?;
        let shown = match &self.host {
            Some(host) if host.contains(':') => format!("[{host}]"),
            Some(host) => host.clone(),
            None => Ipv4Addr::LOCALHOST.to_string(),
        };
        let url = format!("http://{shown}:{}/", self.local.port());
        let desk = Arc::new(Desk {
            server,
            roots,
            title,
            device: device.map(report::device_name),
            host: self.host,
            any_address: self.local.ip().is_unspecified(),
            closing: AtomicBool::new(false),
            kept: Mutex::new(None),
            asked: Mutex::new(None),
        });
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let desk = Arc::clone(&desk);
            let thread = thread::Builder::new().name("watch".into()).spawn(move || desk.work());
            threads.push(thread.map_err(|why| failed(&why))?);
        }
        Ok(Running { desk, threads, url })
    }
}

/// A page that is being served; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
    url: String,
}

impl Running {
    /// The page's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        for thread in std::mem::take(&mut self.threads) {
            thread.join().ok();
        }
    }

    /// Ends the server once those who look have seen the end of the run; after three seconds at most.
    pub fn finish(self) {
        let ended = Instant::now();
        let asked = || *self.desk.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Pages ask every two seconds; one that has not for longer is closed.
        let looked_at = asked().is_some_and(|at| at.elapsed() < Duration::from_secs(5));
        while looked_at && ended.elapsed() < Duration::from_secs(3) && asked().is_some_and(|at| at < ended) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.desk.closing.store(true, Ordering::SeqCst);
        for _ in &self.threads {
            self.desk.server.unblock();
        }
        let began = Instant::now();
        // A reader who stalls must not keep the program from ending; the thread that waits for it ends with the process.
        while self.threads.iter().any(|t| !t.is_finished()) && began.elapsed() < Duration::from_millis(500) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The last data, with the state of the files that they were made of.
#[derive(Clone)]
struct Kept {
    state: u64,
    page: Arc<Page>,
    json: Arc<String>,
}

/// What the threads share.
struct Desk {
    server: Server,
    roots: Vec<PathBuf>,
    title: Option<String>,
    device: Option<String>,
    host: Option<String>,
    any_address: bool,
    closing: AtomicBool,
    kept: Mutex<Option<Kept>>,
    /// When data was last asked for.
    asked: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("roots", &self.roots).finish_non_exhaustive()
    }
}

/// An answer: status, kind, headers of its own, body.
struct Answer {
    status: u16,
    kind: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn text(status: u16, text: impl Into<String>) -> Self {
        let body = format!("{}\n", text.into()).into_bytes();
        Answer { status, kind: "text/plain; charset=utf-8", headers: Vec::new(), body }
    }
}

impl Desk {
    fn work(&self) {
        while !self.closing.load(Ordering::SeqCst) {
            match self.server.recv() {
                Ok(request) => self.respond(request),
                Err(_) if self.closing.load(Ordering::SeqCst) => break,
                // Accepting failed (too many open files, say); trying at once again would only burn time.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn respond(&self, request: Request) {
        let answer = self.answer(&request);
        let mut headers = vec![
            ("Content-Type", answer.kind.to_string()),
            ("X-Content-Type-Options", "nosniff".into()),
            ("Cross-Origin-Resource-Policy", "same-origin".into()),
            ("Referrer-Policy", "no-referrer".into()),
            ("Content-Security-Policy", format!("{}; frame-ancestors 'none'", report::policy(true))),
        ];
        if !answer.headers.iter().any(|(name, _)| *name == "Cache-Control") {
            headers.push(("Cache-Control", "no-cache".into()));
        }
        headers.extend(answer.headers);
        let mut response = Response::from_data(answer.body).with_status_code(answer.status);
        for (name, value) in headers {
            if let Ok(header) = Header::from_bytes(name, value) {
                response.add_header(header);
            }
        }
        request.respond(response).ok(); // a reader who went away
    }

    fn answer(&self, request: &Request) -> Answer {
        if !self.knows_host(header(request, "Host")) {
            let how =
                "this page is served to those who ask for it by its address, such as http://127.0.0.1 and its port";
            return Answer::text(403, format!("{how}; a name has to be given to the program as NAME:PORT"));
        }
        if !matches!(request.method(), Method::Get | Method::Head) {
            let mut answer = Answer::text(405, "only GET and HEAD");
            answer.headers.push(("Allow", "GET, HEAD".into()));
            return answer;
        }
        let path = request.url().split(['?', '#']).next().unwrap_or_default();
        let result = match path {
            "/" => self.page(),
            "/data.json" => self.data(header(request, "If-None-Match")),
            path => match path.strip_prefix("/samples/").and_then(numbers) {
                Some((run, epoch)) => self.sample(run, epoch),
                None => Ok(Answer::text(404, "there is no such page; this one is at /")),
            },
        };
        // A file may be half a step from being whole; the next request finds it so.
        result.unwrap_or_else(|why| Answer::text(503, why.to_string()))
    }

    /// Whether a request is meant for this server, by a name that only its user can have given: an address in digits, `localhost`, or the
    /// name that the server was told. Ports are not compared: one may be forwarded from elsewhere.
    fn knows_host(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return false };
        let bare = match host.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((bare, port)) if port.is_empty() || port.starts_with(':') => bare,
                _ => return false,
            },
            None => host.split_once(':').map_or(host, |(bare, _)| bare),
        };
        let bare = bare.to_ascii_lowercase();
        if bare == "localhost" || self.host.as_ref() == Some(&bare) {
            return true;
        }
        // No name can be led astray to an address that a reader typed in digits.
        bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || self.any_address)
    }

    fn page(&self) -> Result<Answer> {
        let body = self.current()?.page.html()?.into_bytes();
        Ok(Answer { status: 200, kind: "text/html; charset=utf-8", headers: Vec::new(), body })
    }

    fn data(&self, known: Option<&str>) -> Result<Answer> {
        let began = Instant::now();
        let Kept { state, json, .. } = self.current()?;
        let tag = format!("\"{state:016x}\"");
        *self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(began);
        let known = known.is_some_and(|known| known == tag);
        let (status, body) = if known { (304, Vec::new()) } else { (200, json.as_bytes().to_vec()) };
        Ok(Answer { status, kind: "application/json", headers: vec![("ETag", tag)], body })
    }

    fn sample(&self, run: usize, epoch: u64) -> Result<Answer> {
        let missing = || Answer::text(404, "there is no such sample grid");
        let Some(root) = self.roots.get(run).filter(|root| root.join("config.toml").is_file()) else {
            return Ok(missing());
        };
        let samples = RunRecord::open(root)?.samples()?;
        let Some((_, path)) = samples.into_iter().find(|(number, _)| *number == epoch) else { return Ok(missing()) };
        let mut body = Vec::new();
        let file = std::fs::File::open(&path).map_err(Error::io(&path, "read the sample grid"))?;
        file.take(LARGEST).read_to_end(&mut body).map_err(Error::io(&path, "read the sample grid"))?;
        Ok(Answer { status: 200, kind: "image/png", headers: Vec::new(), body })
    }

    /// The data of the runs as they are now; made anew only where a file has changed.
    fn current(&self) -> Result<Kept> {
        let state = state_of(&self.roots);
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(kept) = kept.as_ref().filter(|kept| kept.state == state) {
            return Ok(kept.clone());
        }
        let page = Page::live(&self.roots, self.title.as_deref(), self.device.as_deref())?;
        let json = Arc::new(page.json()?);
        let fresh = Kept { state, page: Arc::new(page), json };
        *kept = Some(fresh.clone());
        Ok(fresh)
    }
}

/// A number that changes with the files of the runs.
fn state_of(roots: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for root in roots {
        run_dir::is_locked(root).hash(&mut hasher);
        for name in ["config.toml", "metrics.jsonl", "summary.json", crate::metrics::Evaluation::FILE, "samples"] {
            file_state(&root.join(name)).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn file_state(path: &Path) -> Option<(u64, Option<SystemTime>)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.modified().ok()))
}

/// `3/12.png` as 3 and 12.
fn numbers(path: &str) -> Option<(usize, u64)> {
    let (run, file) = path.split_once('/')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let epoch = file.strip_suffix(".png")?;
    (digits(run) && digits(epoch)).then_some(())?;
    Some((run.parse().ok()?, epoch.parse().ok()?))
}

fn header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    let mut found = request.headers().iter().filter(|header| header.field.equiv(name));
    let first = found.next()?;
    // Two of them are one too many to trust either.
    found.next().is_none().then(|| first.value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text| Address::parse("--watch", text).map(|a| (a.host, a.port)).map_err(|e| e.to_string());
        assert_eq!(parse("8600"), Ok((None, 8600)));
        assert_eq!(parse("0"), Ok((None, 0)));
        assert_eq!(parse("0.0.0.0:80"), Ok((Some("0.0.0.0".into()), 80)));
        assert_eq!(parse("[::1]:81"), Ok((Some("::1".into()), 81)));
        assert_eq!(parse("[::]"), Ok((Some("::".into()), DEFAULT_PORT)));
        assert_eq!(parse("::1"), Ok((Some("::1".into()), DEFAULT_PORT)));
        assert_eq!(parse("localhost"), Ok((Some("localhost".into()), DEFAULT_PORT)));
        assert_eq!(parse("Box.example:82"), Ok((Some("box.example".into()), 82)));
        for bad in
            ["", "70000", "-1", "runs/a", "here:there", ":80", "127.0.0.1:", "127.0.0.1:99999", "a b:1", "../x:1"]
        {
            let why = parse(bad).unwrap_err();
            assert!(why.starts_with(&format!("--watch {bad}: expected a port")), "{why}");
        }
    }

    #[test]
    fn paths_of_samples_are_two_numbers() {
        assert_eq!(numbers("0/12.png"), Some((0, 12)));
        for bad in
            ["", "0", "0/", "0/1", "0/1.jpg", "a/1.png", "0/../1.png", "+1/1.png", "0/%31.png", "0/1/2.png", "/1.png"]
        {
            assert_eq!(numbers(bad), None, "{bad}");
        }
        assert_eq!(numbers("0/99999999999999999999999.png"), None);
    }
}
