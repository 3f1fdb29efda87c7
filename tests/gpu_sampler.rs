//! Sampling loops of every method on devices with kernels: recorded ones are eager ones to the bit, also where the next batch has other
//! noise, other classes and other known pictures; and they are the CPU's within the rounding of the arithmetic.

mod ops_support;

use ddim_engine::config::{Config, Layers};
use ddim_engine::device::cpu::Cpu;
use ddim_engine::device::gpu::Arithmetic;
use ddim_engine::diffusion::sampler::{Sampler, Way};
use ddim_engine::diffusion::samplers::{Method, Spacing, Wishes};
use ddim_engine::ops::Backend;
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::tensor::Shape;
use ddim_engine::train::state::TrainState;
use ops_support::{assert_scaled, devices, norm, to_f64};

/// Relative 2-norm between devices behind three steps. Measured: at most 4.2e-7.
const TOLERANCE: f64 = 3e-6;

const SEED: &[&str] = &["widths=4,6", "embedding_dim=4", "block_depth=1"];
const UNET: &[&str] = &[
    "family=unet2d",
    "unet.block_out_channels=8,16",
    "unet.down_block_types=DownBlock2D,AttnDownBlock2D",
    "unet.up_block_types=AttnUpBlock2D,UpBlock2D",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=8",
    "unet.num_class_embeds=3",
    "predict=velocity",
];

fn config(sets: &[&str]) -> Config {
    let sets = sets.iter().chain(&["image_size=8", "ema_decay=0"]).map(|s| s.to_string()).collect();
    Config::resolve(&Layers { sets, ..Layers::default() }).unwrap()
}

fn wishes() -> [Wishes; 4] {
    let plain = Wishes::default();
    [
        Wishes {
            method: Some(Method::Ddim),
            eta: Some(0.5),
            spacing: Some(Spacing::Leading),
            clip: Some(1.5),
            ..plain
        },
        Wishes { method: Some(Method::Ddpm), spacing: Some(Spacing::Trailing), ..plain },
        Wishes { method: Some(Method::DpmPlusPlus2M), dynamic_threshold: Some(0.9), ..plain },
        Wishes { method: Some(Method::Heun), ..plain },
    ]
}

fn normal(first: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Stream::new(7, Purpose::Sample, 0, first).fill_normal(&mut values);
    values
}

/// Pictures of two batches, each drawn as it comes and again by the recording.
fn draw<B: Backend>(backend: &B, config: &Config, wishes: &Wishes, known: bool) -> Vec<f32> {
    let mut state = TrainState::<B>::new(backend, config).unwrap();
    let diffusion = state.diffusion.clone();
    // The last convolution of a fresh network is zero, or nearly so; its neighbours' scale makes the prediction one.
    let len = B::buffer_len(&state.weights.params);
    let weights: Vec<f32> = normal(99, len).iter().map(|w| 0.2 * w).collect();
    backend.upload(&weights, B::all_mut(&mut state.weights.params)).unwrap();
    state.weights.touch();
    let shape = Shape::new(2, 8, 8, config.channels);
    let way = Way::new(&diffusion, wishes, 4).unwrap();
    let mut sampler =
        Sampler::with_way(backend, &state.net, &mut state.weights, &diffusion, shape, way.clone()).unwrap();
    sampler.set_seed(5);
    let mask: Vec<f32> = (0..shape.len()).map(|i| f32::from(i % 3 == 0)).collect();
    let mut all = Vec::new();
    for batch in [0usize, 1] {
        sampler.set_first_image(2 * batch).unwrap();
        if sampler.classes().is_some() {
            sampler.set_classes(&[batch, 2 - batch], Some((2, 2.5))).unwrap();
        }
        if known {
            sampler.set_known(&normal(20 + batch as u64, shape.len()), batch == 2, Some(&mask)).unwrap();
        }
        let results = [false, true].map(|recorded| {
            backend.upload(&normal(batch as u64, shape.len()), sampler.noise()).unwrap();
            let image = if recorded { sampler.run_recorded() } else { sampler.run(|_, _| Ok(())) };
            image.unwrap().to_vec(backend).unwrap()
        });
        assert!(results[0] == results[1], "{wishes:?}, batch {batch}: the recording draws other pictures");
        assert!(results[0].iter().all(|v| v.is_finite()), "{wishes:?}, batch {batch}");
        all.extend(&results[0]);
    }
    assert!(all[..shape.len()] != all[shape.len()..]);
    all
}

fn beside_the_cpu<B: Backend>(backend: &B, device: &str) {
    let cpu = Cpu::new(1).unwrap();
    for sets in [SEED, UNET] {
        let config = config(sets);
        for (wishes, known) in wishes().into_iter().zip([true, false, true, true]) {
            let want = to_f64(&draw(&cpu, &config, &wishes, known));
            let got = to_f64(&draw(backend, &config, &wishes, known));
            assert_scaled(&format!("{:?} {wishes:?} on {device}", config.family), &got, &want, norm(&want), TOLERANCE);
        }
    }
}

#[test]
fn recorded_loops_draw_what_eager_ones_and_the_cpu_draw() {
    devices::run_or_skip("sim", devices::no_sim(), || beside_the_cpu(&devices::sim(Arithmetic::Fp32), "sim"));
    devices::run_or_skip("cuda", devices::no_cuda(), || beside_the_cpu(&devices::cuda(Arithmetic::Fp32), "cuda"));
}
