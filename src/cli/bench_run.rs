//! `ddim-engine bench`, from parsed options to the library and to what is printed.

use std::path::Path;
use std::time::Instant;

use ddim_engine::bench::ceilings::Ceilings;
use ddim_engine::bench::machine::Watched;
use ddim_engine::bench::plan::{Plan, What};
use ddim_engine::bench::sample::{self, Sampling};
use ddim_engine::bench::step::{self, Breakdown, Steps};
use ddim_engine::bench::table::{seconds, table};
use ddim_engine::bench::timing::Samples;
use ddim_engine::bench::{FORMAT, kernels, ladder};
use ddim_engine::config::Config;
use ddim_engine::device::gpu::Gpu;
use ddim_engine::device::launcher::Launcher;
use ddim_engine::error::Result;
use ddim_engine::ops::Backend;
use ddim_engine::train::run_dir::write_atomic;
use serde_json::{Map, Value, json};

use super::device::{Chosen, KernelWork, Work};
use super::print;

/// Peak resident memory of this process in MiB (`VmHWM`), where the system tells.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// What every result begins with.
fn head(what: &str, device: &Chosen) -> Map<String, Value> {
    let mut head = Map::new();
    head.insert("format".into(), json!(FORMAT));
    head.insert("what".into(), json!(what));
    head.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
    head.insert("device".into(), json!(device.line.trim_start_matches("device: ")));
    head.insert("precision".into(), json!(device.arithmetic().to_string()));
    head
}

fn extend(map: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        map.extend(more);
    }
}

/// Prints the text, or the JSON where it goes to standard output; else writes it to its file.
fn put(text: &str, result: Map<String, Value>, json: Option<&Path>) -> Result<()> {
    let result = format!("{:#}\n", Value::Object(result));
    match json {
        Some(path) if path.as_os_str() == "-" => return print::stdout(&result),
        Some(path) => write_atomic(path, result.as_bytes())?,
        None => {}
    }
    print::stdout(text)
}

/// MiB of so many bytes.
fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

struct Kernels<'a>(&'a kernels::Options);

impl Work for Kernels<'_> {
    type Output = Vec<kernels::Row>;
    fn run<B: Backend>(self, backend: &B) -> Result<Vec<kernels::Row>> {
        kernels::measure(backend, self.0, &mut |line| print::stderr(line))
    }
}

/// Measures the operations of presets.
pub fn kernels(device: &Chosen, options: &kernels::Options, json: Option<&Path>) -> Result<()> {
    let watched = Watched::begin(device.is_gpu());
    let ceilings = device.ceilings()?;
    print::stderr(&ceilings.line());
    let rows = device.run(Kernels(options))?;
    let dtype = if device.activation_bytes() == 2 { "bfloat16" } else { "float32" };
    let mut result = head("kernels", device);
    let presets: Map<String, Value> =
        options.presets.iter().map(|(name, config)| (name.clone(), json!(config.batch_size))).collect();
    extend(
        &mut result,
        json!({
            "batch_sizes": presets,
            "only": options.only,
            "ceilings": ceilings.json(),
            "machine": watched.json(),
            "rows": rows.iter().map(|row| row.json(&ceilings, dtype)).collect::<Vec<_>>(),
        }),
    );
    let text = format!("{}{}\n", kernels::text(&rows, &ceilings), watched.line());
    put(&text, result, json)
}

struct Ladder<'a>(&'a ladder::Options);

impl KernelWork for Ladder<'_> {
    type Output = Vec<ladder::Row>;
    fn run<L: Launcher>(self, gpu: &Gpu<L>) -> Result<Vec<ladder::Row>> {
        ladder::measure(gpu, self.0, &mut |line| print::stderr(line))
    }
}

/// Measures the rungs of the ladder, or only lists them.
pub fn ladder(device: &Chosen, options: &ladder::Options, list: bool, json: Option<&Path>) -> Result<()> {
    let watched = Watched::begin(device.is_gpu());
    let (rows, ceilings) = if list {
        (ladder::list(options)?, Ceilings { source: "nothing was measured".into(), ..Ceilings::default() })
    } else {
        (device.run_kernels("bench kernels --ladder", Ladder(options))?, device.ceilings()?)
    };
    let mut result = head("ladder", device);
    let rows_json = rows.iter().enumerate().map(|(i, row)| row.json(i.checked_sub(1).map(|i| &rows[i]), &ceilings));
    extend(
        &mut result,
        json!({
            "only": options.only,
            "ceilings": ceilings.json(),
            "machine": watched.json(),
            "rows": rows_json.collect::<Vec<_>>(),
        }),
    );
    let note = if options.small {
        "Times are the simulator's, on this machine's CPU and of small extents: they say nothing about a GPU. Errors do.\n"
    } else {
        ""
    };
    let text = format!(
        "{}H200 predicted: from what a kernel asks for and assumed rates (docs/ladder.md), not measured.\n{note}{}\n{}\n",
        ladder::text(&rows, &ceilings),
        ceilings.line(),
        watched.line()
    );
    put(&text, result, json)
}

struct Step<'a> {
    config: &'a Config,
    repeat: usize,
    breakdown: bool,
}

/// Steps, peak resident memory in MiB after them, and the parts where they were asked for.
type StepResult = (Steps, Option<f64>, Option<Breakdown>);

impl Work for Step<'_> {
    type Output = StepResult;
    fn run<B: Backend>(self, backend: &B) -> Result<StepResult> {
        let steps = step::time(backend, self.config, self.repeat)?;
        let rss = peak_rss_mib();
        let breakdown = if self.breakdown { Some(step::breakdown(backend, self.config, self.repeat)?) } else { None };
        Ok((steps, rss, breakdown))
    }
}

/// Times a training step.
pub fn step(device: &Chosen, config: &Config, repeat: usize, breakdown: bool, json: Option<&Path>) -> Result<()> {
    let watched = Watched::begin(device.is_gpu());
    let began = Instant::now();
    let (steps, rss, breakdown) = device.run(Step { config, repeat, breakdown })?;
    let total = began.elapsed().as_secs_f64();
    let samples = &steps.seconds;
    let (least, median) = (samples.least(), samples.median());
    let images = config.batch_size as f64;
    let mut result = head("training step", device);
    let row = json!({ "operation": "training step", "shape": "", "options": "", "hot": samples.json() });
    extend(
        &mut result,
        json!({
            "seconds_per_step_min": least,
            "seconds_per_step_median": median,
            "seconds_per_step_p20": samples.quantile(0.2),
            "seconds_per_step_p80": samples.quantile(0.8),
            "seconds_first_step": steps.first,
            "images_per_second": images / median,
            "peak_rss_mib": rss,
            "arena_peak_mib": mib(steps.memory.peak),
            "batch_size": config.batch_size,
            "image_size": config.image_size,
            "steps": samples.len(),
            "seconds_total": total,
            "machine": watched.json(),
            "rows": [row],
        }),
    );
    if let Some(breakdown) = &breakdown {
        result.insert("breakdown".into(), breakdown_json(breakdown));
    }
    let text = format!(
        "step {:.3} ms at least, {:.3} ms in the median of {}; {:.0} images/s\n{}{}{}\n",
        1e3 * least,
        1e3 * median,
        samples.len(),
        images / median,
        memory_line(steps.first, "first step", mib(steps.memory.peak), rss),
        breakdown.as_ref().map(breakdown_text).unwrap_or_default(),
        watched.line(),
    );
    put(&text, result, json)
}

fn memory_line(first: f64, what: &str, arena: f64, rss: Option<f64>) -> String {
    let rss = rss.map_or_else(String::new, |rss| format!(", process {rss:.0} MiB"));
    format!("{what} after {}; arena {arena:.0} MiB{rss}\n", seconds(first))
}

fn breakdown_json(breakdown: &Breakdown) -> Value {
    let steps = breakdown.steps as f64;
    let parts = breakdown.parts.iter().map(|part| {
        json!({
            "part": part.kind.name(), "seconds": part.seconds, "share": part.seconds / breakdown.seconds,
            "calls": part.calls, "flops": part.flops, "bytes": part.bytes,
        })
    });
    let calls = breakdown.calls.iter().map(|seen| {
        json!({
            "operation": seen.call.operation, "part": seen.call.kind.name(), "shape": seen.call.shape,
            "options": seen.call.options, "calls": seen.count as f64 / steps, "seconds": seen.seconds / steps,
        })
    });
    json!({
        "steps": breakdown.steps, "seconds_per_step": breakdown.seconds, "launches": breakdown.launches,
        "parts": parts.collect::<Vec<_>>(), "operations": calls.collect::<Vec<_>>(),
    })
}

fn breakdown_text(breakdown: &Breakdown) -> String {
    let sum: f64 = breakdown.parts.iter().map(|part| part.seconds).sum();
    let dash = |there: bool, text: String| if there { text } else { "-".into() };
    let mut rows: Vec<Vec<String>> = (breakdown.parts.iter())
        .map(|part| {
            vec![
                part.kind.name().to_string(),
                format!("{:.0}", part.calls),
                seconds(part.seconds),
                format!("{:.1}", 100.0 * part.seconds / breakdown.seconds),
                dash(part.flops > 0.0, format!("{:.1}", part.flops / 1e9)),
                dash(part.flops > 0.0, format!("{:.0}", part.flops / part.seconds / 1e9)),
                format!("{:.1}", part.bytes / 1e6),
                format!("{:.1}", part.bytes / part.seconds / 1e9),
            ]
        })
        .collect();
    let rest = breakdown.seconds - sum;
    let mut line = |name: &str, value: f64| {
        let share = format!("{:.1}", 100.0 * value / breakdown.seconds);
        rows.push(vec![name.into(), String::new(), seconds(value), share]);
    };
    line("between operations", rest);
    line("the step, watched", breakdown.seconds);
    let names = ["part", "calls", "time", "%", "GFLOP", "GFLOP/s", "MB", "GB/s"];
    let launches = breakdown.launches.map_or_else(String::new, |n| format!("{n} kernels launched in a step\n"));
    format!("{}{launches}", table(&names, &rows, 1))
}

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub struct Pictures {
    /// Pictures.
    pub images: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// Times that all are drawn.
    pub repeat: usize,
}

struct Sample<'a>(&'a Config, Pictures);

impl Work for Sample<'_> {
    type Output = Sampling;
    fn run<B: Backend>(self, backend: &B) -> Result<Sampling> {
        sample::time(backend, self.0, self.1.images, self.1.steps, self.1.repeat)
    }
}

/// Times sampling.
pub fn sample(device: &Chosen, config: &Config, what: Pictures, json: Option<&Path>) -> Result<()> {
    let watched = Watched::begin(device.is_gpu());
    let sampling = device.run(Sample(config, what))?;
    let rss = peak_rss_mib();
    let samples: &Samples = &sampling.seconds;
    let images = what.images as f64;
    let mut result = head("sampling", device);
    let shape = format!("{} images {} steps", what.images, what.steps);
    extend(
        &mut result,
        json!({
            "seconds_min": samples.least(),
            "seconds_median": samples.median(),
            "seconds_p20": samples.quantile(0.2),
            "seconds_p80": samples.quantile(0.8),
            "seconds_p100": samples.quantile(1.0),
            "seconds_first": sampling.first,
            "images_per_second": images / samples.median(),
            "images": what.images,
            "sample_steps": what.steps,
            "batch_size": config.batch_size.min(what.images),
            "image_size": config.image_size,
            "repeat": samples.len(),
            "peak_rss_mib": rss,
            "arena_peak_mib": mib(sampling.memory.peak),
            "machine": watched.json(),
            "rows": [{ "operation": "sampling", "shape": shape, "options": "", "hot": samples.json() }],
        }),
    );
    let text = format!(
        "{} images in {} steps: {} at least, {} in the median of {} ({} to {}); {:.1} images/s\n{}{}\n",
        what.images,
        what.steps,
        seconds(samples.least()),
        seconds(samples.median()),
        samples.len(),
        seconds(samples.quantile(0.2)),
        seconds(samples.quantile(0.8)),
        images / samples.median(),
        memory_line(sampling.first, "first pictures", mib(sampling.memory.peak), rss),
        watched.line(),
    );
    put(&text, result, json)
}

/// Prints a plan.
pub fn plan(plan: &Plan, config: &Config, what: What, every: bool, json: Option<&Path>) -> Result<()> {
    let title = match what {
        What::Step => "plan of a training step",
        What::Sample => "plan of a network call of sampling",
    };
    let mut result = Map::new();
    extend(
        &mut result,
        json!({
            "format": FORMAT, "what": title, "version": env!("CARGO_PKG_VERSION"),
            "batch_size": config.batch_size, "image_size": config.image_size,
        }),
    );
    extend(&mut result, plan.json());
    put(
        &format!(
            "{title}, {} images of {}x{}: {}",
            config.batch_size,
            config.image_size,
            config.image_size,
            plan.text(every)
        ),
        result,
        json,
    )
}
