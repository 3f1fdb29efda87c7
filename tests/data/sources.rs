//! Folders, archives, known sets: order, what is skipped, and every kind of bad input.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::support::{Place, Recorder, grey_png, input_error, rgb_png, tar};
use ddim_engine::data::{self, DataSpec, Silent};
use ddim_engine::error::Error;

fn grey(v: u8) -> Vec<u8> {
    grey_png(8, 8, &[v; 64])
}

/// First bytes of all pictures.
fn firsts(ds: &data::Dataset) -> Vec<u8> {
    (0..ds.len()).map(|i| ds.image(i)[0]).collect()
}

#[test]
fn a_folder_is_read_recursively_in_order_of_names() {
    let place = Place::new();
    place.put("b.png", grey(2));
    place.put("a/z.PNG", grey(1));
    place.put("c/d/e.png", grey(4));
    place.put("c.png", grey(3));
    place.put("notes.txt", "not a picture");
    place.put(".hidden.png", "not a picture");
    place.put("c/d/._e.png", "what macOS leaves");
    let recorder = Recorder::default();
    let ds = data::load(&place.spec(8, 1), &recorder).expect("a dataset");
    assert_eq!(firsts(&ds), [1, 2, 3, 4]); // "a/z.PNG" < "b.png" < "c.png" < "c/d/e.png"
    assert_eq!((ds.len(), ds.is_empty(), ds.image_size(), ds.channels()), (4, false, 8, 1));
    assert_eq!(ds.description(), "4 pictures from pictures at 8x8");
    assert_eq!(ds.fingerprint().len(), 64);
    assert_eq!(ds.skipped(), []);
    assert_eq!(*recorder.started.lock().expect("started"), [("decoding pictures to 8x8".to_string(), Some(4))]);
    assert_eq!((recorder.advanced.load(Ordering::Relaxed), recorder.finished.load(Ordering::Relaxed)), (4, 1));
}

#[test]
fn an_archive_gives_the_same_as_its_folder() {
    let place = Place::new();
    let long = format!("{}/long.png", "deep".repeat(40)); // beyond the 100 bytes of a plain header
    let members: Vec<(&str, Vec<u8>)> = vec![
        ("c.png", grey(3)),
        ("a/x.png", grey(1)),
        ("readme.txt", b"hello".to_vec()),
        (&long, grey(4)),
        ("b.png", grey(2)),
    ];
    for (name, bytes) in &members {
        place.put(name, bytes);
    }
    let borrowed: Vec<(&str, &[u8])> = members.iter().map(|(n, b)| (*n, &b[..])).collect();
    let path = place.root().join("all.tar");
    std::fs::write(&path, tar(&borrowed)).expect("an archive");
    let recorder = Recorder::default();
    let from_tar = data::load(&place.spec_of(&path, 8, 3), &recorder).expect("from the archive");
    let from_folder = data::load(&place.spec(8, 3), &Silent).expect("from the folder");
    assert_eq!(firsts(&from_tar), [1, 2, 3, 4]);
    assert_eq!(firsts(&from_folder), firsts(&from_tar));
    assert_eq!(from_tar.fingerprint(), from_folder.fingerprint());
    assert_eq!(from_tar.description(), "4 pictures from all.tar at 8x8");
    assert!(!recorder.notes().iter().any(|n| n.contains("cut short")), "{:?}", recorder.notes());
}

#[test]
fn a_member_appended_again_replaces_the_first() {
    let place = Place::new();
    let path = place.root().join("twice.tar");
    std::fs::write(&path, tar(&[("a.png", &grey(1)), ("b.png", &grey(2)), ("a.png", &grey(9))])).expect("an archive");
    assert_eq!(firsts(&data::load(&place.spec_of(&path, 8, 1), &Silent).expect("a dataset")), [9, 2]);
}

#[test]
fn pictures_of_any_size_come_out_as_one() {
    let place = Place::new();
    for (i, (w, h)) in [(8u32, 8u32), (31, 7), (5, 40), (100, 100), (1, 1)].into_iter().enumerate() {
        place.put(&format!("{i}.png"), grey_png(w, h, &vec![50 + i as u8; (w * h) as usize]));
    }
    let recorder = Recorder::default();
    let ds = data::load(&place.spec(8, 1), &recorder).expect("a dataset");
    for i in 0..5 {
        assert_eq!(ds.image(i), [50 + i as u8; 64]);
    }
    assert!(
        recorder.notes().iter().any(|n| n == "3 of 5 pictures are smaller than 8 pixels and were enlarged"),
        "{:?}",
        recorder.notes()
    );
}

#[test]
fn one_unreadable_picture_in_a_hundred_is_skipped_and_named() {
    let place = Place::new();
    place.put_many(150);
    place.put("good-0500.png", "a text file that calls itself a picture");
    let recorder = Recorder::default();
    let ds = data::load(&place.spec(8, 1), &recorder).expect("a dataset");
    assert_eq!(ds.len(), 150);
    assert_eq!(ds.skipped().len(), 1);
    assert_eq!(ds.skipped()[0].name, "good-0500.png");
    assert!(ds.skipped()[0].reason.contains("not a JPEG, PNG or GIF"));
    // The gap is closed: what sorts after it moved up.
    assert_eq!(firsts(&ds), (0..150).collect::<Vec<u8>>());
    let notes = recorder.notes();
    assert!(
        notes.iter().any(|n| n.starts_with("1 of 151 pictures cannot be read and are left out: good-0500.png (")),
        "{notes:?}"
    );
}

#[test]
fn too_many_unreadable_pictures_are_an_error_that_names_some() {
    let place = Place::new();
    place.put_many(150);
    for i in 0..5 {
        place.put(&format!("bad-{i}.jpg"), "nonsense");
    }
    let said = input_error(data::load(&place.spec(8, 1), &Silent));
    assert!(said.contains("5 of 155 pictures cannot be read, more than 1 in 100: bad-0.jpg (not a JPEG"), "{said}");
    assert!(said.contains("bad-2.jpg") && said.contains("and 2 more") && !said.contains("bad-3.jpg"), "{said}");
}

#[test]
fn a_text_file_alone_is_an_error() {
    let place = Place::new();
    place.put("only.png", "text");
    let said = input_error(data::load(&place.spec(8, 3), &Silent));
    assert!(said.contains("only.png") && said.contains("1 of 1"), "{said}");
}

#[test]
fn one_picture_is_too_few() {
    let place = Place::new();
    place.put("only.png", grey(1));
    assert!(
        input_error(data::load(&place.spec(8, 3), &Silent)).contains("1 picture that can be read; expected at least 2")
    );
}

#[test]
fn empty_folder() {
    let place = Place::new();
    assert!(input_error(data::load(&place.spec(8, 3), &Silent)).contains("the folder is empty"));
    place.put("a.txt", "x");
    place.put("b.csv", "x");
    assert!(
        input_error(data::load(&place.spec(8, 3), &Silent)).contains("none of the 2 files in the folder is a picture")
    );
}

#[test]
fn missing_path() {
    let place = Place::new();
    let gone = place.root().join("gone");
    let said = input_error(data::load(&place.spec_of(&gone, 8, 3), &Silent));
    assert!(said.contains("gone: there is no such file or folder; expected procedural, flowers"), "{said}");
    let said = input_error(data::load(&place.spec_of(Path::new("flower"), 8, 3), &Silent));
    assert!(said.ends_with("Did you mean `flowers`?"), "{said}");
}

#[test]
fn bad_archives() {
    let place = Place::new();
    let whole = tar(&[("a.png", &grey(1)), ("b.png", &grey(2))]);
    let say = |bytes: &[u8]| {
        let path = place.root().join("x.tar");
        std::fs::write(&path, bytes).expect("an archive");
        let said = input_error(data::load(&place.spec_of(&path, 8, 3), &Silent));
        assert!(said.contains("x.tar"), "{said}");
        said
    };
    assert!(say(b"").contains("the file is empty (0 bytes)"));
    assert!(say(&[b'x'; 5000]).contains("not a tar archive"));
    assert!(say(b"short").contains("not a tar archive"));
    assert!(say(&[0; 10240]).contains("no picture among the 0 files"));
    assert!(say(&tar(&[("a.txt", b"x")])).contains("no picture among the 1 files"));
    assert!(say(&[&[0x1f, 0x8b, 8, 0][..], &[0; 100]].concat()).contains("a gzip file; unpack it first"));
    assert!(say(&grey(1)).contains("a single picture; give the folder"));
    // Within the second picture, and within its header.
    let second = 512 + grey(1).len().next_multiple_of(512);
    let said = say(&whole[..second + 512 + 10]);
    assert!(
        said.contains("the archive is cut short: `b.png` needs bytes")
            && said.contains(&format!("ends at {}", second + 522)),
        "{said}"
    );
    let said = say(&whole[..second + 100]);
    assert!(said.contains("damaged or cut short after `a.png`"), "{said}");
    // A damaged header between two whole members.
    let mut damaged = whole.clone();
    damaged[second + 5] ^= 0x40;
    assert!(say(&damaged).contains("damaged or cut short after `a.png`"));
}

#[test]
fn an_archive_without_an_end_mark_is_noted() {
    let place = Place::new();
    let whole = tar(&[("a.png", &grey(1)), ("b.png", &grey(2))]);
    let path = place.root().join("cut.tar");
    std::fs::write(&path, &whole[..whole.len() - 1024]).expect("an archive");
    let recorder = Recorder::default();
    assert_eq!(data::load(&place.spec_of(&path, 8, 3), &recorder).expect("a dataset").len(), 2);
    assert!(recorder.notes().iter().any(|n| n.contains("no end mark after `b.png`")), "{:?}", recorder.notes());
}

#[cfg(unix)]
#[test]
fn links_in_circles_and_links_to_nowhere() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    place.put_many(2);
    place.put("sub/c.png", grey(3));
    symlink(place.pictures(), place.pictures().join("sub/back")).expect("a link");
    let recorder = Recorder::default();
    let ds = data::load(&place.spec(8, 1), &recorder).expect("a dataset");
    assert_eq!(ds.len(), 3);
    assert!(recorder.notes().iter().any(|n| n.contains("a link back to a folder above it")), "{:?}", recorder.notes());
    symlink("nowhere.png", place.pictures().join("dangling.png")).expect("a link");
    let said = input_error(data::load(&place.spec(8, 1), &Silent));
    assert!(said.contains("dangling.png (No such file"), "{said}");
}

#[test]
fn sizes_and_channels_that_cannot_be() {
    let place = Place::new();
    place.put_many(2);
    for (size, channels, want) in
        [(0, 3, "image_size is 0"), (5000, 3, "image_size is 5000"), (8, 2, "channels is 2; expected 1 (grey)")]
    {
        let error = data::load(&place.spec(size, channels), &Silent).expect_err("refused");
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(want), "{error}");
    }
    // More than any memory: an error, not an abort.
    let spec = DataSpec { procedural_count: 1 << 24, ..DataSpec::new("procedural", 4096) };
    assert!(input_error(data::load(&DataSpec { cache: false, ..spec }, &Silent)).contains("do not fit into memory"));
}

#[test]
fn known_sets_are_found_in_the_data_directory() {
    for (source, files) in
        [("flowers", "jpg"), ("flowers", "flowers"), ("pets", "oxford-iiit-pet/images"), ("pets", "images")]
    {
        let place = Place::new();
        for i in 0..3 {
            let path = place.root().join(files).join(format!("{i}.png"));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            std::fs::write(path, grey(i)).expect("a picture");
        }
        let ds = data::load(&place.spec_of(Path::new(source), 8, 1), &Silent).expect(files);
        assert_eq!(firsts(&ds), [0, 1, 2]);
    }
    // The small archive serves small pictures, the originals large ones.
    let place = Place::new();
    std::fs::create_dir(place.root().join("jpg")).expect("jpg/");
    for i in 0..3 {
        std::fs::write(place.root().join(format!("jpg/{i}.png")), rgb_png(8, 8, &[100; 192])).expect("a picture");
    }
    std::fs::write(place.root().join("flowers64.tar"), tar(&[("a.png", &grey(1)), ("b.png", &grey(2))]))
        .expect("an archive");
    let len = |size| data::load(&place.spec_of(Path::new("flowers"), size, 3), &Silent).expect("flowers").len();
    assert_eq!((len(64), len(65)), (2, 3));
}

#[test]
fn a_known_set_that_is_missing_says_where_it_was_looked_for() {
    let place = Place::new();
    let said = input_error(data::load(&place.spec_of(Path::new("flowers"), 64, 3), &Silent));
    for want in [
        &*place.root().to_string_lossy(),
        "(from --data-dir)",
        "flowers.tar, flowers, flowers64.tar",
        "jpg",
        "`ddim-engine data fetch flowers` brings them",
        "--data procedural, which needs nothing",
    ] {
        assert!(said.contains(want), "{want}: {said}");
    }
    std::fs::write(place.root().join("images.tar.gz"), b"packed").expect("a file");
    let said = input_error(data::load(&place.spec_of(Path::new("pets"), 64, 3), &Silent));
    assert!(said.contains("images.tar.gz is here, but packed: unpack it"), "{said}");
    let gone = DataSpec { data_dir: Some(place.root().join("gone")), ..DataSpec::new("pets", 64) };
    assert!(input_error(data::load(&gone, &Silent)).contains("which does not exist"));
}
