//! A chart: series of points over two axes, described once, drawn as SVG and PNG alike.
//!
//! ```no_run
//! use ddim_engine::lab::plot::{Axis, Chart, Series};
//!
//! let points = vec![(1e-4, 0.9), (1e-3, 0.5), (1e-2, 0.7)];
//! Chart::new("Learning-rate finder")
//!     .x(Axis::log("learning rate"))
//!     .y(Axis::linear("loss"))
//!     .series(Series::line("smoothed", points))
//!     .mark_x(1e-3, "suggestion 0.001")
//!     .save("find-lr.png".as_ref())?;
//! # Ok::<(), ddim_engine::error::Error>(())
//! ```

use std::path::Path;

use super::drawing::{Anchor, Colour, Drawing, Format, Mark, Point, Text};
use super::font;
use super::ticks::{self, Tick};
use crate::error::{Error, Result};

const TITLE: f64 = 17.0;
const LABEL: f64 = 15.0;
const TICK: f64 = 14.0;
/// Height of a row of the legend.
const LEGEND_ROW: f64 = 21.0;
/// Pixels of the paper's edge.
const EDGE: f64 = 12.0;

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    label: String,
    log: bool,
    range: Option<(f64, f64)>,
}

impl Axis {
    /// Even steps.
    pub fn linear(label: impl Into<String>) -> Self {
        Axis { label: label.into(), log: false, range: None }
    }

    /// Logarithmic; values that are not above 0 are left out.
    pub fn log(label: impl Into<String>) -> Self {
        Axis { log: true, ..Self::linear(label) }
    }

    /// Logarithmic if asked for.
    pub fn of(label: impl Into<String>, log: bool) -> Self {
        Axis { log, ..Self::linear(label) }
    }

    /// From `low` to `high`, whatever the data; what lies outside is cut off.
    pub fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    fn shows(&self, v: f64) -> bool {
        // Nearer to the end of float64 the width of an axis would not be a number.
        v.abs() < 1e300 && (!self.log || v > 1e-300)
    }

    fn place(&self, v: f64) -> f64 {
        if self.log { v.log10() } else { v }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A line.
    Line,
    /// A line of dashes.
    Dashed,
    /// A thin pale line: raw values behind a smoothed line.
    Faint,
    /// A dot at each point, and a line.
    Dots,
}

/// Points of one name and colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    name: String,
    points: Vec<Point>,
    look: Look,
    colour: Option<usize>,
}

impl Series {
    /// Points with a look. Where a value is not finite, the line has a gap. Without a name it is not in the legend.
    pub fn new(name: impl Into<String>, points: Vec<Point>, look: Look) -> Self {
        Series { name: name.into(), points, look, colour: None }
    }

    /// A line.
    pub fn line(name: impl Into<String>, points: Vec<Point>) -> Self {
        Self::new(name, points, Look::Line)
    }

    /// In colour number `i` of the palette, where it is not to be the next one.
    pub fn colour(mut self, i: usize) -> Self {
        self.colour = Some(i);
        self
    }
}

/// A place that is pointed out.
#[derive(Clone, Debug, PartialEq)]
enum Pointer {
    X(f64, String),
    Y(f64, String),
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
    pointers: Vec<Pointer>,
    size: (f64, f64),
}

/// The lower and upper end of an axis, as [`Axis::place`] has them, and where they lie.
struct Scale<'a> {
    axis: &'a Axis,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale<'_> {
    fn at(&self, v: f64) -> f64 {
        let at = self.from + (self.axis.place(v) - self.low) / (self.high - self.low) * (self.to - self.from);
        // However far outside of a given range a value lies, its place stays a number to reckon with.
        at.clamp(-1e9, 1e9)
    }

    fn ticks(&self, wanted: usize) -> Vec<Tick> {
        if self.axis.log {
            ticks::logarithmic(10f64.powf(self.low), 10f64.powf(self.high), wanted)
        } else {
            ticks::linear(self.low, self.high, wanted)
        }
    }
}

impl Chart {
    /// An empty chart of 560 x 360.
    pub fn new(title: impl Into<String>) -> Self {
        let (x, y) = (Axis::linear(""), Axis::linear(""));
        Chart { title: title.into(), x, y, series: Vec::new(), pointers: Vec::new(), size: (560.0, 360.0) }
    }

    /// The horizontal axis.
    pub fn x(mut self, axis: Axis) -> Self {
        self.x = axis;
        self
    }

    /// The vertical axis.
    pub fn y(mut self, axis: Axis) -> Self {
        self.y = axis;
        self
    }

    /// Adds a series.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Points out a value of x with an upright line and a label.
    pub fn mark_x(mut self, at: f64, label: impl Into<String>) -> Self {
        self.pointers.push(Pointer::X(at, label.into()));
        self
    }

    /// Points out a value of y with a level line and a label.
    pub fn mark_y(mut self, at: f64, label: impl Into<String>) -> Self {
        self.pointers.push(Pointer::Y(at, label.into()));
        self
    }

    /// Width and height in CSS pixels; a PNG has twice as many. A legend of several rows makes it higher.
    pub fn size(mut self, width: f64, height: f64) -> Self {
        self.size = (width, height);
        self
    }

    /// Writes the chart, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Usage`]: another ending than `.png` or `.svg`. [`Error::Failed`]: there is no point to draw. The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Format::of(path)?;
        self.drawing()?.save(path)
    }

    /// The chart as a figure, for figures of several parts.
    ///
    /// # Errors
    /// [`Error::Failed`]: there is no point to draw.
    pub fn drawing(&self) -> Result<Drawing> {
        let bounds = |axis: &Axis, of: fn(&Point) -> f64, room: f64| {
            let shown = self.series.iter().flat_map(|s| &s.points).filter(|p| self.shows(p));
            let ends = |(low, high): (f64, f64), v: f64| (low.min(v), high.max(v));
            let found = shown.map(|p| axis.place(of(p))).fold((f64::INFINITY, f64::NEG_INFINITY), ends);
            let wanted = axis.range.map(|(low, high)| (axis.place(low), axis.place(high)));
            match wanted {
                Some((low, high)) if low < high && low.is_finite() && high.is_finite() => (low, high),
                _ if found.0 == found.1 => {
                    let around = match found.0 {
                        _ if axis.log => 0.5,
                        0.0 => 1.0,
                        v => (v.abs() * 0.1).max(1e-300),
                    };
                    (found.0 - around, found.1 + around)
                }
                _ => {
                    let room = room * (found.1 - found.0);
                    (found.0 - room, found.1 + room)
                }
            }
        };
        if !self.series.iter().flat_map(|s| &s.points).any(|p| self.shows(p)) {
            let (n, what) =
                (self.series.len(), "has no point that can be drawn (finite, and above 0 on a logarithmic axis)");
            return Err(Error::Failed(format!("figure \"{}\": none of its {n} series {what}", self.title)));
        }
        let (x_low, x_high) = bounds(&self.x, |p| p.0, 0.015);
        let (y_low, y_high) = bounds(&self.y, |p| p.1, 0.05);

        let mut out = Drawing::new(&self.title, self.size.0, self.size.1);
        let mut top = EDGE;
        if !self.title.is_empty() {
            let title = font::fit(&self.title, TITLE * 1.08, self.size.0 - 2.0 * EDGE);
            out.text(Text::new((EDGE, top + TITLE), title, TITLE).bold());
            top += TITLE + 10.0;
        }
        let legend = self.legend(&mut out, top);
        out.height += (legend - top - LEGEND_ROW).max(0.0);
        top = legend + 8.0;

        let y_title = if self.y.label.is_empty() { 0.0 } else { LABEL + 8.0 };
        let x_title = if self.x.label.is_empty() { 0.0 } else { LABEL + 6.0 };
        let bottom = out.height - EDGE - x_title - TICK - 6.0;
        let y = Scale { axis: &self.y, low: y_low, high: y_high, from: bottom, to: top };
        let y_ticks = y.ticks(((bottom - top) / 36.0).ceil() as usize);
        let widest = y_ticks.iter().map(|t| font::width(&t.label, TICK, false)).fold(0.0, f64::max);
        let (left, right) = (EDGE + y_title + widest + 7.0, self.size.0 - EDGE - 8.0);
        let x = Scale { axis: &self.x, low: x_low, high: x_high, from: left, to: right };
        let x_ticks = x.ticks(((right - left) / if self.x.log { 60.0 } else { 80.0 }) as usize);

        for tick in &y_ticks {
            let at = y.at(tick.at);
            let faint = if tick.label.is_empty() { 0.5 } else { 1.0 };
            out.line((left, at), (right, at), Colour::GRID.faded(faint), 1.0);
            out.text(Text::new((left - 7.0, at + TICK * 0.36), &tick.label, TICK).anchored(Anchor::End));
        }
        for tick in &x_ticks {
            let at = x.at(tick.at);
            let faint = if tick.label.is_empty() { 0.5 } else { 1.0 };
            out.line((at, top), (at, bottom), Colour::GRID.faded(faint), 1.0);
            // A label in the middle under its line, but within the paper.
            let half = font::width(&tick.label, TICK, false) / 2.0;
            let middle = at.min(self.size.0 - 2.0 - half);
            out.text(Text::new((middle, bottom + TICK + 5.0), &tick.label, TICK).anchored(Anchor::Middle));
        }
        out.marks.retain(|mark| !matches!(mark, Mark::Text(text) if text.text.is_empty()));
        out.line((left, top), (left, bottom), Colour::INK, 1.0);
        out.line((left - 0.5, bottom), (right, bottom), Colour::INK, 1.0);
        let middle = (left + right) / 2.0;
        if !self.x.label.is_empty() {
            let label = Text::new((middle, out.height - EDGE - 1.0), &self.x.label, LABEL);
            out.text(label.anchored(Anchor::Middle));
        }
        if !self.y.label.is_empty() {
            let label = Text::new((EDGE + LABEL - 3.0, (top + bottom) / 2.0), &self.y.label, LABEL);
            out.text(Text { upwards: true, ..label.anchored(Anchor::Middle) });
        }
        let frame = Frame { left, right, top, bottom };
        for (i, series) in self.series.iter().enumerate() {
            self.draw(&mut out, series, series.colour.unwrap_or(i), &x, &y, &frame);
        }
        let pointers: Vec<Pointed> = self.pointers.iter().filter_map(|pointer| pointer.place(&x, &y, &frame)).collect();
        for Pointed { line, .. } in &pointers {
            let (points, dash) = (line.to_vec(), Some([4.0, 3.0]));
            out.marks.push(Mark::Line { points, colour: Colour::INK, width: 1.2, dash });
        }
        let mut down = 0.0;
        for pointed in pointers {
            down = pointed.label(&mut out, &frame, down);
        }
        Ok(out)
    }

    fn shows(&self, p: &Point) -> bool {
        self.x.shows(p.0) && self.y.shows(p.1)
    }

    /// Draws the legend from `top` on; returns where it ends.
    fn legend(&self, out: &mut Drawing, top: f64) -> f64 {
        let named: Vec<(usize, &Series)> = self.series.iter().enumerate().filter(|(_, s)| !s.name.is_empty()).collect();
        if named.is_empty() {
            return top;
        }
        let (swatch, gap, row) = (22.0, 18.0, LEGEND_ROW);
        let (mut x, mut y) = (EDGE, top);
        for (i, series) in named {
            let empty = !series.points.iter().any(|p| self.shows(p));
            let name = if empty { format!("{} (no data)", series.name) } else { series.name.clone() };
            let name = font::fit(&name, TICK, self.size.0 - 2.0 * EDGE - swatch - 6.0);
            let width = swatch + 6.0 + font::width(&name, TICK, false);
            if x > EDGE && x + width > self.size.0 - EDGE {
                (x, y) = (EDGE, y + row);
            }
            let (level, colour) = (y + 10.0, Colour::of_series(series.colour.unwrap_or(i)));
            out.marks.push(stroke(vec![(x, level), (x + swatch, level)], series.look, colour));
            if series.look == Look::Dots {
                out.marks.push(Mark::Dot { at: (x + swatch / 2.0, level), radius: 3.5, colour });
            }
            out.text(Text::new((x + swatch + 6.0, y + 15.0), name, TICK));
            x += width + gap;
        }
        y + row
    }

    fn draw(&self, out: &mut Drawing, series: &Series, colour: usize, x: &Scale, y: &Scale, frame: &Frame) {
        let colour = Colour::of_series(colour);
        for run in series.points.split(|p| !self.shows(p)).filter(|run| !run.is_empty()) {
            let placed: Vec<Point> = run.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
            if let [alone] = placed[..]
                && frame.holds(alone)
            {
                out.marks.push(Mark::Dot { at: alone, radius: 3.0, colour });
            }
            if series.look == Look::Dots && placed.len() > 1 {
                let inside = placed.iter().filter(|p| frame.holds(**p));
                out.marks.extend(inside.map(|&at| Mark::Dot { at, radius: 3.5, colour }));
            }
            for points in frame.cut(&thinned(&placed)) {
                out.marks.push(stroke(points, series.look, colour));
            }
        }
    }
}

fn stroke(points: Vec<Point>, look: Look, colour: Colour) -> Mark {
    let (width, opacity, dash) = match look {
        Look::Line | Look::Dots => (2.0, 1.0, None),
        Look::Dashed => (2.0, 1.0, Some([6.0, 4.0])),
        Look::Faint => (1.0, 0.35, None),
    };
    Mark::Line { points, colour: colour.faded(opacity), width, dash }
}

/// Where many points fall into half a unit, its first, least, greatest and last: what is seen stays the same.
fn thinned(points: &[Point]) -> Vec<Point> {
    let column = |p: &Point| (p.0 * 2.0).floor();
    let mut out = Vec::new();
    for group in points.chunk_by(|a, b| column(a) == column(b)) {
        if group.len() <= 4 {
            out.extend_from_slice(group);
            continue;
        }
        let by = |a: &&(usize, &Point), b: &&(usize, &Point)| a.1.1.total_cmp(&b.1.1);
        let numbered: Vec<(usize, &Point)> = group.iter().enumerate().collect();
        let mut kept = vec![0, group.len() - 1];
        kept.extend(numbered.iter().min_by(by).map(|p| p.0));
        kept.extend(numbered.iter().max_by(by).map(|p| p.0));
        kept.sort_unstable();
        kept.dedup();
        out.extend(kept.into_iter().map(|i| group[i]));
    }
    out
}

/// The rectangle that data is drawn in.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn holds(&self, p: Point) -> bool {
        (self.left - 0.01..=self.right + 0.01).contains(&p.0) && (self.top - 0.01..=self.bottom + 0.01).contains(&p.1)
    }

    /// The parts of a line that lie within (Liang and Barsky 1984).
    fn cut(&self, points: &[Point]) -> Vec<Vec<Point>> {
        let mut parts: Vec<Vec<Point>> = Vec::new();
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let (dx, dy) = (x1 - x0, y1 - y0);
            let (mut from, mut to) = (0.0f64, 1.0f64);
            let sides = [(-dx, x0 - self.left), (dx, self.right - x0), (-dy, y0 - self.top), (dy, self.bottom - y0)];
            for (slope, room) in sides {
                match slope {
                    s if s < 0.0 => from = from.max(room / s),
                    s if s > 0.0 => to = to.min(room / s),
                    _ if room < 0.0 => to = -1.0,
                    _ => {}
                }
            }
            if from > to {
                continue;
            }
            let along = |t: f64| (x0 + t * dx, y0 + t * dy);
            let (start, end) =
                (if from == 0.0 { pair[0] } else { along(from) }, if to == 1.0 { pair[1] } else { along(to) });
            match parts.last_mut() {
                Some(part) if part.last() == Some(&start) => part.push(end),
                _ => parts.push(vec![start, end]),
            }
        }
        parts
    }
}

/// A pointer on the paper.
struct Pointed<'a> {
    line: [Point; 2],
    label: &'a str,
}

impl Pointer {
    /// `None` where it lies outside.
    fn place(&self, x: &Scale, y: &Scale, frame: &Frame) -> Option<Pointed<'_>> {
        let (line, label) = match self {
            Pointer::X(v, label) if x.axis.shows(*v) => ([(x.at(*v), frame.top), (x.at(*v), frame.bottom)], label),
            Pointer::Y(v, label) if y.axis.shows(*v) => ([(frame.left, y.at(*v)), (frame.right, y.at(*v))], label),
            _ => return None,
        };
        line.iter().all(|p| frame.holds(*p)).then_some(Pointed { line, label })
    }
}

impl Pointed<'_> {
    /// Writes the label, `down` from the top if the line is upright; returns where the next may begin.
    fn label(&self, out: &mut Drawing, frame: &Frame, down: f64) -> f64 {
        let width = font::width(self.label, TICK, false);
        let [start, end] = self.line;
        let upright = start.0 == end.0;
        let (left, base) = match upright {
            true if start.0 + 6.0 + width <= frame.right => (start.0 + 6.0, start.1 + down + TICK),
            true => (start.0 - 6.0 - width, start.1 + down + TICK),
            false if start.1 - 6.0 - TICK < frame.top => (end.0 - width - 2.0, start.1 + 3.0 + TICK),
            false => (end.0 - width - 2.0, start.1 - 6.0),
        };
        // A pale ground, so that the label can be read over lines.
        let ground = Colour::WHITE.faded(0.85);
        out.marks.push(Mark::Area { at: (left - 2.0, base - TICK), size: (width + 4.0, TICK + 4.0), colour: ground });
        out.text(Text::new((left, base), self.label, TICK));
        if upright { down + TICK + 6.0 } else { down }
    }
}
