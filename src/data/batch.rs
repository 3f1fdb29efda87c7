//! From a dataset to batches: the split, the order of an epoch, copies with flips. Everything is a function of its keys: a resumed run
//! needs no state.

use super::Dataset;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// Indices of training and validation pictures; together each picture once, both in random order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Pictures to learn from.
    pub train: Vec<u32>,
    /// Pictures kept for validation. Any prefix is a random sample.
    pub valid: Vec<u32>,
}

/// Splits `len` pictures at random: `valid_fraction` of them, rounded, for validation, but at least one on either side where the
/// fraction is above 0.
///
/// # Errors
/// [`Error::Usage`] for a fraction outside [0, 1), or a positive one with fewer than 2 pictures.
pub fn split(len: usize, valid_fraction: f64, seed: u64) -> Result<Split> {
    if !(0.0..1.0).contains(&valid_fraction) {
        return Err(Error::Usage(format!("valid_fraction is {valid_fraction}; expected at least 0 and below 1")));
    }
    let count =
        u32::try_from(len).map_err(|_| Error::Usage(format!("{len} pictures; at most {} can be used", u32::MAX)))?;
    if valid_fraction > 0.0 && len < 2 {
        return Err(Error::Usage(format!(
            "valid_fraction is {valid_fraction}, but with {len} picture(s) both sides cannot have one; give at least 2, or set it to 0"
        )));
    }
    let mut train: Vec<u32> = (0..count).collect();
    Stream::new(seed, Purpose::Split, 0, 0).reader().shuffle(&mut train);
    let kept =
        if valid_fraction > 0.0 { ((len as f64 * valid_fraction).round() as usize).clamp(1, len - 1) } else { 0 };
    let valid = train.split_off(len - kept);
    Ok(Split { train, valid })
}

/// The pictures of an epoch: each of `train` `repeat` times, shuffled. A function of (`train`, `repeat`, `seed`, `epoch`) alone.
pub fn epoch_order(train: &[u32], repeat: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order = train.repeat(repeat);
    Stream::new(seed, Purpose::Order, epoch, 0).reader().shuffle(&mut order);
    order
}

/// What random horizontal flips of a batch depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlipKey {
    /// Seed of the run.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
    /// Position in the epoch of the first picture of the batch, over all devices.
    pub first_position: u64,
}

impl FlipKey {
    /// Whether picture `i` of the batch is mirrored: one bit of the stream of its position, so batch size and number of devices do not
    /// matter.
    pub fn flips(&self, i: usize) -> bool {
        Stream::new(self.seed, Purpose::Flip, self.epoch, self.first_position + i as u64).block(0)[0] >> 31 == 1
    }
}

/// Copies the pictures `indices` into `out`, one after the other, half of them mirrored left to right where `flip` is given.
///
/// # Panics
/// Where `out` is not `indices.len()` pictures long or an index is out of range: a defect of the caller.
pub fn fill_batch(ds: &Dataset, indices: &[u32], flip: Option<FlipKey>, out: &mut [u8]) {
    let bytes = ds.image_bytes();
    assert_eq!(
        out.len(),
        indices.len() * bytes,
        "fill_batch: length of the output and bytes of {} pictures",
        indices.len()
    );
    for (i, (&index, out)) in indices.iter().zip(out.chunks_exact_mut(bytes)).enumerate() {
        let image = ds.image(index as usize);
        if flip.is_some_and(|key| key.flips(i)) {
            match ds.channels() {
                1 => mirror::<1>(image, ds.image_size(), out),
                3 => mirror::<3>(image, ds.image_size(), out),
                _ => mirror::<4>(image, ds.image_size(), out),
            }
        } else {
            out.copy_from_slice(image);
        }
    }
}

/// Copies rows of `width` pixels of `C` bytes with the pixels of each row in reverse.
fn mirror<const C: usize>(image: &[u8], width: usize, out: &mut [u8]) {
    for (row, out) in image.chunks_exact(width * C).zip(out.chunks_exact_mut(width * C)) {
        for (pixel, out) in row.chunks_exact(C).rev().zip(out.chunks_exact_mut(C)) {
            out.copy_from_slice(pixel);
        }
    }
}
