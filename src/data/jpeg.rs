//! What the JPEG decoder does not tell: whether the file is whole, and whether four-component samples are inverted.
//!
//! Adobe's programs store CMYK inverted (255 is no ink) and mark the file with an APP14 segment; the decoder takes every
//! four-component file to be of that kind. Without the segment the samples are plain (255 is full ink), so such files are decoded to
//! raw CMYK and converted here.

use image::metadata::Orientation;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// What the markers of a JPEG say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Markers {
    /// Number of components in the frame header; 0 where there is none.
    pub components: u8,
    /// Whether there is an Adobe APP14 segment.
    pub adobe: bool,
    /// Whether an end-of-image marker closes the scans.
    pub ended: bool,
}

/// Walks the markers of `bytes`, stepping over segments, so that a thumbnail in one of them is not mistaken for the picture.
pub(super) fn markers(bytes: &[u8]) -> Markers {
    let mut found = Markers::default();
    let mut at = 2; // after start-of-image
    while let Some(step) =
        bytes.get(at..).and_then(|rest| rest.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff)))
    {
        // Everything up to the next marker is entropy-coded data (ff 00 is a stuffed byte) or fill bytes.
        let marker = bytes[at + step + 1];
        at += step + 2;
        match marker {
            0xd9 => {
                found.ended = true;
                break;
            }
            0x01 | 0xd0..=0xd8 => continue, // without a length
            _ => {}
        }
        let Some(&[high, low]) = bytes.get(at..at + 2) else { break };
        let Some(segment) = bytes.get(at + 2..at + usize::from(u16::from_be_bytes([high, low])).max(2)) else { break };
        match marker {
            // Start of frame: precision, height, width, components. c4, c8, cc are tables and reserved.
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                found.components = segment.get(5).copied().unwrap_or(0)
            }
            0xee if segment.starts_with(b"Adobe") => found.adobe = true,
            _ => {}
        }
        at += 2 + segment.len();
    }
    found
}

/// Decodes a four-component JPEG whose samples are plain CMYK to RGB.
pub(super) fn decode_plain_cmyk(bytes: &[u8]) -> Result<(image::RgbImage, Orientation), String> {
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::CMYK);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let raw = decoder.decode().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("no dimensions")?;
    let orientation =
        decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif)).unwrap_or(Orientation::NoTransforms);
    let rgb = raw.chunks_exact(4).flat_map(|p| [0, 1, 2].map(|i| without_ink(p[i], p[3]))).collect();
    let image = image::RgbImage::from_raw(width as u32, height as u32, rgb).ok_or("fewer samples than pixels")?;
    Ok((image, orientation))
}

/// Light that `ink` and black let through: (255 - ink) (255 - black) / 255, rounded.
fn without_ink(ink: u8, black: u8) -> u8 {
    ((u32::from(255 - ink) * u32::from(255 - black) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_step_over_thumbnails_and_stuffed_bytes() {
        let app1 = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9]; // a "thumbnail" with its own end marker
        let frame = [0xff, 0xc0, 0, 8, 8, 0, 16, 0, 16, 4];
        let adobe = [&[0xff, 0xee, 0, 14][..], b"Adobe\0\x64\0\0\0\0\x02"].concat();
        let scan = [0xff, 0xda, 0, 2, 0x12, 0xff, 0x00, 0x34];
        let whole = [&[0xff, 0xd8][..], &app1, &adobe, &frame, &scan, &[0xff, 0xd9]].concat();
        assert_eq!(markers(&whole), Markers { components: 4, adobe: true, ended: true });
        assert_eq!(markers(&whole[..whole.len() - 2]), Markers { components: 4, adobe: true, ended: false });
        for cut in 0..whole.len() {
            assert!(!markers(&whole[..cut.min(whole.len() - 1)]).ended, "cut at {cut}");
        }
    }

    #[test]
    fn ink_and_light() {
        assert_eq!(without_ink(0, 0), 255);
        assert_eq!(without_ink(255, 0), 0);
        assert_eq!(without_ink(0, 255), 0);
        assert_eq!(without_ink(100, 55), 122); // 155 * 200 / 255 = 121.57
    }
}
