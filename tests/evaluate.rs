//! `evaluate`: losses that are those of training's own validation, by level too, and distances of drawn pictures through a network of
//! features of the tests' own.

mod train_support;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ddim_engine::device::cpu::Cpu;
use ddim_engine::diffusion::samplers::Wishes;
use ddim_engine::error::{Error, Result};
use ddim_engine::metrics::Evaluation;
use ddim_engine::metrics::evaluate::{self, EvaluateOptions, Outcome, Part, Protocol};
use ddim_engine::metrics::features::Extractor;
use ddim_engine::rng::{Purpose, Stream};
use ddim_engine::sample::WeightKind;
use ddim_engine::train::metrics_log::Split;
use ddim_engine::train::progress::Progress;
use ddim_engine::train::tensor_file::{self, NamedTensor};
use train_support::{Place, checkpoint_at, records};

const UNET: &[&str] = &[
    "family=unet2d",
    "unet.block_out_channels=8,16",
    "unet.down_block_types=DownBlock2D,DownBlock2D",
    "unet.up_block_types=UpBlock2D,UpBlock2D",
    "unet.add_attention=false",
    "unet.norm_num_groups=4",
    "schedule=squaredcos_cap_v2",
];

fn sets<'a>(sets: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    sets.iter().flat_map(|set| ["--set", set]).chain(options.iter().copied()).chain(["--quiet"]).collect()
}

fn read(path: PathBuf) -> Evaluation {
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// What does not change from one evaluation to the next.
fn timeless(evaluation: Evaluation) -> Evaluation {
    Evaluation { seconds: 0.0, device: String::new(), ..evaluation }
}

/// The same weights, noise and times: the same bits as the last line of training's own validation, whatever the family.
#[test]
fn losses_are_those_of_the_last_validation() {
    let place = Place::with_pictures();
    let lines: String = (0..36).map(|i| format!("{i:03},{}\n", ["tulip", "aster", "rose"][i % 3])).collect();
    fs::write(place.path("labels.csv"), format!("file,label\n{lines}")).unwrap();
    let classes = [UNET, &["labels=labels.csv", "unet.num_class_embeds=4", "label_dropout=0.3", "min_snr_gamma=5"]];
    for (run, settings) in [("seed", vec!["loss=mse"]), ("unet", classes.concat())] {
        let root = place.train(run, &sets(&settings, &["--steps", "12"]));
        place.ok(&["evaluate", run, "--weights", "raw"]);
        let got = read(root.join("evaluation.json"));
        let want = records(&root).into_iter().rfind(|r| r.split == Split::Valid).unwrap();
        assert_eq!((got.step, got.pictures, got.split.as_str()), (12, 7, "valid"));
        assert_eq!([got.loss, got.noise_loss, got.image_loss], [want.loss, want.noise_loss, want.image_loss], "{run}");
        assert_eq!(got.weights, "as trained");
        // One thread, or another batch: the same bits, or the same but for the order of a sum.
        place.ok(&["evaluate", run, "--weights", "raw", "--threads", "1"]);
        assert_eq!(timeless(read(root.join("evaluation.json"))), timeless(got.clone()));
        place.ok(&["evaluate", run, "--weights", "raw", "--batch", "3", "--json", "other.json"]);
        let other = read(place.path("other.json"));
        assert!((other.noise_loss - got.noise_loss).abs() < 1e-6 && other.levels.len() == got.levels.len());
    }
}

#[test]
fn every_bin_has_every_picture_and_they_add_up() {
    let place = Place::with_pictures();
    let root = place.train("run", &sets(&["ema_decay=0.9"], &["--steps", "40"]));
    let said = place.ok(&["evaluate", "run", "--split", "all"]);
    let all = read(root.join("evaluation.json"));
    assert_eq!((all.pictures, all.split.as_str(), all.weights.as_str()), (36, "all", "moving average"));
    assert_eq!(all.levels.len(), 10);
    for (i, level) in all.levels.iter().enumerate() {
        assert_eq!((level.count, level.time), (36, [i as f64 / 10.0, (i + 1) as f64 / 10.0]));
        assert!(level.noise_rate[0] < level.noise_rate[1] && level.noise_loss > 0.0 && level.image_loss > 0.0);
    }
    // cosine between the signal rates 0.95 and 0.02
    let (first, last) = (all.levels[0].noise_rate[0], all.levels[9].noise_rate[1]);
    assert!(
        (first - (1.0f64 - 0.95 * 0.95).sqrt()).abs() < 1e-6 && (last - (1.0f64 - 0.02 * 0.02).sqrt()).abs() < 1e-6
    );
    // Noise is hard to see where there is little, the picture where there is much.
    assert!(all.levels[0].noise_loss > all.levels[9].noise_loss && all.levels[0].image_loss < all.levels[9].image_loss);
    let mean = |of: fn(&ddim_engine::metrics::LevelLoss) -> f64| all.levels.iter().map(of).sum::<f64>() / 10.0;
    for (bins, whole) in [(mean(|l| l.noise_loss), all.noise_loss), (mean(|l| l.image_loss), all.image_loss)] {
        assert!((bins / whole - 1.0).abs() < 0.2, "{bins} and {whole}");
    }
    for line in [
        "pictures    36 (all)",
        "noise_loss  image_loss\n0.0 to 0.1  0.312 to ",
        "\n0.9 to 1.0",
        "####",
        "--inception FILE",
        "evaluation.json",
    ] {
        assert!(said.out.contains(line), "{line:?} is not in: {}", said.out);
    }
    // Each of an earlier checkpoint, of all data from elsewhere, and of a file alone.
    place.draw_pictures("others", 5);
    let said = place.ok(&["evaluate", "run/checkpoints/step-00000040", "--data", "others", "--split", "all"]);
    assert!(said.out.contains("pictures    5 (all)"), "{}", said.out);
    let said = place.ok(&["evaluate", "run", "--data", "others"]);
    assert!(said.out.contains("not the pictures that the run was trained on"), "{}", said.out);
    fs::copy(checkpoint_at(&root, 40).join("model.safetensors"), place.path("alone.safetensors")).unwrap();
    let said = place.ok(&["evaluate", "alone.safetensors", "--json", "alone.json"]);
    assert!(
        said.out.contains("as trained") && said.out.contains("alone.json") && !said.out.contains("evaluation.json")
    );
}

#[test]
fn what_cannot_be_measured_says_why() {
    let place = Place::with_pictures();
    let root = place.train("run", &sets(&["ema_decay=0"], &["--steps", "4"]));
    place.train("greedy", &sets(&["valid_fraction=0"], &["--steps", "4"]));
    place.refused(&["evaluate", "greedy"], &["valid_fraction is 0", "--split all"]);
    place.ok(&["evaluate", "greedy", "--split", "all"]);
    place.refused(&["evaluate", "rum"], &["rum", "no such run"]);
    fs::create_dir(place.path("empty")).unwrap();
    place.refused(&["evaluate", "empty"], &["empty", "not a run directory"]);
    place.refused(
        &["evaluate", "run", "--inception", "none.safetensors"],
        &["none.safetensors", "no such file", "timm/inception_v3"],
    );
    place.refused(
        &["evaluate", "run", "--generated", "pictures", "--count", "9"],
        &["--generated with --count", "leave them out"],
    );
    place.refused(
        &["evaluate", "run", "--kid-protocol", "seed", "--steps", "9"],
        &["--steps with --kid-protocol seed", "4 network calls"],
    );
    place.refused(&["evaluate", "run", "--data", "nowhere"], &["nowhere", "no such file or folder"]);
    place.draw_pictures("one", 1);
    place.refused(&["evaluate", "run", "--data", "one"], &["one", "1 "]);
    place.refused(&["evaluate", "run", "--weights", "ema"], &["no moving average"]);
    place.refused(&["evaluate", "run", "--split", "train"], &["--split"]);
    // What was asked for without weights of Inception is missed, but not the losses.
    let said = place.run(&["evaluate", "run", "--kid", "--fid"]);
    said.fails(2, &["--inception FILE", "timm/inception_v3.tv_in1k", "the losses above"]);
    assert!(said.out.contains("noise_loss") && root.join("evaluation.json").is_file());
    fs::rename(place.path("pictures"), place.path("moved")).unwrap();
    place.refused(&["evaluate", "run"], &["pictures", "--data"]);
    place.ok(&["evaluate", "run", "--data", "moved"]);
}

/// A file of Inception-v3 with random weights.
fn inception(path: &std::path::Path) {
    let tensor = |name: String, shape: Vec<usize>, data: Vec<f32>| NamedTensor { name, shape, data };
    let mut tensors = Vec::new();
    for (i, line) in include_str!("fixtures/inception/convolutions.txt").lines().enumerate() {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape: Vec<usize> = shape.split('x').map(|extent| extent.parse().unwrap()).collect();
        let mut filter = vec![0.0; shape.iter().product()];
        Stream::new(2, Purpose::Init, 0, i as u64).fill_uniform(&mut filter);
        let scale = (6.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        filter.iter_mut().for_each(|v| *v = (2.0 * *v - 1.0) * scale);
        for (part, value) in [("weight", 1.0), ("bias", 0.1), ("running_mean", 0.0), ("running_var", 1.0)] {
            tensors.push(tensor(format!("{name}.bn.{part}"), vec![shape[0]], vec![value; shape[0]]));
        }
        tensors.push(tensor(format!("{name}.conv.weight"), shape, filter));
    }
    tensors.push(tensor("fc.weight".into(), vec![1008, 1], vec![0.0; 1008]));
    tensor_file::write(path, &Default::default(), &tensors).unwrap();
}

/// The whole command, with the real network.
#[test]
fn distances_by_inception() {
    let place = Place::with_pictures();
    let root = place.train("run", &sets(&[], &["--steps", "4"]));
    let own = "run/checkpoints/step-00000004/model.safetensors";
    place.refused(
        &["evaluate", "run", "--inception", own],
        &["model.safetensors", "Conv2d_1a_3x3.conv.weight is missing"],
    );
    inception(&place.path("fid.safetensors"));
    let torchvision = ["--inception-variant", "torchvision"];
    place.refused(
        &[&["evaluate", "run", "--inception", "fid.safetensors"][..], &torchvision].concat(),
        &["1008 classes"],
    );
    let args = ["evaluate", "run", "--inception", "fid.safetensors", "--fid", "--count", "5", "--steps", "2"];
    let said = place.ok(&args);
    for part in [
        "\nKID         ",
        " (100 subsets of 2; protocol engine)\n",
        "\nFID         ",
        "\nprecision   ",
        "\nrecall      ",
        "compared    7 real, 5 generated: ddim, 2 steps, network calls: 1",
        "fid.safetensors (fid), SHA-256 ",
    ] {
        assert!(said.out.contains(part), "{part:?} is not in: {}", said.out);
    }
    let first = read(root.join("evaluation.json"));
    assert!(first.quality.as_ref().unwrap().fid.unwrap() > 0.0, "{first:?}");
    let again = place.ok(&args);
    assert!(again.err.contains("features of 7 real pictures from "), "{}", again.err);
    assert_eq!(timeless(read(root.join("evaluation.json"))), timeless(first));
}

/// Features by fixed random weights; counts the pictures that it has seen.
struct Projection {
    length: usize,
    seen: usize,
}

impl Extractor for Projection {
    fn name(&self) -> String {
        "a random projection".into()
    }
    fn identity(&self) -> String {
        format!("projection {}", self.length)
    }
    fn length(&self) -> usize {
        self.length
    }
    fn features(&mut self, pictures: &[u8], n: usize, size: usize) -> Result<Vec<f32>> {
        assert_eq!(pictures.len(), n * size * size * 3);
        self.seen += n;
        let mut weights = vec![0.0; size * size * 3 * self.length];
        Stream::new(1, Purpose::Noise, 0, 0).fill_normal(&mut weights);
        let feature = |picture: &[u8], k: usize| {
            let weights = weights[k..].iter().step_by(self.length);
            picture.iter().zip(weights).map(|(&p, w)| f32::from(p) / 255.0 * w).sum::<f32>().max(0.0)
        };
        Ok(pictures.chunks(size * size * 3).flat_map(|p| (0..self.length).map(move |k| feature(p, k))).collect())
    }
}

/// Says its lines to the test.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

/// Evaluations of a run with the projection, and what they said.
struct Lab {
    place: Place,
    lines: Lines,
    projection: Projection,
}

impl Lab {
    fn new(settings: &[&str]) -> Self {
        let place = Place::with_pictures();
        place.train("run", &sets(settings, &["--steps", "12"]));
        fs::create_dir(place.path("data")).unwrap();
        Lab { place, lines: Lines::default(), projection: Projection { length: 12, seen: 0 } }
    }

    fn options(&self) -> EvaluateOptions {
        EvaluateOptions {
            source: self.place.path("run"),
            data: Some(self.place.path("pictures").display().to_string()),
            data_dir: Some(self.place.path("data")),
            part: Part::All,
            weights: WeightKind::Auto,
            fid: true,
            protocol: Protocol::Engine,
            generated: None,
            count: None,
            steps: Some(3),
            wishes: Wishes::default(),
            subsets: None,
            subset_size: None,
            seed: 0,
            batch: None,
            device: "cpu".into(),
        }
    }

    fn run(&mut self, options: &EvaluateOptions) -> Result<Outcome> {
        let progress = Progress::plain_to(Box::new(self.lines.clone()));
        evaluate::run(&Cpu::new(2).unwrap(), options, Some(&mut self.projection), &progress)
    }

    fn caches(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.place.path("data/cache")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect()
    }
}

#[test]
fn real_pictures_are_near_themselves_and_drawn_ones_are_not() {
    let mut lab = Lab::new(&[]);
    let same = EvaluateOptions { generated: Some(lab.place.path("pictures")), steps: None, ..lab.options() };
    let near = lab.run(&same).unwrap().evaluation.quality.unwrap();
    assert_eq!((near.pictures, near.kid_subsets, near.network_calls), ([36, 36], [100, 18], 0));
    assert!(near.fid.unwrap().abs() < 1e-6 && near.sampler.contains("pictures"), "{near:?}");
    assert_eq!((near.precision, near.recall), (Some(1.0), Some(1.0)));
    let drawn = lab.run(&lab.options()).unwrap();
    let far = drawn.evaluation.quality.clone().unwrap();
    assert!(far.fid.unwrap() > 1.0 && far.kid > near.kid && far.kid_std > 0.0, "{far:?}");
    assert_eq!((far.sampler.as_str(), far.steps, far.network_calls), ("ddim", 3, 2));
    assert!(drawn.notes.iter().any(|note| note.contains("subsets of 18")), "{:?}", drawn.notes);
    // Written into the run, and read by whoever reads runs.
    assert_eq!(drawn.written, Some(lab.place.path("run/evaluation.json")));
    let record = ddim_engine::lab::record::RunRecord::open(&lab.place.path("run")).unwrap();
    assert_eq!(record.evaluation.unwrap().quality, Some(far.clone()));
    // The pictures are those that `sample` makes.
    lab.place.ok(&["sample", "run", "--count", "36", "--steps", "3", "--individual", "made"]);
    let made = EvaluateOptions { generated: Some(lab.place.path("made")), steps: None, ..lab.options() };
    let made = lab.run(&made).unwrap().evaluation.quality.unwrap();
    assert_eq!((made.kid, made.fid, made.recall), (far.kid, far.fid, far.recall));
    // The same whatever the batch, but for rounding; other noise, other pictures.
    let batched = lab.run(&EvaluateOptions { batch: Some(7), ..lab.options() }).unwrap().evaluation.quality.unwrap();
    assert!((batched.fid.unwrap() - far.fid.unwrap()).abs() < 1e-3 * far.fid.unwrap(), "{batched:?} {far:?}");
    let other = lab.run(&EvaluateOptions { seed: 1, ..lab.options() }).unwrap().evaluation.quality.unwrap();
    assert_ne!(other.fid, far.fid);
    // Losses alone, of the same weights and pictures, leave the distances where they are.
    let kept =
        evaluate::run(&Cpu::new(1).unwrap(), &lab.options(), None, &Progress::plain_to(Box::new(Lines::default())));
    assert_eq!(kept.unwrap().evaluation.quality, Some(other));
}

#[test]
fn features_of_real_pictures_are_computed_once() {
    let mut lab = Lab::new(&[]);
    let first = lab.run(&lab.options()).unwrap().evaluation;
    assert_eq!((lab.projection.seen, lab.caches().len()), (72, 1));
    let again = lab.run(&lab.options()).unwrap().evaluation;
    assert_eq!((lab.projection.seen, again.quality), (72 + 36, first.quality.clone()));
    // Other pictures and another network have caches of their own.
    lab.run(&EvaluateOptions { part: Part::Valid, ..lab.options() }).unwrap();
    lab.projection.length = 5;
    lab.run(&lab.options()).unwrap();
    assert_eq!(lab.caches().len(), 3);
    lab.projection.length = 12;
    lab.lines.take();
    let sound: Vec<(PathBuf, Vec<u8>)> =
        lab.caches().into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| *bytes.last_mut().unwrap() ^= 1, |bytes| bytes.truncate(bytes.len() / 2), |bytes| bytes.clear()];
    for damage in damages {
        for (path, bytes) in &sound {
            let mut bytes = bytes.clone();
            damage(&mut bytes);
            fs::write(path, bytes).unwrap();
        }
        let seen = lab.projection.seen;
        let repaired = lab.run(&lab.options()).unwrap().evaluation;
        assert_eq!((lab.projection.seen - seen, repaired.quality), (72, first.quality.clone()));
        let said = lab.lines.take();
        assert!(said.contains("features-") && said.contains("is damaged"), "{said}");
    }
    assert!(sound.iter().filter(|(path, bytes)| fs::read(path).unwrap() == *bytes).count() == 1, "one was mended");
}

/// Batches of the pictures held back, with 4 network calls whatever the family counts as steps.
#[test]
fn the_seeds_protocol() {
    for settings in [&[][..], UNET] {
        let mut lab = Lab::new(settings);
        let seeds = EvaluateOptions { protocol: Protocol::Seed, steps: None, fid: false, ..lab.options() };
        let quality = lab.run(&seeds).unwrap().evaluation.quality.unwrap();
        assert_eq!((quality.protocol.as_str(), quality.network_calls, quality.kid_subsets), ("seed", 4, [1, 36]));
        assert_eq!((quality.kid_std, quality.fid), (0.0, None));
    }
    let mut lab = Lab::new(&[]);
    lab.place.draw_pictures("many", 131);
    let data = Some(lab.place.path("many").display().to_string());
    let seeds = EvaluateOptions { protocol: Protocol::Seed, steps: None, data, ..lab.options() };
    let two = lab.run(&seeds).unwrap().evaluation.quality.unwrap();
    assert!(two.kid_subsets == [2, 128] && two.kid_std > 0.0, "128 and 3 pictures: {two:?}");
    let few = EvaluateOptions { generated: Some(lab.place.path("pictures")), ..seeds };
    assert!(
        matches!(lab.run(&few), Err(Error::Input { what, .. }) if what.contains("36 pictures") && what.contains("131"))
    );
}

#[test]
fn distances_of_too_few_pictures_are_refused() {
    let mut lab = Lab::new(&[]);
    lab.place.draw_pictures("two", 2);
    let data = Some(lab.place.path("two").display().to_string());
    let one = EvaluateOptions { data: data.clone(), part: Part::Valid, ..lab.options() };
    assert!(
        matches!(lab.run(&one), Err(Error::Usage(why)) if why.contains("1 real picture") && why.contains("--split all"))
    );
    let two = lab.run(&EvaluateOptions { data, ..lab.options() }).unwrap();
    let quality = two.evaluation.quality.unwrap();
    assert!(quality.precision.is_none() && quality.kid.is_finite() && quality.fid.unwrap().is_finite());
    assert!(two.notes.iter().any(|note| note.contains("more than 3")), "{:?}", two.notes);
    let large = EvaluateOptions { subset_size: Some(37), ..lab.options() };
    assert!(
        matches!(lab.run(&large), Err(Error::Usage(why)) if why.contains("--subset-size 37") && why.contains("2 to 36"))
    );
}
