//! The table of configuration keys: meaning, accepted values, and help with misspelt names.

use toml::Value;

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// Its name, in TOML and in `--set`.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// The values that it takes.
    pub kind: Kind,
}

/// The values that a key takes.
#[derive(Debug)]
pub enum Kind {
    /// One of a few names.
    Choice {
        /// The names.
        names: &'static [&'static str],
        /// Names that exist elsewhere, refused with the reason.
        absent: &'static [(&'static str, &'static str)],
    },
    /// A whole number within bounds, both included.
    Integer {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// An even whole number within bounds, both included.
    Even {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// One of a few whole numbers.
    OneOf(&'static [u64]),
    /// A finite number within bounds, both included.
    Real {
        /// The least.
        least: f64,
        /// The most.
        most: f64,
    },
    /// A finite number from 0 up to, but not including, 1; also once it is rounded to single precision.
    Decay,
    /// `true` or `false`.
    Flag,
    /// A name or path.
    Text,
    /// A list of whole numbers.
    List {
        /// The longest list.
        longest: usize,
        /// The largest member; the least is 1.
        most: u64,
    },
}

const fn key(name: &'static str, about: &'static str, kind: Kind) -> Key {
    Key { name, about, kind }
}

const fn choice(names: &'static [&'static str]) -> Kind {
    Kind::Choice { names, absent: &[] }
}

const fn integer(least: u64, most: u64) -> Kind {
    Kind::Integer { least, most }
}

const fn real(least: f64, most: f64) -> Kind {
    Kind::Real { least, most }
}

/// The schedules; the family seed has the first two.
const SCHEDULES: &[&str] = &["linear", "cosine", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "edm"];

/// All keys, in the order of the fields of [`super::Config`].
pub const KEYS: &[Key] = &[
    key("family", "model family", choice(&["seed", "unet2d"])),
    key("image_size", "pixels each way: a multiple of 2^levels", integer(2, 4096)),
    key("channels", "1 grey, 3 RGB, 4 RGBA", Kind::OneOf(&[1, 3, 4])),
    key("widths", "channels of each level, full resolution first", Kind::List { longest: 10, most: 8192 }),
    key("block_depth", "residual blocks in each level", integer(1, 32)),
    key("embedding_dim", "channels of the noise embedding: even", Kind::Even { least: 2, most: 4096 }),
    key("schedule", "noise schedule", choice(SCHEDULES)),
    key("beta_start", "unet2d: first beta of a schedule", real(1e-9, 0.999)),
    key("beta_end", "unet2d: last beta of a schedule", real(1e-9, 0.999)),
    key("train_timesteps", "unet2d: steps of the schedule", integer(2, 100_000)),
    key("zero_snr", "unet2d: no signal at the last step", Kind::Flag),
    key("min_signal_rate", "signal rate at time 1, all noise", real(1e-4, 0.9999)),
    key("max_signal_rate", "signal rate at time 0, nearly clean", real(1e-4, 0.9999)),
    key("predict", "what is predicted", choice(&["noise", "image", "velocity"])),
    key("loss", "training loss", choice(&["mae", "mse", "huber"])),
    key("min_snr_gamma", "unet2d: bound of the loss's weight; 0: off", real(0.0, 1e6)),
    key("offset_noise", "share of noise that is one per channel", real(0.0, 1.0)),
    key("optimizer", "optimiser", choice(&["adamw", "adam"])),
    key("lr", "learning rate", real(1e-12, 10.0)),
    key("lr_schedule", "learning rate over the run", choice(&["constant", "cosine", "linear"])),
    key("lr_warmup", "steps in which lr rises to its value", integer(0, 1_000_000_000)),
    key("lr_min", "lr that cosine and linear end at", real(0.0, 10.0)),
    key("weight_decay", "weight decay", real(0.0, 10.0)),
    key("grad_clip", "largest norm of all gradients; 0: off", real(0.0, 1e6)),
    key("batch_size", "pictures in a step", integer(1, 65_536)),
    key("accumulate", "parts that a batch is computed in", integer(1, 65_536)),
    key("epochs", "passes over the training pictures", integer(1, 1_000_000)),
    key("steps", "steps in all; 0: as many as epochs make", integer(0, 1_000_000_000)),
    key("seed", "seed of weights, order, times and noise", integer(0, i64::MAX as u64)),
    key("precision", "arithmetic", choice(&["auto", "fp32", "tf32", "bf16"])),
    key("data", "procedural, flowers, pets, debug, folder, file", Kind::Text),
    key("labels", "unet2d: classes: CSV of file,label; auto; none", Kind::Text),
    key("label_dropout", "unet2d: share of labels left out in training", real(0.0, 0.99)),
    key("repeat", "times a picture is seen in an epoch", integer(1, 10_000)),
    key("flip", "random horizontal flips", Kind::Flag),
    key("valid_fraction", "share of the pictures kept for validation", real(0.0, 0.9)),
    key("normalize", "pixels to mean 0, deviation 1, or to [-1, 1]", choice(&["measured", "fixed"])),
    key("normalize_batches", "batches that give mean and deviation", integer(1, 1_000_000)),
    key("ema_decay", "average of the weights, for samples; 0: off", Kind::Decay),
    key("ema_warmup", "ema_decay rises over the first steps", Kind::Flag),
    key("eval_every", "steps between validations; 0 is each epoch", integer(0, 1_000_000_000)),
    key("sample_count", "pictures in the grid after an epoch", integer(0, 10_000)),
    key("sample_steps", "sampler's grid: network calls plus one", integer(2, 10_000)),
    key("sampler", "sampler", choice(&["ddim", "ddpm", "dpm++2m", "heun"])),
    key("sample_spacing", "its points", choice(&["leading", "trailing", "linspace", "quadratic", "karras"])),
    key("sample_offset", "added to the points of leading spacing", integer(0, 1000)),
    key("sample_clip", "predicted pictures within +- this; 0: off", real(0.0, 1000.0)),
    key("sample_quantile", "dynamic threshold at this quantile; 0: off", real(0.0, 1.0)),
    key("sample_quantile_max", "the most that threshold may be", real(1.0, 1000.0)),
    key("sample_variance", "noise that ddpm adds", choice(&["small", "large"])),
    key("sample_to_clean", "the last step ends without noise", Kind::Flag),
    key("workers", "threads; 0: one per core; same results", integer(0, 1024)),
];

/// Names by which other programs, the original among them, know our keys.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("family", &["model", "arch", "architecture", "model_type"]),
    (
        "image_size",
        &["image_width", "image_height", "img_size", "resolution", "size", "imgsz", "width", "height", "sample_size"],
    ),
    ("channels", &["in_channels", "num_channels", "image_channels", "num_image_channels"]),
    ("widths", &["block_widths", "unet_widths", "block_out_channels", "filters", "model_widths", "dims"]),
    ("block_depth", &["depth", "unet_depth", "num_res_blocks", "layers_per_block", "model_depth"]),
    (
        "embedding_dim",
        &["embedding_size", "embedding_dims", "noise_embedding_dim", "noise_embedding_size", "embed_dim", "time_dim"],
    ),
    (
        "schedule",
        &["schedule_type", "diffusion_schedule", "beta_schedule", "noise_schedule", "noise_scheduler", "scheduler"],
    ),
    ("beta_start", &["beta_min", "beta_1"]),
    ("beta_end", &["beta_max", "beta_t"]),
    (
        "train_timesteps",
        &["num_train_timesteps", "timesteps", "n_timesteps", "num_diffusion_timesteps", "ddpm_num_steps"],
    ),
    ("zero_snr", &["rescale_betas_zero_snr", "zero_terminal_snr", "ztsnr"]),
    ("min_snr_gamma", &["snr_gamma", "min_snr", "min_snr_loss_weight", "snr"]),
    ("offset_noise", &["noise_offset", "offset_noise_strength"]),
    ("min_signal_rate", &["min_rate", "signal_rate_min", "min_signal"]),
    ("max_signal_rate", &["max_rate", "signal_rate_max", "max_signal"]),
    ("predict", &["loss_on", "prediction", "prediction_type", "objective", "target", "parameterization"]),
    ("loss", &["loss_type", "loss_fn", "loss_function", "criterion"]),
    ("optimizer", &["optimiser", "optimizer_name", "optimizer_type", "optim", "opt"]),
    ("lr", &["learning_rate", "learningrate", "max_lr", "base_lr", "train_lr", "step_size", "alpha"]),
    ("lr_schedule", &["lr_scheduler", "lr_scheduler_type", "scheduler_type", "learning_rate_schedule", "lr_decay"]),
    ("lr_warmup", &["warmup", "warmup_steps", "lr_warmup_steps", "num_warmup_steps"]),
    ("lr_min", &["min_lr", "eta_min", "lr_end", "final_lr"]),
    ("weight_decay", &["wd", "decay", "l2", "weight_decay_rate"]),
    ("grad_clip", &["clip", "max_grad_norm", "gradient_clip", "grad_clip_norm", "clip_grad", "clip_grad_norm"]),
    ("batch_size", &["batch", "batchsize", "train_batch_size", "bs", "batch_sz", "minibatch"]),
    (
        "accumulate",
        &["gradient_accumulation_steps", "gradient_accumulate_every", "accumulation", "grad_accum", "accum_steps"],
    ),
    ("epochs", &["epoch", "num_epochs", "n_epochs", "max_epochs", "train_epochs"]),
    ("steps", &["num_steps", "n_steps", "max_steps", "total_steps", "train_num_steps", "iterations", "iters"]),
    ("seed", &["random_seed", "rng_seed", "manual_seed"]),
    ("precision", &["dtype", "mixed_precision", "amp", "fp16", "bf16", "fp32", "tf32"]),
    ("data", &["dataset", "dataset_name", "data_path", "dataset_path", "folder", "images", "train_data_dir", "source"]),
    ("labels", &["label_file", "labels_csv", "classes", "class_labels", "labels_file"]),
    ("label_dropout", &["class_dropout", "class_dropout_prob", "cond_drop_prob", "label_dropout_prob", "p_uncond"]),
    ("repeat", &["dataset_repetitions", "repetitions", "repeats"]),
    ("flip", &["horizontal_flip", "random_flip", "hflip", "augment", "augmentation", "augment_horizontal_flip"]),
    ("valid_fraction", &["validation_split", "valid_split", "val_split", "valid", "val_fraction", "validation"]),
    ("normalize_batches", &["normalise_batches", "normalizer_batches", "normalize_steps", "num_norm_batches"]),
    ("ema_decay", &["ema", "ema_rate", "ema_beta", "use_ema"]),
    ("sample_count", &["num_samples", "n_samples", "samples", "num_images", "n_images"]),
    (
        "sample_steps",
        &["diffusion_steps", "plot_diffusion_steps", "sampling_steps", "inference_steps", "num_inference_steps"],
    ),
    ("workers", &["num_workers", "n_workers", "num_threads", "n_threads", "threads_per_worker", "cores"]),
];

/// Names of values in other programs, and ours.
const VALUE_SYNONYMS: &[(&str, &str)] = &[
    ("l1", "mae"),
    ("l2", "mse"),
    ("smooth_l1", "huber"),
    ("eps", "noise"),
    ("epsilon", "noise"),
    ("x0", "image"),
    ("sample", "image"),
    ("v", "velocity"),
    ("v_prediction", "velocity"),
    ("float32", "fp32"),
    ("f32", "fp32"),
];

/// Options of the command line that are not configuration keys.
const OPTIONS: &[&str] = &["preset", "config", "device", "data_dir", "run_dir", "resume", "threads", "quiet"];

impl Key {
    /// The key called `name`.
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// What is expected of a value, as the end of a sentence.
    pub fn expected(&self) -> String {
        match self.kind {
            Kind::Choice { names: [only], .. } => only.to_string(),
            Kind::Choice { names, .. } => format!("one of {}", names.join(", ")),
            Kind::Integer { least, most } => format!("a whole number from {least} to {most}"),
            Kind::Even { least, most } => format!("an even number from {least} to {most}"),
            Kind::OneOf(values) => {
                format!("one of {}", values.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
            }
            Kind::Real { least, most } => format!("a number from {} to {}", number(least), number(most)),
            Kind::Decay => "a number from 0 up to, not including, 1".into(),
            Kind::Flag => "true or false".into(),
            Kind::Text => "a name or path, without control characters".into(),
            Kind::List { longest, most } => {
                format!("a list of 1 to {longest} whole numbers from 1 to {most}, such as 32,64,96")
            }
        }
    }

    /// Reads the text behind `--set key=` or of a named option.
    pub(super) fn read(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let bare = unquoted(text);
        let value = match self.kind {
            Kind::Choice { .. } | Kind::Text => Some(Value::String(bare.into())),
            Kind::Flag => bare.parse().ok().map(Value::Boolean),
            Kind::Real { .. } | Kind::Decay => bare.parse().ok().map(Value::Float),
            Kind::Integer { .. } | Kind::Even { .. } | Kind::OneOf(_) => whole(bare),
            Kind::List { .. } => {
                let open = bare.strip_prefix('[').map_or(Some(bare), |rest| rest.strip_suffix(']'));
                open.and_then(|inner| {
                    let inner = inner.trim();
                    let inner = inner.strip_suffix(',').unwrap_or(inner);
                    let items = inner.split(',').filter(|_| !inner.is_empty());
                    items.map(|item| whole(item.trim())).collect::<Option<Vec<_>>>().map(Value::Array)
                })
            }
        };
        value.ok_or_else(|| self.refusal(text)).and_then(|value| self.check(value))
    }

    /// Checks a value's type and bounds, and gives it the type of the field.
    pub(super) fn check(&self, value: Value) -> Result<Value, String> {
        let within = |least: u64, most: u64, value: &Value| {
            value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| (least..=most).contains(n))
        };
        let value = match (&self.kind, value) {
            (Kind::Real { .. } | Kind::Decay, Value::Integer(n)) => Value::Float(n as f64),
            (_, value) => value,
        };
        let good = match (&self.kind, &value) {
            (Kind::Choice { names, absent }, Value::String(name)) => {
                if let Some((_, why)) = absent.iter().find(|(other, _)| other == name) {
                    return Err(format!("{name} is {why}; expected {}", self.expected()));
                }
                names.contains(&name.as_str())
            }
            (Kind::Integer { least, most }, _) => within(*least, *most, &value).is_some(),
            (Kind::Even { least, most }, _) => within(*least, *most, &value).is_some_and(|n| n % 2 == 0),
            (Kind::OneOf(values), _) => within(0, u64::MAX, &value).is_some_and(|n| values.contains(&n)),
            (Kind::Real { least, most }, Value::Float(x)) => (least..=most).contains(&x),
            (Kind::Decay, Value::Float(x)) => *x >= 0.0 && (*x as f32) < 1.0,
            (Kind::Flag, Value::Boolean(_)) => true,
            (Kind::Text, Value::String(text)) => !text.trim().is_empty() && !text.chars().any(char::is_control),
            (Kind::List { longest, most }, Value::Array(items)) => {
                (1..=*longest).contains(&items.len()) && items.iter().all(|item| within(1, *most, item).is_some())
            }
            _ => false,
        };
        if good { Ok(value) } else { Err(self.refusal(&found(&value))) }
    }

    /// What to say about the value `found`.
    fn refusal(&self, found: &str) -> String {
        let hint = match self.kind {
            Kind::Choice { names, .. } => {
                let plain = unquoted(found).to_lowercase();
                let synonym = VALUE_SYNONYMS.iter().find(|(theirs, ours)| *theirs == plain && names.contains(ours));
                let near = synonym.map(|(_, ours)| *ours).or_else(|| nearest(&plain, names.iter().copied()));
                near.map(|near| format!("; did you mean `{near}`?"))
            }
            _ => None,
        };
        let found = if found.is_empty() { "nothing".into() } else { shown(found) };
        format!("found {found}, expected {}{}", self.expected(), hint.unwrap_or_default())
    }
}

/// A whole number, with TOML's underscores.
fn whole(text: &str) -> Option<Value> {
    let digits = text.replace('_', "");
    digits.parse().ok().filter(|_| !digits.starts_with('+')).map(Value::Integer)
}

/// `text` without one pair of quotes around it.
fn unquoted(text: &str) -> &str {
    let inside = |quote| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

/// A value as messages name it.
fn found(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Float(x) => number(*x),
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(found).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// A number without needless digits or zeros.
pub(super) fn number(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e15) { format!("{x:e}") } else { x.to_string() }
}

/// `text` fit for a line of a message: control characters escaped, not too long.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(80)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

/// The candidate nearest to `name`, where one is near enough to be meant.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name: String = name.to_lowercase().replace('-', "_").chars().take(80).collect();
    let scored = candidates.map(|candidate| (strsim::normalized_damerau_levenshtein(&name, candidate), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.55).then_some(best.1)
}

/// What to say about a key that does not exist.
pub(super) fn unknown_key(name: &str) -> String {
    let plain = name.to_lowercase().replace('-', "_");
    let synonym = SYNONYMS.iter().find(|(_, others)| others.contains(&plain.as_str()));
    let hint = if OPTIONS.contains(&plain.as_str()) {
        format!("; it is an option of the command line: --{}", plain.replace('_', "-"))
    } else {
        let names = KEYS.iter().map(|key| key.name);
        match synonym.map(|(key, _)| *key).or_else(|| nearest(&plain, names)) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => String::new(),
        }
    };
    let mut text = format!("unknown key `{}`{hint}\nkeys:", shown(name));
    let mut column = 5;
    for key in KEYS {
        if column + key.name.len() + 2 > 100 {
            text.push_str("\n     ");
            column = 5;
        }
        text.push_str(&format!(" {}", key.name));
        column += key.name.len() + 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn rows_are_the_fields_in_order() {
        let fields = serde_json::to_value(Config::seed_preset()).unwrap();
        let fields: Vec<_> = fields.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    }

    #[test]
    fn every_choice_is_a_variant() {
        for key in KEYS {
            if let Kind::Choice { names, .. } = key.kind {
                for name in names {
                    let mut table = toml::Table::try_from(Config::seed_preset()).unwrap();
                    table.insert(key.name.into(), Value::String((*name).into()));
                    table.try_into::<Config>().unwrap();
                }
            }
        }
    }

    #[test]
    fn synonyms_name_keys_and_are_none_themselves() {
        for (name, others) in SYNONYMS {
            assert!(Key::find(name).is_some(), "{name}");
            assert!(others.iter().all(|other| Key::find(other).is_none()), "{others:?}");
        }
        assert!(OPTIONS.iter().all(|option| Key::find(option).is_none()));
    }
}
