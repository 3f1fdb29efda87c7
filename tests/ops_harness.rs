//! The tests' own tools: what they must refuse, they refuse.

mod ops_support;

use ddim_engine::device::Memory;
use ddim_engine::error::{Error, Result};
use ops_support::{Cpus, GUARD, Guarded, Input, assert_close, assert_shape_error, max_error};

#[test]
#[should_panic(expected = "relative error NaN")]
fn a_nan_is_not_close() {
    assert_close("nan", &[1.0, f32::NAN], &[1.0, 2.0], 1e9);
}

#[test]
#[should_panic(expected = "lengths")]
fn fewer_results_are_not_close() {
    assert_close("short", &[1.0], &[1.0, 2.0], 1e9);
}

#[test]
fn the_worst_error_is_found() {
    assert_eq!(max_error(&[1.0, 2.5, 3.0], &[1.0, 2.0, 3.25]), (0.5, 1));
    assert_eq!(max_error(&[1.0, f64::NAN, 9.0], &[1.0, 2.0, 3.0]), (f64::INFINITY, 1));
}

/// An output of five whose room is written to at `at`.
fn write_beside(at: usize) {
    let cpus = Cpus::new();
    let mut output = Guarded::output(cpus.best(), 5);
    output.room_mut()[at] = 0.0;
    output.read(cpus.best());
}

#[test]
#[should_panic(expected = "written in front")]
fn a_write_in_front_is_seen() {
    write_beside(GUARD - 1);
}

#[test]
#[should_panic(expected = "written behind")]
fn a_write_behind_is_seen() {
    write_beside(GUARD + 5);
}

#[test]
fn what_is_read_beside_an_input_is_nan() {
    let cpus = Cpus::new();
    let cpu = cpus.best();
    let input = Input::new(cpu, &[1.0, 2.0]);
    assert_eq!(input.view(), [1.0, 2.0]);
    let output = Guarded::output(cpu, 3);
    assert!(output.read(cpu).iter().all(|v| v.is_nan()), "outputs start as NaN");
    let fresh = cpu.alloc(GUARD).unwrap();
    assert!(fresh.as_slice().iter().all(|v| v.is_nan()), "new memory is poisoned");
}

#[test]
#[should_panic(expected = "differ from those of one thread")]
fn results_that_depend_on_threads_are_refused() {
    Cpus::new().check("threads", |cpu, _| vec![cpu.threads() as f32]);
}

#[test]
#[should_panic(expected = "expected a shape error")]
fn another_error_is_no_shape_error() {
    let other: Result<()> = Err(Error::Failed("something else".into()));
    assert_shape_error("other", other);
}
