//! The keys of a grid with their values, from the command line or a file, and their cross product.

use sha2::{Digest, Sha256};
use toml::Value;

use crate::config::setting;
use crate::error::{Error, Result};

/// The most runs of one sweep.
pub const MOST_RUNS: usize = 10_000;
/// The longest name of a run; file systems take 255 bytes, and names get endings.
const LONGEST_NAME: usize = 150;

/// One key of a grid, with its values in the order given.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// A key of the configuration, or `unet.NAME`.
    pub key: String,
    /// At least one; no two alike.
    pub values: Vec<Value>,
}

impl Axis {
    /// Reads the text behind `--grid`: `loss=mae,mse`, `widths=32,64|64,128`, `widths=[32,64],[64,128]`.
    ///
    /// # Errors
    /// No such key, a value out of bounds, no value, or one that is there twice; with the text.
    pub fn parse(text: &str) -> Result<Axis> {
        let at = |what: String| Error::Usage(format!("--grid {text}: {what}"));
        let (key, values) =
            text.split_once('=').ok_or_else(|| at("expected key=a,b, such as lr=0.001,0.002".into()))?;
        let key = key.trim();
        let parts = split(key, values).map_err(at)?;
        let mut axis = Axis { key: key.to_string(), values: Vec::new() };
        for part in parts {
            let value = setting::read_setting(key, part).map_err(at)?;
            axis.push(value).map_err(at)?;
        }
        Ok(axis)
    }

    /// A key of the table `[grid]` of a file.
    ///
    /// # Errors
    /// As for [`Axis::parse`], without the file's name.
    pub fn from_toml(key: &str, values: &Value) -> std::result::Result<Axis, String> {
        let at = |what: String| format!("[grid] {key}: {what}");
        let Value::Array(values) = values else {
            // An unknown key is the more likely slip.
            setting::check_setting(key, values.clone()).map_err(at)?;
            return Err(at(format!("expected a list of values, such as [{}]", setting::written(values))));
        };
        if values.is_empty() {
            return Err(at("has no values; expected at least one".into()));
        }
        let mut axis = Axis { key: key.to_string(), values: Vec::new() };
        for value in values {
            let hint = match setting::is_list(key) && !value.is_array() {
                true => " (the key's values are lists: give a list of lists)",
                false => "",
            };
            let value = setting::check_setting(key, value.clone()).map_err(|why| at(format!("{why}{hint}")))?;
            axis.push(value).map_err(at)?;
        }
        Ok(axis)
    }

    fn push(&mut self, value: Value) -> std::result::Result<(), String> {
        if self.values.contains(&value) {
            return Err(format!("the value {} is there twice; expected each once", setting::bare(&value)));
        }
        self.values.push(value);
        Ok(())
    }

    /// As a line of the table `[grid]`.
    pub fn to_toml(&self) -> String {
        let values: Vec<_> = self.values.iter().map(setting::written).collect();
        let key = if self.key.contains('.') { format!("\"{}\"", self.key) } else { self.key.clone() };
        format!("{key} = [{}]", values.join(", "))
    }
}

/// The texts of the values.
fn split<'a>(key: &str, text: &'a str) -> std::result::Result<Vec<&'a str>, String> {
    let list = setting::is_list(key);
    let parts: Vec<&str> = if text.contains('|') {
        text.split('|').collect()
    } else if list && text.trim_start().starts_with('[') {
        at_depth_0(text)
    } else if list && text.contains(',') {
        return Err(format!(
            "is that one list or several values? for one list write {key}=[{text}], for several {key}={}",
            text.replace(',', "|")
        ));
    } else {
        text.split(',').collect()
    };
    match parts.iter().any(|part| part.trim().is_empty()) {
        true => Err("an empty value; expected values with commas between them, such as lr=0.001,0.002".into()),
        false => Ok(parts),
    }
}

/// Parts between the commas that stand outside of brackets.
fn at_depth_0(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0i32);
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// One value of every axis, as indices: the last axis varies fastest.
///
/// # Errors
/// No axis, or more than [`MOST_RUNS`] combinations.
pub fn product(axes: &[Axis]) -> Result<Vec<Vec<usize>>> {
    if axes.is_empty() {
        let what = "a sweep without a grid: give --grid key=a,b, or a file with a table [grid]; for one run there is `ddim-engine train`";
        return Err(Error::Usage(what.into()));
    }
    let count = axes.iter().try_fold(1usize, |n, axis| n.checked_mul(axis.values.len()).filter(|n| *n <= MOST_RUNS));
    if count.is_none() {
        let sizes: Vec<_> = axes.iter().map(|axis| format!("{} of {}", axis.values.len(), axis.key)).collect();
        return Err(Error::Usage(format!(
            "the grid has more than {MOST_RUNS} runs: {}; give fewer values",
            sizes.join(" x ")
        )));
    }
    let mut all = vec![Vec::new()];
    for axis in axes {
        let longer = |combination: &Vec<usize>| {
            let combination = combination.clone();
            (0..axis.values.len()).map(move |i| combination.iter().copied().chain([i]).collect())
        };
        all = all.iter().flat_map(longer).collect();
    }
    Ok(all)
}

/// The folder's name of a combination: `loss=mae,widths=32-64`. Depends on the keys and values alone, not on the rest of the grid.
pub fn name(axes: &[Axis], combination: &[usize]) -> String {
    let mut exact = true;
    let mut parts = Vec::new();
    let mut whole = String::new();
    for (axis, &i) in axes.iter().zip(combination) {
        let text = match &axis.values[i] {
            Value::Array(items) => items.iter().map(setting::bare).collect::<Vec<_>>().join("-"),
            value => setting::bare(value),
        };
        let safe: String =
            text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '-' }).collect();
        exact &= safe == text;
        whole.push_str(&format!("{}={}\n", axis.key, setting::written(&axis.values[i])));
        parts.push(format!("{}={safe}", axis.key));
    }
    let mut name = parts.join(",");
    if name.len() > LONGEST_NAME {
        exact = false;
        name.truncate(LONGEST_NAME - 9); // all ASCII but for keys, which are ASCII too
    }
    if !exact {
        // Two paths may look alike once they are fit for a name.
        let digest: String = Sha256::digest(whole).iter().take(4).map(|b| format!("{b:02x}")).collect();
        name.push_str(&format!("-{digest}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(grid: &[&str]) -> Vec<String> {
        let axes: Vec<_> = grid.iter().map(|text| Axis::parse(text).unwrap()).collect();
        product(&axes).unwrap().iter().map(|c| name(&axes, c)).collect()
    }

    #[test]
    fn names_are_those_of_the_values() {
        assert_eq!(
            names(&["loss=mae,mse", "lr=1e-3,0.00001"]),
            ["loss=mae,lr=0.001", "loss=mae,lr=1e-5", "loss=mse,lr=0.001", "loss=mse,lr=1e-5"]
        );
        let lists = ["widths=32-64", "widths=64-128"];
        assert_eq!(names(&["widths=32,64|64,128"]), lists);
        assert_eq!(names(&["widths=[32, 64], [64,128]"]), lists);
        assert_eq!(names(&["unet.dropout=0,0.1", "unet.attention_head_dim=none,8"]).len(), 4);
        assert_eq!(names(&["flip=true,false"]), ["flip=true", "flip=false"]);
    }

    #[test]
    fn paths_that_look_alike_have_two_names() {
        let both = names(&["data=a/b,a b"]);
        assert!(both[0].starts_with("data=a-b-") && both[1].starts_with("data=a-b-"), "{both:?}");
        assert_ne!(both[0], both[1]);
        let long = names(&[&format!("data={}", "x".repeat(400))]);
        assert!(long[0].len() <= LONGEST_NAME, "{long:?}");
    }

    #[test]
    fn slips_are_told() {
        for (text, needle) in [
            ("lr", "expected key=a,b"),
            ("lr=", "an empty value"),
            ("lr=0.1,,0.2", "an empty value"),
            ("lr=0.1,1e-1", "the value 0.1 is there twice"),
            ("widths=32,64", "widths=32|64"),
            ("learning_rate=1", "did you mean `lr`?"),
            ("unet.droput=0", "did you mean `unet.dropout`?"),
            ("loss=mae,l2", "did you mean `mse`?"),
            ("seed=0,-1", "expected a whole number"),
        ] {
            let why = Axis::parse(text).unwrap_err().to_string();
            assert!(why.contains(needle), "{text}: {why}");
        }
    }

    #[test]
    fn a_file_says_the_same() {
        let axis = Axis::parse("widths=8,16|16,32").unwrap();
        let table: toml::Table = axis.to_toml().parse().unwrap();
        assert_eq!(Axis::from_toml("widths", &table["widths"]).unwrap(), axis);
        let why = Axis::from_toml("widths", &Value::Array(vec![Value::Integer(8)])).unwrap_err();
        assert!(why.contains("a list of lists"), "{why}");
        assert!(Axis::from_toml("loss", &Value::String("mae".into())).unwrap_err().contains("[\"mae\"]"));
    }
}
