//! Frechet inception distance (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule"): the distance of two normal distributions
//! with the means and covariances (unbiased) of two sets of features,
//!
//! ```text
//! |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)
//! ```
//!
//! The root of S1 S2 is never formed: where there are fewer pictures than features the covariances have no full rank, and iterations for
//! such a root break down. With S1 = A^T A and S2 = B^T B, the eigenvalues of S1 S2 are the squares of the singular values of A B^T, so the
//! trace is their sum. A is the centred features themselves over sqrt(n - 1) [n, d], or, where there are more pictures than features, the
//! factor of a pivoted Cholesky decomposition of the covariance [rank, d].

use nalgebra::DMatrix;

use super::matrix::{Features, product};
use crate::error::{Error, Result};

/// The distance of two sets of features.
///
/// # Errors
/// Fewer than 2 pictures in a set, features of different lengths, or singular values that do not converge.
pub fn distance(x: &Features, y: &Features) -> Result<f64> {
    if x.d != y.d {
        return Err(Error::Shape { op: "fid", what: format!("{} and {} features of a picture", x.d, y.d) });
    }
    if x.n < 2 || y.n < 2 {
        return Err(Error::Failed(format!("FID of {} and {} pictures: each set must have at least 2", x.n, y.n)));
    }
    let (mean_x, mean_y) = (x.mean(), y.mean());
    let means: f64 = mean_x.iter().zip(&mean_y).map(|(a, b)| (a - b).powi(2)).sum();
    let (a, b) = (centred(x, &mean_x), centred(y, &mean_y));
    let traces = a.norm_squared() + b.norm_squared();
    let cross = product(&factor(a).transpose(), &factor(b));
    // The decomposition is of the tall matrix.
    let cross = if cross.nrows() < cross.ncols() { cross.transpose() } else { cross };
    let svd = nalgebra::SVD::try_new_unordered(cross, false, false, f64::EPSILON, 0)
        .ok_or_else(|| Error::Failed("FID: the singular values did not converge".into()))?;
    Ok(means + traces - 2.0 * svd.singular_values.sum())
}

/// Features less their mean over sqrt(n - 1): [d, n], so that its product with its transpose is the covariance.
fn centred(x: &Features, mean: &[f64]) -> DMatrix<f64> {
    let scale = 1.0 / ((x.n - 1) as f64).sqrt();
    let value = |(i, &v): (usize, &f32)| (f64::from(v) - mean[i % x.d]) * scale;
    DMatrix::from_iterator(x.d, x.n, x.values.iter().enumerate().map(value))
}

/// F [d, r] with F F^T = A A^T of `a` [d, n], r at most d.
fn factor(a: DMatrix<f64>) -> DMatrix<f64> {
    if a.ncols() <= a.nrows() {
        return a;
    }
    cholesky(product(&a, &a.transpose()))
}

/// F [d, rank] with F F^T = s [d, d], positive semidefinite: Cholesky's decomposition with the largest remaining diagonal first (Higham 2002,
/// "Accuracy and Stability of Numerical Algorithms", section 10.3), ended where only rounding is left.
fn cholesky(s: DMatrix<f64>) -> DMatrix<f64> {
    let d = s.nrows();
    let mut rest: Vec<f64> = s.diagonal().iter().copied().collect();
    let floor = rest.iter().fold(0.0f64, |most, &v| most.max(v)) * d as f64 * f64::EPSILON;
    let mut done = vec![false; d];
    let mut f = DMatrix::zeros(d, d);
    for r in 0..d {
        let left = (0..d).filter(|&i| !done[i]);
        let Some(pivot) = left.max_by(|&a, &b| rest[a].total_cmp(&rest[b])).filter(|&i| rest[i] > floor) else {
            return f.columns(0, r).into_owned();
        };
        let root = rest[pivot].sqrt();
        // Column r: what the columns before leave of the pivot's column.
        let weights = f.view((pivot, 0), (1, r)).transpose();
        let mut column = s.column(pivot).into_owned();
        column.gemv(-1.0, &f.columns(0, r), &weights.column(0), 1.0);
        done[pivot] = true;
        for i in 0..d {
            let value = if i == pivot { root } else { column[i] / root };
            // Rows of earlier pivots are exactly 0 from here on.
            f[(i, r)] = if done[i] && i != pivot { 0.0 } else { value };
            rest[i] -= f[(i, r)].powi(2);
        }
    }
    f
}
