//! Figures as PNG and SVG.
//!
//! | file | role |
//! |---|---|
//! | [`forward`], [`embedding`], [`curves`] | figures that need no model |
//! | [`reverse`], [`samples`], [`steps`] | figures that a model draws; `rows.rs`: its pictures |
//! | `chart.rs` | lines over two axes |
//! | `ticks.rs` | round numbers along an axis |
//! | `sheet.rs` | labelled pictures in rows and columns |
//! | `drawing.rs` | a figure as a list of marks; SVG |
//! | `raster.rs` | its pixels; PNG |
//! | `font.rs` | the letters of figures, within the program |

mod chart;
pub mod curves;
mod drawing;
pub mod embedding;
mod font;
pub mod forward;
mod raster;
pub mod reverse;
mod rows;
pub mod samples;
mod sheet;
pub mod steps;
mod ticks;

pub use chart::{Axis, Chart, Look, Series};
pub use drawing::{Anchor, Colour, Drawing, Format, Mark, Point, Text};
pub use sheet::{Row, Sheet};
pub use ticks::short;
