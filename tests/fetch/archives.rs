//! Small archives of the shape of the real ones, and such as nobody should unpack.

use std::io::Write;

use ddim_engine::data::fetch::{Holds, KnownSet, fetch};
use ddim_engine::data::{Progress, Silent};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use image::{Rgb, RgbImage};

use crate::server::{archive, failure, fetch_silently, rules};

pub const FLOWERS: usize = 8;

/// A picture of one colour with some noise, so that archives are not all zeros.
pub fn jpeg(i: usize) -> Vec<u8> {
    let picture = RgbImage::from_fn(24, 16, |x, y| Rgb([(i * 37) as u8, (x * 9) as u8, (y * 13 + 5 * (x % 3)) as u8]));
    let mut out = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 90).encode_image(&picture).unwrap();
    out
}

pub fn tgz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // `set_path` refuses what these tests are about.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// A MATLAB file of compressed arrays of bytes, as the official ones are.
pub fn mat(arrays: &[(&str, &[u8])]) -> Vec<u8> {
    fn element(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = kind.to_le_bytes().to_vec();
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
    let mut out = b"MATLAB 5.0 MAT-file".to_vec();
    out.resize(124, b' ');
    out.extend([0, 1, b'I', b'M']);
    for (name, values) in arrays {
        let mut matrix = element(6, &[9, 0, 0, 0, 0, 0, 0, 0]);
        matrix.extend(element(5, &[1u32.to_le_bytes(), (values.len() as u32).to_le_bytes()].concat()));
        matrix.extend(element(1, name.as_bytes()));
        matrix.extend(element(2, values));
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(&element(14, &matrix)).unwrap();
        let packed = zlib.finish().unwrap();
        out.extend(15u32.to_le_bytes());
        out.extend((packed.len() as u32).to_le_bytes());
        out.extend(packed);
    }
    out
}

/// The files of a small `flowers`, and its entry.
pub fn flowers() -> (KnownSet, Vec<(String, Vec<u8>)>) {
    let names: Vec<String> = (1..=FLOWERS).map(|i| format!("jpg/image_{i:05}.jpg")).collect();
    let members: Vec<(&str, Vec<u8>)> = names.iter().enumerate().map(|(i, name)| (name.as_str(), jpeg(i))).collect();
    let files = vec![
        ("imagelabels.mat".to_string(), mat(&[("labels", &[77, 77, 1, 102, 1, 77, 102, 1])])),
        ("setid.mat".to_string(), mat(&[("trnid", &[1, 3]), ("valid", &[2, 4]), ("tstid", &[5, 6, 7, 8])])),
        ("102flowers.tgz".to_string(), tgz(&members)),
    ];
    let holds = [Holds::FlowerLabels, Holds::FlowerSplits, Holds::Pictures];
    (set("flowers", FLOWERS, &files, &holds), files)
}

pub const PETS: [(&str, &str); 6] = [
    ("Abyssinian_1", "trainval"),
    ("Abyssinian_2", "test"),
    ("american_bulldog_10", "trainval"),
    ("american_bulldog_11", "test"),
    ("Egyptian_Mau_139", ""),
    ("pug_3", "trainval"),
];

/// The files of a small `pets`, and its entry: one picture is in no list, as in the real set.
pub fn pets() -> (KnownSet, Vec<(String, Vec<u8>)>) {
    let mut members: Vec<(String, Vec<u8>)> =
        PETS.iter().enumerate().map(|(i, (name, _))| (format!("images/{name}.jpg"), jpeg(i))).collect();
    members.push(("images/Abyssinian_1.mat".into(), b"not a picture".to_vec()));
    let members: Vec<(&str, Vec<u8>)> = members.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let list = |wanted: &[&str]| {
        let lines = PETS.iter().filter(|(_, split)| wanted.contains(split));
        lines.map(|(name, _)| format!("{name} 1 1 1\n")).collect::<String>()
    };
    let annotations = [
        ("./annotations/list.txt", format!("#Image CLASS-ID SPECIES BREED ID\n{}", list(&["trainval", "test"]))),
        ("./annotations/trainval.txt", list(&["trainval"])),
        ("./annotations/test.txt", list(&["test"])),
        ("./annotations/README", "text".into()),
    ];
    let annotations: Vec<(&str, Vec<u8>)> =
        annotations.iter().map(|(name, text)| (*name, text.clone().into_bytes())).collect();
    let files =
        vec![("annotations.tar.gz".to_string(), tgz(&annotations)), ("images.tar.gz".to_string(), tgz(&members))];
    (set("pets", PETS.len(), &files, &[Holds::PetAnnotations, Holds::Pictures]), files)
}

fn set(name: &str, pictures: usize, files: &[(String, Vec<u8>)], holds: &[Holds]) -> KnownSet {
    let archives = files.iter().zip(holds).map(|((file, bytes), &holds)| archive(file, bytes, holds)).collect();
    KnownSet { name: name.into(), title: format!("a small {name}"), pictures, archives }
}

/// A set of one archive of pictures, and a folder that has it.
pub fn one(bytes: &[u8], pictures: usize) -> (KnownSet, tempfile::TempDir) {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("mirror")).unwrap();
    std::fs::write(place.path().join("mirror/one.tgz"), bytes).unwrap();
    let files = [("one.tgz".to_string(), bytes.to_vec())];
    (set("flowers", pictures, &files, &[Holds::Pictures]), place)
}

/// What is said of an archive; it must leave nothing in the data directory's place of the set.
fn refused(bytes: &[u8], pictures: usize, needles: &[&str]) {
    let (set, place) = one(bytes, pictures);
    let data = place.path().join("data");
    failure(fetch_silently(place.path().join("mirror").to_str().unwrap(), &set, &data), needles);
    let left: Vec<String> =
        std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|name| name == "archives" || name == ".fetching-flowers"), "{left:?}");
    assert!(!place.path().join("evil.jpg").exists() && !data.join("evil.jpg").exists());
}

#[test]
fn archives_that_reach_out_are_refused() {
    refused(&tgz(&[("../evil.jpg", jpeg(0))]), 1, &["`../evil.jpg`", "leads out of its folder", "one.tgz"]);
    refused(&tgz(&[("/tmp/evil.jpg", jpeg(0))]), 1, &["`/tmp/evil.jpg`", "leads out"]);
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "jpg/a.jpg", "/etc/passwd").unwrap();
    let bytes = builder.into_inner().unwrap().finish().unwrap();
    refused(&bytes, 1, &["`jpg/a.jpg`", "not a plain file"]);
}

#[test]
fn archives_beyond_reason_or_damaged_are_refused() {
    // A header alone can claim any size.
    let mut header = tar::Header::new_gnu();
    header.set_path("jpg/a.jpg").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(header.as_bytes()).unwrap();
    refused(&gzip.finish().unwrap(), 1, &["beyond reason", "jpg/a.jpg"]);

    let good = tgz(&[("jpg/a.jpg", jpeg(0)), ("jpg/b.jpg", jpeg(1))]);
    refused(&good[..good.len() / 2], 2, &["damaged", "fetch it again"]);
    refused(b"<html>no such thing</html>", 2, &["damaged"]);
    refused(&good, 3, &["has 2 pictures; expected 3"]);
    let twice = tgz(&[("jpg/a.jpg", jpeg(0)), ("jpg/a.jpg", jpeg(1))]);
    failure_or_io(&twice);
}

/// A name that comes twice is not written over.
fn failure_or_io(bytes: &[u8]) {
    let (set, place) = one(bytes, 2);
    let options = ddim_engine::data::fetch::FetchOptions {
        data_dir: place.path().join("data"),
        mirror: Some(place.path().join("mirror").display().to_string()),
        keep_archives: false,
        rules: rules(),
        stop: &|| false,
    };
    let silent: &dyn Progress = &Silent;
    let error = fetch(&set, &options, silent).unwrap_err();
    assert!(error.to_string().contains("a.jpg: cannot write a picture"), "{error}");
}
