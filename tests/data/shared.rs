//! Real photographs, where `../shared/data` or the folder that DDIM_SHARED names has them; else the tests say that they are skipped.

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use crate::support::Place;
use ddim_engine::data::{self, Silent};

fn shared(file: &str) -> Option<PathBuf> {
    let dir = match std::env::var_os("DDIM_SHARED") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let path = dir.join(file);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

#[test]
fn all_flowers_load_once_and_map_quickly() {
    let Some(path) = shared("flowers64.tar") else { return };
    let place = Place::new();
    let spec = place.spec_of(&path, 64, 3);
    let started = Instant::now();
    let first = data::load(&spec, &Silent).expect("flowers");
    let decoding = started.elapsed();
    let started = Instant::now();
    let second = data::load(&spec, &Silent).expect("flowers");
    let mapping = started.elapsed();
    println!("8189 flowers: decoded and cached in {decoding:?}, mapped and checked in {mapping:?}");
    assert_eq!((first.len(), first.skipped()), (8189, &[][..]));
    assert_eq!(first.description(), "8189 pictures from flowers64.tar at 64x64");
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert!(second.is_mapped() && second.image(8188) == first.image(8188));
    // The README of the pictures: image_07307 and image_07309 are equal, from number 1.
    assert_eq!(first.image(7306), first.image(7308));
}

/// Untouched originals through our crop and resize, against the same pictures cropped and resized by someone else.
#[test]
fn originals_come_out_as_others_prepare_them() {
    let (Some(originals), Some(prepared)) = (shared("flowers-original-sample.tar"), shared("flowers64.tar")) else {
        return;
    };
    let stem = |path: &std::path::Path| path.file_stem().expect("a stem").to_owned();
    let mut wanted = std::collections::HashSet::new();
    let mut archive = tar::Archive::new(std::fs::File::open(&originals).expect("originals"));
    for entry in archive.entries().expect("entries") {
        let path = entry.expect("an entry").path().expect("a path").into_owned();
        if path.extension().is_some_and(|e| e == "jpg") {
            wanted.insert(stem(&path));
        }
    }
    let place = Place::new();
    let mut archive = tar::Archive::new(std::io::BufReader::new(std::fs::File::open(&prepared).expect("prepared")));
    for entry in archive.entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").into_owned();
        if path.extension().is_some_and(|e| e == "png") && wanted.contains(&stem(&path)) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("bytes");
            place.put(&path.file_name().expect("a name").to_string_lossy(), &bytes);
        }
    }
    let ours = data::load(&place.spec_of(&originals, 64, 3), &Silent).expect("originals");
    let theirs = data::load(&place.spec(64, 3), &Silent).expect("prepared");
    assert_eq!((ours.len(), theirs.len(), ours.skipped()), (200, 200, &[][..]));
    let mut worst = 0.0f64;
    for i in 0..200 {
        let sum: u64 = ours.image(i).iter().zip(theirs.image(i)).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        worst = worst.max(sum as f64 / ours.image_bytes() as f64);
    }
    println!("mean difference of the worst of 200 pictures: {worst:.3} of 255");
    assert!(worst < 2.0, "{worst}");
}
