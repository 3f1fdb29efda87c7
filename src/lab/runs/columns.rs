//! What a table can show of a run: one value for each key.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Row, Runs};
use crate::config::{Config, KEYS, LATER_KEYS, nearest, unet};
use crate::error::{Error, Result};
use crate::metrics::Quality;
use crate::train::progress::duration;
use crate::train::run_dir::local_time;

/// A value of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// It has none (yet).
    Nothing,
    /// A name, a list, a flag.
    Text(String),
    /// A number.
    Number(f64),
}

/// The columns that are not settings: key, heading in tables.
pub const COLUMNS: &[(&str, &str)] = &[
    ("name", "run"),
    ("status", "status"),
    ("step", "steps"),
    ("total_steps", "total"),
    ("epoch", "epoch"),
    ("train_loss", "train"),
    ("valid_loss", "valid"),
    ("noise_loss", "noise_loss"),
    ("image_loss", "image_loss"),
    ("kid", "kid"),
    ("fid", "fid"),
    ("seconds", "time"),
    ("images_per_second", "images/s"),
    ("device", "device"),
    ("begun", "begun"),
    ("preset", "preset"),
    ("parameters", "parameters"),
    ("path", "path"),
];

/// The columns of a table before and behind the settings that differ.
pub const BEFORE: &[&str] = &["name", "status"];
/// See [`BEFORE`].
pub const BEHIND: &[&str] = &[
    "step",
    "train_loss",
    "valid_loss",
    "noise_loss",
    "image_loss",
    "kid",
    "fid",
    "seconds",
    "images_per_second",
    "device",
    "begun",
];

/// The value of a column of [`COLUMNS`], or of a setting.
pub fn cell(row: &Row, key: &str) -> Cell {
    let run = &row.run;
    let number = |value: Option<f64>| value.filter(|x| !x.is_nan()).map_or(Cell::Nothing, Cell::Number);
    let summary = |name: &str| run.summary.as_ref().and_then(|summary| summary.get(name));
    let quality =
        |of: fn(&Quality) -> Option<f64>| run.evaluation.as_ref().and_then(|e| e.quality.as_ref()).and_then(of);
    let last = run.train.iter().chain(&run.valid).max_by_key(|record| record.step);
    match key {
        "name" => Cell::Text(row.name.clone()),
        "path" => Cell::Text(run.root.display().to_string()),
        "status" => Cell::Text(run.status.name().into()),
        "step" => Cell::Number(run.steps() as f64),
        "total_steps" => number(run.total_steps().map(|n| n as f64)),
        "epoch" => number(last.map(|record| record.epoch as f64)),
        "train_loss" => number(run.train.map(|record| record.loss)),
        "valid_loss" => number(run.valid.map(|record| record.loss)),
        "noise_loss" => number(run.valid.map(|record| record.noise_loss)),
        "image_loss" => number(run.valid.map(|record| record.image_loss)),
        "kid" => number(quality(|quality| Some(quality.kid))),
        "fid" => number(quality(|quality| quality.fid)),
        "seconds" => number(summary("seconds").and_then(|s| s.as_f64()).or(last.map(|record| record.seconds))),
        "images_per_second" => {
            let logged = run.train.map(|record| record.images_per_second);
            number(summary("images_per_second").and_then(|s| s.as_f64()).filter(|rate| *rate > 0.0).or(logged))
        }
        "device" | "preset" => {
            let text = summary(key).and_then(|value| value.as_str());
            text.map_or(Cell::Nothing, |text| Cell::Text(text.into()))
        }
        "parameters" => number(summary(key).and_then(|value| value.as_f64())),
        "begun" => run.begun.map_or(Cell::Nothing, |at| Cell::Text(utc(at))),
        key => setting(row, key),
    }
}

/// The value of a setting.
pub fn setting(row: &Row, key: &str) -> Cell {
    let text = match row.run.settings.get(key) {
        Some(text) => text.clone(),
        // A run of an earlier version: it did what this value says.
        None if LATER_KEYS.contains(&key) => Config::seed_preset().get(key).replace('"', ""),
        None => return Cell::Nothing,
    };
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Cell::Number(number),
        _ => Cell::Text(text),
    }
}

/// The settings in which runs differ, in the order of the keys.
pub fn differing(rows: &[Row]) -> Vec<String> {
    settings(rows)
        .into_iter()
        .filter(|key| {
            let mut values = rows.iter().map(|row| setting(row, key));
            let first = values.next();
            values.any(|value| Some(&value) != first.as_ref())
        })
        .collect()
}

/// All settings that a run has, in the order of the keys.
pub fn settings(rows: &[Row]) -> Vec<String> {
    let mut there: BTreeSet<&str> = rows.iter().flat_map(|row| row.run.settings.keys()).map(String::as_str).collect();
    let known = KEYS.iter().map(|key| key.name.to_string());
    let known = known.chain(unet::OPTIONS.iter().map(|name| format!("unet.{name}")));
    let mut all: Vec<String> = known.filter(|key| there.remove(key.as_str())).collect();
    all.extend(there.into_iter().map(String::from)); // of other versions
    all
}

/// The heading of a column.
pub fn heading(key: &str) -> &str {
    COLUMNS.iter().find(|(name, _)| *name == key).map_or(key, |(_, heading)| heading)
}

/// The column that a heading stands for, where it is not a setting's name as well; else the key itself.
pub fn named(key: &str) -> &str {
    let setting = KEYS.iter().any(|known| known.name == key);
    COLUMNS.iter().find(|(_, heading)| *heading == key && !setting).map_or(key, |(name, _)| name)
}

/// Refuses a key that is neither a column nor a setting.
///
/// # Errors
/// With the one that may be meant.
pub fn check(key: &str, runs: &Runs) -> Result<()> {
    let column = COLUMNS.iter().any(|(name, _)| *name == key);
    let option = key.strip_prefix("unet.").is_some_and(|name| unet::OPTIONS.contains(&name));
    let there = || runs.rows.iter().any(|row| row.run.settings.contains_key(key));
    if column || option || KEYS.iter().any(|k| k.name == key) || there() {
        return Ok(());
    }
    let names = COLUMNS.iter().map(|(name, _)| *name).chain(KEYS.iter().map(|key| key.name));
    let hint = nearest(key, names).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    let columns: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
    Err(Error::Usage(format!(
        "there is no column or setting `{key}`{hint}\ncolumns: {}\nand every key of `ddim-engine train --help`",
        columns.join(" ")
    )))
}

/// A cell as tables show it.
pub fn shown(row: &Row, key: &str) -> String {
    match (key, cell(row, key)) {
        (_, Cell::Nothing) => String::new(),
        ("begun", _) => row.run.begun.map_or(String::new(), local),
        ("step", Cell::Number(done)) => match row.run.total_steps() {
            Some(total) => format!("{done}/{total}"),
            None => format!("{done}/?"),
        },
        ("seconds", Cell::Number(seconds)) => duration(seconds),
        ("train_loss" | "valid_loss" | "noise_loss" | "image_loss" | "kid", Cell::Number(x)) => format!("{x:.4}"),
        ("fid", Cell::Number(x)) => format!("{x:.2}"),
        ("images_per_second", Cell::Number(x)) => format!("{x:.0}"),
        // Why it is that device is told where it is chosen.
        ("device", Cell::Text(text)) => text.split(": ").next().unwrap_or_default().into(),
        (_, cell) => plain(&cell),
    }
}

/// A cell without rounding.
pub fn plain(cell: &Cell) -> String {
    match cell {
        Cell::Nothing => String::new(),
        Cell::Text(text) => text.clone(),
        Cell::Number(x) if *x != 0.0 && (x.abs() < 1e-4 || x.abs() >= 1e15) => format!("{x:e}"),
        Cell::Number(x) => x.to_string(),
    }
}

/// `2026-01-31 12:00`, local time.
pub fn local(at: SystemTime) -> String {
    match local_time(at) {
        Some([year, month, day, hour, minute, _]) => format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}"),
        None => utc(at),
    }
}

/// `2026-01-31T12:00:00Z`.
pub fn utc(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{:02}Z", month + 1, day + 1, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_column_has_the_name_of_a_setting() {
        assert!(COLUMNS.iter().all(|(name, _)| KEYS.iter().all(|key| key.name != *name)));
    }

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_539_723, "2026-11-24T17:02:03Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
