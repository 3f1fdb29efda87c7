//! What the archives tell of their pictures: classes and official splits, as CSV.

use std::collections::BTreeMap;
use std::path::Path;

use super::catalog::{FLOWERS, Holds, KnownSet};
use super::mat::{MatArray, read_mat};
use super::unpack;
use crate::error::{Error, Result};

/// What is known of a picture.
#[derive(Clone, Debug, Default)]
struct About {
    label: String,
    /// Another column: the number of the class, or the species.
    more: String,
    /// `train`, `valid`, `test` or nothing.
    split: &'static str,
}

/// The tables of a set.
pub(super) struct Tables {
    /// `file,label,...,split`: all pictures.
    pub labels: Option<String>,
    /// `file,split` with `train` and `valid`: a split to train by.
    pub split: Option<String>,
}

/// Makes the tables from the downloaded files of `set`, for the pictures with these paths.
pub(super) fn tables(
    set: &KnownSet,
    file_of: impl Fn(&str) -> std::path::PathBuf,
    pictures: &[&str],
    stop: &dyn Fn() -> bool,
) -> Result<Tables> {
    let find = |holds: Holds| set.archives.iter().find(|archive| archive.holds == holds).map(|a| file_of(&a.file));
    if let Some(labels) = find(Holds::FlowerLabels) {
        let splits = find(Holds::FlowerSplits);
        let about = flowers(&labels, splits.as_deref(), pictures)?;
        return Ok(Tables { labels: Some(csv("file,label,class,split", pictures, &about)), split: None });
    }
    if let Some(annotations) = find(Holds::PetAnnotations) {
        let names = ["annotations/list.txt", "annotations/trainval.txt", "annotations/test.txt"];
        let texts = unpack::texts(&annotations, &names, stop)?;
        let about = pets(&texts, pictures).map_err(|what| Error::input(&annotations, what))?;
        let lines = pictures.iter().zip(&about).filter(|(_, about)| !about.split.is_empty());
        let split = lines.map(|(name, about)| format!("{name},{}\n", about.split)).collect::<String>();
        return Ok(Tables {
            labels: Some(csv("file,label,species,split", pictures, &about)),
            split: Some(format!("file,split\n{split}")),
        });
    }
    Ok(Tables { labels: None, split: None })
}

fn csv(heading: &str, pictures: &[&str], about: &[About]) -> String {
    let quoted = |text: &str| {
        if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
    };
    let mut text = format!("{heading}\n");
    for (name, about) in pictures.iter().zip(about) {
        text.push_str(&format!("{},{},{},{}\n", quoted(name), quoted(&about.label), about.more, about.split));
    }
    text
}

/// File name without folders and ending.
fn stem(name: &str) -> &str {
    let base = name.rsplit('/').next().unwrap_or(name);
    base.rsplit_once('.').map_or(base, |(stem, _)| stem)
}

fn array<'a>(arrays: &'a BTreeMap<String, MatArray>, path: &Path, name: &str) -> Result<(&'a MatArray, Vec<u32>)> {
    let names: Vec<&str> = arrays.keys().map(String::as_str).collect();
    let found = arrays.get(name).and_then(|array| Some((array, array.integers()?)));
    found.ok_or_else(|| {
        Error::input(
            path,
            format!("expected an array `{name}` of whole numbers; found the arrays {}", names.join(", ")),
        )
    })
}

fn read(path: &Path) -> Result<BTreeMap<String, MatArray>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read the labels"))?;
    read_mat(&bytes).map_err(|what| Error::input(path, what))
}

fn flowers(labels_file: &Path, splits_file: Option<&Path>, pictures: &[&str]) -> Result<Vec<About>> {
    let arrays = read(labels_file)?;
    let (array_of, labels) = array(&arrays, labels_file, "labels")?;
    if labels.len() != pictures.len() {
        let what = format!(
            "`labels` is of shape {:?}; expected one label for each of {} pictures",
            array_of.shape,
            pictures.len()
        );
        return Err(Error::input(labels_file, what));
    }
    let mut splits = vec![""; labels.len()];
    if let Some(path) = splits_file {
        let arrays = read(path)?;
        for (name, split) in [("trnid", "train"), ("valid", "valid"), ("tstid", "test")] {
            for number in array(&arrays, path, name)?.1 {
                let slot = (number as usize).checked_sub(1).and_then(|at| splits.get_mut(at));
                match slot {
                    Some(slot) if slot.is_empty() => *slot = split,
                    _ => {
                        let what =
                            format!("`{name}` has picture {number}, which there is not or which is in another split");
                        return Err(Error::input(path, what));
                    }
                }
            }
        }
    }
    let of = |name: &&str| {
        let number = stem(name).strip_prefix("image_").and_then(|digits| digits.parse::<usize>().ok());
        let at = number.and_then(|number| number.checked_sub(1)).filter(|&at| at < labels.len());
        let at = at.ok_or_else(|| Error::input(labels_file, format!("no label for the picture `{name}`")))?;
        let class = labels[at] as usize;
        let label = class.checked_sub(1).and_then(|c| FLOWERS.get(c));
        let label =
            label.ok_or_else(|| Error::input(labels_file, format!("`{name}` has class {class}; expected 1 to 102")))?;
        Ok(About { label: label.to_string(), more: class.to_string(), split: splits[at] })
    };
    pictures.iter().map(of).collect()
}

/// `texts`: list.txt, trainval.txt and test.txt: lines of `Breed_name_12 CLASS SPECIES BREED`, `#` before remarks.
fn pets(texts: &[String], pictures: &[&str]) -> std::result::Result<Vec<About>, String> {
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.filter_map(|line| line.split_whitespace().next()).map(String::from).collect()
    };
    let [list, trainval, test] = texts else { return Err("expected three lists".into()) };
    let mut splits: BTreeMap<String, &'static str> = BTreeMap::new();
    for (text, split) in [(trainval, "train"), (test, "valid")] {
        for name in names(text) {
            if splits.insert(name.clone(), split).is_some_and(|other| other != split) {
                return Err(format!("`{name}` is in trainval.txt and in test.txt"));
            }
        }
    }
    let known: std::collections::BTreeSet<&str> = pictures.iter().map(|name| stem(name)).collect();
    let listed = names(list);
    for name in listed.iter().chain(splits.keys()) {
        if !known.contains(name.as_str()) {
            return Err(format!("`{name}` is listed, but is none of the {} pictures", pictures.len()));
        }
    }
    // A few pictures are in no list; the name tells the breed of all of them, and its first letter whether it is a cat.
    let of = |name: &&str| {
        let breed = stem(name).rsplit_once('_').map_or(stem(name), |(breed, _)| breed);
        let cat = breed.starts_with(|c: char| c.is_ascii_uppercase());
        About {
            label: breed.replace('_', " "),
            more: if cat { "cat" } else { "dog" }.into(),
            split: splits.get(stem(name)).copied().unwrap_or(""),
        }
    };
    Ok(pictures.iter().map(of).collect())
}
