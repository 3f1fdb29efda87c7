//! What a sweep is to do: settings that all runs share, the grid, and one checked configuration for every combination; written to and read
//! from `sweep.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use toml::{Table, Value};

use super::grid::{self, Axis};
use crate::config::{Config, KEYS, Layers, UnetConfig, setting, unet};
use crate::error::{Error, Result};
use crate::train::checks::check_trainable;

/// The plan's file in the sweep's folder.
pub const FILE: &str = "sweep.toml";

/// A sweep, checked: every run of it can begin.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The preset that the runs start from.
    pub preset: String,
    /// The grid, its keys in the order of the table of keys.
    pub axes: Vec<Axis>,
    /// The runs: the last key of the grid varies fastest.
    pub runs: Vec<Planned>,
}

/// A run of a sweep.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its folder in that of the sweep, such as `loss=mae,lr=0.001`.
    pub name: String,
    /// Its configuration.
    pub config: Config,
}

/// The parts of a sweep's file.
#[derive(Debug, Default)]
struct Parts {
    preset: Option<String>,
    settings: Vec<(String, String)>,
    axes: Vec<Axis>,
}

impl Plan {
    /// Puts a sweep together from a file of settings with a table `[grid]`, the settings of the command line, and its `--grid` texts; later
    /// ones win. Nothing is written.
    ///
    /// # Errors
    /// An unknown key, a value out of bounds, a key that is both a setting and in the grid, no grid, too many runs, or a combination that
    /// the configuration refuses, by name.
    pub fn new(file: Option<&Path>, layers: &Layers, grid: &[String]) -> Result<Plan> {
        let parts = file.map(read).transpose()?.unwrap_or_default();
        let mut axes = parts.axes;
        let mut given = BTreeSet::new();
        for text in grid {
            let axis = Axis::parse(text)?;
            if !given.insert(axis.key.clone()) {
                let what = "the key has a --grid already; give all its values in one";
                return Err(Error::Usage(format!("--grid {text}: {what}")));
            }
            match axes.iter_mut().find(|other| other.key == axis.key) {
                Some(of_file) => *of_file = axis,
                None => axes.push(axis),
            }
        }
        // However the grid is written, its runs have the same names.
        axes.sort_by_key(|axis| setting::position(&axis.key));
        for (key, option) in fixed(layers) {
            if axes.iter().any(|axis| axis.key == key) {
                return Err(Error::Usage(format!(
                    "{option} and the grid both give {key}: leave it out of one of them"
                )));
            }
        }
        let mut sets = Vec::new();
        push_layer(&mut sets, &parts.settings);
        let named = |set: &String| (set.split('=').next().unwrap_or_default().trim().to_string(), set.clone());
        let own: Vec<_> = layers.sets.iter().map(named).collect();
        if own.iter().any(|(key, _)| key == "epochs") && !own.iter().any(|(key, _)| key == "steps") {
            sets.push("steps=0".into());
        }
        sets.extend(own.into_iter().map(|(_, set)| set));
        let preset = layers.preset.clone().or(parts.preset);
        let layers = Layers { preset, sets, ..layers.clone() };
        Plan::of(&layers, axes)
    }

    /// Reads the plan of a sweep's folder.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(dir: &Path) -> Result<Plan> {
        let path = dir.join(FILE);
        if !path.is_file() {
            let what = "is not the folder of a sweep: there is no sweep.toml in it; expected what `ddim-engine sweep` made, such as runs/NAME";
            return Err(Error::input(dir, what));
        }
        Plan::new(Some(&path), &Layers::default(), &[])
    }

    fn of(layers: &Layers, axes: Vec<Axis>) -> Result<Plan> {
        let combinations = grid::product(&axes)?;
        let planned = |combination: &Vec<usize>| -> Result<Planned> {
            let name = grid::name(&axes, combination);
            let chosen =
                axes.iter().zip(combination).map(|(axis, &i)| (axis.key.clone(), setting::bare(&axis.values[i])));
            let mut layers = layers.clone();
            push_layer(&mut layers.sets, &chosen.collect::<Vec<_>>());
            let config = Config::resolve(&layers)
                .and_then(|config| check_trainable(&config).map(|()| config))
                .map_err(|why| Error::Usage(format!("the run {name} of the grid: {why}")))?;
            Ok(Planned { name, config })
        };
        // The first combination by itself: what is wrong with all of them should not be told of a random one.
        let first = planned(&combinations[0])?;
        let rest: Vec<_> = combinations[1..].par_iter().map(planned).collect();
        let mut runs = vec![first];
        for run in rest {
            runs.push(run?);
        }
        if axes.iter().any(|axis| axis.key == "epochs")
            && let Some(run) = runs.iter().find(|run| run.config.steps > 0)
        {
            return Err(Error::Usage(format!(
                "the grid varies epochs, but steps is {}, and then epochs means nothing; leave out one of them",
                run.config.steps
            )));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = runs.iter().find(|run| !names.insert(&run.name)) {
            return Err(Error::Usage(format!(
                "two runs of the grid would have the name {}; give other values",
                twice.name
            )));
        }
        Ok(Plan { preset: layers.preset_name().to_string(), axes, runs })
    }

    /// The settings that all runs share, as TOML writes them; options of the family unet2d as `unet.NAME`.
    pub fn base(&self) -> BTreeMap<String, String> {
        let config = &self.runs[0].config;
        let varied = |key: &str| self.axes.iter().any(|axis| axis.key == key);
        let flat = KEYS.iter().map(|key| (key.name.to_string(), config.get(key.name)));
        let mut base: BTreeMap<_, _> = flat.filter(|(key, _)| !varied(key)).collect();
        // Where only some runs have such options, they have them by default.
        if self.runs.iter().all(|run| run.config.unet.is_some())
            && let Some(unet) = &config.unet
        {
            let options = options(unet).into_iter().map(|(name, value)| (format!("unet.{name}"), value));
            base.extend(options.filter(|(key, _)| !varied(key)));
        }
        base
    }

    /// `sweep.toml`: everything that [`Plan::open`] needs.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# Sweep of ddim-engine {}: {} runs. Go on with it: ddim-engine sweep --resume THIS_FOLDER\n\npreset = \"{}\"\n",
            env!("CARGO_PKG_VERSION"),
            self.runs.len(),
            self.preset
        );
        let base = self.base();
        for key in KEYS {
            if let Some(value) = base.get(key.name) {
                text.push_str(&format!("{} = {value}\n", key.name));
            }
        }
        text.push_str("\n[grid]\n");
        for axis in &self.axes {
            text.push_str(&format!("{}\n", axis.to_toml()));
        }
        let unet = base.iter().filter_map(|(key, value)| Some((key.strip_prefix("unet.")?, value)));
        let unet: String = unet.map(|(name, value)| format!("{name} = {value}\n")).collect();
        if !unet.is_empty() {
            text.push_str(&format!("\n[unet]\n{unet}"));
        }
        text
    }

    /// The arguments of `ddim-engine train` that make the configuration of a run, without its folder: the preset, and what differs from it.
    ///
    /// # Errors
    /// They would not: a defect, or a value that does not survive being written.
    pub fn arguments(&self, run: &Planned) -> Result<Vec<String>> {
        let preset = Config::preset(&self.preset)?;
        let keys: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        let mut sets = Vec::new();
        for (key, ours, _) in run.config.differences(&preset, &keys) {
            sets.push(format!("{key}={}", unwritten(&ours)));
        }
        if let Some(unet) = &run.config.unet {
            let start = options(&preset.unet.unwrap_or_default());
            let ours = options(unet);
            let differ = ours.iter().filter(|(name, value)| start.get(*name) != Some(*value));
            sets.extend(differ.map(|(name, value)| format!("unet.{name}={}", unwritten(value))));
        }
        let layers = Layers { preset: Some(self.preset.clone()), sets: sets.clone(), ..Layers::default() };
        if Config::resolve(&layers)? != run.config {
            return Err(Error::Failed(format!(
                "the settings of the run {} cannot be handed on: {}",
                run.name,
                sets.join(" ")
            )));
        }
        let mut arguments = vec!["--preset".to_string(), self.preset.clone()];
        arguments.extend(sets.into_iter().flat_map(|set| ["--set".to_string(), set]));
        Ok(arguments)
    }
}

/// The keys that the command line fixes, with the option that does.
fn fixed(layers: &Layers) -> Vec<(String, String)> {
    let set = |set: &String| (set.split('=').next().unwrap_or_default().trim().to_string(), format!("--set {set}"));
    let mut fixed: Vec<_> = layers.sets.iter().map(set).collect();
    for (key, given) in [
        ("data", &layers.data),
        ("precision", &layers.precision),
        ("epochs", &layers.epochs),
        ("steps", &layers.steps),
        ("seed", &layers.seed),
    ] {
        fixed.extend(given.iter().map(|_| (key.to_string(), format!("--{key}"))));
    }
    fixed
}

/// Adds a layer of settings. One that gives `epochs` without `steps` means epochs.
fn push_layer(sets: &mut Vec<String>, layer: &[(String, String)]) {
    let gives = |name: &str| layer.iter().any(|(key, _)| key == name);
    if gives("epochs") && !gives("steps") {
        sets.push("steps=0".into());
    }
    sets.extend(layer.iter().map(|(key, value)| format!("{key}={value}")));
}

/// The options of a network as TOML writes them; `none` where one is absent.
fn options(of: &UnetConfig) -> BTreeMap<&'static str, String> {
    let table = Table::try_from(of).unwrap_or_default();
    unet::OPTIONS.iter().map(|&name| (name, table.get(name).map_or("\"none\"".into(), setting::written))).collect()
}

/// What TOML wrote, as `--set` takes it.
fn unwritten(text: &str) -> String {
    let value = format!("x = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("x"));
    value.map_or(text.to_string(), |value| setting::bare(&value))
}

/// Reads a file of settings with a table `[grid]`.
fn read(path: &Path) -> Result<Parts> {
    let refuse = |what: String| Error::input(path, what);
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(why) => {
            let what = format!("cannot read the sweep's file: {why}; expected a TOML file of keys and a table [grid]");
            return Err(refuse(what));
        }
    };
    let table: Table = text.parse().map_err(|why: toml::de::Error| {
        let line = why.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        refuse(format!("line {line}: not TOML: {}", why.message().lines().collect::<Vec<_>>().join(" ")))
    })?;
    let mut parts = Parts::default();
    for (name, value) in table {
        match (name.as_str(), value) {
            ("preset", Value::String(preset)) => parts.preset = Some(preset),
            ("preset", other) => {
                return Err(refuse(format!(
                    "preset: found {}, expected a name such as \"quick\"",
                    setting::written(&other)
                )));
            }
            ("grid", Value::Table(grid)) => {
                for (key, values) in nested(grid) {
                    parts.axes.push(Axis::from_toml(&key, &values).map_err(refuse)?);
                }
            }
            ("grid", _) => {
                return Err(refuse(
                    "grid: expected a table: a line [grid], and below it lines such as loss = [\"mae\", \"mse\"]"
                        .into(),
                ));
            }
            ("unet", Value::Table(options)) => {
                for (name, value) in options {
                    parts.set(&format!("unet.{name}"), value).map_err(refuse)?;
                }
            }
            (name, value) => parts.set(name, value).map_err(refuse)?,
        }
    }
    if let Some((key, _)) = parts.settings.iter().find(|(key, _)| parts.axes.iter().any(|axis| axis.key == *key)) {
        return Err(refuse(format!("{key} is both a setting and in [grid]: leave it out of one of them")));
    }
    Ok(parts)
}

impl Parts {
    fn set(&mut self, key: &str, value: Value) -> std::result::Result<(), String> {
        let value = setting::check_setting(key, value).map_err(|why| match why.starts_with("unknown") {
            true => why,
            false => format!("{key}: {why}"),
        })?;
        self.settings.push((key.to_string(), setting::bare(&value)));
        Ok(())
    }
}

/// `unet.dropout = [0, 0.1]` without quotes is a table in a table.
fn nested(grid: Table) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (key, value) in grid {
        match value {
            Value::Table(inner) if key == "unet" => {
                all.extend(inner.into_iter().map(|(name, value)| (format!("unet.{name}"), value)));
            }
            value => all.push((key, value)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(sets: &[&str]) -> Layers {
        Layers { sets: sets.iter().map(|s| s.to_string()).collect(), ..Layers::default() }
    }

    fn plan(preset: &str, sets: &[&str], grid: &[&str]) -> Plan {
        let layers = Layers { preset: Some(preset.into()), ..layers(sets) };
        Plan::new(None, &layers, &grid.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_plan_survives_its_file_and_its_arguments() {
        let dir = tempfile::tempdir().unwrap();
        for plan in [
            plan("quick", &["image_size=8", "lr=0.00123"], &["widths=4,6|6,8", "seed=0,1,2", "data=a b,debug"]),
            plan("unet2d-tiny", &["unet.attention_head_dim=none"], &["unet.dropout=0,0.1", "loss=mae,mse"]),
            plan("unet2d-tiny", &["steps=4"], &["unet.attention_head_dim=8,none"]),
            plan("quick", &["loss=mse"], &["family=seed,unet2d"]),
            plan("quick", &["steps=9"], &["epochs=2,3"]),
        ] {
            fs::write(dir.path().join(FILE), plan.to_toml()).unwrap();
            let read = Plan::open(dir.path()).unwrap();
            let all = |plan: &Plan| plan.runs.iter().map(|r| (r.name.clone(), r.config.clone())).collect::<Vec<_>>();
            assert_eq!(all(&read), all(&plan), "{}", plan.to_toml());
            assert_eq!((&read.preset, &read.axes, read.base()), (&plan.preset, &plan.axes, plan.base()));
            for run in &plan.runs {
                plan.arguments(run).unwrap();
            }
        }
    }

    #[test]
    fn the_order_of_the_keys_changes_nothing() {
        let names = |grid: &[&str]| plan("quick", &[], grid).runs.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        let both = names(&["seed=0,1", "loss=mae,mse"]);
        assert_eq!(both, names(&["loss=mae,mse", "seed=0,1"]));
        assert_eq!(both, ["loss=mae,seed=0", "loss=mae,seed=1", "loss=mse,seed=0", "loss=mse,seed=1"]);
    }

    #[test]
    fn epochs_of_a_later_layer_win_over_steps() {
        let plan = plan("quick", &["steps=9"], &["epochs=2,3"]);
        assert_eq!(plan.runs.iter().map(|r| (r.config.steps, r.config.epochs)).collect::<Vec<_>>(), [(0, 2), (0, 3)]);
        let fixed = Layers { steps: Some("5".into()), ..Layers::default() };
        let why = Plan::new(None, &fixed, &["epochs=1,2".into()]).unwrap_err().to_string();
        assert!(why.contains("epochs means nothing"), "{why}");
    }
}
