//! A row for every operation of the presets, measured where the model asks for it.

use serde_json::{Value, json};

use super::ceilings::Ceilings;
use super::probe::{Launched, Measured, Probe, Seen, Watch};
use super::sample;
use super::step::{Training, WARMUP};
use super::table::{seconds, table};
use super::timing::Effort;
use crate::config::{Config, Family};
use crate::error::Result;
use crate::ops::Backend;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names and configurations, each with the batch that it is measured with.
    pub presets: Vec<(String, Config)>,
    /// Only operations whose name, purpose or shape contains one of these; all where there are none.
    pub only: Vec<String>,
    /// How long.
    pub effort: Effort,
    /// Only tells which operations there are: nothing is computed.
    pub list: bool,
}

/// An operation of the presets.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation, and its times where it was measured.
    pub seen: Seen,
    /// How often it occurs: in a training step ("NAME step") and in one network call of sampling ("NAME sample").
    pub uses: Vec<(String, usize)>,
}

/// Measures the operations of a training step and of a sampling call of every preset; `progress` hears what comes next. Operations of the
/// same extents and options are measured once.
///
/// # Errors
/// Out of memory; the device failed; a loss is not a number.
pub fn measure<B: Backend>(backend: &B, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let mut probe = Probe::new(backend)?;
    probe.select(&options.only);
    let watch = if options.list { Watch::List } else { Watch::Measure(options.effort) };
    let mut uses: Vec<Vec<(String, usize)>> = Vec::new();
    let mut add_uses = |probe: &Probe<'_, B>, name: String| {
        let seen = probe.seen();
        uses.resize(seen.len(), Vec::new());
        for (uses, seen) in uses.iter_mut().zip(&seen).filter(|(_, seen)| seen.count > 0) {
            uses.push((name.clone(), seen.count));
        }
        probe.clear_counts();
    };
    for (name, config) in &options.presets {
        progress(&format!("{name}, batch {}: a training step", config.batch_size));
        {
            let mut training = Training::new(&probe, config)?;
            // Layers that begin with zeros would have results of zeros: a few steps go before.
            for _ in 0..if options.list { 0 } else { WARMUP } {
                training.step(&probe)?;
            }
            probe.set(watch);
            training.begin(&probe)?;
            probe.set(Watch::Off);
        }
        add_uses(&probe, format!("{name} step"));
        progress(&format!("{name}, batch {}: sampling", config.batch_size));
        sample_once(&probe, config, watch)?;
        add_uses(&probe, format!("{name} sample"));
    }
    let rows = probe.seen().into_iter().zip(uses).map(|(seen, uses)| Row { seen, uses });
    Ok(rows
        .filter(|row| options.list || row.seen.measured.is_some())
        .filter(|row| probe.selects(&row.seen.call))
        .collect())
}

/// The operations of a first training step, or of sampling, each with the kernels that it launches. They are the last that the device is asked for.
///
/// # Errors
/// Out of memory; the device failed.
pub fn launches<B: Backend>(backend: &B, config: &Config, sampling: bool) -> Result<Vec<Launched>> {
    let probe = Probe::new(backend)?;
    if sampling {
        sample_once(&probe, config, Watch::Launches)?;
    } else {
        let mut training = Training::new(&probe, config)?;
        probe.set(Watch::Launches);
        training.begin(&probe)?;
    }
    Ok(probe.take_launches())
}

/// One network call of sampling, with a fresh network.
fn sample_once<B: Backend>(probe: &Probe<'_, B>, config: &Config, watch: Watch) -> Result<()> {
    let steps = if config.family == Family::Seed { 2 } else { 1 };
    sample::with_pictures(probe, config, config.batch_size, steps, |pictures| {
        probe.set(watch);
        let done = pictures.draw(probe);
        probe.set(Watch::Off);
        done
    })
}

impl Row {
    /// How often it occurs in all.
    pub fn count(&self) -> usize {
        self.uses.iter().map(|(_, count)| count).sum()
    }

    /// As in result files. `dtype`: of activations.
    pub fn json(&self, ceilings: &Ceilings, dtype: &str) -> Value {
        let call = &self.seen.call;
        let predicted = ceilings.predict(call.flops, call.bytes);
        let uses: serde_json::Map<String, Value> = self.uses.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let mut row = json!({
            "operation": call.operation, "kind": call.kind.name(), "shape": call.shape, "options": call.options,
            "dtype": dtype, "uses": uses, "flops": call.flops, "bytes": call.bytes,
            "predicted_seconds": predicted.map(|(seconds, _)| seconds), "bound": predicted.map(|(_, bound)| bound),
        });
        if let (Some(Measured { timing, error, plans }), Value::Object(row)) = (&self.seen.measured, &mut row) {
            let share = |seconds: f64| predicted.map(|(predicted, _)| predicted / seconds);
            let hot = timing.hot.median();
            let cold = timing.cold.as_ref();
            row.extend([
                ("plan".into(), json!(plan(plans))),
                ("hot".into(), timing.hot.json()),
                ("cold".into(), json!(cold.map(|cold| cold.json()))),
                ("calls_per_sample".into(), json!(timing.calls)),
                ("gb_per_second".into(), json!(call.bytes as f64 / hot / 1e9)),
                ("tflops".into(), json!(call.flops as f64 / hot / 1e12)),
                ("roofline".into(), json!(share(hot))),
                ("roofline_cold".into(), json!(cold.and_then(|cold| share(cold.median())))),
                ("error".into(), json!(error)),
            ]);
        }
        row
    }
}

/// Names of kernels or variants in the order of their launch, repetitions counted.
pub(super) fn plan(plans: &[&str]) -> String {
    let mut text = String::new();
    for group in plans.chunk_by(|a, b| a == b) {
        let times = if group.len() > 1 { format!(" x{}", group.len()) } else { String::new() };
        text.push_str(if text.is_empty() { "" } else { ", " });
        text.push_str(&format!("{}{times}", group[0]));
    }
    text
}

/// The rows as a table, those that take the longest in a step first within their purpose.
pub fn text(rows: &[Row], ceilings: &Ceilings) -> String {
    let mut order: Vec<&Row> = rows.iter().collect();
    let hot = |row: &Row| row.seen.measured.as_ref().map_or(0.0, |m| m.timing.hot.median());
    let total = |row: &Row| row.count() as f64 * hot(row);
    order.sort_by(|a, b| a.seen.call.kind.cmp(&b.seen.call.kind).then(total(b).total_cmp(&total(a))));
    let cells = |row: &&Row| {
        let call = &row.seen.call;
        let predicted = ceilings.predict(call.flops, call.bytes);
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let measured = row.seen.measured.as_ref();
        let hot = measured.map(|m| m.timing.hot.median());
        let cold = measured.and_then(|m| Some(m.timing.cold.as_ref()?.median()));
        vec![
            call.operation.to_string(),
            call.shape.clone(),
            row.count().to_string(),
            or_dash(hot.map(seconds)),
            or_dash(cold.map(seconds)),
            or_dash(predicted.map(|(of, _)| seconds(of))),
            or_dash(predicted.zip(hot).map(|((of, _), hot)| format!("{:.0}", 100.0 * of / hot))),
            or_dash(hot.map(|hot| format!("{:.1}", call.bytes as f64 / hot / 1e9))),
            if call.flops == 0 {
                "-".into()
            } else {
                or_dash(hot.map(|hot| format!("{:.1}", call.flops as f64 / hot / 1e9)))
            },
            or_dash(measured.and_then(|m| m.error).map(|error| format!("{error:.0e}"))),
            call.options.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = order.iter().map(cells).collect();
    let names = ["operation", "shape", "uses", "hot", "cold", "predicted", "%", "GB/s", "GFLOP/s", "error", "options"];
    table(&names, &rows, 2)
}
