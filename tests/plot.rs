//! Figures that need no model: what is in them, that they repeat, and what is refused.

mod train_support;

use std::fs;

use ddim_engine::lab::plot::{Axis, Chart, Series};
use image::GenericImageView;
use train_support::Place;

const BLUE: [u8; 3] = [0x00, 0x72, 0xb2];
const ORANGE: [u8; 3] = [0xd5, 0x5e, 0x00];

fn near(pixel: [u8; 4], colour: [u8; 3]) -> bool {
    pixel.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) < 12)
}

/// Places of the pixels of a colour.
fn pixels(path: &std::path::Path, colour: [u8; 3]) -> Vec<(u32, u32)> {
    let picture = image::open(path).unwrap();
    picture.pixels().filter(|(_, _, pixel)| near(pixel.0, colour)).map(|(x, y, _)| (x, y)).collect()
}

#[test]
fn a_line_goes_where_its_values_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("line.png");
    let chart = Chart::new("Up and down").x(Axis::linear("x")).y(Axis::linear("y"));
    let chart = chart.series(Series::line("up", vec![(0.0, 0.0), (10.0, 1.0)]));
    chart.series(Series::line("down", vec![(0.0, 1.0), (5.0, f64::NAN), (10.0, 0.0)])).save(&path).unwrap();
    let (width, height) = image::open(&path).unwrap().dimensions();
    assert!(width == 1120 && height >= 720, "{width} x {height}");
    // The legend has the colour, too: above the middle, at the left. The line goes from lower left to upper right.
    let blue = pixels(&path, BLUE);
    let lowest = blue.iter().max_by_key(|(_, y)| *y).unwrap();
    let rightmost = blue.iter().max_by_key(|(x, _)| *x).unwrap();
    assert!(lowest.0 < width / 4 && lowest.1 > height / 2, "{lowest:?}");
    assert!(rightmost.0 > 9 * width / 10 && rightmost.1 < height / 2, "{rightmost:?}");
    // A value that is no number is a gap; what is left of that line are two single points.
    assert!(pixels(&path, ORANGE).len() < blue.len() / 2);
}

#[test]
fn a_chart_without_a_point_is_an_error_and_one_point_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.svg");
    let chart = |points| Chart::new("One").series(Series::line("a <b> & c", points));
    chart(vec![(1.0, 2.0)]).save(&path).unwrap();
    let svg = fs::read_to_string(&path).unwrap();
    assert!(svg.contains("a &lt;b&gt; &amp; c"), "names are text, not markup");
    let why = chart(vec![(1.0, f64::NAN)]).save(&path).unwrap_err().to_string();
    assert!(why.contains("One") && why.contains("no point"), "{why}");
    let log = Chart::new("Log").y(Axis::log("loss")).series(Series::line("a", vec![(1.0, 0.0), (2.0, -1.0)]));
    assert!(log.save(&path).is_err());
}

#[test]
fn schedules_show_the_picture_dissolve_and_repeat() {
    let place = Place::new();
    let plot = |out: &str| {
        place.ok(&["plot", "schedules", "--schedule", "linear,cosine,sigmoid", "--image-size", "16", "--out", out])
    };
    plot("a.png");
    plot("b.png");
    plot("a.svg");
    assert_eq!(fs::read(place.path("a.png")).unwrap(), fs::read(place.path("b.png")).unwrap());
    let svg = fs::read_to_string(place.path("a.svg")).unwrap();
    for needle in ["linear", "cosine", "sigmoid", "t 0.50", "t 1.00", "signal rate²", "data:image/png;base64,"] {
        assert!(svg.contains(needle), "{needle:?} is not in the figure");
    }
    assert_eq!(svg.matches("<image").count(), 27);
    place.refused(&["plot", "schedules", "--schedule", "cosin"], &["--schedule cosin", "cosine, linear"]);
    place.refused(&["plot", "schedules", "--signal-rates", "0.9,0.1"], &["--signal-rates 0.9,0.1", "lesser first"]);
    place.refused(&["plot", "schedules", "--data", "debug", "--picture", "7"], &["--picture 7", "0 to 1"]);
    place.refused(&["plot", "schedules", "--out", "a.jpg"], &["a.jpg", ".png or .svg"]);
}

#[test]
fn the_embedding_shows_slow_waves_and_averages_fast_ones() {
    let place = Place::new();
    place.ok(&["plot", "embedding", "--out", "e.png"]);
    let picture = image::open(place.path("e.png")).unwrap();
    // The first row is sin(2 pi v): orange at a quarter, blue at three quarters. The fast ones average out to white.
    let at = |share: f64, row: f64| {
        let x = 2.0 * (62.0 + 480.0 * share);
        picture.get_pixel(x as u32, (2.0 * (44.0 + 256.0 * (row + 0.5) / 32.0)) as u32).0
    };
    assert!(near(at(0.25, 0.0), [0xc8, 0x4a, 0x00]), "{:?}", at(0.25, 0.0));
    assert!(near(at(0.75, 0.0), [0x00, 0x5a, 0x9c]), "{:?}", at(0.75, 0.0));
    assert!(near(at(0.0, 16.0), [0xc8, 0x4a, 0x00]), "{:?}", at(0.0, 16.0));
    assert!((1..100).all(|i| at(f64::from(i) / 100.0, 15.0)[..3].iter().all(|&v| v > 160)));
    place.refused(&["plot", "embedding", "--embedding-dim", "5"], &["--embedding-dim 5", "even"]);
}

#[test]
fn curves_have_the_runs_and_their_losses() {
    let place = Place::with_pictures();
    place.train("runs/first", &["--steps", "20"]);
    place.train("runs/second", &["--steps", "20", "--seed", "1"]);
    place.ok(&["plot", "curves", "runs", "--out", "c.svg"]);
    let svg = fs::read_to_string(place.path("c.svg")).unwrap();
    for needle in ["first, train", "second, valid", "step", "loss"] {
        assert!(svg.contains(needle), "{needle:?} is not in the figure");
    }
    place.ok(&["plot", "curves", "runs/first", "--metric", "lr", "--log", "--out", "c.png"]);
    place.refused(&["plot", "curves", "runs/first", "--metric", "los"], &["--metric los", "noise_loss"]);
    place.refused(&["plot", "curves", "runs/first", "--smooth", "1"], &["--smooth 1", "below 1"]);
    place.refused(&["plot", "curves", "pictures"], &["pictures", "no run"]);
    fs::remove_file(place.path("runs/first/metrics.jsonl")).unwrap();
    place.refused(&["plot", "curves", "runs/first"], &["runs/first", "no metrics.jsonl"]);
}
