//! The convolutions that change the resolution on the CPU, with every instruction set and 1, 2 and 3 threads, against the float64 references.

mod ops_support;

use ddim_engine::device::cpu::Cpu;
use ddim_engine::ops::conv::Direction;
use ddim_engine::ops::conv::reference::stats;
use ddim_engine::ops::resample_conv::{
    ResampleConv, ResampleConvDims, ResampleConvGradients, Resampling, reference as truth,
};
use ops_support::{Cpus, Fill, Guarded, Input, assert_close, assert_scaled, assert_shape_error, norm, rms, to_f64};

const CASES: [Resampling; 3] = [Resampling::Double, Resampling::Keep { offset: 0 }, Resampling::Keep { offset: 1 }];

/// Relative 2-norm of a sum of `terms` terms. Measured: at most 2.6e-7 for y, 3.9e-7 for dx, 2.6e-7 for dw, 6.1e-7 for db.
fn tolerance(terms: usize) -> f64 {
    3e-7 + 3e-8 * (terms as f64).sqrt()
}

/// A case with what surrounds the product: the biases of all images or of each, `add`, statistics.
struct Case {
    d: ResampleConvDims,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    bias_of_image: Vec<f32>,
    dy: Vec<f32>,
    add: Vec<f32>,
    y: Vec<f64>,
    want: truth::Gradients,
}

impl Case {
    fn new(d: ResampleConvDims) -> Self {
        let fill = Fill::new(u64::from(d.c * 100 + d.k));
        let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
        let mut w = fill.f32s(0, 9 * c * k);
        w.iter_mut().for_each(|w| *w /= (9.0 * c as f32).sqrt());
        let [x, dy, add] = [d.input_len(), d.output_len(), d.input_len()].map(|len| fill.f32s(len as u64, len));
        let (bias, bias_of_image) = (fill.f32s(1, k), fill.f32s(2, n * k));
        let [x64, w64, dy64] = [&x, &w, &dy].map(|v| to_f64(v));
        let mut y = truth::forward(&d, &x64, &w64, &to_f64(&bias));
        let pixels = y.len() / (n * k);
        for (p, y) in y.chunks_exact_mut(k).enumerate() {
            let row = &bias_of_image[p / pixels * k..][..k];
            y.iter_mut().zip(row).for_each(|(y, b)| *y += f64::from(*b));
        }
        let mut want = truth::backward(&d, &x64, &w64, &dy64);
        want.dx.iter_mut().zip(&add).for_each(|(dx, add)| *dx += f64::from(*add));
        Case { d, x, w, bias, bias_of_image, dy, add, y, want }
    }

    fn packed(&self, cpu: &Cpu, direction: Direction) -> Guarded<Cpu> {
        let mut packed = Guarded::output(cpu, cpu.resample_conv_packed_len(&self.d, direction));
        let w = Input::new(cpu, &self.w);
        cpu.resample_conv_pack(&self.d, direction, w.view(), packed.view_mut()).unwrap();
        packed
    }

    fn run(&self, cpu: &Cpu, name: &str) -> Vec<f32> {
        let d = &self.d;
        let (n, c, k) = (d.n as usize, d.c as usize, d.k as usize);
        let [x, bias, each, dy, add] =
            [&self.x, &self.bias, &self.bias_of_image, &self.dy, &self.add].map(|v| Input::new(cpu, v));
        let packed = self.packed(cpu, Direction::Forward);
        let (mut y, mut moments) = (Guarded::output(cpu, d.output_len()), Guarded::output(cpu, n * k * 2));
        let biases = [Some(bias.view()), Some(each.view())];
        cpu.resample_conv(d, x.view(), packed.view(), biases, y.view_mut(), Some(moments.view_mut())).unwrap();
        let (y, moments) = (y.read(cpu), moments.read(cpu));
        assert_close(&format!("y of {name}"), &y, &self.y, tolerance(9 * c));
        check_moments(name, &moments, &to_f64(&y), n, k);
        let mut again = Guarded::output(cpu, d.output_len());
        cpu.resample_conv(d, x.view(), packed.view(), biases, again.view_mut(), None).unwrap();
        assert_eq!(y, again.read(cpu), "{name}: statistics must not change the result");

        let packed = self.packed(cpu, Direction::Dgrad);
        let mut dx = Guarded::output(cpu, d.input_len());
        // Gradients of parameters accumulate.
        let (mut dw, mut db) = (Guarded::from(cpu, &vec![0.5; 9 * c * k]), Guarded::from(cpu, &vec![-1.0; k]));
        let out = ResampleConvGradients { dx: dx.view_mut(), dw: dw.view_mut(), db: db.view_mut() };
        cpu.resample_conv_backward(d, x.view(), packed.view(), dy.view(), Some(add.view()), out).unwrap();
        let [dx, dw, db] = [dx, dw, db].map(|v| v.read(cpu));
        // With doubling each term is a sum of four.
        assert_close(&format!("dx of {name}"), &dx, &self.want.dx, 2.0 * tolerance(9 * k));
        for (what, got, before, gradient) in [("dw", &dw, 0.5, &self.want.dw), ("db", &db, -1.0, &self.want.db)] {
            let want: Vec<f64> = gradient.iter().map(|g| g + before).collect();
            let scale = norm(&want) + norm(gradient);
            assert_scaled(&format!("{what} of {name}"), &to_f64(got), &want, scale, tolerance(d.large()).min(2e-6));
        }
        [y, moments, dx, dw, db].concat()
    }
}

fn check_moments(name: &str, got: &[f32], y: &[f64], n: usize, k: usize) {
    let pixels = y.len() / (n * k);
    let want = stats(y, n, pixels, k);
    let column = |stats: &[f64], i: usize| stats.iter().skip(i).step_by(2).copied().collect::<Vec<f64>>();
    let entries = ((n * k) as f64).sqrt();
    let (mean_scale, m2_scale) = (rms(y) * entries, rms(y).powi(2) * pixels as f64 * entries);
    let got = to_f64(got);
    assert_scaled(&format!("mean of {name}"), &column(&got, 0), &column(&want, 0), mean_scale, 1e-6);
    assert_scaled(&format!("m2 of {name}"), &column(&got, 1), &column(&want, 1), m2_scale, 1e-5);
}

fn check(cpus: &Cpus, n: u32, [h, w]: [u32; 2], c: u32, k: u32, resampling: Resampling) {
    let case = Case::new(ResampleConvDims { n, h: 2 * h, w: 2 * w, c, k, resampling });
    cpus.check(&format!("{:?}", case.d), |cpu, name| case.run(cpu, name));
}

/// Sides, by the small one: 1, odd and even, pictures cut into bands, batches of many small pictures; channels on both sides of every vector and tile.
#[test]
fn against_the_reference() {
    let cpus = Cpus::new();
    let extents = [(1, [1, 1]), (2, [3, 5]), (3, [4, 2]), (1, [7, 8]), (35, [2, 3]), (2, [1, 9])];
    let channels = [(1, 1), (3, 2), (5, 8), (8, 17), (16, 15), (17, 32), (2, 33), (33, 7)];
    for resampling in CASES {
        for (i, (c, k)) in channels.into_iter().enumerate() {
            let (n, hw) = extents[i % extents.len()];
            check(&cpus, n, hw, c, k, resampling);
        }
        for (n, hw) in extents {
            check(&cpus, n, hw, 6, 10, resampling);
        }
    }
}

/// Bands of several rows, of one row that is wider than a band, and the layers of the networks.
#[test]
fn pictures_cut_into_bands() {
    let cpus = Cpus::new();
    for resampling in CASES {
        for (n, hw, c, k) in
            [(2, [23, 30], 3, 4), (1, [3, 600], 2, 5), (1, [530, 1], 1, 3), (2, [8, 8], 64, 64), (1, [16, 16], 64, 32)]
        {
            check(&cpus, n, hw, c, k, resampling);
        }
    }
}

/// A picture's result does not depend on the pictures beside it.
#[test]
fn batches_do_not_matter() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    for resampling in CASES {
        let many = Case::new(ResampleConvDims { n: 35, h: 6, w: 4, c: 5, k: 9, resampling });
        let d = ResampleConvDims { n: 1, ..many.d };
        let run = |d: &ResampleConvDims, x: &[f32]| {
            let (x, packed) = (Input::new(cpu, x), many.packed(cpu, Direction::Forward));
            let mut y = Guarded::output(cpu, d.output_len());
            cpu.resample_conv(d, x.view(), packed.view(), [None; 2], y.view_mut(), None).unwrap();
            y.read(cpu)
        };
        let all = run(&many.d, &many.x);
        for (x, y) in many.x.chunks_exact(d.input_len()).zip(all.chunks_exact(d.output_len())) {
            assert_eq!(run(&d, x), y, "{resampling:?}");
        }
    }
}

#[test]
fn wrong_views_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    for resampling in CASES {
        let d = ResampleConvDims { n: 2, h: 4, w: 6, c: 3, k: 5, resampling };
        let packed_len = |direction| cpu.resample_conv_packed_len(&d, direction);
        let pack = |d: ResampleConvDims, w: usize, packed: usize| {
            let (w, mut packed) = (Input::new(cpu, &vec![1.0; w]), Guarded::output(cpu, packed));
            cpu.resample_conv_pack(&d, Direction::Forward, w.view(), packed.view_mut())
        };
        let len = packed_len(Direction::Forward);
        pack(d, 135, len).unwrap();
        assert_shape_error("w", pack(d, 134, len));
        assert_shape_error("packed", pack(d, 135, len + 1));
        assert_shape_error("odd", pack(ResampleConvDims { h: 3, ..d }, 135, len));
        assert_shape_error(
            "offset",
            pack(ResampleConvDims { resampling: Resampling::Keep { offset: 2 }, ..d }, 135, len),
        );
        // Lengths of x, filter, bias, y, statistics; one too long each.
        for wrong in 0..6 {
            let more = |i: usize| usize::from(i + 1 == wrong);
            let input = |i: usize, len: usize| Input::new(cpu, &vec![1.0; len + more(i)]);
            let (x, packed, bias) = (input(0, d.input_len()), input(1, len), input(2, 5));
            let (mut y, mut stats) =
                (Guarded::output(cpu, d.output_len() + more(3)), Guarded::output(cpu, 20 + more(4)));
            let biases = [None, Some(bias.view())];
            let result = cpu.resample_conv(&d, x.view(), packed.view(), biases, y.view_mut(), Some(stats.view_mut()));
            if wrong == 0 { result.unwrap() } else { assert_shape_error(&format!("{wrong}"), result) }
        }
        // Of x, filter, dy, add, dx, dw, db.
        for wrong in 0..8 {
            let more = |i: usize| usize::from(i + 1 == wrong);
            let input = |i: usize, len: usize| Input::new(cpu, &vec![1.0; len + more(i)]);
            let (x, packed) = (input(0, d.input_len()), input(1, packed_len(Direction::Dgrad)));
            let (dy, add) = (input(2, d.output_len()), input(3, d.input_len()));
            let mut dx = Guarded::output(cpu, d.input_len() + more(4));
            let (mut dw, mut db) = (Guarded::output(cpu, 135 + more(5)), Guarded::output(cpu, 5 + more(6)));
            let out = ResampleConvGradients { dx: dx.view_mut(), dw: dw.view_mut(), db: db.view_mut() };
            let result = cpu.resample_conv_backward(&d, x.view(), packed.view(), dy.view(), Some(add.view()), out);
            if wrong == 0 { result.unwrap() } else { assert_shape_error(&format!("{wrong}"), result) }
        }
    }
}
