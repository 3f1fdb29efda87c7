//! Split, order, flips, batches: properties, over many keys.

use crate::support::Place;
use ddim_engine::data::{self, DataSpec, FlipKey, Silent, epoch_order, fill_batch, split};
use proptest::prelude::*;

fn sorted(mut v: Vec<u32>) -> Vec<u32> {
    v.sort_unstable();
    v
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_split_has_every_picture_once(len in 2usize..500, fraction in 0.0f64..1.0, seed: u64) {
        let s = split(len, fraction, seed).expect("a split");
        prop_assert_eq!(sorted([s.train.clone(), s.valid.clone()].concat()), (0..len as u32).collect::<Vec<_>>());
        let want = len as f64 * fraction;
        prop_assert!((s.valid.len() as f64 - want).abs() <= 1.0, "{} for {want}", s.valid.len());
        prop_assert!(!s.train.is_empty() && (fraction == 0.0) == s.valid.is_empty());
        prop_assert_eq!(s, split(len, fraction, seed).expect("again"));
    }

    #[test]
    fn an_epoch_has_every_picture_as_often_as_asked(n in 1u32..200, repeat in 1usize..6, seed: u64, epoch in 0u64..1000) {
        let train: Vec<u32> = (0..n).map(|i| i * 3 + 1).collect();
        let order = epoch_order(&train, repeat, seed, epoch);
        prop_assert_eq!(sorted(order.clone()), sorted(train.repeat(repeat)));
        prop_assert_eq!(order, epoch_order(&train, repeat, seed, epoch));
    }

    #[test]
    fn flips_depend_on_the_position_not_on_the_batch(seed: u64, epoch in 0u64..50, first in 0u64..10_000, cut in 0usize..17) {
        let key = FlipKey { seed, epoch, first_position: first };
        let later = FlipKey { first_position: first + cut as u64, ..key };
        for i in cut..17 {
            prop_assert_eq!(key.flips(i), later.flips(i - cut));
        }
    }
}

#[test]
fn splits_and_orders_differ_by_their_keys() {
    assert_ne!(split(100, 0.2, 0).expect("split"), split(100, 0.2, 1).expect("split"));
    let train: Vec<u32> = (0..100).collect();
    assert_ne!(epoch_order(&train, 1, 0, 0), epoch_order(&train, 1, 0, 1));
    assert_ne!(epoch_order(&train, 1, 0, 0), epoch_order(&train, 1, 1, 0));
    assert_ne!(epoch_order(&train, 1, 0, 0), train);
    assert!(epoch_order(&[], 3, 0, 0).is_empty());
}

#[test]
fn a_split_is_fair() {
    // Over many seeds each picture is kept about a fifth of the time.
    let mut kept = [0u32; 20];
    for seed in 0..2000 {
        split(20, 0.2, seed).expect("split").valid.iter().for_each(|&i| kept[i as usize] += 1);
    }
    assert!(kept.iter().all(|&n| (320..480).contains(&n)), "{kept:?}"); // 400, deviation 18
}

#[test]
fn small_splits_and_bad_fractions() {
    assert_eq!(split(2, 0.01, 0).expect("split").valid.len(), 1);
    assert_eq!(split(2, 0.99, 0).expect("split").train.len(), 1);
    assert_eq!(split(1, 0.0, 0).expect("split").train, [0]);
    for (len, fraction) in [(1, 0.2), (0, 0.2), (10, 1.0), (10, -0.1), (10, f64::NAN), (10, f64::INFINITY)] {
        assert_eq!(split(len, fraction, 0).expect_err("refused").exit_code(), 2, "{len} {fraction}");
    }
}

#[test]
fn batches_copy_and_mirror() {
    for channels in [1, 3, 4] {
        let spec = DataSpec { channels, procedural_count: 40, ..DataSpec::new("procedural", 8) };
        let ds = data::load(&spec, &Silent).expect("pictures");
        let indices: Vec<u32> = (0..200).map(|i| (i * 7) % 40).collect();
        let mut plain = vec![0; indices.len() * ds.image_bytes()];
        fill_batch(&ds, &indices, None, &mut plain);
        for (one, &i) in plain.chunks_exact(ds.image_bytes()).zip(&indices) {
            assert_eq!(one, ds.image(i as usize));
        }
        let key = FlipKey { seed: 5, epoch: 2, first_position: 1000 };
        let mut flipped = vec![0; plain.len()];
        fill_batch(&ds, &indices, Some(key), &mut flipped);
        let mut mirrored = 0;
        for (i, (one, was)) in
            flipped.chunks_exact(ds.image_bytes()).zip(plain.chunks_exact(ds.image_bytes())).enumerate()
        {
            if key.flips(i) {
                mirrored += 1;
                for (row, was) in one.chunks_exact(8 * channels).zip(was.chunks_exact(8 * channels)) {
                    let back: Vec<u8> = was.chunks_exact(channels).rev().flatten().copied().collect();
                    assert_eq!(row, back);
                }
            } else {
                assert_eq!(one, was);
            }
        }
        assert!((70..130).contains(&mirrored), "{mirrored} of 200"); // 100, deviation 7
    }
}

#[test]
fn flips_change_with_seed_and_epoch() {
    let key = FlipKey { seed: 0, epoch: 0, first_position: 0 };
    let bits = |key: FlipKey| (0..64).map(|i| key.flips(i)).collect::<Vec<_>>();
    assert_ne!(bits(key), bits(FlipKey { epoch: 1, ..key }));
    assert_ne!(bits(key), bits(FlipKey { seed: 1, ..key }));
}

#[test]
#[should_panic(expected = "fill_batch: length of the output")]
fn a_wrong_output_length_is_a_defect_of_the_caller() {
    let place = Place::new();
    place.put_many(2);
    let ds = data::load(&place.spec(8, 1), &Silent).expect("pictures");
    fill_batch(&ds, &[0, 1], None, &mut [0; 127]);
}
