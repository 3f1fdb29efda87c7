//! Distances of sets of features.
use ddim_engine::metrics::matrix::Features;
use ddim_engine::metrics::{fid, kid, neighbours};
use ddim_engine::rng::{Purpose, Stream};

#[test]
#[ignore = "a measurement"]
fn time_of_two_thousand_pictures() {
    let n: usize = std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let make = |seed: u64| {
        let mut v = vec![0.0; n * 2048];
        Stream::new(seed, Purpose::Noise, 0, 0).fill_normal(&mut v);
        for (i, v) in v.iter_mut().enumerate() {
            *v = v.abs() * (1.0 / (1.0 + (i % 2048) as f32)).sqrt();
        }
        Features::new(2048, v).unwrap()
    };
    let (x, y) = (make(1), make(2));
    let t = std::time::Instant::now();
    println!("fid {:?} {:?}", fid::distance(&x, &y).unwrap(), t.elapsed());
    let t = std::time::Instant::now();
    let s = kid::subsets(n, n, 100, 1000.min(n / 2), 0).unwrap();
    println!("kid {:?} {:?}", kid::over_subsets(&x, &y, &s, &mut || ()).unwrap(), t.elapsed());
    let t = std::time::Instant::now();
    println!("pr {:?} {:?}", neighbours::precision_recall(&x, &y, 3).unwrap(), t.elapsed());
}
