//! The choice of a device and of its arithmetic, and work that runs on whichever it is.

use clap::Args;
use ddim_engine::bench::ceilings::{self, Ceilings};
use ddim_engine::config::Precision;
use ddim_engine::device::cpu::{Cpu, Isa, Products};
use ddim_engine::device::cuda::{self, Cuda, GpuInfo};
use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::launcher::Launcher;
use ddim_engine::device::sim::Sim;
use ddim_engine::error::{Error, Result};
use ddim_engine::kernels;
use ddim_engine::ops::Backend;

/// Options of every command that computes.
#[derive(Args)]
pub struct DeviceArgs {
    /// Device to compute on: auto (a usable GPU, else the CPU), cpu, cuda, cuda:N, or sim (the CUDA kernels on this machine's CPU: for tests)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    /// Worker threads of the CPU [default: one per core]. The results do not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: Option<u16>,
}

/// What `--precision auto` means on a GPU, and so on the simulator of one.
#[derive(Clone, Copy, Debug)]
pub enum Prefer {
    /// Training: as fast as it goes.
    Speed,
    /// Sampling: pictures are float32, products on tensor cores.
    Pictures,
    /// Comparison with a reference.
    Exactness,
}

impl Prefer {
    fn arithmetic(self) -> Arithmetic {
        match self {
            Prefer::Speed => Arithmetic::Bf16,
            Prefer::Pictures => Arithmetic::Tf32,
            Prefer::Exactness => Arithmetic::Fp32,
        }
    }

    /// The arithmetic of a GPU for this `--precision`.
    pub fn arithmetic_of(self, precision: Precision) -> Arithmetic {
        match precision {
            Precision::Auto => self.arithmetic(),
            Precision::Fp32 => Arithmetic::Fp32,
            Precision::Tf32 => Arithmetic::Tf32,
            Precision::Bf16 => Arithmetic::Bf16,
        }
    }
}

/// Something to do on a device.
pub trait Work {
    /// What comes of it.
    type Output;
    /// Does it.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output>;
}

/// Something to do on a device that runs the CUDA kernels.
pub trait KernelWork {
    /// What comes of it.
    type Output;
    /// Does it.
    fn run<L: Launcher>(self, gpu: &Gpu<L>) -> Result<Self::Output>;
}

#[derive(Clone, Debug)]
enum Kind {
    Cpu { threads: usize, products: Products },
    Cuda { gpu: GpuInfo, arithmetic: Arithmetic },
    Sim { arithmetic: Arithmetic },
}

/// A device that was chosen, and the line that says which and why.
#[derive(Debug)]
pub struct Chosen {
    kind: Kind,
    /// "device: ...".
    pub line: String,
}

impl DeviceArgs {
    /// Chooses the device.
    ///
    /// # Errors
    /// There is no such device here, it is not in this build, or it does not have this precision.
    pub fn choose(&self, threads: usize, precision: Precision, prefer: Prefer) -> Result<Chosen> {
        let name = self.device.as_str();
        let ordinal = match name {
            "auto" => return Self::choose_best(threads, precision, prefer),
            "cpu" => return on_cpu(threads, precision, ""),
            "sim" => {
                if let Some(why) = kernels::NO_SIMULATOR {
                    return Err(Error::Usage(format!("--device sim: this build has no simulator: {why}")));
                }
                let arithmetic = prefer.arithmetic_of(precision);
                let line = format!("device: sim, {arithmetic} (the CUDA kernels on this machine's CPU: for tests)");
                return Ok(Chosen { kind: Kind::Sim { arithmetic }, line });
            }
            "cuda" => 0,
            _ => match name.strip_prefix("cuda:").and_then(|n| n.parse::<u16>().ok()) {
                Some(n) => usize::from(n),
                None => {
                    let what = "expected auto, cpu, cuda, cuda:N or sim";
                    return Err(Error::Usage(format!("--device {name:?}: {what}")));
                }
            },
        };
        Ok(on_gpu(cuda::find(ordinal)?, precision, prefer))
    }

    /// The first usable GPU, else the CPU.
    fn choose_best(threads: usize, precision: Precision, prefer: Prefer) -> Result<Chosen> {
        if kernels::NO_IMAGES.is_some() {
            return on_cpu(threads, precision, ": this build has no GPU kernels (see ddim-engine doctor)");
        }
        let why = match cuda::probe() {
            Ok(gpus) => {
                let why = gpus.iter().find_map(GpuInfo::unusable).unwrap_or_default();
                match gpus.into_iter().find(|gpu| gpu.unusable().is_none()) {
                    Some(gpu) => return Ok(on_gpu(gpu, precision, prefer)),
                    None => why,
                }
            }
            Err(why) => why,
        };
        on_cpu(threads, precision, &format!(": {why}"))
    }

    /// The device as it was asked for.
    pub fn name(&self) -> &str {
        &self.device
    }

    /// Worker threads: those of `--threads`, else `workers`; 0 is one per core.
    pub fn threads(&self, workers: usize) -> usize {
        self.threads.map_or(workers, usize::from)
    }
}

impl Chosen {
    /// Does the work on this device.
    ///
    /// # Errors
    /// The device cannot be opened; what the work returns.
    pub fn run<W: Work>(&self, work: W) -> Result<W::Output> {
        match &self.kind {
            Kind::Cpu { threads, products } => work.run(&Cpu::new(*threads)?.with_products(*products)?),
            Kind::Cuda { gpu, arithmetic } => work.run(&opened(gpu, *arithmetic)?),
            Kind::Sim { arithmetic } => work.run(&Gpu::new(Sim::new()?, *arithmetic)),
        }
    }

    /// Does the work on this device where it runs the CUDA kernels; `option` is what asks for them.
    ///
    /// # Errors
    /// It is a CPU; the device cannot be opened; what the work returns.
    pub fn run_kernels<W: KernelWork>(&self, option: &str, work: W) -> Result<W::Output> {
        match &self.kind {
            Kind::Cpu { .. } => Err(Error::Usage(format!(
                "{option}: needs a device that runs the CUDA kernels, and this is {}; use --device cuda, or --device sim (the same \
                 kernels on this machine's CPU)",
                self.line.trim_start_matches("device: ")
            ))),
            Kind::Cuda { gpu, arithmetic } => work.run(&opened(gpu, *arithmetic)?),
            Kind::Sim { arithmetic } => work.run(&Gpu::new(Sim::new()?, *arithmetic)),
        }
    }

    /// What it could do at best.
    ///
    /// # Errors
    /// The device cannot be opened, or failed; out of memory.
    pub fn ceilings(&self) -> Result<Ceilings> {
        struct OfGpu(String, Arithmetic);
        impl Work for OfGpu {
            type Output = Ceilings;
            fn run<B: Backend>(self, backend: &B) -> Result<Ceilings> {
                ceilings::of_gpu(backend, &self.0, self.1)
            }
        }
        match &self.kind {
            Kind::Cpu { threads, .. } => ceilings::of_cpu(&Cpu::new(*threads)?),
            Kind::Cuda { gpu, arithmetic } => self.run(OfGpu(gpu.to_string(), *arithmetic)),
            Kind::Sim { .. } => Ok(ceilings::none("none: the simulator's times say nothing about a GPU")),
        }
    }

    /// Whether it is a GPU (not the simulator of one).
    pub fn is_gpu(&self) -> bool {
        matches!(self.kind, Kind::Cuda { .. })
    }

    /// Bytes of an activation in its memory.
    pub fn activation_bytes(&self) -> u64 {
        match self.kind {
            Kind::Cpu { .. } => 4,
            Kind::Cuda { arithmetic, .. } | Kind::Sim { arithmetic } => {
                if arithmetic == Arithmetic::Bf16 {
                    2
                } else {
                    4
                }
            }
        }
    }

    /// How it computes.
    pub fn arithmetic(&self) -> Arithmetic {
        match self.kind {
            Kind::Cpu { products, .. } if products.paired() => Arithmetic::Bf16,
            Kind::Cpu { .. } => Arithmetic::Fp32,
            Kind::Cuda { arithmetic, .. } | Kind::Sim { arithmetic } => arithmetic,
        }
    }
}

fn opened(gpu: &GpuInfo, arithmetic: Arithmetic) -> Result<Gpu<Cuda>> {
    let gpu = Gpu::new(Cuda::open(gpu)?, arithmetic);
    if std::env::var_os("DDIM_SEPARATE_BUFFERS").is_some_and(|v| !v.is_empty()) {
        gpu.separate_buffers();
    }
    Ok(gpu)
}

fn on_cpu(threads: usize, precision: Precision, why: &str) -> Result<Chosen> {
    let isa = Isa::detect();
    let (products, note) = match precision {
        Precision::Auto | Precision::Fp32 => (Products::Fp32, String::new()),
        Precision::Bf16 => {
            let products = Products::for_bf16(isa)?;
            (products, format!(", {}", products.describe(isa)))
        }
        Precision::Tf32 => {
            let what = format!("precision tf32 is not available on the CPU, which computes in fp32 or bf16{why}");
            return Err(Error::Usage(format!("{what}; use --precision auto, or a GPU")));
        }
    };
    let count = if threads == 0 { cores() } else { threads };
    let plural = if count == 1 { "" } else { "s" };
    let line = format!("device: cpu ({isa}, {count} thread{plural}){note}{why}");
    Ok(Chosen { kind: Kind::Cpu { threads, products }, line })
}

fn on_gpu(gpu: GpuInfo, precision: Precision, prefer: Prefer) -> Chosen {
    let arithmetic = prefer.arithmetic_of(precision);
    let line = format!("device: {gpu}, {arithmetic}");
    Chosen { kind: Kind::Cuda { gpu, arithmetic }, line }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
