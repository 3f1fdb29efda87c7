//! Figures: what is drawn where, as SVG and as PNG.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ddim_engine::error::Error;
use ddim_engine::lab::plot::{Axis, Chart, Colour, Drawing, Format, Look, Mark, Point, Row, Series, Sheet};
use ddim_engine::train::picture::Picture;
use image::RgbImage;
use proptest::prelude::*;

/// Lines of the colour of series `i`; one of them is in the legend where the series has a name.
fn lines(drawing: &Drawing, i: usize) -> Vec<Vec<Point>> {
    let ours = |mark: &Mark| match mark {
        Mark::Line { points, colour, .. } if colour.faded(1.0) == Colour::of_series(i) => Some(points.clone()),
        _ => None,
    };
    drawing.marks.iter().filter_map(ours).collect()
}

/// Left, right, top and bottom of the frame that data is drawn in: the ends of both axes.
fn frame(drawing: &Drawing) -> [f64; 4] {
    let axis = |mark: &Mark| match mark {
        Mark::Line { points, colour, dash: None, .. } if *colour == Colour::INK => Some((points[0], points[1])),
        _ => None,
    };
    let axes: Vec<_> = drawing.marks.iter().filter_map(axis).collect();
    let [(top, bottom), (_, right)] = axes[..] else { panic!("not two axes: {axes:?}") };
    assert_eq!(top.0, bottom.0, "the first is upright");
    [top.0, right.0, top.1, bottom.1]
}

fn texts(drawing: &Drawing) -> Vec<&str> {
    fn text(mark: &Mark) -> Option<&str> {
        match mark {
            Mark::Text(text) => Some(&text.text),
            _ => None,
        }
    }
    drawing.marks.iter().filter_map(text).collect()
}

fn dots(drawing: &Drawing) -> usize {
    drawing.marks.iter().filter(|mark| matches!(mark, Mark::Dot { .. })).count()
}

#[track_caller]
fn near(a: Point, b: Point) {
    assert!((a.0 - b.0).abs() < 0.02 && (a.1 - b.1).abs() < 0.02, "{a:?} is not {b:?}");
}

fn decoded(png: &[u8]) -> RgbImage {
    image::load_from_memory_with_format(png, image::ImageFormat::Png).unwrap().to_rgb8()
}

/// The pixel of a PNG at a place of its figure.
fn pixel(png: &RgbImage, (x, y): Point) -> [u8; 3] {
    png.get_pixel((2.0 * x) as u32, (2.0 * y) as u32).0
}

/// A chart from (0, 0) to (1, 1).
fn unit() -> Chart {
    Chart::new("Losses").x(Axis::linear("step").range(0.0, 1.0)).y(Axis::linear("loss").range(0.0, 1.0))
}

#[test]
fn a_line_lies_where_its_points_are() {
    let points = vec![(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)];
    let drawing = unit().series(Series::line("", points)).drawing().unwrap();
    let [left, right, top, bottom] = frame(&drawing);
    let at = |x: f64, y: f64| (left + x * (right - left), bottom - y * (bottom - top));
    let drawn = &lines(&drawing, 0)[0];
    near(drawn[0], at(0.0, 0.0));
    near(drawn[1], at(0.5, 0.25));
    near(drawn[2], at(1.0, 1.0));

    let png = decoded(&drawing.png().unwrap());
    assert_eq!(png.dimensions(), (1120, 720));
    let Colour(r, g, b, _) = Colour::of_series(0);
    for (x, y) in [(0.25, 0.125), (0.5, 0.25), (0.75, 0.625)] {
        assert_eq!(pixel(&png, at(x, y)), [r, g, b], "on the line at {x}");
        assert_ne!(pixel(&png, at(x, y + 0.1)), [r, g, b], "above it");
        assert_ne!(pixel(&png, at(x, y - 0.1)), [r, g, b], "below it");
    }
    assert_eq!(pixel(&png, (1.0, 1.0)), [255; 3]);
    let labels = texts(&drawing);
    for label in ["Losses", "step", "loss", "0", "0.2", "0.8", "1.0"] {
        assert!(labels.contains(&label), "{label} is not in {labels:?}");
    }
}

#[test]
fn a_logarithmic_axis_has_equal_steps_for_equal_factors() {
    let points = [1e-4, 1e-3, 1e-2].map(|x| (x, x * 100.0)).to_vec();
    let chart = Chart::new("").x(Axis::log("lr").range(1e-4, 1e-2)).y(Axis::of("loss", true).range(1e-2, 1.0));
    let drawing = chart.series(Series::line("", points)).drawing().unwrap();
    let [left, right, top, bottom] = frame(&drawing);
    near(lines(&drawing, 0)[0][1], ((left + right) / 2.0, (top + bottom) / 2.0));
    // Values that have no logarithm are left out.
    let points = vec![(1e-4, 0.1), (0.0, 0.1), (-1.0, 0.1), (1e-3, 0.0), (1e-2, 0.1)];
    let drawing = Chart::new("").x(Axis::log("")).y(Axis::log("")).series(Series::line("", points)).drawing().unwrap();
    assert_eq!((lines(&drawing, 0).len(), dots(&drawing)), (0, 2));
}

#[test]
fn what_is_not_a_number_is_a_gap_and_what_stands_alone_a_dot() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let points = vec![(0.0, 0.5), (0.1, 0.5), (0.2, nan), (0.3, 0.5), (0.4, inf), (0.8, 0.2), (0.9, 0.4), (1.0, 0.4)];
    let drawing = unit().series(Series::line("", points)).drawing().unwrap();
    assert_eq!(lines(&drawing, 0).iter().map(Vec::len).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(dots(&drawing), 1);
    let alone = Chart::new("").series(Series::line("", vec![(7.0, 0.0)])).drawing().unwrap();
    assert_eq!((lines(&alone, 0).len(), dots(&alone)), (0, 1));
    // Points with a dot each, two of which lie within.
    let points = vec![(0.0, 0.0), (0.5, 0.5), (2.0, 2.0)];
    let dotted = unit().series(Series::new("", points, Look::Dots)).drawing().unwrap();
    assert_eq!(dots(&dotted), 2);
}

#[test]
fn lines_end_at_the_frame() {
    let points = vec![(-1.0, 0.5), (0.5, 0.5), (0.5, 3.0), (0.75, 3.0), (0.75, -3.0)];
    let drawing = unit().series(Series::line("", points)).drawing().unwrap();
    let [left, right, top, bottom] = frame(&drawing);
    let (middle, level, third) = ((left + right) / 2.0, (top + bottom) / 2.0, left + 0.75 * (right - left));
    let drawn = lines(&drawing, 0);
    assert_eq!(drawn.len(), 2);
    for (line, expected) in
        drawn.iter().zip([&[(left, level), (middle, level), (middle, top)][..], &[(third, top), (third, bottom)]])
    {
        assert_eq!(line.len(), expected.len());
        line.iter().zip(expected).for_each(|(a, b)| near(*a, *b));
    }
    let outside = unit().series(Series::line("", vec![(2.0, 0.0), (3.0, 1.0)])).drawing().unwrap();
    assert!(lines(&outside, 0).is_empty());
}

#[test]
fn the_legend_has_names_and_says_where_there_is_nothing() {
    let line = |name: &str| Series::line(name, vec![(0.0, 0.0), (1.0, 1.0)]);
    let long = "a run whose name is so long that no legend of any figure on any paper will ever have the room for it, \
                and then some more";
    let chart =
        unit().series(line("a run")).series(line("")).series(Series::line("nothing", vec![])).series(line(long));
    let drawing = chart.drawing().unwrap();
    let labels = texts(&drawing);
    assert!(labels.contains(&"a run") && labels.contains(&"nothing (no data)"), "{labels:?}");
    let cut = labels.iter().find(|label| label.starts_with("a run whose")).unwrap();
    assert!(cut.ends_with('…') && cut.len() > 60, "{cut}");
    assert_eq!([0, 1, 2, 3].map(|i| lines(&drawing, i).len()), [2, 1, 1, 2]);
    // The frame keeps its height, the figure grows.
    let height = |d: &Drawing| frame(d)[3] - frame(d)[2];
    let plain = unit().series(line("a run")).drawing().unwrap();
    assert!(drawing.height > plain.height + 20.0 && (height(&drawing) - height(&plain)).abs() < 1e-6);
    for mark in &drawing.marks {
        if let Mark::Text(text) = mark {
            assert!(text.upwards || text.at.0 + text.width() < 560.0 || text.width() < 60.0, "{}", text.text);
        }
    }
}

#[test]
fn pointers_have_labels_within_the_frame() {
    let chart = unit().series(Series::line("", vec![(0.0, 0.0), (1.0, 1.0)])).mark_x(0.97, "close to the right edge");
    let chart =
        chart.mark_y(0.99, "close to the top").mark_x(0.5, "half way").mark_x(7.0, "outside").mark_y(f64::NAN, "none");
    let drawing = chart.drawing().unwrap();
    let [left, right, top, bottom] = frame(&drawing);
    let dashed = |mark: &&Mark| matches!(mark, Mark::Line { dash: Some(_), .. });
    assert_eq!(drawing.marks.iter().filter(dashed).count(), 3);
    let labels = texts(&drawing);
    assert!(!labels.contains(&"outside") && !labels.contains(&"none"));
    for label in ["close to the right edge", "close to the top", "half way"] {
        let found = drawing.marks.iter().find_map(|mark| match mark {
            Mark::Text(text) if text.text == label => Some(text),
            _ => None,
        });
        let text = found.unwrap_or_else(|| panic!("{label}"));
        assert!(text.at.0 > left && text.at.0 + text.width() < right, "{label}: {text:?}");
        assert!(text.at.1 > top + 5.0 && text.at.1 < bottom, "{label}: {text:?}");
    }
}

#[test]
fn svg_is_well_formed_whatever_the_names() {
    let series = Series::line("a<b & \"c\" \u{7} µ→σ²", vec![(0.0, 0.0), (1.0, 1.0)]);
    let svg = Chart::new("<script>alert(1)</script>").series(series).drawing().unwrap().svg().unwrap();
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"560\" height=\"360\""));
    assert!(svg.ends_with("</svg>\n"));
    assert!(svg.contains("<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>"), "{svg}");
    assert!(svg.contains(">a&lt;b &amp; \"c\" \u{fffd} µ→σ²</text>"), "{svg}");
    assert!(!svg.contains("<script") && !svg.contains("NaN") && !svg.contains("inf"));
    // Every element is closed, and nothing that is not an element begins like one.
    let elements = svg.matches('<').count();
    let closed = svg.matches("/>").count() + 2 * svg.matches("</").count();
    assert_eq!(elements, closed, "{svg}");
}

#[test]
fn the_same_figure_is_the_same_bytes() {
    let make = || {
        let noise = |i: usize| ((i * 7919) % 101) as f64 / 101.0;
        let points = (0..3000).map(|i| (i as f64, noise(i))).collect();
        let chart = Chart::new("Again").x(Axis::linear("step")).y(Axis::linear("loss"));
        let drawing = chart.series(Series::line("one", points)).mark_x(100.0, "here").drawing().unwrap();
        (drawing.png().unwrap(), drawing.svg().unwrap())
    };
    assert_eq!(make(), make());
    assert_eq!(std::thread::spawn(make).join().unwrap(), make());
}

#[test]
fn many_points_are_quick_and_their_extremes_stay() {
    let mut points: Vec<Point> =
        (0..200_000).map(|i| (f64::from(i) / 2e5, 0.4 + 0.1 * f64::from(i % 7) / 7.0)).collect();
    points[123_456].1 = 1.0;
    points[77_777].1 = 0.0;
    let began = Instant::now();
    let drawing = unit().series(Series::line("", points)).drawing().unwrap();
    let (svg, png) = (drawing.svg().unwrap(), decoded(&drawing.png().unwrap()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(svg.len() < 100_000, "{} bytes", svg.len());
    let [left, right, top, bottom] = frame(&drawing);
    let line = &lines(&drawing, 0)[0];
    let has = |x: f64, y: f64| line.iter().any(|p| (p.0 - x).abs() < 0.01 && (p.1 - y).abs() < 0.01);
    assert!(has(left + 123_456.0 / 2e5 * (right - left), top));
    assert!(has(left + 77_777.0 / 2e5 * (right - left), bottom));
    assert_eq!(png.width(), 1120);
}

#[test]
fn a_chart_without_points_and_a_file_of_another_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for series in [vec![], vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)]] {
        let chart = Chart::new("Loss of runs").series(Series::line("a", series));
        let path = folder.path().join("empty.png");
        let why = chart.save(&path).unwrap_err();
        assert!(matches!(why, Error::Failed(_)), "{why:?}");
        assert!(why.to_string().contains("Loss of runs") && why.to_string().contains("no point"), "{why}");
        assert!(!path.exists());
    }
    let chart = unit().series(Series::line("a", vec![(0.0, 0.0)]));
    for name in ["chart.jpg", "chart", ".png"] {
        let path = folder.path().join(name);
        let why = chart.save(&path).unwrap_err();
        assert_eq!(why.exit_code(), 2);
        assert!(why.to_string().contains(name) && why.to_string().contains(".png or .svg"), "{why}");
        assert!(!path.exists());
    }
    assert_eq!(Format::of("a/b.PNG".as_ref()).unwrap(), Format::Png);
    let path = folder.path().join("new/folder/chart.svg");
    chart.save(&path).unwrap();
    assert!(std::fs::read_to_string(path).unwrap().starts_with("<svg"));
    let huge = Drawing::new("huge", 1e6, 1e6).png().unwrap_err();
    assert!(huge.to_string().contains("2^26") && huge.exit_code() == 2, "{huge}");
}

/// A picture whose pixels are all different.
fn picture(side: usize, channels: usize) -> Picture {
    let value = |i: usize| (i * 37 % 251) as u8;
    Picture::new(side, side, channels, (0..side * side * channels).map(value).collect()).unwrap()
}

#[test]
fn a_sheet_shows_its_pictures_pixel_for_pixel() {
    let row = |label: &[&str], pictures| Row { label: label.iter().map(|l| l.to_string()).collect(), pictures };
    let (colour, grey) = (picture(8, 3), picture(8, 1));
    let sheet = Sheet {
        title: "Samples".into(),
        columns: vec!["0".into(), "0.5".into()],
        rows: vec![row(&["mae", "cosine"], vec![colour.clone(), grey.clone()]), row(&["mse"], vec![colour.clone()])],
        side: 64.0,
    };
    let drawing = sheet.drawing().unwrap();
    for label in ["Samples", "0", "0.5", "mae", "cosine", "mse"] {
        assert!(texts(&drawing).contains(&label), "{label}");
    }
    let svg = drawing.svg().unwrap();
    let embedded: Vec<_> = svg.split("data:image/png;base64,").skip(1).map(|s| &s[..s.find('"').unwrap()]).collect();
    assert_eq!(embedded.len(), 3);
    assert_eq!(decoded(&STANDARD.decode(embedded[0]).unwrap()).into_raw(), colour.pixels);

    let png = decoded(&drawing.png().unwrap());
    let places = drawing.marks.iter().filter_map(|mark| match mark {
        Mark::Picture { at, picture, .. } => Some((*at, picture)),
        _ => None,
    });
    let mut seen = 0;
    for (at, shown) in places {
        for (y, x) in [(0, 0), (3, 5), (7, 7)] {
            let found = pixel(&png, (at.0 + 8.0 * x as f64 + 4.0, at.1 + 8.0 * y as f64 + 4.0));
            let values = &shown.pixels[(y * 8 + x) * shown.channels..][..shown.channels];
            let expected = if let [v] = values { [*v; 3] } else { [values[0], values[1], values[2]] };
            assert_eq!(found, expected);
            seen += 1;
        }
    }
    assert_eq!(seen, 9);
    let empty = Sheet { rows: vec![row(&["a"], vec![])], ..sheet };
    assert!(empty.drawing().unwrap_err().to_string().contains("no pictures"));
}

#[test]
fn transparent_pixels_show_the_paper() {
    let clear = Picture::new(1, 2, 4, vec![200, 100, 0, 0, 200, 100, 0, 255]).unwrap();
    let mut drawing = Drawing::new("", 10.0, 10.0);
    drawing.marks.push(Mark::Picture { at: (2.0, 2.0), size: (4.0, 4.0), picture: clear });
    let png = decoded(&drawing.png().unwrap());
    assert_eq!([pixel(&png, (3.0, 3.0)), pixel(&png, (3.0, 5.0))], [[255; 3], [200, 100, 0]]);
    // A picture that reaches over the edge is cut off.
    drawing.marks.push(Mark::Picture { at: (-2.0, 8.0), size: (20.0, 20.0), picture: picture(4, 3) });
    assert_eq!(decoded(&drawing.png().unwrap()).dimensions(), (20, 20));
}

#[test]
fn stacked_figures_keep_their_marks() {
    let a = unit().series(Series::line("", vec![(0.0, 0.0), (1.0, 1.0)])).size(400.0, 200.0).drawing().unwrap();
    let b = unit().series(Series::line("", vec![(0.0, 0.0), (1.0, 1.0)])).drawing().unwrap();
    let both = Drawing::stacked("both", vec![a.clone(), b.clone()], 10.0);
    assert_eq!((both.width, both.height), (560.0, 570.0));
    let (first, second) = (&lines(&a, 0)[0], &lines(&b, 0)[0]);
    let drawn = lines(&both, 0);
    assert_eq!(&drawn[0], first);
    near(drawn[1][0], (second[0].0, second[0].1 + 210.0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any numbers make a figure of finite places, or an error that says that there is nothing to draw.
    #[test]
    fn any_numbers_can_be_drawn(
        points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..20),
        near_points in prop::collection::vec((0.0..1e-3, 1e6..1.000001e6), 0..5),
        log in any::<(bool, bool)>(),
        range in prop::option::of(any::<(f64, f64)>()),
    ) {
        let axis = |log| {
            let axis = Axis::of("axis", log);
            range.map_or(axis.clone(), |(low, high)| axis.range(low, high))
        };
        let chart = Chart::new("any").x(axis(log.0)).y(Axis::of("y", log.1));
        let chart = chart.series(Series::new("one", points, Look::Dots)).series(Series::line("two", near_points));
        match chart.mark_x(1.0, "one").drawing() {
            Ok(drawing) => {
                let svg = drawing.svg().unwrap();
                prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", svg);
                prop_assert!(svg.len() < 1_000_000);
            }
            Err(why) => prop_assert!(matches!(why, Error::Failed(_))),
        }
    }
}
