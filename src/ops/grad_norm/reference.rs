//! The naive float64 truth of the norm and its factor, for tests.

use super::EPS;

/// (norm, factor).
pub fn grad_norm(limit: f64, grads: &[f64]) -> (f64, f64) {
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    let factor = if norm.is_finite() { (limit / (norm + EPS)).min(1.0) } else { f64::NAN };
    (norm, factor)
}
