//! Two runs side by side, and one run by itself.

use std::path::Path;

use serde_json::{Value, json};

use super::Row;
use super::columns::{self, Cell, cell, heading, plain, setting, shown};
use crate::error::Result;
use crate::lab::record::RunRecord;
use crate::train::checkpoint;
use crate::train::metrics_log::{Record, Split};

/// The columns that two runs are compared by.
fn compared() -> impl Iterator<Item = &'static str> {
    std::iter::once("status").chain(columns::BEHIND.iter().copied())
}

/// How two runs differ.
#[derive(Clone, Debug)]
pub struct Diff {
    rows: [Row; 2],
    /// Settings with both values.
    pub settings: Vec<(String, [String; 2])>,
    /// From where on the records differ, in words.
    pub metrics: String,
    /// The first step whose records differ.
    pub first_step: Option<u64>,
}

fn open(path: &Path) -> Result<Row> {
    let run = RunRecord::open(path)?;
    Ok(Row { name: run.name.clone(), run })
}

/// Compares two runs.
///
/// # Errors
/// One of them is no run, or is damaged.
pub fn diff(a: &Path, b: &Path) -> Result<Diff> {
    let rows = [open(a)?, open(b)?];
    let value = |row: &Row, key: &str| match setting(row, key) {
        Cell::Nothing => "-".to_string(),
        cell => plain(&cell),
    };
    let keys = columns::differing(&rows);
    let settings = keys.into_iter().map(|key| (key.clone(), [value(&rows[0], &key), value(&rows[1], &key)])).collect();
    let (metrics, first_step) = match (rows[0].run.metrics(), rows[1].run.metrics()) {
        (Ok(a), Ok(b)) => first_difference(&a, &b),
        (Err(why), _) | (_, Err(why)) => (why.to_string(), None),
    };
    Ok(Diff { rows, settings, metrics, first_step })
}

/// From where on the records differ, their timings apart.
fn first_difference(a: &[Record], b: &[Record]) -> (String, Option<u64>) {
    let split = |record: &Record| if record.split == Split::Train { "train" } else { "valid" };
    let same = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan());
    for (x, y) in a.iter().zip(b) {
        if (x.step, x.split) != (y.step, y.split) {
            let text = format!("A has step {} ({}) where B has step {} ({})", x.step, split(x), y.step, split(y));
            return (text, Some(x.step.min(y.step)));
        }
        let values = |r: &Record| {
            let norm = r.grad_norm.unwrap_or(0.0);
            [
                ("loss", r.loss),
                ("noise_loss", r.noise_loss),
                ("image_loss", r.image_loss),
                ("lr", r.lr),
                ("grad_norm", norm),
            ]
        };
        let differs = values(x).into_iter().zip(values(y)).find(|((_, x), (_, y))| !same(*x, *y));
        if let Some(((name, left), (_, right))) = differs {
            return (format!("differ from step {} on ({}): {name} {left} and {right}", x.step, split(x)), Some(x.step));
        }
    }
    let last = |records: &[Record]| records.last().map_or(0, |record| record.step);
    let common = a.len().min(b.len());
    let text = match a.len().cmp(&b.len()) {
        std::cmp::Ordering::Equal => format!("the same in all {common} records, to step {}", last(a)),
        std::cmp::Ordering::Less => {
            format!("the same as far as A goes, to step {}; B goes on to step {}", last(a), last(b))
        }
        std::cmp::Ordering::Greater => {
            format!("the same as far as B goes, to step {}; A goes on to step {}", last(b), last(a))
        }
    };
    (text, None)
}

impl Diff {
    /// For people.
    pub fn text(&self) -> String {
        let [a, b] = &self.rows;
        let mut lines: Vec<[String; 3]> = Vec::new();
        if self.settings.is_empty() {
            lines.push(["the settings are the same".into(), String::new(), String::new()]);
        } else {
            lines.push(["settings".into(), "A".into(), "B".into()]);
            lines.extend(self.settings.iter().map(|(key, [a, b])| [format!("  {key}"), a.clone(), b.clone()]));
        }
        lines.push(["results".into(), "A".into(), "B".into()]);
        for key in compared() {
            let both = [shown(a, key), shown(b, key)];
            if both.iter().any(|text| !text.is_empty()) {
                let [a, b] = both.map(|text| if text.is_empty() { "-".into() } else { text });
                lines.push([format!("  {}", heading(key)), a, b]);
            }
        }
        let widths = [0, 1].map(|column| {
            lines.iter().filter(|line| !line[1].is_empty()).map(|line| line[column].chars().count()).max().unwrap_or(0)
        });
        let mut text = format!("A  {}\nB  {}\n", a.run.root.display(), b.run.root.display());
        for [name, a, b] in &lines {
            text.push_str(format!("{name:<w0$}  {a:<w1$}  {b}", w0 = widths[0], w1 = widths[1]).trim_end());
            text.push('\n');
        }
        text.push_str(&format!("metrics.jsonl (timings apart)\n  {}\n", self.metrics));
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let settings: serde_json::Map<String, Value> =
            self.settings.iter().map(|(key, both)| (key.clone(), json!(both))).collect();
        json!({
            "runs": self.rows.iter().map(super::render::run_json).collect::<Vec<_>>(),
            "settings": settings,
            "metrics": self.metrics,
            "first_step": self.first_step,
        })
    }
}

/// A run by itself, for people.
///
/// # Errors
/// It is no run, or is damaged.
pub fn show(path: &Path) -> Result<String> {
    let row = open(path)?;
    let root = row.run.root.display();
    let mut text = format!("{root}\n");
    for key in compared().chain(["preset", "parameters"]) {
        let value = shown(&row, key);
        if !value.is_empty() {
            text.push_str(&format!("  {:<12}{value}\n", heading(key)));
        }
    }
    let samples = row.run.samples()?;
    let checkpoints = checkpoint::list(&row.run.root)?;
    let steps: Vec<_> = checkpoints
        .iter()
        .map(|entry| format!("{}{}", entry.step, if entry.problem.is_some() { " (damaged)" } else { "" }))
        .collect();
    let checkpoints = if steps.is_empty() { "none".into() } else { format!("at step {}", steps.join(", ")) };
    text.push_str(&format!("  {:<12}{checkpoints}\n  {:<12}{} grids\n", "checkpoints", "samples", samples.len()));
    text.push_str("settings\n");
    let keys = columns::settings(std::slice::from_ref(&row));
    let width = keys.iter().map(String::len).max().unwrap_or(0);
    for key in keys {
        text.push_str(&format!("  {key:<width$}  {}\n", plain(&cell(&row, &key))));
    }
    text.push_str(&format!("the same again\n  ddim-engine train --config {root}/config.toml\n"));
    Ok(text)
}
