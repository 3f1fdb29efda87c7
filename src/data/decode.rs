//! One picture: bytes of a JPEG, PNG or GIF to square 8-bit pixels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::jpeg;

/// Goes up when the same file would give other pixels: caches made before are then made anew.
pub(super) const VERSION: u32 = 1;

/// Pictures of more pixels are refused: a few kilobytes can claim to be terabytes.
const MAX_PIXELS: u64 = 100_000_000;
/// What the decoder of one picture may allocate.
const MAX_ALLOC: u64 = 1 << 30;
/// Pictures of more pixels are decoded one at a time, so that memory does not grow with the number of cores.
const LARGE_PIXELS: u64 = 24_000_000;

static ONE_LARGE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Decodes pictures; keeps the buffers of its resizer.
pub(super) struct Decoder {
    resizer: Resizer,
    options: ResizeOptions,
}

impl Decoder {
    pub fn new() -> Self {
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
        Decoder { resizer: Resizer::new(), options }
    }

    /// Decodes `bytes` into `out` (`size * size * channels`) and returns the length of the picture's short side.
    ///
    /// # Errors
    /// Why the picture cannot be used, to be read after its name.
    pub fn decode(&mut self, bytes: &[u8], size: usize, channels: usize, out: &mut [u8]) -> Result<u32, String> {
        // A decoder that panics on a broken file must not end a run over a folder of a million.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let picture = read(bytes)?;
            self.fit(picture, size, channels, out)
        }));
        result.unwrap_or_else(|_| {
            self.resizer = Resizer::new();
            Err("the decoder gave up on it (a defect of the decoder)".to_string())
        })
    }

    /// Centre square, resize, channels.
    fn fit(&mut self, picture: DynamicImage, size: usize, channels: usize, out: &mut [u8]) -> Result<u32, String> {
        let (width, height) = (picture.width(), picture.height());
        let side = width.min(height);
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        let alpha = picture.color().has_alpha();
        let grey = !picture.color().has_color();
        // The fewest channels that hold the picture: resizing three channels and repeating later is the same but slower.
        let (pixels, work) = match (alpha, grey, channels) {
            (true, _, 4) => (picture.into_rgba8().into_raw(), 4),
            (true, true, _) => (on_white::<2>(&picture.into_luma_alpha8().into_raw()), 1),
            (true, false, _) => (on_white::<4>(&picture.into_rgba8().into_raw()), 3),
            (false, true, _) => (picture.into_luma8().into_raw(), 1),
            (false, false, _) => (picture.into_rgb8().into_raw(), 3),
        };
        let kind = match work {
            1 => PixelType::U8,
            3 => PixelType::U8x3,
            _ => PixelType::U8x4,
        };
        let source = ImageRef::new(width, height, &pixels, kind).map_err(|e| e.to_string())?;
        let options = self.options.crop(f64::from(left), f64::from(top), f64::from(side), f64::from(side));
        let size = size as u32; // at most MAX_IMAGE_SIZE
        if work == channels {
            let mut target = Image::from_slice_u8(size, size, out, kind).map_err(|e| e.to_string())?;
            self.resizer.resize(&source, &mut target, &options).map_err(|e| e.to_string())?;
        } else {
            let mut target = Image::new(size, size, kind);
            self.resizer.resize(&source, &mut target, &options).map_err(|e| e.to_string())?;
            spread(target.buffer(), work, channels, out);
        }
        Ok(side)
    }
}

/// Bytes to an upright picture in whatever colours it has.
fn read(bytes: &[u8]) -> Result<DynamicImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty (0 bytes)".to_string());
    }
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Gif)) => format,
        Ok(other) => return Err(format!("a {other:?} picture; JPEG, PNG and GIF can be read")),
        Err(_) => return Err("not a JPEG, PNG or GIF by its first bytes".to_string()),
    };
    let mut plain_cmyk = false;
    if format == ImageFormat::Jpeg {
        let markers = jpeg::markers(bytes);
        // The decoder fills what is missing with grey; better not to learn that.
        if !markers.ended {
            return Err("the JPEG is cut short (no end marker)".to_string());
        }
        plain_cmyk = markers.components == 4 && !markers.adobe;
    }
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(format!("no pixels ({width}x{height})"));
    }
    if pixels > MAX_PIXELS {
        return Err(format!("{width}x{height} pixels; at most {} million are read", MAX_PIXELS / 1_000_000));
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_ALLOC);
    decoder.set_limits(limits).map_err(|e| e.to_string())?;
    let _turn = (pixels > LARGE_PIXELS).then(|| ONE_LARGE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut picture, orientation) = if plain_cmyk {
        let (picture, orientation) = jpeg::decode_plain_cmyk(bytes)?;
        (DynamicImage::ImageRgb8(picture), orientation)
    } else {
        // An EXIF block that makes no sense is no reason to lose the picture.
        let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
        (DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?, orientation)
    };
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Lays pixels of `N` channels, the last of them alpha, on white.
fn on_white<const N: usize>(pixels: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / N * (N - 1));
    for pixel in pixels.chunks_exact(N) {
        let alpha = u32::from(pixel[N - 1]);
        out.extend(pixel[..N - 1].iter().map(|&v| ((u32::from(v) * alpha + 255 * (255 - alpha) + 127) / 255) as u8));
    }
    out
}

/// From 1 or 3 channels to another number of them.
fn spread(pixels: &[u8], from: usize, to: usize, out: &mut [u8]) {
    for (pixel, out) in pixels.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        match (pixel, out) {
            (&[v], [r, g, b]) => (*r, *g, *b) = (v, v, v),
            (&[v], [r, g, b, a]) => (*r, *g, *b, *a) = (v, v, v, 255),
            (&[r, g, b], [v]) => *v = luma(r, g, b),
            (&[sr, sg, sb], [r, g, b, a]) => (*r, *g, *b, *a) = (sr, sg, sb, 255),
            _ => unreachable!("1 or 3 channels become another of 1, 3, 4"),
        }
    }
}

/// Luma with the weights of Rec. 709, rounded.
pub(super) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((2126 * u32::from(r) + 7152 * u32::from(g) + 722 * u32::from(b) + 5000) / 10_000) as u8
}
