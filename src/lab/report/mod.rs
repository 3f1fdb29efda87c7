//! One self-contained page about runs: curves, sample grids through the epochs, losses by noise level, settings, how to reproduce.
//!
//! [`Page`] is what the page knows; it travels in the page as one block of JSON, which `assets/report*.js` draws. The same script draws the
//! page of [`crate::lab::watch`], which asks for the block again and again. Nothing in the page is markup made of what users name things:
//! the script writes text nodes only, the block has no `<`, and the page's policy admits no script and no style but its own two, by hash.

mod curves;
mod facts;
mod pictures;

pub use curves::{Curves, Series};
pub use facts::device_name;
pub use pictures::{Frame, Samples};

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use base64::Engine;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::lab::record::{self, RunRecord, Status};
use crate::metrics::Evaluation;
use crate::train::metrics_log::Split;

/// The most runs on a page: beyond, no curve can be told from another.
pub const MOST_RUNS: usize = 40;
/// The most points of a curve.
pub const MOST_POINTS: usize = 2000;
/// Bytes of sample grids, as files, that a page takes unless told otherwise.
pub const PICTURE_BYTES: usize = 12 << 20;

const HTML: &str = include_str!("../../../assets/report.html");
const STYLE: &str = include_str!("../../../assets/report.css");
const SCRIPT: &str =
    concat!(include_str!("../../../assets/report-charts.js"), include_str!("../../../assets/report.js"));

/// All that a page tells.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// What the page is called.
    pub title: String,
    /// Program and version.
    pub generator: String,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// Whether it is served while runs train: the script then asks for news.
    pub live: bool,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// The runs, in the order given.
    pub runs: Vec<Run>,
    /// Settings in which the runs differ, each with its value in every run.
    pub differing: Vec<(String, Vec<String>)>,
}

/// A run on a page.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// Name of its folder.
    pub name: String,
    /// `starting`, `running`, `stopped` or `finished`.
    pub status: &'static str,
    /// The same in a sentence.
    pub progress: String,
    /// Steps done.
    pub steps: u64,
    /// Steps that it is to have, where that is known.
    pub total_steps: Option<u64>,
    /// Epochs begun.
    pub epochs: u64,
    /// Pictures in a step.
    pub batch: usize,
    /// Pixels each way.
    pub image_size: usize,
    /// Learned parameters.
    pub parameters: Option<usize>,
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Pictures a second.
    pub images_per_second: Option<f64>,
    /// Where it was computed; known once a run has ended, or to the process that trains it.
    pub device: Option<String>,
    /// What was trained on what: terms and values.
    pub facts: Vec<(&'static str, String)>,
    /// The last validation: step, training loss, error of the noise, error of the picture.
    pub valid: Option<(u64, [Option<f64>; 3])>,
    /// Records in `metrics.jsonl`.
    pub records: usize,
    /// Points that a curve was thinned to, where it was.
    pub thinned: Option<usize>,
    /// Curves of training.
    pub train: Curves,
    /// Curves of validation.
    pub held_back: Curves,
    /// Sample grids.
    pub samples: Samples,
    /// What `ddim-engine evaluate` found.
    pub evaluation: Option<Evaluation>,
    /// `config.toml`.
    pub config: String,
    /// Commands about the run: what for, and the line.
    pub commands: Vec<(String, String)>,
}

/// Where the sample grids of a page are.
#[derive(Clone, Copy, Debug)]
enum Pictures {
    /// Within the page, at most so many bytes of files for each run.
    Embedded(usize),
    /// On the server of the page, under the number of the run.
    Linked(usize),
}

impl Page {
    /// A page about runs that have trained; `picture_bytes` of sample grids at most, shared evenly.
    ///
    /// # Errors
    /// No runs, or too many; a run without metrics; a file of a run that cannot be read.
    pub fn of(runs: &[RunRecord], title: Option<&str>, notes: Vec<String>, picture_bytes: usize) -> Result<Self> {
        check_count(runs.len())?;
        let pictures = Pictures::Embedded(picture_bytes / runs.len());
        let parts = runs.iter().map(|run| Run::of(run, pictures, points_each(runs.len()), true));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(Page::new(title, parts, runs, notes, false))
    }

    /// A page about the runs in these folders, trained or about to be, with sample grids on the server of the page. `device`: where
    /// the process that serves trains.
    ///
    /// # Errors
    /// A file of a run that cannot be read.
    pub fn live(roots: &[std::path::PathBuf], title: Option<&str>, device: Option<&str>) -> Result<Self> {
        let (mut parts, mut records) = (Vec::new(), Vec::new());
        for (number, root) in roots.iter().enumerate() {
            if root.join("config.toml").is_file() {
                let record = RunRecord::open(root)?;
                let mut part = Run::of(&record, Pictures::Linked(number), points_each(roots.len()), false)?;
                if record.status == Status::Running {
                    part.device = device.map(str::to_string).or(part.device);
                }
                parts.push(part);
                records.push(record);
            } else {
                // The process that is to train reads its pictures first.
                let name = root.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                let progress = "about to train: pictures are being read".to_string();
                let device = device.map(str::to_string);
                parts.push(Run { name, status: "starting", progress, device, ..Run::default() });
            }
        }
        // A run without settings differs in all of them, which tells nothing.
        let comparable = if records.len() == parts.len() { &records[..] } else { &[] };
        Ok(Page::new(title, parts, comparable, Vec::new(), true))
    }

    fn new(title: Option<&str>, runs: Vec<Run>, records: &[RunRecord], notes: Vec<String>, live: bool) -> Self {
        let title = match (title, &runs[..]) {
            (Some(title), _) => title.to_string(),
            (None, [run]) => run.name.clone(),
            (None, runs) => format!("{} runs", runs.len()),
        };
        let made = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let differing = facts::differing(&records.iter().collect::<Vec<_>>());
        let generator = format!("ddim-engine {}", env!("CARGO_PKG_VERSION"));
        Page { title, generator, made, live, notes, runs, differing }
    }

    /// As JSON that is safe within a page: no `<`, `>`, `&`, and none of the two line ends that scripts know and JSON does not.
    ///
    /// # Errors
    /// None that an input can cause.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string(self);
        let text = text.map_err(|why| Error::Failed(format!("the report cannot be written as JSON: {why}")))?;
        let mut safe = String::with_capacity(text.len() + 64);
        for c in text.chars() {
            match c {
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe.push_str(&format!("\\u{:04x}", c as u32)),
                c => safe.push(c),
            }
        }
        Ok(safe)
    }

    /// The page: one HTML file that loads nothing.
    ///
    /// # Errors
    /// As of [`Page::json`].
    pub fn html(&self) -> Result<String> {
        let data = self.json()?;
        let still = |run: &Run| format!("<li>{}: {}</li>", escaped(&run.name), escaped(&run.progress));
        let without_script: String = self.runs.iter().map(still).collect();
        let (title, policy) = (escaped(&self.title), policy(self.live));
        Ok(fill(
            HTML,
            &[
                ("policy", &policy),
                ("title", &title),
                ("style", STYLE),
                ("without_script", &without_script),
                ("data", &data),
                ("script", SCRIPT),
            ],
        ))
    }
}

impl Run {
    fn of(record: &RunRecord, pictures: Pictures, points: usize, must_have_metrics: bool) -> Result<Self> {
        let config = record.config()?;
        let records = match record.metrics() {
            Err(why) if must_have_metrics => return Err(why),
            // A run that has only begun.
            Err(_) if record.train.is_none() && record.valid.is_none() => Vec::new(),
            other => other?,
        };
        let last = records.last();
        let valid = records.iter().rev().find(|r| r.split == Split::Valid);
        let speed = records.iter().rev().find(|r| r.split == Split::Train).map(|r| r.images_per_second);
        let samples = match pictures {
            Pictures::Embedded(bytes) => Samples::embedded(record, bytes)?,
            Pictures::Linked(number) => Samples::linked(record, number)?,
        };
        let number =
            |name, otherwise: Option<f64>| facts::of_summary(record, name).or(otherwise).and_then(curves::short);
        Ok(Run {
            name: record.name.clone(),
            status: record.status.name(),
            progress: facts::progress(record, &config, &records),
            steps: last.map_or(0, |r| r.step),
            total_steps: facts::total_steps(&config, &records),
            epochs: last.map_or(0, |r| r.epoch),
            batch: config.batch_size,
            image_size: config.image_size,
            parameters: facts::parameters(&config),
            seconds: number("seconds", last.map(|r| r.seconds)),
            images_per_second: number("images_per_second", speed),
            device: facts::device(record),
            facts: facts::facts(record, &config),
            valid: valid.map(|r| (r.step, [r.loss, r.noise_loss, r.image_loss].map(curves::short))),
            records: records.len(),
            thinned: (records.len() > points).then_some(points),
            train: Curves::of(&records, Split::Train, points),
            held_back: Curves::of(&records, Split::Valid, points),
            samples,
            evaluation: record.evaluation.clone(),
            config: facts::config_text(record)?,
            commands: facts::commands(record, &config),
        })
    }
}

/// Points of a curve on a page of so many runs: pages of many stay small enough to open on a phone.
fn points_each(runs: usize) -> usize {
    (16_000 / runs.max(1)).clamp(400, MOST_POINTS)
}

fn check_count(runs: usize) -> Result<()> {
    match runs {
        0 => Err(Error::Usage("no runs to report on; give the folder of a run, such as runs/NAME".into())),
        n if n > MOST_RUNS => Err(Error::Usage(format!(
            "{n} runs: a report takes at most {MOST_RUNS}; name those that matter (`ddim-engine runs` lists them)"
        ))),
        _ => Ok(()),
    }
}

/// The runs that paths stand for: a run, or a folder of runs. A run named twice comes once. Runs that a folder has and that cannot be
/// read, or have not trained, are left out, each with a line that says so.
///
/// # Errors
/// A path that is neither; a run named by itself that cannot be read, or has not trained; none or too many of them.
pub fn find_runs(paths: &[impl AsRef<Path>]) -> Result<(Vec<RunRecord>, Vec<String>)> {
    let (mut runs, mut notes, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut take = |run: RunRecord| {
        if seen.insert(std::fs::canonicalize(&run.root).unwrap_or_else(|_| run.root.clone())) {
            runs.push(run);
        }
    };
    for path in paths.iter().map(AsRef::as_ref) {
        let within =
            if path.join("config.toml").is_file() || !path.is_dir() { Vec::new() } else { record::find(path)? };
        if within.is_empty() {
            let run = RunRecord::open(path)?;
            if run.train.is_none() && run.valid.is_none() {
                run.metrics()?;
            }
            take(run);
        }
        for (root, run) in within {
            match run {
                Ok(run) if run.train.is_none() && run.valid.is_none() => {
                    notes.push(format!("{}: left out: it has not trained yet", root.display()));
                }
                Ok(run) => take(run),
                Err(why) => notes.push(format!("left out: {why}")),
            }
        }
    }
    match (runs.len(), notes.first()) {
        (0, Some(why)) => Err(Error::Usage(format!("no runs to report on; {why}"))),
        (n, _) => check_count(n).map(|()| (runs, notes)),
    }
}

/// The page's content security policy: nothing but its own script and style, by hash, and pictures within it; live, also what its own
/// server has.
pub fn policy(live: bool) -> String {
    let hash = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text.as_bytes()));
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    let own = if live { " 'self'; connect-src 'self'" } else { "" };
    format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:{own}; base-uri 'none'; form-action 'none'"
    )
}

/// Text as HTML writes it, also within quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// `template` with every `{{name}}` filled in, in one pass: what is filled in is not looked at again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find("{{") {
        out.push_str(&rest[..at]);
        let end = rest[at..].find("}}").map_or(rest.len(), |end| at + end + 2);
        let name = rest[at..end].trim_matches(['{', '}']);
        out.push_str(values.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_not_filled_again() {
        assert_eq!(fill("a {{x}} b {{y}}.", &[("x", "{{y}}"), ("y", "2")]), "a {{y}} b 2.");
        assert_eq!(fill("{{missing}}|", &[]), "|");
        for name in ["policy", "title", "style", "without_script", "data", "script"] {
            assert!(HTML.contains(&format!("{{{{{name}}}}}")), "{name}");
        }
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escaped(r#"<b a="1" b='2'>&"#), "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;");
        let evil = "</script><script>alert(1)</script>\u{2028}&<!--";
        let run = Run { name: evil.into(), status: "finished", ..Run::default() };
        let page = Page::new(Some(evil), vec![run], &[], vec![evil.into()], false);
        let json = page.json().unwrap();
        assert!(!json.contains(['<', '>', '&', '\u{2028}']), "{json}");
        let back: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(back["title"], evil);
        assert_eq!(back["runs"][0]["name"], evil);
        let html = page.html().unwrap();
        assert_eq!(html.matches("<script").count(), 2, "the data and the script");
        assert_eq!(html.matches("</script").count(), 2);
        assert!(!html.contains("alert(1)<"));
    }

    #[test]
    fn script_and_style_cannot_end_their_own_block() {
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("<!--") && !SCRIPT.contains("innerHTML"));
        assert!(!STYLE.contains("</") && !STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
