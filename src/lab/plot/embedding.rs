//! The sinusoidal embedding of the noise level as a heat map.

use super::{Anchor, Colour, Drawing, Mark, Text};
use crate::error::{Error, Result};
use crate::ops::schedule::reference;
use crate::train::picture::Picture;

const EDGE: f64 = 12.0;
const PLOT: (f64, f64) = (480.0, 256.0);
const LEFT: f64 = 62.0;
const TOP: f64 = 44.0;
/// Samples over the width of a pixel.
const SAMPLES: usize = 16;

/// Rows: the `dim` channels of the embedding; from left to right the squared noise rate from 0 to 1.
///
/// # Errors
/// `dim` is odd or 0.
pub fn drawing(dim: usize) -> Result<Drawing> {
    if dim == 0 || !dim.is_multiple_of(2) || dim > 4096 {
        return Err(Error::Usage(format!("--embedding-dim {dim}: expected an even number from 2 to 4096")));
    }
    let across = 2 * PLOT.0 as usize;
    // A column is the mean over its width: the fastest waves are narrower than a pixel, and a sample of each would show a slow wave
    // that is not there.
    let column = |x: usize| -> Vec<f64> {
        let samples = (0..SAMPLES).map(|k| x as f64 + (k as f64 + 0.5) / SAMPLES as f64);
        let sum = samples.fold(vec![0.0; dim], |mut sum, x| {
            let values = reference::embedding(x / across as f64, dim);
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            sum
        });
        sum.into_iter().map(|sum| sum / SAMPLES as f64).collect()
    };
    let columns: Vec<Vec<f64>> = (0..across).map(column).collect();
    let pixels = (0..dim).flat_map(|row| columns.iter().flat_map(move |column| colour(column[row]))).collect();
    let picture = Picture::new(across, dim, 3, pixels)?;
    let title = format!("Sinusoidal embedding, {dim} channels");
    let bar_left = LEFT + PLOT.0 + 22.0;
    let mut out = Drawing::new(title.as_str(), bar_left + 12.0 + 34.0 + EDGE, TOP + PLOT.1 + 44.0);
    out.text(Text::new((EDGE, EDGE + 13.0), title, 15.0).bold());
    out.marks.push(Mark::Picture { at: (LEFT, TOP), size: PLOT, picture });
    for i in 0..=5 {
        let x = LEFT + PLOT.0 * f64::from(i) / 5.0;
        out.line((x, TOP + PLOT.1), (x, TOP + PLOT.1 + 4.0), Colour::INK, 1.0);
        let label = format!("{:.1}", f64::from(i) / 5.0);
        out.text(Text::new((x, TOP + PLOT.1 + 17.0), label, 11.0).anchored(Anchor::Middle));
    }
    let middle = (LEFT + PLOT.0 / 2.0, TOP + PLOT.1 + 34.0);
    out.text(Text::new(middle, "squared noise rate", 12.0).anchored(Anchor::Middle));
    // The first half are sines, the second cosines, each from the slowest wave to the fastest.
    let waves = [("sin, slow", 0.0), ("sin, fast", 0.5), ("cos, slow", 0.5), ("cos, fast", 1.0)];
    for (i, (label, share)) in waves.into_iter().enumerate() {
        let down = if i % 2 == 0 { 11.0 } else { -3.0 };
        out.text(Text::new((LEFT - 7.0, TOP + PLOT.1 * share + down), label, 11.0).anchored(Anchor::End));
    }
    let steps = 64;
    for i in 0..steps {
        let value = 1.0 - 2.0 * (f64::from(i) + 0.5) / f64::from(steps);
        let [r, g, b] = colour(value);
        let at = (bar_left, TOP + PLOT.1 * f64::from(i) / f64::from(steps));
        // Half a unit higher than its share, so that no line shows between neighbours.
        let size = (12.0, PLOT.1 / f64::from(steps) + if i + 1 < steps { 0.5 } else { 0.0 });
        out.marks.push(Mark::Area { at, size, colour: Colour(r, g, b, 1.0) });
    }
    for (label, share) in [("1", 0.0), ("0", 0.5), ("−1", 1.0)] {
        out.text(Text::new((bar_left + 18.0, TOP + PLOT.1 * share + 4.0), label, 11.0));
    }
    Ok(out)
}

/// -1 blue, 0 white, 1 orange.
fn colour(value: f64) -> [u8; 3] {
    let end = if value < 0.0 { [0x00, 0x5a, 0x9c] } else { [0xc8, 0x4a, 0x00] };
    let share = value.abs().min(1.0);
    end.map(|end: u8| (255.0 + (f64::from(end) - 255.0) * share).round() as u8)
}
