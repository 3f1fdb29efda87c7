//! Embeddings on the CPU: a few numbers per image.

use std::f64::consts::TAU;

use super::{Embed, TimestepDims};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::expect_len;

const OP: &str = "embed";

/// Frequencies that an embedding needs half as many of as channels, where that can be.
pub(super) fn check(d: &TimestepDims, timesteps: usize, frequencies: Option<usize>, emb: usize) -> Result<()> {
    let half = d.c / 2;
    let usable = match frequencies {
        Some(_) => d.c > 0 && d.c.is_multiple_of(2),
        None => half > d.freq_shift,
    };
    if d.n == 0 || !usable {
        return Err(Error::Shape { op: OP, what: format!("unusable extents {d:?}") });
    }
    expect_len(OP, "timesteps", timesteps, d.n as usize)?;
    if let Some(frequencies) = frequencies {
        expect_len(OP, "frequencies", frequencies, half as usize)?;
    }
    expect_len(OP, "emb", emb, d.n as usize * d.c as usize)
}

/// Channels of a class table, where the views fit each other; the number of classes.
pub(super) fn check_classes(labels: usize, table: usize, emb: usize) -> Result<(usize, usize)> {
    let c = emb.checked_div(labels).unwrap_or(0);
    if c == 0 || emb != labels * c || table == 0 || !table.is_multiple_of(c) {
        let what = format!("{labels} labels, a table of {table} and embeddings of {emb} elements do not fit");
        return Err(Error::Shape { op: OP, what });
    }
    Ok((c, table / c))
}

/// The row of a label, where there is one.
fn row(label: f32, classes: usize) -> Option<usize> {
    (label >= 0.0 && label < classes as f32).then_some(label as usize)
}

impl Embed for Cpu {
    fn embed_timesteps(
        &self,
        d: &TimestepDims,
        timesteps: &[f32],
        frequencies: Option<&[f32]>,
        emb: &mut [f32],
    ) -> Result<()> {
        check(d, timesteps.len(), frequencies.map(<[f32]>::len), emb.len())?;
        let half = d.c as usize / 2;
        for (&t, emb) in timesteps.iter().zip(emb.chunks_exact_mut(d.c as usize)) {
            let (sines, cosines) = if d.flip != 0 && frequencies.is_none() { (half, 0) } else { (0, half) };
            emb.fill(0.0);
            for i in 0..half {
                let angle = match frequencies {
                    Some(w) => TAU * f64::from(w[i]) * f64::from(t).ln(),
                    None => {
                        let exponent = -(10_000f64.ln() as f32) * i as f32 / (half as f32 - d.freq_shift as f32);
                        f64::from(t * f64::from(exponent).exp() as f32)
                    }
                };
                emb[sines + i] = angle.sin() as f32;
                emb[cosines + i] = angle.cos() as f32;
            }
        }
        Ok(())
    }

    fn embed_classes(&self, labels: &[f32], table: &[f32], emb: &mut [f32]) -> Result<()> {
        let (c, classes) = check_classes(labels.len(), table.len(), emb.len())?;
        for (&label, emb) in labels.iter().zip(emb.chunks_exact_mut(c)) {
            match row(label, classes) {
                Some(row) => emb.iter_mut().zip(&table[row * c..]).for_each(|(emb, t)| *emb += t),
                None => emb.fill(f32::NAN),
            }
        }
        Ok(())
    }

    fn embed_classes_backward(&self, labels: &[f32], demb: &[f32], dtable: &mut [f32]) -> Result<()> {
        let (c, classes) = check_classes(labels.len(), dtable.len(), demb.len())?;
        for (&label, demb) in labels.iter().zip(demb.chunks_exact(c)) {
            if let Some(row) = row(label, classes) {
                dtable[row * c..][..c].iter_mut().zip(demb).for_each(|(d, g)| *d += g);
            }
        }
        Ok(())
    }

    fn divide_by_timesteps(&self, timesteps: &[f32], x: &mut [f32]) -> Result<()> {
        if timesteps.is_empty() || !x.len().is_multiple_of(timesteps.len()) {
            let what = format!("{} elements are not whole images of {} timesteps", x.len(), timesteps.len());
            return Err(Error::Shape { op: OP, what });
        }
        let per_image = x.len() / timesteps.len();
        for (&t, x) in timesteps.iter().zip(x.chunks_exact_mut(per_image)) {
            x.iter_mut().for_each(|x| *x /= t);
        }
        Ok(())
    }
}
