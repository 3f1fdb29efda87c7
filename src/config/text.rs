//! A configuration as text: `config.toml`, and the list of keys that `train --help` prints.

use toml::Value;

use super::keys::{KEYS, Key, Kind};
use super::{Config, PRESETS};

impl Config {
    /// The value of a key as TOML writes it; empty for a key that does not exist.
    pub fn get(&self, name: &str) -> String {
        let table = self.table().unwrap_or_default();
        table.get(name).map_or(String::new(), written)
    }

    /// A complete, commented TOML file that [`Config::resolve`] and [`Config::from_toml`] read back to the same configuration.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# Configuration of ddim-engine {}, complete. Run it again: ddim-engine train --config THIS_FILE\n\n",
            env!("CARGO_PKG_VERSION")
        );
        for key in KEYS {
            let line = format!("{} = {}", key.name, self.get(key.name));
            text.push_str(&format!("{line:<36} # {} ({})\n", key.about, key.expected()));
        }
        if let Some(Value::Table(options)) = self.table().unwrap_or_default().get("unet") {
            text.push_str("\n[unet] # options of diffusers' UNet2DModel, under its names\n");
            for name in super::unet::OPTIONS {
                match options.get(*name) {
                    Some(value) => text.push_str(&format!("{name} = {}\n", written(value))),
                    // Said, so that no default comes in its place where the file is a layer over a preset.
                    None if super::unet::OPTIONAL.contains(name) => {
                        text.push_str(&format!("{name} = \"{}\"\n", super::resolve::NOTHING));
                    }
                    None => {}
                }
            }
        }
        text
    }

    /// The keys with their values in the default preset and what they mean, and the values that other presets have instead, for a terminal
    /// of 100 columns.
    pub fn describe_keys() -> String {
        let default = Config::preset(Config::default_preset_name()).unwrap_or_else(|_| Config::quick_preset());
        let header = ["KEY".to_string(), Config::default_preset_name().to_uppercase(), "MEANING".into()];
        let row = |key: &Key| [key.name.to_string(), default.get(key.name), meaning(key)];
        let rows: Vec<_> = std::iter::once(header).chain(KEYS.iter().map(row)).collect();
        let widest = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let (names, values) = (widest(0), widest(1));
        let mut text = String::new();
        for [name, value, meaning] in &rows {
            let start = format!("  {name:<names$}  {value:<values$}  ");
            text.push_str(&wrapped(&start, &" ".repeat(start.len()), meaning.split_inclusive(' ')));
        }
        let options = super::unet::OPTIONS.iter().map(|name| format!("{name} ")).collect::<Vec<_>>();
        let start = "  unet.NAME  options of the family unet2d, under the names of diffusers' UNet2DModel: ";
        text.push_str(&wrapped(start, "    ", options.iter().map(String::as_str)));
        for (name, _) in PRESETS.iter().filter(|(name, _)| *name != Config::default_preset_name()) {
            let Ok(preset) = Config::preset(name) else { continue };
            let keys: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            let mut differs: Vec<String> = preset.differences(&default, &keys).into_iter().map(assignment).collect();
            if let Some(unet) = &preset.unet {
                differs.extend(unet_options(unet).into_iter().map(|(name, value)| format!("unet.{name}={value} ")));
            }
            let start = format!("  {}  ", name.to_uppercase());
            text.push_str(&wrapped(&start, "    ", differs.iter().map(String::as_str)));
        }
        text
    }
}

/// A key with the first of two values, as `--set` takes it.
fn assignment((key, value, _): (&str, String, String)) -> String {
    format!("{key}={} ", value.replace([' ', '"'], ""))
}

/// The options in which a network differs from the one that the family has by default.
fn unet_options(unet: &super::UnetConfig) -> Vec<(&'static str, String)> {
    let table = |unet: &super::UnetConfig| toml::Table::try_from(unet).unwrap_or_default();
    let (ours, default) = (table(unet), table(&super::UnetConfig::default()));
    let differ = super::unet::OPTIONS.iter().filter(|name| ours.get(**name) != default.get(**name));
    differ.map(|&name| (name, ours.get(name).map_or("none".into(), written).replace([' ', '"'], ""))).collect()
}

/// `start` and the words behind it, in lines of at most 100 columns, the later ones after `indent`.
fn wrapped<'a>(start: &str, indent: &str, words: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    let mut line = start.to_string();
    for word in words {
        if line.len() + word.trim_end().len() > 100 {
            text.push_str(line.trim_end());
            text.push('\n');
            line = indent.to_string();
        }
        line.push_str(word);
    }
    text.push_str(line.trim_end());
    text.push('\n');
    text
}

/// What a key is, with the names that it takes.
fn meaning(key: &Key) -> String {
    match key.kind {
        Kind::Choice { names, .. } => format!("{}: {}", key.about, names.join(", ")),
        _ => key.about.into(),
    }
}

/// A value as TOML; floats in the shortest form that reads back to the same number.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::Float(x) => format!("{x:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
