//! Attention by the CUDA kernels, forward and backward, in all arithmetics, against the float64 reference: on the simulator always (where
//! it was built), on a GPU where there is one. Views begin at aligned and at odd elements, so that both ways of reading are taken.

mod ops_support;

use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::ops::attention::{Attention, AttentionDims, reference as truth};
use half::bf16;
use ops_support::conv_case::Placed;
use ops_support::{Fill, GUARD, assert_close, assert_shape_error, devices, to_f64};

/// Relative 2-norm of y, of its log-sum-exp, and of the gradients. Measured: at most 8.2e-7, 1.9e-7, 1.2e-6 in fp32; 4.8e-4, 3.1e-4, 1.3e-3 in
/// tf32; 2.2e-3, 3.1e-4, 9.9e-3 in bf16, where the largest is a dq of two tokens, whose terms cancel.
fn tolerances(arithmetic: Arithmetic) -> [f64; 3] {
    match arithmetic {
        Arithmetic::Fp32 => [5e-6, 2e-6, 1e-5],
        Arithmetic::Tf32 => [2e-3, 1e-3, 3e-3],
        Arithmetic::Bf16 => [6e-3, 1e-3, 2e-2],
    }
}

const ALL: [Arithmetic; 3] = [Arithmetic::Fp32, Arithmetic::Tf32, Arithmetic::Bf16];

const fn dims(n: u32, tokens: u32, heads: u32, head_dim: u32) -> AttentionDims {
    AttentionDims { n, tokens, heads, head_dim }
}

/// A case with its truth.
struct Case {
    d: AttentionDims,
    qkv: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f64>,
    lse: Vec<f64>,
    dqkv: Vec<f64>,
}

impl Case {
    /// `narrow`: operands are rounded to bfloat16. `spread`: of queries and keys.
    fn new(d: AttentionDims, narrow: bool, spread: f32) -> Self {
        let fill = Fill::new(u64::from(d.tokens * 1000 + d.head_dim));
        let drawn = |index, len| {
            let mut values = fill.f32s(index, len);
            values.iter_mut().for_each(|v| *v *= if index == 0 { spread } else { 1.0 });
            if narrow {
                values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
            }
            values
        };
        let (qkv, dy) = (drawn(0, 3 * d.len()), drawn(1, d.len()));
        let (qkv64, dy64) = (to_f64(&qkv), to_f64(&dy));
        let (y, lse) = truth::forward(&d, &qkv64);
        let dqkv = truth::backward(&d, &qkv64, &dy64);
        Case { d, qkv, dy, y, lse, dqkv }
    }

    /// Forward, then backward from its results; all numbers.
    fn check<L: Launcher>(&self, gpu: &Gpu<L>, name: &str, lead: usize) -> Vec<u32> {
        let d = &self.d;
        let [of_y, of_lse, of_gradients] = tolerances(gpu.arithmetic());
        let (qkv, dy) = (Placed::input(gpu, &self.qkv, lead, true), Placed::input(gpu, &self.dy, lead, true));
        let mut y = Placed::output(gpu, d.len(), lead, true);
        let mut lse = Placed::output(gpu, d.lse_len(), lead, false);
        gpu.attention(d, qkv.view(), y.view_mut(), lse.view_mut()).unwrap();
        let (got_y, got_lse) = (y.read(gpu), lse.read(gpu));
        assert_close(&format!("y of {name}"), &got_y, &self.y, of_y);
        assert_close(&format!("lse of {name}"), &got_lse, &self.lse, of_lse);

        let mut dqkv = Placed::output(gpu, 3 * d.len(), lead, true);
        gpu.attention_backward(d, qkv.view(), y.view(), lse.view(), dy.view(), dqkv.view_mut()).unwrap();
        let got = dqkv.read(gpu);
        for (which, part) in ["dq", "dk", "dv"].into_iter().enumerate() {
            // One token has a softmax of 1: no gradient reaches q and k.
            let rows = |values: &[f64]| -> Vec<f64> {
                values.chunks_exact(3 * d.c()).flat_map(|row| row[which * d.c()..][..d.c()].to_vec()).collect()
            };
            let (got, want) = (rows(&to_f64(&got)), rows(&self.dqkv));
            if d.tokens == 1 && which < 2 {
                assert!(got.iter().all(|g| g.abs() < 2e-2), "{part} of {name}");
            } else {
                ops_support::assert_close_f64(&format!("{part} of {name}"), &got, &want, of_gradients);
            }
        }
        [got_y, got_lse, got].concat().into_iter().map(f32::to_bits).collect()
    }
}

fn run(d: AttentionDims, spread: f32) {
    let cases = [Case::new(d, false, spread), Case::new(d, true, spread)];
    for arithmetic in ALL {
        let case = &cases[usize::from(arithmetic == Arithmetic::Bf16)];
        let name = format!("{d:?} in {arithmetic}");
        devices::run_or_skip("sim", devices::no_sim(), || {
            let gpu = devices::sim(arithmetic);
            let first = case.check(&gpu, &name, GUARD);
            assert!(first == case.check(&gpu, &name, GUARD), "{name}: two runs differ");
            case.check(&gpu, &name, GUARD + 1);
        });
        devices::run_or_skip("cuda", devices::no_cuda(), || {
            let gpu = devices::cuda(arithmetic);
            let first = case.check(&gpu, &name, GUARD);
            assert!(first == case.check(&gpu, &name, GUARD), "{name}: two runs differ");
            case.check(&gpu, &name, GUARD + 1);
        });
    }
}

/// Tokens and head sizes on both sides of every tile and step.
#[test]
fn tokens_and_head_sizes() {
    for (tokens, head_dim) in
        [(1, 1), (2, 3), (4, 8), (9, 5), (15, 16), (16, 17), (17, 32), (63, 24), (64, 64), (65, 40), (129, 8)]
    {
        run(dims(2, tokens, 2, head_dim), 1.0);
    }
}

#[test]
fn many_heads_and_wide_ones() {
    for d in [dims(1, 16, 7, 8), dims(3, 12, 4, 12), dims(1, 20, 1, 65), dims(1, 70, 1, 128), dims(1, 33, 2, 136)] {
        run(d, 1.0);
    }
}

/// A layer of a 16x16 picture, as a network runs it.
#[test]
fn sixteen_by_sixteen() {
    run(dims(1, 256, 2, 32), 1.0);
}

/// Scores far apart: a row is all but one token's, exponentials of differences span the range of float32.
#[test]
fn large_scores() {
    for arithmetic in [Arithmetic::Fp32, Arithmetic::Bf16] {
        let d = dims(1, 80, 1, 16);
        let case = Case::new(d, arithmetic == Arithmetic::Bf16, 12.0);
        devices::run_or_skip("sim", devices::no_sim(), || {
            let gpu = devices::sim(arithmetic);
            let qkv = Placed::input(&gpu, &case.qkv, GUARD, true);
            let mut y = Placed::output(&gpu, d.len(), GUARD, true);
            let mut lse = Placed::output(&gpu, d.lse_len(), GUARD, false);
            gpu.attention(&d, qkv.view(), y.view_mut(), lse.view_mut()).unwrap();
            assert_close(
                "y with large scores",
                &y.read(&gpu),
                &case.y,
                if arithmetic == Arithmetic::Fp32 { 2e-4 } else { 6e-3 },
            );
            assert_close("lse with large scores", &lse.read(&gpu), &case.lse, 1e-5);
        });
    }
}

/// The simulator's checker for races, bounds and memory that was never written finds nothing.
#[test]
fn under_the_checker() {
    let missing = Sim::checked().err().map(|error| error.to_string());
    for arithmetic in ALL {
        for d in [dims(1, 70, 2, 8), dims(1, 9, 1, 72), dims(2, 16, 1, 5)] {
            devices::run_or_skip("sim-checker", missing.clone(), || {
                let gpu = Gpu::new(Sim::checked().unwrap(), arithmetic);
                gpu.poison_new_buffers();
                gpu.separate_buffers();
                let case = Case::new(d, arithmetic == Arithmetic::Bf16, 1.0);
                case.check(&gpu, &format!("{d:?} under the checker in {arithmetic}"), GUARD);
            });
        }
    }
}

#[test]
fn wrong_views_are_errors() {
    devices::run_or_skip("sim", devices::no_sim(), || {
        let gpu = devices::sim(Arithmetic::Bf16);
        let d = dims(2, 4, 2, 3);
        let activation = |len: usize| Placed::output(&gpu, len, GUARD, true);
        let plain = |len: usize| Placed::output(&gpu, len, GUARD, false);
        let forward = |d: &AttentionDims, qkv: usize, y: usize, lse: usize| {
            gpu.attention(d, activation(qkv).view(), activation(y).view_mut(), plain(lse).view_mut())
        };
        forward(&d, 144, 48, 16).unwrap();
        for (qkv, y, lse) in [(143, 48, 16), (144, 47, 16), (144, 48, 15)] {
            assert_shape_error("a view of attention", forward(&d, qkv, y, lse));
        }
        assert_shape_error("no heads", forward(&dims(2, 4, 0, 3), 0, 0, 0));
        let mixed = gpu.attention(&d, plain(144).view(), activation(48).view_mut(), plain(16).view_mut());
        assert_shape_error("float32 where activations are bfloat16", mixed);
        let backward = |qkv: usize, y: usize, lse: usize, dy: usize, dqkv: usize| {
            let (qkv, y, lse, dy) = (activation(qkv), activation(y), plain(lse), activation(dy));
            gpu.attention_backward(&d, qkv.view(), y.view(), lse.view(), dy.view(), activation(dqkv).view_mut())
        };
        backward(144, 48, 16, 48, 144).unwrap();
        for (qkv, y, lse, dy, dqkv) in [
            (1, 48, 16, 48, 144),
            (144, 1, 16, 48, 144),
            (144, 48, 1, 48, 144),
            (144, 48, 16, 1, 144),
            (144, 48, 16, 48, 1),
        ] {
            assert_shape_error("a view of its backward", backward(qkv, y, lse, dy, dqkv));
        }
    });
}
