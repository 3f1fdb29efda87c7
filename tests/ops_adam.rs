//! Adam, AdamW and the moving average on every backend against the float64 reference.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::ops::adam::reference::{Element, adam_step};
use ddim_engine::ops::adam::{Adam, AdamParams, AdamScalars, AdamState};
use ops_support::{Cpus, Fill, Guarded, Input, assert_scaled, assert_shape_error, norm, to_f64};

/// Relative 2-norm of weights, moments and averages after several steps in f32. Measured: at most 1.5e-7. Beta2 in
/// single precision before it is taken from 1 would be 1.3e-5 in the second moment.
const TOLERANCE: f64 = 5e-7;

/// Buffers on the host, before or after.
#[derive(Clone)]
struct Buffers {
    params: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    ema: Vec<f32>,
}

impl Buffers {
    /// As training starts: no moments, and an average that equals the weights.
    fn start(params: Vec<f32>) -> Self {
        let zeros = vec![0.0; params.len()];
        Buffers { ema: params.clone(), params, m: zeros.clone(), v: zeros }
    }

    fn step<B: Adam>(&self, backend: &B, h: &AdamParams, grads: &[f32], with_ema: bool) -> Buffers {
        let guarded = |values: &[f32]| Guarded::from(backend, values);
        let [mut params, mut m, mut v] = [&self.params, &self.m, &self.v].map(|values| guarded(values));
        let mut ema = with_ema.then(|| guarded(&self.ema));
        let grads = Input::new(backend, grads);
        let state = AdamState {
            params: params.view_mut(),
            grads: grads.view(),
            m: m.view_mut(),
            v: v.view_mut(),
            ema: ema.as_mut().map(Guarded::view_mut),
            clip: None,
        };
        let scalars = scalars(backend, h);
        let loss = Input::new(backend, &[0.5]);
        backend.adam_step(scalars.view(), Some(loss.view()), state).unwrap();
        let ema = ema.map_or(self.ema.clone(), |ema| ema.read(backend));
        Buffers { params: params.read(backend), m: m.read(backend), v: v.read(backend), ema }
    }

    fn elements(&self) -> Vec<Element> {
        let [params, m, v, ema] = [&self.params, &self.m, &self.v, &self.ema].map(|values| to_f64(values));
        (0..params.len()).map(|i| Element { param: params[i], m: m[i], v: v[i], ema: ema[i] }).collect()
    }

    fn check(&self, name: &str, want: &[Element], with_ema: bool) {
        type Part = fn(&Element) -> f64;
        let parts: [(&str, &[f32], Part); 4] = [
            ("weights", &self.params, |e| e.param),
            ("first moment", &self.m, |e| e.m),
            ("second moment", &self.v, |e| e.v),
            ("average", &self.ema, |e| e.ema),
        ];
        for (what, got, part) in &parts[..if with_ema { 4 } else { 3 }] {
            let want: Vec<f64> = want.iter().map(part).collect();
            assert_scaled(&format!("{what} of {name}"), &to_f64(got), &want, norm(&want), TOLERANCE);
        }
    }

    fn all(self) -> Vec<f32> {
        [self.params, self.m, self.v, self.ema].concat()
    }
}

/// A step's numbers on the device.
fn scalars<B: Memory>(backend: &B, h: &AdamParams) -> Input<B> {
    Input::new(backend, &bytemuck::cast::<AdamScalars, [f32; AdamScalars::LEN]>(h.scalars().unwrap()))
}

fn params(decoupled: bool, step: u32) -> AdamParams {
    AdamParams { ema_decay: 0.9, ..AdamParams::new(1e-3, 1e-2, decoupled, step) }
}

#[test]
fn several_steps_of_both_kinds() {
    let cpus = Cpus::new();
    for len in [1, 2, 7, 8, 15, 16, 17, 31, 33, 1000, 100_003] {
        let fill = Fill::new(len as u64);
        let start = Buffers::start(fill.f32s(0, len));
        for (decoupled, with_ema) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut want = vec![start.elements()];
            let gradients: Vec<Vec<f32>> = (1..=3).map(|i| fill.f32s(i, len)).collect();
            for (i, grads) in gradients.iter().enumerate() {
                let h = params(decoupled, i as u32 + 1);
                let step = |(e, g): (&Element, &f32)| adam_step(&h, f64::from(*g), *e);
                want.push(want[i].iter().zip(grads).map(step).collect());
            }
            check_all!(cpus, &format!("{len} weights, decoupled {decoupled}, ema {with_ema}"), |cpu, name| {
                let mut state = start.clone();
                for (i, grads) in gradients.iter().enumerate() {
                    state = state.step(cpu, &params(decoupled, i as u32 + 1), grads, with_ema);
                    state.check(&format!("step {} of {name}", i + 1), &want[i + 1], with_ema);
                }
                state.all()
            });
        }
    }
}

/// From zero weights, so that nothing hides the update; early and late in training, with large and with tiny gradients.
#[test]
fn the_update_itself() {
    let cpus = Cpus::new();
    for (step, size) in [(1, 1.0), (1, 1e-6), (2, 1e3), (1000, 1.0), (250_000, 1e-4)] {
        let fill = Fill::new(u64::from(step));
        let scaled = |index| fill.f32s(index, 77).iter().map(|g| g * size).collect::<Vec<f32>>();
        let grads = scaled(0);
        let start = match step {
            1 => Buffers::start(vec![0.0; 77]),
            _ => {
                Buffers { m: scaled(1), v: scaled(2).iter().map(|v| v * v).collect(), ..Buffers::start(vec![0.0; 77]) }
            }
        };
        let h = params(true, step);
        let want: Vec<Element> =
            start.elements().iter().zip(&grads).map(|(e, g)| adam_step(&h, f64::from(*g), *e)).collect();
        check_all!(cpus, &format!("step {step}, gradients of {size}"), |cpu, name| {
            let got = start.step(cpu, &h, &grads, true);
            got.check(name, &want, true);
            got.all()
        });
    }
}

/// By hand: the first update is lr times the sign of the gradient, whatever its size.
#[test]
fn the_reference_against_pencil_and_paper() {
    let h = AdamParams { eps: 0.0, ..AdamParams::new(0.1, 0.0, true, 1) };
    for grad in [-30.0, 1e-4, 2.0] {
        let new = adam_step(&h, grad, Element { param: 1.0, ..Element::default() });
        assert!((new.param - (1.0 - 0.1 * grad.signum())).abs() < 1e-12);
        assert!((new.ema - new.param).abs() < 1e-15); // decay 0: the average is the weight
    }
    let decayed = AdamParams::new(0.1, 0.5, true, 1);
    assert!((adam_step(&decayed, 0.0, Element { param: 1.0, ..Element::default() }).param - 0.95).abs() < 1e-12);
}

#[test]
fn nothing_moves_without_gradient_and_decay() {
    let cpus = Cpus::new();
    let start = Buffers::start(Fill::new(5).f32s(0, 40));
    check_all!(cpus, "no gradient", |cpu, name| {
        let h = AdamParams { ema_decay: 0.999, ..AdamParams::new(1e-3, 0.0, true, 1) };
        let got = start.step(cpu, &h, &[0.0; 40], true);
        assert_eq!(got.params, start.params, "{name}");
        assert_eq!(got.ema, start.ema, "{name}: the average of what does not move");
        got.all()
    });
}

#[test]
fn wrong_lengths_are_errors() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let step = |lengths: [usize; 5]| {
        let grads = Input::new(cpu, &vec![1.0; lengths[0]]);
        let [mut params, mut m, mut v, mut ema] = [1, 2, 3, 4].map(|i| Guarded::from(cpu, &vec![1.0; lengths[i]]));
        let (ema, params) = (Some(ema.view_mut()), params.view_mut());
        let state = AdamState { params, grads: grads.view(), m: m.view_mut(), v: v.view_mut(), ema, clip: None };
        cpu.adam_step(scalars(cpu, &AdamParams::new(1e-3, 0.0, true, 1)).view(), None, state)
    };
    step([33; 5]).unwrap();
    for i in 0..5 {
        let mut short = [33; 5];
        short[i] = 32;
        assert_shape_error(&format!("view {i}"), step(short));
    }
}

/// Where the loss is not finite nothing moves: weights, moments and averages keep their bits.
#[test]
fn a_loss_that_is_no_number_moves_nothing() {
    let cpus = Cpus::new();
    let h = params(true, 3);
    for loss in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        check_all!(cpus, format!("loss {loss}"), |cpu, name| {
            let fill = Fill::new(9);
            let before: Vec<Vec<f32>> = (0..4).map(|i| fill.f32s(i, 37)).collect();
            let [mut params, mut m, mut v, mut ema] = [0, 1, 2, 3].map(|i| Guarded::from(cpu, &before[i]));
            let (grads, guard) = (Input::new(cpu, &fill.f32s(4, 37)), Input::new(cpu, &[loss]));
            let state = AdamState {
                params: params.view_mut(),
                grads: grads.view(),
                m: m.view_mut(),
                v: v.view_mut(),
                ema: Some(ema.view_mut()),
                clip: None,
            };
            cpu.adam_step(scalars(cpu, &h).view(), Some(guard.view()), state).unwrap();
            cpu.ema_update(scalars(cpu, &h).view(), Some(guard.view()), grads.view(), ema.view_mut()).unwrap();
            for (buffer, before) in [&params, &m, &v, &ema].into_iter().zip(&before) {
                assert_eq!(buffer.read(cpu), *before, "{name}");
            }
            vec![]
        });
    }
}

/// The average alone is the average of the whole step.
#[test]
fn the_average_of_what_is_not_learned() {
    let cpus = Cpus::new();
    let h = params(true, 5);
    for len in [1, 33, 300] {
        let fill = Fill::new(len as u64);
        let (src, old) = (fill.f32s(0, len), fill.f32s(1, len));
        let want: Vec<f64> = to_f64(&old)
            .iter()
            .zip(to_f64(&src))
            .map(|(old, new)| h.ema_decay * old + (1.0 - h.ema_decay) * new)
            .collect();
        check_all!(cpus, format!("{len} statistics"), |cpu, name| {
            let (src, mut ema) = (Input::new(cpu, &src), Guarded::from(cpu, &old));
            cpu.ema_update(scalars(cpu, &h).view(), None, src.view(), ema.view_mut()).unwrap();
            assert_scaled(name, &to_f64(&ema.read(cpu)), &want, norm(&want), TOLERANCE);
            ema.read(cpu)
        });
    }
}
