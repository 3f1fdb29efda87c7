//! A fused convolution as a test case: its options, its operands, its float64 truth and its run on a device.

use ddim_engine::device::Memory;
use ddim_engine::error::Result;
use ddim_engine::ops::conv::reference as truth;
use ddim_engine::ops::conv::{Conv, ConvDims, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};

use super::{CHANNELS, EXTENTS, Fill, GUARD, Guarded, IMAGES, Input, to_f64};

/// What surrounds outputs: an unlikely number that bfloat16 holds exactly.
const CANARY: u32 = 0xDEAD_0000;

/// An operand or a result in a buffer of its own, in float32 or in the device's activation type, with NaN around
/// what is read and canaries around what is written.
pub struct Placed<B: Memory> {
    buffer: B::Buffer,
    lead: usize,
    len: usize,
}

impl<B: Memory> Placed<B> {
    fn new(backend: &B, values: &[f32], lead: usize, activation: bool, around: f32) -> Self {
        let mut room = vec![around; lead + values.len() + GUARD];
        room[lead..lead + values.len()].copy_from_slice(values);
        let buffer = if activation { backend.alloc_activation(room.len()) } else { backend.alloc(room.len()) };
        let mut buffer = buffer.unwrap();
        backend.upload(&room, B::all_mut(&mut buffer)).unwrap();
        Placed { buffer, lead, len: values.len() }
    }

    /// What is read.
    pub fn input(backend: &B, values: &[f32], lead: usize, activation: bool) -> Self {
        Self::new(backend, values, lead, activation, f32::NAN)
    }

    /// What is overwritten.
    pub fn output(backend: &B, len: usize, lead: usize, activation: bool) -> Self {
        Self::new(backend, &vec![f32::NAN; len], lead, activation, f32::from_bits(CANARY))
    }

    /// A view of it.
    pub fn view(&self) -> B::Slice<'_> {
        B::slice(&self.buffer, self.lead..self.lead + self.len)
    }

    /// A view of it, to be written.
    #[allow(clippy::single_range_in_vec_init)] // one view is meant
    pub fn view_mut(&mut self) -> B::SliceMut<'_> {
        let [view] = B::slices_mut(&mut self.buffer, [self.lead..self.lead + self.len]);
        view
    }

    /// What was written. Refuses a changed canary.
    #[track_caller]
    pub fn read(&self, backend: &B) -> Vec<f32> {
        let mut room = vec![0.0; self.lead + self.len + GUARD];
        backend.download(B::all(&self.buffer), &mut room).unwrap();
        let intact = |canaries: &[f32]| canaries.iter().all(|c| c.to_bits() == CANARY);
        assert!(intact(&room[..self.lead]), "written in front of the output");
        assert!(intact(&room[self.lead + self.len..]), "written behind the output");
        room[self.lead..self.lead + self.len].to_vec()
    }
}

/// Places of the operands of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names of the contract
pub enum Slot {
    X0,
    X1,
    Scale,
    Shift,
    Res0,
    Res1,
    W,
    WRes,
    Factor,
    Bias,
    BiasRes,
    H,
    V0,
    V1,
    A,
    B,
    Add0,
    Add1,
    Dy,
}

impl Slot {
    /// All of them, in order.
    pub const ALL: [Slot; 19] = [
        Slot::X0,
        Slot::X1,
        Slot::Scale,
        Slot::Shift,
        Slot::Res0,
        Slot::Res1,
        Slot::W,
        Slot::WRes,
        Slot::Factor,
        Slot::Bias,
        Slot::BiasRes,
        Slot::H,
        Slot::V0,
        Slot::V1,
        Slot::A,
        Slot::B,
        Slot::Add0,
        Slot::Add1,
        Slot::Dy,
    ];
}

/// Operands by slot, on the host or on a device; those that the case does not have are `None`.
#[derive(Clone)]
pub struct Operands<T>(pub [Option<T>; Slot::ALL.len()]);

impl<T> Operands<T> {
    /// The operand of a slot.
    pub fn get(&self, slot: Slot) -> Option<&T> {
        self.0[slot as usize].as_ref()
    }

    /// The same operands in another form.
    pub fn map<U>(&self, form: impl Fn(&T) -> U) -> Operands<U> {
        Operands(self.0.each_ref().map(|operand| operand.as_ref().map(&form)))
    }
}

/// Options of a case. Extents 0 of `dims` switch the second input and the residual off.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// Extents of the product.
    pub dims: ConvDims,
    /// Input channels of the forward filter where the product is a dgrad.
    pub dgrad: Option<u32>,
    /// The second input is constant over an image.
    pub x1_constant: bool,
    /// The second residual input is constant over an image.
    pub res1_constant: bool,
    /// Prologue: scale and shift.
    pub affine: bool,
    /// Prologue: SiLU.
    pub silu: bool,
    /// Dgrad: factor per channel in the filter.
    pub factor: bool,
    /// Epilogue: bias.
    pub bias: bool,
    /// Epilogue: bias of the residual.
    pub bias_res: bool,
    /// Epilogue: times silu'(h).
    pub silu_grad: bool,
    /// Epilogue: plus a v + b.
    pub epilogue_affine: bool,
    /// Epilogue: plus a tensor, first output.
    pub add0: bool,
    /// Epilogue: plus a tensor, second output.
    pub add1: bool,
    /// Statistics of the output.
    pub stats: bool,
    /// Channels of the first output.
    pub k0: u32,
    /// Scale, shift and biases of each image, not of all.
    pub per_image: bool,
    /// Elements in front of every view: views need not be aligned.
    pub lead: usize,
    /// The inputs are float32 whatever the device keeps activations in.
    pub wide_input: bool,
    /// The outputs, and the tensors of the epilogue, are.
    pub wide_output: bool,
}

impl ConvSpec {
    /// The plain convolution.
    pub fn plain(dims: ConvDims) -> Self {
        ConvSpec {
            dims,
            dgrad: None,
            x1_constant: false,
            res1_constant: false,
            affine: false,
            silu: false,
            factor: false,
            bias: false,
            bias_res: false,
            silu_grad: false,
            epilogue_affine: false,
            add0: false,
            add1: false,
            stats: false,
            k0: dims.k,
            per_image: false,
            lead: GUARD,
            wide_input: false,
            wide_output: false,
        }
    }

    /// Case `case` of the sampled table: all pairs of input and output channels come up in cases 0..256, everything else is drawn.
    /// `budget`: multiply-adds that pictures are shrunk to.
    pub fn sampled(case: usize, budget: u64) -> Self {
        let fill = Fill::new(case as u64);
        let some = |index, of: &[u32]| if fill.pick(100 + index, 2) == 1 { fill.choose(index, of) } else { 0 };
        let r0 = some(1, &CHANNELS[..12]);
        let mut dims = ConvDims {
            n: fill.choose(2, &IMAGES),
            h: fill.choose(3, &EXTENTS),
            w: fill.choose(4, &EXTENTS),
            c0: CHANNELS[case / CHANNELS.len() % CHANNELS.len()],
            c1: some(5, &CHANNELS[..12]),
            r0,
            r1: if r0 > 0 { some(6, &CHANNELS[..8]) } else { 0 },
            k: CHANNELS[case % CHANNELS.len()],
            side: fill.choose(7, &[1, 3, 3]),
        };
        for shrink in 0..12 {
            if dims.flops() > 2 * budget {
                let extent = match shrink % 3 {
                    0 => &mut dims.h,
                    1 => &mut dims.w,
                    _ => &mut dims.n,
                };
                *extent = extent.div_ceil(2);
            }
        }
        let flag = |index| fill.pick(index, 2) == 1;
        let dgrad = fill.pick(8, 3) == 0;
        if dgrad {
            // The gradient of a block's input: as many channels of dy for the residual as for the main product.
            (dims.c1, dims.r1) = (0, 0);
            dims.r0 = if dims.r0 > 0 { dims.c0 } else { 0 };
        }
        ConvSpec {
            dims,
            dgrad: dgrad.then_some(dims.k + fill.choose(9, &[0, 0, 1, 5, 32])),
            x1_constant: flag(10) && dims.c1 > 0,
            res1_constant: flag(11) && dims.r1 > 0,
            affine: flag(12),
            silu: flag(13),
            factor: flag(14) && dgrad,
            bias: flag(15),
            bias_res: flag(16),
            silu_grad: flag(17),
            epilogue_affine: flag(18),
            add0: flag(19),
            add1: flag(20),
            stats: flag(21),
            k0: if flag(22) { 1 + fill.pick(23, dims.k as usize) as u32 } else { dims.k },
            per_image: flag(24),
            lead: GUARD,
            wide_input: false,
            wide_output: false,
        }
    }

    /// Length of an operand; `None` where the case does not have it. `Dy` belongs to wgrad and is always there.
    pub fn len(&self, slot: Slot) -> Option<usize> {
        let d = &self.dims;
        let [n, c0, c1, r0, r1, k] = [d.n, d.c0, d.c1, d.r0, d.r1, d.k].map(|extent| extent as usize);
        let (pixels, k0) = (d.pixels(), self.k0 as usize);
        let rows = if self.per_image { n } else { 1 };
        let per = |constant: bool| if constant { n } else { pixels };
        let (forward_c, forward_k) = match self.dgrad {
            Some(forward_c) => (forward_c as usize, d.c()),
            None => (d.c(), k),
        };
        let w_res = if self.dgrad.is_some() { forward_c * d.r() } else { d.r() * k };
        let (has, len) = match slot {
            Slot::X0 => (true, pixels * c0),
            Slot::X1 => (c1 > 0, per(self.x1_constant) * c1),
            Slot::Scale | Slot::Shift => (self.affine, rows * d.c()),
            Slot::Res0 => (r0 > 0, pixels * r0),
            Slot::Res1 => (r1 > 0, per(self.res1_constant) * r1),
            Slot::W => (true, d.taps() * forward_c * forward_k),
            Slot::WRes => (r0 > 0, w_res),
            Slot::Factor => (self.factor, k),
            Slot::Bias => (self.bias, rows * k),
            Slot::BiasRes => (self.bias_res, rows * k),
            Slot::H => (self.silu_grad, pixels * k),
            Slot::V0 => (self.epilogue_affine, pixels * k0),
            Slot::V1 => (self.epilogue_affine && k0 < k, pixels * (k - k0)),
            Slot::A | Slot::B => (self.epilogue_affine, k),
            Slot::Add0 => (self.add0, pixels * k0),
            Slot::Add1 => (self.add1 && k0 < k, pixels * (k - k0)),
            Slot::Dy => (true, pixels * k),
        };
        has.then_some(len)
    }

    /// Deterministic operands: standard normal, filters scaled so that the product is of the order of 1.
    pub fn operands(&self, fill: Fill) -> Operands<Vec<f32>> {
        let terms = (self.dims.taps() * self.dims.c() + self.dims.r()) as f32;
        Operands(Slot::ALL.map(|slot| {
            let mut values = fill.f32s(slot as u64, self.len(slot)?);
            if matches!(slot, Slot::W | Slot::WRes) {
                values.iter_mut().for_each(|w| *w /= terms.sqrt());
            }
            Some(values)
        }))
    }

    /// The operand is in the device's activation type.
    fn is_activation(&self, slot: Slot) -> bool {
        match slot {
            Slot::X0 | Slot::Res0 => !self.wide_input,
            Slot::X1 => !self.wide_input && !self.x1_constant,
            Slot::Res1 => !self.wide_input && !self.res1_constant,
            Slot::H | Slot::V0 | Slot::V1 | Slot::Add0 | Slot::Add1 => !self.wide_output,
            Slot::Dy => true,
            _ => false,
        }
    }

    /// Rounds activations and filters by `round`, to what a device keeps them in.
    pub fn rounded(&self, operands: &Operands<Vec<f32>>, round: impl Fn(f32) -> f32) -> Operands<Vec<f32>> {
        let mut operands = operands.clone();
        let kept = |slot: &Slot| self.is_activation(*slot) || matches!(slot, Slot::W | Slot::WRes);
        for slot in Slot::ALL.into_iter().filter(kept) {
            operands.0[slot as usize].iter_mut().flatten().for_each(|value| *value = round(*value));
        }
        operands
    }

    /// Terms of the longest sum, which rounding errors grow with.
    pub fn terms(&self) -> usize {
        self.dims.taps() * self.dims.c() + self.dims.r()
    }

    fn direction(&self) -> Direction {
        if self.dgrad.is_some() { Direction::Dgrad } else { Direction::Forward }
    }

    fn forward_c(&self) -> usize {
        self.dgrad.map_or(self.dims.c(), |c| c as usize)
    }

    /// y [N, H, W, K] in float64.
    pub fn truth(&self, operands: &Operands<Vec<f32>>) -> Vec<f64> {
        let operands = operands.map(|values| to_f64(values));
        let get = |slot| operands.get(slot).map(Vec::as_slice);
        let filter = truth::Filter {
            w: get(Slot::W).unwrap(),
            w_res: get(Slot::WRes),
            forward_c: self.forward_c(),
            scale: get(Slot::Factor),
        };
        let v = get(Slot::V0).map(|x0| truth::Operand { x0, x1: get(Slot::V1), x1_constant: false });
        let epilogue = truth::Epilogue {
            bias: get(Slot::Bias),
            bias_res: get(Slot::BiasRes),
            silu_grad: get(Slot::H),
            affine: v.map(|v| (v, get(Slot::A).unwrap(), get(Slot::B).unwrap())),
            add0: get(Slot::Add0),
            add1: get(Slot::Add1),
            k0: self.k0 as usize,
        };
        let (input, prologue, residual) = self.truth_inputs(&operands);
        truth::conv(&self.dims, self.direction(), input, prologue, residual, filter, epilogue)
    }

    /// The weight gradients in float64.
    pub fn truth_wgrad(&self, operands: &Operands<Vec<f32>>) -> truth::WeightGradients {
        let operands = operands.map(|values| to_f64(values));
        let (input, prologue, residual) = self.truth_inputs(&operands);
        truth::wgrad(&self.dims, input, prologue, residual, operands.get(Slot::Dy).unwrap())
    }

    fn truth_inputs<'a>(
        &self,
        operands: &'a Operands<Vec<f64>>,
    ) -> (truth::Operand<'a>, truth::Prologue<'a>, Option<truth::Operand<'a>>) {
        let get = |slot| operands.get(slot).map(Vec::as_slice);
        let input = truth::Operand { x0: get(Slot::X0).unwrap(), x1: get(Slot::X1), x1_constant: self.x1_constant };
        let affine = get(Slot::Scale).zip(get(Slot::Shift));
        let residual =
            get(Slot::Res0).map(|x0| truth::Operand { x0, x1: get(Slot::Res1), x1_constant: self.res1_constant });
        (input, truth::Prologue { affine, silu: self.silu }, residual)
    }

    /// Packs and convolves on a device. Operands may have wrong lengths; outputs have those of the case.
    pub fn run<B: Conv>(&self, backend: &B, operands: &Operands<Vec<f32>>) -> Result<ConvResults> {
        let d = &self.dims;
        let device = Operands(Slot::ALL.map(|slot| {
            let activation = self.is_activation(slot);
            operands.get(slot).map(|values| Placed::input(backend, values, self.lead, activation))
        }));
        let get = |slot| device.get(slot).map(Placed::view);
        let filter = Filter {
            w: get(Slot::W).unwrap(),
            w_res: get(Slot::WRes),
            forward_c: self.forward_c(),
            scale: get(Slot::Factor),
        };
        let mut packed = Placed::output(backend, backend.conv_packed_len(d), GUARD, true);
        backend.conv_pack(d, self.direction(), filter, packed.view_mut())?;
        let packed = Placed::input(backend, &packed.read(backend), GUARD, true);

        let (pixels, k, k0) = (d.pixels(), d.k as usize, self.k0 as usize);
        let output = |len| Placed::output(backend, len, self.lead, !self.wide_output);
        let mut y0 = output(pixels * k0);
        let mut y1 = (k0 < k).then(|| output(pixels * (k - k0)));
        let mut stats = self.stats.then(|| Placed::output(backend, d.n as usize * k * 2, self.lead, false));
        let v = get(Slot::V0).map(|x0| Operand { x0, x1: get(Slot::V1), x1_constant: false });
        let epilogue = Epilogue {
            bias: get(Slot::Bias),
            bias_res: get(Slot::BiasRes),
            silu_grad: get(Slot::H),
            affine: v.map(|v| (v, get(Slot::A).unwrap(), get(Slot::B).unwrap())),
            add0: get(Slot::Add0),
            add1: get(Slot::Add1),
        };
        let out = Output {
            y0: y0.view_mut(),
            y1: y1.as_mut().map(Placed::view_mut),
            k0,
            stats: stats.as_mut().map(Placed::view_mut),
        };
        let (input, prologue, residual) = self.inputs(|slot| device.get(slot).map(Placed::view));
        backend.conv(d, input, prologue, residual, packed.view(), epilogue, out)?;
        Ok(ConvResults {
            y0: y0.read(backend),
            y1: y1.map_or(vec![], |y1| y1.read(backend)),
            stats: stats.map_or(vec![], |stats| stats.read(backend)),
        })
    }

    fn inputs<'a, B: Conv>(
        &self,
        get: impl Fn(Slot) -> Option<B::Slice<'a>>,
    ) -> (Operand<'a, B>, Prologue<'a, B>, Option<Operand<'a, B>>) {
        let input = Operand { x0: get(Slot::X0).unwrap(), x1: get(Slot::X1), x1_constant: self.x1_constant };
        let affine = get(Slot::Scale).zip(get(Slot::Shift));
        let residual = get(Slot::Res0).map(|x0| Operand { x0, x1: get(Slot::Res1), x1_constant: self.res1_constant });
        (input, Prologue { affine, silu: self.silu }, residual)
    }

    /// The weight gradients on a device, accumulated on `before`. Bias gradients and border sums where `sums` says so.
    pub fn run_wgrad<B: Conv>(
        &self,
        backend: &B,
        operands: &Operands<Vec<f32>>,
        before: &WgradResults,
        sums: bool,
    ) -> Result<WgradResults> {
        let device = operands.map(|values| Input::at(backend, values, self.lead));
        let accumulator = |values: &[f32]| Guarded::filled(backend, values, self.lead);
        let mut dw = accumulator(&before.dw);
        let mut dw_res = (self.dims.r0 > 0).then(|| accumulator(&before.dw_res));
        let mut db = sums.then(|| accumulator(&before.db));
        let mut db_res = sums.then(|| accumulator(&before.db_res));
        let mut border_sums = sums.then(|| accumulator(&before.border_sums));
        let out = WeightGradients {
            dw: dw.view_mut(),
            dw_res: dw_res.as_mut().map(Guarded::view_mut),
            db: db.as_mut().map(Guarded::view_mut),
            db_res: db_res.as_mut().map(Guarded::view_mut),
            border_sums: border_sums.as_mut().map(Guarded::view_mut),
        };
        let (input, prologue, residual) = self.inputs(|slot| device.get(slot).map(Input::view));
        let dy = device.get(Slot::Dy).unwrap().view();
        backend.conv_wgrad(&self.dims, input, prologue, residual, dy, out)?;
        let read = |guarded: Option<Guarded<B>>| guarded.map_or(vec![], |g| g.read(backend));
        Ok(WgradResults {
            dw: dw.read(backend),
            dw_res: read(dw_res),
            db: read(db),
            db_res: read(db_res),
            border_sums: read(border_sums),
        })
    }
}

/// What a convolution wrote; empty where it was not asked to.
#[derive(Clone)]
pub struct ConvResults {
    /// [N, H, W, K0].
    pub y0: Vec<f32>,
    /// [N, H, W, K - K0].
    pub y1: Vec<f32>,
    /// [N, K, 2].
    pub stats: Vec<f32>,
}

impl ConvResults {
    /// All numbers in a row.
    pub fn all(self) -> Vec<f32> {
        [self.y0, self.y1, self.stats].concat()
    }

    /// y [pixels, K], joined again.
    pub fn joined(&self, k: usize, k0: usize) -> Vec<f32> {
        let row = |p| [&self.y0[p * k0..(p + 1) * k0], &self.y1[p * (k - k0)..(p + 1) * (k - k0)]].concat();
        (0..self.y0.len() / k0).flat_map(row).collect()
    }
}

/// What a weight gradient wrote; empty where it was not asked to.
#[derive(Clone)]
pub struct WgradResults {
    /// [T, C, K].
    pub dw: Vec<f32>,
    /// [R, K].
    pub dw_res: Vec<f32>,
    /// [K].
    pub db: Vec<f32>,
    /// [K].
    pub db_res: Vec<f32>,
    /// [T, K].
    pub border_sums: Vec<f32>,
}

impl WgradResults {
    /// Deterministic contents to accumulate on; NaN where results overwrite.
    pub fn before(dims: &ConvDims, fill: Fill) -> Self {
        let k = dims.k as usize;
        WgradResults {
            dw: fill.f32s(50, dims.taps() * dims.c() * k),
            dw_res: fill.f32s(51, dims.r() * k),
            db: fill.f32s(52, k),
            db_res: fill.f32s(53, k),
            border_sums: vec![f32::NAN; dims.taps() * k],
        }
    }

    /// All numbers in a row.
    pub fn all(self) -> Vec<f32> {
        [self.dw, self.dw_res, self.db, self.db_res, self.border_sums].concat()
    }
}
