//! What the tests of the operations share: the table of sizes, deterministic numbers, guarded and poisoned buffers, error
//! measures, and the list of CPUs (instruction set by number of threads) that every case runs on.
#![allow(dead_code)] // each test file uses a part

pub mod conv_case;
pub mod devices;

use std::cell::Cell;
use std::ops::Range;

use ddim_engine::device::Memory;
use ddim_engine::device::cpu::{Cpu, Isa};
use ddim_engine::error::{Error, Result};
use ddim_engine::rng::{Purpose, Stream};

/// Channels: 1, 2, primes, and both sides of every vector and tile edge.
pub const CHANNELS: [u32; 16] = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65];
/// Rows or columns.
pub const EXTENTS: [u32; 10] = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17];
/// Images.
pub const IMAGES: [u32; 4] = [1, 2, 3, 5];

/// Deterministic numbers: tensor `index` of case `case`.
#[derive(Clone, Copy)]
pub struct Fill(u64);

impl Fill {
    /// The numbers of one case.
    pub fn new(case: u64) -> Self {
        Fill(case)
    }

    /// Standard normal numbers.
    pub fn f32s(&self, index: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Stream::new(42, Purpose::Init, self.0, index).fill_normal(&mut values);
        values
    }

    /// The same in float64.
    pub fn f64s(&self, index: u64, len: usize) -> Vec<f64> {
        to_f64(&self.f32s(index, len))
    }

    /// A choice from 0..n, for sampling options and sizes.
    pub fn pick(&self, index: u64, n: usize) -> usize {
        Stream::new(43, Purpose::Init, self.0, index).reader().below(n as u32) as usize
    }

    /// One element of a list.
    pub fn choose<T: Copy>(&self, index: u64, from: &[T]) -> T {
        from[self.pick(index, from.len())]
    }
}

/// Exact widening.
pub fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Rounds to single precision.
pub fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Root of the sum of squares.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// Root of the mean of squares.
pub fn rms(a: &[f64]) -> f64 {
    norm(a) / (a.len() as f64).sqrt()
}

/// |got - want|_2 / |want|_2, or |got|_2 where `want` is 0 throughout.
pub fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    scaled_error(got, want, norm(want))
}

/// |got - want|_2 / scale.
pub fn scaled_error(got: &[f64], want: &[f64], scale: f64) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    let difference: Vec<f64> = got.iter().zip(want).map(|(g, w)| g - w).collect();
    norm(&difference) / if scale > 0.0 { scale } else { 1.0 }
}

/// Largest |got - want| and where it is; a NaN counts as infinite.
pub fn max_error(got: &[f64], want: &[f64]) -> (f64, usize) {
    let error = |(i, (g, w)): (usize, (&f64, &f64))| (if (g - w).is_nan() { f64::INFINITY } else { (g - w).abs() }, i);
    got.iter().zip(want).enumerate().map(error).fold((0.0, 0), |worst, e| if e.0 > worst.0 { e } else { worst })
}

/// Refuses a relative error that is not within `tolerance`.
#[track_caller]
pub fn assert_close_f64(name: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_scaled(name, got, want, norm(want), tolerance);
}

/// As [`assert_close_f64`], for a device's results.
#[track_caller]
pub fn assert_close(name: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_close_f64(name, &to_f64(got), want, tolerance);
}

/// Refuses |got - want|_2 / scale that is not within `tolerance` (so a NaN fails). Prints the error where `DDIM_SHOW_ERRORS` is
/// set: that is where the figures beside the tolerances come from.
#[track_caller]
pub fn assert_scaled(name: &str, got: &[f64], want: &[f64], scale: f64, tolerance: f64) {
    let error = scaled_error(got, want, scale);
    if std::env::var_os("DDIM_SHOW_ERRORS").is_some() {
        println!("error {error:.2e} of {tolerance:.0e}  {name}");
    }
    #[allow(clippy::neg_cmp_op_on_partial_ord)] // a NaN must fail
    if !(error <= tolerance) {
        let (worst, at) = max_error(got, want);
        panic!(
            "{name}: relative error {error:.3e} exceeds {tolerance:.1e}; worst {worst:.3e} at {at} of {}: got {}, want {}",
            got.len(),
            got[at],
            want[at]
        );
    }
}

/// Elements before and behind every guarded view.
pub const GUARD: usize = 64;
/// What they hold in front of and behind outputs: an unlikely number, which bfloat16 holds too.
const CANARY: u32 = 0xDEAD_0000;

/// Where the views of guarded buffers begin that say nothing of it: how many elements behind a multiple of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Leads {
    /// All at such a multiple.
    Aligned,
    /// One after the other 1, 2, 3, 0, 1, ... elements behind.
    Turns,
    /// Only this one of the buffers, in the order in which they are made, is 1 element behind.
    One(usize),
}

thread_local! {
    static LEADS: Cell<(Leads, usize)> = const { Cell::new((Leads::Aligned, 0)) };
}

/// Runs `work` with views that begin so; also the number of buffers that it made.
pub fn with_leads<T>(leads: Leads, work: impl FnOnce() -> T) -> (T, usize) {
    LEADS.set((leads, 0));
    let result = work();
    let (_, made) = LEADS.replace((Leads::Aligned, 0));
    (result, made)
}

fn next_lead() -> usize {
    let (leads, made) = LEADS.get();
    LEADS.set((leads, made + 1));
    GUARD
        + match leads {
            Leads::Aligned => 0,
            Leads::Turns => (made + 1) % 4,
            Leads::One(odd) => usize::from(made == odd),
        }
}

/// A device buffer with canaries around the part that an operation may write.
pub struct Guarded<B: Memory> {
    buffer: B::Buffer,
    lead: usize,
    len: usize,
}

impl<B: Memory> Guarded<B> {
    /// An output: NaN where it is to be written.
    pub fn output(backend: &B, len: usize) -> Self {
        Self::filled(backend, &vec![f32::NAN; len], next_lead())
    }

    /// An output in the element type of the device's activations.
    pub fn activation(backend: &B, len: usize) -> Self {
        let (room, lead) = guarded(&vec![f32::NAN; len], f32::from_bits(CANARY), next_lead());
        let mut buffer = backend.alloc_activation(room.len()).unwrap();
        backend.upload(&room, B::all_mut(&mut buffer)).unwrap();
        Guarded { buffer, lead, len }
    }

    /// An output that has contents already: what the operation accumulates on, or works on in place.
    pub fn from(backend: &B, values: &[f32]) -> Self {
        Self::filled(backend, values, next_lead())
    }

    /// As [`Guarded::from`], `lead` elements into its buffer (views need not be aligned).
    pub fn filled(backend: &B, values: &[f32], lead: usize) -> Self {
        let (room, lead) = guarded(values, f32::from_bits(CANARY), lead);
        Guarded { buffer: uploaded(backend, &room), lead, len: values.len() }
    }

    /// The part that the operation gets.
    #[allow(clippy::single_range_in_vec_init)] // one view is meant
    pub fn view_mut(&mut self) -> B::SliceMut<'_> {
        let [view] = B::slices_mut(&mut self.buffer, [self.lead..self.lead + self.len]);
        view
    }

    /// The guards too, to test that they are watched.
    pub fn room_mut(&mut self) -> B::SliceMut<'_> {
        B::all_mut(&mut self.buffer)
    }

    /// What the operation wrote, for the next operation.
    pub fn view(&self) -> B::Slice<'_> {
        self.part(0..self.len)
    }

    /// A part of it.
    pub fn part(&self, range: Range<usize>) -> B::Slice<'_> {
        B::slice(&self.buffer, self.lead + range.start..self.lead + range.end)
    }

    /// The results. Refuses a changed canary.
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

/// A device buffer whose input is surrounded by NaN, so that a read beside it shows in the result.
pub struct Input<B: Memory> {
    buffer: B::Buffer,
    lead: usize,
    len: usize,
}

impl<B: Memory> Input<B> {
    /// An input with these values.
    pub fn new(backend: &B, values: &[f32]) -> Self {
        Self::at(backend, values, next_lead())
    }

    /// As [`Input::new`], `lead` elements into its buffer.
    pub fn at(backend: &B, values: &[f32], lead: usize) -> Self {
        let (room, lead) = guarded(values, f32::NAN, lead);
        Input { buffer: uploaded(backend, &room), lead, len: values.len() }
    }

    /// A view of the values.
    pub fn view(&self) -> B::Slice<'_> {
        B::slice(&self.buffer, self.lead..self.lead + self.len)
    }
}

/// Values with something around them.
fn guarded(values: &[f32], around: f32, lead: usize) -> (Vec<f32>, usize) {
    let mut room = vec![around; lead + values.len() + GUARD];
    room[lead..lead + values.len()].copy_from_slice(values);
    (room, lead)
}

fn uploaded<B: Memory>(backend: &B, values: &[f32]) -> B::Buffer {
    let mut buffer = backend.alloc(values.len()).unwrap();
    backend.upload(values, B::all_mut(&mut buffer)).unwrap();
    buffer
}

/// The CPUs that every case runs on: each instruction set that this machine has, with 1, 2 and 3 threads.
pub struct Cpus(Vec<[Cpu; 3]>);

impl Cpus {
    /// All of them, with poisoned memory. Says which instruction sets are skipped.
    pub fn new() -> Self {
        let sets = Isa::ALL.into_iter().filter(|isa| {
            if !isa.available() {
                eprintln!("SKIPPED: {isa}, this machine does not have it");
            }
            isa.available()
        });
        let cpu = |isa, threads| {
            let cpu = Cpu::with_isa(threads, isa).unwrap();
            cpu.poison_new_buffers();
            cpu
        };
        Cpus(sets.map(|isa| [1, 2, 3].map(|threads| cpu(isa, threads))).collect())
    }

    /// Runs a case, which checks its own results and returns their numbers, on every CPU. The numbers must not depend on the
    /// threads, to the bit.
    pub fn check(&self, name: &str, case: impl Fn(&Cpu, &str) -> Vec<f32>) {
        self.check_threads(name, 3, case);
    }

    /// As [`Cpus::check`], with at most `threads` threads, for the large cases.
    pub fn check_threads(&self, name: &str, threads: usize, case: impl Fn(&Cpu, &str) -> Vec<f32>) {
        devices::count("cpu", 1);
        for cpus in &self.0 {
            let results = cpus[..threads].iter().map(|cpu| {
                let name = format!("{name} on {} with {} threads", cpu.isa(), cpu.threads());
                let bits: Vec<u32> = case(cpu, &name).into_iter().map(f32::to_bits).collect();
                (name, bits)
            });
            let results: Vec<(String, Vec<u32>)> = results.collect();
            for (name, bits) in &results[1..] {
                let differ = bits.iter().zip(&results[0].1).filter(|(a, b)| a != b).count();
                assert!(*bits == results[0].1, "{name}: {differ} results differ from those of one thread");
            }
        }
    }

    /// The best instruction set with one thread, for properties.
    pub fn best(&self) -> &Cpu {
        &self.0[0][0]
    }
}

/// Refuses anything but [`Error::Shape`].
#[track_caller]
pub fn assert_shape_error(name: &str, result: Result<()>) {
    assert!(matches!(result, Err(Error::Shape { .. })), "{name}: expected a shape error, got {result:?}");
}
