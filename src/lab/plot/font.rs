//! The font of figures: a subset of DejaVu Sans Condensed within the program, so that figures are the same bytes on every machine.
//! `assets/LICENSE-figure-sans.txt` has its licence. Latin-1, Greek, superscript digits, some signs of mathematics; other characters
//! show as boxes in PNGs.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, OutlineCurve};
use tiny_skia::{Path, PathBuilder};

/// What SVG viewers are asked for: fonts about as wide as the one within.
pub const FAMILY: &str = "DejaVu Sans Condensed, Helvetica, Arial, sans-serif";

static REGULAR: &[u8] = include_bytes!("../../../assets/figure-sans.ttf");
static BOLD: &[u8] = include_bytes!("../../../assets/figure-sans-bold.ttf");

/// `None` cannot happen: a test reads both.
fn font(bold: bool) -> Option<&'static FontRef<'static>> {
    static FONTS: [OnceLock<Option<FontRef<'static>>>; 2] = [OnceLock::new(), OnceLock::new()];
    FONTS[usize::from(bold)].get_or_init(|| FontRef::try_from_slice(if bold { BOLD } else { REGULAR }).ok()).as_ref()
}

/// Calls `each` with every glyph of `text` and where it begins, in em; returns where the text ends.
fn walk(font: &FontRef<'_>, text: &str, mut each: impl FnMut(ab_glyph::GlyphId, f32)) -> f32 {
    let em = font.units_per_em().unwrap_or(2048.0);
    let (mut at, mut before) = (0.0, None);
    for c in text.chars() {
        let glyph = font.glyph_id(c);
        if let Some(before) = before {
            at += font.kern_unscaled(before, glyph) / em;
        }
        each(glyph, at);
        at += font.h_advance_unscaled(glyph) / em;
        before = Some(glyph);
    }
    at
}

/// Width of a text of this size.
pub fn width(text: &str, size: f64, bold: bool) -> f64 {
    font(bold).map_or(0.0, |font| f64::from(walk(font, text, |_, _| {})) * size)
}

/// The text cut to at most `room`, with an ellipsis where something is missing.
pub fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size, false) <= room {
        return text.to_string();
    }
    let mut kept: Vec<char> = text.chars().collect();
    while kept.pop().is_some() {
        let short = kept.iter().collect::<String>().trim_end().to_string() + "…";
        if width(&short, size, false) <= room {
            return short;
        }
    }
    String::new()
}

/// The outlines of a text of size 1 that begins at (0, 0), y downwards. `None` where there is nothing to fill.
pub fn outlines(text: &str, bold: bool) -> Option<Path> {
    let font = font(bold)?;
    let em = font.units_per_em().unwrap_or(2048.0);
    let mut path = PathBuilder::new();
    walk(font, text, |glyph, x| {
        let Some(outline) = font.outline(glyph) else { return };
        let at = |p: ab_glyph::Point| (x + p.x / em, -p.y / em);
        let mut last = None;
        for curve in outline.curves {
            let from = match &curve {
                OutlineCurve::Line(a, _) | OutlineCurve::Quad(a, _, _) | OutlineCurve::Cubic(a, _, _, _) => at(*a),
            };
            if last != Some(from) {
                path.move_to(from.0, from.1);
            }
            let to = match curve {
                OutlineCurve::Line(_, b) => {
                    path.line_to(at(b).0, at(b).1);
                    at(b)
                }
                OutlineCurve::Quad(_, b, c) => {
                    path.quad_to(at(b).0, at(b).1, at(c).0, at(c).1);
                    at(c)
                }
                OutlineCurve::Cubic(_, b, c, d) => {
                    path.cubic_to(at(b).0, at(b).1, at(c).0, at(c).1, at(d).0, at(d).1);
                    at(d)
                }
            };
            last = Some(to);
        }
    });
    path.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fonts_are_there_and_have_the_letters_of_figures() {
        for bold in [false, true] {
            let font = font(bold).unwrap();
            let text = if bold { "Noise × loss" } else { "αβσθ ⁰¹²³⁴⁵⁶⁷⁸⁹⁻ −×…→≤é" };
            for c in text.chars() {
                assert_ne!(font.glyph_id(c).0, 0, "{c}");
            }
            assert!(outlines("loss", bold).is_some());
        }
        assert!(outlines("  ", false).is_none() && outlines("", false).is_none());
    }

    #[test]
    fn widths_add_up_and_texts_are_cut() {
        let one = width("mm", 10.0, false);
        assert!((2.0 * one - width("mmmm", 10.0, false)).abs() < 1e-4);
        assert!((width("mm", 20.0, false) - 2.0 * one).abs() < 1e-4);
        assert_eq!(fit("short", 10.0, 100.0), "short");
        let cut = fit("a text that is much too long", 10.0, 60.0);
        assert!(cut.ends_with('…') && width(&cut, 10.0, false) <= 60.0 && cut.len() > 6, "{cut}");
        assert_eq!(fit("long", 10.0, 1.0), "");
    }
}
