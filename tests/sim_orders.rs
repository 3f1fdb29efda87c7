//! The order in which the simulator runs threads and blocks must not show in any result: training steps in three orders, bit for bit.
//! A program of its own, because the order is an option of the whole process.

use std::io::Write;

use ddim_engine::config::unet::{DownBlock, TimeScaleShift, UpBlock};
use ddim_engine::config::{Config, UnetConfig};
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::sim::Sim;
use ddim_engine::device::{Memory, ReadBack};
use ddim_engine::diffusion::normalizer::Normalizer;
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::tensor::Shape;
use ddim_engine::train::state::TrainState;
use ddim_engine::train::stepper::Stepper;

/// Small networks of both families.
fn networks() -> [Config; 2] {
    let seed = Config {
        image_size: 16,
        widths: vec![16, 24],
        block_depth: 1,
        embedding_dim: 8,
        batch_size: 3,
        ..Config::quick_preset()
    };
    let unet = Config {
        image_size: 16,
        batch_size: 3,
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
    };
    [seed, unet]
}

/// Losses and weights after two steps, one recorded and one replayed.
fn two_steps(order: &str, arithmetic: Arithmetic, config: &Config) -> Vec<u32> {
    let sim = Sim::new().unwrap();
    sim.library().set_option("order", order).unwrap();
    let gpu = Gpu::new(sim, arithmetic);
    gpu.poison_new_buffers();
    let mut state = TrainState::new(&gpu, config).unwrap();
    let mut stepper = Stepper::new(&gpu, config.channels, config.seed).unwrap();
    let shape = Shape::new(config.batch_size, config.image_size, config.image_size, config.channels);
    let mut words = Stream::new(5, Purpose::Picture, 0, 0).reader();
    let pixels: Vec<u8> = (0..shape.len()).map(|_| words.word() as u8).collect();
    let mut normalizer = Normalizer::new(config.channels, 1);
    normalizer.gather(&pixels);
    let mut results = Vec::new();
    for _ in 0..2 {
        results.extend(stepper.step(&gpu, &mut state, &normalizer, shape, &pixels).unwrap().wait().unwrap());
    }
    let mut weights = vec![0.0; Gpu::<Sim>::buffer_len(&state.weights.params)];
    gpu.download(Gpu::<Sim>::all(&state.weights.params), &mut weights).unwrap();
    results.extend(weights);
    results.into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_order_of_threads_does_not_show() {
    if let Err(why) = Sim::new() {
        std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).unwrap();
        return;
    }
    for (arithmetic, config) in [Arithmetic::Fp32, Arithmetic::Tf32, Arithmetic::Bf16]
        .into_iter()
        .flat_map(|a| networks().map(|config| (a, config)))
    {
        let want = two_steps("fwd", arithmetic, &config);
        for order in ["rev", "rand:1", "rand:2"] {
            let differ = want.iter().zip(two_steps(order, arithmetic, &config)).filter(|(a, b)| **a != *b).count();
            assert_eq!(differ, 0, "order {order} in {arithmetic}, {:?}: {differ} numbers differ", config.family);
        }
    }
}
