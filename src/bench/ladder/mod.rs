//! The ladder: three operations from the definition to the engine's kernel, a rung for each idea, behind `bench kernels --ladder`.
//!
//! The kernels are those of `kernels/ladder/`; `docs/ladder.md` explains them. [`conv`], [`group_norm`] and [`attention`] launch them on
//! operands of their own and compare with the float64 reference of the operation; [`predict`] says what a rung should take on an H200, from
//! what it asks of memory, caches and arithmetic. Activations are bfloat16 throughout.

pub mod attention;
pub mod conv;
pub mod group_norm;
pub mod predict;

use half::bf16;
use serde_json::{Value, json};

use super::ceilings::Ceilings;
use super::kernels::plan;
use super::probe::{Probe, error_of};
use super::table::{seconds, table};
use super::timing::{Effort, Timing};
use crate::device::gpu::{Arithmetic, Gpu, GpuBuffer, GpuSlice};
use crate::device::launcher::Launcher;
use crate::device::{Memory, Replay};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use predict::Cost;

/// A rung, as tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Operation and number, as in the names of its kernels: `conv3x3_2`.
    pub name: &'static str,
    /// Its idea in a few words.
    pub idea: &'static str,
    /// Where its kernel stands, in `kernels/`.
    pub file: &'static str,
}

/// Extents of an operation of the ladder.
pub trait Extents: Copy {
    /// `conv3x3`.
    const OPERATION: &'static str;
    /// From the definition to the engine's kernel.
    const RUNGS: &'static [Rung];

    /// Those that predictions and measurements are made for: of a layer, or `small` ones for the simulator. `batch`: another number of
    /// images.
    fn named(small: bool, batch: Option<u32>) -> Self;
    /// For people.
    fn shape(&self) -> String;
    /// Multiply-adds of the products of a rung times two, and its bytes: every operand read once, every result written once.
    fn work(&self, rung: usize) -> (u64, u64);
    /// What a rung asks of a GPU.
    fn cost(&self, rung: usize) -> Cost;
}

/// An operation on operands in device memory, by any of its rungs.
pub trait Steps<L: Launcher>: Sized {
    /// Extents of the operation.
    type Extents: Extents;

    /// Operands of random numbers.
    ///
    /// # Errors
    /// Extents that no rung takes; out of memory; the device failed.
    fn new(gpu: &Gpu<L>, extents: Self::Extents) -> Result<Self>;
    /// Launches a rung.
    ///
    /// # Errors
    /// [`Error::Shape`] where it does not take these extents; the device failed.
    fn run(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()>;
    /// Launches a rung on a result that holds NaN, and compares the first and the last image with float64: the
    /// largest difference over the largest value.
    ///
    /// # Errors
    /// As [`Steps::run`].
    fn error(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<f64>;
    /// The result of the last rung, all images.
    ///
    /// # Errors
    /// The device failed.
    fn result(&self, gpu: &Gpu<L>) -> Result<Vec<f32>>;
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only rungs whose name, idea or file contains one of these; all where there are none.
    pub only: Vec<String>,
    /// How long.
    pub effort: Effort,
    /// Extents that take the simulator seconds.
    pub small: bool,
    /// Images, instead of those of the named extents.
    pub batch: Option<u32>,
}

/// What was measured of a rung.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time of a call.
    pub timing: Timing,
    /// See [`Steps::error`].
    pub error: f64,
    /// Names of the kernels launched.
    pub plans: Vec<&'static str>,
}

/// A rung and what is known of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub rung: &'static Rung,
    /// The operation.
    pub operation: &'static str,
    /// Its place among the rungs of the operation.
    pub number: usize,
    /// Extents that were measured.
    pub shape: String,
    /// Multiply-adds times two.
    pub flops: u64,
    /// Bytes at least.
    pub bytes: u64,
    /// Extents of the prediction: those of a layer.
    pub predicted_shape: String,
    /// Seconds that an H200 is predicted to take for them, and what takes it so long.
    pub predicted: (f64, &'static str),
    /// `None` where rungs were only listed.
    pub measured: Option<Measured>,
}

/// Measures the rungs, from the first of each operation to the last; `progress` hears what comes next.
///
/// # Errors
/// A device that does not compute in bfloat16; no rung that [`Options::only`] wants; out of memory; the device failed.
pub fn measure<L: Launcher>(gpu: &Gpu<L>, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    if gpu.arithmetic() != Arithmetic::Bf16 {
        let found = gpu.arithmetic();
        let what = format!("--ladder --precision {found}: the ladder's kernels are bfloat16; use bf16 or auto");
        return Err(Error::Usage(what));
    }
    let mut rows = climb::<L, conv::ConvSteps<L>>(gpu, options, progress)?;
    rows.extend(climb::<L, group_norm::NormSteps<L>>(gpu, options, progress)?);
    rows.extend(climb::<L, attention::AttentionSteps<L>>(gpu, options, progress)?);
    some(rows, options)
}

/// Which rungs there are, and what is predicted of them; needs no device.
///
/// # Errors
/// No rung that [`Options::only`] wants.
pub fn list(options: &Options) -> Result<Vec<Row>> {
    let nothing = &mut |_: usize, _: &Rung| Ok(None);
    let mut rows = rows_of::<conv::ConvExtents>(options, nothing)?;
    rows.extend(rows_of::<group_norm::NormExtents>(options, nothing)?);
    rows.extend(rows_of::<attention::AttentionExtents>(options, nothing)?);
    some(rows, options)
}

/// Refuses a choice of nothing.
fn some(rows: Vec<Row>, options: &Options) -> Result<Vec<Row>> {
    if rows.is_empty() {
        let words = options.only.join(" ");
        return Err(Error::Usage(format!(
            "--only {words}: no rung of the ladder is called so; --ladder --list names all"
        )));
    }
    Ok(rows)
}

/// Measures the rungs of one operation that are wanted.
fn climb<L: Launcher, S: Steps<L>>(
    gpu: &Gpu<L>,
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Row>> {
    let probe = Probe::new(gpu)?;
    let mut steps = None;
    rows_of::<S::Extents>(options, &mut |number, rung| {
        progress(&format!("{}: {}", rung.name, rung.idea));
        let steps = match &mut steps {
            Some(steps) => steps,
            None => steps.insert(S::new(gpu, S::Extents::named(options.small, options.batch))?),
        };
        gpu.note_plans(true);
        let error = steps.error(gpu, number);
        let plans = gpu.note_plans(false);
        let error = error?;
        let timing = probe.measure(options.effort, &mut || steps.run(gpu, number))?;
        Ok(Some(Measured { timing, error, plans }))
    })
}

/// Rows of the rungs that are wanted, with what `measure` tells of each.
fn rows_of<E: Extents>(
    options: &Options,
    measure: &mut dyn FnMut(usize, &Rung) -> Result<Option<Measured>>,
) -> Result<Vec<Row>> {
    let (named, extents) = (E::named(false, options.batch), E::named(options.small, options.batch));
    let words: Vec<String> = options.only.iter().map(|word| word.to_lowercase()).collect();
    let wanted = |rung: &Rung| {
        let text = format!("{} {} {}", rung.name, rung.idea, rung.file).to_lowercase();
        words.is_empty() || words.iter().any(|word| text.contains(word))
    };
    let mut rows = Vec::new();
    for (number, rung) in E::RUNGS.iter().enumerate().filter(|(_, rung)| wanted(rung)) {
        let (flops, bytes) = extents.work(number);
        rows.push(Row {
            rung,
            operation: E::OPERATION,
            number,
            shape: extents.shape(),
            flops,
            bytes,
            predicted_shape: named.shape(),
            predicted: named.cost(number).seconds(),
            measured: measure(number, rung)?,
        });
    }
    Ok(rows)
}

impl Row {
    /// Median time of a call.
    fn time(&self) -> Option<f64> {
        Some(self.measured.as_ref()?.timing.hot.median())
    }

    /// How many times faster than the rung before it, where both were measured.
    fn gain(&self, before: Option<&Row>) -> Option<f64> {
        let before = before.filter(|row| row.operation == self.operation && row.number + 1 == self.number)?;
        Some(before.time()? / self.time()?)
    }

    /// Share of the roofline.
    fn share(&self, ceilings: &Ceilings) -> Option<f64> {
        let work = self.flops > 0 || self.bytes > 0;
        Some(ceilings.predict(self.flops, self.bytes).filter(|_| work)?.0 / self.time()?)
    }

    /// As in result files. `before`: the row in front of it.
    pub fn json(&self, before: Option<&Row>, ceilings: &Ceilings) -> Value {
        let (predicted, bound) = self.predicted;
        let mut row = json!({
            "operation": format!("ladder_{}", self.rung.name), "kind": "ladder", "shape": self.shape,
            "options": self.rung.idea, "file": format!("kernels/{}", self.rung.file), "dtype": "bfloat16",
            "flops": self.flops, "bytes": self.bytes, "h200_predicted_shape": self.predicted_shape,
            "h200_predicted_seconds": predicted, "h200_bound": bound,
        });
        if let (Some(Measured { timing, error, plans }), Value::Object(row)) = (&self.measured, &mut row) {
            let hot = timing.hot.median();
            row.extend([
                ("plan".into(), json!(plan(plans))),
                ("hot".into(), timing.hot.json()),
                ("cold".into(), json!(timing.cold.as_ref().map(|cold| cold.json()))),
                ("calls_per_sample".into(), json!(timing.calls)),
                ("gain".into(), json!(self.gain(before))),
                ("gb_per_second".into(), json!(self.bytes as f64 / hot / 1e9)),
                ("tflops".into(), json!(self.flops as f64 / hot / 1e12)),
                ("roofline".into(), json!(self.share(ceilings))),
                ("error".into(), json!(error)),
            ]);
        }
        row
    }
}

/// The rungs as a table, one operation after the other.
pub fn text(rows: &[Row], ceilings: &Ceilings) -> String {
    let mut text = String::new();
    for rows in rows.chunk_by(|a, b| a.operation == b.operation) {
        let first = &rows[0];
        let (measured, predicted) = (&first.shape, &first.predicted_shape);
        let of = if measured == predicted { String::new() } else { format!("; predicted for {predicted}") };
        text.push_str(&format!("{}: {measured}{of}\n", first.operation));
        let dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let cells = |(i, row): (usize, &Row)| {
            let before = i.checked_sub(1).map(|i| &rows[i]);
            let rate = |work: u64, unit: f64| row.time().filter(|_| work > 0).map(|time| work as f64 / time / unit);
            let (predicted, bound) = row.predicted;
            vec![
                row.rung.name.to_string(),
                row.rung.idea.to_string(),
                dash(row.time().map(seconds)),
                dash(row.gain(before).map(|gain| format!("{gain:.2}"))),
                dash(rate(row.bytes, 1e9).map(|rate| format!("{rate:.1}"))),
                dash(rate(row.flops, 1e12).map(|rate| format!("{rate:.3}"))),
                dash(row.share(ceilings).map(|share| format!("{:.0}", 100.0 * share))),
                dash(row.measured.as_ref().map(|m| format!("{:.0e}", m.error))),
                seconds(predicted),
                format!("by {bound}"),
            ]
        };
        let rows: Vec<Vec<String>> = rows.iter().enumerate().map(cells).collect();
        let names = ["rung", "idea", "time", "x before", "GB/s", "TFLOP/s", "%", "error", "H200 predicted", "options"];
        text.push_str(&table(&names, &rows, 2).replacen("options", "", 1));
        text.push('\n');
    }
    text
}

// ---------------------------------------------------------------- operands

/// Standard normal numbers, tensor `index`, rounded to bfloat16 where it is one.
fn normals(index: u64, len: usize, narrow: bool) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Stream::new(7, Purpose::Init, 0, index).fill_normal(&mut values);
    if narrow {
        values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    values
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// A buffer of these numbers, of the device's activation type or float32.
fn uploaded<L: Launcher>(gpu: &Gpu<L>, values: &[f32], activation: bool) -> Result<GpuBuffer<L>> {
    let mut buffer = if activation { gpu.alloc_activation(values.len())? } else { gpu.alloc(values.len())? };
    gpu.upload(values, Gpu::<L>::all_mut(&mut buffer))?;
    Ok(buffer)
}

fn downloaded<L: Launcher>(gpu: &Gpu<L>, view: GpuSlice<'_>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; view.len()];
    gpu.download(view, &mut values)?;
    Ok(values)
}

/// The larger error of the first and of the last of `n` images of `y`; `truth` makes one in float64.
fn error_of_ends<L: Launcher>(
    gpu: &Gpu<L>,
    y: &GpuBuffer<L>,
    n: usize,
    truth: impl Fn(usize) -> Vec<f64>,
) -> Result<f64> {
    let mut worst = 0.0f64;
    for image in if n > 1 { vec![0, n - 1] } else { vec![0] } {
        let want = truth(image);
        let got = wide(&downloaded(gpu, Gpu::<L>::slice(y, image * want.len()..(image + 1) * want.len()))?);
        worst = worst.max(error_of(&got, &want).unwrap_or(f64::INFINITY));
    }
    Ok(worst)
}

/// Refuses what a rung does not take: `fits` says whether it does, `limit` is its words for it.
fn expect(rung: &Rung, fits: bool, limit: &str, found: &dyn std::fmt::Debug) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Shape { op: "ladder", what: format!("{} takes {limit}, not {found:?}", rung.name) })
}

/// Below 2^31, as the kernels' indices are.
fn countable(extents: &[u32]) -> bool {
    let product = extents.iter().try_fold(1u64, |product, &extent| product.checked_mul(u64::from(extent)));
    product.is_some_and(|product| product > 0 && i32::try_from(product).is_ok())
}
