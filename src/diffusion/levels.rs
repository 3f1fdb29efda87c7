//! Noise levels: how much signal and noise a picture holds at each of the T points of a schedule, and what the network is told there.
//!
//! ```text
//! betas                beta_i, i = 0 .. T-1, between start and end                        (Ho et al. 2020)
//!   linear             linspace(start, end)
//!   scaled_linear      linspace(sqrt(start), sqrt(end))^2                                 (Rombach et al. 2022)
//!   squaredcos_cap_v2  min(1 - f((i+1)/T) / f(i/T), 0.999), f(t) = cos^2(pi/2 (t + 0.008) / 1.008)   (Nichol and Dhariwal 2021)
//!   sigmoid            start + (end - start) / (1 + exp(-linspace(-6, 6)))
//! bar_i                prod_{j <= i} (1 - beta_j);  signal = sqrt(bar), noise = sqrt(1 - bar); the network is told i
//! zero terminal SNR    signal_i <- signal_0 (signal_i - signal_{T-1}) / (signal_0 - signal_{T-1})    (Lin et al. 2024, algorithm 1)
//! edm                  sigma_i = exp(-1.2 + 1.2 Phi^-1((i + 1/2) / T)), signal = 1 / sqrt(1 + sigma^2), noise = sigma signal;
//!                      the network is told 250 ln sigma                                   (Karras et al. 2022, table 1)
//! ```
//!
//! Everything is float64 on the host, but for beta and 1 - beta: the public library keeps these in float32, checkpoints were trained with
//! them, and of a noise rate of 1e-2 the rounding of 1 - 1e-4 is the fifth digit.

use crate::config::ScheduleKind;
use crate::error::{Error, Result};
use crate::ops::schedule::ScheduleDims;
use crate::ops::schedule::cpu::rates;

/// How betas go from start to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Straight.
    Linear,
    /// Their roots go straight.
    ScaledLinear,
    /// From the squared cosine; start and end do not matter.
    SquaredcosCapV2,
    /// Along a sigmoid.
    Sigmoid,
}

impl BetaSchedule {
    /// The schedule that the public library calls `name`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "linear" => Some(BetaSchedule::Linear),
            "scaled_linear" => Some(BetaSchedule::ScaledLinear),
            "squaredcos_cap_v2" => Some(BetaSchedule::SquaredcosCapV2),
            "sigmoid" => Some(BetaSchedule::Sigmoid),
            _ => None,
        }
    }

    /// Its name in the public library.
    pub fn name(self) -> &'static str {
        match self {
            BetaSchedule::Linear => "linear",
            BetaSchedule::ScaledLinear => "scaled_linear",
            BetaSchedule::SquaredcosCapV2 => "squaredcos_cap_v2",
            BetaSchedule::Sigmoid => "sigmoid",
        }
    }
}

/// A schedule by its betas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Betas {
    /// How they go.
    pub schedule: BetaSchedule,
    /// The first.
    pub start: f64,
    /// The last.
    pub end: f64,
    /// How many: T.
    pub steps: usize,
    /// Stretched so that nothing of the signal is left at the end.
    pub zero_terminal_snr: bool,
}

impl Betas {
    /// The products of (1 - beta), T of them.
    pub fn alphas_cumprod(&self) -> Vec<f64> {
        let t = self.steps;
        let lerp = |first: f64, last: f64, i: usize| first + (last - first) * i as f64 / (t.max(2) - 1) as f64;
        let f = |x: f64| ((x + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let beta = |i: usize| match self.schedule {
            BetaSchedule::Linear => lerp(self.start, self.end, i),
            BetaSchedule::ScaledLinear => lerp(self.start.sqrt(), self.end.sqrt(), i).powi(2),
            BetaSchedule::SquaredcosCapV2 => (1.0 - f((i + 1) as f64 / t as f64) / f(i as f64 / t as f64)).min(0.999),
            BetaSchedule::Sigmoid => self.start + (self.end - self.start) / (1.0 + (-lerp(-6.0, 6.0, i)).exp()),
        };
        let bars = (0..t).scan(1.0, |bar, i| {
            *bar *= f64::from(1.0 - beta(i) as f32);
            Some(*bar)
        });
        let bars: Vec<f64> = bars.collect();
        match (self.zero_terminal_snr, bars.first(), bars.last()) {
            (true, Some(first), Some(last)) if t > 1 => {
                let (first, last) = (first.sqrt(), last.sqrt());
                bars.iter().map(|bar| ((bar.sqrt() - last) * first / (first - last)).powi(2)).collect()
            }
            _ => bars,
        }
    }
}

/// A point of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Signal rate; signal^2 + noise^2 = 1.
    pub signal: f64,
    /// Noise rate.
    pub noise: f64,
    /// What the network is told: the number of the point, or whatever its family takes in place of it.
    pub timestep: f32,
}

impl Level {
    /// A picture without noise. No network is called there.
    pub const CLEAN: Level = Level { signal: 1.0, noise: 0.0, timestep: 0.0 };

    /// Noise over signal.
    pub fn sigma(&self) -> f64 {
        self.noise / self.signal
    }

    /// The level with this ratio of noise to signal.
    pub fn of_sigma(sigma: f64, timestep: f32) -> Self {
        let signal = 1.0 / (1.0 + sigma * sigma).sqrt();
        Level { signal, noise: sigma * signal, timestep }
    }
}

/// What the network is told at a ratio of noise to signal between the points.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    /// The number of the point, or the time, by interpolation over ln sigma.
    Interpolated,
    /// The same; where a whole number is asked for, without its fraction: as the public library has it for `squaredcos_cap_v2`.
    InterpolatedDown,
    /// 250 ln sigma.
    Edm,
}

/// The points of a schedule, cleanest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    levels: Vec<Level>,
    between: Between,
    /// Nothing of the signal is left at the last point.
    zero_terminal_snr: bool,
}

/// Signal squared at the last point of a schedule with zero terminal SNR, where a sampler divides by it: as the public library has it.
const LEAST_BAR: f64 = 1.0 / 16_777_216.0;

impl Levels {
    /// The points of a schedule of betas; the network is told their numbers.
    ///
    /// # Errors
    /// Fewer than two points, or betas outside (0, 1).
    pub fn of_betas(betas: &Betas) -> Result<Self> {
        let within = |beta: f64| beta > 0.0 && beta < 1.0;
        let by_ends = betas.schedule != BetaSchedule::SquaredcosCapV2;
        if by_ends && !(within(betas.start) && within(betas.end)) {
            let (start, end) = (betas.start, betas.end);
            return Err(Error::Usage(format!("beta_start {start} and beta_end {end}: each must lie between 0 and 1")));
        }
        if betas.steps < 2 {
            return Err(Error::Usage(format!("num_train_timesteps {}: expected at least 2", betas.steps)));
        }
        let level =
            |(i, bar): (usize, f64)| Level { signal: bar.sqrt(), noise: (1.0 - bar).sqrt(), timestep: i as f32 };
        let levels = betas.alphas_cumprod().into_iter().enumerate().map(level).collect();
        let between = if by_ends { Between::Interpolated } else { Between::InterpolatedDown };
        Ok(Levels { levels, between, zero_terminal_snr: betas.zero_terminal_snr })
    }

    /// `steps` points of EDM's training distribution of noise, at equal shares of it.
    pub fn edm(steps: usize) -> Self {
        let level = |i: usize| {
            let log_sigma = -1.2 + 1.2 * normal_quantile((i as f64 + 0.5) / steps as f64);
            Level::of_sigma(log_sigma.exp(), (250.0 * log_sigma) as f32)
        };
        let levels = (0..steps).map(level).collect();
        Levels { levels, between: Between::Edm, zero_terminal_snr: false }
    }

    /// The seed's schedules at `steps` equally spaced times from 0 to 1. The network is told the number of the point.
    pub fn seed(kind: ScheduleKind, min_signal: f64, max_signal: f64, steps: usize) -> Self {
        let mut levels = Self::seed_times(kind, min_signal, max_signal, steps);
        levels.levels.iter_mut().enumerate().for_each(|(i, level)| level.timestep = i as f32);
        levels
    }

    /// As [`Levels::seed`] for a network of the seed family, which is told the time in [0, 1].
    pub fn seed_times(kind: ScheduleKind, min_signal: f64, max_signal: f64, steps: usize) -> Self {
        let dims = ScheduleDims {
            min_signal,
            max_signal,
            n: 0,
            e: 0,
            linear: u32::from(kind == ScheduleKind::Linear),
            embed_signal: 0,
            single: 0,
            reserved: 0,
        };
        let level = |i: usize| {
            let timestep = (i as f64 / (steps.max(2) - 1) as f64) as f32;
            let (signal, noise) = rates(&dims, timestep);
            Level { signal, noise, timestep }
        };
        let levels = (0..steps).map(level).collect();
        Levels { levels, between: Between::Interpolated, zero_terminal_snr: false }
    }

    /// How many points: T.
    pub fn len(&self) -> usize {
        self.levels.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// The points, cleanest first.
    pub fn all(&self) -> &[Level] {
        &self.levels
    }

    /// Point `i`; beyond the end, the last.
    pub fn at(&self, i: usize) -> Level {
        self.levels[i.min(self.len() - 1)]
    }

    /// Nothing of the signal is left at the last point.
    pub fn zero_terminal_snr(&self) -> bool {
        self.zero_terminal_snr
    }

    /// Noise over signal at each point. Where no signal is left it is that of signal^2 = 2^-24, so that it is a number.
    pub fn sigmas(&self) -> Vec<f64> {
        let sigma = |level: &Level| ((1.0 - level.signal.powi(2)).max(0.0) / level.signal.powi(2)).sqrt();
        let mut sigmas: Vec<f64> = self.levels.iter().map(sigma).collect();
        if let (true, Some(last)) = (self.zero_terminal_snr, sigmas.last_mut()) {
            *last = ((1.0 - LEAST_BAR) / LEAST_BAR).sqrt();
        }
        sigmas
    }

    /// What the network is told at a ratio of noise to signal, by interpolation over its logarithm between the points; at the ends
    /// for a ratio beyond them.
    pub fn timestep_of(&self, sigma: f64) -> f64 {
        if self.between == Between::Edm {
            return 250.0 * sigma.max(1e-10).ln();
        }
        self.between_points(sigma, f64::ln)
    }

    /// As [`Levels::timestep_of`], of a network that is told numbers of points: a whole one, near by. Where the public library cuts off
    /// the fraction, its logarithms are float32, which decides on the last point.
    pub fn whole_timestep_of(&self, sigma: f64) -> f64 {
        match (self.between, self.at(1).timestep) {
            (Between::Interpolated, 1.0) => self.timestep_of(sigma).round_ties_even(),
            (Between::InterpolatedDown, 1.0) => self.between_points(sigma, |s| f64::from((s as f32).ln())).floor(),
            _ => self.timestep_of(sigma),
        }
    }

    /// What the network is told at `sigma` by interpolation between the logarithms of the points' own.
    fn between_points(&self, sigma: f64, log_of_point: impl Fn(f64) -> f64) -> f64 {
        let logs: Vec<f64> = self.sigmas().into_iter().map(log_of_point).collect();
        let log = sigma.max(1e-10).ln();
        // From behind: with zero terminal SNR the last of them may be smaller than the one before.
        let low = logs.iter().rposition(|&l| l <= log).unwrap_or(0).min(self.len().saturating_sub(2));
        let share = ((log - logs[low]) / (logs[low + 1] - logs[low])).clamp(0.0, 1.0);
        let at = |i: usize| f64::from(self.at(i).timestep);
        at(low) * (1.0 - share) + at(low + 1) * share
    }
}

/// Inverse of the standard normal distribution function for p and 1 - p above e^-25 (Wichura 1988, AS 241, PPND16; relative error 1e-16).
fn normal_quantile(p: f64) -> f64 {
    let poly = |x: f64, c: [f64; 8]| c.iter().rev().fold(0.0, |sum, c| sum * x + c);
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        return q * poly(r, CENTRE.0) / poly(r, CENTRE.1);
    }
    let r = (-p.min(1.0 - p).ln()).sqrt() - 1.6;
    (poly(r, TAIL.0) / poly(r, TAIL.1)).copysign(q)
}

#[allow(clippy::excessive_precision)] // as published
const CENTRE: ([f64; 8], [f64; 8]) = (
    [
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ],
    [
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ],
);
#[allow(clippy::excessive_precision)] // as published
const TAIL: ([f64; 8], [f64; 8]) = (
    [
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ],
    [
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ],
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest difference relative to the value.
    #[track_caller]
    fn assert_near(got: &[f64], want: &[f64], tolerance: f64) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= tolerance * want.abs().max(1e-9), "{got} is not {want}");
        }
        assert_eq!(got.len(), want.len());
    }

    /// alphas_cumprod of diffusers 0.42 (DDPMScheduler, 1000 steps from 1e-4 to 0.02) at 0, 1, 500, 990 and 999.
    #[test]
    fn betas_are_those_of_the_public_library() {
        let public = [
            ("linear", false, [0.9998999834060669, 0.9997800588607788, 0.07779665291309357, 4.837048618355766e-05]),
            ("linear", true, [0.9998999834060669, 0.9997793436050415, 0.07524619996547699, 3.671394495086133e-07]),
            (
                "scaled_linear",
                false,
                [0.9998999834060669, 0.9997973442077637, 0.3312746286392212, 0.0008784586098045111],
            ),
            ("scaled_linear", true, [0.9999001026153564, 0.999794602394104, 0.317815363407135, 6.908522664161865e-06]),
            (
                "squaredcos_cap_v2",
                false,
                [0.9999586939811707, 0.9999125599861145, 0.4922850430011749, 0.000196717330254],
            ),
            (
                "squaredcos_cap_v2",
                true,
                [0.9999587535858154, 0.9999126195907593, 0.4922648072242737, 0.000195356769836],
            ),
            ("sigmoid", false, [0.9998508095741272, 0.9997010231018066, 0.29888758063316345, 4.7571953473379835e-05]),
            ("sigmoid", true, [0.9998507499694824, 0.9997000694274902, 0.29575416445732117, 3.62020927013873e-07]),
        ];
        for (name, zero_terminal_snr, want) in public {
            let schedule = BetaSchedule::parse(name).unwrap();
            assert_eq!(schedule.name(), name);
            let betas = Betas { schedule, start: 1e-4, end: 0.02, steps: 1000, zero_terminal_snr };
            let bars = betas.alphas_cumprod();
            let tolerance = if zero_terminal_snr { 3e-4 } else { 2e-6 }; // the library subtracts equal numbers in float32
            assert_near(&[0, 1, 500, 990].map(|i| bars[i]), &want, tolerance);
            let levels = Levels::of_betas(&betas).unwrap();
            assert_eq!((levels.at(999).signal == 0.0, levels.at(7).timestep), (zero_terminal_snr, 7.0));
            let sigmas = &levels.sigmas()[..if zero_terminal_snr { 999 } else { 1000 }];
            assert!(sigmas.windows(2).all(|pair| pair[0] < pair[1]) && levels.sigmas()[999].is_finite());
        }
    }

    /// Python's statistics.NormalDist().inv_cdf.
    #[test]
    fn quantiles_of_the_normal_distribution() {
        let want =
            [-3.2905267314918945, -2.967737925341783, -1.2787077203199047, -0.001253314465432556, 3.2905267314919255];
        assert_near(&[0.0005, 0.0015, 0.1005, 0.4995, 0.9995].map(normal_quantile), &want, 1e-13);
        let edm = Levels::edm(1000);
        let median = 0.5 * (edm.at(499).sigma().ln() + edm.at(500).sigma().ln());
        assert_near(&[median], &[-1.2], 1e-12);
        let told = edm.timestep_of(edm.at(123).sigma());
        assert!((told - f64::from(edm.at(123).timestep)).abs() < 1e-4);
    }

    #[test]
    fn points_are_found_by_their_noise() {
        let betas =
            Betas { schedule: BetaSchedule::Linear, start: 1e-4, end: 0.02, steps: 100, zero_terminal_snr: false };
        let levels = Levels::of_betas(&betas).unwrap();
        for i in [0, 1, 50, 99] {
            assert!((levels.timestep_of(levels.at(i).sigma()) - i as f64).abs() < 1e-6, "{i}");
        }
        assert_eq!((levels.timestep_of(1e-9), levels.timestep_of(1e9)), (0.0, 99.0));
        let between = (levels.at(50).sigma() * levels.at(51).sigma()).sqrt();
        assert!((levels.timestep_of(between) - 50.5).abs() < 1e-9);
    }

    #[test]
    fn the_seeds_schedules_have_its_rates() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let (levels, times) = (Levels::seed(kind, 0.02, 0.95, 5), Levels::seed_times(kind, 0.02, 0.95, 5));
            assert_eq!(
                [0, 2, 4].map(|i| (levels.at(i).timestep, times.at(i).timestep)),
                [(0.0, 0.0), (2.0, 0.5), (4.0, 1.0)]
            );
            assert!(levels.all().iter().all(|l| (l.signal.powi(2) + l.noise.powi(2) - 1.0).abs() < 1e-12));
        }
        let cosine = Levels::seed(ScheduleKind::Cosine, 0.02, 0.95, 5);
        assert_near(&[cosine.at(0).signal, cosine.at(4).signal], &[0.95, 0.02], 1e-12);
    }

    #[test]
    fn schedules_that_are_none_are_refused() {
        let betas =
            Betas { schedule: BetaSchedule::Linear, start: 1e-4, end: 0.02, steps: 1000, zero_terminal_snr: false };
        for bad in [Betas { end: 1.0, ..betas }, Betas { start: 0.0, ..betas }, Betas { steps: 1, ..betas }] {
            assert!(matches!(Levels::of_betas(&bad), Err(Error::Usage(_))), "{bad:?}");
        }
    }
}
