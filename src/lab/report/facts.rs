//! What a page says of a run in words: what was trained on what, how far, and the commands that do it again.

use std::path::Path;

use crate::config::{Config, Family, Layers, PRESETS};
use crate::error::Result;
use crate::lab::record::{RunRecord, Status};
use crate::model::net::Net;
use crate::train::metrics_log::{Record, Split};
use crate::train::progress::grouped;

/// Steps of an epoch, where the records tell: a validation comes at the end of each.
pub fn epoch_steps(config: &Config, records: &[Record]) -> Option<u64> {
    let first = records.iter().filter(|r| r.split == Split::Valid && r.epoch == 1).map(|r| r.step).max()?;
    let ended = config.eval_every == 0 || records.last().is_some_and(|r| r.epoch > 1);
    // The only epoch of a run that is counted in steps may end early.
    let whole = config.steps == 0 || records.last().is_some_and(|r| r.epoch > 1);
    (ended && whole && first > 0).then_some(first)
}

/// Steps that the run is to have, where they are known.
pub fn total_steps(config: &Config, records: &[Record]) -> Option<u64> {
    match config.steps {
        0 => Some(epoch_steps(config, records)? * config.epochs as u64),
        steps => Some(steps as u64),
    }
}

/// A number of a finished run's summary.
pub fn of_summary(record: &RunRecord, name: &str) -> Option<f64> {
    // The summary of an earlier end says nothing of a run that goes on.
    let summary = record.summary.as_ref().filter(|_| record.status == Status::Finished)?;
    summary.get(name)?.as_f64()
}

/// Where the run was computed, without the reason for the choice; known once a run has ended.
pub fn device(record: &RunRecord) -> Option<String> {
    let line = record.summary.as_ref()?.get("device")?.as_str()?;
    Some(device_name(line))
}

/// `cpu (AVX512, 2 threads): no CUDA driver` without what is behind the colon.
pub fn device_name(line: &str) -> String {
    line.split_once("): ").map_or_else(|| line.to_string(), |(name, _)| format!("{name})"))
}

/// Learned parameters of the network that the configuration describes.
pub fn parameters(config: &Config) -> Option<usize> {
    Net::new(config).ok().map(|net| net.layout().parameter_count())
}

/// What was trained on what, as pairs of a term and its value.
pub fn facts(record: &RunRecord, config: &Config) -> Vec<(&'static str, String)> {
    let text = |key: &str| config.get(key).replace('"', "");
    let preset = record.summary.as_ref().and_then(|s| s.get("preset")).and_then(|p| p.as_str());
    let (family, widths, depth) = match (&config.unet, config.family) {
        (Some(unet), Family::Unet2d) => ("unet2d", &unet.block_out_channels, unet.layers_per_block),
        _ => ("seed", &config.widths, config.block_depth),
    };
    let widths = widths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let preset = preset.map_or(String::new(), |name| format!(", from preset {name}"));
    let mut facts = vec![("Network", format!("family {family}{preset}; widths {widths}; depth {depth}"))];
    if let Some(parameters) = parameters(config) {
        facts.push(("Parameters", grouped(parameters as u64)));
    }
    let channels = match config.channels {
        1 => "grey",
        3 => "RGB",
        _ => "RGBA",
    };
    let mut data = format!("{}, {1} × {1} {channels}", data_name(&config.data), config.image_size);
    if config.repeat > 1 {
        data.push_str(&format!(", {} times an epoch", config.repeat));
    }
    if config.flip {
        data.push_str(", flipped at random");
    }
    facts.push(("Pictures", data));
    let levels = config.class_embeds().map_or(String::new(), |n| format!("; {n} classes"));
    facts.push((
        "Objective",
        format!("predicts {}, loss {}, {} schedule{levels}", text("predict"), text("loss"), text("schedule")),
    ));
    let lr = match text("lr_schedule").as_str() {
        "constant" => text("lr"),
        other => format!("{}, {other}", text("lr")),
    };
    facts.push(("Optimiser", format!("{}, learning rate {lr}, batches of {}", text("optimizer"), config.batch_size)));
    if config.ema_decay > 0.0 {
        facts.push(("Average of weights", format!("decay {}", text("ema_decay"))));
    }
    facts.push(("Seed", config.seed.to_string()));
    facts
}

/// What a source of pictures is called; of a path the last part, which is all that a reader elsewhere has use for.
fn data_name(data: &str) -> String {
    match data {
        "procedural" => "procedural flowers".into(),
        "flowers" => "Oxford 102 Flowers".into(),
        "pets" => "Oxford-IIIT Pets".into(),
        other => Path::new(other).file_name().map_or_else(|| other.into(), |name| name.to_string_lossy().into_owned()),
    }
}

/// Commands about the run: what each is for, and the line.
pub fn commands(record: &RunRecord, config: &Config) -> Vec<(String, String)> {
    let run = quoted(&record.root.display().to_string());
    let mut commands = Vec::new();
    if let Some(line) = train_command(config) {
        commands.push(("Train it again".to_string(), line));
    }
    commands.push((
        "The same, from the configuration below saved as config.toml".into(),
        "ddim-engine train --config config.toml".into(),
    ));
    if record.status == Status::Stopped {
        commands.push(("Go on where it stopped".into(), format!("ddim-engine train --resume {run}")));
    }
    commands.push(("Draw pictures".into(), format!("ddim-engine sample {run}")));
    if record.evaluation.is_none() {
        commands.push(("Measure it on the pictures held back".into(), format!("ddim-engine evaluate {run}")));
    }
    commands
}

/// The shortest `train` command for a configuration: a preset and what differs. None where an option cannot be said so.
fn train_command(config: &Config) -> Option<String> {
    let ours = flat(config)?;
    let mut best: Option<Vec<String>> = None;
    let mut preset_name = "";
    for (name, _) in PRESETS {
        let theirs = flat(&Config::preset(name).ok()?)?;
        let differing = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(*value));
        let sets: Vec<String> = differing.map(|(key, value)| format!("{key}={value}")).collect();
        if best.as_ref().is_some_and(|best| best.len() <= sets.len()) {
            continue;
        }
        // Only a command that does give this configuration is worth printing.
        let layers = Layers { preset: Some((*name).into()), sets: sets.clone(), ..Layers::default() };
        if Config::resolve(&layers).is_ok_and(|resolved| resolved == *config) {
            (best, preset_name) = (Some(sets), name);
        }
    }
    let mut line = "ddim-engine train".to_string();
    if preset_name != Config::default_preset_name() {
        line.push_str(&format!(" --preset {preset_name}"));
    }
    best?.iter().for_each(|set| line.push_str(&format!(" --set {}", quoted(set))));
    Some(line)
}

/// All keys with their values as `--set` takes them.
fn flat(config: &Config) -> Option<std::collections::BTreeMap<String, String>> {
    let table: toml::Table = config.to_toml().parse().ok()?;
    let mut all = std::collections::BTreeMap::new();
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => {
            let items = items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_string));
            items.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    };
    for (key, value) in &table {
        match value {
            toml::Value::Table(options) => {
                all.extend(options.iter().map(|(option, value)| (format!("{key}.{option}"), text(value))));
            }
            value => drop(all.insert(key.clone(), text(value))),
        }
    }
    Some(all)
}

/// A word as a POSIX shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,+:@".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// How far the run is, in a few words.
pub fn progress(record: &RunRecord, config: &Config, records: &[Record]) -> String {
    let step = records.last().map_or(0, |r| r.step);
    let of = total_steps(config, records).filter(|&total| total > step);
    let of = of.map_or(String::new(), |total| format!(" of {}", grouped(total)));
    let epoch = match (records.last(), config.steps) {
        (Some(last), 0) => format!(", epoch {} of {}", last.epoch, config.epochs),
        (Some(last), _) => format!(", epoch {}", last.epoch),
        (None, _) => String::new(),
    };
    match record.status {
        Status::Finished => format!("finished after {} steps", grouped(step)),
        Status::Running => format!("still training: step {}{of}{epoch}", grouped(step)),
        Status::Stopped => format!("stopped before its end: step {}{of}{epoch}", grouped(step)),
    }
}

/// The settings in which runs differ: each with the value in every run. Where a run has no such key: empty.
pub fn differing(records: &[&RunRecord]) -> Vec<(String, Vec<String>)> {
    let keys: std::collections::BTreeSet<&String> = records.iter().flat_map(|r| r.settings.keys()).collect();
    let row = |key: &String| {
        let value = |record: &&RunRecord| record.settings.get(key).cloned().unwrap_or_default();
        (key.clone(), records.iter().map(value).collect::<Vec<_>>())
    };
    keys.into_iter().map(row).filter(|(_, values)| values.windows(2).any(|w| w[0] != w[1])).collect()
}

/// The configuration as the run's folder has it.
pub fn config_text(record: &RunRecord) -> Result<String> {
    let path = record.root.join("config.toml");
    std::fs::read_to_string(&path).map_err(crate::error::Error::io(&path, "read the configuration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_command_gives_the_configuration() {
        assert_eq!(train_command(&Config::quick_preset()).unwrap(), "ddim-engine train");
        let seed = Config { lr: 5e-4, widths: vec![32, 64], data: "my pictures".into(), ..Config::seed_preset() };
        let line = train_command(&seed).unwrap();
        assert_eq!(line, "ddim-engine train --preset seed --set 'data=my pictures' --set lr=0.0005 --set widths=32,64");
        let unet = Config { batch_size: 9, ..Config::preset("unet2d-tiny").unwrap() };
        assert_eq!(train_command(&unet).unwrap(), "ddim-engine train --preset unet2d-tiny --set batch_size=9");
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("runs/a-1"), "runs/a-1");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn devices_without_reasons() {
        assert_eq!(device_name("cpu (AVX512, 2 threads): no CUDA driver"), "cpu (AVX512, 2 threads)");
        assert_eq!(device_name("cpu"), "cpu");
    }
}
