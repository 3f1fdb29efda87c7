//! Embeddings in float64, straight from their definition; positional angles are rounded where PyTorch rounds them.

use super::TimestepDims;

/// emb [N, C], positional.
pub fn positional(d: &TimestepDims, timesteps: &[f64]) -> Vec<f64> {
    let half = d.c as usize / 2;
    let angle = |t: f64, i: usize| {
        let exponent = -(10_000f64.ln() as f32) * i as f32 / (half as f32 - d.freq_shift as f32);
        f64::from(t as f32 * f64::from(exponent).exp() as f32)
    };
    let row = |&t: &f64| {
        let sines = (0..half).map(|i| angle(t, i).sin());
        let cosines = (0..half).map(|i| angle(t, i).cos());
        let mut row: Vec<f64> =
            if d.flip != 0 { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
        row.resize(d.c as usize, 0.0);
        row
    };
    timesteps.iter().flat_map(row).collect()
}

/// emb [N, C], fourier.
pub fn fourier(d: &TimestepDims, timesteps: &[f64], frequencies: &[f64]) -> Vec<f64> {
    let row = |t: &f64| {
        let angle = |w: &f64| std::f64::consts::TAU * w * t.ln();
        let sines = frequencies.iter().map(move |w| angle(w).sin());
        let cosines = frequencies.iter().map(move |w| angle(w).cos());
        sines.chain(cosines).collect::<Vec<_>>()
    };
    debug_assert_eq!(frequencies.len() * 2, d.c as usize);
    timesteps.iter().flat_map(row).collect()
}
