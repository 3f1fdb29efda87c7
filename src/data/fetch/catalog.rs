//! The sets of pictures that can be fetched by name: their archives, as data.

use crate::error::{Error, Result};

/// A set that [`super::fetch`] can bring.
#[derive(Clone, Debug)]
pub struct KnownSet {
    /// Its name as a source of pictures, and of its folder in the data directory.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Pictures that its archives hold.
    pub pictures: usize,
    /// The files to download; small ones first, so that a wrong mirror shows early.
    pub archives: Vec<Archive>,
}

/// A file that a set is downloaded as.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Its name, also at a mirror.
    pub file: String,
    /// Where it officially lies.
    pub url: String,
    /// Its published MD5 in hex. Tells accidents apart, not attacks.
    pub md5: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What is in it.
    pub holds: Holds,
}

/// What an archive is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A gzipped tar of pictures.
    Pictures,
    /// MATLAB: `labels` [1, N], the class from 1 on of `image_00001.jpg` and on.
    FlowerLabels,
    /// MATLAB: `trnid`, `valid` and `tstid`, numbers of pictures from 1 on.
    FlowerSplits,
    /// A gzipped tar with `annotations/list.txt`, `trainval.txt` and `test.txt`.
    PetAnnotations,
}

impl KnownSet {
    /// Bytes to download in all.
    pub fn bytes(&self) -> u64 {
        self.archives.iter().map(|archive| archive.bytes).sum()
    }
}

/// The sets that there are. Their addresses and MD5s are those that torchvision checks too; lengths are those of TensorFlow Datasets.
pub fn known_sets() -> Vec<KnownSet> {
    let archive = |base: &str, file: &str, md5: &str, bytes: u64, holds: Holds| Archive {
        file: file.into(),
        url: format!("https://www.robots.ox.ac.uk/~vgg/data/{base}/{file}"),
        md5: md5.into(),
        bytes,
        holds,
    };
    let flowers = |file: &str, md5: &str, bytes: u64, holds: Holds| archive("flowers/102", file, md5, bytes, holds);
    let pets = |file: &str, md5: &str, bytes: u64, holds: Holds| archive("pets/data", file, md5, bytes, holds);
    vec![
        KnownSet {
            name: "flowers".into(),
            title: "Oxford 102 Category Flowers".into(),
            pictures: 8189,
            archives: vec![
                flowers("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", 502, Holds::FlowerLabels),
                flowers("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", 14_989, Holds::FlowerSplits),
                flowers("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", 344_862_509, Holds::Pictures),
            ],
        },
        KnownSet {
            name: "pets".into(),
            title: "Oxford-IIIT Pets".into(),
            pictures: 7390,
            archives: vec![
                pets("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", 19_173_078, Holds::PetAnnotations),
                pets("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", 791_918_971, Holds::Pictures),
            ],
        },
    ]
}

/// The set called `name`.
///
/// # Errors
/// [`Error::Usage`]: there is none; the message lists those that exist.
pub fn known_set(name: &str) -> Result<KnownSet> {
    let sets = known_sets();
    let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).collect();
    let hint = match (name, names.iter().find(|near| strsim::damerau_levenshtein(near, name) <= 2)) {
        ("procedural" | "debug", _) => " (those pictures are made by the program: there is nothing to fetch)".into(),
        (_, Some(near)) => format!(" (did you mean `{near}`?)"),
        _ => String::new(),
    };
    let unknown =
        Error::Usage(format!("no set to fetch is called `{name}`{hint}; expected one of: {}", names.join(", ")));
    sets.iter().find(|set| set.name == name).cloned().ok_or(unknown)
}

/// Names of the 102 flowers, by class from 1 on.
pub(super) const FLOWERS: [&str; 102] = [
    "pink primrose",
    "hard-leaved pocket orchid",
    "canterbury bells",
    "sweet pea",
    "english marigold",
    "tiger lily",
    "moon orchid",
    "bird of paradise",
    "monkshood",
    "globe thistle",
    "snapdragon",
    "colt's foot",
    "king protea",
    "spear thistle",
    "yellow iris",
    "globe-flower",
    "purple coneflower",
    "peruvian lily",
    "balloon flower",
    "giant white arum lily",
    "fire lily",
    "pincushion flower",
    "fritillary",
    "red ginger",
    "grape hyacinth",
    "corn poppy",
    "prince of wales feathers",
    "stemless gentian",
    "artichoke",
    "sweet william",
    "carnation",
    "garden phlox",
    "love in the mist",
    "mexican aster",
    "alpine sea holly",
    "ruby-lipped cattleya",
    "cape flower",
    "great masterwort",
    "siam tulip",
    "lenten rose",
    "barbeton daisy",
    "daffodil",
    "sword lily",
    "poinsettia",
    "bolero deep blue",
    "wallflower",
    "marigold",
    "buttercup",
    "oxeye daisy",
    "common dandelion",
    "petunia",
    "wild pansy",
    "primula",
    "sunflower",
    "pelargonium",
    "bishop of llandaff",
    "gaura",
    "geranium",
    "orange dahlia",
    "pink-yellow dahlia",
    "cautleya spicata",
    "japanese anemone",
    "black-eyed susan",
    "silverbush",
    "californian poppy",
    "osteospermum",
    "spring crocus",
    "bearded iris",
    "windflower",
    "tree poppy",
    "gazania",
    "azalea",
    "water lily",
    "rose",
    "thorn apple",
    "morning glory",
    "passion flower",
    "lotus lotus",
    "toad lily",
    "anthurium",
    "frangipani",
    "clematis",
    "hibiscus",
    "columbine",
    "desert-rose",
    "tree mallow",
    "magnolia",
    "cyclamen",
    "watercress",
    "canna lily",
    "hippeastrum",
    "bee balm",
    "ball moss",
    "foxglove",
    "bougainvillea",
    "camellia",
    "mallow",
    "mexican petunia",
    "bromelia",
    "blanket flower",
    "trumpet creeper",
    "blackberry lily",
];
