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
                if let Some(value) = options.get(*name) {
                    text.push_str(&format!("{name} = {}\n", written(value)));
                }
            }
        }
        text
    }

    /// The keys with their values in every preset, as a table for a terminal of 100 columns.
    pub fn describe_keys() -> String {
        let mut rows = vec![vec!["KEY".to_string()]];
        rows.extend(KEYS.iter().map(|key| vec![key.name.to_string()]));
        for (name, _) in PRESETS {
            let Ok(preset) = Config::preset(name) else { continue };
            rows[0].push(name.to_uppercase());
            rows[1..].iter_mut().zip(KEYS).for_each(|(row, key)| row.push(preset.get(key.name)));
        }
        rows[0].push("MEANING".into());
        rows[1..].iter_mut().zip(KEYS).for_each(|(row, key)| row.push(meaning(key)));
        let columns = rows[0].len() - 1;
        let widest: Vec<_> = (0..columns).map(|c| rows.iter().map(|row| row[c].len()).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &rows {
            let cells = row.iter().zip(&widest).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(&format!("  {}  {}\n", cells.collect::<Vec<_>>().join("  "), row[columns]));
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
