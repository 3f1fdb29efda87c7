//! Pictures out: from values to bytes, grids, PNG files and GIF animations.

use std::borrow::Cow;
use std::path::Path;

use image::{ExtendedColorType, ImageEncoder};

use crate::error::{Error, Result};
use crate::train::palette::quantise;
use crate::train::run_dir::write_atomic;

/// Light grey between the pictures of a grid.
const BACKGROUND: u8 = 0xe0;

/// Pixels between the pictures of a grid, where nothing else is asked for.
pub const PADDING: usize = 2;

/// A picture of 8 bits a channel, rows from the top, channels of a pixel together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// 1 (grey), 3 (RGB) or 4 (RGBA).
    pub channels: usize,
    /// `height * width * channels` values.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// A picture of these pixels.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        check(width, height, channels, pixels.len())?;
        Ok(Picture { width, height, channels, pixels })
    }

    /// Maps values in [0, 1] to 0..=255, rounding to the nearest; what lies outside is clipped. NaN becomes 0 and is counted in the
    /// second result: a model that makes NaN should be heard of.
    pub fn from_unit_f32(values: &[f32], width: usize, height: usize, channels: usize) -> Result<(Self, usize)> {
        check(width, height, channels, values.len())?;
        let mut not_numbers = 0;
        let to_byte = |&value: &f32| {
            not_numbers += usize::from(value.is_nan());
            // A cast from NaN gives 0.
            (value.clamp(0.0, 1.0) * 255.0).round() as u8
        };
        let pixels = values.iter().map(to_byte).collect();
        Ok((Picture { width, height, channels, pixels }, not_numbers))
    }

    /// Splits a batch `[count, height, width, channels]` of values in [0, 1] into pictures; see [`Picture::from_unit_f32`].
    pub fn batch_from_unit_f32(
        values: &[f32],
        width: usize,
        height: usize,
        channels: usize,
    ) -> Result<(Vec<Self>, usize)> {
        let size = width * height * channels;
        if size == 0 || !values.len().is_multiple_of(size) {
            let what = format!("{} values are no whole number of {width}x{height}x{channels} pictures", values.len());
            return Err(Error::Shape { op: "picture", what });
        }
        let mut not_numbers = 0;
        let mut pictures = Vec::with_capacity(values.len() / size);
        for values in values.chunks_exact(size) {
            let (picture, n) = Self::from_unit_f32(values, width, height, channels)?;
            pictures.push(picture);
            not_numbers += n;
        }
        Ok((pictures, not_numbers))
    }

    /// Each pixel repeated `factor` times in both directions.
    pub fn upscale(&self, factor: usize) -> Picture {
        let factor = factor.max(1);
        let mut pixels = Vec::with_capacity(self.pixels.len() * factor * factor);
        for row in self.pixels.chunks_exact(self.width * self.channels) {
            let start = pixels.len();
            for pixel in row.chunks_exact(self.channels) {
                for _ in 0..factor {
                    pixels.extend_from_slice(pixel);
                }
            }
            let end = pixels.len();
            for _ in 1..factor {
                pixels.extend_from_within(start..end);
            }
        }
        Picture { width: self.width * factor, height: self.height * factor, channels: self.channels, pixels }
    }

    /// The file bytes of a PNG.
    pub fn png_bytes(&self) -> Result<Vec<u8>> {
        check(self.width, self.height, self.channels, self.pixels.len())?;
        let kind = match self.channels {
            1 => ExtendedColorType::L8,
            3 => ExtendedColorType::Rgb8,
            _ => ExtendedColorType::Rgba8,
        };
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(&self.pixels, self.width as u32, self.height as u32, kind)
            .map_err(|e| Error::Failed(format!("cannot encode a {}x{} PNG: {e}", self.width, self.height)))?;
        Ok(bytes)
    }

    /// Writes a PNG, whole or not at all; makes missing folders.
    pub fn save_png(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.png_bytes()?)
    }

    /// RGB, transparent pixels over the background of grids.
    fn rgb(&self) -> Cow<'_, [u8]> {
        match self.channels {
            1 => self.pixels.iter().flat_map(|&v| [v; 3]).collect(),
            3 => Cow::Borrowed(&self.pixels),
            _ => {
                let over = |v: u8, alpha: u8| {
                    let (v, alpha, background) = (u32::from(v), u32::from(alpha), u32::from(BACKGROUND));
                    ((v * alpha + background * (255 - alpha) + 127) / 255) as u8
                };
                self.pixels
                    .chunks_exact(4)
                    .flat_map(|p| [over(p[0], p[3]), over(p[1], p[3]), over(p[2], p[3])])
                    .collect()
            }
        }
    }
}

fn check(width: usize, height: usize, channels: usize, length: usize) -> Result<()> {
    let expected = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
    let fits = u32::try_from(width).is_ok() && u32::try_from(height).is_ok();
    if matches!(channels, 1 | 3 | 4) && expected == Some(length) && length > 0 && fits {
        return Ok(());
    }
    let what = format!("{length} values are no picture of {width}x{height} with {channels} channels (1, 3 or 4)");
    Err(Error::Shape { op: "picture", what })
}

/// Pictures of one size, row by row, with `padding` pixels of light grey between and around them. `columns` of None is the nearest
/// to a square that is not taller than wide.
pub fn grid(pictures: &[Picture], columns: Option<usize>, padding: usize) -> Result<Picture> {
    let Some(first) = pictures.first() else {
        return Err(Error::Shape { op: "grid", what: "no pictures".into() });
    };
    let Picture { width, height, channels, .. } = *first;
    for (i, picture) in pictures.iter().enumerate() {
        check(picture.width, picture.height, picture.channels, picture.pixels.len())?;
        if (picture.width, picture.height, picture.channels) != (width, height, channels) {
            let what = format!(
                "picture {i} is {}x{}x{}, the first is {width}x{height}x{channels}",
                picture.width, picture.height, picture.channels
            );
            return Err(Error::Shape { op: "grid", what });
        }
    }
    let columns = columns.unwrap_or((pictures.len() as f64).sqrt().ceil() as usize).clamp(1, pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let grid_width = columns * (width + padding) + padding;
    let grid_height = rows * (height + padding) + padding;
    let mut pixels = vec![BACKGROUND; grid_width * grid_height * channels];
    if channels == 4 {
        pixels.iter_mut().skip(3).step_by(4).for_each(|alpha| *alpha = 255);
    }
    for (i, picture) in pictures.iter().enumerate() {
        let left = padding + i % columns * (width + padding);
        let top = padding + i / columns * (height + padding);
        for (y, row) in picture.pixels.chunks_exact(width * channels).enumerate() {
            let at = ((top + y) * grid_width + left) * channels;
            pixels[at..at + row.len()].copy_from_slice(row);
        }
    }
    Picture::new(grid_width, grid_height, channels, pixels)
}

/// Writes an animation that repeats for ever: `delay_ms` a frame, `last_hold_ms` for the last. Frames are of one size. GIF counts in
/// hundredths of a second, so both are rounded to 10 ms.
pub fn save_gif(path: &Path, frames: &[Picture], delay_ms: u32, last_hold_ms: u32) -> Result<()> {
    write_atomic(path, &gif_bytes(frames, delay_ms, last_hold_ms)?)
}

/// The file bytes of [`save_gif`].
pub fn gif_bytes(frames: &[Picture], delay_ms: u32, last_hold_ms: u32) -> Result<Vec<u8>> {
    let Some(first) = frames.first() else {
        return Err(Error::Shape { op: "gif", what: "no frames".into() });
    };
    let too_large = || Error::Shape {
        op: "gif",
        what: format!("{}x{} is larger than the 65535 that GIF can tell", first.width, first.height),
    };
    let width = u16::try_from(first.width).map_err(|_| too_large())?;
    let height = u16::try_from(first.height).map_err(|_| too_large())?;
    let failed = |e: gif::EncodingError| Error::Failed(format!("cannot encode a GIF: {e}"));
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &[]).map_err(failed)?;
    encoder.set_repeat(gif::Repeat::Infinite).map_err(failed)?;
    for (i, frame) in frames.iter().enumerate() {
        check(frame.width, frame.height, frame.channels, frame.pixels.len())?;
        if (frame.width, frame.height) != (first.width, first.height) {
            let what = format!("frame {i} is {}x{}, the first is {width}x{height}", frame.width, frame.height);
            return Err(Error::Shape { op: "gif", what });
        }
        let ms = if i + 1 == frames.len() { last_hold_ms } else { delay_ms };
        let (palette, indices) = quantise(&frame.rgb(), frame.width);
        let frame = gif::Frame {
            delay: u16::try_from(ms.saturating_add(5) / 10).unwrap_or(u16::MAX),
            width,
            height,
            palette: Some(palette),
            buffer: indices.into(),
            ..gif::Frame::default()
        };
        encoder.write_frame(&frame).map_err(failed)?;
    }
    drop(encoder);
    Ok(bytes)
}
