//! The naive truth of the levels, for tests.

/// (rates [N, 2], timesteps `[N]`, weights `[N]`) of `times` from a table [T, 4]. The product with T is taken in float32, as devices
/// take it: which level a time falls into is not a matter of rounding.
pub fn gather_levels(table: &[f64], times: &[f32]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let rows: Vec<&[f64]> = table.chunks(4).collect();
    let row = |u: &f32| rows[((u * rows.len() as f32) as usize).min(rows.len() - 1)];
    let picked: Vec<&[f64]> = times.iter().map(row).collect();
    let column = |c: usize| picked.iter().map(|row| row[c]).collect();
    (picked.iter().flat_map(|row| [row[0], row[1]]).collect(), column(2), column(3))
}
