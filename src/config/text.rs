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
            text.push_str(&format!("{line:<36} # {}: {}\n", key.about, key.expected()));
        }
        text
    }

    /// The keys with their values in every preset, as a table for a terminal of 100 columns.
    pub fn describe_keys() -> String {
        let presets: Vec<_> =
            PRESETS.iter().filter_map(|(name, _)| Some((*name, Config::preset(name).ok()?))).collect();
        let mut text = format!("  {:<18}", "key");
        presets.iter().for_each(|(name, _)| text.push_str(&format!("{name:<19}")));
        text.push_str("meaning\n");
        for key in KEYS {
            let mut line = format!("  {:<18}", key.name);
            presets.iter().for_each(|(_, config)| line.push_str(&format!("{:<19}", config.get(key.name))));
            text.push_str(&line);
            text.push_str(&meaning(key));
            text.push('\n');
        }
        text
    }
}

/// What a key is, with the names that it takes.
fn meaning(key: &Key) -> String {
    match key.kind {
        Kind::Choice { names, .. } => format!("{}: {}", key.about, names.join(", ")),
        _ => key.about.into(),
    }
}

/// A value as TOML; floats in the shortest form that reads back to the same number.
fn written(value: &Value) -> String {
    match value {
        Value::Float(x) => format!("{x:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
