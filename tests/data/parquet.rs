//! Parquet files that pyarrow wrote (`tests/fixtures/parquet/make.py`), in the form of the Hugging Face hub and in others.

use std::path::{Path, PathBuf};

use ddim_engine::data::{self, AUTO, DataSpec, Dataset, Labels, Silent};

use crate::support::{Place, input_error};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet").join(name)
}

fn load(place: &Place, source: &Path) -> Dataset {
    data::load(&place.spec_of(source, 8, 3), &Silent).unwrap()
}

/// Pictures are of one colour: 20 i, 255 - 20 i, 7 i.
fn colours(dataset: &Dataset) -> Vec<[u8; 3]> {
    (0..dataset.len()).map(|i| [0, 1, 2].map(|c| dataset.image(i)[c])).collect()
}

fn expected(count: u8) -> Vec<[u8; 3]> {
    (0..count).map(|i| [20 * i, 255 - 20 * i, 7 * i]).collect()
}

#[test]
fn the_hubs_files_are_read_with_their_classes() {
    let place = Place::new();
    let dataset = load(&place, &fixture("hub.parquet"));
    assert_eq!(colours(&dataset), expected(6));
    // A name that comes twice, or is missing, gives way to the file and the row.
    assert_eq!(dataset.names(), ["a.png", "b.png", "hub/000002", "hub/000003", "e.png", "f.png"]);
    assert_eq!(dataset.description(), "6 pictures from hub.parquet at 8x8");
    let labels = Labels::load(Path::new(AUTO), &dataset).unwrap();
    // Numbers are places in the list of names that the file notes.
    assert_eq!(
        (labels.classes(), labels.of()),
        (&["tulip", "aster", "rose"].map(String::from)[..], &[2, 0, 1, 1, 0, 2][..])
    );
    // A file of labels finds the same names.
    let table = place.put("labels.csv", "a.png,x\nb.png,x\nhub/000002,y\nhub/000003,y\ne,y\nf,y\n");
    assert_eq!(Labels::load(&table, &dataset).unwrap().of(), [0, 0, 1, 1, 1, 1]);

    let shards = load(&place, &fixture("shards"));
    assert_eq!((colours(&shards), shards.fingerprint()), (colours(&dataset), dataset.fingerprint()));
    assert_eq!(Labels::load(Path::new(AUTO), &shards).unwrap(), labels);
    // Once more from the cache, where the classes are not.
    assert!(place.cache_files().len() == 2 && load(&place, &fixture("shards")).is_mapped());
    assert_eq!(Labels::load(Path::new(AUTO), &load(&place, &fixture("shards"))).unwrap(), labels);
}

#[test]
fn plain_bytes_do_and_so_do_labels_in_words() {
    let place = Place::new();
    let dataset = load(&place, &fixture("plain.parquet"));
    assert_eq!(colours(&dataset), expected(5));
    assert_eq!(dataset.names()[4], "plain/000004");
    let labels = dataset.own_labels().unwrap();
    assert_eq!((labels.classes(), labels.of()), (&["x", "y"].map(String::from)[..], &[0, 1, 0, 0, 1][..]));
}

#[test]
fn rows_without_a_label_leave_none() {
    let place = Place::new();
    let dataset = load(&place, &fixture("untold.parquet"));
    let error = dataset.own_labels().unwrap_err();
    assert_eq!(error.exit_code(), 2);
    for needle in ["labels auto", "untold.parquet", "labels.csv", "column `label`"] {
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    let place = Place::new();
    let say = |path: &Path| input_error(data::load(&place.spec_of(path, 8, 3), &Silent));
    let said = say(&fixture("captions.parquet"));
    for needle in ["no column of pictures", "`image`", "caption (BYTE_ARRAY)", "n (INT64)"] {
        assert!(said.contains(needle), "{said}");
    }
    let said = say(&fixture("zstd.parquet"));
    for needle in ["zstd.parquet", "compressed with ZSTD", "not built in", "SNAPPY, GZIP or none", "write_table"] {
        assert!(said.contains(needle), "{said}");
    }
    let said = say(&fixture("empty_rows.parquet"));
    assert!(said.contains("2 of 4 pictures cannot be read"), "{said}");
    assert!(said.contains("empty_rows/000001 (the row has no bytes of a picture); far/away.png"), "{said}");

    let whole = std::fs::read(fixture("hub.parquet")).unwrap();
    for cut in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        let said = say(&place.put("cut.parquet", &whole[..cut]));
        assert!(said.contains("cut.parquet: is no parquet file, or is damaged or cut short"), "{said}");
    }
    assert!(say(&place.put("text.parquet", "a,b\n1,2\n")).contains("is no parquet file"));
}

/// A damaged byte gives pictures or a message, whatever it hits.
#[test]
fn damage_is_no_crash() {
    let place = Place::new();
    let whole = std::fs::read(fixture("hub.parquet")).unwrap();
    for at in (0..whole.len()).step_by(5) {
        let mut bad = whole.clone();
        bad[at] = !bad[at];
        let path = place.put("bad.parquet", &bad);
        let _ = data::load(&DataSpec { cache: false, ..place.spec_of(&path, 8, 3) }, &Silent);
    }
}
