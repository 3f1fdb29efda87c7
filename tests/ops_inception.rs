//! The operations that networks need which are read and not trained (convolution with any window, pooling over windows, bilinear interpolation)
//! on every backend against the float64 references.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::device::gpu::Arithmetic;
use ddim_engine::ops::bilinear::{Bilinear, BilinearDims, reference as bilinear_truth};
use ddim_engine::ops::conv2d::{Conv2d, Conv2dDims, reference as conv_truth};
use ddim_engine::ops::window_pool::{Pooling, WindowPool, WindowPoolDims, reference as pool_truth};
use ops_support::{CHANNELS, Cpus, Fill, Guarded, Input, assert_close, assert_shape_error, to_f64};

/// Relative 2-norm: float32 sums of up to 1200 products. Measured: at most 5.5e-7 on CPUs and 9.9e-7 on the simulator.
const TOLERANCE: f64 = 2e-6;
/// With factors rounded to tf32. Measured: at most 3.6e-4.
const TF32_TOLERANCE: f64 = 1e-3;
/// What channels hold that belong to other branches.
const OTHER: f32 = 7.0;

/// Channels `first..first + k` of tensors with more, and that the others are as they were.
fn own_channels(name: &str, y: &[f32], channels: u32, first: u32, k: u32) -> Vec<f32> {
    let (channels, own) = (channels as usize, first as usize..(first + k) as usize);
    for pixel in y.chunks_exact(channels) {
        let others = pixel[..own.start].iter().chain(&pixel[own.end..]);
        assert!(others.into_iter().all(|&v| v == OTHER), "{name}: channels of other branches were written");
    }
    y.chunks_exact(channels).flat_map(|pixel| pixel[own.clone()].to_vec()).collect()
}

fn conv<B: Conv2d>(backend: &B, name: &str, d: &Conv2dDims, [x, w, b]: [&[f32]; 3]) -> Vec<f32> {
    let filter = backend.conv2d_filter(d, w).unwrap();
    let (x, b) = (Input::new(backend, x), Input::new(backend, b));
    let mut y = Guarded::from(backend, &vec![OTHER; d.y_len()]);
    backend.conv2d(d, x.view(), B::all(&filter), b.view(), y.view_mut()).unwrap();
    own_channels(name, &y.read(backend), d.y_channels, d.y_first, d.k)
}

/// (rows, columns, channels, output channels, window, stride, padding).
type Shape = (u32, u32, u32, u32, [u32; 2], u32, [u32; 2]);

fn conv_cases() -> Vec<Conv2dDims> {
    // Every kind of layer of Inception-v3, on small pictures, and edges: windows as large as the picture, one pixel, wide strides.
    let shapes: [Shape; 17] = [
        (11, 13, 3, 32, [3, 3], 2, [0, 0]),
        (9, 8, 32, 16, [3, 3], 1, [0, 0]),
        (8, 9, 12, 64, [3, 3], 1, [1, 1]),
        (7, 7, 64, 80, [1, 1], 1, [0, 0]),
        (7, 9, 48, 64, [5, 5], 1, [2, 2]),
        (9, 9, 20, 33, [1, 7], 1, [0, 3]),
        (9, 8, 20, 48, [7, 1], 1, [3, 0]),
        (8, 8, 36, 40, [1, 3], 1, [0, 1]),
        (8, 8, 36, 31, [3, 1], 1, [1, 0]),
        (17, 17, 8, 24, [3, 3], 2, [0, 0]),
        (35, 35, 4, 8, [3, 3], 1, [1, 1]),
        (1, 1, 1, 1, [1, 1], 1, [0, 0]),
        (1, 1, 5, 17, [3, 3], 1, [1, 1]),
        (4, 6, 7, 5, [4, 6], 1, [0, 0]),
        (10, 7, 6, 15, [2, 3], 3, [1, 2]),
        (5, 160, 2, 3, [3, 3], 1, [1, 1]),
        (3, 3, 130, 65, [3, 3], 1, [1, 1]),
    ];
    let case = |(i, (h, w, c, k, [kernel_h, kernel_w], stride, [pad_h, pad_w])): (usize, Shape)| {
        let fill = Fill::new(i as u64);
        let (y_first, behind) = (fill.choose(0, &[0, 3, 16]), fill.choose(1, &[0, 1, 8]));
        let n = fill.choose(2, &[1, 2, 3]);
        let (y_channels, relu) = (y_first + k + behind, i as u32 % 2);
        Conv2dDims { n, h, w, c, k, kernel_h, kernel_w, stride, pad_h, pad_w, y_channels, y_first, relu }
    };
    shapes.into_iter().enumerate().map(case).collect()
}

#[test]
fn convolution() {
    let cpus = Cpus::new();
    for (i, d) in conv_cases().into_iter().enumerate() {
        let fill = Fill::new(i as u64);
        let inputs = [(1, d.x_len()), (2, d.w_len()), (3, d.k as usize)].map(|(t, len)| fill.f32s(t, len));
        let [x, w, b] = [&inputs[0], &inputs[1], &inputs[2]];
        let want = conv_truth::forward(&d, &to_f64(x), &to_f64(w), &to_f64(b));
        assert!(d.relu == 0 || want.len() < 8 || want.contains(&0.0));
        check_all!(cpus, format!("{d:?}"), |backend, name| {
            let got = conv(backend, name, &d, [x, w, b]);
            assert_close(name, &got, &want, TOLERANCE);
            got
        });
        check_gpus!(Arithmetic::Tf32, format!("{d:?}"), |gpu, name| {
            let got = conv(gpu, name, &d, [x, w, b]);
            assert_close(name, &got, &want, TF32_TOLERANCE);
            got
        });
    }
}

#[test]
fn a_sum_that_is_not_a_number_stays_one() {
    let cpus = Cpus::new();
    let d = Conv2dDims {
        n: 1,
        h: 2,
        w: 9,
        c: 1,
        k: 3,
        kernel_h: 1,
        kernel_w: 1,
        stride: 1,
        pad_h: 0,
        pad_w: 0,
        y_channels: 3,
        y_first: 0,
        relu: 1,
    };
    let mut x = vec![1.0; d.x_len()];
    x[4] = f32::NAN;
    let pool = WindowPoolDims { n: 1, h: 2, w: 9, c: 1, kernel: 2, stride: 1, pad: 0, y_channels: 1, y_first: 0 };
    check_all!(cpus, "not a number", |backend, name| {
        let y = conv(backend, name, &d, [&x, &[1.0, -1.0, 2.0], &[0.0; 3]]);
        let nans: Vec<usize> = (0..y.len()).filter(|&i| y[i].is_nan()).collect();
        assert_eq!(nans, [12, 13, 14], "{name}");
        for pooling in [Pooling::Max, Pooling::MeanAll] {
            let y = window_pool(backend, name, &pool, pooling, &x);
            let nans: Vec<usize> = (0..y.len()).filter(|&i| y[i].is_nan()).collect();
            assert_eq!(nans, [3, 4], "{name}, {pooling:?}");
        }
        y.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect::<Vec<f32>>()
    });
}

fn window_pool<B: WindowPool>(backend: &B, name: &str, d: &WindowPoolDims, pooling: Pooling, x: &[f32]) -> Vec<f32> {
    let (x, mut y) = (Input::new(backend, x), Guarded::from(backend, &vec![OTHER; d.y_len()]));
    backend.window_pool(d, pooling, x.view(), y.view_mut()).unwrap();
    own_channels(name, &y.read(backend), d.y_channels, d.y_first, d.c)
}

#[test]
fn pooling_over_windows() {
    let cpus = Cpus::new();
    // (rows, columns, window, stride, padding): those of Inception-v3, and edges.
    let shapes =
        [(9, 11, 3, 2, 0), (7, 8, 3, 1, 1), (8, 8, 8, 1, 0), (1, 1, 3, 1, 1), (5, 4, 4, 1, 2), (6, 9, 2, 3, 1)];
    for (i, &c) in CHANNELS.iter().enumerate() {
        let (h, w, kernel, stride, pad) = shapes[i % shapes.len()];
        let fill = Fill::new(i as u64);
        let (y_first, behind, n) = (fill.choose(0, &[0, 5]), fill.choose(1, &[0, 2]), fill.choose(2, &[1, 2, 3]));
        let d = WindowPoolDims { n, h, w, c, kernel, stride, pad, y_channels: y_first + c + behind, y_first };
        let x = fill.f32s(3, d.x_len());
        for pooling in [Pooling::Max, Pooling::MeanInside, Pooling::MeanAll] {
            let want = pool_truth::forward(&d, pooling, &to_f64(&x));
            check_all!(cpus, format!("{pooling:?} {d:?}"), |backend, name| {
                let got = window_pool(backend, name, &d, pooling, &x);
                assert_close(name, &got, &want, if pooling == Pooling::Max { 0.0 } else { TOLERANCE });
                got
            });
        }
    }
}

#[test]
fn interpolation() {
    let cpus = Cpus::new();
    let sizes = [
        ([4, 4], [9, 9]),
        ([5, 3], [5, 3]),
        ([1, 1], [3, 2]),
        ([1, 7], [4, 5]),
        ([12, 9], [5, 4]),
        ([8, 8], [29, 31]),
        ([9, 20], [1, 1]),
    ];
    for (i, ([h, w], [out_h, out_w])) in sizes.into_iter().enumerate() {
        for (n, c) in [(2, 3), (1, 1), (1, 17)] {
            let d = BilinearDims { n, h, w, c, out_h, out_w };
            let x = Fill::new(i as u64).f32s(0, d.x_len());
            let want = bilinear_truth::forward(&d, &to_f64(&x));
            check_all!(cpus, format!("{d:?}"), |backend, name| {
                let (x, mut y) = (Input::new(backend, &x), Guarded::output(backend, d.y_len()));
                backend.bilinear(&d, x.view(), y.view_mut()).unwrap();
                let got = y.read(backend);
                assert_close(name, &got, &want, TOLERANCE);
                got
            });
        }
    }
}

/// Numbers of PyTorch 2.11: `interpolate(torch.arange(6.).view(1, 1, 2, 3), size=(3, 5), mode="bilinear", align_corners=False)`.
#[test]
fn interpolation_is_pytorchs() {
    let want = [
        0.0, 0.4, 1.0, 1.6, 2.0, //
        1.5, 1.9, 2.5, 3.1, 3.5, //
        3.0, 3.4, 4.0, 4.6, 5.0,
    ];
    let d = BilinearDims { n: 1, h: 2, w: 3, c: 1, out_h: 3, out_w: 5 };
    let truth = bilinear_truth::forward(&d, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(truth.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{truth:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let cpus = Cpus::new();
    let good = conv_cases()[2];
    let pool = WindowPoolDims { n: 1, h: 4, w: 4, c: 2, kernel: 3, stride: 1, pad: 1, y_channels: 2, y_first: 0 };
    let resize = BilinearDims { n: 1, h: 4, w: 4, c: 2, out_h: 3, out_w: 3 };
    check_all!(cpus, "refusals", |backend, name| {
        let room = Input::new(backend, &vec![0.0; 1 << 16]);
        let mut out = Guarded::from(backend, &vec![0.0; 1 << 16]);
        let w = vec![0.0; good.w_len()];
        let filter = backend.conv2d_filter(&good, &w).unwrap();
        assert_shape_error(name, backend.conv2d_filter(&good, &w[1..]).map(drop));
        let (x, b) = (Input::new(backend, &vec![0.0; good.x_len()]), Input::new(backend, &vec![0.0; good.k as usize]));
        let mut y = Guarded::from(backend, &vec![0.0; good.y_len()]);
        // `0..1`: a view that is too short, in the place of each.
        let short = || Input::new(backend, &[0.0]);
        let all = |f| filter_view(backend, f);
        assert_shape_error(name, backend.conv2d(&good, short().view(), all(&filter), b.view(), y.view_mut()));
        assert_shape_error(name, backend.conv2d(&good, x.view(), short().view(), b.view(), y.view_mut()));
        assert_shape_error(name, backend.conv2d(&good, x.view(), all(&filter), short().view(), y.view_mut()));
        assert_shape_error(name, backend.conv2d(&good, x.view(), all(&filter), b.view(), out.view_mut()));
        for bad in [
            Conv2dDims { stride: 0, ..good },
            Conv2dDims { kernel_h: 20, ..good },
            Conv2dDims { y_first: good.y_channels, ..good },
            Conv2dDims { y_first: u32::MAX, ..good },
            Conv2dDims { pad_w: 3, ..good },
            Conv2dDims { relu: 2, ..good },
            Conv2dDims { n: u32::MAX, ..good },
        ] {
            assert_shape_error(name, backend.conv2d(&bad, x.view(), all(&filter), b.view(), y.view_mut()));
        }
        assert_shape_error(name, backend.window_pool(&pool, Pooling::Max, room.view(), out.view_mut()));
        assert_shape_error(name, backend.bilinear(&resize, room.view(), out.view_mut()));
        let x = Input::new(backend, &[0.0; 32]);
        let mut y = Guarded::from(backend, &[0.0; 32]);
        backend.window_pool(&pool, Pooling::Max, x.view(), y.view_mut()).unwrap();
        for bad in [
            WindowPoolDims { kernel: 0, ..pool },
            WindowPoolDims { pad: 3, ..pool },
            WindowPoolDims { y_first: 1, ..pool },
            WindowPoolDims { stride: 0, ..pool },
        ] {
            assert_shape_error(name, backend.window_pool(&bad, Pooling::Max, x.view(), y.view_mut()));
        }
        assert_shape_error(name, backend.bilinear(&BilinearDims { out_h: 0, ..resize }, x.view(), y.view_mut()));
        assert_shape_error(name, backend.bilinear(&resize, x.view(), y.view_mut()));
        vec![]
    });
}

fn filter_view<'a, B: Memory>(_: &B, filter: &'a B::Buffer) -> B::Slice<'a> {
    B::all(filter)
}
