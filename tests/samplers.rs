//! Samplers against the public library's numbers and EDM's published algorithm: `tests/fixtures/samplers/*.json`, written by
//! `tests/fixtures/samplers.py`. Every plan is carried out twice with the synthetic network of that script: on the host in float64, and
//! through the operations.

use ddim_engine::config::{Predict, ScheduleKind};
use ddim_engine::device::Memory;
use ddim_engine::device::cpu::Cpu;
use ddim_engine::diffusion::levels::{BetaSchedule, Betas, Levels};
use ddim_engine::diffusion::samplers::{
    Call, Inversion, Method, Plan, SamplerOptions, Spacing, Update, Variance, invert,
};
use ddim_engine::error::Error;
use ddim_engine::ops::sampler_step::reference::limited;
use ddim_engine::ops::sampler_step::{SamplerStep, StepDims, StepState, Threshold};

const IMAGES: usize = 2;
const PER_IMAGE: usize = 6;
/// Largest difference of pictures behind a step, relative to the largest value among them.
const TOLERANCE: f64 = 1e-5;

#[derive(Clone, serde::Deserialize)]
struct Case {
    sampler: String,
    config: serde_json::Value,
    steps: usize,
    eta: f64,
    timesteps: Vec<f64>,
    trajectory: Vec<Vec<f64>>,
}

impl Case {
    fn text<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.config.get(key).map_or(default, |v| v.as_str().unwrap())
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.config.get(key).map_or(default, |v| v.as_f64().unwrap())
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.config.get(key).map_or(default, |v| v.as_bool().unwrap())
    }

    fn levels(&self) -> Levels {
        let betas = Betas {
            schedule: BetaSchedule::parse(self.text("beta_schedule", "linear")).unwrap(),
            start: self.number("beta_start", 1e-4),
            end: self.number("beta_end", 0.02),
            steps: self.number("num_train_timesteps", 1000.0) as usize,
            zero_terminal_snr: self.flag("rescale_betas_zero_snr", false),
        };
        Levels::of_betas(&betas).unwrap()
    }

    fn options(&self) -> SamplerOptions {
        let method = Method::parse(&self.sampler).unwrap();
        let solver = matches!(method, Method::DpmPlusPlus2M | Method::Heun);
        let spacing = match self.flag("use_karras_sigmas", method == Method::Heun) {
            true => Spacing::Karras,
            false => {
                Spacing::parse(self.text("timestep_spacing", if solver { "linspace" } else { "leading" })).unwrap()
            }
        };
        let threshold = if self.flag("thresholding", false) {
            let most = self.number("sample_max_value", 1.0) as f32;
            Threshold::Dynamic { quantile: self.number("dynamic_thresholding_ratio", 0.995), most }
        } else if self.flag("clip_sample", !solver) {
            Threshold::Clamp(self.number("clip_sample_range", 1.0) as f32)
        } else {
            Threshold::None
        };
        SamplerOptions {
            method,
            steps: self.steps,
            spacing,
            steps_offset: self.number("steps_offset", 0.0) as usize,
            predict: match self.text("prediction_type", "epsilon") {
                "epsilon" => Predict::Noise,
                "sample" => Predict::Image,
                _ => Predict::Velocity,
            },
            threshold,
            eta: self.eta,
            variance: if self.text("variance_type", "fixed_small") == "fixed_large" {
                Variance::Large
            } else {
                Variance::Small
            },
            set_alpha_to_one: self.flag("set_alpha_to_one", true),
            skip: 0,
        }
    }
}

fn cases(name: &str) -> Vec<Case> {
    let path = format!("{}/tests/fixtures/samplers/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn elements() -> impl Iterator<Item = f64> {
    (0..IMAGES * PER_IMAGE).map(|i| i as f64)
}

fn start() -> Vec<f64> {
    elements().map(|i| 1.5 * (1.7 * i + 0.3).sin()).collect()
}

fn noise(step: usize) -> Vec<f64> {
    elements().map(|i| 2f64.sqrt() * (12.9898 * (i + 1.0) + 78.233 * (step + 1) as f64).sin()).collect()
}

fn network(x: &[f64], t: f64) -> Vec<f64> {
    x.iter().map(|x| 0.3 * x + (t / 1000.0).sin()).collect()
}

/// Something that carries out updates: x and the last predicted picture, with what was kept.
trait Machine {
    fn x(&self) -> Vec<f64>;
    fn step(&mut self, update: &Update, threshold: Threshold, pred: &[f64], noise: &[f64]);
}

struct Host {
    x: Vec<f64>,
    x0: Vec<f64>,
    kept: Vec<f64>,
}

impl Host {
    fn new(x: Vec<f64>) -> Self {
        Host { x0: vec![0.0; x.len()], kept: vec![0.0; x.len()], x }
    }
}

impl Machine for Host {
    fn x(&self) -> Vec<f64> {
        self.x.clone()
    }

    fn step(&mut self, u: &Update, threshold: Threshold, pred: &[f64], noise: &[f64]) {
        let plain: Vec<f64> = self.x.iter().zip(pred).map(|(x, p)| u.cx * x + u.cp * p).collect();
        let x0: Vec<f64> = plain.chunks(PER_IMAGE).flat_map(|image| limited(image, threshold)).collect();
        for i in 0..x0.len() {
            let old = self.x[i];
            let known = u.a * old + u.b * self.kept[i] + u.c * pred[i];
            self.x[i] = known + u.d * x0[i] + u.e * self.x0[i] + u.f * noise[i];
            if u.keep {
                self.kept[i] = old;
            }
        }
        self.x0 = x0;
    }
}

/// The operations on a CPU. The noise of a step is given, so it is added behind the update.
struct Device {
    cpu: Cpu,
    buffers: [<Cpu as Memory>::Buffer; 3],
}

impl Device {
    fn new(x: &[f64]) -> Self {
        let cpu = Cpu::new(1).unwrap();
        cpu.poison_new_buffers();
        let mut buffers = [0; 3].map(|_| cpu.alloc(x.len()).unwrap());
        buffers[0].as_mut_slice().copy_from_slice(&single(x));
        Device { cpu, buffers }
    }
}

fn single(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

impl Machine for Device {
    fn x(&self) -> Vec<f64> {
        self.buffers[0].as_slice().iter().map(|&x| f64::from(x)).collect()
    }

    fn step(&mut self, update: &Update, threshold: Threshold, pred: &[f64], noise: &[f64]) {
        let dims = StepDims { n: IMAGES as u32, per_image: PER_IMAGE as u32 };
        let [x, x0, kept] = &mut self.buffers;
        let state = StepState { x: x.as_mut_slice(), x0: x0.as_mut_slice(), kept: Some(kept.as_mut_slice()) };
        let coefficients = Update { f: 0.0, ..*update }.coefficients();
        self.cpu.sampler_step(&dims, &coefficients, threshold, &single(pred), None, state).unwrap();
        if update.f != 0.0 {
            let old = x.as_slice().to_vec();
            self.cpu.combine(1.0, &old, update.f as f32, Some(&single(noise)), x.as_mut_slice()).unwrap();
        }
    }
}

/// Carries out a plan; the pictures behind every whole step.
fn carry_out(machine: &mut dyn Machine, plan: &Plan) -> Vec<Vec<f64>> {
    let mut trajectory = Vec::new();
    for (i, call) in plan.calls.iter().enumerate() {
        let input: Vec<f64> = machine.x().iter().map(|x| call.input_scale * x).collect();
        let pred = network(&input, f64::from(call.level.timestep));
        machine.step(&call.update, plan.threshold, &pred, &noise(i));
        if call.reached.is_some() {
            trajectory.push(machine.x());
        }
    }
    trajectory
}

/// Largest difference over all steps, each relative to the largest value behind it.
fn worst(got: &[Vec<f64>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let step = |(got, want): (&Vec<f64>, &Vec<f64>)| {
        let largest = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let error = |(g, w): (&f64, &f64)| if (g - w).is_nan() { f64::INFINITY } else { (g - w).abs() };
        got.iter().zip(want).map(error).fold(0.0, f64::max) / largest
    };
    got.iter().zip(want).map(step).fold(0.0, f64::max)
}

fn hold(name: &str) {
    let mut failed = Vec::new();
    for case in cases(name) {
        let label = format!("{} {} steps, eta {}, {}", case.sampler, case.steps, case.eta, case.config);
        let plan = Plan::new(&case.levels(), &case.options()).unwrap();
        let told: Vec<f64> = plan
            .calls
            .iter()
            .filter(|c| c.reached.is_some() || name == "heun")
            .map(|c| c.level.timestep.into())
            .collect();
        if name == "heun" {
            // Both halves of a step: the first call at its beginning, the second at its end.
            for (i, t) in case.timesteps.iter().enumerate() {
                assert!((told[2 * i] - t).abs() < 1e-2, "{label}: {} and not {t}", told[2 * i]);
            }
        } else {
            assert_eq!(told, case.timesteps, "{label}");
        }
        let x: Vec<f64> = start().iter().map(|x| plan.noise_scale * x).collect();
        let host = worst(&carry_out(&mut Host::new(x.clone()), &plan), &case.trajectory);
        let device = worst(&carry_out(&mut Device::new(&x), &plan), &case.trajectory);
        if std::env::var_os("DDIM_SHOW_ERRORS").is_some() {
            println!("host {host:.1e} device {device:.1e}  {label}");
        }
        if !(host <= TOLERANCE && device <= TOLERANCE) {
            failed.push(format!("host {host:.2e} device {device:.2e}  {label}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn ddim_is_the_public_librarys() {
    hold("ddim");
}

#[test]
fn ddpm_is_the_public_librarys() {
    hold("ddpm");
}

#[test]
fn dpm_solver_is_the_public_librarys() {
    hold("dpm");
}

#[test]
fn heun_is_edms_algorithm() {
    hold("heun");
}

fn linear(zero_terminal_snr: bool) -> Levels {
    let betas = Betas { schedule: BetaSchedule::Linear, start: 1e-4, end: 0.02, steps: 1000, zero_terminal_snr };
    Levels::of_betas(&betas).unwrap()
}

/// Pictures led to noise and back: the longer one iterates, the closer. The synthetic network is a contraction as the networks of
/// trained models are not, so this measures the arithmetic.
#[test]
fn inversion_is_undone_by_sampling() {
    for predict in [Predict::Noise, Predict::Velocity] {
        let options = SamplerOptions::ddim(12, predict);
        let levels = linear(false);
        let error = |rounds: usize| {
            let mut there = Host::new(start());
            carry_out(&mut there, &invert(&levels, &options, Inversion { rounds }).unwrap());
            let mut back = Host::new(there.x());
            carry_out(&mut back, &Plan::new(&levels, &options).unwrap());
            worst(&[back.x()], &[start()])
        };
        let errors = [1, 2, 4, 12].map(error);
        assert!(errors.windows(2).all(|pair| pair[1] < 0.7 * pair[0]), "{predict:?}: {errors:?}");
        assert!(errors[3] < 1e-3, "{predict:?}: {errors:?}");
    }
}

/// Leaving out steps starts where the rest would have gone on; a solver's first step is of first order again.
#[test]
fn steps_are_left_out_at_the_beginning() {
    for method in Method::ALL {
        let all = SamplerOptions { method, spacing: Spacing::Trailing, ..SamplerOptions::ddim(10, Predict::Noise) };
        let (whole, part) = (Plan::new(&linear(false), &all).unwrap(), {
            let some = SamplerOptions { skip: 6, ..all };
            Plan::new(&linear(false), &some).unwrap()
        });
        let told = |calls: &[Call]| calls.iter().map(|c| c.level.timestep).collect::<Vec<_>>();
        assert!(told(&whole.calls).ends_with(&told(&part.calls)), "{method:?}");
        assert_eq!(part.calls[0].update.e, 0.0, "{method:?}");
        let sigma = part.calls[0].level.sigma();
        assert!((part.start[1] / part.start[0] - sigma).abs() < 1e-9 * sigma, "{method:?}");
        let scale = if method == Method::Heun { 1.0 + sigma * sigma } else { 1.0 };
        assert!((part.start[0].powi(2) + part.start[1].powi(2) - scale).abs() < 1e-9 * scale, "{method:?}");
    }
}

/// The seed's grid: S points are S - 1 calls, the last update leads to the clean picture.
#[test]
fn the_seeds_grid() {
    let levels = Levels::seed_times(ScheduleKind::Cosine, 0.02, 0.95, 6);
    let options = SamplerOptions { spacing: Spacing::Grid, ..SamplerOptions::ddim(5, Predict::Noise) };
    let plan = Plan::new(&levels, &options).unwrap();
    assert_eq!(plan.calls.iter().map(|c| c.level.timestep).collect::<Vec<_>>(), [1.0, 0.8, 0.6, 0.4, 0.2]);
    assert_eq!(plan.calls.iter().map(|c| c.reached.unwrap()).next_back(), Some([1.0, 0.0]));
    let last = plan.calls[4].update;
    assert_eq!((last.a, last.c, last.d), (0.0, 0.0, 1.0));
}

#[test]
fn what_does_not_go_together_is_refused_by_both_names() {
    let plain = SamplerOptions::ddim(10, Predict::Noise);
    let karras = SamplerOptions { spacing: Spacing::Karras, ..plain };
    let refused = |levels: &Levels, options: SamplerOptions, needles: &[&str]| {
        let Err(Error::Usage(text)) = Plan::new(levels, &options) else { panic!("{options:?} is taken") };
        assert!(needles.iter().all(|needle| text.contains(needle)), "{text}");
    };
    let levels = linear(false);
    refused(&linear(true), plain, &["rescale_betas_zero_snr", "epsilon"]);
    refused(&levels, SamplerOptions { method: Method::Ddpm, ..karras }, &["--spacing karras", "--sampler ddpm"]);
    refused(&levels, SamplerOptions { method: Method::Heun, eta: 0.5, ..karras }, &["--eta 0.5", "--sampler heun"]);
    refused(
        &levels,
        SamplerOptions { method: Method::DpmPlusPlus2M, eta: 0.5, ..plain },
        &["--eta", "--sampler dpm++2m"],
    );
    refused(&levels, SamplerOptions { eta: 1.5, ..plain }, &["--eta 1.5"]);
    refused(&levels, SamplerOptions { steps: 1001, ..plain }, &["--steps 1001", "1000"]);
    refused(&levels, SamplerOptions { skip: 10, ..plain }, &["--strength"]);
    refused(&levels, SamplerOptions { steps_offset: 200, ..plain }, &["--spacing leading", "steps_offset 200"]);
    refused(
        &levels,
        SamplerOptions { spacing: Spacing::Quadratic, steps: 900, ..plain },
        &["--spacing quadratic", "900"],
    );
    assert!(Method::parse("euler").is_err() && Spacing::parse("grid").is_err());
    for (method, spacing) in Method::ALL.into_iter().flat_map(|m| Spacing::NAMED.map(|s| (m, s))) {
        let plan = Plan::new(&levels, &SamplerOptions { method, spacing, ..plain });
        assert_eq!(plan.is_ok(), (method, spacing) != (Method::Ddpm, Spacing::Karras), "{method:?} {spacing:?}");
    }
}
