//! Forward diffusion under several schedules, and the rates of each over time.

use super::{Axis, Chart, Drawing, Row, Series, Sheet};
use crate::config::{Config, ScheduleKind};
use crate::data::Dataset;
use crate::diffusion::levels::{BetaSchedule, Betas, Level, Levels};
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use crate::train::picture::Picture;

/// Points of a schedule between its ends.
const POINTS: usize = 1000;
/// Pictures that mean and deviation are of.
const NORMALIZE_OVER: usize = 512;

/// What to show.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Schedules, by the names that the key `schedule` takes, or `linear_unclipped` for the betas without the bounds of the seed.
    pub schedules: Vec<String>,
    /// Bounds of the signal rate, for linear and cosine.
    pub signal_rates: [f64; 2],
    /// Number of the picture in its source.
    pub picture: usize,
    /// Columns.
    pub columns: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of a picture in the figure, in CSS pixels.
    pub side: f64,
}

/// The points of a schedule by its name, from the least noise to the most.
///
/// # Errors
/// There is no schedule of this name.
pub fn levels_of(name: &str, [min, max]: [f64; 2]) -> Result<Levels> {
    let defaults = Config::seed_preset();
    let betas = |schedule| {
        let (start, end) = (defaults.beta_start, defaults.beta_end);
        Levels::of_betas(&Betas { schedule, start, end, steps: POINTS, zero_terminal_snr: false })
    };
    match name {
        "cosine" => Ok(Levels::seed_times(ScheduleKind::Cosine, min, max, POINTS)),
        "linear" => Ok(Levels::seed_times(ScheduleKind::Linear, min, max, POINTS)),
        "linear_unclipped" => betas(BetaSchedule::Linear),
        "edm" => Ok(Levels::edm(POINTS)),
        _ => match BetaSchedule::parse(name) {
            Some(schedule) => betas(schedule),
            None => Err(Error::Usage(format!(
                "--schedule {name}: no such schedule; expected cosine, linear, linear_unclipped, scaled_linear, squaredcos_cap_v2, \
                 sigmoid or edm"
            ))),
        },
    }
}

impl Forward {
    /// One picture under each schedule at equal steps of time, and the squared signal rate of each over time.
    ///
    /// # Errors
    /// There is no such schedule or picture; nothing to show.
    pub fn drawing(&self, dataset: &Dataset) -> Result<Drawing> {
        if self.schedules.is_empty() || self.columns < 2 {
            return Err(Error::Usage("a figure of schedules needs a schedule and 2 or more columns".into()));
        }
        if self.picture >= dataset.len() {
            let (n, last) = (self.picture, dataset.len() - 1);
            return Err(Error::Usage(format!("--picture {n}: {} has numbers 0 to {last}", dataset.description())));
        }
        let c = dataset.channels();
        let mut normalizer = Normalizer::new(c, NORMALIZE_OVER);
        (0..dataset.len().min(NORMALIZE_OVER)).for_each(|i| normalizer.gather(dataset.image(i)));
        let (mean, std) = (normalizer.mean(), normalizer.std());
        let clean = dataset.image(self.picture);
        let mut noise = vec![0.0; clean.len()];
        Stream::new(self.seed, Purpose::Noise, 0, 0).fill_normal(&mut noise);
        let size = dataset.image_size();
        let noisy = |level: Level| -> Result<Picture> {
            let value = |i: usize| {
                let (mean, std) = (f64::from(mean[i % c]), f64::from(std[i % c]));
                let x = (f64::from(clean[i]) / 255.0 - mean) / std;
                ((level.signal * x + level.noise * f64::from(noise[i])) * std + mean) as f32
            };
            let values: Vec<f32> = (0..clean.len()).map(value).collect();
            Ok(Picture::from_unit_f32(&values, size, size, c)?.0)
        };
        let at = |column: usize| (POINTS - 1) * column / (self.columns - 1);
        let mut rows = Vec::new();
        let mut chart = Chart::new("").x(Axis::linear("time").range(0.0, 1.0)).y(Axis::linear("signal rate²"));
        let label = |name: &str| name.replace('_', " ");
        for name in &self.schedules {
            let levels = levels_of(name, self.signal_rates)?;
            let pictures: Result<Vec<_>> = (0..self.columns).map(|column| noisy(levels.at(at(column)))).collect();
            rows.push(Row { label: vec![label(name)], pictures: pictures? });
            let time = |i: usize| i as f64 / (POINTS - 1) as f64;
            let points = levels.all().iter().enumerate().map(|(i, level)| (time(i), level.signal.powi(2))).collect();
            chart = chart.series(Series::line(label(name), points));
        }
        let columns = (0..self.columns).map(|column| format!("t {:.2}", column as f64 / (self.columns - 1) as f64));
        let title = "Forward diffusion: signal rate × picture + noise rate × noise";
        let sheet = Sheet { title: title.into(), columns: columns.collect(), rows, side: self.side }.drawing()?;
        let curves = chart.size(sheet.width, 250.0).drawing()?;
        Ok(Drawing::stacked(title, vec![sheet, curves], 4.0))
    }
}
