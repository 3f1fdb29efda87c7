//! The cache: hit, stale, damaged, impossible to write.

use std::os::unix::fs::FileExt;

use crate::support::{Place, Recorder, grey_png};
use ddim_engine::data::{self, DataSpec, Dataset, Silent};

fn pixels(ds: &Dataset) -> Vec<u8> {
    (0..ds.len()).flat_map(|i| ds.image(i).to_vec()).collect()
}

/// Loads, and says whether pictures were decoded, and what was noted.
fn load(spec: &DataSpec) -> (Dataset, bool, Vec<String>) {
    let recorder = Recorder::default();
    let ds = data::load(spec, &recorder).expect("a dataset");
    let decoded = !recorder.started.lock().expect("started").is_empty();
    (ds, decoded, recorder.notes())
}

#[test]
fn the_second_load_maps_what_the_first_decoded() {
    let place = Place::new();
    place.put_many(120);
    place.put("text.png", "text");
    let spec = place.spec(16, 3);
    let (first, decoded, notes) = load(&spec);
    assert!(decoded && first.is_mapped());
    assert!(notes.iter().any(|n| n.starts_with("120 pictures decoded in")), "{notes:?}");
    let (second, decoded, notes) = load(&spec);
    assert!(!decoded && second.is_mapped() && notes.is_empty(), "{notes:?}");
    assert_eq!(pixels(&first), pixels(&second));
    assert_eq!((first.fingerprint(), first.description()), (second.fingerprint(), second.description()));
    assert_eq!(second.skipped(), first.skipped());
    assert_eq!(second.skipped()[0].name, "text.png");
    // Without a cache: the same pictures, and nothing written.
    let (owned, decoded, _) = load(&DataSpec { cache: false, ..spec.clone() });
    assert!(decoded && !owned.is_mapped());
    assert_eq!((pixels(&owned), owned.fingerprint()), (pixels(&first), first.fingerprint()));
    assert_eq!(place.cache_files().len(), 1);
    // Another size or number of channels is another cache, with another fingerprint.
    let (grey, decoded, _) = load(&place.spec(16, 1));
    assert!(decoded && grey.fingerprint() != first.fingerprint());
    assert_eq!(place.cache_files().len(), 2);
    assert!(!load(&spec).1);
}

#[test]
fn a_changed_source_is_decoded_again_into_the_same_file() {
    let place = Place::new();
    place.put_many(5);
    let spec = place.spec(8, 1);
    let (before, ..) = load(&spec);
    place.put("new.png", grey_png(8, 8, &[200; 64]));
    let (after, decoded, _) = load(&spec);
    assert!(decoded);
    assert_eq!((after.len(), after.image(5)[0]), (6, 200));
    // The mapping of the replaced file still holds: it was renamed over, not written over.
    assert_eq!(pixels(&before), pixels(&after)[..5 * 64]);
    assert_eq!(place.cache_files().len(), 1);
    // The same names and lengths at another time.
    let path = place.put("new.png", grey_png(8, 8, &[201; 64]));
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    std::fs::File::options().write(true).open(path).and_then(|f| f.set_modified(later)).expect("a new time");
    assert_eq!(load(&spec).0.image(5)[0], 201);
}

#[test]
fn every_kind_of_damage_is_found_noted_and_mended() {
    let place = Place::new();
    place.put_many(40);
    let spec = place.spec(16, 3);
    let want = pixels(&load(&spec).0);
    let cache = place.cache_files().remove(0);
    let whole = std::fs::read(&cache).expect("the cache");
    let last = whole.len() as u64 - 1;
    let flip = |at: u64| {
        let file = std::fs::File::options().read(true).write(true).open(&cache).expect("the cache");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
    };
    let cut = |len: u64| std::fs::File::options().write(true).open(&cache).and_then(|f| f.set_len(len)).expect("cut");
    let cases: [(&str, &dyn Fn()); 9] = [
        ("1 of 1 pieces fail their checksum", &|| flip(last)),
        ("1 of 1 pieces fail their checksum", &|| flip(4096)),
        ("the header fails its checksum", &|| flip(60)),
        ("the header fails its checksum", &|| flip(20)),
        ("the header is cut short", &|| flip(15)),
        ("first bytes are not those of a cache", &|| flip(0)),
        ("bytes of pixels, expected 30720", &|| cut(last)),
        ("too short for a header", &|| cut(10)),
        ("bytes of pixels, expected 30720", &|| std::fs::write(&cache, [&whole[..], &[0]].concat()).expect("longer")),
    ];
    for (want_note, damage) in cases {
        damage();
        let (ds, decoded, notes) = load(&spec);
        assert!(decoded, "{want_note}");
        assert!(
            notes[0].contains(want_note) && notes[0].contains("decoding the pictures again"),
            "{want_note}: {notes:?}"
        );
        assert_eq!(pixels(&ds), want);
        assert_eq!(std::fs::read(&cache).expect("the cache"), whole, "mended");
        let (_, decoded, notes) = load(&spec);
        assert!(!decoded && notes.is_empty());
    }
    cut(0);
    assert!(load(&spec).1);
}

/// Runs the test `name` of this file again in a process with other variables; `true` in that process.
fn again(name: &str, variables: &[(&str, &std::path::Path)]) -> bool {
    if std::env::var_os("DDIM_TEST_CHILD").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", &format!("caching::{name}"), "--nocapture"])
        .env("DDIM_TEST_CHILD", "1")
        .env_remove("DDIM_DATA_DIR");
    command.envs(variables.iter().copied());
    let output = command.output().expect("a child");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    false
}

#[test]
fn without_a_place_for_the_cache_pictures_stay_in_memory() {
    let place = Place::new();
    place.put_many(3);
    std::fs::write(place.root().join("cache"), "a file where the folder should be").expect("a file");
    let parent = place.root().join("cache"); // also no place for the user's cache: below a file
    if again("without_a_place_for_the_cache_pictures_stay_in_memory", &[("XDG_CACHE_HOME", &parent)]) {
        let (ds, decoded, notes) = load(&place.spec(8, 1));
        assert!(decoded && !ds.is_mapped());
        assert!(notes.iter().any(|n| n.contains("pictures stay in memory")), "{notes:?}");
        assert_eq!((ds.len(), ds.image(2)[0]), (3, 2));
    }
}

#[test]
fn the_data_directory_comes_from_the_environment_and_the_cache_follows() {
    let place = Place::new();
    let (data_dir, user) = (place.root().join("data"), place.root().join("user"));
    if again(
        "the_data_directory_comes_from_the_environment_and_the_cache_follows",
        &[("DDIM_DATA_DIR", &data_dir), ("XDG_CACHE_HOME", &user)],
    ) {
        let data_dir = std::path::PathBuf::from(std::env::var_os("DDIM_DATA_DIR").expect("set by the parent"));
        let user = std::path::PathBuf::from(std::env::var_os("XDG_CACHE_HOME").expect("set by the parent"));
        assert_eq!(data::default_data_dir(), Some(user.join("ddim-engine")));
        let missing = data::load(&DataSpec::new("flowers", 8), &Silent).expect_err("not there").to_string();
        assert!(missing.contains("DDIM_DATA_DIR") && missing.contains("which does not exist"), "{missing}");
        std::fs::create_dir_all(data_dir.join("flowers")).expect("folders");
        for i in 0..2 {
            std::fs::write(data_dir.join(format!("flowers/{i}.png")), grey_png(8, 8, &[i; 64])).expect("a picture");
        }
        assert!(data::load(&DataSpec::new("flowers", 8), &Silent).expect("flowers").is_mapped());
        assert_eq!(std::fs::read_dir(data_dir.join("cache")).expect("the cache").count(), 1);
        assert!(!user.exists());
        // Where the data directory cannot hold it, the user's folder does.
        std::fs::remove_dir_all(data_dir.join("cache")).expect("removed");
        std::fs::write(data_dir.join("cache"), "in the way").expect("a file");
        assert!(data::load(&DataSpec::new("flowers", 8), &Silent).expect("flowers").is_mapped());
        assert_eq!(std::fs::read_dir(user.join("ddim-engine/cache")).expect("the cache").count(), 1);
    }
}

#[test]
fn checking_a_hundred_megabytes_is_quick() {
    let place = Place::new();
    // Blown up from little: 100 MB of pixels are wanted, not 100 MB of files.
    for i in 0..35 {
        place.put(&format!("{i:02}.png"), grey_png(16, 16, &[i; 256]));
    }
    let spec = place.spec(1000, 3);
    let (ds, ..) = load(&spec);
    assert_eq!(ds.len() * ds.image_bytes(), 105_000_000);
    drop(ds);
    let started = std::time::Instant::now();
    let (_, decoded, _) = load(&spec);
    let took = started.elapsed();
    println!("105 MB opened and checked in {took:?}");
    // The aim is 0.15 s; the limit leaves room for a busy machine.
    assert!(!decoded && (cfg!(debug_assertions) || took.as_secs_f64() < 1.5), "{took:?}");
}
