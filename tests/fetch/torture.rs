//! Servers that drop, stall, lie about the length and corrupt: the file comes right, or the message says what happened.

use std::path::Path;
use std::sync::Mutex;

use ddim_engine::data::Progress;
use ddim_engine::data::fetch::{self, FetchOptions, KnownSet};
use ddim_engine::error::Error;

use crate::archives::{jpeg, one, tgz};
use crate::server::{Answer, Request, Server, failure, fetch_from, fetch_silently, md5_of, rules};
use Answer::*;

/// Two pictures and a good deal of noise that no compression shrinks: several packets on any connection.
fn bytes() -> Vec<u8> {
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(300_000)
    .collect();
    tgz(&[("jpg/a.jpg", jpeg(0)), ("readme", noise), ("jpg/b.jpg", jpeg(1))])
}

struct Case {
    set: KnownSet,
    place: tempfile::TempDir,
    server: Server,
}

impl Case {
    fn new(answers: &[Answer]) -> Case {
        let bytes = bytes();
        let (set, place) = one(&bytes, 2);
        let server = Server::new(vec![("one.tgz".into(), bytes)], answers.to_vec());
        Case { set, place, server }
    }

    fn data(&self) -> std::path::PathBuf {
        self.place.path().join("data")
    }

    fn part(&self) -> std::path::PathBuf {
        self.data().join("archives/flowers/one.tgz.part")
    }

    fn run(&self) -> ddim_engine::error::Result<fetch::Fetched> {
        fetch_silently(&self.server.url(), &self.set, &self.data())
    }

    /// Ends right; the requests that it took.
    #[track_caller]
    fn comes_right(&self) -> Vec<Request> {
        let fetched = self.run().unwrap();
        assert_eq!(fetched.path, self.data().join("flowers"));
        assert_eq!(std::fs::read(fetched.path.join("jpg/b.jpg")).unwrap(), jpeg(1));
        // Archives go once they are unpacked.
        assert!(!self.data().join("archives").exists());
        self.server.requests()
    }
}

fn ranges(requests: &[Request]) -> Vec<Option<&str>> {
    requests.iter().map(|request| request.header("range")).collect()
}

#[test]
fn a_good_server_is_asked_once() {
    for answer in [Right, NoLength] {
        let requests = Case::new(&[answer]).comes_right();
        assert_eq!(ranges(&requests), [None]);
        assert_eq!(requests[0].path, "/mirror/one.tgz");
        assert!(requests[0].header("user-agent").unwrap().starts_with("ddim-engine/"));
    }
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    for first in [Drop(100_000), DropNoLength(100_000), Stall(100_000)] {
        let requests = Case::new(&[first, Right]).comes_right();
        assert_eq!(ranges(&requests), [None, Some("bytes=100000-")]);
        assert_eq!(requests[1].header("if-range"), Some("\"one\""));
    }
    // Progress each time: more drops than attempts in a row are allowed.
    let drops = [Drop(50_000), Drop(50_000), Drop(50_000), Drop(50_000), Drop(50_000), NoLength];
    assert_eq!(Case::new(&drops).comes_right().len(), 6);
}

#[test]
fn busy_servers_are_asked_again() {
    let requests = Case::new(&[Status(503), Status(500), Right]).comes_right();
    assert_eq!(requests.len(), 3);
    let case = Case::new(&[Status(500)]);
    failure(case.run(), &["the server answered 500", "gave up after 3 attempts", "--mirror", "one.tgz"]);
    assert_eq!(case.server.requests().len(), 3);
}

#[test]
fn refusals_are_final() {
    for (status, means) in
        [(404, "there is no such file"), (403, "does not give the file to everybody"), (451, "answered 451")]
    {
        let case = Case::new(&[Status(status)]);
        failure(case.run(), &[&format!("the server answered {status}"), means, "--mirror"]);
        assert_eq!(case.server.requests().len(), 1);
    }
}

#[test]
fn redirects_are_followed_and_circles_are_not() {
    let requests = Case::new(&[Redirect("/elsewhere"), Right]).comes_right();
    assert_eq!(requests[1].path, "/elsewhere/one.tgz");
    let requests = Case::new(&[Redirect("/elsewhere"), Drop(70_000), Redirect("/elsewhere"), Right]).comes_right();
    assert_eq!(ranges(&requests), [None, None, Some("bytes=70000-"), Some("bytes=70000-")]);
    failure(Case::new(&[Redirect("/round")]).run(), &["one.tgz"]);
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let whole = bytes().len();
    let requests = Case::new(&[Drop(100_000), IgnoreRange(whole)]).comes_right();
    assert_eq!(ranges(&requests), [None, Some("bytes=100000-")]);
    // One that also breaks off each time gains nothing and is given up.
    let case = Case::new(&[IgnoreRange(100_000)]);
    failure(case.run(), &["gave up after 3 attempts", "the same command goes on from there"]);
}

#[test]
fn lengths_that_lie() {
    let whole = bytes().len();
    for (answer, said) in [(Length(1000), whole + 1000), (Length(-1000), whole - 1000)] {
        let case = Case::new(&[answer]);
        failure(case.run(), &[&format!("offers {said} bytes"), &format!("expected {whole} bytes"), "another file"]);
        assert_eq!(case.server.requests().len(), 1);
    }
    failure(Case::new(&[Surplus(5)]).run(), &["sends more than that", &format!("expected {whole} bytes")]);
    failure(
        Case::new(&[DropNoLength(10)]).run(),
        &[&format!("ended after 30 of {whole} bytes"), "gave up after 3 attempts"],
    );
}

#[test]
fn wrong_bytes_are_found_and_removed() {
    let case = Case::new(&[Corrupt]);
    let mut wrong = bytes();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    let said =
        failure(case.run(), &["found MD5", &md5_of(&wrong), "expected", &md5_of(&bytes()), "removed", "--mirror"]);
    assert!(!case.part().exists() && !case.data().join("archives/flowers/one.tgz").exists(), "{said}");
    assert!(!case.data().join("flowers").exists());
}

#[test]
fn another_version_is_not_mixed_with_the_first() {
    // The server honours If-Range: it sends the whole new file, which is not the one wanted.
    let case = Case::new(&[Drop(100_000), NewVersion, NewVersion]);
    failure(case.run(), &["found MD5"]);
    // A corrupted first piece spoils what comes after; it is fetched once more from the beginning.
    let case = Case::new(&[Right]);
    std::fs::create_dir_all(case.part().parent().unwrap()).unwrap();
    std::fs::write(case.part(), vec![1; 90_000]).unwrap();
    assert_eq!(ranges(&case.comes_right()), [Some("bytes=90000-"), None]);
    // More than the whole is of no use at all.
    let case = Case::new(&[Right]);
    std::fs::create_dir_all(case.part().parent().unwrap()).unwrap();
    std::fs::write(case.part(), vec![1; 400_000]).unwrap();
    assert_eq!(ranges(&case.comes_right()), [None]);
}

#[test]
fn a_piece_that_was_not_asked_for_is_not_used() {
    let requests = Case::new(&[Drop(100_000), WrongPiece, Right]).comes_right();
    assert_eq!(ranges(&requests), [None, Some("bytes=100000-"), None]);
}

#[test]
fn nobody_there() {
    let (set, place) = one(&bytes(), 2);
    // Bound and let go: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    failure(fetch_silently(&url, &set, &place.path().join("data")), &["gave up after 3 attempts", "--mirror URL"]);
    let error = fetch_silently("ftp://somewhere", &set, &place.path().join("data")).unwrap_err();
    assert!(
        matches!(&error, Error::Usage(text) if text.contains("--mirror ftp://somewhere: expected http")),
        "{error}"
    );
}

/// Stops at the first word of progress; what came is kept, and the next call goes on.
#[test]
fn an_interrupted_download_goes_on() {
    struct Raises<'a>(&'a Mutex<bool>);
    impl Progress for Raises<'_> {
        fn start(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, _: u64) {
            *self.0.lock().unwrap() = true;
        }
        fn note(&self, _: &str) {}
        fn finish(&self) {}
    }
    let case = Case::new(&[Right]);
    let raised = Mutex::new(false);
    let options = FetchOptions {
        data_dir: case.data(),
        mirror: Some(case.server.url()),
        keep_archives: true,
        rules: rules(),
        stop: &|| *raised.lock().unwrap(),
    };
    let error = fetch::fetch(&case.set, &options, &Raises(&raised)).unwrap_err();
    assert!(matches!(&error, Error::Interrupted(text) if text.contains("the same command goes on")), "{error}");
    let kept = std::fs::metadata(case.part()).unwrap().len();
    assert!(kept > 0 && kept < bytes().len() as u64);
    *raised.lock().unwrap() = false;
    fetch::fetch(&case.set, &options, &ddim_engine::data::Silent).unwrap();
    assert_eq!(ranges(&case.server.requests())[1], Some(format!("bytes={kept}-").as_str()));
    assert_eq!(std::fs::read(case.data().join("archives/flowers/one.tgz")).unwrap(), bytes());
}

#[test]
fn two_processes_do_not_meet() {
    let case = Case::new(&[Right]);
    std::fs::create_dir_all(case.data()).unwrap();
    let held = std::fs::File::create(case.data().join(".fetching-flowers")).unwrap();
    held.try_lock().unwrap();
    failure(case.run(), &["another process is fetching flowers"]);
    drop(held);
    case.comes_right();
}

#[test]
fn archives_that_are_there_are_used_if_they_are_right() {
    let put = |bytes: &[u8], data: &Path| {
        std::fs::create_dir_all(data.join("archives/flowers")).unwrap();
        std::fs::write(data.join("archives/flowers/one.tgz"), bytes).unwrap();
    };
    let case = Case::new(&[Right]);
    put(&bytes(), &case.data());
    assert!(case.comes_right().is_empty());
    let case = Case::new(&[Right]);
    put(b"something else", &case.data());
    assert_eq!(case.comes_right().len(), 1);

    // What is in the way of the set is left alone.
    let case = Case::new(&[Right]);
    std::fs::create_dir_all(case.data().join("flowers")).unwrap();
    failure(
        fetch_from(&case.server.url(), &case.set, &case.data(), &ddim_engine::data::Silent),
        &["is in the way", "Move it away"],
    );
    assert!(case.server.requests().is_empty());
}
