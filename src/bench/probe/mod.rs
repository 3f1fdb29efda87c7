//! A device that watches another: every operation goes through to it and is noted on the way, timed, or measured in place.
//!
//! A model never asks which device it runs on, so a step of training on a [`Probe`] asks for exactly the operations, extents and operands
//! of any other step: a table made of what is noted cannot drift from the models. Whoever does not ask for one pays nothing, since the
//! operations themselves know nothing of it.
//!
//! Measuring in place means: when an operation is asked for with extents and options that were not seen before, it is carried out once,
//! compared with its float64 reference, then repeated with the same operands until its time is known, and at last everything that it
//! changed is put back to what the first call left. The step goes on as if nothing had been measured.

/// Sizes of optional operands.
macro_rules! extents {
    ($b:ident; $($view:expr),* $(,)?) => { [$($view.map($b::extent)),*] };
}

/// Results of a call, lent to it for as long as the statement lasts, which brings them to one lifetime.
macro_rules! lent {
    ($b:ident; $($view:expr),* $(,)?) => { [$({ $view }.as_mut().map($b::lend)),*] };
}

mod conv;
mod dense;
mod error;
mod memory;
mod norms;
mod resample;
mod resample_conv;
mod sampling;
mod training;

pub(super) use error::error_of;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Instant;

use super::timing::{Effort, Samples, Timing};
use crate::device::{Extent, ReadBack, nvtx};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::conv::Direction;

/// What a part of a step is for: the lines of its breakdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Convolutions of the forward pass.
    Forward,
    /// Convolutions that give the gradient of their input.
    Dgrad,
    /// Gradients of filters.
    Wgrad,
    /// Filters into the order of a kernel.
    Pack,
    /// Batch and group norm, forward.
    Norm,
    /// Batch and group norm, backward.
    NormBackward,
    /// Attention, forward.
    Attention,
    /// Attention, backward.
    AttentionBackward,
    /// Linear layers and embeddings.
    Linear,
    /// Changes of resolution.
    Resample,
    /// Random numbers, and what is mixed of them.
    Noise,
    /// The loss and its gradient.
    Loss,
    /// Adam, the moving average and the norm of the gradients.
    Adam,
    /// Updates of a sampler.
    Sampler,
    /// Pixels to numbers and back.
    Images,
    /// Copies, fills, and what goes between host and device.
    Copy,
}

impl Kind {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Forward => "conv forward",
            Kind::Dgrad => "conv dgrad",
            Kind::Wgrad => "conv wgrad",
            Kind::Pack => "filter pack",
            Kind::Norm => "norm",
            Kind::NormBackward => "norm backward",
            Kind::Attention => "attention",
            Kind::AttentionBackward => "attention backward",
            Kind::Linear => "linear, embed",
            Kind::Resample => "resample",
            Kind::Noise => "noise",
            Kind::Loss => "loss",
            Kind::Adam => "adam",
            Kind::Sampler => "sampler update",
            Kind::Images => "images",
            Kind::Copy => "copy, fill",
        }
    }
}

/// An operation as it was asked for.
#[derive(Clone, Debug)]
pub struct Call {
    /// Name of the operation, as its method.
    pub operation: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// Extents, for people: images first.
    pub shape: String,
    /// What is fused with it, or what else makes it another operation of the same extents.
    pub options: String,
    /// Multiply-adds of its products times two; 0 where the elements are only passed over.
    pub flops: u64,
    /// Bytes of its operands: each read once, each result written once, both where it is updated.
    pub bytes: u64,
    /// Results are updated, not overwritten.
    updates: bool,
}

impl Call {
    pub(super) fn new(operation: &'static str, kind: Kind, shape: String) -> Self {
        Call { operation, kind, shape, options: String::new(), flops: 0, bytes: 0, updates: false }
    }
    /// As a row names it: operation, extents, options.
    fn title(&self) -> String {
        format!("{} {} {}", self.operation, self.shape, self.options).trim_end().to_string()
    }
    /// Adds an option to the name where it is there.
    pub(super) fn option(mut self, name: &str, there: bool) -> Self {
        if there {
            self.options.push_str(if self.options.is_empty() { "" } else { "+" });
            self.options.push_str(name);
        }
        self
    }
    pub(super) fn flops(mut self, flops: u64) -> Self {
        self.flops = flops;
        self
    }
    /// Operands that are read.
    pub(super) fn reads<const N: usize>(mut self, views: [Option<Extent>; N]) -> Self {
        self.bytes += views.iter().flatten().map(|view| view.bytes as u64).sum::<u64>();
        self
    }
    /// Results are updated: read as well as written, and different after every call.
    pub(super) fn updates(mut self) -> Self {
        self.updates = true;
        self
    }
}

/// What was seen of one kind of call.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The operation.
    pub call: Call,
    /// How often it was asked for since [`Probe::clear_counts`].
    pub count: usize,
    /// Seconds of all these calls, where they were timed.
    pub seconds: f64,
    /// Where it was measured.
    pub measured: Option<Measured>,
}

/// What measuring a call in place told.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Time of a call.
    pub timing: Timing,
    /// Largest difference from the float64 reference over the largest value of it, of the sample that was compared.
    pub error: Option<f64>,
    /// What the device chose: names of kernels, or of variants.
    pub plans: Vec<&'static str>,
}

/// A call with the kernels that it launched.
#[derive(Clone, Debug)]
pub struct Launched {
    /// The operation.
    pub call: Call,
    /// Their names, in the order of the launches.
    pub kernels: Vec<&'static str>,
}

/// What a [`Probe`] does with the operations that are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Watch {
    /// Nothing: they go through.
    Off,
    /// Notes them and does not carry them out: memory keeps whatever it holds.
    List,
    /// Times each, waiting for the device before and after.
    Time,
    /// Notes with each which kernels the device launches for it: [`Probe::take_launches`].
    Launches,
    /// Measures each that is new and that [`Probe::select`] wants.
    Measure(Effort),
}

/// A filter that was packed, from where it can be compared.
struct PackedFilter {
    direction: Direction,
    /// Main filter, residual filter, factors; empty where they are not kept.
    w: Vec<f64>,
    w_res: Vec<f64>,
    scale: Vec<f64>,
    forward_c: usize,
}

/// The device that watches `inner`.
pub struct Probe<'b, B: Backend> {
    inner: &'b B,
    watch: Cell<Watch>,
    only: Vec<String>,
    seen: RefCell<Vec<Seen>>,
    index: RefCell<HashMap<(&'static str, String, String), usize>>,
    packed: RefCell<HashMap<u64, PackedFilter>>,
    launched: RefCell<Vec<Launched>>,
    /// Something small that the device can be waited for with.
    after: B::Buffer,
    /// Two buffers larger than the caches together, once needed.
    evict: RefCell<Option<[B::Buffer; 2]>>,
}

/// A result of a call that must be there.
fn need<V>(view: Option<V>) -> Result<V> {
    view.ok_or_else(|| Error::Failed("bench: a result of an operation is missing".into()))
}

/// Nothing to compare with.
fn unchecked<const N: usize>(_: &[Vec<f64>; N], _: &[Vec<f64>; N]) -> Result<Option<f64>> {
    Ok(None)
}

impl<'b, B: Backend> Probe<'b, B> {
    /// Watches `inner`, at first not at all.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(inner: &'b B) -> Result<Self> {
        let mut after = inner.alloc(1)?;
        inner.fill(B::all_mut(&mut after), 0.0)?;
        Ok(Probe {
            inner,
            watch: Cell::new(Watch::Off),
            only: Vec::new(),
            seen: RefCell::default(),
            index: RefCell::default(),
            packed: RefCell::default(),
            launched: RefCell::default(),
            after,
            evict: RefCell::new(None),
        })
    }

    /// Measures only operations whose name, purpose or shape contains one of `words`; all where there are none.
    pub fn select(&mut self, words: &[String]) {
        self.only = words.iter().map(|word| word.to_lowercase()).collect();
    }

    /// What happens from now on.
    pub fn set(&self, watch: Watch) {
        self.watch.set(watch);
    }

    /// Forgets how often and for how long, not what was measured.
    pub fn clear_counts(&self) {
        self.seen.borrow_mut().iter_mut().for_each(|seen| (seen.count, seen.seconds) = (0, 0.0));
    }

    /// What was seen, in the order of first sight.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    /// The calls that were watched with [`Watch::Launches`] since the last time, in their order.
    pub fn take_launches(&self) -> Vec<Launched> {
        self.launched.take()
    }

    /// Waits until the device has done all that it was asked for.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait(&self) -> Result<()> {
        self.inner.read_back(B::all(&self.after))?.wait().map(|_| ())
    }

    /// Whether results are compared just now.
    fn measures(&self) -> bool {
        matches!(self.watch.get(), Watch::Measure(_))
    }

    /// Whether [`Probe::select`] wants it.
    pub fn selects(&self, call: &Call) -> bool {
        let text = || format!("{} {} {}", call.operation, call.kind.name(), call.shape).to_lowercase();
        self.only.is_empty() || self.only.iter().any(|word| text().contains(word))
    }

    /// Counts a call and says where it is noted, and whether it was new.
    fn count(&self, call: &Call, seconds: f64) -> (usize, bool) {
        let key = (call.operation, call.shape.clone(), call.options.clone());
        let mut seen = self.seen.borrow_mut();
        let fresh = seen.len();
        let at = *self.index.borrow_mut().entry(key).or_insert(fresh);
        if at == fresh {
            seen.push(Seen { call: call.clone(), count: 0, seconds: 0.0, measured: None });
        }
        seen[at].count += 1;
        seen[at].seconds += seconds;
        (at, seen[at].measured.is_none())
    }

    /// The elements of a view, as float64.
    fn fetch(&self, view: B::Slice<'_>) -> Result<Vec<f64>> {
        let mut values = vec![0.0f32; B::extent(view).len];
        self.inner.download(view, &mut values)?;
        Ok(values.into_iter().map(f64::from).collect())
    }

    fn fetch_opt(&self, view: Option<B::Slice<'_>>) -> Result<Option<Vec<f64>>> {
        view.map(|view| self.fetch(view)).transpose()
    }

    fn fetch_all<const N: usize>(&self, outs: &[Option<B::SliceMut<'_>>; N]) -> Result<[Vec<f64>; N]> {
        let mut all = [const { Vec::new() }; N];
        for (values, out) in all.iter_mut().zip(outs) {
            if let Some(out) = out {
                *values = self.fetch(B::shared(out))?;
            }
        }
        Ok(all)
    }

    /// Carries out `op` on `outs`, its results, as [`Watch`] says. `check` compares: it is given the results from before (where they are
    /// updated) and after, and returns the error against float64.
    fn call<'o, const N: usize>(
        &self,
        mut call: Call,
        mut outs: [Option<B::SliceMut<'o>>; N],
        mut op: impl for<'x> FnMut([Option<B::SliceMut<'x>>; N]) -> Result<()>,
        check: impl FnOnce(&[Vec<f64>; N], &[Vec<f64>; N]) -> Result<Option<f64>>,
    ) -> Result<()> {
        let watch = self.watch.get();
        if watch == Watch::Off {
            return op(outs);
        }
        let written: usize = outs.iter().flatten().map(|out| B::extent(B::shared(out)).bytes).sum();
        call.bytes += written as u64 * if call.updates { 2 } else { 1 };
        let lend = |outs: &mut [Option<B::SliceMut<'o>>; N]| -> Result<()> {
            op(outs.each_mut().map(|out| out.as_mut().map(B::lend)))
        };
        let mut op = lend;
        match watch {
            Watch::Off => Ok(()),
            Watch::List => {
                self.count(&call, 0.0);
                Ok(())
            }
            Watch::Time => {
                let _range = nvtx::range_named(|| call.title());
                self.wait()?;
                let began = Instant::now();
                op(&mut outs)?;
                self.wait()?;
                self.count(&call, began.elapsed().as_secs_f64());
                Ok(())
            }
            Watch::Launches => {
                self.inner.note_plans(true);
                let done = op(&mut outs);
                let kernels = self.inner.note_plans(false);
                done?;
                self.launched.borrow_mut().push(Launched { call, kernels });
                Ok(())
            }
            Watch::Measure(effort) => {
                let (at, fresh) = self.count(&call, 0.0);
                if !fresh || !self.selects(&call) {
                    return op(&mut outs);
                }
                let _range = nvtx::range_named(|| call.title());
                let before = if call.updates { self.fetch_all(&outs)? } else { [const { Vec::new() }; N] };
                self.inner.note_plans(true);
                let done = op(&mut outs);
                let plans = self.inner.note_plans(false);
                done?;
                let after = self.fetch_all(&outs)?;
                let error = check(&before, &after)?;
                let timing = self.measure(effort, &mut || op(&mut outs))?;
                if call.updates {
                    for (out, values) in outs.into_iter().zip(&after) {
                        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                        out.map_or(Ok(()), |out| self.inner.upload(&values, out))?;
                    }
                }
                self.seen.borrow_mut()[at].measured = Some(Measured { timing, error, plans });
                Ok(())
            }
        }
    }

    /// Times `op`: again and again, and each time with empty caches.
    pub(super) fn measure(&self, effort: Effort, op: &mut dyn FnMut() -> Result<()>) -> Result<Timing> {
        self.wait()?;
        let began = Instant::now();
        op()?;
        self.wait()?;
        let once = began.elapsed().as_secs_f64();
        // Short calls are repeated within a sample, or the clock and the wait would count.
        let calls = (effort.sample_seconds / once.max(1e-7)).clamp(1.0, 100.0) as usize;
        let mut many = || (0..calls).try_for_each(|_| op());
        let graph = if calls > 1 { self.inner.record(&mut many)? } else { None };
        let mut sample = || -> Result<f64> {
            let began = Instant::now();
            match &graph {
                Some(graph) => self.inner.replay(graph)?,
                None => many()?,
            }
            self.wait()?;
            Ok(began.elapsed().as_secs_f64() / calls as f64)
        };
        let range = nvtx::range(c"hot");
        let hot = Samples::take(effort, &mut sample)?;
        drop(range);
        drop(graph);
        let mut sample = || -> Result<f64> {
            self.empty_caches(effort.evict_len)?;
            self.wait()?;
            let began = Instant::now();
            op()?;
            self.wait()?;
            Ok(began.elapsed().as_secs_f64())
        };
        let mut cold = None;
        if effort.cold {
            let _range = nvtx::range(c"cold");
            cold = Some(Samples::take(effort, &mut sample)?);
        }
        Ok(Timing { hot, cold, calls })
    }

    /// Reads and writes more than the caches hold, on all cores.
    fn empty_caches(&self, len: usize) -> Result<()> {
        let mut evict = self.evict.borrow_mut();
        if evict.is_none() {
            let [mut x, mut y] = [self.inner.alloc(len)?, self.inner.alloc(len)?];
            self.inner.fill(B::all_mut(&mut x), 1.0)?;
            self.inner.fill(B::all_mut(&mut y), 1.0)?;
            *evict = Some([x, y]);
        }
        if let Some([x, y]) = &mut *evict {
            self.inner.combine(0.5, B::all(x), 0.0, None, B::all_mut(y))?;
            self.inner.combine(0.5, B::all(y), 0.0, None, B::all_mut(x))?;
            self.inner.combine(2.0, B::all(x), 0.0, None, B::all_mut(y))?;
            self.inner.combine(2.0, B::all(y), 0.0, None, B::all_mut(x))?;
        }
        Ok(())
    }
}
