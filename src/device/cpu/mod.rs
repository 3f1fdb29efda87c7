//! The CPU as a device: an arena of huge pages, a pool of worker threads, and a choice of instruction set.

pub(crate) mod gemm;
mod memory;
mod products;
pub(crate) mod scratch;
pub mod simd;

pub use memory::{CpuBuffer, CpuReadBack};
pub use products::Products;
pub use simd::Isa;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

use crate::error::{Error, Result};
use memory::Store;

/// The native CPU backend. Results do not depend on the number of threads: work is cut by shape, never by thread, and sums are
/// taken in a fixed order.
pub struct Cpu {
    store: Rc<RefCell<Store>>,
    pool: rayon::ThreadPool,
    isa: Isa,
    products: Products,
    threads: usize,
    /// Variants that operations chose, where someone wants to know.
    plans: RefCell<Option<Vec<&'static str>>>,
}

impl Cpu {
    /// A CPU device with `threads` workers (0: one per core) and the best instruction set that this machine has.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_isa(threads, Isa::detect())
    }

    /// As [`Cpu::new`], with a given instruction set (tests force each in turn).
    ///
    /// # Errors
    /// The threads cannot be started, or this machine lacks the instruction set.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        if !isa.available() {
            return Err(Error::Usage(format!("this CPU has no {isa}; it has {}", Isa::detect())));
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("ddim-cpu-{i}"))
            .build()
            .map_err(|e| Error::Failed(format!("cannot start {threads} worker threads: {e}")))?;
        Ok(Cpu { store: Rc::default(), pool, isa, products: Products::Fp32, threads, plans: RefCell::default() })
    }

    /// The same device with these factors in the products of its convolutions. Filters that were packed before do not fit it.
    ///
    /// # Errors
    /// This machine lacks the instruction.
    pub fn with_products(self, products: Products) -> Result<Self> {
        if !products.available(self.isa) {
            return Err(Error::Usage(format!(
                "this CPU has no vdpbf16ps with {}; use {:?}",
                self.isa,
                Products::Bf16Emulated
            )));
        }
        Ok(Cpu { products, ..self })
    }

    /// Fills every new buffer with NaN, so that a read of what was never written shows. For tests.
    pub fn poison_new_buffers(&self) {
        self.store.borrow_mut().poison = true;
    }

    /// Notes the variant that an operation has chosen, for [`Replay::note_plans`]; nothing where nobody asked.
    ///
    /// [`Replay::note_plans`]: crate::device::Replay::note_plans
    pub fn note_plan(&self, name: &'static str) {
        if let Some(plans) = &mut *self.plans.borrow_mut() {
            plans.push(name);
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The factors of the products of convolutions.
    pub fn products(&self) -> Products {
        self.products
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on every item, on all workers. Items must not depend on each other.
    pub(crate) fn for_each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync + Send) {
        if items.len() == 1 || self.threads == 1 {
            items.into_iter().for_each(work);
            return;
        }
        // Each item waits in a slot of its own for the worker that draws its number.
        let slots: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.run_all(slots.len(), &|i| {
            let item = slots[i].lock().unwrap_or_else(|e| e.into_inner()).take();
            if let Some(item) = item {
                work(item);
            }
        });
    }

    /// Calls `work` with 0..count, on all workers. Not generic: the machinery of the thread pool is compiled once.
    fn run_all(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::*;
        self.pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(work));
    }

    /// Runs plain Rust `work` on every item, on all workers, compiled for the chosen instruction set (so that its loops are
    /// vectorised with it).
    pub(crate) fn for_each_vectorized<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync + Send) {
        struct Plain<'a, T, F>(T, &'a F);
        impl<T, F: Fn(T)> simd::Kernel for Plain<'_, T, F> {
            type Output = ();
            #[inline(always)]
            unsafe fn run<S: simd::Simd>(self) {
                (self.1)(self.0);
            }
        }
        let isa = self.isa;
        self.for_each(items, |item| simd::dispatch(isa, Plain(item, &work)));
    }
}

/// Elements of a piece of elementwise work: large against the cost of handing it to a worker, small against a cache.
pub(crate) const PIECE: usize = 1 << 15;
