//! Winograd's F(2x2, 3x3): four outputs of a 3x3 filter from 16 products instead of 36 (Lavin and Gray 2015, arXiv:1509.09308).
//!
//! A tile is 2x2 output pixels and the 4x4 input pixels they see. With the 4x4 input `d`, the filter `g` and
//!
//! ```text
//!       | 1  0 -1  0 |        | 1    0    0  |
//! B^T = | 0  1  1  0 |    G = | 1/2  1/2  1/2|    A^T = | 1  1  1  0 |
//!       | 0 -1  1  0 |        | 1/2 -1/2  1/2|          | 0  1 -1 -1 |
//!       | 0  1  0 -1 |        | 0    0    1  |
//!
//! V = B^T d B     U = G g G^T     y = A^T (sum over input channels of U * V) A
//! ```
//!
//! where * is element by element: for each of the 16 positions a product [tiles, C] x [C, K]. All steps are linear, so the
//! gradient of the filter is the transpose: `dU = sum over tiles of V * (A dy A^T)`, `dg = G^T dU G`.
//!
//! For the gradient of the filter M stands for A dy A^T.
//!
//! Positions count row by row, and are worked on a row at a time. V lies as [4][tile][C], M = U * V as [4][tile][K]; positions are
//! a cache line further apart than a power of two, or the streams of a transform would meet in the same sets of the cache.

use super::super::ConvDims;
use super::bands::{Band, Unit};
use crate::device::cpu::simd::Simd;

/// Products of a tile, for each pair of channels.
pub(super) const POSITIONS: usize = 16;
/// Positions that V and M hold at a time: a row of them. With fewer positions there is room for more tiles, and each filter (or sum
/// of its gradient) that comes into the cache serves all of them.
pub(super) const ROW: usize = 4;
/// Cost of the transforms of an input and an output channel of a tile, in multiply-adds: what tiles took beyond their products and a
/// direct convolution beyond its own, measured on AVX2 at 32 channels and 64x64 pixels.
const TRANSFORM_COST: u64 = 100;
/// Floats of V and M together that a batch of tiles aims at: both stay in the second-level cache beside the band.
const BATCH_FLOATS: usize = 64 << 10;
/// Floats between positions beyond their data.
const SKEW: usize = 16;

/// Whether the convolution is cheaper by tiles than directly. Depends on the extents of a picture alone: not on the batch, the
/// machine or the threads.
pub(super) fn wins(d: &ConvDims) -> bool {
    let (h, w, c, k) = (u64::from(d.h), u64::from(d.w), d.c() as u64, u64::from(d.k));
    let tiles = h.div_ceil(2) * w.div_ceil(2);
    d.side == 3 && tiles * (POSITIONS as u64 * c * k + TRANSFORM_COST * (c + k)) < h * w * 9 * c * k
}

/// Tiles of a unit and how they are cut into batches; [`Tiles::batch`] tiles have room in V and M.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    rows: usize,
    columns: usize,
    /// Tiles of the unit.
    pub count: usize,
    /// Tiles of a batch: whole register blocks.
    pub batch: usize,
    /// Floats from tile to tile of V: the channels of the band, or half as many where V is bfloat16.
    pub v_pitch: usize,
    /// Floats from tile to tile of M.
    pub m_pitch: usize,
}

/// A run of neighbouring tiles in one row of tiles: the first tile of the run in its batch, where it stands, and how many.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// Number of the first tile in its batch.
    pub at: usize,
    pub image: usize,
    pub row: usize,
    pub column: usize,
    pub count: usize,
}

impl Tiles {
    /// Batches in whole blocks of `block` tiles.
    pub fn new(d: &ConvDims, unit: &Unit, v_pitch: usize, m_pitch: usize, block: usize) -> Self {
        let (rows, columns) = (unit.rows.div_ceil(2), (d.w as usize).div_ceil(2));
        let count = unit.images * rows * columns;
        let room = (BATCH_FLOATS / (ROW * (v_pitch + m_pitch))).max(block);
        // Of even size: a last batch of few tiles would read all filters for their sake.
        let batch = count.div_ceil(count.div_ceil(room)).next_multiple_of(block);
        Tiles { rows, columns, count, batch, v_pitch, m_pitch }
    }
    /// Floats of V and M.
    pub fn lengths(&self) -> [usize; 2] {
        [ROW * self.v_step(), ROW * self.m_step()]
    }
    /// Floats from position to position of V.
    #[inline(always)]
    pub fn v_step(&self) -> usize {
        self.batch * self.v_pitch + SKEW
    }
    /// Floats from position to position of M.
    #[inline(always)]
    pub fn m_step(&self) -> usize {
        self.batch * self.m_pitch + SKEW
    }
    /// The next run of the batch of tiles `first..end`, from tile `tile` on.
    #[inline(always)]
    pub fn run(&self, first: usize, tile: usize, end: usize) -> Run {
        let (line, column) = (tile / self.columns, tile % self.columns);
        let (left, rest) = (end - tile, self.columns - column);
        let count = if left < rest { left } else { rest };
        Run { at: tile - first, image: line / self.rows, row: 2 * (line % self.rows), column: 2 * column, count }
    }
}

/// Positions `4 i .. 4 i + 4` of V, of the tiles of a run and all channels of the band, as positions 0..4 of `v`; where `PAIRS`
/// rounded to bfloat16, pairs of neighbouring channels in one float.
///
/// # Safety
/// The instruction set of `S`; a band that reaches over all tiles of the unit with whole vectors of channels; V with room for
/// the batch.
#[inline(always)]
pub(super) unsafe fn transform_input_row<S: Simd, const PAIRS: bool>(
    tiles: &Tiles,
    unit: &Unit,
    band: &Band,
    buf: &[f32],
    run: Run,
    i: usize,
    v: &mut [f32],
) {
    let (pitch, line, step) = (band.pitch, band.width * band.pitch, tiles.v_step());
    let in_one = if PAIRS { 2 } else { 1 };
    debug_assert!(pitch == tiles.v_pitch * in_one && pitch.is_multiple_of(S::LANES));
    debug_assert!(run.at + run.count <= tiles.batch);
    // Row i of B^T: the line that counts positive, the other one, and whether that is added.
    let (plus, other, add) = [(0, 2, false), (1, 2, true), (2, 1, false), (1, 3, false)][i];
    // SAFETY: as the function's contract says.
    unsafe {
        let mut x = buf.as_ptr().add(band.offset(unit, run.image, run.row, run.column));
        let mut v = v.as_mut_ptr().add(run.at * tiles.v_pitch);
        for _ in 0..run.count {
            let mut c = 0;
            while c < pitch {
                let (a, b, v) = (x.add(plus * line + c), x.add(other * line + c), v.add(c / in_one));
                let mut d = [S::splat(0.0); 4];
                for (j, d) in d.iter_mut().enumerate() {
                    let (a, b) = (S::load(a.add(j * pitch)), S::load(b.add(j * pitch)));
                    *d = if add { S::add(a, b) } else { S::sub(a, b) };
                }
                let d = [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3])];
                for (j, d) in d.into_iter().enumerate() {
                    if PAIRS {
                        S::store_pairs(v.add(j * step), d);
                    } else {
                        S::store(v.add(j * step), d);
                    }
                }
                c += S::LANES;
            }
            x = x.add(2 * pitch);
            v = v.add(tiles.v_pitch);
        }
    }
}

/// What row `i` of M, given as positions 0..4 of `m`, adds to the outputs of the tiles of a run. `products` of the unit,
/// [pixels, K padded], are set where `first` and the row is the first that an output needs, else added to.
///
/// # Safety
/// The instruction set of `S`; M filled for the batch; `products` of the unit.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the geometry, twice the data, and where in them
pub(super) unsafe fn transform_output_row<S: Simd>(
    tiles: &Tiles,
    d: &ConvDims,
    unit: &Unit,
    m: &[f32],
    run: Run,
    i: usize,
    products: &mut [f32],
    first: bool,
) {
    let (kp, step, w) = (tiles.m_pitch, tiles.m_step(), d.w as usize);
    debug_assert!(run.at + run.count <= tiles.batch && products.len() >= unit.pixels(d) * kp);
    // Column i of A^T: the upper output sums rows 0, 1, 2, the lower one 1, -2, -3.
    let upper = i < 3;
    let lower = i > 0 && run.row + 1 < unit.rows;
    // SAFETY: as the function's contract says; the second row and column are written only where the picture has them.
    unsafe {
        let mut m = m.as_ptr().add(run.at * kp);
        let mut y = products.as_mut_ptr().add(((run.image * unit.rows + run.row) * w + run.column) * kp);
        for t in 0..run.count {
            let two_columns = run.column + 2 * t + 1 < w;
            let mut k = 0;
            while k < kp {
                let (m, y) = (m.add(k), y.add(k));
                let (m0, m1) = (S::load(m), S::load(m.add(step)));
                let (m2, m3) = (S::load(m.add(2 * step)), S::load(m.add(3 * step)));
                let left = S::add(S::add(m0, m1), m2);
                let right = S::sub(S::sub(m1, m2), m3);
                if upper {
                    put::<S>(y, left, first && i == 0, false);
                    if two_columns {
                        put::<S>(y.add(kp), right, first && i == 0, false);
                    }
                }
                if lower {
                    let y = y.add(w * kp);
                    put::<S>(y, left, first && i == 1, i > 1);
                    if two_columns {
                        put::<S>(y.add(kp), right, first && i == 1, i > 1);
                    }
                }
                k += S::LANES;
            }
            m = m.add(kp);
            y = y.add(2 * kp);
        }
    }
}

/// Sets `*y`, or adds to it or takes from it.
#[inline(always)]
unsafe fn put<S: Simd>(y: *mut f32, value: S::V, set: bool, minus: bool) {
    // SAFETY: the caller vouches for the instruction set and the pointer.
    unsafe {
        let value = if set {
            value
        } else if minus {
            S::sub(S::load(y), value)
        } else {
            S::add(S::load(y), value)
        };
        S::store(y, value);
    }
}

/// Positions `4 i .. 4 i + 4` of A dy A^T of the tiles of a run, as positions 0..4 of `m`: the transpose of
/// [`transform_output_row`]. `dy` is that of the unit, [pixels, K padded].
///
/// # Safety
/// The instruction set of `S`; `dy` of the unit; M with room for the batch.
#[inline(always)]
pub(super) unsafe fn transform_gradient_row<S: Simd>(
    tiles: &Tiles,
    d: &ConvDims,
    unit: &Unit,
    dy: &[f32],
    run: Run,
    i: usize,
    m: &mut [f32],
) {
    let (kp, step, w) = (tiles.m_pitch, tiles.m_step(), d.w as usize);
    debug_assert!(run.at + run.count <= tiles.batch && dy.len() >= unit.pixels(d) * kp);
    // Row i of A, (1, 0), (1, 1), (1, -1), (0, -1). What the picture does not have is taken from a place that it has, times 0.
    let below = if run.row + 1 < unit.rows { w * kp } else { 0 };
    let [top, bottom] = [[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, -1.0]][i];
    let bottom = if below == 0 { 0.0 } else { bottom };
    // SAFETY: as the function's contract says; pixels outside the picture are not read.
    unsafe {
        let (top, bottom, zero) = (S::splat(top), S::splat(bottom), S::splat(0.0));
        let mut m = m.as_mut_ptr().add(run.at * kp);
        let mut y = dy.as_ptr().add(((run.image * unit.rows + run.row) * w + run.column) * kp);
        for t in 0..run.count {
            let two_columns = run.column + 2 * t + 1 < w;
            let mut k = 0;
            while k < kp {
                let (y, m) = (y.add(k), m.add(k));
                let a = S::fma(bottom, S::load(y.add(below)), S::mul(top, S::load(y)));
                let mut b = zero;
                if two_columns {
                    b = S::fma(bottom, S::load(y.add(kp + below)), S::mul(top, S::load(y.add(kp))));
                }
                S::store(m, a);
                S::store(m.add(step), S::add(a, b));
                S::store(m.add(2 * step), S::sub(a, b));
                S::store(m.add(3 * step), S::sub(zero, b));
                k += S::LANES;
            }
            m = m.add(kp);
            y = y.add(2 * kp);
        }
    }
}

/// G of a column: four vectors of three.
#[inline(always)]
unsafe fn filter_line<S: Simd>([a, b, c]: [S::V; 3]) -> [S::V; 4] {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let half = S::splat(0.5);
        let (sum, b) = (S::mul(half, S::add(a, c)), S::mul(half, b));
        [a, S::add(sum, b), S::sub(sum, b), c]
    }
}

/// U = G g G^T of `width` filters, whole vectors: `g` holds nine rows of `width`, `u` gets sixteen, `u_step` apart.
///
/// # Safety
/// The instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn transform_filter<S: Simd>(g: &[f32], width: usize, u: &mut [f32], u_step: usize) {
    debug_assert!(width.is_multiple_of(S::LANES) && g.len() >= 9 * width && u.len() >= 15 * u_step + width);
    let mut lane = 0;
    while lane < width {
        // SAFETY: the caller vouches for the instruction set; lengths as above.
        unsafe {
            let g = g.as_ptr().add(lane);
            let mut columns = [[S::splat(0.0); 4]; 3];
            for (s, column) in columns.iter_mut().enumerate() {
                let g = g.add(s * width);
                *column = filter_line::<S>([S::load(g), S::load(g.add(3 * width)), S::load(g.add(6 * width))]);
            }
            let [left, middle, right] = columns;
            for (i, ((a, b), c)) in left.into_iter().zip(middle).zip(right).enumerate() {
                let line = filter_line::<S>([a, b, c]);
                for (j, value) in line.into_iter().enumerate() {
                    S::store(u.as_mut_ptr().add((4 * i + j) * u_step + lane), value);
                }
            }
        }
        lane += S::LANES;
    }
}

/// Tap `t` of dg = G^T dU G of some filters: `u` holds 16 rows of them, `u_step` apart; added to `dst`.
#[inline(always)]
pub(super) fn add_gradient(t: usize, u: &[f32], u_step: usize, dst: &mut [f32]) {
    const COLUMNS: [[f32; 4]; 3] = [[1.0, 0.5, 0.5, 0.0], [0.0, 0.5, -0.5, 0.0], [0.0, 0.5, 0.5, 1.0]];
    for p in 0..POSITIONS {
        let factor = COLUMNS[t / 3][p / 4] * COLUMNS[t % 3][p % 4];
        if factor != 0.0 {
            let row = &u[p * u_step..][..dst.len()];
            dst.iter_mut().zip(row).for_each(|(dst, u)| *dst += factor * u);
        }
    }
}
