//! The bookkeeping of an arena: chunks obtained from the device, best-fit blocks inside them. Holds no memory itself, so that
//! CPU and GPU share it.
//!
//! Placement depends only on the sequence of `take` and `give` calls. A training step that starts with nothing live therefore
//! gets the same addresses every time, which is what lets a step be captured as a graph and what keeps pages warm on a CPU.

use std::collections::BTreeMap;

/// Where a block lies: chunk number, and offset and length in elements (the length is rounded up to the granule).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the chunk.
    pub chunk: usize,
    /// First element.
    pub offset: usize,
    /// Elements taken, at least what was asked for.
    pub len: usize,
}

/// Elements in the smallest unit: 64 bytes, a cache line and an AVX-512 vector.
const GRANULE: usize = 16;

/// Free-list allocator over chunks.
#[derive(Debug, Default)]
pub struct Arena {
    /// Free blocks of each chunk: offset to length; neighbours are always merged.
    chunks: Vec<BTreeMap<usize, usize>>,
    live: usize,
    peak: usize,
}

impl Arena {
    /// Takes a block of at least `len` elements, the smallest free one that fits, the first among equals.
    /// `None`: a new chunk of at least [`Arena::granules`]`(len)` elements is needed, see [`Arena::add_chunk`].
    pub fn take(&mut self, len: usize) -> Option<Place> {
        let len = Self::granules(len);
        let (size, chunk, offset) = self
            .chunks
            .iter()
            .enumerate()
            .flat_map(|(i, free)| free.iter().map(move |(&offset, &size)| (size, i, offset)))
            .filter(|&(size, _, _)| size >= len)
            .min()?;
        let free = &mut self.chunks[chunk];
        free.remove(&offset);
        if size > len {
            free.insert(offset + len, size - len);
        }
        self.live += len;
        self.peak = self.peak.max(self.live);
        Some(Place { chunk, offset, len })
    }

    /// Returns a block.
    pub fn give(&mut self, place: Place) {
        let free = &mut self.chunks[place.chunk];
        let (mut offset, mut len) = (place.offset, place.len);
        if let Some((&before, &size)) = free.range(..offset).next_back()
            && before + size == offset
        {
            free.remove(&before);
            offset = before;
            len += size;
        }
        if let Some(size) = free.remove(&(place.offset + place.len)) {
            len += size;
        }
        free.insert(offset, len);
        self.live -= place.len;
    }

    /// Adds an empty chunk of `len` elements and returns its index.
    pub fn add_chunk(&mut self, len: usize) -> usize {
        self.chunks.push(BTreeMap::from([(0, len)]));
        self.chunks.len() - 1
    }

    /// `len` rounded up to whole granules, at least one.
    pub fn granules(len: usize) -> usize {
        len.max(1).div_ceil(GRANULE) * GRANULE
    }

    /// Elements in use now, and the most in use at once.
    pub fn usage(&self) -> (usize, usize) {
        (self.live, self.peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_disjoint_and_everything_comes_back(ops in prop::collection::vec((1usize..500, 0usize..8), 1..200)) {
            let mut arena = Arena::default();
            let mut live: Vec<Place> = Vec::new();
            for (len, action) in ops {
                if action < 5 || live.is_empty() {
                    let place = arena.take(len).unwrap_or_else(|| {
                        arena.add_chunk(4096);
                        arena.take(len).unwrap()
                    });
                    prop_assert!(place.len >= len && place.offset % GRANULE == 0);
                    for other in &live {
                        let apart = place.chunk != other.chunk
                            || place.offset + place.len <= other.offset
                            || other.offset + other.len <= place.offset;
                        prop_assert!(apart);
                    }
                    live.push(place);
                } else {
                    arena.give(live.swap_remove(len % live.len()));
                }
                prop_assert_eq!(arena.usage().0, live.iter().map(|p| p.len).sum::<usize>());
            }
            for place in live {
                arena.give(place);
            }
            prop_assert_eq!(arena.usage().0, 0);
            prop_assert!(arena.chunks.iter().all(|c| c.len() == 1 && c.get(&0) == Some(&4096)));
        }
    }

    #[test]
    fn the_same_sequence_gets_the_same_places() {
        let mut arena = Arena::default();
        arena.add_chunk(1 << 20);
        let mut step = || {
            let a: Vec<Place> = (1..50).map(|i| arena.take(i * 37).unwrap()).collect();
            let places = a.clone();
            a.into_iter().rev().for_each(|p| arena.give(p));
            places
        };
        assert_eq!(step(), step());
    }
}
