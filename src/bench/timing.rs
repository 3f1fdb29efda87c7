//! Samples of a time, and what is told of them.

use std::time::Instant;

use crate::error::Result;

/// How much is spent on measuring one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Samples.
    pub repeat: usize,
    /// Seconds after which no further sample is taken, once there are three.
    pub budget: f64,
    /// Seconds that a sample should last: shorter calls are repeated within it.
    pub sample_seconds: f64,
    /// Also with empty caches.
    pub cold: bool,
    /// Elements of each of the two buffers that empty the caches.
    pub evict_len: usize,
}

impl Default for Effort {
    /// Ten samples, half a second; caches are emptied with 2 x 64 MiB.
    fn default() -> Self {
        Effort { repeat: 10, budget: 0.5, sample_seconds: 1e-3, cold: true, evict_len: 16 << 20 }
    }
}

/// Times of one thing, in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Sorts.
    pub fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Samples(seconds)
    }

    /// Calls `sample`, which returns its time, as often as the effort allows, at least three times (or as often as it says, if that is less).
    ///
    /// # Errors
    /// What `sample` returns.
    pub fn take(effort: Effort, sample: &mut dyn FnMut() -> Result<f64>) -> Result<Self> {
        let began = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < effort.repeat.max(1) {
            seconds.push(sample()?);
            if seconds.len() >= 3 && began.elapsed().as_secs_f64() > effort.budget {
                break;
            }
        }
        Ok(Self::new(seconds))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The least; NaN where there are none.
    pub fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The median: the upper one of an even number, which a step that is slow once in a while cannot flatter.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The sample below which the share `q` of them lies, to the nearest; NaN where there are none.
    pub fn quantile(&self, q: f64) -> f64 {
        let at = (q * self.0.len().saturating_sub(1) as f64).round() as usize;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// All, in ascending order.
    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// As in result files: median, p20, p80 and n.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "median": self.median(), "p20": self.quantile(0.2), "p80": self.quantile(0.8), "n": self.len(),
        })
    }
}

/// Times of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// One call after the other with the same operands.
    pub hot: Samples,
    /// With operands that no cache holds.
    pub cold: Option<Samples>,
    /// Calls in each hot sample; its time is that of one.
    pub calls: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = Samples::new((1..=11).rev().map(f64::from).collect());
        assert_eq!((samples.least(), samples.median()), (1.0, 6.0));
        assert_eq!((samples.quantile(0.2), samples.quantile(0.8), samples.len()), (3.0, 9.0, 11));
        assert!(Samples::default().median().is_nan() && Samples::default().quantile(0.5).is_nan());
    }

    #[test]
    fn the_budget_ends_sampling_after_three() {
        let effort = Effort { repeat: 100, budget: 0.0, ..Effort::default() };
        assert_eq!(Samples::take(effort, &mut || Ok(1.0)).unwrap().len(), 3);
        assert_eq!(Samples::take(Effort { repeat: 2, ..effort }, &mut || Ok(1.0)).unwrap().len(), 2);
    }
}
