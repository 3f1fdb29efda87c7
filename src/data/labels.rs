//! Class labels of pictures, from a CSV file of names and labels.
//!
//! ```text
//! file,label            a heading, which may be missing; other columns are ignored
//! roses/0001.jpg,rose
//! image_00002,"tulip"
//! ```
//!
//! A picture is looked up by its path in the folder or archive, with and without its ending, then by its file name, with and without. The
//! columns are those called `file` (or `image`, `name`, `path`, `filename`) and `label` (or `class`), else the first and the second.
//! Labels that are all whole numbers are ordered as numbers, others as text; a class is the place in that order.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Dataset;
use crate::error::{Error, Result};

/// What stands for the classes that came with the pictures.
pub const AUTO: &str = "auto";

/// Largest file that is read.
const LARGEST_FILE: u64 = 256 << 20;

/// The class of every picture of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    classes: Vec<String>,
    of: Vec<u32>,
}

/// A line of the file: its number, the label, whether a picture has asked for it.
struct Entry {
    line: usize,
    label: String,
    /// The picture that found it, where one has.
    used_by: Option<usize>,
}

impl Labels {
    /// Reads the labels of `dataset` from the CSV file at `path`; the path [`AUTO`] means those that came with the pictures
    /// ([`Dataset::own_labels`]).
    ///
    /// # Errors
    /// [`Error::Input`] for a file that cannot be read or is no such table, for pictures without a label, for labels of pictures that are
    /// not there, each with how many there are and an example; and for a data set whose pictures have no names.
    pub fn load(path: &Path, dataset: &Dataset) -> Result<Labels> {
        if path == Path::new(AUTO) {
            return dataset.own_labels();
        }
        let fail = |what: String| Error::input(path, what);
        let meta = std::fs::metadata(path)
            .map_err(|e| fail(format!("cannot be opened: {e}; expected a CSV file of file,label")))?;
        if !meta.is_file() || meta.len() > LARGEST_FILE {
            return Err(fail("is not a plain file of at most 256 MiB; expected a CSV file of file,label".into()));
        }
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => fail("is not text; expected a CSV file of file,label".into()),
            _ => fail(format!("cannot be read: {e}")),
        })?;
        Self::parse(&text, dataset.names(), |name| dataset.skipped().iter().any(|s| keys(&s.name).contains(&name)))
            .map_err(fail)
    }

    /// The labels of pictures with these names; `is_known` tells of other names that they are no mistake.
    fn parse(text: &str, names: &[String], is_known: impl Fn(&str) -> bool) -> std::result::Result<Labels, String> {
        if names.is_empty() {
            return Err("labels need pictures with names: data that is a folder or a .tar".into());
        }
        let mut table = table(text, names)?;
        let mut missing: Vec<&str> = Vec::new();
        let mut found: Vec<&str> = Vec::new();
        for (picture, name) in names.iter().enumerate() {
            let Some(key) = keys(name).into_iter().find(|key| table.contains_key(*key)) else {
                missing.push(name);
                continue;
            };
            if let Some(entry) = table.get_mut(key) {
                if let Some(other) = entry.used_by {
                    return Err(format!(
                        "line {}: `{key}` fits two pictures, `{}` and `{name}`; give their paths in the folder or archive",
                        entry.line, names[other]
                    ));
                }
                entry.used_by = Some(picture);
                found.push(key);
            }
        }
        if let Some(example) = missing.first() {
            return Err(format!(
                "{} of {} pictures have no label, such as `{example}`; add them",
                missing.len(),
                names.len()
            ));
        }
        let unknown = table.iter().filter(|(key, entry)| entry.used_by.is_none() && !is_known(key));
        let mut unknown: Vec<(usize, &str)> = unknown.map(|(key, entry)| (entry.line, key.as_str())).collect();
        unknown.sort_unstable();
        if let Some((line, example)) = unknown.first() {
            return Err(format!(
                "{} of its {} names are none of the {} pictures, such as `{example}` in line {line}; remove them, or give the data \
                 that they belong to",
                unknown.len(),
                table.len(),
                names.len()
            ));
        }
        let labels: Vec<&str> =
            found.iter().filter_map(|key| table.get(*key)).map(|entry| entry.label.as_str()).collect();
        let classes = ordered(&labels);
        let place: HashMap<&str, u32> =
            classes.iter().enumerate().map(|(i, class)| (class.as_str(), i as u32)).collect();
        let of: Vec<u32> = labels.iter().filter_map(|label| place.get(label).copied()).collect();
        if classes.len() < 2 {
            return Err(format!(
                "all {} pictures have the label `{}`; expected at least two classes",
                names.len(),
                classes.join("")
            ));
        }
        Ok(Labels { classes, of })
    }

    /// Of classes by name and the class of each picture.
    pub(super) fn from_parts(classes: Vec<String>, of: Vec<u32>) -> Labels {
        Labels { classes, of }
    }

    /// The different ones of `labels` in order, and the place of each label in that order.
    pub(super) fn ordered_of(labels: &[String]) -> (Vec<String>, Vec<u32>) {
        let classes = ordered(&labels.iter().map(String::as_str).collect::<Vec<_>>());
        let place: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let of = labels.iter().filter_map(|label| place.get(label.as_str()).copied()).collect();
        (classes, of)
    }

    /// The classes, by their number.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The class of each picture, in the order of the data set.
    pub fn of(&self) -> &[u32] {
        &self.of
    }

    /// SHA-256 in hex of the classes and of who has which. A resumed run compares it.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for class in &self.classes {
            hash.update((class.len() as u64).to_le_bytes());
            hash.update(class.as_bytes());
        }
        self.of.iter().for_each(|class| hash.update(class.to_le_bytes()));
        format!("{:x}", hash.finalize())
    }
}

/// The names by which a picture may be called, the fullest first.
fn keys(name: &str) -> Vec<&str> {
    let stem = |name: &str| name.rsplit_once('.').map_or(name.len(), |(stem, _)| stem.len());
    let base = name.rsplit('/').next().unwrap_or(name);
    let mut keys = vec![name, &name[..stem(name)], base, &base[..stem(base)]];
    keys.dedup();
    keys
}

/// The lines of the file by the name that each is about.
fn table(text: &str, names: &[String]) -> std::result::Result<HashMap<String, Entry>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
    let first =
        lines.peek().map(|(_, line)| fields(line)).ok_or("the file is empty; expected lines of file,label")??;
    let called = |wanted: &[&str]| {
        first.iter().position(|field| wanted.iter().any(|name| field.trim().eq_ignore_ascii_case(name)))
    };
    let file_column = called(&["file", "image", "name", "path", "filename", "file_name"]);
    let label_column = called(&["label", "class"]);
    let is_picture = |field: &str| names.iter().any(|name| keys(name).contains(&field));
    let heading =
        file_column.is_some() || label_column.is_some() || !first.first().is_some_and(|f| is_picture(f.trim()));
    let file = file_column.unwrap_or(0);
    let label = label_column.unwrap_or(if file == 1 { 0 } else { 1 });
    if heading {
        lines.next();
    }
    let mut table: HashMap<String, Entry> = HashMap::new();
    for (i, line) in lines {
        let line_number = i + 1;
        let fields = fields(line).map_err(|what| format!("line {line_number}: {what}"))?;
        let at = |column: usize| fields.get(column).map(|field| field.trim()).filter(|field| !field.is_empty());
        let (Some(name), Some(label)) = (at(file), at(label)) else {
            return Err(format!("line {line_number}: found {} fields, expected a file and a label", fields.len()));
        };
        let name = name.strip_prefix("./").unwrap_or(name);
        let entry = Entry { line: line_number, label: label.into(), used_by: None };
        if let Some(other) = table.insert(name.into(), entry)
            && other.label != label
        {
            return Err(format!(
                "line {line_number}: `{name}` has the label `{label}`, but `{}` in line {}",
                other.label, other.line
            ));
        }
    }
    Ok(table)
}

/// The fields of a line: separated by commas, those with commas or quotes in quotes (RFC 4180; line breaks within are not read).
fn fields(line: &str) -> std::result::Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields[last].push('"');
            }
            '"' if quoted => quoted = false,
            '"' if fields[last].trim().is_empty() => {
                fields[last].clear();
                quoted = true;
            }
            ',' if !quoted => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    if quoted { Err("a quote is not closed".into()) } else { Ok(fields) }
}

/// The different labels in order: as numbers where all of them are whole numbers.
fn ordered(labels: &[&str]) -> Vec<String> {
    let different: BTreeSet<&str> = labels.iter().copied().collect();
    let mut all: Vec<&str> = different.into_iter().collect();
    let numbers: Option<Vec<i64>> = all.iter().map(|label| label.parse().ok()).collect();
    if numbers.is_some() {
        all.sort_by_key(|label| label.parse::<i64>().unwrap_or(0));
    }
    all.into_iter().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, names: &[&str]) -> std::result::Result<Labels, String> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        Labels::parse(text, &names, |name| name == "broken")
    }

    const NAMES: [&str; 3] = ["a/1.png", "a/2.png", "b/3.jpg"];

    #[test]
    fn names_are_found_in_every_form() {
        for text in [
            "file,label\na/1.png,x\na/2.png,y\nb/3.jpg,x\n",
            "label,file\nx,a/1\ny,2.png\nx,3\n",
            "a/1.png,x,more\n\n\"2\", y \n./b/3.jpg,\"x\"",
            "\u{feff}picture,kind\r\n1,x\r\n2,y\r\n3,x\r\n",
            "1,x\n2,y\n3,x\nbroken,z\n",
        ] {
            let labels = parse(text, &NAMES).unwrap();
            assert_eq!(
                (labels.classes(), labels.of()),
                (&["x".to_string(), "y".to_string()][..], &[0, 1, 0][..]),
                "{text}"
            );
        }
    }

    #[test]
    fn numbers_are_ordered_as_numbers() {
        let labels = parse("1,10\n2,9\n3,10\n", &NAMES).unwrap();
        assert_eq!((labels.classes(), labels.of()), (&["9".to_string(), "10".to_string()][..], &[1, 0, 1][..]));
        let labels = parse("1,10\n2,9x\n3,10\n", &NAMES).unwrap();
        assert_eq!(labels.classes(), ["10", "9x"]);
    }

    #[test]
    fn quotes_hold_commas_and_quotes() {
        assert_eq!(fields(r#"a,"b, ""c""",d"#).unwrap(), ["a", "b, \"c\"", "d"]);
        assert_eq!(fields("a,,").unwrap(), ["a", "", ""]);
        assert!(fields("a,\"b").is_err());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_shown() {
        for (text, needles) in [
            ("", &["empty"][..]),
            ("1,x\n2,y\n", &["1 of 3 pictures have no label, such as `b/3.jpg`"]),
            ("1,x\n2,y\n3,x\n4,x\n5,x\n", &["2 of its 5 names are none of the 3 pictures", "`4` in line 4"]),
            ("1,x\n2\n3,x\n", &["line 2", "found 1 fields, expected a file and a label"]),
            ("1,x\n2,y\n3,x\n1,y\n", &["line 4", "`1` has the label `y`, but `x` in line 1"]),
            ("1,x\n2,x\n3,x\n", &["all 3 pictures have the label `x`"]),
            ("1,x\n2,\"y\n3,x\n", &["line 2", "not closed"]),
        ] {
            let why = parse(text, &NAMES).unwrap_err();
            assert!(needles.iter().all(|needle| why.contains(needle)), "{text:?}: {why}");
        }
        let why = parse("1,x\n", &["a/1.png", "b/1.png"]).unwrap_err();
        assert!(why.contains("`1` fits two pictures, `a/1.png` and `b/1.png`"), "{why}");
        assert!(parse("1,x\n", &[]).unwrap_err().contains("names"));
    }

    #[test]
    fn fingerprints_tell_labels_apart() {
        let of = |text| parse(text, &NAMES).unwrap().fingerprint();
        assert_eq!(of("1,x\n2,y\n3,x\n"), of("file,label\n3,x\n2,y\n1,x\n"));
        assert_ne!(of("1,x\n2,y\n3,x\n"), of("1,x\n2,y\n3,y\n"));
        assert_ne!(of("1,x\n2,y\n3,x\n"), of("1,x\n2,z\n3,x\n"));
    }
}
