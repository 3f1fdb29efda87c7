//! One picture: formats, colours, orientation, crop, resize; and those that are refused.

use crate::support::{apart, decode, grey_png, jpeg, png, refusal, rgb_png};
use ::png::{BitDepth, ColorType};

/// Pixels of all values: identity must not touch them.
fn noise(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

#[test]
fn a_picture_of_the_right_size_keeps_its_bytes() {
    let rgb = noise(16 * 16 * 3);
    assert_eq!(decode("x.png", &rgb_png(16, 16, &rgb), 16, 3), rgb);
    let grey = noise(16 * 16);
    assert_eq!(decode("x.png", &grey_png(16, 16, &grey), 16, 1), grey);
    let rgba = noise(16 * 16 * 4);
    assert_eq!(decode("x.png", &png((16, 16), ColorType::Rgba, BitDepth::Eight, &rgba, None), 16, 4), rgba);
}

#[test]
fn grey_is_repeated_and_colour_becomes_luma() {
    let grey = noise(64);
    let tripled: Vec<u8> = grey.iter().flat_map(|&v| [v; 3]).collect();
    assert_eq!(decode("x.png", &grey_png(8, 8, &grey), 8, 3), tripled);
    let opaque: Vec<u8> = grey.iter().flat_map(|&v| [v, v, v, 255]).collect();
    assert_eq!(decode("x.png", &grey_png(8, 8, &grey), 8, 4), opaque);
    // Rec. 709: 0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50 = 117.65
    let rgb = [200, 100, 50].repeat(64);
    assert_eq!(decode("x.png", &rgb_png(8, 8, &rgb), 8, 1), [118; 64]);
    assert_eq!(decode("x.png", &rgb_png(8, 8, &[255; 192]), 8, 1), [255; 64]);
}

#[test]
fn palette_with_and_without_transparency() {
    let colours = [10, 20, 30, 200, 100, 0];
    let indices: Vec<u8> = (0..64).map(|i| i % 2).collect();
    let plain = png((8, 8), ColorType::Indexed, BitDepth::Eight, &indices, Some((&colours, None)));
    assert_eq!(decode("x.png", &plain, 8, 3)[..6], [10, 20, 30, 200, 100, 0]);
    // Alpha 51 of 255: a fifth of the colour, four fifths white.
    let clear = png((8, 8), ColorType::Indexed, BitDepth::Eight, &indices, Some((&colours, Some(&[51, 255]))));
    assert_eq!(decode("x.png", &clear, 8, 3)[..6], [206, 208, 210, 200, 100, 0]);
    assert_eq!(decode("x.png", &clear, 8, 4)[..8], [10, 20, 30, 51, 200, 100, 0, 255]);
}

#[test]
fn one_bit_and_sixteen_bits() {
    // Rows of 8 pixels in one byte each.
    let bits = png((8, 8), ColorType::Grayscale, BitDepth::One, &[0b1010_0000; 8], None);
    assert_eq!(decode("x.png", &bits, 8, 1)[..8], [255, 0, 255, 0, 0, 0, 0, 0]);
    // 16 bits round to the nearest of v / 257: 0x0080 = 128 is below half of 257, 0x0081 = 129 above.
    let samples = [0x0000u16, 0x0080, 0x0081, 0x8080, 0xff7e, 0xff7f, 0xffff, 0x1234];
    let raw: Vec<u8> = samples.repeat(8).iter().flat_map(|v| v.to_be_bytes()).collect();
    let deep = png((8, 8), ColorType::Grayscale, BitDepth::Sixteen, &raw, None);
    assert_eq!(decode("x.png", &deep, 8, 1)[..8], [0, 0, 1, 128, 254, 255, 255, 18]);
    let raw: Vec<u8> = [0x8080u16, 0xffff, 0x0000].repeat(64).iter().flat_map(|v| v.to_be_bytes()).collect();
    let deep = png((8, 8), ColorType::Rgb, BitDepth::Sixteen, &raw, None);
    assert_eq!(decode("x.png", &deep, 8, 3)[..3], [128, 255, 0]);
}

#[test]
fn transparency_is_laid_on_white_or_kept() {
    let pixels = [[100u8, 0, 200, 0], [100, 0, 200, 255], [100, 0, 200, 128], [0, 0, 0, 1]];
    let raw: Vec<u8> = pixels.iter().cycle().take(64).flatten().copied().collect();
    let picture = png((8, 8), ColorType::Rgba, BitDepth::Eight, &raw, None);
    // 128: (100 * 128 + 255 * 127) / 255 = 177.2, 127, 227.4
    assert_eq!(decode("x.png", &picture, 8, 3)[..12], [255, 255, 255, 100, 0, 200, 177, 127, 227, 254, 254, 254]);
    assert_eq!(decode("x.png", &picture, 8, 4)[..16], pixels.concat());
    let raw = [80, 0, 80, 255].repeat(32);
    let grey = png((8, 8), ColorType::GrayscaleAlpha, BitDepth::Eight, &raw, None);
    assert_eq!(decode("x.png", &grey, 8, 1)[..2], [255, 80]);
    assert_eq!(decode("x.png", &grey, 8, 4)[..8], [80, 80, 80, 0, 80, 80, 80, 255]);
}

#[test]
fn resizing_does_not_bleed_the_colour_of_transparent_pixels() {
    // Left half opaque grey 90, right half transparent but bright red: alpha shrinks smoothly, and no red comes in. (Lanczos overshoots
    // along the edge, and alpha cannot exceed 255, so the grey itself may be a little lighter there.)
    let raw: Vec<u8> =
        (0..64 * 64).flat_map(|i| if i % 64 < 32 { [90, 90, 90, 255] } else { [255, 0, 0, 0] }).collect();
    let small = decode("x.png", &png((64, 64), ColorType::Rgba, BitDepth::Eight, &raw, None), 9, 4);
    for pixel in small.chunks_exact(4).filter(|p| p[3] > 40) {
        assert!(apart(&pixel[..3], &[90; 3]) <= 10 && apart(&pixel[..2], &pixel[1..3]) <= 1, "{pixel:?}");
    }
}

/// The shape of an uncompressed picture whose red tells the column and green the row.
fn coordinates(width: u32, height: u32) -> Vec<u8> {
    (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect()
}

#[test]
fn the_centre_square_is_cut_out() {
    // 21 wide, 8 high: 13 columns go, 6 on the left and 7 on the right.
    let wide = decode("x.png", &rgb_png(21, 8, &coordinates(21, 8)), 8, 3);
    assert_eq!((&wide[..3], &wide[wide.len() - 3..]), (&[6, 0, 7][..], &[13, 7, 7][..]));
    let tall = decode("x.png", &rgb_png(8, 13, &coordinates(8, 13)), 8, 3);
    assert_eq!((&tall[..3], &tall[tall.len() - 3..]), (&[0, 2, 7][..], &[7, 9, 7][..]));
    // A line of pixels is a square of one.
    assert_eq!(decode("x.png", &rgb_png(5, 1, &coordinates(5, 1)), 4, 3), [2, 0, 7].repeat(16));
}

/// Lanczos with a = 3, straight from its definition, in double precision: one axis.
fn lanczos(source: &[f64], n: usize) -> Vec<f64> {
    let scale = source.len() as f64 / n as f64;
    let stretch = scale.max(1.0);
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) };
    (0..n)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let (mut sum, mut weights) = (0.0, 0.0);
            for (j, v) in source.iter().enumerate() {
                let x = (j as f64 + 0.5 - centre) / stretch;
                if x.abs() < 3.0 {
                    let w = sinc(x) * sinc(x / 3.0);
                    sum += w * v;
                    weights += w;
                }
            }
            sum / weights
        })
        .collect()
}

#[test]
fn resizing_is_antialiased_lanczos() {
    for (from, to) in [(64usize, 16usize), (50, 16), (16, 40), (97, 13)] {
        // Smooth with a sharp edge, in one axis and then both.
        let profile: Vec<f64> = (0..from)
            .map(|i| (90.0 + 60.0 * (i as f64 * 0.37).sin() + if i > from / 2 { 60.0 } else { 0.0 }).round())
            .collect();
        let grey: Vec<u8> = (0..from).flat_map(|_| profile.iter().map(|&v| v as u8)).collect();
        let want: Vec<u8> = lanczos(&profile, to).iter().map(|v| v.round().clamp(0.0, 255.0) as u8).collect();
        let got = decode("x.png", &grey_png(from as u32, from as u32, &grey), to, 1);
        for row in got.chunks_exact(to) {
            assert!(apart(row, &want) <= 1, "{from} to {to}: {row:?}, expected {want:?}");
        }
        let turned: Vec<u8> = (0..from * from).map(|i| grey[i % from * from + i / from]).collect();
        let got = decode("x.png", &grey_png(from as u32, from as u32, &turned), to, 1);
        for x in 0..to {
            let column: Vec<u8> = (0..to).map(|y| got[y * to + x]).collect();
            assert!(apart(&column, &want) <= 1, "{from} to {to}, upright");
        }
    }
    // Fine stripes become their mean, not a pattern.
    let stripes: Vec<u8> = (0..128 * 128).map(|i| if i % 2 == 0 { 0 } else { 200 }).collect();
    let mean = decode("x.png", &grey_png(128, 128, &stripes), 16, 1);
    for row in mean.chunks_exact(16) {
        assert!(apart(&row[2..14], &[100; 12]) <= 1, "{row:?}"); // the filter is cut off at the borders
    }
}

#[test]
fn jpeg_colours() {
    let flat = decode("x.jpg", &jpeg(16, 16, &[200, 60, 30].repeat(256)), 16, 3);
    assert!(apart(&flat, &[200, 60, 30].repeat(256)) <= 2);
    let mut grey = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut grey, 100);
    let mut encoder = encoder;
    encoder.encode(&[77; 256], 16, 16, image::ExtendedColorType::L8).expect("a grey JPEG");
    assert!(apart(&decode("x.jpeg", &grey, 16, 3), &[77; 768]) <= 1);
    assert!(apart(&decode("x.jpeg", &grey, 16, 1), &[77; 256]) <= 1);
}

/// Written by Pillow (libjpeg): left half CMYK ink (200, 40, 0, 30), right half (0, 160, 220, 80), with Adobe's mark, so inverted.
const CMYK: &[u8] = include_bytes!("../fixtures/data/cmyk-adobe.jpg");

fn halves(pixels: &[u8]) -> ([u8; 3], [u8; 3]) {
    let at = |x: usize, y: usize| pixels[(y * 16 + x) * 3..][..3].try_into().expect("3 bytes");
    (at(2, 2), at(13, 13))
}

fn adobe_segment(bytes: &[u8]) -> usize {
    bytes.windows(9).position(|w| w[..2] == [0xff, 0xee] && &w[4..] == b"Adobe").expect("an Adobe segment")
}

#[test]
fn cmyk_from_adobe_is_inverted() {
    // (255 - ink) (255 - black) / 255; Pillow's own conversion says the same.
    let (left, right) = halves(&decode("x.jpg", CMYK, 16, 3));
    assert!(apart(&left, &[49, 190, 225]) <= 1, "{left:?}");
    assert!(apart(&right, &[175, 65, 24]) <= 1, "{right:?}");
}

#[test]
fn cmyk_without_adobe_is_plain() {
    // The same samples without the mark: 255 - ink is now the ink itself.
    let mut plain = CMYK.to_vec();
    let at = adobe_segment(&plain);
    plain.drain(at..at + 16);
    let (left, right) = halves(&decode("x.jpg", &plain, 16, 3));
    assert!(apart(&left, &[24, 5, 0]) <= 1, "{left:?}"); // ink 55, 215, 255, 225
    assert!(apart(&right, &[0, 50, 69]) <= 1, "{right:?}"); // ink 255, 95, 35, 175
}

#[test]
fn ycck_from_adobe() {
    // The same samples read as luma, chroma, inverted black: transform 2. Left (55, 215, 255, 225): R 233.05, G -65.6, B 209.2 are the
    // inks; (255 - ink) K / 255.
    let mut ycck = CMYK.to_vec();
    let at = adobe_segment(&ycck);
    assert_eq!(ycck[at + 15], 0);
    ycck[at + 15] = 2;
    let (left, right) = halves(&decode("x.jpg", &ycck, 16, 3));
    assert!(apart(&left, &[19, 225, 40]) <= 2, "{left:?}");
    // Right (255, 95, 35, 175): 255 - 130.4 = 124.6, 255 + 11.4 + 66.4 = 332.8, 255 - 58.5 = 196.5 as ink.
    assert!(apart(&right, &[89, 0, 40]) <= 2, "{right:?}");
}

#[test]
fn exif_orientation_is_applied() {
    // Written by Pillow, progressive, orientation 6. Upright: 16 x 24, quadrants red, green, blue, yellow. The crop takes rows 4 to 20.
    let file = include_bytes!("../fixtures/data/exif-6.jpg");
    let upright = decode("x.jpg", file, 16, 3);
    let at = |x: usize, y: usize| &upright[(y * 16 + x) * 3..][..3];
    for (x, y, want) in
        [(2, 2, [200, 30, 30]), (13, 2, [30, 200, 30]), (2, 13, [30, 30, 200]), (13, 13, [220, 220, 40])]
    {
        assert!(apart(at(x, y), &want) <= 3, "({x}, {y}): {:?}, expected {want:?}", at(x, y));
    }
}

#[test]
fn all_eight_orientations() {
    // Stored: a brightness of its own for each quadrant: 40, 90, 140, 190 in reading order.
    let stored: Vec<u8> =
        (0..256).flat_map(|i| [[40u8, 90], [140, 190]][i / 16 / 8][i % 16 / 8].to_be_bytes().repeat(3)).collect();
    let plain = jpeg(16, 16, &stored);
    // Shown, in reading order, by orientation (EXIF 2.3, tag 0x112).
    let shown: [[u8; 4]; 8] = [
        [40, 90, 140, 190],
        [90, 40, 190, 140],
        [190, 140, 90, 40],
        [140, 190, 40, 90],
        [40, 140, 90, 190],
        [140, 40, 190, 90],
        [190, 90, 140, 40],
        [90, 190, 40, 140],
    ];
    for (i, want) in shown.iter().enumerate() {
        let mut file = plain[..2].to_vec();
        // APP1: "Exif", little-endian TIFF, one entry: orientation, SHORT, 1 value.
        file.extend([0xff, 0xe1, 0, 34]);
        file.extend(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0");
        file.extend([i as u8 + 1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(&plain[2..]);
        let pixels = decode("x.jpg", &file, 16, 1);
        let got = [(3, 3), (12, 3), (3, 12), (12, 12)].map(|(x, y)| pixels[y * 16 + x]);
        assert!(apart(&got, want) <= 2, "orientation {}: {got:?}, expected {want:?}", i + 1);
    }
}

#[test]
fn broken_pictures_are_refused_with_a_reason() {
    assert!(refusal("x.png", b"just some text\n").contains("not a JPEG, PNG or GIF by its first bytes"));
    assert!(refusal("x.png", b"").contains("empty (0 bytes)"));
    assert!(refusal("x.jpg", b"RIFF\x24\0\0\0WEBPVP8 ").contains("a WebP picture; JPEG, PNG and GIF can be read"));
    let whole = jpeg(32, 32, &noise(32 * 32 * 3));
    for cut in [2, 3, 20, whole.len() / 2, whole.len() - 2] {
        assert!(refusal("x.jpg", &whole[..cut]).contains("x.jpg"), "cut at {cut}");
    }
    assert!(refusal("x.jpg", &whole[..whole.len() / 2]).contains("cut short"));
    let whole = rgb_png(32, 32, &noise(32 * 32 * 3));
    for cut in [8, 20, 40, whole.len() / 2] {
        assert!(refusal("x.png", &whole[..cut]).contains("x.png"), "cut at {cut}");
    }
}

#[test]
fn pictures_that_claim_to_be_huge_are_refused_before_anything_is_allocated() {
    // A true PNG header, 60000 x 60000, with next to no data.
    let mut bomb = grey_png(8, 8, &[0; 64]);
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let crc = crc32fast::hash(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let said = refusal("x.png", &bomb);
    assert!(said.contains("60000x60000 pixels; at most 100 million are read"), "{said}");
    // The same in a JPEG's frame header.
    let mut bomb = jpeg(16, 16, &[9; 768]);
    let frame = bomb.windows(2).position(|w| w == [0xff, 0xc0]).expect("a frame");
    bomb[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let said = refusal("x.jpg", &bomb);
    assert!(said.contains("65535x65535 pixels"), "{said}");
}

#[test]
fn damaged_bytes_never_panic() {
    // Flip bytes of small files in turn; each is either decoded or refused. One folder holds all variants.
    let place = crate::support::Place::new();
    place.put_many(2);
    let files = [("p.png", rgb_png(8, 8, &noise(192))), ("j.jpg", jpeg(8, 8, &noise(192))), ("c.jpg", CMYK.to_vec())];
    for (name, bytes) in &files {
        for at in (0..bytes.len()).step_by(bytes.len() / 90 + 1) {
            let mut broken = bytes.clone();
            broken[at] ^= 0x5a;
            place.put(&format!("{at:04}-{name}"), &broken);
        }
    }
    match ddim_engine::data::load(&place.spec(8, 3), &ddim_engine::data::Silent) {
        Ok(ds) => assert!(ds.len() >= 2),
        Err(error) => assert_eq!(error.exit_code(), 2, "{error}"),
    }
}
