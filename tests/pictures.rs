//! Pictures: values to bytes, grids pixel by pixel, PNG and GIF files read back by another decoder's path.

use std::fs;

use ddim_engine::train::picture::{Picture, gif_bytes, grid, save_gif};

fn plain(width: usize, height: usize, channels: usize, value: u8) -> Picture {
    Picture::new(width, height, channels, vec![value; width * height * channels]).unwrap()
}

/// A soft gradient with a disc: many more colours than a palette holds.
fn soft(width: usize, height: usize, phase: f32) -> Picture {
    let values: Vec<f32> = (0..width * height)
        .flat_map(|i| {
            let (x, y) = ((i % width) as f32 / width as f32, (i / width) as f32 / height as f32);
            let disc = if (x - 0.5).hypot(y - 0.5) < 0.3 { 0.6 } else { 0.0 };
            [x * (1.0 - disc), (y + phase).fract(), 0.5 + 0.5 * (6.0 * (x * y + phase)).sin()]
        })
        .collect();
    Picture::from_unit_f32(&values, width, height, 3).unwrap().0
}

/// Largest and mean absolute difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let each = || a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    (each().max().unwrap(), each().map(f64::from).sum::<f64>() / a.len() as f64)
}

#[test]
fn values_are_rounded_and_clipped_and_nan_is_counted() {
    let values = [0.0, 1.0, 0.5, -3.0, 7.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.4999 / 255.0, 0.5001 / 255.0];
    let (picture, not_numbers) = Picture::from_unit_f32(&values, 5, 2, 1).unwrap();
    assert_eq!(picture.pixels, [0, 255, 128, 0, 255, 0, 255, 0, 0, 1]);
    assert_eq!(not_numbers, 1);
    // Every byte comes back from its own value.
    let exact: Vec<f32> = (0..=255u8).map(|v| f32::from(v) / 255.0).collect();
    let (picture, _) = Picture::from_unit_f32(&exact, 16, 16, 1).unwrap();
    assert!(picture.pixels.iter().enumerate().all(|(i, &v)| usize::from(v) == i));

    let (batch, not_numbers) = Picture::batch_from_unit_f32(&[0.0, f32::NAN, 1.0, f32::NAN], 1, 2, 1).unwrap();
    assert_eq!((batch.len(), not_numbers), (2, 2));
    assert_eq!(batch[1].pixels, [255, 0]);
    assert!(Picture::batch_from_unit_f32(&[0.0; 5], 1, 2, 1).unwrap_err().to_string().contains("5 values"));
    assert!(Picture::new(2, 2, 2, vec![0; 8]).unwrap_err().to_string().contains("2 channels"));
    assert!(Picture::new(2, 2, 3, vec![0; 11]).is_err());
    assert!(Picture::new(0, 2, 3, vec![]).is_err());
}

#[test]
fn a_grid_puts_each_pixel_in_its_place() {
    let pictures: Vec<Picture> = (0..5).map(|i| plain(2, 1, 1, i * 10)).collect();
    let g = 0xe0;
    let found = grid(&pictures, None, 1).unwrap();
    assert_eq!((found.width, found.height, found.channels), (10, 5, 1));
    #[rustfmt::skip]
    assert_eq!(found.pixels, [
        g, g, g, g, g, g, g, g, g, g,
        g, 0, 0, g, 10, 10, g, 20, 20, g,
        g, g, g, g, g, g, g, g, g, g,
        g, 30, 30, g, 40, 40, g, g, g, g,
        g, g, g, g, g, g, g, g, g, g,
    ]);
    let sizes: Vec<_> = [(36, None), (3, Some(1)), (3, Some(9)), (1, None), (7, Some(4))]
        .map(|(n, columns)| grid(&vec![plain(8, 8, 3, 1); n], columns, 2).unwrap())
        .iter()
        .map(|p| (p.width, p.height))
        .collect();
    assert_eq!(sizes, [(62, 62), (12, 32), (32, 12), (12, 12), (42, 22)]);
    // Colours stay apart, and the background of a picture with transparency is opaque.
    let rgba = Picture::new(1, 1, 4, vec![1, 2, 3, 4]).unwrap();
    assert_eq!(grid(&[rgba.clone(), rgba], None, 0).unwrap().pixels, [1, 2, 3, 4, 1, 2, 3, 4]);
    assert_eq!(grid(&[plain(1, 1, 4, 9)], None, 1).unwrap().pixels[..4], [g, g, g, 255]);
    assert!(grid(&[], None, 2).is_err());
    let text = grid(&[plain(2, 2, 3, 0), plain(2, 3, 3, 0)], None, 2).unwrap_err().to_string();
    assert_eq!(text, "grid: picture 1 is 2x3x3, the first is 2x2x3");
}

#[test]
fn upscaling_repeats_pixels() {
    let picture = Picture::new(2, 2, 3, vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
    let large = picture.upscale(3);
    assert_eq!((large.width, large.height), (6, 6));
    for y in 0..6 {
        for x in 0..6 {
            let from = (y / 3 * 2 + x / 3) * 3;
            assert_eq!(large.pixels[(y * 6 + x) * 3..][..3], picture.pixels[from..from + 3]);
        }
    }
    assert_eq!(picture.upscale(1), picture);
    assert_eq!(picture.upscale(0), picture);
}

#[test]
fn a_png_comes_back_pixel_by_pixel() {
    let folder = tempfile::tempdir().unwrap();
    for channels in [1usize, 3, 4] {
        let pixels: Vec<u8> = (0..5 * 7 * channels).map(|i| (i * 37 % 256) as u8).collect();
        let picture = Picture::new(5, 7, channels, pixels).unwrap();
        let path = folder.path().join(format!("new/{channels}.png"));
        picture.save_png(&path).unwrap();
        let back = image::open(&path).unwrap();
        assert_eq!((back.width(), back.height(), back.color().channel_count()), (5, 7, channels as u8));
        assert_eq!(back.as_bytes(), picture.pixels);
        assert_eq!(picture.png_bytes().unwrap(), fs::read(&path).unwrap(), "the same bytes every time");
    }
}

/// Frames as RGB with their delays in hundredths of a second, and whether the animation repeats for ever.
fn decode(bytes: &[u8]) -> (Vec<(Vec<u8>, u16)>, bool) {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(bytes).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        let rgb = frame.buffer.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        frames.push((rgb, frame.delay));
    }
    let repeats = matches!(decoder.repeat(), gif::Repeat::Infinite);
    (frames, repeats)
}

#[test]
fn a_gif_of_few_colours_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let grey = Picture::new(16, 16, 1, (0..=255).collect()).unwrap();
    let frames = [grid(&[plain(12, 12, 3, 7)], None, 2).unwrap(), plain(16, 16, 4, 255), grey];
    let path = folder.path().join("a/b.gif");
    save_gif(&path, &frames, 80, 2000).unwrap();
    let (found, repeats) = decode(&fs::read(&path).unwrap());
    assert!(repeats);
    assert_eq!(found.iter().map(|f| f.1).collect::<Vec<_>>(), [8, 8, 200]);
    assert_eq!(found[0].0, frames[0].pixels);
    assert_eq!(found[1].0, vec![255; 16 * 16 * 3]);
    assert_eq!(found[2].0, (0..=255).flat_map(|v| [v; 3]).collect::<Vec<u8>>());
}

#[test]
fn a_gif_of_many_colours_is_close() {
    let frames = [grid(&[soft(64, 64, 0.0), soft(64, 64, 0.3)], None, 2).unwrap(), soft(134, 68, 0.5)];
    let bytes = gif_bytes(&frames, 40, 1000).unwrap();
    assert_eq!(bytes, gif_bytes(&frames, 40, 1000).unwrap(), "the same bytes every time");
    let (found, _) = decode(&bytes);
    for (frame, (rgb, _)) in frames.iter().zip(&found) {
        let (largest, mean) = difference(&frame.pixels, rgb);
        assert!(largest < 80 && mean < 8.0, "differs by up to {largest}, {mean} in the mean");
        // Spread errors cancel: the mean colour of a patch is that of the picture.
        let patch = |pixels: &[u8], c: usize| -> f64 {
            let values = (20..36).flat_map(|y| (20..36).map(move |x| (y * 134 + x) * 3 + c));
            values.map(|i| f64::from(pixels[i])).sum::<f64>() / 256.0
        };
        for c in 0..3 {
            let (wanted, found) = (patch(&frame.pixels, c), patch(rgb, c));
            assert!((wanted - found).abs() < 2.0, "channel {c}: {wanted} became {found}");
        }
    }
    // The background of a grid is a flat colour and must look like one.
    assert_eq!(found[0].0[..3 * 134], frames[0].pixels[..3 * 134]);
}

#[test]
fn what_no_gif_can_hold_is_refused() {
    assert!(gif_bytes(&[], 40, 40).is_err());
    let text = gif_bytes(&[plain(2, 2, 3, 0), plain(3, 2, 3, 0)], 40, 40).unwrap_err().to_string();
    assert_eq!(text, "gif: frame 1 is 3x2, the first is 2x2");
    assert!(gif_bytes(&[plain(70_000, 1, 1, 0)], 40, 40).unwrap_err().to_string().contains("65535"));
    // Longer than GIF can tell, by its longest.
    let (found, _) = decode(&gif_bytes(&[plain(1, 1, 1, 0)], 0, u32::MAX).unwrap());
    assert_eq!(found[0].1, u16::MAX);
}
