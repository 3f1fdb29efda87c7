//! What training can be asked for beyond the plain loop, through the built program and the library under it: schedules of the learning
//! rate, clipping, batches in parts, weights and offsets; each either equal to the plain loop where it must be, or different as it should.

mod train_support;

use std::path::Path;

use ddim_engine::config::{Config, Layers};
use ddim_engine::device::Memory;
use ddim_engine::device::ReadBack;
use ddim_engine::device::cpu::Cpu;
use ddim_engine::diffusion::normalizer::Normalizer;
use ddim_engine::model::params::visit_flat;
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::tensor::Shape;
use ddim_engine::train::metrics_log::Split;
use ddim_engine::train::state::TrainState;
use ddim_engine::train::stepper::Stepper;
use train_support::{Place, records, tensor_bytes, tiny};

/// A small network of the family unet2d, on pictures of 8x8.
pub const UNET: &[&str] = &[
    "family=unet2d",
    "unet.block_out_channels=8,16",
    "unet.down_block_types=DownBlock2D,AttnDownBlock2D",
    "unet.up_block_types=AttnUpBlock2D,UpBlock2D",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=8",
    "schedule=squaredcos_cap_v2",
];

fn sets<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    sets.iter().flat_map(|set| ["--set", set]).collect()
}

fn config(values: &[&str]) -> Config {
    let layers = Layers { sets: values.iter().map(|s| s.to_string()).collect(), ..Layers::default() };
    Config::resolve(&layers).unwrap()
}

/// The values of training records.
fn train_values(run: &Path, of: impl Fn(&ddim_engine::train::metrics_log::Record) -> f64) -> Vec<f64> {
    records(run).iter().filter(|r| r.split == Split::Train).map(of).collect()
}

#[test]
fn the_learning_rate_is_logged_as_it_falls() {
    let place = Place::with_pictures();
    let args =
        [&sets(&["lr=0.01", "lr_schedule=linear", "lr_warmup=20", "lr_min=0.002"])[..], &["--steps", "40", "--quiet"]];
    let run = place.train("run", &args.concat());
    let rates = train_values(&run, |r| r.lr);
    // Steps 10, 20, 30, 40: half of the warm-up, its end, then 9/20 and 19/20 of the way down.
    for (rate, want) in rates.iter().zip([0.005, 0.01, 0.01 - 0.008 * 0.45, 0.01 - 0.008 * 0.95]) {
        assert!((rate - want).abs() < 1e-12, "{rates:?}");
    }
    assert_eq!(rates.len(), 4);
}

#[test]
fn a_falling_rate_resumes_to_the_same_bytes_and_cannot_be_extended() {
    let place = Place::with_pictures();
    let falling = sets(&[
        "lr_schedule=cosine",
        "lr_warmup=3",
        "grad_clip=0.5",
        "accumulate=2",
        "ema_decay=0.9",
        "offset_noise=0.1",
    ]);
    let whole = place.train("whole", &[&falling[..], &["--epochs", "3", "--quiet"]].concat());
    // As it was after its first epoch.
    for step in [8, 12] {
        std::fs::remove_dir_all(train_support::checkpoint_at(&whole, step)).ok();
    }
    let before = {
        let again = place.train("again", &[&falling[..], &["--epochs", "3", "--quiet"]].concat());
        (tensor_bytes(&again, 12), records(&again))
    };
    place.ok(&["train", "--resume", "whole", "--quiet"]);
    assert!(tensor_bytes(&whole, 12) == before.0);
    assert_eq!(records(&whole), before.1);
    place.refused(&["train", "--resume", "whole", "--epochs", "5"], &["20 steps", "lr_schedule cosine", "step 12"]);
    // A constant rate can.
    place.train("constant", &[&sets(&["lr_warmup=6"])[..], &["--epochs", "1", "--quiet"]].concat());
    place.ok(&["train", "--resume", "constant", "--epochs", "2", "--quiet"]);
    let straight = place.train("straight", &[&sets(&["lr_warmup=6"])[..], &["--epochs", "2", "--quiet"]].concat());
    assert!(tensor_bytes(&place.path("constant"), 8) == tensor_bytes(&straight, 8));
}

/// Names and values of a checkpoint's tensors. (Its files also hold the configuration.)
fn values(run: &Path, step: u64) -> Vec<(String, Vec<f32>)> {
    train_support::tensors(run, step).into_iter().map(|t| (t.name, t.data)).collect()
}

#[test]
fn clipping_that_never_clips_changes_nothing_but_the_record() {
    let place = Place::with_pictures();
    let plain = place.train("plain", &["--epochs", "2", "--quiet"]);
    let loose = place.train("loose", &[&sets(&["grad_clip=1e6"])[..], &["--epochs", "2", "--quiet"]].concat());
    let tight = place.train("tight", &[&sets(&["grad_clip=0.001"])[..], &["--epochs", "2", "--quiet"]].concat());
    assert!(values(&plain, 8) == values(&loose, 8));
    assert!(values(&plain, 8) != values(&tight, 8));
    let norms = |run: &Path| -> Vec<Option<f64>> { records(run).iter().map(|r| r.grad_norm).collect() };
    assert!(norms(&plain).iter().all(Option::is_none));
    let expected = |r: &ddim_engine::train::metrics_log::Record| (r.split == Split::Train) == r.grad_norm.is_some();
    assert!(records(&loose).iter().all(expected) && records(&tight).iter().all(expected));
    assert!(train_values(&loose, |r| r.grad_norm.unwrap()).iter().all(|&norm| norm > 1e-3));
    let text = std::fs::read_to_string(loose.join("metrics.jsonl")).unwrap();
    assert_eq!(text.matches("\"grad_norm\":").count(), 1, "{text}");
}

/// Gradients, losses and weights of one step.
fn one_step(config: &Config) -> (Vec<f64>, Vec<f32>, Vec<f32>) {
    let cpu = Cpu::new(2).unwrap();
    let mut state = TrainState::new(&cpu, config).unwrap();
    let mut stepper = Stepper::new(&cpu, config.channels, config.seed).unwrap();
    let shape = Shape::new(config.batch_size, config.image_size, config.image_size, config.channels);
    let mut words = Stream::new(3, Purpose::Picture, 0, 0).reader();
    let pixels: Vec<u8> = (0..shape.len()).map(|_| words.word() as u8).collect();
    let mut normalizer = Normalizer::new(config.channels, 1);
    normalizer.gather(&pixels);
    let losses = stepper.step(&cpu, &mut state, &normalizer, shape, &pixels).unwrap().wait().unwrap();
    let read = |buffer: &<Cpu as Memory>::Buffer| {
        let mut values = Vec::new();
        visit_flat(&cpu, state.net.layout(), [Some(buffer), None], |_, v| {
            values.extend_from_slice(v);
            Ok(())
        })
        .unwrap();
        values
    };
    let grads = read(&state.grads).into_iter().map(f64::from).collect();
    (grads, losses, read(&state.weights.params))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// A batch in parts is the batch: the same times and noise, gradients and losses within rounding, where no norm runs over the batch.
#[test]
fn parts_of_a_batch_are_the_batch() {
    let base = [
        UNET,
        &["image_size=8", "batch_size=6", "min_snr_gamma=5", "offset_noise=0.2", "loss=mse", "unet.dropout=0.1"],
    ]
    .concat();
    let (grads, losses, weights) = one_step(&config(&base));
    for parts in [2, 3, 6] {
        let set = format!("accumulate={parts}");
        let (got, got_losses, got_weights) = one_step(&config(&[&base[..], &[&set]].concat()));
        let off = norm(got.iter().zip(&grads).map(|(a, b)| a - b)) / norm(grads.iter().copied());
        // Measured: at most 4e-7.
        assert!(off < 3e-6, "{parts} parts: gradients are off by {off:e}");
        for (a, b) in got_losses.iter().zip(&losses) {
            assert!((a - b).abs() <= 2e-6 * b.abs(), "{parts} parts: {got_losses:?} {losses:?}");
        }
        assert_eq!(got_weights.len(), weights.len());
    }
}

#[test]
fn losses_with_weights_and_offsets_differ_as_they_should() {
    let base = [UNET, &["image_size=8", "batch_size=6"]].concat();
    let with = |more: &[&str]| one_step(&config(&[&base[..], more].concat())).1;
    let plain = with(&[]);
    // A bound that no ratio reaches leaves predicted noise with the weight 1.
    let loose = with(&["min_snr_gamma=1e6"]);
    assert!((loose[0] - plain[0]).abs() <= 1e-6 * plain[0], "{loose:?} {plain:?}");
    let bounded = with(&["min_snr_gamma=0.5"]);
    assert!(bounded[0] < 0.9 * plain[0], "{bounded:?} {plain:?}");
    assert_eq!(bounded[1..], plain[1..], "the metrics have no weights");
    assert_ne!(with(&["offset_noise=0.5"])[1], plain[1]);
}

#[test]
fn every_schedule_and_objective_trains() {
    let place = Place::with_pictures();
    let mut runs = 0;
    for (schedule, predict, more) in [
        ("linear", "noise", &["loss=huber"][..]),
        ("cosine", "velocity", &["loss=mse"]),
        ("scaled_linear", "velocity", &["zero_snr=true", "min_snr_gamma=5", "loss=mse"]),
        ("squaredcos_cap_v2", "image", &["min_snr_gamma=5", "train_timesteps=50"]),
        ("sigmoid", "noise", &["min_snr_gamma=5", "beta_end=0.01"]),
        ("edm", "velocity", &["loss=mse"]),
    ] {
        let (schedule, predict) = (format!("schedule={schedule}"), format!("predict={predict}"));
        let all = [UNET, more, &[&schedule, &predict, "lr=0.003", "sample_count=0"]].concat();
        runs += 1;
        let run = place.train(&format!("run{runs}"), &[&sets(&all)[..], &["--epochs", "10", "--quiet"]].concat());
        let losses = train_values(&run, |r| r.loss);
        assert!(losses.iter().all(|l| l.is_finite()), "{schedule} {predict}: {losses:?}");
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < first, "{schedule} {predict}: {losses:?}");
    }
}

#[test]
fn a_constant_average_is_another_than_one_that_warms_up() {
    let place = Place::with_pictures();
    let args = |warmup: &'static str| [&sets(&["ema_decay=0.99", warmup])[..], &["--epochs", "1", "--quiet"]].concat();
    let warm = place.train("warm", &args("ema_warmup=true"));
    let constant = place.train("constant", &args("ema_warmup=false"));
    let part = |run: &Path, average: bool| {
        let all = values(run, 4).into_iter();
        all.filter(|(name, _)| name.starts_with("ema.") == average).collect::<Vec<_>>()
    };
    assert!(part(&warm, false) == part(&constant, false), "the weights themselves are the same");
    assert!(part(&warm, true) != part(&constant, true));
}

#[test]
fn what_does_not_fit_is_refused_with_both_names() {
    let place = Place::with_pictures();
    for (values, needles) in [
        (&["lr_min=0.0001"][..], &["lr_min 1e-4", "lr_schedule constant"][..]),
        (&["lr_schedule=cosine", "lr_min=0.5"], &["lr_min 0.5", "lr 0.002"]),
        (&["accumulate=3"], &["batch_size 8", "accumulate 3", "such as 9"]),
        (&["accumulate=8", "image_size=4"], &["batch_size 8", "accumulate", "image_size 4"]),
        (&["schedule=squaredcos_cap_v2"], &["schedule squaredcos_cap_v2", "family seed"]),
        (&["schedule=edm"], &["schedule edm", "family seed"]),
        (&["min_snr_gamma=5"], &["min_snr_gamma 5", "family seed"]),
        (&["zero_snr=true"], &["zero_snr true", "family seed"]),
        (&["train_timesteps=100"], &["train_timesteps 100", "family seed"]),
        (&["labels=labels.csv"], &["labels \"labels.csv\"", "family seed"]),
        (&["unet.norm_num_groups=4"], &["family seed", "unet."]),
        (&["family=unet2d", "zero_snr=true", "schedule=linear"], &["predict noise", "zero_snr true"]),
        (&["family=unet2d", "zero_snr=true", "schedule=edm", "predict=velocity"], &["zero_snr true", "schedule edm"]),
        (
            &["family=unet2d", "zero_snr=true", "schedule=cosine", "predict=velocity"],
            &["zero_snr true", "schedule cosine"],
        ),
        (&["family=unet2d", "beta_start=0.5"], &["beta_start 0.5", "beta_end 0.02"]),
        (&["family=unet2d", "label_dropout=0.1"], &["label_dropout 0.1", "labels none"]),
        (&["family=unet2d", "labels=labels.csv"], &["labels labels.csv", "unet.num_class_embeds"]),
        (&["family=unet2d", "unet.num_class_embeds=4"], &["unet.num_class_embeds 4", "labels none"]),
        (
            &["family=unet2d", "unet.time_embedding_type=fourier"],
            &["unet.time_embedding_type fourier", "schedule cosine"],
        ),
    ] {
        let said = place.refused(&tiny("refused", &sets(values)), needles);
        assert!(!place.path("refused").exists(), "{values:?}: {}", said.err);
    }
}
