//! The naive float64 truth of Adam, AdamW and the moving average, for tests.

use super::AdamParams;

/// One parameter with its moments and its average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Element {
    /// Weight.
    pub param: f64,
    /// First moment.
    pub m: f64,
    /// Second moment.
    pub v: f64,
    /// Moving average of the weight.
    pub ema: f64,
}

/// One step of one parameter with gradient `grad`.
pub fn adam_step(h: &AdamParams, grad: f64, old: Element) -> Element {
    let (decayed, grad) = if h.decoupled == 1 {
        (old.param * (1.0 - h.lr * h.weight_decay), grad)
    } else {
        (old.param, grad + h.weight_decay * old.param)
    };
    let m = h.beta1 * old.m + (1.0 - h.beta1) * grad;
    let v = h.beta2 * old.v + (1.0 - h.beta2) * grad * grad;
    let (m_hat, v_hat) = (m / (1.0 - power(h.beta1, h.step)), v / (1.0 - power(h.beta2, h.step)));
    let param = decayed - h.lr * m_hat / (v_hat.sqrt() + h.eps);
    Element { param, m, v, ema: h.ema_decay * old.ema + (1.0 - h.ema_decay) * param }
}

fn power(base: f64, exponent: u32) -> f64 {
    base.powf(f64::from(exponent))
}
