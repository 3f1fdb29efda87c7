//! Figures as PNG and SVG.
//!
//! | file | role |
//! |---|---|
//! | `chart.rs` | lines over two axes |
//! | `ticks.rs` | round numbers along an axis |
//! | `drawing.rs` | a figure as a list of marks; SVG |
//! | `raster.rs` | its pixels; PNG |
//! | `font.rs` | the letters of figures, within the program |

mod chart;
mod drawing;
mod font;
mod raster;
mod ticks;

pub use chart::{Axis, Chart, Look, Series};
pub use drawing::{Anchor, Colour, Drawing, Format, Mark, Point, Text};
pub use ticks::short;
