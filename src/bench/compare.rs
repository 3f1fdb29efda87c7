//! Two result files side by side.

use std::path::Path;

use serde_json::Value;

use super::FORMAT;
use super::table::{seconds, table};
use crate::error::{Error, Result};

/// A time of a result file.
#[derive(Clone, Debug, PartialEq)]
struct Time {
    name: String,
    median: f64,
    /// p20 and p80.
    spread: Option<(f64, f64)>,
}

/// A result file, read.
struct Report {
    json: Value,
    times: Vec<Time>,
}

/// Reads a result file of `bench kernels`, `bench step` or `bench sample`.
fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).map_err(|why| match why.kind() {
        std::io::ErrorKind::NotFound => Error::input(path, "no such file; expected one that bench --json wrote"),
        _ => Error::input(path, format!("cannot be read ({why}); expected a file that bench --json wrote")),
    })?;
    let json: Value = serde_json::from_str(&text)
        .map_err(|why| Error::input(path, format!("is no JSON ({why}); expected a file that bench --json wrote")))?;
    if json["format"] != FORMAT {
        let found = match &json["format"] {
            Value::Null => "no `format`".to_string(),
            other => format!("format {other}"),
        };
        return Err(Error::input(path, format!("has {found}; expected \"{FORMAT}\", as bench --json writes it")));
    }
    let mut times = Vec::new();
    for (i, row) in json["rows"].as_array().into_iter().flatten().enumerate() {
        let word = |key: &str| row[key].as_str().unwrap_or_default();
        let name = [word("operation"), word("shape"), word("options")].join(" ").trim_end().to_string();
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        for cache in ["hot", "cold"] {
            let of = &row[cache];
            if of.is_null() {
                continue;
            }
            let number = |key: &str| of[key].as_f64().filter(|v| v.is_finite() && *v > 0.0);
            let Some(median) = number("median") else {
                return Err(Error::input(path, format!("rows[{i}].{cache} has no `median` above 0")));
            };
            let spread = number("p20").zip(number("p80"));
            times.push(Time { name: format!("{name} ({cache})"), median, spread });
        }
    }
    if times.is_empty() {
        return Err(Error::input(path, "has no rows with times; was it written with --list?"));
    }
    Ok(Report { json, times })
}

/// Settings that make times incomparable where they differ.
const SETTINGS: [&str; 6] = ["what", "device", "precision", "batch_size", "image_size", "version"];

/// A table of the times of both, their ratio (second over first: below 1 the second is faster), and a mark where the difference is beyond
/// the spread (p20 to p80) of both; then what only one of them has.
///
/// # Errors
/// A file that is missing or no such result, by name.
pub fn compare(first: &Path, second: &Path) -> Result<String> {
    let (a, b) = (read(first)?, read(second)?);
    let mut text = format!("A  {}\nB  {}\n", first.display(), second.display());
    for key in SETTINGS {
        let (of_a, of_b) = (&a.json[key], &b.json[key]);
        if of_a != of_b {
            text.push_str(&format!("differs: {key}: {of_a} in A, {of_b} in B\n"));
        }
    }
    for (name, report) in [("A", &a), ("B", &b)] {
        if let Some(share) = report.json["machine"]["others_share_of_cores"].as_f64().filter(|share| *share > 0.05) {
            text.push_str(&format!("disturbed: others used {:.0} % of the cores during {name}\n", 100.0 * share));
        }
    }
    let mut rows = Vec::new();
    let mut ratios = Vec::new();
    for of_a in &a.times {
        let Some(of_b) = b.times.iter().find(|t| t.name == of_a.name) else { continue };
        let ratio = of_b.median / of_a.median;
        ratios.push(ratio);
        rows.push(vec![
            of_a.name.clone(),
            seconds(of_a.median),
            seconds(of_b.median),
            format!("{ratio:.3}"),
            mark(of_a, of_b).to_string(),
        ]);
    }
    text.push_str(&table(&["operation", "A", "B", "B/A", "options"], &rows, 1).replacen("options", "", 1));
    if !ratios.is_empty() {
        let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
        text.push_str(&format!("geometric mean of B/A {mean:.3} over {} times\n", ratios.len()));
    }
    for (name, own, other) in [("A", &a, &b), ("B", &b, &a)] {
        for time in own.times.iter().filter(|t| other.times.iter().all(|o| o.name != t.name)) {
            text.push_str(&format!("only in {name}: {}\n", time.name));
        }
    }
    Ok(text)
}

/// What the spreads say of a difference.
fn mark(a: &Time, b: &Time) -> &'static str {
    match (a.spread, b.spread) {
        (Some((_, high)), Some((low, _))) if low > high => "slower",
        (Some((low, _)), Some((_, high))) if high < low => "faster",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_beyond_both_spreads_are_marked() {
        let time = |median, low, high| Time { name: String::new(), median, spread: Some((low, high)) };
        assert_eq!(mark(&time(1.0, 0.9, 1.1), &time(2.0, 1.5, 2.5)), "slower");
        assert_eq!(mark(&time(2.0, 1.5, 2.5), &time(1.0, 0.9, 1.1)), "faster");
        assert_eq!(mark(&time(1.0, 0.9, 1.6), &time(2.0, 1.5, 2.5)), "");
        assert_eq!(mark(&Time { spread: None, ..time(1.0, 1.0, 1.0) }, &time(2.0, 2.0, 2.0)), "");
    }
}
