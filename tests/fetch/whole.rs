//! From the catalogue to pictures with classes: fetch, list, verify, load.

use std::fs;
use std::path::Path;
use std::process::Command;

use ddim_engine::data::fetch::{self, Fetched};
use ddim_engine::data::{self, DataSpec, Dataset, Labels, Silent};

use crate::archives::{FLOWERS, flowers, jpeg, pets};
use crate::server::{Answer, Server, fetch_silently};

fn program(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_ddim-engine")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn load(name: &str, dir: &Path) -> Dataset {
    data::load(&DataSpec { data_dir: Some(dir.to_path_buf()), ..DataSpec::new(name, 8) }, &Silent).unwrap()
}

#[test]
fn flowers_from_the_server_to_the_network() {
    let (set, files) = flowers();
    let server = Server::new(files, vec![Answer::Right, Answer::Right, Answer::Drop(500), Answer::Right]);
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let path = dir.join("flowers");
    assert_eq!(fetch_silently(&server.url(), &set, dir).unwrap(), Fetched { path: path.clone(), was_here: false });
    assert_eq!(server.requests().len(), 4);
    assert_eq!(fetch_silently(&server.url(), &set, dir).unwrap(), Fetched { path: path.clone(), was_here: true });
    assert_eq!(server.requests().len(), 4);

    let labels = fs::read_to_string(path.join("labels.csv")).unwrap();
    assert_eq!(labels.lines().next(), Some("file,label,class,split"));
    assert_eq!(labels.lines().nth(1), Some("jpg/image_00001.jpg,passion flower,77,train"));
    assert_eq!(labels.lines().nth(4), Some("jpg/image_00004.jpg,blackberry lily,102,valid"));
    // All splits are pooled: there is none to train by.
    assert!(!path.join("split.csv").exists());

    let dataset = load("flowers", dir);
    assert_eq!((dataset.len(), dataset.names()[2].as_str()), (FLOWERS, "jpg/image_00003.jpg"));
    let labels = Labels::load(&path.join("labels.csv"), &dataset).unwrap();
    assert_eq!(labels.classes(), ["blackberry lily", "passion flower", "pink primrose"]);
    assert_eq!(labels.of(), [1, 1, 2, 0, 2, 1, 0, 2]);

    let (code, out, err) = program(&["data", "list", "--data-dir", dir.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&format!("flowers        8,189    345 MB  {}\n", path.display())), "{out}");
    assert!(out.contains("pets           7,390    811 MB  not here: ddim-engine data fetch pets\n"), "{out}");

    let verify = || program(&["data", "verify", "flowers", "--data-dir", dir.to_str().unwrap(), "--quiet"]);
    let (code, out, err) = verify();
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("flowers: 8 pictures, all checksums right"), "{out}");
    fs::write(path.join("jpg/image_00002.jpg"), jpeg(99)).unwrap();
    fs::remove_file(path.join("jpg/image_00003.jpg")).unwrap();
    fs::write(path.join("jpg/new.jpg"), jpeg(98)).unwrap();
    let (code, _, err) = verify();
    assert_eq!(code, 1);
    for needle in [
        "1 missing (jpg/image_00003.jpg)",
        "1 changed (jpg/image_00002.jpg)",
        "1 not of the set (jpg/new.jpg)",
        "data fetch flowers",
    ] {
        assert!(err.contains(needle), "{needle}: {err}");
    }
}

#[test]
fn pets_bring_their_split() {
    let (set, files) = pets();
    let place = tempfile::tempdir().unwrap();
    let mirror = place.path().join("mirror");
    fs::create_dir(&mirror).unwrap();
    for (name, bytes) in &files {
        fs::write(mirror.join(name), bytes).unwrap();
    }
    let dir = place.path().join("data");
    // A mirror may be a folder; it keeps its files.
    fetch_silently(&format!("file://{}", mirror.display()), &set, &dir).unwrap();
    assert_eq!(fs::read(mirror.join("images.tar.gz")).unwrap(), files[1].1);
    let labels = fs::read_to_string(dir.join("pets/labels.csv")).unwrap();
    assert_eq!(
        labels,
        "file,label,species,split\n\
         images/Abyssinian_1.jpg,Abyssinian,cat,train\n\
         images/Abyssinian_2.jpg,Abyssinian,cat,valid\n\
         images/Egyptian_Mau_139.jpg,Egyptian Mau,cat,\n\
         images/american_bulldog_10.jpg,american bulldog,dog,train\n\
         images/american_bulldog_11.jpg,american bulldog,dog,valid\n\
         images/pug_3.jpg,pug,dog,train\n"
    );
    let split = fs::read_to_string(dir.join("pets/split.csv")).unwrap();
    assert_eq!(split.lines().count(), 6);
    assert!(split.contains("images/american_bulldog_11.jpg,valid\n") && !split.contains("Egyptian"), "{split}");
    assert_eq!(load("pets", &dir).len(), 6);
}

#[test]
fn the_command_line_refuses_by_name() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_str().unwrap();
    for (args, code, needles) in [
        (&["data", "fetch", "flower"][..], 2, &["`flower`", "did you mean `flowers`?", "flowers, pets"][..]),
        (&["data", "fetch", "debug"], 2, &["made by the program"]),
        (
            &["data", "fetch", "pets", "--mirror", dir, "--data-dir", dir],
            2,
            &["annotations.tar.gz", "no such file", "--mirror"],
        ),
        (&["data", "verify", "--data-dir", dir], 2, &["no known set", "data fetch flowers"]),
        (&["data", "verify", "pets", "--data-dir", dir], 2, &["there is no pets", "data fetch pets"]),
        (&["train", "--data", "flowers", "--data-dir", dir], 2, &["`ddim-engine data fetch flowers` brings them"]),
        (&["data"], 2, &["fetch", "list", "verify"]),
    ] {
        let (found, _, err) = program(args);
        assert_eq!(found, code, "{args:?}: {err}");
        assert!(needles.iter().all(|needle| err.contains(needle)), "{args:?}: {err}");
    }
    // A wrong file at a mirror is told, and stays.
    fs::write(place.path().join("annotations.tar.gz"), "no archive").unwrap();
    let (code, _, err) = program(&["data", "fetch", "pets", "--mirror", dir, "--data-dir", dir]);
    assert_eq!(code, 2);
    assert!(err.contains("found 10 bytes, expected 19173078"), "{err}");
    assert!(place.path().join("annotations.tar.gz").exists());
}

/// The addresses are only looked at: no test asks those hosts.
#[test]
fn the_catalogue_is_complete() {
    for set in fetch::known_sets() {
        assert_eq!(set.archives.iter().filter(|a| a.holds == fetch::Holds::Pictures).count(), 1);
        for archive in &set.archives {
            assert!(
                archive.url.starts_with("https://www.robots.ox.ac.uk/~vgg/data/")
                    && archive.url.ends_with(&archive.file)
            );
            assert!(archive.md5.len() == 32 && archive.md5.bytes().all(|c| c.is_ascii_hexdigit()) && archive.bytes > 0);
        }
    }
}
