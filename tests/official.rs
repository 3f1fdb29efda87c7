//! Classes and splits that came with the pictures, in training: `labels = "auto"`, the official split of a fetched set, its repeats.

mod train_support;

use std::fs;

use train_support::{Place, records, tensor_bytes, tensors, tiny};

const UNET: &[&str] = &[
    "--set",
    "family=unet2d",
    "--set",
    "unet.block_out_channels=8,16",
    "--set",
    "unet.down_block_types=DownBlock2D,DownBlock2D",
    "--set",
    "unet.up_block_types=UpBlock2D,UpBlock2D",
    "--set",
    "unet.add_attention=false",
    "--set",
    "unet.norm_num_groups=4",
    "--set",
    "schedule=squaredcos_cap_v2",
    "--set",
    "labels=auto",
];

/// A data directory with 36 `pets` as `data fetch` leaves them; two pictures are in no split.
fn place() -> Place {
    let place = Place::with_pictures();
    place.draw_pictures("data/pets/images", 36);
    let names: Vec<String> = (0..36).map(|i| format!("images/{i:03}.png")).collect();
    let labels = names.iter().enumerate().map(|(i, name)| format!("{name},{}\n", ["pug", "Bengal"][i % 2]));
    fs::write(place.path("data/pets/labels.csv"), format!("file,label\n{}", labels.collect::<String>())).unwrap();
    let split = names.iter().enumerate().skip(2);
    let split = split.map(|(i, name)| format!("{name},{}\n", if i < 22 { "train" } else { "valid" }));
    fs::write(place.path("data/pets/split.csv"), format!("file,split\n{}", split.collect::<String>())).unwrap();
    fs::write(place.path("data/pets/source.json"), "{}").unwrap();
    place
}

const PETS: [&str; 4] = ["--data", "pets", "--data-dir", "data"];

#[test]
fn the_official_split_is_used_and_kept() {
    let place = place();
    let said = place.ok(&tiny("whole", &[&PETS[..], &["--steps", "8"]].concat()));
    assert!(said.err.contains("(20 to train, 14 held back by the official split)"), "{}", said.err);
    let whole = place.path("whole");
    let parts = place.train("parts", &[&PETS[..], &["--steps", "4", "--quiet"]].concat());
    place.ok(&["train", "--resume", "parts", "--data-dir", "data", "--steps", "8", "--quiet"]);
    assert!(tensor_bytes(&parts, 8) == tensor_bytes(&whole, 8));
    // Goes on with the same pictures under another name.
    let moved = place.train("moved", &[&PETS[..], &["--steps", "4", "--quiet"]].concat());
    place.ok(&["train", "--resume", "moved", "--data", "data/pets", "--steps", "8", "--quiet"]);
    let values = |run: &std::path::Path| tensors(run, 8).into_iter().map(|t| (t.name, t.data)).collect::<Vec<_>>();
    assert!(values(&moved) == values(&whole));
    assert_eq!(records(&moved).last(), records(&whole).last());
    // Without pictures held back there is nothing to split.
    let said = place.ok(&tiny("all", &[&PETS[..], &["--steps", "2", "--set", "valid_fraction=0"]].concat()));
    assert!(said.err.contains("(36 to train, 0 held back)"), "{}", said.err);

    let text = fs::read_to_string(place.path("data/pets/split.csv")).unwrap();
    fs::write(place.path("data/pets/split.csv"), text.replacen(",train", ",valid", 1)).unwrap();
    let resume = ["train", "--resume", "parts", "--data-dir", "data", "--steps", "9"];
    place.refused(&resume, &["held back", "official split"]);
    fs::write(place.path("data/pets/split.csv"), "file,split\nimages/002.png,perhaps\n").unwrap();
    place.refused(&tiny("no", &PETS), &["split.csv", "line 2", "perhaps"]);
    fs::write(place.path("data/pets/split.csv"), "file,split\nimages/002.png,train\n").unwrap();
    place.refused(&tiny("no", &PETS), &["1 pictures to train on and 0 held back"]);
    // A file of that name in a folder of somebody else means nothing to us.
    fs::remove_file(place.path("data/pets/source.json")).unwrap();
    let said = place.ok(&tiny("random", &[&PETS[..], &["--steps", "2"]].concat()));
    assert!(said.err.contains("no official split beside these pictures"), "{}", said.err);
    assert!(said.err.contains("(29 to train, 7 held back)"), "{}", said.err);
    place.refused(&resume, &["held back", "official split"]);
}

#[test]
fn classes_that_came_with_the_pictures() {
    let place = place();
    let with = |run: &str, data: &[&str], classes: &'static str| {
        tiny(run, &[UNET, data, &["--set", classes, "--steps", "2", "--quiet"]].concat())
    };
    place.ok(&with("pets", &PETS, "unet.num_class_embeds=2"));
    assert_eq!(fs::read_to_string(place.path("pets/classes.txt")).unwrap(), "Bengal\npug\n");
    let hub = format!("{}/tests/fixtures/parquet/hub.parquet", env!("CARGO_MANIFEST_DIR"));
    place.ok(&with("hub", &["--data", &hub], "unet.num_class_embeds=3"));
    assert_eq!(fs::read_to_string(place.path("hub/classes.txt")).unwrap(), "tulip\naster\nrose\n");
    place.refused(
        &with("no", &PETS, "unet.num_class_embeds=5"),
        &["labels auto has 2 classes", "expected unet.num_class_embeds 2"],
    );
    place.refused(&with("no", &[], "unet.num_class_embeds=2"), &["labels auto: no classes came with", "labels.csv"]);
}

#[test]
fn the_originals_repeats_follow_the_data() {
    let place = Place::new();
    let repeat = |args: &[&str]| {
        let said = place.ok(&[&["train", "--print-config"], args].concat());
        let line = said.out.lines().find_map(|line| line.strip_prefix("repeat = ")).unwrap();
        line.split('#').next().unwrap().trim().to_string()
    };
    assert_eq!(repeat(&["--preset", "seed"]), "5");
    assert_eq!(repeat(&["--preset", "seed", "--data", "pets"]), "3");
    assert_eq!(repeat(&["--preset", "seed", "--set", "data=pets"]), "3");
    assert_eq!(repeat(&["--preset", "seed", "--data", "pets", "--set", "repeat=2"]), "2");
    assert_eq!(repeat(&["--data", "pets"]), "1");
}
