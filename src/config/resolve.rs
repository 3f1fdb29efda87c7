//! Layers of settings to one checked configuration.

use std::io::Read;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::keys::{self, KEYS, Key};
use super::unet::{self, UnetConfig};
use super::{Config, Family, LATER_KEYS, Precision};
use crate::error::{Error, Result};

/// Largest configuration file that is read.
const LARGEST_FILE: u64 = 1 << 20;

/// What the command line says about the configuration; later fields win over earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// A preset by name; [`Config::default_preset_name`] where it is missing.
    pub preset: Option<String>,
    /// A TOML file of keys.
    pub file: Option<PathBuf>,
    /// `key=value` texts, later ones winning.
    pub sets: Vec<String>,
    /// Key `data`.
    pub data: Option<String>,
    /// Key `precision`.
    pub precision: Option<String>,
    /// Key `epochs`; also sets `steps` to 0.
    pub epochs: Option<String>,
    /// Key `steps`.
    pub steps: Option<String>,
    /// Key `seed`.
    pub seed: Option<String>,
}

/// Those options of [`Layers`] that may change when a run is resumed.
pub const RESUME_OPTIONS: &[&str] = &["--data", "--epochs", "--steps"];

impl Layers {
    /// The named options that are given, with the key that each sets.
    fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("data", &self.data),
            ("precision", &self.precision),
            ("epochs", &self.epochs),
            ("steps", &self.steps),
            ("seed", &self.seed),
        ];
        all.into_iter().filter_map(|(key, text)| Some((key, text.as_deref()?)))
    }

    /// The options that are given.
    fn given(&self) -> Vec<String> {
        let mut given = Vec::new();
        given.extend(self.preset.is_some().then(|| "--preset".to_string()));
        given.extend(self.file.is_some().then(|| "--config".to_string()));
        given.extend((!self.sets.is_empty()).then(|| "--set".to_string()));
        given.extend(self.named().map(|(key, _)| format!("--{key}")));
        given
    }

    /// Refuses what cannot change when a run is resumed.
    ///
    /// # Errors
    /// An option other than [`RESUME_OPTIONS`] is given.
    pub fn check_resume(&self) -> Result<()> {
        let others: Vec<_> = self.given().into_iter().filter(|o| !RESUME_OPTIONS.contains(&o.as_str())).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "{} cannot be changed with --resume, which takes the run's own configuration; of the settings, {} may change",
            others.join(", "),
            RESUME_OPTIONS.join(", ")
        )))
    }

    /// The name of the preset that [`Config::resolve`] starts from.
    pub fn preset_name(&self) -> &str {
        self.preset.as_deref().unwrap_or(Config::default_preset_name())
    }
}

impl Config {
    /// Puts the layers together and checks the result.
    ///
    /// # Errors
    /// An unknown preset or key, a value out of bounds, or values that do not fit each other, each by name, with what would do.
    pub fn resolve(layers: &Layers) -> Result<Config> {
        let mut preset = Config::preset(layers.preset_name())?;
        let config = preset.with(layers)?;
        // The repeats of the original differ with its data; one that is given wins still.
        match Config::repeat_for(layers.preset_name(), &config.data) {
            Some(repeat) => {
                preset.repeat = repeat;
                preset.with(layers)
            }
            None => Ok(config),
        }
    }

    /// The layers but for the preset, on top of `self`; for configurations that come from elsewhere.
    ///
    /// # Errors
    /// As for [`Config::resolve`].
    pub fn with(&self, layers: &Layers) -> Result<Config> {
        let mut table = self.table()?;
        if let Some(path) = &layers.file {
            let text = read_file(path)?;
            overlay(&mut table, file_layer(&text).map_err(|what| Error::input(path, what))?);
        }
        overlay(&mut table, set_layer(&layers.sets)?);
        overlay(&mut table, named_layer(layers)?);
        Config::from_table(table)
    }

    /// The configuration of a resumed run: that of the run, with the few options that may change ([`RESUME_OPTIONS`]).
    ///
    /// # Errors
    /// Another option is given, or a value is out of bounds.
    pub fn resume(run: &Config, layers: &Layers) -> Result<Config> {
        layers.check_resume()?;
        let mut table = run.table()?;
        overlay(&mut table, named_layer(layers)?);
        Config::from_table(table)
    }

    /// A complete configuration, as [`Config::to_toml`] writes it; one of an earlier version may lack [`LATER_KEYS`].
    ///
    /// # Errors
    /// Not TOML, a key that is missing or unknown, or a value that does not do.
    pub fn from_toml(text: &str) -> Result<Config> {
        let mut table = file_layer(text).map_err(Error::Usage)?;
        if let Some(Value::Table(options)) = table.get_mut(UNET) {
            options.retain(|name, value| !(value.as_str() == Some(NOTHING) && unet::OPTIONAL.contains(&name)));
        }
        let neutral = Config::seed_preset().table()?;
        for name in LATER_KEYS.iter().filter(|name| !table.contains_key(**name)).collect::<Vec<_>>() {
            table.extend(neutral.get(*name).map(|value| (name.to_string(), value.clone())));
        }
        let missing: Vec<_> = KEYS.iter().map(|key| key.name).filter(|name| !table.contains_key(*name)).collect();
        if !missing.is_empty() {
            return Err(Error::Usage(format!("missing keys: {}", missing.join(", "))));
        }
        Config::from_table(table)
    }

    /// A complete configuration from a file, such as a run's `config.toml`.
    ///
    /// # Errors
    /// The file cannot be read, or as for [`Config::from_toml`], with its path.
    pub fn from_file(path: &Path) -> Result<Config> {
        Config::from_toml(&read_file(path)?).map_err(|why| Error::input(path, why.to_string()))
    }

    /// Checks all values, alone and together. [`Config::resolve`] has done so; for configurations that come from elsewhere.
    ///
    /// # Errors
    /// Names the key, the value found and what is expected.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in self.table()?.into_iter().filter(|(name, _)| name != UNET) {
            let key = Key::find(&name).ok_or_else(|| Error::Usage(keys::unknown_key(&name)))?;
            key.check(value).map_err(|what| Error::Usage(format!("{name}: {what}")))?;
        }
        self.check_together().map_err(Error::Usage)
    }

    /// As TOML values.
    pub(super) fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|why| Error::Usage(format!("the configuration cannot be written as TOML: {why}")))
    }

    fn from_table(table: Table) -> Result<Config> {
        let mut config: Config = table.try_into().map_err(|why: toml::de::Error| Error::Usage(why.message().into()))?;
        if config.family == Family::Unet2d && config.unet.is_none() {
            config.unet = Some(UnetConfig::default());
        }
        config.validate()?;
        Ok(config)
    }

    /// Values that do not fit each other.
    fn check_together(&self) -> std::result::Result<(), String> {
        let (size, levels) = (self.image_size, self.levels());
        let multiple = 1 << levels;
        match (self.family, &self.unet) {
            (Family::Seed, Some(_)) => {
                return Err("family seed and options under unet.: those belong to family unet2d; leave one out".into());
            }
            (Family::Unet2d, None) => return Err("family unet2d has no options under unet.".into()),
            (Family::Unet2d, Some(unet)) => {
                unet.validate()?;
                if size % multiple != 0 {
                    return Err(format!(
                        "image_size {size} with the {} levels of unet.block_out_channels: must be a multiple of {multiple}; nearest: {}",
                        levels + 1,
                        size.next_multiple_of(multiple)
                    ));
                }
            }
            (Family::Seed, None) => {}
        }
        let widths = self.get("widths");
        if size % multiple != 0 {
            let (below, above) = (size / multiple * multiple, size.next_multiple_of(multiple));
            let nearest = if below == 0 { above.to_string() } else { format!("{below} or {above}") };
            let shorter = match size.trailing_zeros() {
                0 => String::new(),
                most => format!("; or give widths of at most {most} level{}", if most == 1 { "" } else { "s" }),
            };
            return Err(format!(
                "image_size {size} with {levels} level{} (widths {widths}): must be a multiple of {multiple}; nearest: {nearest}{shorter}",
                if levels == 1 { "" } else { "s" },
            ));
        }
        if self.min_signal_rate >= self.max_signal_rate {
            return Err(format!(
                "min_signal_rate {} and max_signal_rate {}: the least must be below the most, such as 0.02 and 0.95",
                keys::number(self.min_signal_rate),
                keys::number(self.max_signal_rate)
            ));
        }
        self.check_training()?;
        let part = self.batch_size / self.accumulate;
        if self.family == Family::Seed && part == 1 && size == multiple {
            let of = if self.accumulate > 1 {
                format!(" (in {} parts by accumulate)", self.accumulate)
            } else {
                String::new()
            };
            return Err(format!(
                "batch_size {}{of} with image_size {size} and {levels} levels: the innermost level has one value per channel, and batch \
                 norm has no deviation; expected batch_size {} or more, or image_size {} or more",
                self.batch_size,
                2 * self.accumulate,
                2 * multiple
            ));
        }
        Ok(())
    }
}

impl Precision {
    /// Reads `--precision` where there is no configuration (`check`).
    ///
    /// # Errors
    /// Not a precision of this build; the message lists those that are.
    pub fn parse(text: &str) -> Result<Precision> {
        let layers = Layers { precision: Some(text.into()), ..Layers::default() };
        Config::resolve(&layers).map(|config| config.precision)
    }
}

/// Puts `layer` over `table`. A layer that gives `epochs` without `steps` means epochs.
fn overlay(table: &mut Table, layer: Table) {
    if layer.contains_key("epochs") && !layer.contains_key("steps") {
        table.insert("steps".into(), Value::Integer(0));
    }
    let mut layer = layer;
    if let Some(Value::Table(options)) = layer.remove(UNET) {
        let all = table.entry(UNET).or_insert_with(|| Value::Table(unet_defaults()));
        if let Value::Table(all) = all {
            for (name, value) in options {
                match value {
                    Value::String(text) if text == NOTHING && name != "mid_block_type" => drop(all.remove(&name)),
                    value => drop(all.insert(name, value)),
                }
            }
        }
    }
    table.extend(layer);
}

/// The table of the options of the family unet2d, and the start of their names in `--set`.
const UNET: &str = "unet";
/// What stands for the absence of an option that may be absent.
pub(super) const NOTHING: &str = "none";

fn unet_defaults() -> Table {
    Table::try_from(UnetConfig::default()).unwrap_or_default()
}

/// Checks one option of the family unet2d by itself.
pub(super) fn check_unet(name: &str, value: &Value) -> std::result::Result<(), String> {
    let shown = keys::shown(name);
    if !unet::OPTIONS.contains(&name) {
        let near = keys::nearest(name, unet::OPTIONS.iter().copied());
        let hint = near.map_or(String::new(), |near| format!("; did you mean `unet.{near}`?"));
        return Err(format!("unknown option `unet.{shown}`{hint}\noptions: {}", unet::OPTIONS.join(" ")));
    }
    if value.as_str() == Some(NOTHING) && unet::OPTIONAL.contains(&name) {
        return Ok(());
    }
    let bad = |why: String| format!("unet.{shown}: {}", why.lines().next().unwrap_or_default());
    let json = serde_json::to_value(value).map_err(|why| bad(why.to_string()))?;
    UnetConfig::default().set(name, json).map_err(bad)
}

/// Reads the text behind `--set unet.NAME=`: as TOML, or as the string that it is.
pub(super) fn read_unet(text: &str) -> Value {
    let text = text.trim();
    let list = |text: &str| {
        let quoted: Vec<_> = text.split(',').map(|item| item.trim().trim_matches(['"', '\''])).collect();
        let numbers: Option<Vec<_>> = quoted.iter().map(|item| item.parse().ok().map(Value::Integer)).collect();
        Value::Array(numbers.unwrap_or_else(|| quoted.iter().map(|&item| Value::String(item.into())).collect()))
    };
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return list(inner);
    }
    if text.contains(',') {
        return list(text);
    }
    let toml: Option<Value> = format!("x = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("x"));
    toml.unwrap_or_else(|| Value::String(text.into()))
}

/// The layer of a file's text.
fn file_layer(text: &str) -> std::result::Result<Table, String> {
    let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
    let table: Table = text.parse().map_err(|why: toml::de::Error| {
        let place = why.span().map_or(String::new(), |span| format!("line {}: ", line_at(span.start)));
        format!("{place}not TOML: {}", why.message().lines().collect::<Vec<_>>().join(" "))
    })?;
    let mut layer = Table::new();
    for (name, value) in table {
        let line = text.lines().position(|line| {
            line.trim_start().strip_prefix(name.as_str()).is_some_and(|rest| rest.trim_start().starts_with('='))
        });
        let place = line.map_or(String::new(), |line| format!("line {}: ", line + 1));
        if name == UNET
            && let Value::Table(options) = &value
        {
            options
                .iter()
                .try_for_each(|(name, value)| check_unet(name, value))
                .map_err(|what| format!("{place}{what}"))?;
            layer.insert(name, value);
            continue;
        }
        let Some(key) = Key::find(&name) else {
            let flat = if value.is_table() { "the keys are flat, without [sections]; " } else { "" };
            return Err(format!("{place}{flat}{}", keys::unknown_key(&name)));
        };
        let value = key.check(value).map_err(|what| format!("{place}{name}: {what}"))?;
        layer.insert(name, value);
    }
    Ok(layer)
}

/// The layer of `--set key=value` texts.
fn set_layer(sets: &[String]) -> Result<Table> {
    let mut layer = Table::new();
    for set in sets {
        let at = |what: String| Error::Usage(format!("--set {}: {what}", keys::shown(set)));
        let (name, text) = set.split_once('=').ok_or_else(|| at("expected key=value, such as lr=0.001".into()))?;
        let name = name.trim();
        if let Some(option) = name.strip_prefix("unet.") {
            let value = read_unet(text);
            check_unet(option, &value).map_err(at)?;
            let options = layer.entry(UNET).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(options) = options {
                options.insert(option.into(), value);
            }
            continue;
        }
        let key = Key::find(name).ok_or_else(|| at(keys::unknown_key(name)))?;
        layer.insert(name.into(), key.read(text).map_err(at)?);
    }
    Ok(layer)
}

/// The layer of the named options.
fn named_layer(layers: &Layers) -> Result<Table> {
    let mut layer = Table::new();
    for (name, text) in layers.named() {
        let at = |what| Error::Usage(format!("--{name} {}: {what}", keys::shown(text)));
        let key = Key::find(name).ok_or_else(|| at(keys::unknown_key(name)))?;
        layer.insert(name.into(), key.read(text).map_err(at)?);
    }
    Ok(layer)
}

/// The text of a configuration file.
fn read_file(path: &Path) -> Result<String> {
    if path.is_dir() {
        return Err(Error::input(path, "is a folder; expected a TOML file, such as config.toml in a run's folder"));
    }
    let refused = |why: std::io::Error| match why.kind() {
        std::io::ErrorKind::InvalidData => Error::input(path, "is not text; expected a TOML file"),
        _ => Error::input(path, format!("cannot read the configuration: {why}")),
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(refused)?;
    file.take(LARGEST_FILE + 1).read_to_string(&mut text).map_err(refused)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(Error::input(path, "is larger than 1 MiB; expected a TOML file of keys"));
    }
    Ok(text)
}
