//! What a source itself says of its pictures: their classes, and which of them are held back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::source::Source;
use super::{Dataset, Labels, Progress, Split, batch, fetch};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// What came with the pictures.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// A table of classes beside them.
    pub labels_file: Option<PathBuf>,
    /// Classes within the source, in the order of the data set.
    pub labels: Option<Labels>,
    /// The official split.
    pub split: Option<Official>,
}

/// An official split: indices into the data set, ascending.
#[derive(Debug)]
pub(super) struct Official {
    train: Vec<u32>,
    valid: Vec<u32>,
}

impl Own {
    /// Looks at `source`, of which `dataset` has the pictures that could be read. `name` is what the user calls it.
    pub fn of(source: &Source, dataset: &Dataset, name: &str, progress: &dyn Progress) -> Result<Own> {
        let mut own = Own::default();
        match source {
            Source::Folder { root, .. } => {
                own.labels_file = Some(root.join(fetch::LABELS)).filter(|path| path.is_file());
                // Only where this program made the folder: a file of that name may mean anything elsewhere.
                let file = root.join(fetch::SPLIT);
                if file.is_file() && root.join(fetch::MARK).is_file() {
                    own.split = Some(Official::read(&file, dataset.names())?);
                }
            }
            Source::Parquet(table) => own.labels = table.labels_of(dataset.names()),
            _ => {}
        }
        if name == "pets" && own.split.is_none() {
            progress.note(
                "pets: no official split beside these pictures (`data fetch pets` brings it); one at random is used",
            );
        }
        Ok(own)
    }
}

impl Official {
    fn read(path: &Path, names: &[String]) -> Result<Official> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read the official split"))?;
        let mut sides = HashMap::new();
        for (i, line) in text.lines().enumerate().skip(1) {
            match line.rsplit_once(',') {
                Some((name, side @ ("train" | "valid"))) => sides.insert(name, side == "train"),
                _ => {
                    let what = format!(
                        "line {}: found `{line}`, expected a file and `train` or `valid`; fetch the set again",
                        i + 1
                    );
                    return Err(Error::input(path, what));
                }
            };
        }
        let side = |train: bool| -> Vec<u32> {
            let on = names.iter().zip(0u32..).filter(|(name, _)| sides.get(name.as_str()) == Some(&train));
            on.map(|(_, index)| index).collect()
        };
        let official = Official { train: side(true), valid: side(false) };
        if official.train.is_empty() || official.valid.is_empty() {
            let what = format!(
                "{} pictures to train on and {} held back; expected some of both: fetch the set again",
                official.train.len(),
                official.valid.len()
            );
            return Err(Error::input(path, what));
        }
        Ok(official)
    }

    fn shuffled(&self, seed: u64) -> Split {
        let shuffle = |indices: &[u32], part: u64| {
            let mut indices = indices.to_vec();
            Stream::new(seed, Purpose::Split, part, 0).reader().shuffle(&mut indices);
            indices
        };
        Split { train: shuffle(&self.train, 1), valid: shuffle(&self.valid, 2) }
    }
}

impl Dataset {
    /// Pictures to learn from and pictures held back: by the official split where the source has one and `valid_fraction` is above 0, else
    /// at random ([`super::split`]). Both sides in an order that the seed gives.
    ///
    /// # Errors
    /// As [`super::split`].
    pub fn split(&self, valid_fraction: f64, seed: u64) -> Result<Split> {
        let random = batch::split(self.len(), valid_fraction, seed)?;
        match &self.own.split {
            Some(official) if valid_fraction > 0.0 => Ok(official.shuffled(seed)),
            _ => Ok(random),
        }
    }

    /// SHA-256 in hex of the official split that [`Dataset::split`] uses; None where it is random. A resumed run compares it.
    pub fn official_split(&self, valid_fraction: f64) -> Option<String> {
        let official = self.own.split.as_ref().filter(|_| valid_fraction > 0.0)?;
        let mut hash = Sha256::new();
        for side in [&official.train, &official.valid] {
            hash.update((side.len() as u64).to_le_bytes());
            side.iter().for_each(|index| hash.update(index.to_le_bytes()));
        }
        Some(format!("{:x}", hash.finalize()))
    }

    /// The classes that came with the pictures: a column of their parquet files, or `labels.csv` in their folder.
    ///
    /// # Errors
    /// [`Error::Usage`] where none came; [`Error::Input`] where the file is no table of these pictures.
    pub fn own_labels(&self) -> Result<Labels> {
        match (&self.own.labels, &self.own.labels_file) {
            (Some(labels), _) => Ok(labels.clone()),
            (None, Some(file)) => Labels::load(file, self),
            (None, None) => Err(Error::Usage(format!(
                "labels auto: no classes came with {}; expected a labels.csv in the folder of the pictures (`data fetch` writes one) or a \
                 column `label` in parquet files; or name a CSV file of file,label as labels",
                self.description()
            ))),
        }
    }
}
