//! 256 colours for a picture of many: a palette of its own for each GIF frame, and errors spread so that soft gradients do not band.
//!
//! Colours are gathered in 32 x 32 x 32 cells. Boxes of cells are split at the mean of the axis that varies most, the box of the
//! largest squared error first, until there are enough; a few rounds of k-means then move the palette to where the colours are.
//! Colours that cover much of the picture, such as the background of a grid, get an exact entry and stay flat. (NeuQuant, which
//! the `gif` crate offers, was tried and left saturated colours up to 150 levels off.)

use std::collections::HashMap;

type Colour = [u8; 3];

/// A colour that fills at least this share of a picture is kept exactly; there are at most as many, far fewer in practice.
const FLAT_SHARE: usize = 200;
/// Rounds of k-means.
const ROUNDS: usize = 4;
/// The most levels that a pixel takes from its neighbours. Where the palette lies to one side of all colours of a region, errors
/// would grow along it until they show as dots of a wholly different colour.
const MOST_ERROR: f32 = 12.0;

/// A palette of at most 256 colours, and the index of each pixel. Exact where the picture has no more colours than that.
pub(crate) fn quantise(rgb: &[u8], width: usize) -> (Vec<u8>, Vec<u8>) {
    let mut counts: HashMap<Colour, usize> = HashMap::new();
    for p in rgb.chunks_exact(3) {
        *counts.entry([p[0], p[1], p[2]]).or_default() += 1;
    }
    let few = counts.len() <= 256;
    let least = rgb.len() / 3 / FLAT_SHARE;
    // In order, because a hash map's own order is different in every run.
    let mut exact: Vec<Colour> = counts.iter().filter(|&(_, &n)| few || n > least).map(|(&c, _)| c).collect();
    exact.sort_unstable();
    let index: HashMap<Colour, u8> = exact.iter().enumerate().map(|(i, &c)| (c, i as u8)).collect();
    if few {
        let indices = rgb.chunks_exact(3).map(|p| index[&[p[0], p[1], p[2]]]).collect();
        return (exact.concat(), indices);
    }
    let mut palette = exact;
    let cells = cells(counts.into_iter().filter(|(colour, _)| !index.contains_key(colour)));
    let chosen = choose(cells, 256 - palette.len());
    palette.extend(chosen);
    let indices = dither(rgb, width, &palette, &index);
    (palette.concat(), indices)
}

/// Colours that lie close together: how many pixels, and their mean.
#[derive(Clone, Copy)]
struct Cell {
    weight: f32,
    mean: [f32; 3],
}

/// The cells that hold a colour, in a fixed order.
fn cells(counts: impl Iterator<Item = (Colour, usize)>) -> Vec<Cell> {
    // Whole numbers add up to the same in any order.
    let mut sums = vec![[0u64; 4]; 1 << 15];
    for (colour, n) in counts {
        let [r, g, b] = colour.map(usize::from);
        let sum = &mut sums[(r >> 3) << 10 | (g >> 3) << 5 | b >> 3];
        sum[0] += n as u64;
        for (sum, value) in sum[1..].iter_mut().zip(colour) {
            *sum += n as u64 * u64::from(value);
        }
    }
    let cell = |[n, r, g, b]: [u64; 4]| Cell { weight: n as f32, mean: [r, g, b].map(|v| v as f32 / n as f32) };
    sums.into_iter().filter(|sum| sum[0] > 0).map(cell).collect()
}

/// Cells of one palette entry to be, their mean, and where they differ most.
struct Group {
    cells: Vec<Cell>,
    mean: [f32; 3],
    axis: usize,
    /// Squared error along `axis`, of all pixels together.
    error: f32,
}

impl Group {
    fn new(cells: Vec<Cell>) -> Self {
        let weight: f32 = cells.iter().map(|c| c.weight).sum();
        let moment = |f: &dyn Fn(&Cell) -> f32| cells.iter().map(|c| c.weight * f(c)).sum::<f32>();
        let mean = [0, 1, 2].map(|axis| moment(&|c| c.mean[axis]) / weight);
        let errors = [0, 1, 2].map(|axis| moment(&|c| (c.mean[axis] - mean[axis]).powi(2)));
        let axis = (0..3).fold(0, |best, axis| if errors[axis] > errors[best] { axis } else { best });
        Group { mean, axis, error: if cells.len() > 1 { errors[axis] } else { 0.0 }, cells }
    }
}

/// At most `count` colours that stand for the cells.
fn choose(cells: Vec<Cell>, count: usize) -> Vec<Colour> {
    let mut groups = vec![Group::new(cells.clone())];
    while groups.len() < count {
        let worst = (0..groups.len()).fold(0, |w, i| if groups[i].error > groups[w].error { i } else { w });
        if groups[worst].error <= 0.0 {
            break;
        }
        let Group { cells, mean, axis, .. } = groups.swap_remove(worst);
        // Neither side is empty: the error is not zero, so some lie above the mean and some do not.
        let (low, high): (Vec<Cell>, Vec<Cell>) = cells.into_iter().partition(|c| c.mean[axis] <= mean[axis]);
        groups.extend([low, high].into_iter().filter(|side| !side.is_empty()).map(Group::new));
    }
    let to_colour = |mean: [f32; 3]| mean.map(|v| v.round() as u8);
    let mut colours: Vec<Colour> = groups.into_iter().map(|group| to_colour(group.mean)).collect();
    for _ in 0..ROUNDS {
        let mut sums = vec![[0.0f32; 4]; colours.len()];
        let table = Table::new(&colours);
        for cell in &cells {
            let sum = &mut sums[table.nearest(cell.mean)];
            sum[0] += cell.weight;
            (0..3).for_each(|c| sum[c + 1] += cell.weight * cell.mean[c]);
        }
        for (colour, [weight, sum @ ..]) in colours.iter_mut().zip(sums) {
            if weight > 0.0 {
                *colour = to_colour(sum.map(|v| v / weight));
            }
        }
    }
    colours
}

/// A palette by channel, which lets the search for the nearest entry run in vector registers.
struct Table {
    channels: [[i32; 256]; 3],
}

impl Table {
    fn new(colours: &[Colour]) -> Self {
        // Unused entries repeat the first, which comes before them.
        let first = colours.first().copied().unwrap_or_default();
        let at = |i: usize| colours.get(i).copied().unwrap_or(first);
        Table { channels: [0, 1, 2].map(|c| std::array::from_fn(|i| i32::from(at(i)[c]))) }
    }

    /// The first of the nearest entries.
    fn nearest(&self, colour: [f32; 3]) -> usize {
        let [r, g, b] = colour.map(|v| v.round() as i32);
        let mut least = i32::MAX;
        for i in 0..256 {
            let (r, g, b) = (self.channels[0][i] - r, self.channels[1][i] - g, self.channels[2][i] - b);
            // Distance and index in one number (26 bits), so that one minimum finds both.
            least = least.min((r * r + g * g + b * b) << 8 | i as i32);
        }
        (least & 255) as usize
    }
}

/// Indices of the nearest colours, each pixel's error spread over its neighbours to the right and below (Floyd and Steinberg).
fn dither(rgb: &[u8], width: usize, palette: &[Colour], exact: &HashMap<Colour, u8>) -> Vec<u8> {
    let table = Table::new(palette);
    // Errors carried into this row and the next, with a column of slack on both sides.
    let mut here = vec![[0.0f32; 3]; width + 2];
    let mut below = here.clone();
    let mut indices = Vec::with_capacity(rgb.len() / 3);
    for row in rgb.chunks_exact(width * 3) {
        for (x, p) in row.chunks_exact(3).enumerate() {
            // Flat colours take no error from their neighbours, and have none to give.
            if let Some(&index) = exact.get(&[p[0], p[1], p[2]]) {
                indices.push(index);
                continue;
            }
            let wanted: [f32; 3] = std::array::from_fn(|c| {
                let error = here[x + 1][c].clamp(-MOST_ERROR, MOST_ERROR);
                (f32::from(p[c]) + error).clamp(0.0, 255.0)
            });
            let index = table.nearest(wanted);
            indices.push(index as u8);
            for c in 0..3 {
                let error = (wanted[c] - f32::from(palette[index][c])) / 16.0;
                here[x + 2][c] += error * 7.0;
                below[x][c] += error * 3.0;
                below[x + 1][c] += error * 5.0;
                below[x + 2][c] += error;
            }
        }
        std::mem::swap(&mut here, &mut below);
        below.fill([0.0; 3]);
    }
    indices
}
