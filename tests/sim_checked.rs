//! All kernels under the simulator's checker: no race, no access out of bounds, no read of what was never written, in whole training
//! steps, evaluations and sampling loops of small networks with every kind of shape. Every buffer is a block of its own, so that one
//! element too far is seen.

use std::collections::BTreeSet;
use std::io::Write;

use ddim_engine::config::{Config, Predict};
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::sim::Sim;
use ddim_engine::device::{Memory, ReadBack};
use ddim_engine::diffusion::normalizer::Normalizer;
use ddim_engine::diffusion::sampler::Sampler;
use ddim_engine::kernels;
use ddim_engine::model::Mode;
use ddim_engine::ops::attention::{Attention, AttentionDims};
use ddim_engine::ops::bilinear::{Bilinear, BilinearDims};
use ddim_engine::ops::conv::{Conv, ConvDims, Operand, Prologue, WeightGradients};
use ddim_engine::ops::conv2d::{Conv2d, Conv2dDims};
use ddim_engine::ops::embed::{Embed, TimestepDims};
use ddim_engine::ops::group_norm::{
    Dropout, GroupNorm, GroupNormDims, NormGradients, NormInput, NormParams, OtherGradients,
};
use ddim_engine::ops::levels::{Levels, LevelsOutput};
use ddim_engine::ops::linear::{Linear, LinearDims, LinearGradients};
use ddim_engine::ops::noise::{Noise, NoiseKey, step_word};
use ddim_engine::ops::pool::{AvgPool2, ResampleDims};
use ddim_engine::ops::resize::Resize;
use ddim_engine::ops::sampler_step::{Coefficients, SamplerStep, StepDims, StepNoise, StepState, Threshold};
use ddim_engine::ops::window_pool::{Pooling, WindowPool, WindowPoolDims};
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::tensor::{Shape, Tensor};
use ddim_engine::train::state::{Batch, TrainState};
use ddim_engine::train::stepper::Stepper;

/// Past the capture of the test harness: a skip must be seen.
fn say_skipped(why: impl std::fmt::Display) {
    std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).ok();
}

/// The checker, or `None` where this build does not have it.
fn checker(arithmetic: Arithmetic) -> Option<Gpu<Sim>> {
    match Sim::checked() {
        Ok(sim) => {
            let gpu = Gpu::new(sim, arithmetic);
            gpu.separate_buffers();
            Some(gpu)
        }
        Err(why) => {
            say_skipped(why);
            None
        }
    }
}

/// Networks whose layers meet every way of loading: channels that are whole vectors and such that are not, pictures larger than a tile
/// and smaller, grey and RGBA.
fn networks() -> Vec<Config> {
    let base = Config { batch_size: 2, ema_decay: 0.9, block_depth: 1, ..Config::quick_preset() };
    vec![
        Config { image_size: 16, widths: vec![32, 64], embedding_dim: 16, grad_clip: 1.0, ..base.clone() },
        Config {
            image_size: 12,
            widths: vec![5, 9],
            embedding_dim: 6,
            channels: 1,
            batch_size: 3,
            accumulate: 3,
            offset_noise: 0.1,
            ..base.clone()
        },
        Config { image_size: 8, widths: vec![24], embedding_dim: 8, channels: 4, predict: Predict::Image, ..base },
    ]
}

fn pixels(shape: Shape) -> Vec<u8> {
    let mut words = Stream::new(3, Purpose::Picture, 0, 0).reader();
    (0..shape.len()).map(|_| words.word() as u8).collect()
}

/// A training step, an evaluation, predictions and a sampling loop.
fn everything(gpu: &Gpu<Sim>, config: &Config) {
    let mut state = TrainState::new(gpu, config).unwrap();
    let mut stepper = Stepper::new(gpu, config.channels, config.seed).unwrap();
    let shape = Shape::new(config.batch_size, config.image_size, config.image_size, config.channels);
    let pixels = pixels(shape);
    let mut normalizer = Normalizer::new(config.channels, 1);
    normalizer.gather(&pixels);
    let losses = stepper.step(gpu, &mut state, &normalizer, shape, &pixels).unwrap().wait().unwrap();
    assert!(losses.iter().all(|l| l.is_finite()), "{losses:?}");

    let mut step = gpu.alloc(1).unwrap();
    gpu.upload(&[step_word(0)], Gpu::<Sim>::all_mut(&mut step)).unwrap();
    let step = Gpu::<Sim>::all(&step);
    let key = NoiseKey { seed: 1, purpose: Purpose::Sample, first_image: 0 };
    let per_image = shape.h * shape.w * shape.c;
    let normal = || {
        let mut tensor = Tensor::new(gpu, shape).unwrap();
        gpu.fill_normal(key, step, per_image, tensor.view_mut()).unwrap();
        tensor
    };
    let (images, noise) = (normal(), normal());
    let mut times = gpu.alloc(shape.n).unwrap();
    gpu.fill_uniform(key, step, Gpu::<Sim>::all_mut(&mut times)).unwrap();
    let batch = Batch { images: &images, noise: &noise, times: &times, labels: None, dropout: None };
    assert!(state.evaluate(gpu, &batch).unwrap().loss.is_finite());
    state.predict(gpu, Mode::Eval, &batch).unwrap();

    let mut weights = state.sampling_weights(gpu).unwrap();
    let mut sampler = Sampler::new(gpu, &state.net, &mut weights, &state.diffusion, shape, 2).unwrap();
    gpu.fill_normal(key, step, per_image, sampler.noise()).unwrap();
    let mean_std = {
        let mut buffer = gpu.alloc(2 * shape.c).unwrap();
        gpu.upload(&normalizer.mean_std(), Gpu::<Sim>::all_mut(&mut buffer)).unwrap();
        buffer
    };
    let drawn = sampler.run(|_, _| Ok(())).unwrap().to_vec(gpu).unwrap();
    let mut picture = Tensor::from_slice(gpu, shape, &drawn).unwrap();
    use ddim_engine::ops::images::Images;
    gpu.denormalize(Gpu::<Sim>::all(&mean_std), picture.view_mut()).unwrap();
    assert!(picture.to_vec(gpu).unwrap().iter().all(|v| (0.0..=1.0).contains(v)));
}

/// Weight gradients with so many channels and pixels that they are worth the larger blocks of channels, and pooling of several tiles: more
/// than a network for the checker can have.
fn large_layers(gpu: &Gpu<Sim>) {
    let filled = |len: usize| {
        let mut buffer = gpu.alloc_activation(len).unwrap();
        gpu.fill(Gpu::<Sim>::all_mut(&mut buffer), 0.5).unwrap();
        buffer
    };
    let n = if gpu.arithmetic() == Arithmetic::Bf16 { 12 } else { 6 };
    let layers = [
        (3, [n, 8], [192, 768]),
        (3, [n, 8], [768, 96]),
        (3, [1, 4], [192, 768]),
        (1, [1, 4], [768, 768]),
        (1, [n, 4], [192, 768]),
        (1, [6, 16], [32, 768]),
    ];
    for (side, [n, extent], [c, k]) in layers {
        let dims = ConvDims { n, h: extent, w: extent, c0: c, c1: 0, r0: 0, r1: 0, k, side };
        let (x, dy) = (filled(dims.pixels() * c as usize), filled(dims.pixels() * k as usize));
        let mut dw = gpu.alloc(dims.taps() * (c * k) as usize).unwrap();
        gpu.fill(Gpu::<Sim>::all_mut(&mut dw), 0.0).unwrap();
        let dw = Gpu::<Sim>::all_mut(&mut dw);
        let out = WeightGradients { dw, dw_res: None, db: None, db_res: None, border_sums: None };
        let input = Operand::one(Gpu::<Sim>::all(&x));
        gpu.conv_wgrad(&dims, input, Prologue::none(), None, Gpu::<Sim>::all(&dy), out).unwrap();
    }
    let dims = ResampleDims { n: 1, h: 16, w: 16, c: 37 };
    let (x, mut y, mut stats) = (filled(dims.large()), filled(dims.small()), gpu.alloc(74).unwrap());
    let stats = Gpu::<Sim>::all_mut(&mut stats);
    gpu.avg_pool_forward(&dims, Gpu::<Sim>::all(&x), Gpu::<Sim>::all_mut(&mut y), Some(stats)).unwrap();
}

/// The operations of a network with group norm and attention, each once, with everything that can be fused; channels that are whole vectors.
fn unet_layers(gpu: &Gpu<Sim>) {
    let all = Gpu::<Sim>::all;
    let all_mut = Gpu::<Sim>::all_mut;
    let filled = |len: usize, activation: bool| {
        let buffer = if activation { gpu.alloc_activation(len) } else { gpu.alloc(len) };
        let mut buffer = buffer.unwrap();
        gpu.fill(all_mut(&mut buffer), 0.5).unwrap();
        buffer
    };
    let [activation, plain] = [true, false].map(|activation| move |len: usize| filled(len, activation));
    let mut step = plain(1);
    gpu.upload(&[step_word(0)], all_mut(&mut step)).unwrap();

    let d = GroupNormDims { eps: 1e-5, n: 2, pixels: 70, c0: 8, c1: 16, groups: 3, silu: 1 };
    let (gamma, beta, modulation) = (plain(24), plain(24), plain(96));
    let params = NormParams { gamma: all(&gamma), beta: all(&beta), modulation: Some(all(&modulation)) };
    let (stats0, stats1, mut coefficients) = (plain(32), plain(64), plain(d.coefficients_len()));
    gpu.group_norm_coefficients(&d, all(&stats0), Some(all(&stats1)), params, all_mut(&mut coefficients)).unwrap();
    let (x0, x1, g) = (activation(d.len0()), activation(d.len1()), activation(d.len0() + d.len1()));
    let input = NormInput { x0: all(&x0), x1: Some(all(&x1)), coefficients: all(&coefficients) };
    let key = NoiseKey { seed: 1, purpose: Purpose::Dropout, first_image: 0 };
    let dropout = Some(Dropout { p: 0.25, key, layer: 2, step: all(&step) });
    let mut y = activation(d.len0() + d.len1());
    gpu.group_norm_apply(&d, input, dropout, all_mut(&mut y)).unwrap();
    let (mut dx0, mut dx1) = (activation(d.len0()), activation(d.len1()));
    let (mut dgamma, mut dbeta, mut dmodulation, mut sums) = (plain(24), plain(24), plain(96), plain(48));
    let other = OtherGradients { to0: [Some(all(&x0)), Some(all(&x0))], to1: Some(all(&x1)) };
    let out = NormGradients {
        dx0: all_mut(&mut dx0),
        dx1: Some(all_mut(&mut dx1)),
        dgamma: all_mut(&mut dgamma),
        dbeta: all_mut(&mut dbeta),
        dmodulation: Some(all_mut(&mut dmodulation)),
        sums: Some(all_mut(&mut sums)),
    };
    gpu.group_norm_backward(&d, input, params, dropout, all(&g), other, out).unwrap();

    let d = AttentionDims { n: 1, tokens: 66, heads: 2, head_dim: 8 };
    let (qkv, dy, mut y) = (activation(3 * d.len()), activation(d.len()), activation(d.len()));
    let (mut lse, mut dqkv) = (plain(d.lse_len()), activation(3 * d.len()));
    gpu.attention(&d, all(&qkv), all_mut(&mut y), all_mut(&mut lse)).unwrap();
    gpu.attention_backward(&d, all(&qkv), all(&y), all(&lse), all(&dy), all_mut(&mut dqkv)).unwrap();

    let d = ResampleDims { n: 1, h: 16, w: 18, c: 24 };
    let (mut small, mut large, mut stats) = (activation(d.small()), activation(d.large()), plain(48));
    gpu.double_forward(&d, all(&small), all_mut(&mut large), Some(all_mut(&mut stats))).unwrap();
    gpu.double_backward(&d, all(&large), None, all_mut(&mut small)).unwrap();
    gpu.keep_forward(&d, 1, all(&large), all_mut(&mut small), Some(all_mut(&mut stats))).unwrap();
    gpu.keep_backward(&d, 1, all(&small), all_mut(&mut large)).unwrap();

    let d = TimestepDims { n: 3, c: 34, flip: 1, freq_shift: 0 };
    let (times, labels, frequencies, mut emb) = (plain(3), plain(3), plain(17), plain(102));
    gpu.embed_timesteps(&d, all(&times), None, all_mut(&mut emb)).unwrap();
    gpu.embed_timesteps(&d, all(&times), Some(all(&frequencies)), all_mut(&mut emb)).unwrap();
    let mut table = plain(34 * 4);
    gpu.embed_classes(all(&labels), all(&table), all_mut(&mut emb)).unwrap();
    gpu.embed_classes_backward(all(&labels), all(&emb), all_mut(&mut table)).unwrap();
    gpu.divide_by_timesteps(all(&times), all_mut(&mut emb)).unwrap();

    let d = LinearDims { n: 3, c: 34, k: 40, silu: 1 };
    let (w, b, mut y, mut dx) = (plain(34 * 40), plain(40), plain(120), plain(102));
    gpu.linear(&d, all(&emb), all(&w), all(&b), all_mut(&mut y)).unwrap();
    let (mut dw, mut db) = (plain(34 * 40), plain(40));
    let (dx, dw, db) = (Some(all_mut(&mut dx)), all_mut(&mut dw), all_mut(&mut db));
    gpu.linear_backward(&d, all(&emb), all(&w), all(&y), LinearGradients { dx, accumulate: true, dw, db }).unwrap();
}

/// Levels of a schedule, offset noise, and what samplers do between calls of a network.
fn updates(gpu: &Gpu<Sim>) {
    let all = Gpu::<Sim>::all;
    let all_mut = Gpu::<Sim>::all_mut;
    let filled = |len: usize| {
        let mut buffer = gpu.alloc(len).unwrap();
        gpu.fill(all_mut(&mut buffer), 0.5).unwrap();
        buffer
    };
    let (n, per_image) = (2, 75);
    let (table, times, mut rates, mut timesteps, mut weights) =
        (filled(40), filled(n), filled(2 * n), filled(n), filled(n));
    let out =
        LevelsOutput { rates: all_mut(&mut rates), timesteps: all_mut(&mut timesteps), weights: all_mut(&mut weights) };
    gpu.gather_levels(all(&table), all(&times), out).unwrap();
    let mut first = filled(1);
    gpu.upload(&[step_word(0)], all_mut(&mut first)).unwrap();
    let mut noise = filled(n * per_image);
    let key = NoiseKey { seed: 1, purpose: Purpose::Sample, first_image: 0 };
    gpu.offset_noise(key, all(&first), 0.1, [per_image / 3, 3], all_mut(&mut noise)).unwrap();

    let (pred, mut x, mut x0, mut kept) =
        (filled(n * per_image), filled(n * per_image), filled(n * per_image), filled(n * per_image));
    let dims = StepDims { n: n as u32, per_image: per_image as u32 };
    let c = Coefficients { cx: 1.0, cp: 0.5, a: 0.5, b: 0.5, c: 0.5, d: 0.5, e: 0.5, f: 0.5, keep: true };
    let threshold = Threshold::Dynamic { quantile: 0.9, most: 2.0 };
    let of = StepNoise { seed: 1, call: 3, first_image: all(&first) };
    let state = StepState { x: all_mut(&mut x), x0: all_mut(&mut x0), kept: Some(all_mut(&mut kept)) };
    gpu.sampler_step(&dims, &c, threshold, all(&pred), Some(of), state).unwrap();
    gpu.combine(0.5, all(&x0), 0.5, Some(all(&pred)), all_mut(&mut x)).unwrap();
    gpu.blend([0.5, 0.5], all(&pred), all(&x0), all(&noise), all_mut(&mut x)).unwrap();
}

/// What Inception-v3 is made of: channels that are whole vectors and such that are not, tiles that are full and such that are not, and outputs
/// that are some of the channels of a tensor.
fn inception_layers(gpu: &Gpu<Sim>) {
    let all = Gpu::<Sim>::all;
    let all_mut = Gpu::<Sim>::all_mut;
    let filled = |len: usize| {
        let mut buffer = gpu.alloc(len).unwrap();
        gpu.fill(all_mut(&mut buffer), 0.5).unwrap();
        buffer
    };
    let d = BilinearDims { n: 2, h: 5, w: 6, c: 3, out_h: 11, out_w: 9 };
    let (small, mut x) = (filled(d.x_len()), gpu.alloc(d.y_len()).unwrap());
    gpu.bilinear(&d, all(&small), all_mut(&mut x)).unwrap();
    let first = Conv2dDims {
        n: 2,
        h: 11,
        w: 9,
        c: 3,
        k: 66,
        kernel_h: 3,
        kernel_w: 3,
        stride: 2,
        pad_h: 0,
        pad_w: 0,
        y_channels: 72,
        y_first: 2,
        relu: 1,
    };
    let row =
        Conv2dDims { h: 5, w: 4, c: 72, k: 6, kernel_h: 1, stride: 1, pad_w: 1, y_channels: 6, y_first: 0, ..first };
    let mut y = filled(first.y_len());
    for (d, x, y) in [(first, &x, &mut y), (row, &filled(row.x_len()), &mut filled(row.y_len()))] {
        let filter = gpu.conv2d_filter(&d, &vec![0.25; d.w_len()]).unwrap();
        gpu.conv2d(&d, all(x), all(&filter), all(&filled(d.k as usize)), all_mut(y)).unwrap();
    }
    let d = WindowPoolDims { n: 2, h: 5, w: 4, c: 72, kernel: 3, stride: 1, pad: 1, y_channels: 75, y_first: 3 };
    let mut pooled = filled(d.y_len());
    for pooling in [Pooling::Max, Pooling::MeanInside, Pooling::MeanAll] {
        gpu.window_pool(&d, pooling, all(&y), all_mut(&mut pooled)).unwrap();
    }
}

fn all_networks(arithmetic: Arithmetic) -> Option<BTreeSet<&'static str>> {
    let gpu = checker(arithmetic)?;
    for config in networks() {
        everything(&gpu, &config);
    }
    large_layers(&gpu);
    unet_layers(&gpu);
    inception_layers(&gpu);
    updates(&gpu);
    Some(gpu.launcher().used())
}

/// One test, so that what the three runs have used can be put together: no kernel goes unchecked.
#[test]
fn every_kernel_is_clean_under_the_checker() {
    let mut used = BTreeSet::new();
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Tf32, Arithmetic::Bf16] {
        let Some(more) = all_networks(arithmetic) else { return };
        used.extend(more);
    }
    let missed: Vec<&str> = kernels::ALL.iter().map(|k| k.name).filter(|name| !used.contains(name)).collect();
    println!("{} of {} kernels ran under the checker", used.len(), kernels::ALL.len());
    assert!(missed.is_empty(), "these kernels ran in no checked launch: {missed:?}");
}
