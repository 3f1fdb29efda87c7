//! Training with class labels: from a CSV file through the cache of pictures to the network, repeatable and resumable.

mod train_support;

use std::fs;

use train_support::{Place, records, tensor_bytes, tensors, tiny};

const UNET: &[&str] = &[
    "family=unet2d",
    "unet.block_out_channels=8,16",
    "unet.down_block_types=DownBlock2D,DownBlock2D",
    "unet.up_block_types=UpBlock2D,UpBlock2D",
    "unet.add_attention=false",
    "unet.norm_num_groups=4",
    "schedule=squaredcos_cap_v2",
    "labels=labels.csv",
];

/// 36 pictures in three classes, by their stems.
fn place() -> Place {
    let place = Place::with_pictures();
    let lines: String = (0..36).map(|i| format!("{i:03},{}\n", ["tulip", "aster", "rose"][i % 3])).collect();
    fs::write(place.path("labels.csv"), format!("file,label\n{lines}")).unwrap();
    place
}

fn args<'a>(more: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    let sets = UNET.iter().chain(more).flat_map(|set| ["--set", set]);
    sets.chain(options.iter().copied()).chain(["--quiet"]).collect()
}

#[test]
fn a_run_with_labels_repeats_and_resumes_to_the_same_bytes() {
    let place = place();
    let classes = ["unet.num_class_embeds=4", "label_dropout=0.3", "accumulate=2"];
    let whole = place.train("whole", &args(&classes, &["--steps", "10"]));
    assert_eq!(fs::read_to_string(whole.join("classes.txt")).unwrap(), "aster\nrose\ntulip\n");
    // The second run maps the cache of decoded pictures, where the names are too.
    let parts = place.train("parts", &args(&classes, &["--steps", "6"]));
    place.ok(&["train", "--resume", "parts", "--steps", "10", "--quiet"]);
    assert!(tensor_bytes(&parts, 10) == tensor_bytes(&whole, 10));
    assert_eq!(records(&parts).last(), records(&whole).last());
    let others = place.train("threads", &args(&classes, &["--steps", "10", "--threads", "1"]));
    assert!(tensor_bytes(&others, 10) == tensor_bytes(&whole, 10));

    fs::rename(place.path("labels.csv"), place.path("old.csv")).unwrap();
    let text = fs::read_to_string(place.path("old.csv")).unwrap();
    fs::write(place.path("labels.csv"), text.replacen("tulip", "rose", 1)).unwrap();
    place.refused(&["train", "--resume", "parts", "--steps", "12"], &["class labels are not those of `labels`"]);
}

/// The embeddings of all classes learn, that of no class only where labels are left out; and other labels make another network.
#[test]
fn classes_reach_the_network() {
    let place = place();
    let moved = |run: &str, sets: &[&str]| {
        let run = place.train(run, &args(sets, &["--steps", "8"]));
        let all = tensors(&run, 8);
        let moment = all.iter().find(|t| t.name == "exp_avg.class_embedding.weight").unwrap();
        let row = moment.shape[1];
        moment.data.chunks(row).map(|row| row.iter().any(|&v| v != 0.0)).collect::<Vec<bool>>()
    };
    assert_eq!(moved("plain", &["unet.num_class_embeds=3"]), [true; 3]);
    assert_eq!(moved("dropped", &["unet.num_class_embeds=4", "label_dropout=0.5"]), [true; 4]);
    assert_eq!(moved("rarely", &["unet.num_class_embeds=4", "label_dropout=1e-9"]), [true, true, true, false]);
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let place = place();
    let refused = |sets: &[&str], needles: &[&str]| {
        let said = place.refused(&tiny("refused", &args(sets, &["--steps", "2"])), needles);
        assert!(!place.path("refused").exists(), "{}", said.err);
    };
    refused(
        &["unet.num_class_embeds=4"],
        &["unet.num_class_embeds is 4", "has 3 classes", "expected unet.num_class_embeds 3"],
    );
    refused(
        &["unet.num_class_embeds=3", "label_dropout=0.1"],
        &["unet.num_class_embeds is 3", "label_dropout", "expected unet.num_class_embeds 4"],
    );
    refused(&["unet.num_class_embeds=3", "labels=none.csv"], &["none.csv", "cannot be opened"]);
    let text = fs::read_to_string(place.path("labels.csv")).unwrap();
    fs::write(place.path("short.csv"), text.replace("007,aster\n", "")).unwrap();
    refused(
        &["unet.num_class_embeds=3", "labels=short.csv"],
        &["short.csv", "1 of 36 pictures have no label", "`007.png`"],
    );
    fs::write(place.path("long.csv"), format!("{text}036,rose\n")).unwrap();
    refused(&["unet.num_class_embeds=3", "labels=long.csv"], &["long.csv", "1 of its 37 names", "`036` in line 38"]);
    let said =
        place.run(&tiny("refused", &args(&["unet.num_class_embeds=3"], &["--steps", "2", "--data", "procedural"])));
    said.fails(2, &["labels.csv", "a folder or a .tar"]);
}
