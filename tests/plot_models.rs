//! Figures that a model draws: that they show what they say they show, the same on every device and in every format, and what is refused.

mod train_support;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use base64::Engine;
use ddim_engine::data::{self, DataSpec};
use image::RgbImage;
use train_support::Place;

const UNET: &[&str] = &[
    "family=unet2d",
    "unet.block_out_channels=8,16",
    "unet.down_block_types=DownBlock2D,AttnDownBlock2D",
    "unet.up_block_types=AttnUpBlock2D,UpBlock2D",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=8",
    "train_timesteps=60",
    "beta_end=0.2",
    "sampler=ddpm",
];

/// A folder with `runs/seed`, `runs/other` (another schedule and loss), `runs/large` (pictures of 16x16), `runs/stopped`, which has not
/// ended, and `unet2d`. The tests only read them.
fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = Place::with_pictures();
        let run = |name: &str, sets: &[&str]| {
            let mut args = vec!["--epochs", "1", "--quiet"];
            args.extend(sets.iter().flat_map(|set| ["--set", set]));
            place.train(name, &args)
        };
        run("runs/seed", &["ema_decay=0"]);
        run("runs/other", &["schedule=linear", "loss=mse", "ema_decay=0"]);
        run("runs/large", &["image_size=16", "widths=4,4", "ema_decay=0"]);
        let stopped = run("runs/stopped", &["ema_decay=0"]);
        fs::remove_file(stopped.join("summary.json")).unwrap();
        run("unet2d", UNET);
        place
    })
}

fn svg(name: &str) -> String {
    fs::read_to_string(place().path(name)).unwrap()
}

/// The texts of an SVG.
fn texts(svg: &str) -> Vec<&str> {
    svg.split("<text ").skip(1).filter_map(|part| part.split_once('>')?.1.split('<').next()).collect()
}

/// The pictures of an SVG, in its order: row by row.
fn pictures(svg: &str) -> Vec<RgbImage> {
    let decoded = |part: &str| {
        let base64 = base64::engine::general_purpose::STANDARD.decode(part.split('"').next().unwrap()).unwrap();
        image::load_from_memory(&base64).unwrap().to_rgb8()
    };
    svg.split("base64,").skip(1).map(decoded).collect()
}

/// Mean difference of bytes.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: f64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).sum();
    sum / a.as_raw().len() as f64
}

fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// What `sample` draws.
fn sampled(run: &str, folder: &str, args: &[&str]) -> Vec<RgbImage> {
    let grid = format!("{folder}.png");
    place().ok(&[&["sample", run, "--individual", folder, "--out", &grid][..], args].concat());
    let mut names: Vec<_> = fs::read_dir(place().path(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.iter().map(|name| image::open(name).unwrap().to_rgb8()).collect()
}

#[test]
fn reverse_goes_from_a_picture_held_back_to_its_noise_and_from_there_to_a_sample() {
    for run in ["runs/seed", "unet2d"] {
        let out = format!("reverse-{}.svg", run.replace('/', "-"));
        let said =
            place().ok(&["plot", "reverse", run, "--columns", "6", "--seed", "3", "--picture", "2", "--out", &out]);
        assert!(said.out.contains(&out), "{said:?}");
        let svg = svg(&out);
        let texts = texts(&svg);
        for needle in
            ["forward →", "← reverse", "predicted picture", "from the same noise, 40 network calls", "noise 0.00"]
        {
            assert!(texts.contains(&needle), "{needle:?} is not in {texts:?}");
        }
        let rates: Vec<f64> = texts.iter().filter_map(|t| t.strip_prefix("noise ")?.parse().ok()).collect();
        assert!(rates.len() == 6 && rates[0] == 0.0 && rates.windows(2).all(|w| w[0] < w[1]), "{rates:?}");
        assert!(rates[5] > 0.95, "{rates:?}");

        let all = pictures(&svg);
        assert_eq!(all.len(), 3 * 6);
        let (forward, reverse, predicted) = (&all[..6], &all[6..12], &all[12..]);
        let dataset =
            data::load(&DataSpec::new(place().path("pictures").display().to_string(), 8), &data::Silent).unwrap();
        let held_back = data::split(dataset.len(), 0.2, 0).unwrap().valid;
        assert_eq!(forward[0].as_raw().as_slice(), dataset.image(held_back[2] as usize), "{run}");
        // It dissolves in the noise that the way back begins with, and which it leaves.
        let noise = &reverse[5];
        for row in [forward, reverse] {
            let far: Vec<f64> = row.iter().map(|picture| difference(picture, noise)).collect();
            assert!(far.windows(2).all(|w| w[0] > w[1]) && far[0] > 10.0, "{run}: {far:?}");
        }
        assert!(difference(&forward[5], noise) < 25.0);
        assert_eq!(reverse[0], predicted[0]);
        assert!(predicted[5] != reverse[5] && predicted[1] != reverse[1]);
    }
    // The seed's own sampler goes the same way.
    let drawn = sampled("runs/seed", "forty-one", &["--count", "1", "--steps", "41", "--seed", "3"]);
    assert!(largest_difference(&pictures(&svg("reverse-runs-seed.svg"))[6], &drawn[0]) <= 1);
}

#[test]
fn steps_has_a_row_for_each_number_with_what_sample_draws() {
    for (run, calls) in
        [("runs/seed", ["1 network call", "4 network calls"]), ("unet2d", ["2 network calls", "5 network calls"])]
    {
        let name = run.replace('/', "-");
        let out = format!("steps-{name}.svg");
        place().ok(&["plot", "steps", run, "--steps", "2,5", "--count", "3", "--seed", "4", "--out", &out]);
        let svg = svg(&out);
        for needle in [&["2 steps", "5 steps"][..], &calls].concat() {
            assert!(texts(&svg).contains(&needle), "{needle}: {:?}", texts(&svg));
        }
        let drawn = pictures(&svg);
        assert_eq!(drawn.len(), 6);
        for (row, steps) in ["2", "5"].into_iter().enumerate() {
            let folder = format!("steps-{name}-{steps}");
            let want = sampled(run, &folder, &["--count", "3", "--steps", steps, "--seed", "4"]);
            assert_eq!(drawn[3 * row..][..3], want[..], "{run} {steps}");
        }
    }
    // Without --steps, those that the schedule of 60 points has room for.
    place().ok(&["plot", "steps", "unet2d", "--count", "1", "--sampler", "ddim", "--out", "all.svg"]);
    let svg = svg("all.svg");
    assert!(texts(&svg).contains(&"50 steps") && !texts(&svg).contains(&"100 steps"), "{:?}", texts(&svg));
}

#[test]
fn samples_has_a_row_for_each_finished_run_labelled_by_what_differs() {
    let said = place().ok(&["plot", "samples", "runs", "--count", "5", "--steps", "4", "--out", "samples.svg"]);
    assert!(said.err.contains("passed over: runs/stopped (stopped)"), "{}", said.err);
    let svg = svg("samples.svg");
    let texts = texts(&svg);
    for needle in ["schedule linear", "schedule cosine", "loss mse", "image_size 16", "widths 4,4"] {
        assert!(texts.contains(&needle), "{needle:?} is not in {texts:?}");
    }
    assert!(!texts.iter().any(|t| t.contains("data") || t.contains("batch_size")), "{texts:?}");
    let sizes: Vec<u32> = pictures(&svg).iter().map(|picture| picture.width()).collect();
    assert_eq!(sizes, [[16; 5], [8; 5], [8; 5]].concat());
    let drawn = sampled("runs/other", "other", &["--count", "5", "--steps", "4"]);
    assert_eq!(pictures(&svg)[5..10], drawn[..]);

    // A run that has not ended is drawn where it is named; runs that do not differ have their names.
    place().ok(&["plot", "samples", "runs/stopped", "runs/seed", "--count", "2", "--steps", "3", "--out", "two.svg"]);
    let svg = self::svg("two.svg");
    assert!(self::texts(&svg).contains(&"stopped") && self::texts(&svg).contains(&"seed"));
    let all = pictures(&svg);
    assert_eq!(all[..2], all[2..]);
}

#[test]
fn figures_are_the_same_bytes_each_time_whatever_the_threads() {
    let drawn = |args: &[&str], threads: &str| {
        let out = format!("same-{}-{threads}.png", args[0]);
        place().ok(&[&["plot"], args, &["--threads", threads, "--out", &out]].concat());
        fs::read(place().path(&out)).unwrap()
    };
    // Sides of 64 with a gap of 3, twice as many pixels, and the margins.
    let within = |bytes: &[u8], columns: u32, rows: u32| {
        let picture = image::load_from_memory(bytes).unwrap();
        let (w, h) = (picture.width(), picture.height());
        assert!((134 * columns + 40..134 * columns + 700).contains(&w), "{w}");
        assert!((134 * rows + 40..134 * rows + 160).contains(&h), "{h}");
    };
    for (args, columns, rows) in [
        (&["reverse", "unet2d", "--columns", "5"][..], 5, 3),
        (&["samples", "runs/seed", "runs/other", "--steps", "3"], 8, 2),
        (&["steps", "runs/seed", "--steps", "2,3,4", "--count", "4"], 4, 3),
    ] {
        let first = drawn(args, "1");
        assert_eq!(first, drawn(args, "2"), "{args:?}");
        within(&first, columns, rows);
    }
    assert_ne!(
        drawn(&["steps", "runs/seed", "--steps", "3", "--seed", "1"], "1"),
        drawn(&["steps", "runs/seed", "--steps", "3"], "1")
    );
}

#[test]
fn what_cannot_be_drawn_is_refused_by_name() {
    let refused = |args: &[&str], needles: &[&str]| {
        place().refused(&[&["plot"], args].concat(), needles);
    };
    for what in ["reverse", "samples", "steps"] {
        // Before anything is read.
        refused(&[what, "nowhere", "--out", "figure.jpg"], &["figure.jpg", ".png or .svg"]);
        refused(&[what, "nowhere"], &["nowhere", "no such"]);
        refused(&[what, "runs/seed", "--weights", "ema"], &["ema_decay is 0", "--weights raw"]);
    }
    refused(&["samples", "runs/seed", "--count", "0"], &["--count", "0"]);
    refused(&["steps", "runs/seed", "--count", "0"], &["--count", "0"]);
    refused(&["samples", "pictures"], &["pictures", "no finished run"]);
    refused(&["samples", "runs/seed", "--sampler", "euler"], &["--sampler euler", "ddim"]);
    refused(&["steps", "runs/seed", "--steps", "5,1"], &["--steps 1", "at least 2"]);
    refused(&["steps", "unet2d", "--steps", "61"], &["--steps 61"]);
    refused(&["reverse", "runs/seed", "--columns", "1"], &["--columns", "1"]);
    refused(&["reverse", "unet2d", "--columns", "61"], &["--columns 61", "room for 60"]);
    refused(&["reverse", "runs/seed", "--picture", "7"], &["--picture 7", "7 pictures held back", "0 to 6"]);
    refused(&["reverse", "runs/seed", "--data", "debug", "--picture", "9"], &["--picture 9", "2 pictures"]);

    // A run without a checkpoint, and one whose pictures are gone.
    let place = Place::with_pictures();
    let run = place.train("run", &["--steps", "2", "--quiet"]);
    fs::rename(place.path("pictures"), place.path("moved")).unwrap();
    place.refused(&["plot", "reverse", "run"], &["pictures", "name them with --data"]);
    let said = place.ok(&["plot", "reverse", "run", "--data", "moved", "--columns", "3"]);
    assert!(said.err.contains("moving average"), "{}", said.err);
    assert!(Path::new(&place.path("reverse.png")).is_file());
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    place.refused(&["plot", "steps", "run"], &["run", "no checkpoint yet"]);
    place.refused(&["plot", "samples", "run"], &["run", "no checkpoint yet"]);
}
