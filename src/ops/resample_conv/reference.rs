//! The naive float64 truth: the references of the resizes and of the convolution of stride 1, one after the other.

use super::{ResampleConvDims, Resampling};
use crate::ops::conv::Direction;
use crate::ops::conv::reference::{self as conv, Epilogue, Filter, Operand, Prologue};
use crate::ops::resize::reference as resize;

/// y from x, w [9, C, K] and bias `[K]`.
pub fn forward(d: &ResampleConvDims, x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    let run = |x: &[f64]| {
        let epilogue = Epilogue { bias: Some(bias), k0: d.k as usize, ..Epilogue::default() };
        let filter = Filter::plain(w, d.c as usize);
        let dims = d.conv(Direction::Forward);
        conv::conv(&dims, Direction::Forward, Operand::one(x), Prologue::default(), None, filter, epilogue)
    };
    match d.resampling {
        Resampling::Double => run(&resize::double(&d.resize(d.c), x)),
        Resampling::Keep { offset } => resize::keep(&d.resize(d.k), offset, &run(x)),
    }
}

/// Gradients of x, w and the bias.
pub struct Gradients {
    /// As x.
    pub dx: Vec<f64>,
    /// [9, C, K].
    pub dw: Vec<f64>,
    /// `[K]`.
    pub db: Vec<f64>,
}

/// All gradients from `dy`.
pub fn backward(d: &ResampleConvDims, x: &[f64], w: &[f64], dy: &[f64]) -> Gradients {
    let (x, dy) = match d.resampling {
        Resampling::Double => (resize::double(&d.resize(d.c), x), dy.to_vec()),
        Resampling::Keep { offset } => (x.to_vec(), resize::keep_backward(&d.resize(d.k), offset, dy)),
    };
    let grads = conv::wgrad(&d.conv(Direction::Forward), Operand::one(&x), Prologue::default(), None, &dy);
    let (dims, filter) = (d.conv(Direction::Dgrad), Filter::plain(w, d.c as usize));
    let epilogue = Epilogue { k0: d.c as usize, ..Epilogue::default() };
    let dx = conv::conv(&dims, Direction::Dgrad, Operand::one(&dy), Prologue::default(), None, filter, epilogue);
    let dx = match d.resampling {
        Resampling::Double => resize::double_backward(&d.resize(d.c), &dx, None),
        Resampling::Keep { .. } => dx,
    };
    Gradients { dx, dw: grads.dw, db: grads.db }
}
