//! The live page: what it serves, what it refuses, and that training does not notice it.

mod lab_support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ddim_engine::lab::watch::{Address, Running, Watch};
use lab_support::{Fake, engine};

fn serve(roots: Vec<PathBuf>, address: &str) -> (Running, u16) {
    let watch = Watch::bind(Address::parse("--watch", address).unwrap()).unwrap();
    let running = watch.serve(roots, None, Some("cpu (AVX2, 1 thread): because")).unwrap();
    let port = running.url().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
    (running, port)
}

/// Status, head and body of the answer to a request written out.
fn ask(port: u16, request: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end..].to_vec())
}

fn get(port: u16, path: &str) -> (u16, String, Vec<u8>) {
    ask(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"))
}

fn with_host(port: u16, host: &str) -> u16 {
    ask(port, &format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n")).0
}

#[test]
fn it_serves_the_page_its_data_and_its_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("run")).metrics(60, 20).samples(2);
    let (_running, port) = serve(vec![run.root.clone()], "0");
    let (status, head, body) = get(port, "/");
    assert_eq!(status, 200);
    let head = head.to_lowercase();
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(
        head.contains("content-security-policy: default-src 'none'") && head.contains("frame-ancestors 'none'"),
        "{head}"
    );
    assert!(head.contains("x-content-type-options: nosniff") && !head.contains("access-control"), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("\"live\":true"));

    let (status, head, body) = get(port, "/data.json?x=1");
    assert_eq!(status, 200);
    let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(page["runs"][0]["steps"], 60);
    assert_eq!(page["runs"][0]["samples"]["frames"][1]["src"], "samples/0/2.png");
    let tag = head.lines().find_map(|l| l.strip_prefix("ETag: ")).expect("a tag").to_string();
    let again =
        format!("GET /data.json HTTP/1.1\r\nHost: 127.0.0.1\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n");
    assert_eq!(ask(port, &again).0, 304);
    Fake::new(&run.root).metrics(80, 20);
    let (status, _, body) = ask(port, &again);
    assert_eq!(status, 200, "the run has gone on");
    let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(page["runs"][0]["steps"], 80);

    let (status, head, body) = get(port, "/samples/0/2.png");
    assert_eq!((status, head.contains("image/png")), (200, true));
    assert_eq!(body, fs::read(run.root.join("samples/epoch-0002.png")).unwrap());

    let (status, head, body) = ask(port, "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!((status, body.len()), (200, 0), "{head}");
}

#[test]
fn it_serves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("run")).metrics(20, 20).samples(1);
    fs::write(dir.path().join("secret.png"), "secret").unwrap();
    let (_running, port) = serve(vec![run.root.clone()], "0");
    for path in [
        "/index.html",
        "/config.toml",
        "/../secret.png",
        "/samples/0/../../secret.png",
        "/samples/0/..%2f..%2fsecret.png",
        "/samples/0/2.png",
        "/samples/1/1.png",
        "/samples/0/epoch-0001.png",
        "/samples/",
        "//etc/passwd",
        "/data.json/",
        "/samples/0/18446744073709551616.png",
    ] {
        let (status, _, body) = get(port, path);
        assert_eq!(status, 404, "{path}");
        assert!(!body.windows(6).any(|w| w == b"secret"), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let request =
            format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let (status, head, _) = ask(port, &request);
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("Allow: GET, HEAD"), "{head}");
    }
}

#[test]
fn names_from_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("run")).metrics(20, 20);
    let (_running, port) = serve(vec![run.root.clone()], "0");
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9999", "[::1]", "[::1]:8600"] {
        assert_eq!(with_host(port, &format!("Host: {host}\r\n")), 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:8600",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.0.7",
        "[::1]x",
        "[::1",
        "",
    ] {
        assert_eq!(with_host(port, &format!("Host: {host}\r\n")), 403, "{host}");
    }
    assert_eq!(with_host(port, ""), 403, "no name at all");
    assert_eq!(with_host(port, "Host: localhost\r\nHost: evil.example\r\n"), 403, "two names");
}

#[test]
fn an_open_address_is_warned_of() {
    let bind = |text| Watch::bind(Address::parse("--watch", text).unwrap()).unwrap();
    assert_eq!(bind("0").warning(), None);
    assert_eq!(bind("localhost:0").warning(), None);
    let warning = bind("0.0.0.0:0").warning().unwrap();
    assert!(
        warning.starts_with("warning: everyone who reaches 0.0.0.0:") && warning.contains("no password"),
        "{warning}"
    );
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("run")).metrics(20, 20);
    let (_running, port) = serve(vec![run.root.clone()], "0.0.0.0:0");
    assert_eq!(with_host(port, "Host: 192.168.0.7\r\n"), 200, "an address in digits");
    assert_eq!(with_host(port, "Host: evil.example\r\n"), 403);
}

#[test]
fn a_run_that_is_about_to_be_is_shown_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let (_running, port) = serve(vec![dir.path().join("soon")], "0");
    let page: serde_json::Value = serde_json::from_slice(&get(port, "/data.json").2).unwrap();
    assert_eq!(page["runs"][0]["status"], "starting");
    assert_eq!(page["runs"][0]["device"], "cpu (AVX2, 1 thread)");
    assert_eq!(get(port, "/").0, 200);
    assert_eq!(get(port, "/samples/0/1.png").0, 404);
    Fake::new(&dir.path().join("soon"));
    let page: serde_json::Value = serde_json::from_slice(&get(port, "/data.json").2).unwrap();
    assert_eq!((&page["runs"][0]["status"], &page["runs"][0]["steps"]), (&"stopped".into(), &0.into()));
}

#[test]
fn a_reader_who_stalls_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("run")).metrics(20, 20).samples(1);
    // More than the system keeps for a reader.
    let grid = run.root.join("samples/epoch-0001.png");
    fs::OpenOptions::new().write(true).open(&grid).unwrap().set_len(32 << 20).unwrap();
    let (running, port) = serve(vec![run.root.clone()], "0");
    let stalled: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /samples/0/1.png HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut first = [0; 64];
            stream.read_exact(&mut first).unwrap();
            assert!(first.starts_with(b"HTTP/1.1 200"));
            stream
        })
        .collect();
    assert_eq!(get(port, "/").0, 200);
    let began = std::time::Instant::now();
    running.finish();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(stalled);
}

const TINY: &[&str] = &[
    "--data",
    "debug",
    "--steps",
    "30",
    "--set",
    "image_size=8",
    "--set",
    "widths=4,6",
    "--set",
    "embedding_dim=4",
    "--set",
    "batch_size=4",
    "--set",
    "sample_count=4",
    "--set",
    "sample_steps=3",
    "--set",
    "repeat=20",
    "--set",
    "valid_fraction=0.5",
];

#[test]
fn a_port_in_use_ends_it_before_training() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut args = vec!["train", "--run-dir", run.to_str().unwrap(), "--watch", &port];
    args.extend(TINY);
    let said = engine(&args);
    assert_eq!(said.code, 2, "{said:?}");
    for needle in ["error: --watch: ", &format!("port {port} of 127.0.0.1 is in use"), "--watch 0"] {
        assert!(said.err.contains(needle), "{needle}: {said:?}");
    }
    assert!(!run.exists(), "nothing was made");
    let fake = Fake::new(&dir.path().join("fake")).metrics(20, 20);
    engine(&["report", fake.text(), "--serve", &port]).fails(2, &["--serve", "is in use"]);
    engine(&["report", "--serve", fake.text()]).fails(2, &[]);
}

/// The address that a program prints on its standard error.
fn address(child: &mut Child) -> (u16, BufReader<std::process::ChildStderr>) {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended without an address");
        if let Some((_, rest)) = line.split_once("http://127.0.0.1:") {
            return (rest.split('/').next().unwrap().parse().unwrap(), lines);
        }
    }
}

#[test]
fn training_is_the_same_with_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (plain, watched) = (place("plain"), place("watched"));
    let mut args = vec!["train", "--run-dir", &plain];
    args.extend(TINY);
    assert_eq!(engine(&args).code, 0);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ddim-engine"))
        .args(["train", "--run-dir", &watched, "--watch", "0"])
        .args(TINY)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (port, mut rest) = address(&mut child);
    // Asked while it trains or just after; it waits for those who look.
    let (status, _, body) = get(port, "/data.json");
    assert_eq!(status, 200);
    let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(page["runs"][0]["name"], "watched");
    for _ in 0..200 {
        let status = get(port, "/data.json");
        let page: serde_json::Value = serde_json::from_slice(&status.2).unwrap();
        if page["runs"][0]["status"] == "finished" {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = String::new();
    rest.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the server has ended with the training");
    for file in [
        "checkpoints/step-00000030/model.safetensors",
        "checkpoints/step-00000030/state.safetensors",
        "samples/epoch-0001.png",
        "config.toml",
    ] {
        let of = |run: &str| fs::read(format!("{run}/{file}")).unwrap();
        assert!(of(&plain) == of(&watched), "{file} differs");
    }
}

#[test]
fn a_folder_of_its_own_goes_when_nothing_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ddim-engine"))
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let output = run(&["train", "--watch", "0", "--data", "no-such-folder"]);
    assert_eq!(output.status.code(), Some(2));
    let left = fs::read_dir(dir.path().join("runs")).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(left, 0, "{}", String::from_utf8_lossy(&output.stderr));
}
