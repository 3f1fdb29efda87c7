//! A picture that dissolves in noise, and what a model draws from this noise.
//!
//! ```text
//! forward     column j shows signal_j x + noise_j e for a picture x and one noise e
//! reverse     from e, at the same levels: what DDIM, on its way from the right to the left, comes to
//! predicted   what the network takes the picture to be, shown the reverse row's
//! ```
//!
//! Columns are at equal steps of the model's own time; the first is without noise. All are normalised pictures, brought back and clipped.

use std::path::PathBuf;

use super::rows::side;
use super::{Drawing, Row, Sheet};
use crate::config::Config;
use crate::data::{self, Dataset};
use crate::diffusion::levels::Level;
use crate::diffusion::sampler::Way;
use crate::error::{Error, Result};
use crate::interop;
use crate::ops::Backend;
use crate::sample::{Follow, Ready, Stage, WeightKind, follow, noise_of_seed};
use crate::train::batches::load_pictures;
use crate::train::picture::Picture;
use crate::train::progress::Progress;

/// Network calls of the reverse way, at least, where the schedule has room for them.
const CALLS: usize = 40;

/// What to draw.
#[derive(Clone, Debug)]
pub struct ReverseFigure {
    /// A run, a checkpoint, a model file or a folder of the diffusers library.
    pub source: PathBuf,
    /// Pictures, where they are not those of the run.
    pub data: Option<String>,
    /// Where known sets of pictures are looked for.
    pub data_dir: Option<PathBuf>,
    /// Number of the picture among those that the run held back; among all, where it held none back or they are not its own.
    pub picture: usize,
    /// Columns.
    pub columns: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Which weights.
    pub weights: WeightKind,
}

impl ReverseFigure {
    /// Draws it.
    ///
    /// # Errors
    /// A source that is no model, a picture that is not there, more columns than the schedule has points, a failing device.
    pub fn drawing<B: Backend>(&self, backend: &B, progress: &Progress) -> Result<Drawing> {
        let mut ready = Ready::new(backend, &self.source, self.weights, progress)?;
        let clean = self.clean(&ready.config, &ready.fingerprint, progress)?;
        let gaps = self.columns.saturating_sub(1);
        if gaps == 0 {
            return Err(Error::Usage(format!("--columns {}: expected 2 or more", self.columns)));
        }
        let most = ready.diffusion.levels.as_ref().map_or(usize::MAX, |levels| levels.len() - 1);
        if gaps > most {
            let what = format!("the model's schedule has room for {}", most + 1);
            return Err(Error::Usage(format!("--columns {}: {what}", self.columns)));
        }
        // Columns fall on calls.
        let every = CALLS.div_ceil(gaps).min(most / gaps);
        let calls = gaps * every;
        let plan = ready.diffusion.even_plan(calls)?;
        let level = |column: usize| match column {
            0 => Level::CLEAN,
            column => plan.calls[calls - column * every].level,
        };
        let levels: Vec<Level> = (0..self.columns).map(level).collect();
        let size = ready.config.image_size;
        let mixed = Mixture {
            noise: noise_of_seed(self.seed, clean.len()),
            clean,
            mean_std: ready.normalizer().mean_std(),
            size,
            channels: ready.config.channels,
        };
        let forward = levels.iter().map(|level| mixed.at(level.signal, level.noise)).collect::<Result<_>>()?;

        // From the noisiest column to the first.
        let (mut reverse, mut predicted) = (vec![mixed.at(0.0, 1.0)?], Vec::new());
        let task = progress.task("drawing", calls as u64, "steps");
        let wanted = Follow { count: 1, first: 0, seed: self.seed };
        let mut on_step = |step: usize, stage: Stage<'_, B>| {
            if (step - 1).is_multiple_of(every) {
                predicted.extend(stage.predicted()?);
            }
            if step.is_multiple_of(every) && step < calls {
                reverse.extend(stage.on_the_way()?);
            }
            task.advance(1);
            Ok(())
        };
        let drawn = follow(backend, &mut ready, &Way::Plan(plan), &wanted, &mut on_step)?;
        task.finish();
        for row in [&mut reverse, &mut predicted] {
            row.extend(drawn.iter().cloned());
            row.reverse();
        }
        let row = |label: [&str; 2], pictures| Row { label: label.map(String::from).to_vec(), pictures };
        let rows = vec![
            row(["forward →", "a picture, more and more noise"], forward),
            row(["← reverse", &format!("from the same noise, {calls} network calls")], reverse),
            row(["predicted picture", "what the network sees in the row above"], predicted),
        ];
        let columns = levels.iter().map(|level| format!("noise {:.2}", level.noise)).collect();
        let title = "Forward and reverse diffusion of the same noise".into();
        Sheet { title, columns, rows, side: side(size) }.drawing()
    }

    /// The bytes of the picture.
    fn clean(&self, config: &Config, fingerprint: &str, progress: &Progress) -> Result<Vec<u8>> {
        if self.data.is_none() && interop::folder::is_folder(&self.source) {
            let what = "a folder of the diffusers library does not say which pictures it was trained on; name some with --data";
            return Err(Error::input(&self.source, what));
        }
        let mut wanted = config.clone();
        if let Some(data) = &self.data {
            wanted.data = data.clone();
        }
        let dataset = load_pictures(&wanted, self.data_dir.as_deref(), progress).map_err(|why| match why {
            Error::Input { path, what } if self.data.is_none() => {
                let hint = "The run was trained on these; name them with --data where they lie now";
                Error::Input { path, what: format!("{what}. {hint}") }
            }
            other => other,
        })?;
        let (of, numbers) = choice(config, fingerprint, &dataset)?;
        let Some(&number) = numbers.get(self.picture) else {
            let (name, last) = (dataset.description(), numbers.len().saturating_sub(1));
            let what = format!("--picture {}: {name} has {} {of}, numbers 0 to {last}", self.picture, numbers.len());
            return Err(Error::Usage(what));
        };
        Ok(dataset.image(number as usize).to_vec())
    }
}

/// The pictures to choose from, and what they are.
fn choice(config: &Config, fingerprint: &str, dataset: &Dataset) -> Result<(&'static str, Vec<u32>)> {
    if fingerprint == dataset.fingerprint() {
        let valid = data::split(dataset.len(), config.valid_fraction, config.seed)?.valid;
        if !valid.is_empty() {
            return Ok(("pictures held back", valid));
        }
    }
    Ok(("pictures", (0..dataset.len() as u32).collect()))
}

/// A picture and its noise.
struct Mixture {
    clean: Vec<u8>,
    noise: Vec<f32>,
    /// Of the normaliser: means, then deviations.
    mean_std: Vec<f32>,
    size: usize,
    channels: usize,
}

impl Mixture {
    fn at(&self, signal: f64, noise: f64) -> Result<Picture> {
        let c = self.channels;
        let value = |(i, (&byte, &e)): (usize, (&u8, &f32))| {
            let (mean, std) = (f64::from(self.mean_std[i % c]), f64::from(self.mean_std[c + i % c]));
            let x = (f64::from(byte) / 255.0 - mean) / std;
            ((signal * x + noise * f64::from(e)) * std + mean) as f32
        };
        let values: Vec<f32> = self.clean.iter().zip(&self.noise).enumerate().map(value).collect();
        Ok(Picture::from_unit_f32(&values, self.size, self.size, c)?.0)
    }
}
