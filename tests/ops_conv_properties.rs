//! Properties of the convolution on the device itself, at drawn sizes: linear, and both gradients are adjoints of it. The drawn
//! sizes shrink, so a failure comes down to the smallest picture that shows it.

mod ops_support;

use ddim_engine::ops::conv::{Conv, ConvDims};
use ops_support::conv_case::{ConvSpec, Operands, Slot, WgradResults};
use ops_support::{Cpus, Fill, assert_scaled, dot, norm, to_f64};
use proptest::prelude::*;

/// Relative to the sizes of what was added or multiplied. Measured: at most 3.2e-7 (linear), 4.5e-8 (adjoints).
const TOLERANCE: f64 = 1e-6;

fn extents() -> impl Strategy<Value = ConvDims> {
    let side = prop_oneof![Just(1u32), Just(3)];
    (1u32..4, 1u32..8, 1u32..8, 1u32..20, 0u32..6, 1u32..36, side).prop_map(|(n, h, w, c0, c1, k, side)| ConvDims {
        n,
        h,
        w,
        c0,
        c1,
        r0: 0,
        r1: 0,
        k,
        side,
    })
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) }
}

fn with(operands: &Operands<Vec<f32>>, slot: Slot, values: Vec<f32>) -> Operands<Vec<f32>> {
    let mut operands = operands.clone();
    operands.0[slot as usize] = Some(values);
    operands
}

fn y<B: Conv>(backend: &B, spec: &ConvSpec, operands: &Operands<Vec<f32>>) -> Vec<f64> {
    to_f64(&spec.run(backend, operands).unwrap().y0)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn linear(d in extents(), a in -2f32..2.0, case in 0u64..1000) {
        let cpus = Cpus::new();
        let spec = ConvSpec::plain(d);
        let (fill, cpu) = (Fill::new(case), cpus.best());
        let p = spec.operands(fill);
        let other = fill.f32s(60, p.get(Slot::X0).unwrap().len());
        let zero = spec.len(Slot::X1).map(|len| vec![0.0; len]);
        let mut q = with(&p, Slot::X0, other.clone());
        q.0[Slot::X1 as usize] = zero;
        let mixed = p.get(Slot::X0).unwrap().iter().zip(&other).map(|(x, o)| x + a * o).collect();
        let (y_p, y_q, y_mixed) = (y(cpu, &spec, &p), y(cpu, &spec, &q), y(cpu, &spec, &with(&p, Slot::X0, mixed)));
        let errors: Vec<f64> = (0..y_p.len()).map(|i| y_mixed[i] - y_p[i] - f64::from(a) * y_q[i]).collect();
        assert_scaled("linear", &errors, &vec![0.0; errors.len()], norm(&y_p) + norm(&y_q), TOLERANCE);
    }

    /// <conv(x), dy> = <x, dgrad(dy)>.
    #[test]
    fn dgrad_is_the_adjoint(d in extents(), case in 0u64..1000) {
        let d = ConvDims { c1: 0, ..d };
        let cpus = Cpus::new();
        let cpu = cpus.best();
        let forward = ConvSpec::plain(d);
        let p = forward.operands(Fill::new(case));
        let transposed = ConvDims { c0: d.k, k: d.c0, ..d };
        let backward = ConvSpec { dgrad: Some(d.c0), ..ConvSpec::plain(transposed) };
        let mut q = backward.operands(Fill::new(case));
        q.0[Slot::X0 as usize] = p.0[Slot::Dy as usize].clone();
        q.0[Slot::W as usize] = p.0[Slot::W as usize].clone();
        let (x, dy) = (to_f64(p.get(Slot::X0).unwrap()), to_f64(p.get(Slot::Dy).unwrap()));
        let (y, dx) = (y(cpu, &forward, &p), y(cpu, &backward, &q));
        assert_scaled("dgrad", &[dot(&y, &dy)], &[dot(&x, &dx)], norm(&y) * norm(&dy), TOLERANCE);
    }

    /// <conv_w(x), dy> = <w, wgrad(x, dy)>, with a prologue and two inputs.
    #[test]
    fn wgrad_is_the_adjoint(d in extents(), affine: bool, silu: bool, x1_constant: bool, case in 0u64..1000) {
        let cpus = Cpus::new();
        let cpu = cpus.best();
        let spec = ConvSpec { affine, silu, x1_constant: x1_constant && d.c1 > 0, ..ConvSpec::plain(d) };
        let p = spec.operands(Fill::new(case));
        let mut before = WgradResults::before(&d, Fill::new(0));
        before.dw.fill(0.0);
        let dw = spec.run_wgrad(cpu, &p, &before, false).unwrap().dw;
        let (w, dy) = (to_f64(p.get(Slot::W).unwrap()), to_f64(p.get(Slot::Dy).unwrap()));
        let y = y(cpu, &spec, &p);
        assert_scaled("wgrad", &[dot(&y, &dy)], &[dot(&w, &to_f64(&dw))], norm(&y) * norm(&dy), TOLERANCE);
    }

    /// A moved picture gives the moved result, away from the border: the same bits after two pixels, since a CPU may work on tiles
    /// of 2x2 pixels, and the same up to rounding after one.
    #[test]
    fn shifts_with_its_input(d in extents(), case in 0u64..1000) {
        let d = ConvDims { c1: 0, w: d.w + 4, ..d };
        let cpus = Cpus::new();
        let cpu = cpus.best();
        let spec = ConvSpec::plain(d);
        let p = spec.operands(Fill::new(case));
        let (w, k) = (d.w as usize, d.k as usize);
        let y_still = y(cpu, &spec, &p);
        for by in [1, 2] {
            let mut moved = p.get(Slot::X0).unwrap().clone();
            moved.rotate_right(by * d.c0 as usize);
            let y_moved = y(cpu, &spec, &with(&p, Slot::X0, moved));
            for row in 0..(d.n * d.h) as usize {
                let inner = |first: usize| (row * w + first) * k..(row * w + first + w - 4) * k;
                let (still, moved) = (&y_still[inner(1)], &y_moved[inner(1 + by)]);
                if by == 2 {
                    prop_assert_eq!(still, moved);
                } else {
                    assert_scaled("shift", still, moved, norm(&y_still), TOLERANCE);
                }
            }
        }
    }
}
