//! MATLAB files: against files that SciPy wrote (`tests/fixtures/mat/make.py`), and damaged ones.

use ddim_engine::data::fetch::{MatArray, read_mat};

use crate::archives::mat;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/mat/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn files_of_another_program_are_read() {
    let arrays = read_mat(&fixture("labels.mat")).unwrap();
    assert_eq!(arrays.keys().collect::<Vec<_>>(), ["labels", "real", "trnid", "wide"]);
    assert_eq!(arrays["labels"], MatArray { shape: vec![1, 5], values: vec![77.0, 77.0, 1.0, 102.0, 3.0] });
    assert_eq!(arrays["trnid"].integers(), Some(vec![1, 300]));
    // Columns first.
    assert_eq!(arrays["real"], MatArray { shape: vec![2, 2], values: vec![1.5, 3.0, -2.0, 4.0] });
    assert_eq!(arrays["wide"].values, [-(2f64.powi(40))]);
    assert_eq!((arrays["real"].integers(), arrays["wide"].integers()), (None, None));

    let arrays = read_mat(&fixture("plain.mat")).unwrap();
    assert_eq!(arrays["labels"].integers(), Some(vec![1, 5, 9, 2, 6, 10, 3, 7, 11, 4, 8, 12]));
    assert_eq!(arrays["one"], MatArray { shape: vec![1, 1], values: vec![7.0] });
}

#[test]
fn what_is_no_such_file_is_refused() {
    let whole = fixture("labels.mat");
    for (bytes, needle) in [
        (&b"short"[..], "too short"),
        (&[0; 200], "not that of a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n and more", "version 7.3"),
    ] {
        let why = read_mat(bytes).unwrap_err();
        assert!(why.contains(needle), "{why}");
    }
    let cut = read_mat(&whole[..whole.len() - 5]).unwrap_err();
    assert!(cut.contains("cut short"), "{cut}");
    let mut bad = whole.clone();
    bad[150] ^= 0x55;
    let why = read_mat(&bad).unwrap_err();
    assert!(why.contains("damaged"), "{why}");
    // The writer of the other tests is read too.
    assert_eq!(read_mat(&mat(&[("a", &[1, 2, 3])])).unwrap()["a"].integers(), Some(vec![1, 2, 3]));
}

/// Whatever is cut off or turned over, it is a message and not a crash.
#[test]
fn damage_never_crashes() {
    for name in ["labels.mat", "plain.mat"] {
        let whole = fixture(name);
        for at in 0..whole.len() {
            let _ = read_mat(&whole[..at]);
            let mut bad = whole.clone();
            bad[at] = !bad[at];
            let _ = read_mat(&bad);
        }
    }
}
