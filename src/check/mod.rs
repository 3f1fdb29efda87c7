//! Replays a reference file (PyTorch's numbers, computed in float64) on a device and says how far off each quantity is.
//!
//! A file is one safetensors file with metadata `format` = `ddim-engine-reference/1` and `config` (JSON): the network before the
//! first step, a batch, and what should come of it in evaluation, in training, after a few steps of AdamW, and in sampling.

mod file;

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{Family, Predict};
use crate::device::gpu::Arithmetic;
use crate::diffusion::sampler::Sampler;
use crate::error::{Error, Result};
use crate::model::Mode;
use crate::model::params::visit_flat;
use crate::ops::Backend;
use crate::tensor::{Shape, Tensor, nchw_to_nhwc, nhwc_to_nchw};
use crate::train::state::{Batch, Predictions, TrainState};
use crate::train::tensor_file::{self, NamedTensor};
use file::Case;

/// What relative errors may be. Each pair comes from measurement: PyTorch itself, on such files, is off by up to 1.2e-4 and 3e-4 in
/// float32, and by up to 9e-3 and 2.5e-2 in bfloat16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// Predictions, losses and samples.
    pub outputs: f64,
    /// All gradients as one vector; and parameters after the steps.
    pub gradients: f64,
    /// The gradient of one parameter. In bfloat16 a bias of a norm or convolution is a sum over all pixels that mostly cancels, while
    /// the rounding of its terms does not: PyTorch's own gradients are off by up to 1.5e-1 of such a parameter's gradient (2.2e-2 of
    /// all gradients together), on files of the default shape.
    pub one_gradient: f64,
    /// Samples of the family unet2d. In bfloat16 PyTorch's own are off by up to 2.7e-2, on a file with odd widths that predicts the picture.
    pub samples: f64,
    /// The same where the noise is predicted. Sampling begins where the signal rate is below 1e-2, and the first predicted picture has the
    /// prediction's error divided by that: PyTorch's own samples are off by 3e-2 to 1e-1 on such files (those of tests/fixtures/reference).
    pub noise_samples: f64,
    /// What a dead gradient may be, as a share of the root mean square over all gradients.
    pub dead: f64,
}

impl Tolerances {
    /// Those of an arithmetic.
    pub fn of(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::Fp32 => Tolerances {
                outputs: 5e-4,
                gradients: 2e-3,
                one_gradient: 2e-3,
                samples: 5e-4,
                noise_samples: 5e-4,
                dead: 1e-3,
            },
            // Factors have three bits more than those of bfloat16, activations all of theirs.
            Arithmetic::Tf32 => Tolerances {
                outputs: 5e-3,
                gradients: 2e-2,
                one_gradient: 2e-2,
                samples: 5e-3,
                noise_samples: 2e-2,
                dead: 1e-2,
            },
            Arithmetic::Bf16 => Tolerances {
                outputs: 2e-2,
                gradients: 4e-2,
                one_gradient: 2.5e-1,
                samples: 4e-2,
                noise_samples: 1e-1,
                dead: 5e-2,
            },
        }
    }
}

/// A gradient whose root mean square is below this share of the one over all gradients is rounding: dead.
const DEAD: f64 = 1e-6;

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Row {
    /// Quantity, with its worst member where it is a group.
    pub name: String,
    /// Largest absolute error.
    pub absolute: f64,
    /// |got - want| / |want|, Euclidean norms.
    pub relative: f64,
    /// What `relative` may be.
    pub tolerance: f64,
}

impl Row {
    /// Within tolerance; not-a-number is not.
    pub fn passed(&self) -> bool {
        self.relative <= self.tolerance
    }
}

/// The comparison of one file.
#[derive(Clone, Debug)]
pub struct Report {
    /// A line a quantity.
    pub rows: Vec<Row>,
    /// Parameters whose gradient is only rounding, left out of the comparison after the steps.
    pub dead: Vec<String>,
}

impl Report {
    /// All quantities are within tolerance.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(Row::passed)
    }
}

/// A reference file, read and checked for wholeness as it is used.
struct Reference<'p> {
    path: &'p Path,
    tensors: BTreeMap<String, NamedTensor>,
}

impl Reference<'_> {
    /// Takes a tensor out, so that what is left at the end is unknown.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Some(tensor) = self.tensors.remove(name) else {
            return Err(Error::input(self.path, format!("tensor `{name}` is missing")));
        };
        if tensor.shape != shape {
            let what = format!("tensor `{name}` has shape {:?}, expected {shape:?}", tensor.shape);
            return Err(Error::input(self.path, what));
        }
        Ok(tensor.data)
    }
}

/// Absolute and relative error of one tensor.
fn compare(got: &[f32], want: &[f32]) -> (f64, f64) {
    let (mut largest, mut off, mut norm) = (0f64, 0f64, 0f64);
    for (&g, &w) in got.iter().zip(want) {
        let d = (f64::from(g) - f64::from(w)).abs();
        // `max` would drop a NaN.
        largest = if d > largest || d.is_nan() { d } else { largest };
        off += d * d;
        norm += f64::from(w) * f64::from(w);
    }
    let relative = if norm == 0.0 { off.sqrt() } else { (off / norm).sqrt() };
    (largest, relative)
}

fn row(name: &str, got: &[f32], want: &[f32], tolerance: f64) -> Row {
    let (absolute, relative) = compare(got, want);
    Row { name: name.into(), absolute, relative, tolerance }
}

/// The worst member of a group, as one line.
fn worst(group: &str, members: Vec<Row>) -> Option<Row> {
    let worse = |a: &Row, b: &Row| if a.relative.is_nan() { true } else { a.relative > b.relative };
    let row = members.into_iter().reduce(|a, b| if worse(&a, &b) { a } else { b })?;
    Some(Row { name: format!("{group} ({})", row.name), ..row })
}

/// Replays `path` on `backend`.
///
/// # Errors
/// [`Error::Input`] where the file is not a whole reference file of a known family; device errors.
pub fn check<B: Backend>(backend: &B, path: &Path, tolerances: &Tolerances) -> Result<Report> {
    let contents = tensor_file::read(path)?;
    let case = Case::read(path, &contents.metadata)?;
    let tensors = contents.tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    replay(backend, &case, Reference { path, tensors }, tolerances)
}

fn replay<B: Backend>(backend: &B, case: &Case, mut r: Reference<'_>, t: &Tolerances) -> Result<Report> {
    let (c, size) = (case.config.channels, case.config.image_size);
    let shape = Shape::new(case.batch, size, size, c);
    let files = [case.batch, c, size, size];
    let mut state = TrainState::new(backend, &case.config)?;
    let layout = std::rc::Rc::clone(state.net.layout());
    for spec in layout.specs() {
        let values = r.take(&format!("{}.{}", case.prefix(spec), spec.name), &spec.shape.file_shape())?;
        state.weights.load(backend, spec, &values)?;
    }
    let picture = |values: Vec<f32>, s: Shape| Tensor::from_slice(backend, s, &nchw_to_nhwc(&values, s));
    let images = picture(r.take("input.images", &files)?, shape)?;
    let noise = picture(r.take("input.noise", &files)?, shape)?;
    let numbers = |r: &mut Reference<'_>, name: &str, n: usize| -> Result<B::Buffer> {
        let values = r.take(name, &[n])?;
        let mut buffer = backend.alloc(n)?;
        backend.upload(&values, B::all_mut(&mut buffer))?;
        Ok(buffer)
    };
    let times = case.times(&mut r)?;
    let times = {
        let mut buffer = backend.alloc(case.batch)?;
        backend.upload(&times, B::all_mut(&mut buffer))?;
        buffer
    };
    let labels = match case.has_labels() {
        true => Some(numbers(&mut r, "input.labels", case.batch)?),
        false => None,
    };
    let batch = Batch { images: &images, noise: &noise, times: &times, labels: labels.as_ref(), dropout: None };
    let host = |t: &Tensor<B>| Ok::<_, Error>(nhwc_to_nchw(&t.to_vec(backend)?, t.shape));
    let mut rows = Vec::new();

    // Evaluation mode, before any step.
    let eval = state.predict(backend, Mode::Eval, &batch)?;
    let mut rates = vec![0.0; 2 * case.batch];
    backend.download(B::all(&eval.rates), &mut rates)?;
    for (i, name) in case.rates().iter().enumerate() {
        let got: Vec<f32> = rates[i..].iter().step_by(2).copied().collect();
        rows.push(row(name, &got, &r.take(name, &[case.batch])?, t.outputs));
    }
    rows.push(row("expect.noisy", &host(&eval.noisy)?, &r.take("expect.noisy", &files)?, t.outputs));
    let mut predictions = |rows: &mut Vec<Row>, p: &Predictions<B>, mode: &str| -> Result<()> {
        for (what, tensor) in [("pred_noise", &p.noise), ("pred_image", &p.image)] {
            let name = format!("expect.{mode}.{what}");
            rows.push(row(&name, &host(tensor)?, &r.take(&name, &files)?, t.outputs));
        }
        Ok(())
    };
    predictions(&mut rows, &eval, "eval")?;
    drop(eval);
    // Training mode moves the running statistics: take them back before the real steps.
    let before = {
        let mut host = vec![0.0; B::buffer_len(&state.weights.running)];
        backend.download(B::all(&state.weights.running), &mut host)?;
        host
    };
    let train = state.predict(backend, Mode::Train, &batch)?;
    predictions(&mut rows, &train, "train")?;
    drop(train);
    backend.upload(&before, B::all_mut(&mut state.weights.running))?;

    // Sampling, in evaluation mode.
    let (got, want) = sample(backend, case, &mut r, &mut state)?;
    let tolerance = match (case.config.family, case.config.predict) {
        (Family::Seed, _) => t.outputs,
        (Family::Unet2d, Predict::Noise) => t.noise_samples,
        (Family::Unet2d, _) => t.samples,
    };
    let sample_row = row("sample.images", &got, &want, tolerance);

    // Training: gradients of the first step, losses of all, parameters after them.
    let (mut losses, mut dead, mut gradient_rows) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..case.train_steps {
        losses.push(state.gradients(backend, &batch)?.loss as f32);
        if step == 0 {
            let (all, each) = gradients(backend, &state, &mut r, &mut dead, t)?;
            rows.push(all);
            gradient_rows = each;
        }
        state.optimize(backend)?;
    }
    rows.extend(worst("grad.*", gradient_rows));
    rows.push(row("expect.losses", &losses, &r.take("expect.losses", &[case.train_steps])?, t.outputs));
    let (mut after_params, mut after_buffers) = (Vec::new(), Vec::new());
    state.weights.visit(backend, |spec, values| {
        let want = r.take(&format!("after.{}.{}", case.prefix(spec), spec.name), &spec.shape.file_shape())?;
        if !dead.contains(&spec.name) {
            let rows = if spec.learned { &mut after_params } else { &mut after_buffers };
            rows.push(row(&spec.name, values, &want, t.gradients));
        }
        Ok(())
    })?;
    rows.extend(worst("after.param.*", after_params));
    rows.extend(worst("after.buffer.*", after_buffers));
    rows.push(sample_row);
    match r.tensors.keys().next() {
        Some(name) => Err(Error::input(r.path, format!("unknown tensor `{name}`"))),
        None => Ok(Report { rows, dead }),
    }
}

/// The samples of the file's initial noise, and what should come of it.
fn sample<B: Backend>(
    backend: &B,
    case: &Case,
    r: &mut Reference<'_>,
    state: &mut TrainState<B>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (c, size) = (case.config.channels, case.config.image_size);
    let shape = Shape::new(case.samples, size, size, c);
    let files = [case.samples, c, size, size];
    let initial = nchw_to_nhwc(&r.take("sample.initial_noise", &files)?, shape);
    let want = r.take("sample.images", &files)?;
    let labels = match case.has_labels() {
        true => {
            Some(r.take("sample.labels", &[case.samples])?.into_iter().map(|label| label as usize).collect::<Vec<_>>())
        }
        false => None,
    };
    let (net, weights, steps) = (&state.net, &mut state.weights, case.sample_steps);
    let mut sampler = Sampler::new(backend, net, weights, &state.diffusion, shape, steps)?;
    if let Some(labels) = labels {
        sampler.set_classes(&labels, None)?;
    }
    backend.upload(&initial, sampler.noise())?;
    let image = sampler.run(|_, _| Ok(()))?;
    Ok((nhwc_to_nchw(&image.to_vec(backend)?, shape), want))
}

/// Compares the gradients; dead ones are named and held to a looser, absolute bound.
fn gradients<B: Backend>(
    backend: &B,
    state: &TrainState<B>,
    r: &mut Reference<'_>,
    dead: &mut Vec<String>,
    t: &Tolerances,
) -> Result<(Row, Vec<Row>)> {
    let mut pairs = Vec::new();
    visit_flat(backend, state.net.layout(), [Some(&state.grads), None], |spec, values| {
        let want = r.take(&format!("grad.{}", spec.name), &spec.shape.file_shape())?;
        pairs.push((spec.name.clone(), values.to_vec(), want));
        Ok(())
    })?;
    let squares = |v: &[f32]| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let count: usize = pairs.iter().map(|(_, _, want)| want.len()).sum();
    let overall = (pairs.iter().map(|(_, _, want)| squares(want)).sum::<f64>() / count as f64).sqrt();
    let (all_got, all_want): (Vec<f32>, Vec<f32>) =
        pairs.iter().flat_map(|(_, got, want)| got.iter().copied().zip(want.iter().copied())).unzip();
    let all = row("all gradients", &all_got, &all_want, t.gradients);
    let rows = pairs.iter().map(|(name, got, want)| {
        let rms = |v: &[f32]| (squares(v) / v.len() as f64).sqrt();
        if rms(want) >= DEAD * overall {
            return row(name, got, want, t.one_gradient);
        }
        dead.push(name.clone());
        // In units of the tolerance, so that one line can hold the worst of both kinds.
        let (absolute, _) = compare(got, want);
        let relative = rms(got) / overall * (t.one_gradient / t.dead);
        Row { name: name.clone(), absolute, relative, tolerance: t.one_gradient }
    });
    Ok((all, rows.collect()))
}
