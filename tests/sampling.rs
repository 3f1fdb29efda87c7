//! Drawing pictures with the built program, for both families: samplers, interpolation, pictures to noise and back, pictures and masks to
//! begin with, classes and guidance.

mod train_support;

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma, RgbImage};
use train_support::Place;

const UNET: &[&str] = &[
    "family=unet2d",
    "unet.block_out_channels=8,16",
    "unet.down_block_types=DownBlock2D,AttnDownBlock2D",
    "unet.up_block_types=AttnUpBlock2D,UpBlock2D",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=8",
    "train_timesteps=100",
    "beta_end=0.1",
];

/// A folder with a small trained run of each family, `seed` and `unet2d`.
fn place() -> Place {
    let place = Place::with_pictures();
    place.train("seed", &["--epochs", "2", "--quiet"]);
    let sets: Vec<&str> = UNET.iter().flat_map(|set| ["--set", set]).collect();
    place.train("unet2d", &[&sets[..], &["--epochs", "2", "--quiet"]].concat());
    place
}

const FAMILIES: [&str; 2] = ["seed", "unet2d"];

/// Runs `sample` with the pictures as the network sees them; returns these.
#[track_caller]
fn sample(place: &Place, run: &str, args: &[&str]) -> Vec<f32> {
    let steps: &[&str] = if args.contains(&"--steps") { &[] } else { &["--steps", "5"] };
    let all = [&["sample", run, "--raw", "raw.safetensors"][..], steps, args].concat();
    place.ok(&all);
    tensor(&place.path("raw.safetensors"))
}

/// The numbers of a file of one float32 tensor.
fn tensor(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Largest difference over largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

const PICTURE: usize = 3 * 8 * 8;

#[test]
fn the_same_seed_draws_the_same_pictures_in_any_batch_by_every_sampler() {
    let place = place();
    let samplers: [&[&str]; 7] = [
        &[],
        &["--sampler", "ddim", "--eta", "0.7", "--spacing", "trailing"],
        &["--sampler", "ddpm", "--spacing", "leading", "--clip", "2"],
        &["--sampler", "dpm++2m", "--dynamic-threshold", "0.9"],
        &["--sampler", "dpm++2m", "--spacing", "karras"],
        &["--sampler", "heun"],
        &["--sampler", "ddim", "--spacing", "quadratic"],
    ];
    for run in FAMILIES {
        let mut seen: Vec<Vec<f32>> = Vec::new();
        for sampler in samplers {
            let draw = |more: &[&str]| sample(&place, run, &[sampler, &["--count", "5"], more].concat());
            let all = draw(&["--batch", "5"]);
            assert!(all.iter().all(|v| v.is_finite()), "{run} {sampler:?}");
            assert_eq!(all.len(), 5 * PICTURE);
            for more in [&["--batch", "2"][..], &["--batch", "1", "--threads", "2"]] {
                assert!(draw(more) == all, "{run} {sampler:?} {more:?}");
            }
            assert!(draw(&["--seed", "1"]) != all, "{run} {sampler:?}");
            assert!(seen.iter().all(|other| *other != all), "{run} {sampler:?}: as another sampler");
            seen.push(all);
        }
    }
}

/// An animation has a frame for each step, of which `heun` takes two calls; its last is what is drawn.
#[test]
fn animations_show_steps() {
    let place = place();
    for run in FAMILIES {
        for sampler in [&[][..], &["--sampler", "heun"], &["--sampler", "dpm++2m"]] {
            let args = [&["sample", run, "--steps", "5", "--count", "3", "--gif", "a.gif"][..], sampler].concat();
            let said = place.ok(&args);
            let frames = if run == "seed" { "4 frames" } else { "5 frames" };
            assert!(said.out.contains(frames), "{run} {sampler:?}: {}", said.out);
        }
    }
}

/// The seed's own sampler is the plan of its grid, up to the rounding of the rates.
#[test]
fn the_seeds_sampler_and_its_plan_agree() {
    let place = place();
    let own = sample(&place, "seed", &["--count", "3"]);
    let plan = sample(&place, "seed", &["--count", "3", "--sampler", "ddim"]);
    let error = difference(&plan, &own);
    assert!(error < 2e-5 && error > 0.0, "{error:e}");
}

#[test]
fn an_interpolation_begins_and_ends_with_the_samples_of_its_seeds() {
    let place = place();
    for run in FAMILIES {
        let arc = sample(&place, run, &["--interpolate", "3:7", "--count", "4", "--batch", "3"]);
        let [first, last] = ["3", "7"].map(|seed| sample(&place, run, &["--seed", seed, "--count", "1"]));
        assert!(arc[..PICTURE] == first && arc[3 * PICTURE..] == last, "{run}");
        assert!(arc[PICTURE..2 * PICTURE] != first && arc[PICTURE..2 * PICTURE] != last, "{run}");
    }
}

/// How far the pictures that `encode` was given came back, in steps of 255.
fn came_back(out: &str) -> Vec<f64> {
    let number = |line: &str| line.split("back within ").nth(1)?.split(' ').next()?.parse().ok();
    out.lines().filter_map(number).collect()
}

#[test]
fn pictures_are_led_to_noise_and_back() {
    let place = place();
    let [a, b] = ["pictures/000.png", "pictures/001.png"];
    for run in FAMILIES {
        let encode = |rounds: &str| {
            let said = place.ok(&["encode", run, a, b, "--steps", "8", "--rounds", rounds, "--noise", "n.safetensors"]);
            let errors = came_back(&said.out);
            assert_eq!(errors.len(), 2, "{}", said.out);
            errors[0].max(errors[1])
        };
        let (once, often) = (encode("1"), encode("12"));
        assert!(often < 1.5 && often < 0.5 * once + 0.1, "{run}: {once} {often}");
        let grid = image::open(place.path("encoded.png")).unwrap().into_rgb8();
        assert!(grid.width() > 2 * 64 && grid.height() > 2 * 64);

        // What lies between two pictures begins and ends with what is made of their noise.
        encode("3");
        let noise = ["--noise", "n.safetensors", "--sampler", "ddim", "--clip", "0", "--steps", "8"];
        let both = place.ok(&[&["sample", run, "--raw", "both.safetensors"][..], &noise].concat());
        assert!(both.out.contains("2 pictures"), "{}", both.out);
        let between = format!("{a}:{b}");
        place.ok(&[
            "sample",
            run,
            "--interpolate",
            &between,
            "--count",
            "3",
            "--steps",
            "8",
            "--raw",
            "arc.safetensors",
        ]);
        let (both, arc) = (tensor(&place.path("both.safetensors")), tensor(&place.path("arc.safetensors")));
        assert!(arc[..PICTURE] == both[..PICTURE] && arc[2 * PICTURE..] == both[PICTURE..], "{run}");
    }
}

#[test]
fn what_is_black_in_a_mask_stays_as_it_is() {
    let place = place();
    let picture = RgbImage::from_fn(8, 8, |x, y| image::Rgb([(x * 30) as u8, (y * 25 + 10) as u8, 90 + x as u8]));
    picture.save(place.path("init.png")).unwrap();
    GrayImage::from_fn(8, 8, |x, _| Luma([if x < 4 { 0 } else { 255 }])).save(place.path("mask.png")).unwrap();
    for run in FAMILIES {
        for more in
            [&[][..], &["--sampler", "heun"], &["--sampler", "ddpm", "--spacing", "leading", "--strength", "0.8"]]
        {
            let args = ["--init-image", "init.png", "--mask", "mask.png", "--individual", "out", "--count", "3"];
            sample(&place, run, &[&args[..], more].concat());
            for i in 0..3 {
                let drawn = image::open(place.path(&format!("out/{i:04}.png"))).unwrap().into_rgb8();
                let differ = |x: u32, y: u32| drawn.get_pixel(x, y) != picture.get_pixel(x, y);
                assert!((0..4).all(|x| (0..8).all(|y| !differ(x, y))), "{run} {more:?}: a known pixel changed");
                assert!((4..8).any(|x| (0..8).any(|y| differ(x, y))), "{run} {more:?}: nothing was drawn");
            }
        }
    }
}

#[test]
fn the_less_is_drawn_anew_the_nearer_it_stays() {
    let place = place();
    for run in FAMILIES {
        let distance = |strength: &str| {
            let drawn = sample(
                &place,
                run,
                &["--init-image", "pictures/000.png", "--strength", strength, "--count", "1", "--steps", "11"],
            );
            let known = sample(
                &place,
                run,
                &[
                    "--init-image",
                    "pictures/000.png",
                    "--strength",
                    "0.1",
                    "--seed",
                    "5",
                    "--count",
                    "1",
                    "--steps",
                    "11",
                ],
            );
            drawn.iter().zip(&known).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let (little, much) = (distance("0.1"), distance("1"));
        assert!(little < 0.5 * much, "{run}: {little} {much}");
    }
}

#[test]
fn classes_and_guidance() {
    let place = Place::with_pictures();
    let labels: String = (0..36).map(|i| format!("{i:03}.png,{}\n", ["rose", "tulip"][i % 2])).collect();
    fs::write(place.path("labels.csv"), format!("file,label\n{labels}")).unwrap();
    let sets = [UNET, &["unet.num_class_embeds=3", "labels=labels.csv", "label_dropout=0.2", "lr=0.01"]].concat();
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    place.train("run", &[&sets[..], &["--epochs", "3", "--quiet"]].concat());
    let draw = |more: &[&str]| sample(&place, "run", &[&["--count", "4"], more].concat());
    let (in_turn, rose, tulip) = (draw(&[]), draw(&["--class", "0"]), draw(&["--class", "1"]));
    assert!(rose != tulip);
    for i in 0..4 {
        let of = if i % 2 == 0 { &rose } else { &tulip };
        let range = i * PICTURE..(i + 1) * PICTURE;
        assert!(in_turn[range.clone()] == of[range], "classes in turn: {i}");
    }
    assert!(draw(&["--class", "0,1", "--batch", "1"]) == in_turn);
    assert!(draw(&["--class", "0", "--guidance", "1"]) == rose);
    let guided = draw(&["--class", "0", "--guidance", "3"]);
    assert!(guided != rose && draw(&["--class", "0", "--guidance", "3", "--batch", "2"]) == guided);
    // Weight 0 is the picture of no class.
    assert!(difference(&draw(&["--class", "0", "--guidance", "0"]), &draw(&["--class", "2"])) < 1e-5);
    place.refused(&["sample", "run", "--class", "3"], &["--class 3", "0 to 2"]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = place();
    place.draw_pictures("black", 1);
    GrayImage::new(8, 8).save(place.path("black.png")).unwrap();
    let refused = |run: &str, args: &[&str], needles: &[&str]| {
        place.refused(&[&["sample", run][..], args].concat(), needles);
    };
    for run in FAMILIES {
        refused(run, &["--sampler", "euler"], &["--sampler euler", "dpm++2m"]);
        refused(run, &["--spacing", "cosine"], &["--spacing cosine", "karras"]);
        refused(run, &["--sampler", "ddpm", "--spacing", "karras"], &["--spacing karras", "--sampler ddpm"]);
        refused(run, &["--sampler", "heun", "--eta", "0.5"], &["--eta 0.5", "--sampler heun"]);
        refused(run, &["--clip", "1", "--dynamic-threshold", "0.9"], &["--clip 1", "--dynamic-threshold 0.9"]);
        refused(run, &["--dynamic-threshold", "1.5"], &["--dynamic-threshold 1.5"]);
        refused(run, &["--class", "1"], &["--class 1", "no classes"]);
        refused(run, &["--guidance", "2"], &["--guidance 2", "label_dropout"]);
        refused(run, &["--interpolate", "3"], &["--interpolate 3", "3:7"]);
        refused(run, &["--interpolate", "3:7", "--eta", "1"], &["--interpolate", "--eta"]);
        refused(run, &["--interpolate", "3:no.png"], &["3: cannot be read"]);
        let two = "pictures/000.png:pictures/001.png";
        refused(run, &["--interpolate", two, "--sampler", "heun"], &["--interpolate", "ddim"]);
        refused(run, &["--mask", "black.png"], &["--mask", "--init-image"]);
        refused(run, &["--strength", "0.5"], &["--strength 0.5", "--init-image"]);
        refused(run, &["--init-image", "no.png"], &["no.png"]);
        refused(run, &["--init-image", "seed/config.toml"], &["config.toml", "picture"]);
        refused(run, &["--init-image", "pictures/000.png", "--strength", "0"], &["--strength 0"]);
        refused(run, &["--init-image", "pictures/000.png", "--strength", "0.01"], &["--strength"]);
        refused(run, &["--init-image", "pictures/000.png", "--mask", "black.png"], &["black.png", "white"]);
        refused(run, &["--noise", "no.safetensors"], &["no.safetensors"]);
        refused(run, &["--raw", "x.bin"], &["--raw x.bin", ".safetensors"]);
        place.refused(&["encode", run, "no.png"], &["no.png"]);
    }
    refused("unet2d", &["--steps", "101"], &["--steps 101", "1 to 100"]);
    place.refused(&["encode", "seed"], &["PICTURE"]);
    place.refused(&["encode", "no/such", "pictures/000.png"], &["no/such", "ddim-engine train"]);
}
