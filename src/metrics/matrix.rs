//! Features of pictures as a matrix, and products of such matrices in float64: blocks of rows, in parallel, cut by shape alone.

use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Rows of a block: a block of products with some thousand columns stays within a few MB.
const BLOCK: usize = 256;

/// Features of pictures, a row for each: [n, d].
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Pictures.
    pub n: usize,
    /// Features of a picture.
    pub d: usize,
    /// `n * d` values, a picture's together.
    pub values: Vec<f32>,
}

impl Features {
    /// Features [n, d] of `values.len() / d` pictures.
    ///
    /// # Errors
    /// Not a whole number of rows, or values that are not finite.
    pub fn new(d: usize, values: Vec<f32>) -> Result<Self> {
        if d == 0 || !values.len().is_multiple_of(d) {
            return Err(Error::Shape { op: "features", what: format!("{} values are no rows of {d}", values.len()) });
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let what = format!("feature {} of picture {} is {}", i % d, i / d, values[i]);
            return Err(Error::Failed(format!("{what}: the network of features has damaged weights")));
        }
        Ok(Features { n: values.len() / d, d, values })
    }

    /// The features of picture `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.d..][..self.d]
    }

    /// Rows by their numbers, in that order.
    pub fn rows(&self, of: &[u32]) -> Features {
        let values = of.iter().flat_map(|&i| self.row(i as usize)).copied().collect();
        Features { n: of.len(), d: self.d, values }
    }

    /// [d, n], float64: the same values, read as columns.
    pub(super) fn columns(&self) -> DMatrix<f64> {
        DMatrix::from_iterator(self.d, self.n, self.values.iter().map(|&v| f64::from(v)))
    }

    /// Mean of each feature.
    pub fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.d];
        for row in self.values.chunks_exact(self.d) {
            mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v));
        }
        mean.iter_mut().for_each(|m| *m /= self.n as f64);
        mean
    }
}

/// What `each` makes of the products of blocks of rows of `a` [n, d] with all columns of `b` [d, m]: of the number of the first row and the
/// block [rows, m]. In order.
pub(super) fn by_blocks<T: Send>(
    a: &Features,
    b: &DMatrix<f64>,
    each: impl Fn(usize, DMatrix<f64>) -> T + Sync,
) -> Vec<T> {
    let block = |(i, rows): (usize, &[f32])| {
        let n = rows.len() / a.d;
        let rows = DMatrix::from_row_iterator(n, a.d, rows.iter().map(|&v| f64::from(v)));
        each(i * BLOCK, rows * b)
    };
    a.values.par_chunks(BLOCK * a.d).enumerate().map(block).collect()
}

/// `a` [n, k] times `b` [k, m], in parallel.
pub(super) fn product(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    let starts: Vec<usize> = (0..b.ncols()).step_by(BLOCK).collect();
    let part = |&from: &usize| a * b.columns(from, BLOCK.min(b.ncols() - from));
    let parts: Vec<DMatrix<f64>> = starts.par_iter().map(part).collect();
    // Columns lie one after the other in memory.
    DMatrix::from_iterator(a.nrows(), b.ncols(), parts.iter().flat_map(|part| part.iter().copied()))
}
