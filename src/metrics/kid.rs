//! Kernel inception distance (Bińkowski et al. 2018, "Demystifying MMD GANs"): the squared maximum mean discrepancy of two sets of
//! features x [n, d], y [m, d] under the kernel k(a, b) = (a.b / d + 1)^3, by its unbiased estimate
//!
//! ```text
//! sum_{i != j} k(x_i, x_j) / (n (n - 1))  +  sum_{i != j} k(y_i, y_j) / (m (m - 1))  -  2 sum_{i, j} k(x_i, y_j) / (n m)
//! ```
//!
//! It may be below 0, and is 0 on average for two sets of the same distribution, whatever their sizes. Mean and deviation (of the
//! population, as the published implementations have it) are over random subsets.

use super::matrix::{Features, by_blocks};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// Sets of at most so many pictures have their kernels computed once, for all subsets.
const WHOLE: usize = 4096;

/// Pictures of a subset, and how many subsets, where nothing is asked for.
pub const SUBSET_SIZE: usize = 1000;
/// See [`SUBSET_SIZE`].
pub const SUBSETS: usize = 100;

/// Mean and deviation over subsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kid {
    /// Mean.
    pub mean: f64,
    /// Standard deviation (of the population).
    pub std: f64,
}

impl Kid {
    /// Of single estimates.
    pub fn of(estimates: &[f64]) -> Self {
        let n = estimates.len() as f64;
        let mean = estimates.iter().sum::<f64>() / n;
        let std = (estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n).sqrt();
        Kid { mean, std }
    }
}

/// A subset: pictures of the first and of the second set.
pub type Subset = (Vec<u32>, Vec<u32>);

/// Values of the kernel between two sets, row major.
struct Kernel {
    m: usize,
    values: Vec<f64>,
}

impl Kernel {
    fn new(x: &Features, y: &Features) -> Self {
        let (columns, d) = (y.columns(), x.d as f64);
        let blocks = by_blocks(x, &columns, |_, dots| {
            // Transposed, the rows of the block lie one after the other.
            let rows = dots.transpose();
            rows.iter().map(|dot| (dot / d + 1.0).powi(3)).collect::<Vec<f64>>()
        });
        Kernel { m: y.n, values: blocks.concat() }
    }

    /// Sum over all pairs; those of a row first.
    fn sum(&self, x: &[u32], y: &[u32]) -> f64 {
        let row = |&i: &u32| {
            let row = &self.values[i as usize * self.m..][..self.m];
            y.iter().map(|&j| row[j as usize]).sum::<f64>()
        };
        x.iter().map(row).sum()
    }

    /// Of a kernel of a set with itself: over all pairs of different pictures.
    fn sum_of_others(&self, x: &[u32]) -> f64 {
        let own: f64 = x.iter().map(|&i| self.values[i as usize * self.m + i as usize]).sum();
        self.sum(x, x) - own
    }
}

/// The three kernels of two sets.
struct Kernels {
    xx: Kernel,
    yy: Kernel,
    xy: Kernel,
}

impl Kernels {
    fn new(x: &Features, y: &Features) -> Self {
        Kernels { xx: Kernel::new(x, x), yy: Kernel::new(y, y), xy: Kernel::new(x, y) }
    }

    /// The unbiased estimate for a subset.
    fn estimate(&self, x: &[u32], y: &[u32]) -> f64 {
        let (n, m) = (x.len() as f64, y.len() as f64);
        self.xx.sum_of_others(x) / (n * (n - 1.0)) + self.yy.sum_of_others(y) / (m * (m - 1.0))
            - 2.0 * self.xy.sum(x, y) / (n * m)
    }
}

fn all(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

fn check(x: &Features, y: &Features) -> Result<()> {
    if x.d != y.d {
        return Err(Error::Shape { op: "kid", what: format!("{} and {} features of a picture", x.d, y.d) });
    }
    if x.n < 2 || y.n < 2 {
        return Err(Error::Failed(format!("KID of {} and {} pictures: each set must have at least 2", x.n, y.n)));
    }
    Ok(())
}

/// The estimate for two whole sets.
///
/// # Errors
/// Fewer than 2 pictures in a set, or features of different lengths.
pub fn estimate(x: &Features, y: &Features) -> Result<f64> {
    check(x, y)?;
    Ok(Kernels::new(x, y).estimate(&all(x.n), &all(y.n)))
}

/// Mean and deviation of the estimates for given subsets. `told` hears of each that is done.
///
/// # Errors
/// As [`estimate`]; subsets of fewer than 2 pictures, or of pictures that are not there.
pub fn over_subsets(x: &Features, y: &Features, subsets: &[Subset], told: &mut dyn FnMut()) -> Result<Kid> {
    check(x, y)?;
    let fits = |of: &[u32], n: usize| of.len() >= 2 && of.iter().all(|&i| (i as usize) < n);
    if subsets.is_empty() || subsets.iter().any(|(a, b)| !fits(a, x.n) || !fits(b, y.n)) {
        return Err(Error::Shape { op: "kid", what: "subsets need at least 2 pictures of each set".into() });
    }
    let whole = (x.n <= WHOLE && y.n <= WHOLE).then(|| Kernels::new(x, y));
    let estimate = |(a, b): &Subset| {
        let estimate = match &whole {
            Some(kernels) => kernels.estimate(a, b),
            None => Kernels::new(&x.rows(a), &y.rows(b)).estimate(&all(a.len()), &all(b.len())),
        };
        told();
        estimate
    };
    Ok(Kid::of(&subsets.iter().map(estimate).collect::<Vec<f64>>()))
}

/// Pictures of a subset of sets of `n` and `m`: [`SUBSET_SIZE`], or half of the smaller set where that has fewer, so that subsets differ.
pub fn default_subset_size(n: usize, m: usize) -> usize {
    match n.min(m) {
        least if least >= SUBSET_SIZE => SUBSET_SIZE,
        least => (least / 2).max(2),
    }
}

/// `count` random subsets of `size` pictures of each of two sets of `n` and `m`, without repetition within one.
///
/// # Errors
/// A size below 2 or above that of a set.
pub fn subsets(n: usize, m: usize, count: usize, size: usize, seed: u64) -> Result<Vec<Subset>> {
    if size < 2 || size > n.min(m) {
        let what = format!("--subset-size {size}: expected 2 to {}, the pictures of the smaller set", n.min(m));
        return Err(Error::Usage(what));
    }
    let draw = |subset: usize, set: u64, n: usize| {
        let mut order = all(n);
        Stream::new(seed, Purpose::Subset, subset as u64, set).reader().shuffle(&mut order);
        order.truncate(size);
        order
    };
    Ok((0..count).map(|subset| (draw(subset, 0, n), draw(subset, 1, m))).collect())
}
