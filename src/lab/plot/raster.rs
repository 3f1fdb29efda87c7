//! A figure as pixels.

use tiny_skia::{FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform};

use super::drawing::{Anchor, Colour, Drawing, Mark, Text};
use super::font;
use crate::error::{Error, Result};
use crate::train::picture::Picture;

/// Pixels for each unit of a figure.
pub const DENSITY: f64 = 2.0;

/// Most pixels of a figure: a quarter of a gigabyte.
const MOST_PIXELS: f64 = (1 << 26) as f64;

/// The pixels of a figure, RGB.
///
/// # Errors
/// [`Error::Usage`]: it is too large.
pub fn render(drawing: &Drawing) -> Result<Picture> {
    let (w, h) = ((drawing.width * DENSITY).ceil(), (drawing.height * DENSITY).ceil());
    let map = if w >= 1.0 && h >= 1.0 && w * h <= MOST_PIXELS { Pixmap::new(w as u32, h as u32) } else { None };
    let Some(mut map) = map else {
        let what = "larger than a figure can be (2^26 pixels); draw fewer rows or columns, or smaller pictures";
        return Err(Error::Usage(format!("a figure of {w}x{h} pixels: {what}")));
    };
    map.fill(tiny_skia::Color::WHITE);
    for mark in &drawing.marks {
        draw(&mut map, mark);
    }
    let pixels = map.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    Picture::new(w as usize, h as usize, 3, pixels)
}

fn paint(Colour(r, g, b, opacity): Colour) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(r, g, b, (opacity.clamp(0.0, 1.0) * 255.0).round() as u8);
    paint
}

fn draw(map: &mut Pixmap, mark: &Mark) {
    let scale = Transform::from_scale(DENSITY as f32, DENSITY as f32);
    match mark {
        Mark::Line { points, colour, width, dash } => {
            let mut path = PathBuilder::new();
            for (i, &(x, y)) in points.iter().enumerate() {
                let (x, y) = (x as f32, y as f32);
                if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
            }
            let Some(path) = path.finish() else { return };
            let dash = dash.and_then(|[on, off]| StrokeDash::new(vec![on as f32, off as f32], 0.0));
            let cap = LineCap::Butt;
            let stroke =
                Stroke { width: *width as f32, line_join: LineJoin::Round, line_cap: cap, dash, ..Stroke::default() };
            map.stroke_path(&path, &paint(*colour), &stroke, scale, None);
        }
        Mark::Area { at, size, colour } => {
            if let Some(rect) = Rect::from_xywh(at.0 as f32, at.1 as f32, size.0 as f32, size.1 as f32) {
                map.fill_rect(rect, &paint(*colour), scale, None);
            }
        }
        Mark::Dot { at, radius, colour } => {
            if let Some(path) = PathBuilder::from_circle(at.0 as f32, at.1 as f32, *radius as f32) {
                map.fill_path(&path, &paint(*colour), FillRule::Winding, scale, None);
            }
        }
        Mark::Text(text) => draw_text(map, text),
        Mark::Picture { at, size, picture } => draw_picture(map, *at, *size, picture),
    }
}

fn draw_text(map: &mut Pixmap, text: &Text) {
    let Some(path) = font::outlines(&text.text, text.bold) else { return };
    let back = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => text.width() / 2.0,
        Anchor::End => text.width(),
    };
    let (size, back) = ((text.size * DENSITY) as f32, (back * DENSITY) as f32);
    let (x, y) = ((text.at.0 * DENSITY) as f32, (text.at.1 * DENSITY) as f32);
    let place = if text.upwards {
        Transform::from_row(0.0, -size, size, 0.0, x, y + back)
    } else {
        Transform::from_row(size, 0.0, 0.0, size, x - back, y)
    };
    map.fill_path(&path, &paint(text.colour), FillRule::Winding, place, None);
}

/// The nearest pixel of the picture for each of the map; transparency over what is there.
fn draw_picture(map: &mut Pixmap, at: (f64, f64), size: (f64, f64), picture: &Picture) {
    let whole = |v: f64| (v * DENSITY).round() as i64;
    let (left, top, width, height) = (whole(at.0), whole(at.1), whole(size.0), whole(size.1));
    let (map_width, map_height) = (i64::from(map.width()), i64::from(map.height()));
    let data = map.data_mut();
    for y in 0..height {
        let row = (y * picture.height as i64 / height) as usize;
        for x in 0..width {
            let (px, py) = (left + x, top + y);
            if !(0..map_width).contains(&px) || !(0..map_height).contains(&py) {
                continue;
            }
            let column = (x * picture.width as i64 / width) as usize;
            let pixel = &picture.pixels[(row * picture.width + column) * picture.channels..][..picture.channels];
            let (rgb, alpha) = match *pixel {
                [r, g, b, a] => ([r, g, b], u32::from(a)),
                [r, g, b] => ([r, g, b], 255),
                [v, ..] => ([v; 3], 255),
                [] => continue,
            };
            let to = &mut data[4 * (py * map_width + px) as usize..][..3];
            for (to, value) in to.iter_mut().zip(rgb) {
                *to = ((u32::from(value) * alpha + u32::from(*to) * (255 - alpha) + 127) / 255) as u8;
            }
        }
    }
}
