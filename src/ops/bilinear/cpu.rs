//! Bilinear interpolation on the CPU: a row of an output is a unit of work.

use super::{Bilinear, BilinearDims};
use crate::device::cpu::Cpu;
use crate::error::Result;

/// The two pixels that an output lies between, and the weight of the second.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    second: usize,
    weight: f32,
}

fn places(extent: usize, out: usize) -> Vec<Place> {
    let scale = extent as f64 / out as f64;
    let of = |i: usize| {
        let at = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let first = (at as usize).min(extent - 1);
        Place { first, second: (first + 1).min(extent - 1), weight: (at - first as f64) as f32 }
    };
    (0..out).map(of).collect()
}

impl Bilinear for Cpu {
    fn bilinear(&self, d: &BilinearDims, x: &[f32], y: &mut [f32]) -> Result<()> {
        d.check(x.len(), y.len())?;
        let [h, w, c, out_h, out_w] = [d.h, d.w, d.c, d.out_h, d.out_w].map(|e| e as usize);
        let (rows, columns) = (places(h, out_h), places(w, out_w));
        let jobs: Vec<_> = y.chunks_exact_mut(out_w * c).enumerate().collect();
        self.for_each_vectorized(jobs, |(at, y)| {
            let (image, row) = (&x[at / out_h * h * w * c..][..h * w * c], rows[at % out_h]);
            let (above, below) = (&image[row.first * w * c..][..w * c], &image[row.second * w * c..][..w * c]);
            let f = row.weight;
            for (y, column) in y.chunks_exact_mut(c).zip(&columns) {
                let (left, right, g) = (column.first * c, column.second * c, column.weight);
                for i in 0..c {
                    let over = (1.0 - g) * above[left + i] + g * above[right + i];
                    let under = (1.0 - g) * below[left + i] + g * below[right + i];
                    y[i] = (1.0 - f) * over + f * under;
                }
            }
        });
        Ok(())
    }
}
