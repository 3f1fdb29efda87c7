//! Parameters: one flat buffer, a layout that names its parts, one walk that serves everything.
//!
//! In memory a filter is [T, C, K] (taps, input, output channels); in files it is PyTorch's OIHW. [`Weights::visit`] and
//! [`Weights::load`] convert, so that initialisation, checkpoints and reference files all speak OIHW and PyTorch's names.

use std::ops::Range;
use std::rc::Rc;

use crate::device::Memory;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::conv::{ConvDims, Direction, Filter};
use crate::ops::resample_conv::ResampleConvDims;
use crate::rng::{Purpose, Stream};

/// A parameter or a running statistic: its index in the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(usize);

/// Shape of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamShape {
    /// A filter: output channels, input channels, side.
    Filter {
        /// K.
        k: usize,
        /// C.
        c: usize,
        /// 1 or 3.
        side: usize,
    },
    /// A vector of this length.
    Vector(usize),
    /// A linear layer: output channels, input channels. In memory [C, K].
    Matrix {
        /// K.
        k: usize,
        /// C.
        c: usize,
    },
    /// A table of vectors, such as the embeddings of classes; the same in memory and in files.
    Table {
        /// Vectors.
        rows: usize,
        /// Elements of a vector.
        c: usize,
    },
    /// Some columns of a matrix [C, K of all] that several layers share in memory, so that one product serves them. In files it is the
    /// layer's own [K, C], or `[K]` for biases (C = 1).
    Columns {
        /// K.
        k: usize,
        /// C.
        c: usize,
        /// K of all layers.
        of: usize,
        /// The first column.
        at: usize,
        /// A bias.
        vector: bool,
    },
}

impl ParamShape {
    /// Elements.
    pub fn len(&self) -> usize {
        match *self {
            ParamShape::Filter { k, c, side } => k * c * side * side,
            ParamShape::Vector(n) => n,
            ParamShape::Matrix { k, c } | ParamShape::Columns { k, c, .. } => k * c,
            ParamShape::Table { rows, c } => rows * c,
        }
    }
    /// Elements of its place in memory, which it may share.
    fn place_len(&self) -> usize {
        match *self {
            ParamShape::Columns { c, of, .. } => c * of,
            _ => self.len(),
        }
    }
    /// True where it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The shape in files: [K, C, side, side] or `[n]`.
    pub fn file_shape(&self) -> Vec<usize> {
        match *self {
            ParamShape::Filter { k, c, side } => vec![k, c, side, side],
            ParamShape::Vector(n) => vec![n],
            ParamShape::Matrix { k, c } => vec![k, c],
            ParamShape::Table { rows, c } => vec![rows, c],
            ParamShape::Columns { k, vector: true, .. } => vec![k],
            ParamShape::Columns { k, c, .. } => vec![k, c],
        }
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in [-bound, bound) (PyTorch's default for convolutions: bound = 1/sqrt(fan_in)).
    Uniform(f32),
    /// All the same.
    Constant(f32),
    /// Normal with mean 0 and this deviation.
    Normal(f32),
}

/// One named part of the flat buffers.
#[derive(Clone, Debug)]
pub struct Spec {
    /// PyTorch's name.
    pub name: String,
    /// Its shape.
    pub shape: ParamShape,
    /// How it starts.
    pub init: Init,
    /// Where it lies in the flat buffer.
    pub range: Range<usize>,
    /// A learned parameter, or a running statistic.
    pub learned: bool,
}

/// Names, shapes and places of all parameters (one flat buffer) and running statistics (another).
#[derive(Debug, Default)]
pub struct Layout {
    specs: Vec<Spec>,
    /// Lengths of the two flat buffers: learned, running.
    lens: [usize; 2],
    slots: usize,
}

/// Parts begin at multiples of a cache line.
const ALIGN: usize = 16;

impl Layout {
    fn add(&mut self, name: String, shape: ParamShape, init: Init, learned: bool) -> ParamId {
        let len = &mut self.lens[usize::from(!learned)];
        let range = *len..*len + shape.place_len();
        *len = range.end.next_multiple_of(ALIGN);
        self.specs.push(Spec { name, shape, init, range, learned });
        ParamId(self.specs.len() - 1)
    }

    /// A convolution's `weight` and `bias` with PyTorch's default initialisation, or zeros.
    pub fn conv(&mut self, name: &str, k: usize, c: usize, side: usize, zero: bool) -> ConvParams {
        let bound = 1.0 / ((c * side * side) as f32).sqrt();
        let init = if zero { Init::Constant(0.0) } else { Init::Uniform(bound) };
        ConvParams {
            w: self.add(format!("{name}.weight"), ParamShape::Filter { k, c, side }, init, true),
            b: self.add(format!("{name}.bias"), ParamShape::Vector(k), init, true),
            c,
        }
    }

    /// A linear layer's `weight` and `bias` with PyTorch's default initialisation.
    pub fn linear(&mut self, name: &str, k: usize, c: usize) -> ConvParams {
        let init = Init::Uniform(1.0 / (c as f32).sqrt());
        ConvParams {
            w: self.add(format!("{name}.weight"), ParamShape::Matrix { k, c }, init, true),
            b: self.add(format!("{name}.bias"), ParamShape::Vector(k), init, true),
            c,
        }
    }

    /// Linear layers of the same input that lie side by side in memory: one 1x1 convolution of `names.len() * k` output channels.
    pub fn fused_linear(&mut self, names: &[String], k: usize, c: usize) -> ConvParams {
        let init = Init::Uniform(1.0 / (c as f32).sqrt());
        let of = names.len() * k;
        let mut places: [Option<(ParamId, Range<usize>)>; 2] = [None, None];
        for (i, name) in names.iter().enumerate() {
            for (place, (what, c, vector)) in places.iter_mut().zip([("weight", c, false), ("bias", 1, true)]) {
                let shape = ParamShape::Columns { k, c, of, at: i * k, vector };
                let name = format!("{name}.{what}");
                match place {
                    None => {
                        let id = self.add(name, shape, init, true);
                        *place = Some((id, self.range(id)));
                    }
                    Some((_, range)) => {
                        self.specs.push(Spec { name, shape, init, range: range.clone(), learned: true })
                    }
                }
            }
        }
        let id = |place: &Option<(ParamId, Range<usize>)>| place.as_ref().map_or(ParamId(0), |(id, _)| *id);
        ConvParams { w: id(&places[0]), b: id(&places[1]), c }
    }

    /// A learned table of `rows` vectors, PyTorch's `Embedding`.
    pub fn table(&mut self, name: String, rows: usize, c: usize) -> ParamId {
        self.add(name, ParamShape::Table { rows, c }, Init::Normal(1.0), true)
    }

    /// Random numbers that are part of the model but not learned.
    pub fn fixed_normal(&mut self, name: String, len: usize, deviation: f32) -> ParamId {
        self.add(name, ParamShape::Vector(len), Init::Normal(deviation), false)
    }

    /// A learned vector.
    pub fn vector(&mut self, name: String, len: usize, value: f32) -> ParamId {
        self.add(name, ParamShape::Vector(len), Init::Constant(value), true)
    }

    /// A running statistic.
    pub fn running(&mut self, name: String, len: usize, value: f32) -> ParamId {
        self.add(name, ParamShape::Vector(len), Init::Constant(value), false)
    }

    /// A place for a packed filter that is kept between calls.
    pub fn slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    /// Everything, in order of creation.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Where `id` lies in its flat buffer.
    pub fn range(&self, id: ParamId) -> Range<usize> {
        self.specs[id.0].range.clone()
    }

    /// Learned parameters, without padding.
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().filter(|s| s.learned).map(|s| s.shape.len()).sum()
    }

    /// Elements of the flat buffer of learned parameters (and of gradients and moments).
    pub fn flat_len(&self) -> usize {
        self.lens[0]
    }
}

/// The two parameters of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvParams {
    /// Filter.
    pub w: ParamId,
    /// Bias.
    pub b: ParamId,
    /// Input channels of the filter.
    pub c: usize,
}

/// Learned parameters and running statistics on a device, with the packed filters made from them.
pub struct Weights<B: Backend> {
    /// Names and places.
    pub layout: Rc<Layout>,
    /// The flat buffer of learned parameters. Call [`Weights::touch`] after writing to it.
    pub params: B::Buffer,
    /// The flat buffer of running statistics.
    pub running: B::Buffer,
    packed: Vec<Option<B::Buffer>>,
}

impl<B: Backend> Weights<B> {
    /// Fresh weights: a function of `seed` and the layout.
    ///
    /// # Errors
    /// Out of memory.
    pub fn init(backend: &B, layout: &Rc<Layout>, seed: u64) -> Result<Self> {
        let mut weights = Weights::zeros(backend, layout)?;
        for (i, spec) in layout.specs().iter().enumerate() {
            let mut values = vec![0.0; spec.shape.len()];
            match spec.init {
                Init::Constant(v) => values.fill(v),
                Init::Uniform(bound) => {
                    Stream::new(seed, Purpose::Init, 0, i as u64).fill_uniform(&mut values);
                    values.iter_mut().for_each(|v| *v = (2.0 * *v - 1.0) * bound);
                }
                Init::Normal(deviation) => {
                    Stream::new(seed, Purpose::Init, 0, i as u64).fill_normal(&mut values);
                    values.iter_mut().for_each(|v| *v *= deviation);
                }
            }
            weights.load(backend, spec, &values)?;
        }
        Ok(weights)
    }

    fn zeros(backend: &B, layout: &Rc<Layout>) -> Result<Self> {
        let [learned, running] = layout.lens;
        let (mut params, mut stats) = (backend.alloc(learned.max(1))?, backend.alloc(running.max(1))?);
        backend.fill(B::all_mut(&mut params), 0.0)?;
        backend.fill(B::all_mut(&mut stats), 0.0)?;
        let packed = (0..layout.slots).map(|_| None).collect();
        Ok(Weights { layout: Rc::clone(layout), params, running: stats, packed })
    }

    /// A copy with other learned parameters (such as their moving average) and the same running statistics.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub fn with_params(&self, backend: &B, params: &B::Buffer) -> Result<Self> {
        let mut copy = Weights::zeros(backend, &self.layout)?;
        for (src, dst) in [(params, &mut copy.params), (&self.running, &mut copy.running)] {
            backend.copy(B::all(src), B::all_mut(dst))?;
        }
        Ok(copy)
    }

    /// The packed filters are out of date: the parameters have changed.
    pub fn touch(&mut self) {
        self.packed.iter_mut().for_each(|p| *p = None);
    }

    /// A view of one learned parameter.
    pub fn param(&self, id: ParamId) -> B::Slice<'_> {
        B::slice(&self.params, self.layout.range(id))
    }

    /// A view of one running statistic.
    pub fn stat(&self, id: ParamId) -> B::Slice<'_> {
        B::slice(&self.running, self.layout.range(id))
    }

    /// Packs a filter for the forward product unless that is done already.
    ///
    /// # Errors
    /// Out of memory.
    pub fn pack(
        &mut self,
        backend: &B,
        slot: usize,
        dims: &ConvDims,
        w: &ConvParams,
        w_res: Option<&ConvParams>,
    ) -> Result<()> {
        if self.packed[slot].is_none() {
            let mut packed = backend.alloc_activation(backend.conv_packed_len(dims))?;
            let filter =
                Filter { w: self.param(w.w), w_res: w_res.map(|r| self.param(r.w)), forward_c: w.c, scale: None };
            backend.conv_pack(dims, Direction::Forward, filter, B::all_mut(&mut packed))?;
            self.packed[slot] = Some(packed);
        }
        Ok(())
    }

    /// As [`Weights::pack`], for a convolution that changes the resolution.
    ///
    /// # Errors
    /// Out of memory.
    pub fn pack_resampled(&mut self, backend: &B, slot: usize, dims: &ResampleConvDims, w: &ConvParams) -> Result<()> {
        if self.packed[slot].is_none() {
            let len = backend.resample_conv_packed_len(dims, Direction::Forward);
            let mut packed = backend.alloc_activation(len)?;
            backend.resample_conv_pack(dims, Direction::Forward, self.param(w.w), B::all_mut(&mut packed))?;
            self.packed[slot] = Some(packed);
        }
        Ok(())
    }

    /// A packed filter; [`Weights::pack`] must have been called.
    ///
    /// # Errors
    /// It was not.
    pub fn packed(&self, slot: usize) -> Result<B::Slice<'_>> {
        let packed = self.packed[slot].as_ref();
        packed.map(B::all).ok_or_else(|| Error::Failed(format!("filter {slot} was not packed before its use")))
    }

    /// Calls `visit(spec, values)` for every parameter and running statistic, values in the file's order (OIHW).
    ///
    /// # Errors
    /// The device failed, or `visit` did.
    pub fn visit(&self, backend: &B, visit: impl FnMut(&Spec, &[f32]) -> Result<()>) -> Result<()> {
        visit_flat(backend, &self.layout, [Some(&self.params), Some(&self.running)], visit)
    }

    /// Writes one parameter or running statistic from values in the file's order.
    ///
    /// # Errors
    /// The device failed, or the number of values is wrong.
    pub fn load(&mut self, backend: &B, spec: &Spec, values: &[f32]) -> Result<()> {
        self.touch();
        let buffer = if spec.learned { &mut self.params } else { &mut self.running };
        load_flat(backend, spec, values, buffer)
    }
}

/// Calls `visit(spec, values)` for every part of the flat buffers (learned, running) that are given, values in the file's order.
///
/// # Errors
/// The device failed, or `visit` did.
pub fn visit_flat<M: Memory>(
    memory: &M,
    layout: &Layout,
    buffers: [Option<&M::Buffer>; 2],
    mut visit: impl FnMut(&Spec, &[f32]) -> Result<()>,
) -> Result<()> {
    for spec in layout.specs() {
        let Some(buffer) = buffers[usize::from(!spec.learned)] else { continue };
        let mut values = vec![0.0; spec.range.len()];
        memory.download(M::slice(buffer, spec.range.clone()), &mut values)?;
        values = match spec.shape {
            ParamShape::Filter { k, c, side } => transpose(&values, side * side, c, k),
            ParamShape::Matrix { k, c } => transpose(&values, 1, c, k),
            ParamShape::Columns { k, c, of, at, .. } => {
                let columns: Vec<f32> = values.chunks_exact(of).flat_map(|row| &row[at..at + k]).copied().collect();
                transpose(&columns, 1, c, k)
            }
            ParamShape::Vector(_) | ParamShape::Table { .. } => values,
        };
        visit(spec, &values)?;
    }
    Ok(())
}

/// Writes one part of a flat buffer from values in the file's order.
///
/// # Errors
/// The device failed, or the number of values is wrong.
pub fn load_flat<M: Memory>(memory: &M, spec: &Spec, values: &[f32], buffer: &mut M::Buffer) -> Result<()> {
    crate::ops::expect_len("load", &spec.name, values.len(), spec.shape.len())?;
    let values = match spec.shape {
        // [K, C, T] read as [T', C', K'] with the roles exchanged.
        ParamShape::Filter { k, c, side } => transpose(values, k, c, side * side),
        ParamShape::Matrix { k, c } => transpose(values, k, c, 1),
        ParamShape::Vector(_) | ParamShape::Table { .. } => values.to_vec(),
        ParamShape::Columns { k, c, of, at, .. } => {
            let mut all = vec![0.0; spec.range.len()];
            memory.download(M::slice(buffer, spec.range.clone()), &mut all)?;
            let columns = transpose(values, k, c, 1);
            for (row, columns) in all.chunks_exact_mut(of).zip(columns.chunks_exact(k)) {
                row[at..at + k].copy_from_slice(columns);
            }
            all
        }
    };
    let [dst] = M::slices_mut(buffer, [spec.range.clone()]);
    memory.upload(&values, dst)
}

/// [A, C, B] to [B, C, A].
fn transpose(src: &[f32], a: usize, c: usize, b: usize) -> Vec<f32> {
    let mut dst = vec![0.0; src.len()];
    for i in 0..a {
        for j in 0..c {
            for l in 0..b {
                dst[(l * c + j) * a + i] = src[(i * c + j) * b + l];
            }
        }
    }
    dst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;

    #[test]
    fn files_hold_oihw_and_memory_tck() {
        let cpu = Cpu::new(1).unwrap();
        let mut layout = Layout::default();
        let conv = layout.conv("conv", 2, 3, 3, false);
        let layout = Rc::new(layout);
        let mut weights = Weights::init(&cpu, &layout, 1).unwrap();
        let values: Vec<f32> = (0..54).map(|i| i as f32).collect();
        let spec = layout.specs()[0].clone();
        weights.load(&cpu, &spec, &values).unwrap();
        // OIHW index (k=1, c=2, tap=5) is (1*3+2)*9+5; in memory it lies at (5*3+2)*2+1.
        assert_eq!(weights.param(conv.w)[(5 * 3 + 2) * 2 + 1], ((3 + 2) * 9 + 5) as f32);
        let mut back = Vec::new();
        let mut keep = |v: &[f32]| back.push(v.to_vec());
        weights
            .visit(&cpu, |_, v| {
                keep(v);
                Ok(())
            })
            .unwrap();
        assert_eq!(back[0], values);
        assert!(weights.load(&cpu, &spec, &values[1..]).is_err());
    }

    #[test]
    fn initial_weights_have_pytorchs_bounds() {
        let cpu = Cpu::new(1).unwrap();
        let mut layout = Layout::default();
        layout.conv("conv", 32, 16, 3, false);
        let weights = Weights::init(&cpu, &Rc::new(layout), 5).unwrap();
        let bound = 1.0 / 144f32.sqrt();
        weights
            .visit(&cpu, |spec, v| {
                let largest = v.iter().fold(0f32, |m, x| m.max(x.abs()));
                assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest}", spec.name);
                let mean = v.iter().sum::<f32>() / v.len() as f32;
                assert!(mean.abs() < 4.0 * bound / (3.0 * v.len() as f32).sqrt());
                Ok(())
            })
            .unwrap();
    }
}
