//! `metrics.jsonl`: the numbers of a run, one JSON object a line, in the order of the steps.
//!
//! A resumed run first drops the lines after the step that it resumes from. Save a checkpoint after logging its step, then the file
//! of a run that stopped and went on equals that of one that ran through, timings apart.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// Which pictures a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Those the weights learn from.
    Train,
    /// Those held back.
    Valid,
}

/// One line of the file; the fields are written in this order. NaN and infinities are written as `null` and read back as NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimiser steps done.
    pub step: u64,
    /// Epoch that the step belongs to, from 1.
    pub epoch: u64,
    /// Which pictures.
    pub split: Split,
    /// The training loss.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Mean absolute error of the noise.
    #[serde(deserialize_with = "null_is_nan")]
    pub noise_loss: f64,
    /// Mean absolute error of the picture.
    #[serde(deserialize_with = "null_is_nan")]
    pub image_loss: f64,
    /// Learning rate.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Pictures a second since the last record of the split.
    #[serde(deserialize_with = "null_is_nan")]
    pub images_per_second: f64,
    /// Seconds of training so far.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
    /// Mean norm of the gradients before they were clipped; only of training, and where they are clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Appends to a `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Starts an empty file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path, "create the metrics file"))?;
        Ok(MetricsLog { file, path: path.to_path_buf() })
    }

    /// Opens the file of an earlier run and drops the lines after `step`, and a last line that a crash tore. A missing file is made.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path, "read the metrics file")(e)),
        };
        let mut keep = 0;
        for line in lines(path, &text) {
            match line? {
                (end, record) if record.step <= step => keep = end,
                _ => break,
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(Error::io(path, "open the metrics file to append"))?;
        file.set_len(keep as u64).map_err(Error::io(path, "drop the lines after the resumed step"))?;
        Ok(MetricsLog { file, path: path.to_path_buf() })
    }

    /// Appends a record; it has left the process when this returns.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record)
            .map_err(|e| Error::Failed(format!("{}: cannot write a record: {e}", self.path.display())))?;
        line.push('\n');
        // One write of the whole line: readers that follow the file never see half of it.
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "append to the metrics file"))
    }
}

/// Reads all records. A torn last line is passed over; anything else that is no record is an error that names its line.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read(path).map_err(Error::io(path, "read the metrics file"))?;
    lines(path, &text).map(|line| line.map(|(_, record)| record)).collect()
}

/// Each record with the offset of the byte after its line.
fn lines<'a>(path: &'a Path, text: &'a [u8]) -> impl Iterator<Item = Result<(usize, Record)>> + 'a {
    let mut start = 0;
    let mut number = 0;
    std::iter::from_fn(move || {
        // A line without its line feed was torn, even where what is there happens to parse.
        let length = text[start..].iter().position(|&b| b == b'\n')?;
        let line = &text[start..start + length];
        start += length + 1;
        number += 1;
        match serde_json::from_slice::<Record>(line) {
            Ok(record) => Some(Ok((start, record))),
            Err(_) if start == text.len() => None,
            Err(e) => {
                start = text.len();
                Some(Err(Error::input(path, format!("line {number} is not a metrics record: {e}; remove or mend it"))))
            }
        }
    })
}
