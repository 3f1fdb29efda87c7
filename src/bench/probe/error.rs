//! How far results are from their float64 reference.

/// Largest |got - want| over the largest |want| (over 1 where all are 0); infinite where a result is not a number.
pub(in crate::bench) fn error_of(got: &[f64], want: &[f64]) -> Option<f64> {
    let mut worst = 0.0f64;
    let mut largest = 0.0f64;
    if got.len() != want.len() || got.is_empty() {
        return None;
    }
    for (got, want) in got.iter().zip(want) {
        let difference = (got - want).abs();
        worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
        largest = largest.max(want.abs());
    }
    Some(if largest > 0.0 { worst / largest } else { worst })
}

/// The worse of two errors, where there are any.
pub(super) fn worse(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// The first `len` elements, or all where there are fewer.
pub(super) fn first(values: &[f64], len: usize) -> &[f64] {
    &values[..len.min(values.len())]
}

#[cfg(test)]
mod tests {
    use super::error_of;

    #[test]
    fn errors_are_relative_to_the_largest_and_see_what_is_no_number() {
        assert_eq!(error_of(&[1.0, 3.9], &[1.0, 4.0]), Some((3.9f64 - 4.0).abs() / 4.0));
        assert_eq!(error_of(&[f64::NAN, 4.0], &[1.0, 4.0]), Some(f64::INFINITY));
        assert_eq!(error_of(&[0.5], &[0.0]), Some(0.5));
        assert_eq!(error_of(&[], &[]), None);
    }
}
