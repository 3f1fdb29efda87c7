//! Where samplers call the network: points of a schedule, noisiest first, as the public library's schedulers choose them.

use super::super::levels::{Level, Levels};
use super::{Method, SamplerOptions, Spacing};
use crate::error::{Error, Result};

/// A step between two levels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Transition {
    /// The network is called here.
    pub now: Level,
    /// And this comes next.
    pub next: Level,
    /// The network is called at the first point of the schedule: ancestral sampling adds no noise behind it.
    pub at_first_point: bool,
}

/// `count` numbers from `first` to `last`, as NumPy spaces them.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let step = (last - first) / (count.max(2) - 1) as f64;
    (0..count).map(|i| if i + 1 == count && count > 1 { last } else { first + step * i as f64 }).collect()
}

/// The points of a spacing, from the noisiest. Solvers of higher order leave out the first point of the schedule, behind which only the
/// clean picture is left.
fn points(total: usize, o: &SamplerOptions, solver: bool) -> Result<Vec<usize>> {
    let (n, extra) = (o.steps, usize::from(solver));
    let points: Vec<usize> = match o.spacing {
        Spacing::Leading => {
            let ratio = total / (n + extra);
            (extra..n + extra).rev().map(|i| i * ratio + o.steps_offset).collect()
        }
        Spacing::Trailing => {
            let ratio = total as f64 / n as f64;
            let point = |i: usize| (total as f64 - i as f64 * ratio).round_ties_even() as usize;
            (0..n).map(|i| point(i).saturating_sub(1)).collect()
        }
        Spacing::Linspace => {
            let all = linspace(0.0, (total - 1) as f64, n + extra);
            all[extra..].iter().rev().map(|p| p.round_ties_even() as usize).collect()
        }
        // As in the experiments of Song, Meng and Ermon 2021 (appendix D.2).
        Spacing::Quadratic => {
            linspace(0.0, (total as f64 * 0.8).sqrt(), n).iter().rev().map(|r| (r * r) as usize).collect()
        }
        Spacing::Grid => (1..=n).rev().collect(),
        Spacing::Karras => Vec::new(), // between the points
    };
    let refuse = |why: String| Err(Error::Usage(format!("--spacing {} and --steps {n}: {why}", o.spacing.name())));
    if let Some(&beyond) = points.iter().find(|&&p| p >= total) {
        let offset = o.steps_offset;
        return refuse(format!(
            "with steps_offset {offset} point {beyond} lies behind the schedule's last, {}",
            total - 1
        ));
    }
    if points.windows(2).any(|pair| pair[0] <= pair[1]) {
        return refuse("points would coincide; take fewer steps or another spacing".into());
    }
    Ok(points)
}

/// Karras' levels. `whole`: the network is told whole numbers of points.
fn karras(levels: &Levels, steps: usize, whole: bool) -> Vec<Level> {
    const RHO: f64 = 7.0;
    let sigmas = levels.sigmas();
    // The ends in float32, as the public library keeps them.
    let root = |sigma: Option<&f64>| sigma.map_or(0.0, |&s| f64::from(s as f32).powf(1.0 / RHO));
    let (most, least) = (root(sigmas.last()), root(sigmas.first()));
    let level = |ramp: f64| {
        let sigma = (most + ramp * (least - most)).powf(RHO);
        let timestep = if whole { levels.whole_timestep_of(sigma) } else { levels.timestep_of(sigma) };
        Level::of_sigma(sigma, timestep as f32)
    };
    linspace(0.0, 1.0, steps).into_iter().map(level).collect()
}

/// The steps of `ddim` and `ddpm`.
pub(super) fn transitions(levels: &Levels, o: &SamplerOptions) -> Result<Vec<Transition>> {
    let all = if o.spacing == Spacing::Karras {
        let nodes = karras(levels, o.steps, false);
        let next = nodes.iter().skip(1).copied().chain([Level::CLEAN]);
        let step = |(now, next): (&Level, Level)| Transition { now: *now, next, at_first_point: false };
        nodes.iter().zip(next).map(step).collect()
    } else {
        let points = points(levels.len(), o, false)?;
        let last = if o.set_alpha_to_one || o.method == Method::Ddpm { Level::CLEAN } else { levels.at(0) };
        // The public library's DDIM always goes T / N points on, be that a point where it calls the network or not.
        let ratio = levels.len() / o.steps;
        let by_ratio = o.method == Method::Ddim && !matches!(o.spacing, Spacing::Grid | Spacing::Quadratic);
        let next = |i: usize| match by_ratio {
            true => points[i].checked_sub(ratio).map_or(last, |p| levels.at(p)),
            false => points.get(i + 1).map_or(last, |&p| levels.at(p)),
        };
        let step = |i: usize| Transition { now: levels.at(points[i]), next: next(i), at_first_point: points[i] == 0 };
        (0..points.len()).map(step).collect::<Vec<_>>()
    };
    Ok(all.into_iter().skip(o.skip).collect())
}

/// The levels of `dpm++2m` and `heun`, without the clean picture at the end.
pub(super) fn solver_nodes(levels: &Levels, o: &SamplerOptions) -> Result<Vec<Level>> {
    let nodes = if o.spacing == Spacing::Karras {
        karras(levels, o.steps, o.method == Method::DpmPlusPlus2M)
    } else {
        let sigmas = levels.sigmas();
        let points = points(levels.len(), o, true)?;
        points.into_iter().map(|p| Level::of_sigma(sigmas[p], levels.at(p).timestep)).collect()
    };
    Ok(nodes.into_iter().skip(o.skip).collect())
}
