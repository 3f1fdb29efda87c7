//! Precision and recall of generated pictures by nearest neighbours (Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for
//! Assessing Generative Models").
//!
//! Around every picture of a set lies a ball that reaches to its k-th nearest neighbour in that set. Precision: the share of generated
//! pictures in a ball of a real one. Recall: the share of real pictures in a ball of a generated one.

use super::matrix::{Features, by_blocks};
use crate::error::{Error, Result};

/// Which neighbour the balls reach to, as the paper has it.
pub const K: usize = 3;

/// Precision and recall.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of generated pictures among real ones.
    pub precision: f64,
    /// Share of real pictures among generated ones.
    pub recall: f64,
}

/// Both, with balls that reach to the `k`-th neighbour.
///
/// # Errors
/// A set of at most `k` pictures, or features of different lengths.
pub fn precision_recall(real: &Features, generated: &Features, k: usize) -> Result<PrecisionRecall> {
    if real.d != generated.d {
        let what = format!("{} and {} features of a picture", real.d, generated.d);
        return Err(Error::Shape { op: "precision and recall", what });
    }
    if k == 0 || real.n.min(generated.n) <= k {
        let what = format!("precision and recall of {} and {} pictures", real.n, generated.n);
        return Err(Error::Failed(format!("{what}: each set must have more than {k}")));
    }
    let (real, generated) = (Set::new(real, k), Set::new(generated, k));
    Ok(PrecisionRecall { precision: real.share_of(&generated), recall: generated.share_of(&real) })
}

/// Squared distance, without cancellation.
fn exact(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// A set with the squared radii of its balls.
struct Set<'a> {
    features: &'a Features,
    columns: nalgebra::DMatrix<f64>,
    norms: Vec<f64>,
    radii: Vec<f64>,
}

impl<'a> Set<'a> {
    fn new(features: &'a Features, k: usize) -> Self {
        let norm = |i: usize| features.row(i).iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let norms: Vec<f64> = (0..features.n).map(norm).collect();
        let columns = features.columns();
        let of_block = |first: usize, dots: nalgebra::DMatrix<f64>| {
            let radius = |row: usize| {
                let i = first + row;
                let mut others: Vec<(f64, usize)> =
                    (0..features.n).filter(|&j| j != i).map(|j| (norms[j] - 2.0 * dots[(row, j)], j)).collect();
                let (_, kth, _) = others.select_nth_unstable_by(k - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                exact(features.row(i), features.row(kth.1))
            };
            (0..dots.nrows()).map(radius).collect::<Vec<f64>>()
        };
        let radii = by_blocks(features, &columns, of_block).concat();
        Set { features, columns, norms, radii }
    }

    /// Share of the pictures of `other` that lie in a ball of this set, its surface included.
    fn share_of(&self, other: &Set<'_>) -> f64 {
        let of_block = |first: usize, dots: nalgebra::DMatrix<f64>| {
            let inside = |row: usize, j: usize| {
                let (i, norms) = (first + row, self.norms[j] + other.norms[first + row]);
                let beyond = norms - 2.0 * dots[(row, j)] - self.radii[j];
                // What rounding could decide is looked at closely.
                let clear = 1e-9 * norms;
                match beyond {
                    b if b > clear => false,
                    b if b < -clear => true,
                    _ => exact(other.features.row(i), self.features.row(j)) <= self.radii[j],
                }
            };
            (0..dots.nrows()).filter(|&row| (0..self.features.n).any(|j| inside(row, j))).count()
        };
        let inside: usize = by_blocks(other.features, &self.columns, of_block).into_iter().sum();
        inside as f64 / other.features.n as f64
    }
}
