//! One key with its value, by itself: what grids of settings are made of.

use toml::Value;

use super::resolve::{check_unet, read_unet};
use super::{KEYS, Key, keys, text, unet};

/// What begins the name of an option of the family unet2d.
const UNET: &str = "unet.";

/// Reads the text behind `name=` as `--set` does.
///
/// # Errors
/// No such key (with the one that may be meant), or a value out of bounds; without the key's name in the latter.
pub fn read_setting(name: &str, text: &str) -> Result<Value, String> {
    match name.strip_prefix(UNET) {
        Some(option) => {
            let value = read_unet(text);
            check_unet(option, &value).map(|()| value)
        }
        None => known(name)?.read(text),
    }
}

/// Checks a value of a TOML file, and gives it the type of the key.
///
/// # Errors
/// As for [`read_setting`].
pub fn check_setting(name: &str, value: Value) -> Result<Value, String> {
    match name.strip_prefix(UNET) {
        Some(option) => check_unet(option, &value).map(|()| value),
        None => known(name)?.check(value),
    }
}

/// Whether the values of a key are lists themselves.
pub fn is_list(name: &str) -> bool {
    let lists = ["block_out_channels", "down_block_types", "up_block_types"];
    match name.strip_prefix(UNET) {
        Some(option) => lists.contains(&option),
        None => Key::find(name).is_some_and(|key| matches!(key.kind, keys::Kind::List { .. })),
    }
}

/// Where a key stands among all: the order of the table of keys, then that of the options of the family unet2d.
pub fn position(name: &str) -> usize {
    let option =
        |option| KEYS.len() + unet::OPTIONS.iter().position(|other| *other == option).unwrap_or(unet::OPTIONS.len());
    let key = || KEYS.iter().position(|key| key.name == name).unwrap_or(KEYS.len() + unet::OPTIONS.len());
    name.strip_prefix(UNET).map_or_else(key, option)
}

/// A value as a TOML file has it; floats in the shortest form that reads back to the same number.
pub fn written(value: &Value) -> String {
    text::written(value)
}

/// A value as `--set` takes it: as [`written`], but strings without quotes.
pub fn bare(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => text::written(other),
    }
}

fn known(name: &str) -> Result<&'static Key, String> {
    Key::find(name).ok_or_else(|| keys::unknown_key(name))
}
