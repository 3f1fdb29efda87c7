//! Whole networks on devices with kernels: reference files, training steps beside the CPU's, recorded steps beside eager ones. On the
//! simulator always (where it was built), on a GPU where there is one.

mod ops_support;

use std::path::PathBuf;

use ddim_engine::check::{Tolerances, check};
use ddim_engine::config::unet::{DownBlock, TimeScaleShift, UpBlock};
use ddim_engine::config::{Config, UnetConfig};
use ddim_engine::device::cpu::Cpu;
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::{Memory, ReadBack};
use ddim_engine::diffusion::normalizer::Normalizer;
use ddim_engine::diffusion::sampler::Sampler;
use ddim_engine::ops::Backend;
use ddim_engine::ops::noise::{Noise, NoiseKey, step_word};
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::tensor::Shape;
use ddim_engine::train::state::TrainState;
use ddim_engine::train::stepper::Stepper;
use ops_support::devices;

/// Runs `work` on the simulator and on a GPU, or says why not.
macro_rules! on_devices {
    ($arithmetic:expr, $work:expr) => {{
        devices::run_or_skip("sim", devices::no_sim(), || $work(&devices::sim($arithmetic), "sim"));
        devices::run_or_skip("cuda", devices::no_cuda(), || $work(&devices::cuda($arithmetic), "cuda"));
    }};
}

fn fixtures() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    assert!(files.len() >= 8, "the fixtures are part of the repository");
    files
}

fn replay<L: Launcher>(gpu: &Gpu<L>, device: &str) {
    gpu.poison_new_buffers();
    let tolerances = Tolerances::of(gpu.arithmetic());
    for file in fixtures() {
        let report = check(gpu, &file, &tolerances).unwrap();
        let name = format!("{} on {device} in {}", file.file_name().unwrap().to_string_lossy(), gpu.arithmetic());
        for row in &report.rows {
            println!("{name}: {:60} {:.1e} {:.1e} <= {:.0e}", row.name, row.absolute, row.relative, row.tolerance);
        }
        assert!(report.passed(), "{name}: {:#?}", report.rows);
    }
}

#[test]
fn reference_files_in_fp32() {
    on_devices!(Arithmetic::Fp32, replay);
}

#[test]
fn reference_files_in_tf32() {
    on_devices!(Arithmetic::Tf32, replay);
}

#[test]
fn reference_files_in_bf16() {
    on_devices!(Arithmetic::Bf16, replay);
}

/// Small enough for the simulator, with every kind of layer: two levels, two blocks, concatenations, embedding, average of weights.
fn small() -> Config {
    Config {
        image_size: 16,
        widths: vec![16, 24],
        block_depth: 2,
        embedding_dim: 8,
        batch_size: 4,
        ema_decay: 0.9,
        ..Config::quick_preset()
    }
}

/// The same of the family unet2d: group norm with modulation and dropout, attention, both changes of resolution.
fn small_unet() -> Config {
    Config {
        image_size: 16,
        batch_size: 4,
        ema_decay: 0.9,
        lr_warmup: 0,
        unet: Some(UnetConfig {
            block_out_channels: vec![8, 16],
            layers_per_block: 1,
            down_block_types: vec![DownBlock::DownBlock2D, DownBlock::AttnDownBlock2D],
            up_block_types: vec![UpBlock::AttnUpBlock2D, UpBlock::UpBlock2D],
            attention_head_dim: Some(8),
            norm_num_groups: 4,
            resnet_time_scale_shift: TimeScaleShift::ScaleShift,
            dropout: 0.1,
            ..UnetConfig::default()
        }),
        ..Config::unet2d_tiny_preset()
    }
}

fn pixels(config: &Config, step: u64, images: usize) -> Vec<u8> {
    let mut words = Stream::new(11, Purpose::Picture, step, 0).reader();
    let mut from = 0;
    // Blocks of colour, so that there is something to learn.
    (0..images * config.image_size * config.image_size * config.channels)
        .map(|i| {
            from = if i % 97 == 0 { words.word() as u8 } else { from };
            from
        })
        .collect()
}

/// Weights, moving averages and losses after some steps.
struct Outcome {
    weights: Vec<f32>,
    running: Vec<f32>,
    losses: Vec<f32>,
}

fn read<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<f32> {
    let mut host = vec![0.0; B::buffer_len(buffer)];
    backend.download(B::all(buffer), &mut host).unwrap();
    host
}

/// Training steps as the program runs them: the last batch is smaller, as at the end of an epoch.
fn train<B: Backend>(backend: &B, config: &Config, batches: &[usize]) -> Outcome {
    let mut state = TrainState::new(backend, config).unwrap();
    let mut stepper = Stepper::new(backend, config.channels, config.seed).unwrap();
    let mut normalizer = Normalizer::new(config.channels, 2);
    let mut losses = Vec::new();
    for (step, &images) in batches.iter().enumerate() {
        let pixels = pixels(config, step as u64, images);
        normalizer.gather(&pixels);
        let shape = Shape::new(images, config.image_size, config.image_size, config.channels);
        let back = stepper.step(backend, &mut state, &normalizer, shape, &pixels).unwrap();
        losses.extend(back.wait().unwrap());
    }
    let weights = state.sampling_weights(backend).unwrap();
    Outcome { weights: read(backend, &weights.params), running: read(backend, &weights.running), losses }
}

/// The same steps without recording: each one is asked for anew.
fn train_eagerly<L: Launcher>(gpu: &Gpu<L>, config: &Config, batches: &[usize]) -> Outcome {
    let mut state = TrainState::new(gpu, config).unwrap();
    let mut normalizer = Normalizer::new(config.channels, 2);
    let mut losses = Vec::new();
    for (step, &images) in batches.iter().enumerate() {
        let pixels = pixels(config, step as u64, images);
        normalizer.gather(&pixels);
        let shape = Shape::new(images, config.image_size, config.image_size, config.channels);
        // A stepper of its own records nothing that it could replay.
        let mut stepper = Stepper::new(gpu, config.channels, config.seed).unwrap();
        let back = stepper.step(gpu, &mut state, &normalizer, shape, &pixels).unwrap();
        losses.extend(back.wait().unwrap());
    }
    let weights = state.sampling_weights(gpu).unwrap();
    Outcome { weights: read(gpu, &weights.params), running: read(gpu, &weights.running), losses }
}

/// Absolute where what is wanted is 0 throughout, as the running statistics of a network without any are.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let of = |a: f32| f64::from(a);
    let off: f64 = got.iter().zip(want).map(|(&g, &w)| (of(g) - of(w)).powi(2)).sum();
    let norm: f64 = want.iter().map(|&w| of(w).powi(2)).sum();
    (if norm == 0.0 { off } else { off / norm }).sqrt()
}

#[test]
fn three_steps_equal_those_of_the_cpu() {
    three_steps("seed", &small());
    three_steps("unet2d", &small_unet());
}

fn three_steps(family: &str, config: &Config) {
    let batches = [4, 4, 4];
    let want = train(&Cpu::new(2).unwrap(), config, &batches);
    let compare = |got: Outcome, device: &str| {
        let rows = [
            ("losses", relative(&got.losses, &want.losses)),
            ("weights", relative(&got.weights, &want.weights)),
            ("running statistics", relative(&got.running, &want.running)),
        ];
        for (what, error) in rows {
            println!("{what} of {family} after three steps on {device}: {error:.1e}");
            assert!(error <= 1e-4, "{what} of {family} on {device}: {error:e}"); // a NaN fails
        }
    };
    on_devices!(Arithmetic::Fp32, |gpu, device| compare(train(gpu, config, &batches), device));
}

fn recorded_equals_eager<L: Launcher>(gpu: &Gpu<L>, device: &str) {
    for config in [small(), small_unet()] {
        recorded_steps(gpu, &config, &format!("{device}, {:?}", config.family));
    }
}

fn recorded_steps<L: Launcher>(gpu: &Gpu<L>, config: &Config, device: &str) {
    // Recorded, replayed, a smaller batch with a recording of its own, both replayed again.
    let batches = [4, 4, 3, 4, 3];
    let (recorded, eager) = (train(gpu, config, &batches), train_eagerly(gpu, config, &batches));
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    assert_eq!(bits(&recorded.losses), bits(&eager.losses), "losses on {device}");
    assert!(bits(&recorded.weights) == bits(&eager.weights), "weights on {device}");
    assert!(bits(&recorded.running) == bits(&eager.running), "running statistics on {device}");
    assert!(recorded.losses.iter().all(|l| l.is_finite()));
}

#[test]
fn a_recorded_step_is_the_eager_step_in_fp32() {
    on_devices!(Arithmetic::Fp32, recorded_equals_eager);
}

#[test]
fn a_recorded_step_is_the_eager_step_in_bf16() {
    on_devices!(Arithmetic::Bf16, recorded_equals_eager);
}

fn recorded_sampling<L: Launcher>(gpu: &Gpu<L>, device: &str) {
    for config in [small(), small_unet()] {
        recorded_loop(gpu, &config, &format!("{device}, {:?}", config.family));
    }
}

fn recorded_loop<L: Launcher>(gpu: &Gpu<L>, config: &Config, device: &str) {
    let state = TrainState::new(gpu, config).unwrap();
    let mut weights = state.sampling_weights(gpu).unwrap();
    let shape = Shape::new(3, config.image_size, config.image_size, config.channels);
    let mut step = gpu.alloc(1).unwrap();
    gpu.upload(&[step_word(0)], Gpu::<L>::all_mut(&mut step)).unwrap();
    let mut sampler = Sampler::new(gpu, &state.net, &mut weights, &state.diffusion, shape, 4).unwrap();
    let mut draw = |first_image: u64, recorded: bool| -> Vec<f32> {
        let key = NoiseKey { seed: 1, purpose: Purpose::Sample, first_image };
        let per_image = shape.h * shape.w * shape.c;
        gpu.fill_normal(key, Gpu::<L>::all(&step), per_image, sampler.noise()).unwrap();
        let image = if recorded { sampler.run_recorded() } else { sampler.run(|_, _| Ok(())) };
        image.unwrap().to_vec(gpu).unwrap()
    };
    for first_image in [0, 3, 6] {
        let (eager, recorded) = (draw(first_image, false), draw(first_image, true));
        assert!(eager == recorded, "pictures from {first_image} on {device}");
        assert!(eager.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_recorded_sampling_loop_is_the_eager_one() {
    on_devices!(Arithmetic::Fp32, recorded_sampling);
}

/// A loss that is not a number leaves weights, moments and averages as they are, without the host's help.
fn guarded<L: Launcher>(gpu: &Gpu<L>, device: &str) {
    let config = Config { lr: 1e-3, ..small() };
    let mut state = TrainState::new(gpu, &config).unwrap();
    let mut stepper = Stepper::new(gpu, config.channels, config.seed).unwrap();
    let mut normalizer = Normalizer::new(config.channels, 1);
    normalizer.gather(&pixels(&config, 0, 4));
    let shape = Shape::new(4, config.image_size, config.image_size, config.channels);
    // Weights of infinity make the prediction, and so the loss, not a number.
    let mut host = read(gpu, &state.weights.params);
    host[0] = f32::INFINITY;
    gpu.upload(&host, Gpu::<L>::all_mut(&mut state.weights.params)).unwrap();
    state.weights.touch();
    let losses = stepper.step(gpu, &mut state, &normalizer, shape, &pixels(&config, 0, 4)).unwrap().wait().unwrap();
    assert!(!losses[0].is_finite(), "{losses:?}");
    let after = read(gpu, &state.weights.params);
    assert!(after.iter().zip(&host).all(|(a, b)| a.to_bits() == b.to_bits()), "weights moved on {device}");
}

#[test]
fn a_loss_that_is_no_number_changes_no_weight() {
    on_devices!(Arithmetic::Fp32, guarded);
}
