//! Distances of sets of features against published implementations (torch-fidelity, pytorch-fid, clean-fid, prdc), whose figures
//! `fixtures/metrics/make.py` wrote down, and against what must hold of any sets.

use std::path::Path;

use ddim_engine::error::Error;
use ddim_engine::metrics::matrix::Features;
use ddim_engine::metrics::{fid, kid, neighbours};
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::train::tensor_file;
use serde_json::Value;

const CASES: [&str; 4] = ["more_pictures", "more_features", "one_fat_one_thin", "whole_sets"];

struct Case {
    real: Features,
    generated: Features,
    expected: Value,
}

impl Case {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics");
        let tensors = tensor_file::read(&folder.join("features.safetensors")).unwrap().tensors;
        let set = |which: &str| {
            let tensor = tensors.iter().find(|t| t.name == format!("{name}.{which}")).unwrap();
            Features::new(tensor.shape[1], tensor.data.clone()).unwrap()
        };
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        Case { real: set("real"), generated: set("generated"), expected: expected[name].clone() }
    }

    fn subsets(&self) -> Vec<kid::Subset> {
        serde_json::from_value(self.expected["subsets"].clone()).unwrap()
    }

    /// What the implementations that know `figure` say.
    fn of(&self, figure: &str) -> Vec<(String, f64)> {
        let all = self.expected.as_object().unwrap().iter();
        let found: Vec<_> = all.filter_map(|(who, says)| Some((who.clone(), says.get(figure)?.as_f64()?))).collect();
        assert!(!found.is_empty(), "{figure}");
        found
    }
}

#[track_caller]
fn assert_near(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance, "{what}: {got} is not {want}");
}

#[test]
fn kernel_distances_are_those_of_published_implementations() {
    for name in CASES {
        let case = Case::read(name);
        let mut told = 0;
        let got = kid::over_subsets(&case.real, &case.generated, &case.subsets(), &mut || told += 1).unwrap();
        assert_eq!(told, case.subsets().len());
        for (who, want) in case.of("kid_mean") {
            assert_near(got.mean, want, 1e-10, &format!("{name}: {who}, mean"));
        }
        for (who, want) in case.of("kid_std") {
            assert_near(got.std, want, 1e-10, &format!("{name}: {who}, deviation"));
        }
    }
    let case = Case::read("whole_sets");
    let whole = kid::estimate(&case.real, &case.generated).unwrap();
    for (who, want) in case.of("kid") {
        assert_near(whole, want, 1e-10, &who);
    }
}

#[test]
fn frechet_distances_are_those_of_published_implementations() {
    for name in CASES {
        let case = Case::read(name);
        let got = fid::distance(&case.real, &case.generated).unwrap();
        let back = fid::distance(&case.generated, &case.real).unwrap();
        assert_near(back, got, 1e-9, name);
        for (who, want) in case.of("fid") {
            // Without full rank the published root is of eigenvalues that are 0 but for rounding.
            assert_near(got, want, 1e-6, &format!("{name}: {who}"));
        }
    }
}

#[test]
fn precision_and_recall_are_those_of_published_implementations() {
    for name in CASES {
        let case = Case::read(name);
        let got = neighbours::precision_recall(&case.real, &case.generated, neighbours::K).unwrap();
        // torch-fidelity gives float32.
        for (who, want) in case.of("precision") {
            assert_near(got.precision, want, 1e-6, &format!("{name}: {who}, precision"));
        }
        for (who, want) in case.of("recall") {
            assert_near(got.recall, want, 1e-6, &format!("{name}: {who}, recall"));
        }
    }
}

/// `n` rows of `d` positive values that vary less and less.
fn features(seed: u64, n: usize, d: usize) -> Features {
    let mut values = vec![0.0; n * d];
    Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut values);
    for (i, value) in values.iter_mut().enumerate() {
        *value = value.abs() / ((1 + i % d) as f32).sqrt();
    }
    Features::new(d, values).unwrap()
}

#[test]
fn a_set_is_at_no_distance_from_itself() {
    for (n, d) in [(40, 12), (12, 40), (300, 7)] {
        let set = features(1, n, d);
        assert_near(fid::distance(&set, &set).unwrap(), 0.0, 1e-6, "FID");
        let same = neighbours::precision_recall(&set, &set, 3).unwrap();
        assert_eq!((same.precision, same.recall), (1.0, 1.0));
    }
    // Copies of one picture: every ball has the radius 0, and what is not that picture lies in none.
    let one = features(3, 1, 20);
    let copies = one.rows(&[0; 9]);
    let others = features(4, 9, 20);
    let mixed = Features::new(20, [&copies.values[..60], &others.values[..]].concat()).unwrap();
    assert_eq!(neighbours::precision_recall(&copies, &mixed, 3).unwrap().precision, 3.0 / 12.0);
}

/// Constant features, and more pictures than features: the covariance has no full rank, and its factor is of that rank.
#[test]
fn frechet_distance_with_features_that_never_fire() {
    let (a, b) = (features(5, 50, 6), features(6, 40, 6));
    let padded = |set: &Features| {
        let rows = set.values.chunks(6).flat_map(|row| row.iter().copied().chain([0.0, 0.0, 0.5]));
        Features::new(9, rows.collect()).unwrap()
    };
    let (want, got) = (fid::distance(&a, &b).unwrap(), fid::distance(&padded(&a), &padded(&b)).unwrap());
    assert_near(got, want, 1e-9, "padded");
}

/// Two normal distributions of one dimension: (m1 - m2)^2 + (s1 - s2)^2.
#[test]
fn frechet_distance_of_one_feature() {
    let (a, b) = (Features::new(1, vec![0.0, 2.0]).unwrap(), Features::new(1, vec![4.0, 5.0, 9.0]).unwrap());
    let want = 25.0 + (2.0f64.sqrt() - 7.0f64.sqrt()).powi(2);
    assert_near(fid::distance(&a, &b).unwrap(), want, 1e-12, "one feature");
}

/// Large sets have their kernels computed subset by subset.
#[test]
fn subsets_of_large_sets_give_the_same() {
    let (x, y) = (features(7, 4200, 6), features(8, 300, 6));
    let subsets = kid::subsets(x.n, y.n, 3, 50, 9).unwrap();
    let large = kid::over_subsets(&x, &y, &subsets, &mut || ()).unwrap();
    let single: Vec<f64> = subsets.iter().map(|(a, b)| kid::estimate(&x.rows(a), &y.rows(b)).unwrap()).collect();
    assert_eq!(large, kid::Kid::of(&single));
    let small = kid::over_subsets(&x.rows(&(0..300).collect::<Vec<u32>>()), &y, &[subset(20)], &mut || ()).unwrap();
    let alone = kid::estimate(&x.rows(&subset(20).0), &y.rows(&subset(20).1)).unwrap();
    assert_near(small.mean, alone, 1e-12, "whole kernel");
}

fn subset(n: u32) -> kid::Subset {
    ((0..n).collect(), (5..5 + n).collect())
}

#[test]
fn subsets_have_no_picture_twice() {
    let subsets = kid::subsets(30, 20, 5, 15, 1).unwrap();
    assert_eq!(subsets, kid::subsets(30, 20, 5, 15, 1).unwrap());
    assert_ne!(subsets, kid::subsets(30, 20, 5, 15, 2).unwrap());
    for (a, b) in &subsets {
        for (set, n) in [(a, 30), (b, 20)] {
            let mut sorted = set.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert!(sorted.len() == 15 && sorted.iter().all(|&i| i < n));
        }
    }
    assert!(subsets.windows(2).all(|pair| pair[0] != pair[1]));
    assert_eq!([(5000, 1000), (999, 4000), (3, 9)].map(|(n, m)| kid::default_subset_size(n, m)), [1000, 499, 2]);
}

#[test]
fn sets_that_cannot_be_compared_are_refused() {
    let (few, wide, set) = (features(1, 1, 4), features(1, 5, 5), features(2, 5, 4));
    assert!(matches!(kid::estimate(&few, &set), Err(Error::Failed(why)) if why.contains("at least 2")));
    assert!(matches!(fid::distance(&set, &few), Err(Error::Failed(why)) if why.contains("at least 2")));
    assert!(
        matches!(neighbours::precision_recall(&set, &set.rows(&[0, 1, 2]), 3), Err(Error::Failed(why)) if why.contains("more than 3"))
    );
    assert!(matches!(kid::estimate(&wide, &set), Err(Error::Shape { .. })));
    assert!(matches!(fid::distance(&wide, &set), Err(Error::Shape { .. })));
    assert!(matches!(kid::subsets(5, 9, 1, 6, 0), Err(Error::Usage(why)) if why.contains("2 to 5")));
    assert!(
        matches!(Features::new(2, vec![0.0, f32::NAN]), Err(Error::Failed(why)) if why.contains("feature 1 of picture 0"))
    );
}

/// A measurement, made where it is asked for: `DDIM_MEASURE=2000 cargo test --release --test metrics_parity -- --nocapture time_of_many`.
#[test]
fn time_of_many_pictures() {
    let Some(n) = std::env::var("DDIM_MEASURE").ok().and_then(|n| n.parse::<usize>().ok()) else { return };
    let (x, y) = (features(1, n, 2048), features(2, n, 2048));
    let began = std::time::Instant::now();
    println!("FID {} in {:.1?}", fid::distance(&x, &y).unwrap(), began.elapsed());
    let began = std::time::Instant::now();
    let subsets = kid::subsets(n, n, 100, kid::default_subset_size(n, n), 0).unwrap();
    println!("{:?} in {:.1?}", kid::over_subsets(&x, &y, &subsets, &mut || ()).unwrap(), began.elapsed());
    let began = std::time::Instant::now();
    println!("{:?} in {:.1?}", neighbours::precision_recall(&x, &y, 3).unwrap(), began.elapsed());
}
