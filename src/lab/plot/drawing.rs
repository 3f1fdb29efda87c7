//! A figure as a list of marks (lines, areas, text, pictures) in units of a CSS pixel; written as SVG or, with twice as many pixels, as PNG.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{font, raster};
use crate::error::{Error, Result};
use crate::train::picture::Picture;
use crate::train::run_dir::write_atomic;

/// A point: right, down.
pub type Point = (f64, f64);

/// Red, green, blue, and opacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour(pub u8, pub u8, pub u8, pub f32);

impl Colour {
    /// Text and axes.
    pub const INK: Colour = Colour(0x22, 0x22, 0x22, 1.0);
    /// Text that matters less.
    pub const GREY: Colour = Colour(0x66, 0x66, 0x66, 1.0);
    /// Lines behind data.
    pub const GRID: Colour = Colour(0xe4, 0xe4, 0xe4, 1.0);
    /// The paper.
    pub const WHITE: Colour = Colour(0xff, 0xff, 0xff, 1.0);

    /// Seven colours that those who see fewer colours tell apart as well (Okabe and Ito 2008; without yellow, too pale on white).
    const PALETTE: [Colour; 7] = [
        Colour(0x00, 0x72, 0xb2, 1.0),
        Colour(0xd5, 0x5e, 0x00, 1.0),
        Colour(0x00, 0x9e, 0x73, 1.0),
        Colour(0xcc, 0x79, 0xa7, 1.0),
        Colour(0xe6, 0x9f, 0x00, 1.0),
        Colour(0x56, 0xb4, 0xe9, 1.0),
        Colour(0x00, 0x00, 0x00, 1.0),
    ];

    /// The colour of series number `i`; they repeat after seven.
    pub fn of_series(i: usize) -> Colour {
        Self::PALETTE[i % Self::PALETTE.len()]
    }

    /// How many series have colours of their own.
    pub fn count() -> usize {
        Self::PALETTE.len()
    }

    /// With this opacity.
    pub fn faded(self, opacity: f32) -> Colour {
        Colour(self.0, self.1, self.2, opacity)
    }
}

/// Which point of a text its place names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// A text on one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Where its anchor lies, on the baseline.
    pub at: Point,
    /// What it says.
    pub text: String,
    /// Height of an em.
    pub size: f64,
    /// Colour.
    pub colour: Colour,
    /// Which point of it `at` is.
    pub anchor: Anchor,
    /// Bold.
    pub bold: bool,
    /// Turned to be read from below.
    pub upwards: bool,
}

impl Text {
    /// A plain text.
    pub fn new(at: Point, text: impl Into<String>, size: f64) -> Self {
        let text = text.into();
        Text { at, text, size, colour: Colour::INK, anchor: Anchor::Start, bold: false, upwards: false }
    }

    /// Anchored so.
    pub fn anchored(mut self, anchor: Anchor) -> Self {
        self.anchor = anchor;
        self
    }

    /// In this colour.
    pub fn coloured(mut self, colour: Colour) -> Self {
        self.colour = colour;
        self
    }

    /// In bold.
    pub fn bold(mut self) -> Self {
        self.bold = true;
        self
    }

    /// Its width.
    pub fn width(&self) -> f64 {
        font::width(&self.text, self.size, self.bold)
    }
}

/// Something in a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line {
        /// The points.
        points: Vec<Point>,
        /// Colour.
        colour: Colour,
        /// Width.
        width: f64,
        /// Lengths of dashes and of the gaps between; `None`: drawn through.
        dash: Option<[f64; 2]>,
    },
    /// A filled rectangle.
    Area {
        /// Upper left corner.
        at: Point,
        /// Width and height.
        size: (f64, f64),
        /// Colour.
        colour: Colour,
    },
    /// A filled circle.
    Dot {
        /// Its centre.
        at: Point,
        /// Its radius.
        radius: f64,
        /// Colour.
        colour: Colour,
    },
    /// A text.
    Text(Text),
    /// A picture, its pixels shown as squares.
    Picture {
        /// Upper left corner.
        at: Point,
        /// Width and height.
        size: (f64, f64),
        /// The picture.
        picture: Picture,
    },
}

/// Kind of the file of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Pixels, two for each unit.
    Png,
    /// Vectors.
    Svg,
}

impl Format {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// [`Error::Usage`]: another ending than `.png` or `.svg`.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some("png") => Ok(Format::Png),
            Some("svg") => Ok(Format::Svg),
            _ => Err(Error::Usage(format!("{}: expected a file name that ends in .png or .svg", path.display()))),
        }
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// Its width.
    pub width: f64,
    /// Its height.
    pub height: f64,
    /// What it is, for those who do not see it.
    pub title: String,
    /// Its marks, later ones over earlier ones.
    pub marks: Vec<Mark>,
}

impl Drawing {
    /// An empty one.
    pub fn new(title: impl Into<String>, width: f64, height: f64) -> Self {
        Drawing { width, height, title: title.into(), marks: Vec::new() }
    }

    /// Adds a text.
    pub fn text(&mut self, text: Text) {
        self.marks.push(Mark::Text(text));
    }

    /// Adds a line between two points.
    pub fn line(&mut self, from: Point, to: Point, colour: Colour, width: f64) {
        self.marks.push(Mark::Line { points: vec![from, to], colour, width, dash: None });
    }

    /// Drawings under each other, each at the left, with `gap` between.
    pub fn stacked(title: impl Into<String>, parts: Vec<Drawing>, gap: f64) -> Self {
        let width = parts.iter().map(|part| part.width).fold(0.0, f64::max);
        let mut whole = Drawing::new(title, width, 0.0);
        for (i, part) in parts.into_iter().enumerate() {
            let top = if i == 0 { 0.0 } else { whole.height + gap };
            whole.height = top + part.height;
            whole.marks.extend(part.marks.into_iter().map(|mark| mark.moved(0.0, top)));
        }
        whole
    }

    /// Writes the figure in the format of the file's name, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Usage`]: another ending than `.png` or `.svg`. The file cannot be written; the figure is too large.
    pub fn save(&self, path: &Path) -> Result<()> {
        match Format::of(path)? {
            Format::Png => write_atomic(path, &self.png()?),
            Format::Svg => write_atomic(path, self.svg()?.as_bytes()),
        }
    }

    /// The bytes of a PNG with two pixels for each unit.
    ///
    /// # Errors
    /// It is too large.
    pub fn png(&self) -> Result<Vec<u8>> {
        raster::render(self)?.png_bytes()
    }

    /// The text of an SVG.
    ///
    /// # Errors
    /// A picture of it cannot be encoded.
    pub fn svg(&self) -> Result<String> {
        let (w, h) = (number(self.width), number(self.height));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             font-family=\"{}\">\n<title>{}</title>\n<rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n",
            font::FAMILY,
            escaped(&self.title)
        );
        for mark in &self.marks {
            mark.write_svg(&mut svg)?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

impl Mark {
    fn moved(mut self, dx: f64, dy: f64) -> Self {
        let moved = |p: &mut Point| *p = (p.0 + dx, p.1 + dy);
        match &mut self {
            Mark::Line { points, .. } => points.iter_mut().for_each(moved),
            Mark::Area { at, .. } | Mark::Dot { at, .. } | Mark::Picture { at, .. } => moved(at),
            Mark::Text(text) => moved(&mut text.at),
        }
        self
    }

    fn write_svg(&self, svg: &mut String) -> Result<()> {
        // Writing to a string does not fail.
        let _ = match self {
            Mark::Line { points, colour, width, dash } => {
                let points: Vec<String> = points.iter().map(|p| format!("{},{}", number(p.0), number(p.1))).collect();
                let dash = dash.map_or_else(String::new, |[on, off]| {
                    format!(" stroke-dasharray=\"{},{}\"", number(on), number(off))
                });
                writeln!(
                    svg,
                    "<polyline points=\"{}\" fill=\"none\" {} stroke-width=\"{}\" stroke-linejoin=\"round\"{dash}/>",
                    points.join(" "),
                    paint("stroke", *colour),
                    number(*width)
                )
            }
            Mark::Area { at, size, colour } => writeln!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" {}/>",
                number(at.0),
                number(at.1),
                number(size.0),
                number(size.1),
                paint("fill", *colour)
            ),
            Mark::Dot { at, radius, colour } => writeln!(
                svg,
                "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" {}/>",
                number(at.0),
                number(at.1),
                number(*radius),
                paint("fill", *colour)
            ),
            Mark::Text(text) => {
                let (x, y) = (number(text.at.0), number(text.at.1));
                let anchor = match text.anchor {
                    Anchor::Start => "",
                    Anchor::Middle => " text-anchor=\"middle\"",
                    Anchor::End => " text-anchor=\"end\"",
                };
                let turned = if text.upwards { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
                let bold = if text.bold { " font-weight=\"bold\"" } else { "" };
                writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y}\" font-size=\"{}\" {}{anchor}{bold}{turned}>{}</text>",
                    number(text.size),
                    paint("fill", text.colour),
                    escaped(&text.text)
                )
            }
            Mark::Picture { at, size, picture } => writeln!(
                svg,
                "<image x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" preserveAspectRatio=\"none\" \
                 style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{}\"/>",
                number(at.0),
                number(at.1),
                number(size.0),
                number(size.1),
                STANDARD.encode(picture.png_bytes()?)
            ),
        };
        Ok(())
    }
}

/// At most two decimals.
fn number(v: f64) -> String {
    let text = format!("{v:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn paint(what: &str, Colour(r, g, b, opacity): Colour) -> String {
    let colour = format!("{what}=\"#{r:02x}{g:02x}{b:02x}\"");
    if opacity < 1.0 { format!("{colour} {what}-opacity=\"{}\"", number(f64::from(opacity))) } else { colour }
}

/// As the content of an element; characters that XML does not have become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
