//! The table of all runs, and the difference of two.
//!
//! | module | what |
//! |---|---|
//! | [`columns`] | what a table can show of a run: one value for each key |
//! | [`filter`] | `key>value` |
//! | [`render`] | the table as text for a terminal, as CSV, as JSON |
//! | [`diff`] | two runs side by side, and one run by itself |

pub mod columns;
pub mod diff;
pub mod filter;
pub mod render;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use columns::{Cell, cell};
use filter::Filter;

use crate::error::Result;
use crate::lab::record::{self, RunRecord};

/// A run in a table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its path below the folder that was looked in; the folder's name where that is the run itself.
    pub name: String,
    /// What lies in it.
    pub run: RunRecord,
}

/// The runs that were found.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// Those that can be read, by folder and name until they are sorted.
    pub rows: Vec<Row>,
    /// Those that cannot, each with the reason.
    pub damaged: Vec<(PathBuf, String)>,
}

impl Runs {
    /// All runs in folders (or the runs that these are). One that is in two of them is there once.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn find(folders: &[PathBuf]) -> Result<Runs> {
        let mut runs = Runs::default();
        let mut seen = BTreeSet::new();
        for folder in folders {
            for (root, found) in record::find(folder)? {
                if folders.len() > 1 && !seen.insert(std::fs::canonicalize(&root).unwrap_or_else(|_| root.clone())) {
                    continue;
                }
                match found {
                    Ok(run) => runs.rows.push(Row { name: name(folder, &root, &run, folders.len() > 1), run }),
                    Err(why) => runs.damaged.push((root, why.to_string())),
                }
            }
        }
        Ok(runs)
    }

    /// Keeps those that pass every filter.
    ///
    /// # Errors
    /// A filter's key that no run has.
    pub fn filter(&mut self, filters: &[Filter]) -> Result<()> {
        for filter in filters {
            let key = columns::named(&filter.key);
            columns::check(key, self)?;
            self.rows.retain(|row| filter.passes(&cell(row, key)));
        }
        Ok(())
    }

    /// Sorts by a column or setting, those without a value last. Equal ones stay in their order.
    ///
    /// # Errors
    /// A key that no run has.
    pub fn sort(&mut self, key: &str, reverse: bool) -> Result<()> {
        let key = columns::named(key);
        columns::check(key, self)?;
        let mut keyed: Vec<_> = self.rows.drain(..).map(|row| (cell(&row, key), row)).collect();
        keyed.sort_by(|(a, _), (b, _)| {
            let order = match (a, b) {
                (Cell::Nothing, Cell::Nothing) => return Ordering::Equal,
                (Cell::Nothing, _) => return Ordering::Greater,
                (_, Cell::Nothing) => return Ordering::Less,
                (Cell::Number(a), Cell::Number(b)) => a.total_cmp(b),
                // Numbers before texts.
                (Cell::Number(_), Cell::Text(_)) => Ordering::Less,
                (Cell::Text(_), Cell::Number(_)) => Ordering::Greater,
                (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
            };
            if reverse { order.reverse() } else { order }
        });
        self.rows = keyed.into_iter().map(|(_, row)| row).collect();
        Ok(())
    }
}

/// What a table calls a run.
fn name(folder: &Path, root: &Path, run: &RunRecord, several: bool) -> String {
    let below = root.strip_prefix(folder).unwrap_or(root);
    match below.as_os_str().is_empty() {
        true => run.name.clone(),
        false if several => root.display().to_string(),
        false => below.display().to_string(),
    }
}
