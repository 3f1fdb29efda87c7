//! A table of runs as text for a terminal, as CSV, as JSON.

use serde_json::{Map, Value, json};

use super::columns::{self, BEFORE, BEHIND, Cell, cell, heading, plain, shown};
use super::{Row, Runs};
use crate::lab::record::Status;

/// The columns that go first where a terminal is too narrow, least wanted first.
const DROPPED: &[&str] = &["device", "begun", "images_per_second", "seconds", "image_loss", "noise_loss", "train_loss"];
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
        let (text, width) = (cut(&self.cells[row], self.width), self.width);
        if self.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    }
}

/// `text` in at most `width` characters: of a long one the start and the end, as names often differ at the end.
fn cut(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.into();
    }
    let end = width.saturating_sub(1) / 2;
    let start = width.saturating_sub(1) - end;
    let tail: String = text.chars().skip(count - end).collect();
    format!("{}…{tail}", text.chars().take(start).collect::<String>())
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

/// Makes the columns fit into a line: texts are cut, then columns left out; returns those.
fn fit(columns: &mut Vec<Column>, width: usize, may_drop: bool) -> Vec<String> {
    let mut left_out = Vec::new();
    let total = |columns: &[Column]| columns.iter().map(|c| c.width + 2).sum::<usize>().saturating_sub(2);
    let mut dropped = DROPPED.iter();
    loop {
        while total(columns) > width {
            // The device says the least for its length.
            let least = |c: &Column| if c.key == "device" { 3 } else { LEAST.max(c.cells[0].chars().count()) };
            let wide = columns
                .iter_mut()
                .filter(|c| !c.right && c.width > least(c))
                .max_by_key(|c| (c.key == "device", c.width));
            let Some(wide) = wide else { break };
            wide.width -= 1;
        }
        if total(columns) <= width || !may_drop {
            return left_out;
        }
        let Some(key) = dropped.next() else { return left_out };
        if let Some(at) = columns.iter().position(|c| c.key == *key) {
            left_out.push(heading(&columns.remove(at).key).to_string());
        }
    }
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
