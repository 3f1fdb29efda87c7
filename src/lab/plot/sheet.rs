//! Pictures in rows and columns, with a label at each row and above each column.

use super::drawing::{Anchor, Colour, Drawing, Mark, Text};
use crate::error::{Error, Result};
use crate::train::picture::Picture;

/// Space between pictures, and around everything.
const GAP: f64 = 3.0;
const MARGIN: f64 = 12.0;
const TITLE: f64 = 15.0;
const LABEL: f64 = 11.0;
/// Room for a line of labels.
const LINE: f64 = LABEL + 5.0;

/// A row of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Lines at its left; the second and further ones in grey.
    pub label: Vec<String>,
    /// Its pictures, of one size.
    pub pictures: Vec<Picture>,
}

/// Pictures in rows and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    /// Above everything.
    pub title: String,
    /// Above the columns; empty: none.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Side of a picture in CSS pixels; a PNG has twice as many.
    pub side: f64,
}

impl Sheet {
    /// The figure.
    ///
    /// # Errors
    /// [`Error::Failed`]: there are no pictures.
    pub fn drawing(&self) -> Result<Drawing> {
        let columns = self.rows.iter().map(|row| row.pictures.len()).max().unwrap_or(0);
        if columns == 0 {
            return Err(Error::Failed(format!("{}: there are no pictures to show", self.title)));
        }
        let text = |text: &str| Text::new((0.0, 0.0), text, LABEL);
        let widest = self.rows.iter().flat_map(|row| &row.label).map(|line| text(line).width()).fold(0.0, f64::max);
        let left = MARGIN + if widest > 0.0 { widest + 10.0 } else { 0.0 };
        let heading = if self.columns.is_empty() { 0.0 } else { LINE };
        let title = if self.title.is_empty() { 0.0 } else { TITLE + 9.0 };
        let top = MARGIN + title + heading;
        let step = self.side + GAP;
        // A row is as high as its picture, or as its label where that has more lines.
        let lines = self.rows.iter().map(|row| row.label.len()).max().unwrap_or(0) as f64;
        let row_step = step.max(lines * LINE + GAP);
        let above = (row_step - step) / 2.0;
        let title_width = Text::new((0.0, 0.0), self.title.as_str(), TITLE).bold().width();
        let width = (left + columns as f64 * step - GAP).max(MARGIN + title_width) + MARGIN;
        let height = top + self.rows.len() as f64 * row_step - GAP + MARGIN;
        let mut drawing = Drawing::new(self.title.as_str(), width.ceil(), height.ceil());
        if title > 0.0 {
            drawing.text(Text::new((MARGIN, MARGIN + TITLE - 2.0), self.title.as_str(), TITLE).bold());
        }
        for (i, label) in self.columns.iter().enumerate() {
            let at = (left + i as f64 * step + self.side / 2.0, top - 5.0);
            drawing.text(Text::new(at, label.as_str(), LABEL).anchored(Anchor::Middle).coloured(Colour::GREY));
        }
        for (i, row) in self.rows.iter().enumerate() {
            let y = top + i as f64 * row_step + above;
            let middle = y + self.side / 2.0 - row.label.len() as f64 * LINE / 2.0;
            for (k, line) in row.label.iter().enumerate() {
                let at = (MARGIN, middle + k as f64 * LINE + LABEL);
                let colour = if k == 0 { Colour::INK } else { Colour::GREY };
                drawing.text(Text::new(at, line.as_str(), LABEL).coloured(colour));
            }
            for (j, picture) in row.pictures.iter().enumerate() {
                let at = (left + j as f64 * step, y);
                drawing.marks.push(Mark::Picture { at, size: (self.side, self.side), picture: picture.clone() });
            }
        }
        Ok(drawing)
    }
}
