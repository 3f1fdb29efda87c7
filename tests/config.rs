//! The configuration: layers, refusals, and the round trip through TOML.

use std::io::Write;

use ddim_engine::config::{Config, KEYS, Kind, LATER_KEYS, Layers, MODEL_KEYS, PRESETS, Precision, RESUME_OPTIONS};
use ddim_engine::error::{Error, Result};
use proptest::prelude::*;

fn sets(sets: &[&str]) -> Layers {
    Layers { sets: sets.iter().map(|set| set.to_string()).collect(), ..Layers::default() }
}

fn resolve(list: &[&str]) -> Result<Config> {
    Config::resolve(&sets(list))
}

#[track_caller]
fn refused(result: Result<Config>, needles: &[&str]) {
    let why = result.expect_err("must be refused");
    assert_eq!(why.exit_code(), 2, "{why}");
    let text = why.to_string();
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is not in: {text}");
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn presets_are_valid_and_complete() {
    assert_eq!(resolve(&[]).unwrap(), Config::quick_preset());
    for (name, _) in PRESETS {
        let preset = Config::preset(name).unwrap();
        preset.validate().unwrap();
        let layers = Layers { preset: Some(name.to_string()), ..Layers::default() };
        assert_eq!(Config::resolve(&layers).unwrap(), preset);
        assert_eq!(Config::from_toml(&preset.to_toml()).unwrap(), preset);
    }
}

#[test]
fn later_layers_win() {
    let file = file("lr = 0.25\nbatch_size = 7\nwidths = [8, 16]\nseed = 3\nepochs = 2\n");
    let layers = Layers {
        preset: Some("seed".into()),
        file: Some(file.path().into()),
        sets: vec!["batch_size=9".into(), "seed=4".into(), "batch_size = 10".into()],
        seed: Some("5".into()),
        data: Some("pets".into()),
        precision: Some("fp32".into()),
        steps: Some("1_000".into()),
        ..Layers::default()
    };
    let config = Config::resolve(&layers).unwrap();
    let expected = Config {
        lr: 0.25,
        batch_size: 10,
        widths: vec![8, 16],
        seed: 5,
        epochs: 2,
        steps: 1000,
        data: "pets".into(),
        repeat: 3, // as the original has it for this set
        precision: Precision::Fp32,
        ..Config::seed_preset()
    };
    assert_eq!(config, expected);
}

#[test]
fn epochs_in_a_later_layer_replace_steps() {
    let file = file("steps = 500\n");
    let mut layers = Layers { file: Some(file.path().into()), ..Layers::default() };
    assert_eq!(Config::resolve(&layers).unwrap().steps, 500);
    layers.sets = vec!["epochs=3".into()];
    let config = Config::resolve(&layers).unwrap();
    assert_eq!((config.epochs, config.steps), (3, 0));
    layers.steps = Some("7".into());
    let config = Config::resolve(&layers).unwrap();
    assert_eq!((config.epochs, config.steps), (3, 7));
    layers.sets = vec!["steps=9".into()];
    layers.steps = None;
    layers.epochs = Some("4".into());
    let config = Config::resolve(&layers).unwrap();
    assert_eq!((config.epochs, config.steps), (4, 0));
}

#[test]
fn widths_in_every_spelling() {
    for text in ["32,64,96", "[32,64,96]", "[ 32, 64 ,96, ]", "\"32,64,96\""] {
        assert_eq!(resolve(&[&format!("widths={text}")]).unwrap().widths, [32, 64, 96], "{text}");
    }
    assert_eq!(resolve(&["widths=8"]).unwrap().widths, [8]);
    for text in ["", "[]", "[", "]", "8,,8", "8;8", "0,8", "8,-8", "8.0", "[8", "8]", "1,1,1,1,1,1,1,1,1,1,1", "9999"] {
        refused(resolve(&[&format!("widths={text}")]), &["widths", "expected a list of"]);
    }
}

#[test]
fn every_flag_of_the_original_is_reachable() {
    let config = resolve(&[
        "optimizer=adam",
        "lr=1e-2",
        "weight_decay=0.5",
        "block_depth=3",
        "widths=8,16",
        "embedding_dim=16",
        "schedule=linear",
        "min_signal_rate=0.1",
        "max_signal_rate=0.9",
        "batch_size=5",
        "epochs=6",
        "loss=mse",
        "predict=image",
        "data=pets",
        "image_size=24",
        "workers=7",
    ]);
    let text = config.unwrap().to_toml();
    for line in [
        "optimizer = \"adam\" ",
        "lr = 0.01 ",
        "weight_decay = 0.5 ",
        "block_depth = 3 ",
        "widths = [8, 16] ",
        "embedding_dim = 16 ",
        "schedule = \"linear\" ",
        "min_signal_rate = 0.1 ",
        "max_signal_rate = 0.9 ",
        "batch_size = 5 ",
        "epochs = 6 ",
        "loss = \"mse\" ",
        "predict = \"image\" ",
        "data = \"pets\" ",
        "image_size = 24 ",
        "workers = 7 ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn unknown_keys_are_named_with_the_nearest_and_all() {
    for (theirs, ours) in [
        ("learning_rate", "lr"),
        ("optimiser", "optimizer"),
        ("Batch", "batch_size"),
        ("batch-size", "batch_size"),
        ("dataset", "data"),
        ("image_width", "image_size"),
        ("block_widths", "widths"),
        ("loss_on", "predict"),
        ("schedule_type", "schedule"),
        ("num_workers", "workers"),
        ("epoch", "epochs"),
        ("embeding_dim", "embedding_dim"),
        ("wieght_decay", "weight_decay"),
        ("LR", "lr"),
    ] {
        let hint = format!("did you mean `{ours}`?");
        refused(resolve(&[&format!("{theirs}=1")]), &[&format!("unknown key `{theirs}`"), &hint, "normalize_batches"]);
        let file = file(&format!("\n{theirs} = 1\n"));
        let layers = Layers { file: Some(file.path().into()), ..Layers::default() };
        let path = file.path().display().to_string();
        refused(Config::resolve(&layers), &[&path, "line 2", &hint, "workers"]);
    }
    let text = resolve(&["qqqqqqqq=1"]).unwrap_err().to_string();
    assert!(!text.contains("did you mean"), "{text}");
    refused(resolve(&["device=cuda"]), &["--device"]);
    refused(resolve(&["data_dir=x"]), &["--data-dir"]);
    refused(resolve(&["lr"]), &["key=value"]);
    refused(resolve(&["=3"]), &["unknown key ``"]);
}

#[test]
fn bad_values_are_named_with_what_is_expected() {
    for (set, needles) in [
        ("lr=0", "found 0, expected a number from 1e-12 to 10"),
        ("lr=-1", "expected a number"),
        ("lr=NaN", "expected a number"),
        ("lr=inf", "expected a number"),
        ("lr=fast", "found fast, expected a number"),
        ("batch_size=0", "found 0, expected a whole number from 1"),
        ("batch_size=1.5", "expected a whole number"),
        ("batch_size=", "found nothing"),
        ("seed=-1", "expected a whole number from 0"),
        ("seed=18446744073709551616", "expected a whole number from 0 to 9223372036854775807"),
        ("channels=2", "expected one of 1, 3, 4"),
        ("embedding_dim=31", "expected an even number"),
        ("embedding_dim=0", "expected an even number"),
        ("ema_decay=1", "not including, 1"),
        ("ema_decay=0.99999999999", "not including, 1"),
        ("ema_decay=-0.1", "from 0"),
        ("valid_fraction=0.95", "expected a number from 0 to 0.9"),
        ("min_signal_rate=0", "min_signal_rate"),
        ("max_signal_rate=1", "max_signal_rate"),
        ("flip=yes", "expected true or false"),
        ("loss=l1", "one of mae, mse, huber; did you mean `mae`?"),
        ("schedule=cosin", "did you mean `cosine`?"),
        ("optimizer=AdamW", "did you mean `adamw`?"),
        ("predict=epsilon", "did you mean `noise`?"),
        ("precision=fp16", "expected one of auto, fp32, tf32, bf16"),
        ("precision=bf61", "did you mean `bf16`?"),
        ("family=unet3d", "did you mean `unet2d`?"),
        ("data=", "data"),
        ("data=a\nb", "a\\nb"),
        ("sample_steps=1", "from 2"),
    ] {
        refused(resolve(&[set]), &["--set", needles]);
    }
    for (line, needle) in [
        ("lr = \"1e-3\"", "lr: found \"1e-3\", expected a number"),
        ("lr = nan", "lr: found NaN"),
        ("widths = 32", "widths: found 32"),
        ("widths = [32, \"64\"]", "widths: found [32, \"64\"]"),
        ("widths = \"32,64\"", "widths: found"),
        ("flip = 1", "flip: found 1, expected true or false"),
        ("batch_size = 64.0", "batch_size: found 64, expected a whole number"),
        ("data = 3", "data: found 3"),
        ("lr = { a = 1 }", "lr: found a table"),
        ("lr = 1979-05-27", "lr: found 1979-05-27"),
        ("lr = ", "not TOML"),
        ("lr = 1\nlr = 2", "line 3: not TOML"),
        ("[train]\nlr = 1", "keys are flat"),
    ] {
        let file = file(&format!("# a comment\n{line}\n"));
        let layers = Layers { file: Some(file.path().into()), ..Layers::default() };
        refused(Config::resolve(&layers), &[&file.path().display().to_string(), needle]);
    }
    // A whole number is a number.
    let file = file("lr = 1\n");
    assert_eq!(Config::resolve(&Layers { file: Some(file.path().into()), ..Layers::default() }).unwrap().lr, 1.0);
}

#[test]
fn values_that_do_not_fit_each_other() {
    refused(
        resolve(&["image_size=30"]),
        &["image_size 30 with 3 levels", "multiple of 8; nearest: 24 or 32", "at most 1 level"],
    );
    refused(resolve(&["image_size=4"]), &["multiple of 8; nearest: 8;", "at most 2 levels"]);
    refused(resolve(&["image_size=33"]), &["nearest: 32 or 40"]);
    refused(resolve(&["widths=1,1,1,1,1,1,1"]), &["image_size 32 with 7 levels", "nearest: 128"]);
    refused(resolve(&["min_signal_rate=0.9", "max_signal_rate=0.9"]), &["min_signal_rate 0.9", "max_signal_rate 0.9"]);
    refused(resolve(&["batch_size=1", "image_size=8"]), &["batch_size 1", "image_size 16"]);
    resolve(&["batch_size=2", "image_size=8"]).unwrap();
    resolve(&["batch_size=1", "image_size=16"]).unwrap();
    resolve(&["image_size=30", "widths=8"]).unwrap();
}

#[test]
fn presets_are_refused_by_name() {
    for (name, needle) in
        [("sed", "did you mean `seed`?"), ("unet2d-cifar10", "unknown preset `unet2d-cifar10`"), ("", "presets:")]
    {
        let layers = Layers { preset: Some(name.into()), ..Layers::default() };
        refused(Config::resolve(&layers), &[&format!("preset `{name}`"), needle, "quick", "seed"]);
    }
}

#[test]
fn files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("binary");
    std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    let huge = dir.path().join("huge");
    std::fs::write(&huge, vec![b'#'; (1 << 20) + 1]).unwrap();
    for (path, needle) in [
        (dir.path().to_path_buf(), "is a folder"),
        (dir.path().join("none"), "cannot read"),
        (binary, "is not text"),
        (huge, "larger than 1 MiB"),
    ] {
        let layers = Layers { file: Some(path.clone()), ..Layers::default() };
        refused(Config::resolve(&layers), &[&path.display().to_string(), needle]);
    }
}

#[test]
fn a_complete_configuration_must_be_complete() {
    let text = Config::seed_preset().to_toml();
    let without: String =
        text.lines().filter(|line| !line.starts_with("lr ")).map(|line| format!("{line}\n")).collect();
    refused(Config::from_toml(&without), &["missing keys: lr"]);
    let with = format!("{text}\nextra = 1\n");
    refused(Config::from_toml(&with), &["unknown key `extra`"]);
}

#[test]
fn resume_takes_the_run_and_few_changes() {
    let run = Config { steps: 100, lr: 0.5, ..Config::quick_preset() };
    assert_eq!(Config::resume(&run, &Layers::default()).unwrap(), run);
    let layers = Layers { data: Some("elsewhere.tar".into()), epochs: Some("9".into()), ..Layers::default() };
    let expected = Config { data: "elsewhere.tar".into(), epochs: 9, steps: 0, ..run.clone() };
    assert_eq!(Config::resume(&run, &layers).unwrap(), expected);
    let layers =
        Layers { preset: Some("seed".into()), sets: vec!["lr=1".into()], seed: Some("1".into()), ..Layers::default() };
    let mut needles = vec!["--preset, --set, --seed cannot be changed"];
    needles.extend(RESUME_OPTIONS);
    refused(Config::resume(&run, &layers), &needles);
}

#[test]
fn differences_name_the_keys() {
    let ours = Config::seed_preset();
    let theirs = Config { widths: vec![32, 64], lr: 1.0, ..Config::seed_preset() };
    let widths = ("widths", "[32, 64, 96, 128]".to_string(), "[32, 64]".to_string());
    assert_eq!(ours.differences(&theirs, MODEL_KEYS), [widths]);
    assert_ne!(ours.model_key(), theirs.model_key());
    assert_eq!(ours.model_key(), Config { lr: 1.0, loss: theirs.loss, ..Config::seed_preset() }.model_key());
    assert_eq!(
        ours.model_key(),
        "family=\"seed\" image_size=64 channels=3 widths=[32, 64, 96, 128] block_depth=2 embedding_dim=32"
    );
}

#[test]
fn configurations_from_elsewhere_are_checked() {
    let bad = Config { lr: f64::NAN, ..Config::seed_preset() };
    assert!(matches!(bad.validate(), Err(Error::Usage(text)) if text.starts_with("lr: found NaN")));
    let huge = Config { seed: u64::MAX, ..Config::seed_preset() };
    assert!(huge.validate().is_err());
    let _ = (huge.to_toml(), huge.get("seed"), bad.to_toml());
    assert!(Config { widths: vec![], ..Config::seed_preset() }.validate().is_err());
}

#[test]
fn the_list_of_keys_fits_a_terminal() {
    let text = Config::describe_keys();
    let begins = |name: &str| text.lines().filter(|l| l.split_whitespace().next() == Some(name)).count();
    assert!(KEYS.iter().all(|key| begins(key.name) == 1), "{text}");
    assert!(text.contains("  SEED  image_size=64 ") && text.contains(" widths=[32,64,96,128] "), "{text}");
    for line in text.lines() {
        assert!(line.len() <= 100, "{line}");
    }
}

/// Text that the key may or may not take.
fn value_for(kind: &'static Kind) -> BoxedStrategy<String> {
    match kind {
        Kind::Choice { names, .. } => proptest::sample::select(*names).prop_map(String::from).boxed(),
        Kind::Integer { least, most } | Kind::Even { least, most } => {
            (*least..=*most).prop_map(|n| n.to_string()).boxed()
        }
        Kind::OneOf(values) => proptest::sample::select(*values).prop_map(|n| n.to_string()).boxed(),
        Kind::Real { least, most } => (*least..=*most).prop_map(|x| format!("{x:?}")).boxed(),
        Kind::Decay => (0.0..1.0f64).prop_map(|x| format!("{x:?}")).boxed(),
        Kind::Flag => any::<bool>().prop_map(|b| b.to_string()).boxed(),
        Kind::Text => "\\PC{1,20}".boxed(),
        Kind::List { most, .. } => {
            proptest::collection::vec(1..=*most, 1..4).prop_map(|list| format!("{list:?}")).boxed()
        }
    }
}

fn set_for_a_key() -> impl Strategy<Value = String> {
    (0..KEYS.len()).prop_flat_map(|i| value_for(&KEYS[i].kind).prop_map(move |text| format!("{}={text}", KEYS[i].name)))
}

proptest! {
    #[test]
    fn no_set_panics(text in any::<String>(), i in 0..KEYS.len()) {
        let _ = resolve(&[&text]);
        let set = format!("{}={text}", KEYS[i].name);
        if let Err(why) = resolve(&[&set]) {
            prop_assert_eq!(why.exit_code(), 2);
            prop_assert!(!why.to_string().is_empty());
        }
    }

    #[test]
    fn no_file_panics(text in any::<String>(), i in 0..KEYS.len()) {
        let _ = Config::from_toml(&text);
        let _ = Config::from_toml(&format!("{} = {text}", KEYS[i].name));
    }

    #[test]
    fn no_number_panics(text in "[-+0-9eE._,\\[\\]]{0,24}", i in 0..KEYS.len()) {
        let _ = resolve(&[&format!("{}={text}", KEYS[i].name)]);
        let _ = Config::from_toml(&format!("{} = {text}", KEYS[i].name));
    }

    #[test]
    fn toml_reads_back(list in proptest::collection::vec(set_for_a_key(), 1..6)) {
        let list: Vec<_> = list.iter().map(String::as_str).collect();
        if let Ok(config) = resolve(&list) {
            let text = config.to_toml();
            prop_assert_eq!(&Config::from_toml(&text).unwrap(), &config);
            let file = file(&text);
            let layers = Layers { preset: Some("seed".into()), file: Some(file.path().into()), ..Layers::default() };
            prop_assert_eq!(Config::resolve(&layers).unwrap(), config);
        }
    }
}

/// A file of a version that knew fewer keys means what that version did.
#[test]
fn keys_that_came_later_may_be_missing() {
    let text = Config::quick_preset().to_toml();
    let is_later = |line: &str| LATER_KEYS.iter().any(|key| line.starts_with(&format!("{key} ")));
    let old: String = text.lines().filter(|line| !is_later(line)).map(|line| format!("{line}\n")).collect();
    assert!(old.lines().count() + LATER_KEYS.len() == text.lines().count(), "{old}");
    assert_eq!(Config::from_toml(&old).unwrap(), Config::quick_preset());
}

/// An option that is absent is said to be: over a preset, and over the defaults, it stays absent.
#[test]
fn absent_options_stay_absent_in_a_file() {
    let sets = ["unet.attention_head_dim=none".to_string(), "unet.num_class_embeds=none".to_string()];
    let layers = Layers { preset: Some("unet2d-tiny".into()), sets: sets.to_vec(), ..Layers::default() };
    let config = Config::resolve(&layers).unwrap();
    assert_eq!(config.unet.as_ref().unwrap().attention_head_dim, None);
    let text = config.to_toml();
    assert_eq!(Config::from_toml(&text).unwrap(), config);
    // A file of a version that left them out.
    let old: String = text.lines().filter(|line| !line.ends_with("\"none\"")).map(|line| format!("{line}\n")).collect();
    assert_eq!(Config::from_toml(&old).unwrap(), config);
    let file = file(&text);
    for preset in ["quick", "unet2d-tiny", "unet2d-32"] {
        let layers = Layers { preset: Some(preset.into()), file: Some(file.path().into()), ..Layers::default() };
        assert_eq!(Config::resolve(&layers).unwrap(), config, "{preset}");
    }
}
