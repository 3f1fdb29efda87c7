//! A table of runs as text for a terminal, as CSV, as JSON.

use serde_json::{Map, Value, json};

use super::columns::{self, BEFORE, BEHIND, Cell, cell, heading, plain, shown};
use super::{Row, Runs};
use crate::lab::record::Status;

/// The columns that a terminal too narrow goes without before texts are cut, and those after; least wanted first.
const DROPPED: [&[&str]; 2] =
    [&["device", "begun", "images_per_second"], &["seconds", "image_loss", "noise_loss", "train_loss"]];
/// A text that must be cut keeps so many characters.
const LEAST: usize = 12;

/// What a table shows.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// These columns, where they are given.
    pub columns: Option<Vec<String>>,
    /// All settings rather than those that differ.
    pub all: bool,
    /// Characters of a line; None: as long as it takes.
    pub width: Option<usize>,
    /// At most so many runs.
    pub limit: Option<usize>,
}

impl View {
    /// The keys of the columns.
    fn keys(&self, rows: &[Row]) -> Vec<String> {
        if let Some(columns) = &self.columns {
            return columns.clone();
        }
        let settings = if self.all { columns::settings(rows) } else { columns::differing(rows) };
        let own = |keys: &'static [&str]| keys.iter().map(|key| key.to_string());
        own(BEFORE).chain(settings).chain(own(BEHIND)).collect()
    }

    fn rows<'a>(&self, runs: &'a Runs) -> &'a [Row] {
        &runs.rows[..self.limit.unwrap_or(usize::MAX).min(runs.rows.len())]
    }
}

struct Column {
    key: String,
    /// The heading, then a cell for each row.
    cells: Vec<String>,
    right: bool,
    width: usize,
}

impl Column {
    fn new(key: String, rows: &[Row]) -> Column {
        let cells: Vec<String> =
            std::iter::once(heading(&key).to_string()).chain(rows.iter().map(|row| shown(row, &key))).collect();
        let number = |row: &Row| matches!(cell(row, &key), Cell::Number(_) | Cell::Nothing);
        let right = rows.iter().all(number);
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        Column { key, cells, right, width }
    }

    fn padded(&self, row: usize) -> String {
        let (text, width) = (cut(&self.cells[row], self.width, self.key == "name"), self.width);
        if self.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    }
}

/// `text` in at most `width` characters: its start, or of a name, which often differs at the end, its end.
fn cut(text: &str, width: usize, keep_end: bool) -> String {
    let count = text.chars().count();
    match width.saturating_sub(1) {
        _ if count <= width => text.into(),
        kept if keep_end => format!("…{}", text.chars().skip(count - kept).collect::<String>()),
        kept => format!("{}…", text.chars().take(kept).collect::<String>()),
    }
}

/// The table for people, with a line on the whole and the damaged runs below.
pub fn table(runs: &Runs, view: &View) -> String {
    let rows = view.rows(runs);
    let mut columns: Vec<_> = view.keys(rows).into_iter().map(|key| Column::new(key, rows)).collect();
    if view.columns.is_none() {
        columns.retain(|column| column.cells[1..].iter().any(|cell| !cell.is_empty()));
    }
    let left_out = view.width.map(|width| fit(&mut columns, width, view.columns.is_none())).unwrap_or_default();
    let mut text = String::new();
    if !rows.is_empty() {
        for row in 0..=rows.len() {
            let line: Vec<_> = columns.iter().map(|column| column.padded(row)).collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
    }
    text.push_str(&footer(runs, rows.len()));
    if !left_out.is_empty() {
        text.push_str(&format!("the terminal is too narrow for: {} (--all)\n", left_out.join(", ")));
    }
    if !runs.damaged.is_empty() {
        text.push_str("damaged\n");
        for (path, why) in &runs.damaged {
            text.push_str(&format!("  {}: {}\n", path.display(), reason(path, why)));
        }
    }
    text
}

/// The reason without the path that stands before it already.
fn reason(path: &std::path::Path, why: &str) -> String {
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    why.strip_prefix(&format!("{}/", path.display())).unwrap_or(&why).to_string()
}

fn footer(runs: &Runs, shown: usize) -> String {
    if runs.rows.is_empty() {
        return "no runs\n".into();
    }
    let count = |status| runs.rows.iter().filter(|row| row.run.status == status).count();
    let parts: Vec<_> = [Status::Finished, Status::Running, Status::Stopped]
        .into_iter()
        .filter(|status| count(*status) > 0)
        .map(|status| format!("{} {}", count(status), status.name()))
        .collect();
    let (n, s) = (runs.rows.len(), if runs.rows.len() == 1 { "" } else { "s" });
    let first = if shown < n { format!("; the first {shown} are shown") } else { String::new() };
    format!("{n} run{s}: {}{first}\n", parts.join(", "))
}

/// Makes the columns fit into a line: some are left out, then texts are cut, then others left out; returns those left out.
fn fit(columns: &mut Vec<Column>, width: usize, may_drop: bool) -> Vec<String> {
    fn total(columns: &[Column]) -> usize {
        columns.iter().map(|column| column.width + 2).sum::<usize>().saturating_sub(2)
    }
    let mut left_out = Vec::new();
    let mut drop_some = |columns: &mut Vec<Column>, keys: &[&str]| {
        for key in keys.iter().filter(|_| may_drop) {
            let at = columns.iter().position(|column| column.key == *key);
            if let Some(at) = at.filter(|_| total(columns) > width) {
                left_out.push(heading(&columns.remove(at).key).to_string());
            }
        }
    };
    drop_some(columns, DROPPED[0]);
    while total(columns) > width {
        let least = |column: &Column| LEAST.max(column.cells[0].chars().count());
        let wide = columns.iter_mut().filter(|column| !column.right && column.width > least(column));
        let Some(widest) = wide.max_by_key(|column| column.width) else { break };
        widest.width -= 1;
    }
    drop_some(columns, DROPPED[1]);
    left_out
}

/// Comma-separated values with a heading line; numbers unrounded.
pub fn csv(runs: &Runs, view: &View) -> String {
    let rows = view.rows(runs);
    let mut keys = view.keys(rows);
    if view.columns.is_none()
        && let Some(at) = keys.iter().position(|key| key == "step")
    {
        keys.insert(at + 1, "total_steps".into());
    }
    let line = |fields: Vec<String>| fields.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(",") + "\n";
    let mut text = line(keys.clone());
    for row in rows {
        text.push_str(&line(keys.iter().map(|key| plain(&cell(row, key))).collect()));
    }
    text
}

fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.into(),
    }
}

/// `{"runs": [...], "damaged": [...]}` with everything that is known of each run.
pub fn json(runs: &Runs, view: &View) -> Value {
    let all: Vec<Value> = view.rows(runs).iter().map(run_json).collect();
    let damaged: Vec<Value> = runs
        .damaged
        .iter()
        .map(|(path, why)| json!({"path": path.display().to_string(), "why": reason(path, why)}))
        .collect();
    json!({"runs": all, "damaged": damaged})
}

/// Everything that is known of a run.
pub fn run_json(row: &Row) -> Value {
    let value = |cell: Cell| match cell {
        Cell::Nothing => Value::Null,
        Cell::Text(text) => Value::String(text),
        // Steps and the like are whole.
        Cell::Number(x) if x.fract() == 0.0 && x.abs() < 9e15 => json!(x as i64),
        Cell::Number(x) => json!(x),
    };
    let typed = |text: &String| match text.parse::<bool>() {
        Ok(flag) => Value::Bool(flag),
        Err(_) => serde_json::from_str::<Value>(text).unwrap_or_else(|_| Value::String(text.clone())),
    };
    let settings: Map<String, Value> = row.run.settings.iter().map(|(key, text)| (key.clone(), typed(text))).collect();
    let mut all: Map<String, Value> =
        columns::COLUMNS.iter().map(|(key, _)| (key.to_string(), value(cell(row, key)))).collect();
    all.insert("settings".into(), Value::Object(settings));
    all.insert("train".into(), json!(row.run.train));
    all.insert("valid".into(), json!(row.run.valid));
    all.insert("evaluation".into(), json!(row.run.evaluation));
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(key: &str, right: bool, cells: &[&str]) -> Column {
        let cells: Vec<String> = cells.iter().map(|cell| cell.to_string()).collect();
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap();
        Column { key: key.into(), cells, right, width }
    }

    #[test]
    fn a_narrow_terminal_loses_the_least() {
        let columns = || {
            let name = column("name", false, &["run", "sweep-loss-predict/loss=mae"]);
            vec![
                name,
                column("train_loss", true, &["train", "0.1234"]),
                column("device", false, &["device", "cpu (AVX512)"]),
            ]
        };
        let line = |columns: &[Column]| columns.iter().map(|column| column.padded(1)).collect::<Vec<_>>().join("  ");
        for (width, left_out, text) in [
            (49, 0, "sweep-loss-predict/loss=mae  0.1234  cpu (AVX512)"),
            (48, 1, "sweep-loss-predict/loss=mae  0.1234"),
            (30, 1, "…loss-predict/loss=mae  0.1234"),
            (10, 2, "…ct/loss=mae"),
        ] {
            let mut all = columns();
            assert_eq!(fit(&mut all, width, true).len(), left_out, "{width}");
            let line = line(&all);
            assert!(line.chars().count() <= width.max(12), "{line}");
            assert!(line.ends_with(text), "{line}");
        }
        assert_eq!([cut("abcdef", 4, true), cut("abcdef", 4, false), cut("abcd", 4, true)], ["…def", "abc…", "abcd"]);
    }
}
