//! Flowers made by the program, so that training visibly works with nothing downloaded: a picture is a pure function of (seed, index,
//! size, channels), the same bits on every machine.
//!
//! `scene.rs` draws what is in the picture from a Philox stream, `paint.rs` computes the colour of a pixel, `maths.rs` has the few
//! functions that both need. A scene does not depend on the size, so the same picture can be had at any.

use rayon::prelude::*;

use super::decode::luma;
use crate::rng::{Purpose, Stream};
use scene::Scene;

mod maths;
mod paint;
mod scene;

/// Goes up when the same index would give another picture.
pub(super) const VERSION: u32 = 2;

/// Below this size a picture is the average of a larger one: its details are smaller than what the edges' antialiasing can follow.
const DIRECT: usize = 32;

/// Makes picture `index` of `seed` in `out`: `size * size * channels` bytes, NHWC, `channels` 1, 3 or 4.
///
/// With 4 channels the flower and its leaves are cut out: the background is transparent white.
///
/// # Panics
/// Where `out` has another length or `channels` is another number: defects of the caller.
pub fn render_one(seed: u64, index: u64, size: usize, channels: usize, out: &mut [u8]) {
    assert!(matches!(channels, 1 | 3 | 4), "render_one: {channels} channels");
    assert_eq!(out.len(), size * size * channels, "render_one: length of the output for {size}x{size}x{channels}");
    let scene = Scene::new(&mut Stream::new(seed, Purpose::Picture, 0, index).reader());
    let fold = DIRECT.div_ceil(size).max(1);
    let (fine, cut_out) = (size * fold, channels == 4);
    let pixel = 2.0 / fine as f32;
    let at = |i: usize| (i as f32 + 0.5) * pixel - 1.0;
    for (y, row) in out.chunks_exact_mut(size * channels).enumerate() {
        for (x, out) in row.chunks_exact_mut(channels).enumerate() {
            // Averages are of colour times coverage, so that transparent samples do not tint the rest.
            let (mut sum, mut weight, mut cover) = ([0.0f32; 3], 0.0, 0.0);
            for (sy, sx) in (0..fold * fold).map(|i| (i / fold, i % fold)) {
                let (colour, alpha) = paint::pixel(&scene, at(x * fold + sx), at(y * fold + sy), pixel, cut_out);
                let share = if cut_out { alpha } else { 1.0 };
                for i in 0..3 {
                    sum[i] += colour[i] * share;
                }
                weight += share;
                cover += alpha;
            }
            let alpha = byte(cover / (fold * fold) as f32);
            // What rounds to fully transparent is white, so that one background has one value.
            let rgb = if cut_out && alpha == 0 { [255; 3] } else { sum.map(|v| byte(v / weight)) };
            match out {
                [grey] => *grey = luma(rgb[0], rgb[1], rgb[2]),
                [r, g, b] => [*r, *g, *b] = rgb,
                [r, g, b, a] => {
                    [*r, *g, *b] = rgb;
                    *a = alpha;
                }
                _ => {}
            }
        }
    }
}

/// Makes pictures `first..` of `seed`, as many as `out` holds, in parallel.
///
/// # Panics
/// As [`render_one`].
pub fn render(seed: u64, first: u64, size: usize, channels: usize, out: &mut [u8]) {
    out.par_chunks_mut(size * size * channels)
        .enumerate()
        .for_each(|(i, out)| render_one(seed, first + i as u64, size, channels, out));
}

/// As [`render`] from picture 0, telling of every few pictures done.
pub(super) fn render_all(seed: u64, size: usize, channels: usize, out: &mut [u8], advance: impl Fn(u64) + Sync) {
    const TOGETHER: usize = 32;
    let bytes = size * size * channels;
    out.par_chunks_mut(bytes * TOGETHER).enumerate().for_each(|(block, out)| {
        for (i, out) in out.chunks_exact_mut(bytes).enumerate() {
            render_one(seed, (block * TOGETHER + i) as u64, size, channels, out);
        }
        advance((out.len() / bytes) as u64);
    });
}

fn byte(v: f32) -> u8 {
    (v * 255.0 + 0.5).clamp(0.0, 255.0) as u8
}
