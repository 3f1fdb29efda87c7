//! The choice of a device.

use clap::Args;
use ddim_engine::device::cpu::Isa;
use ddim_engine::error::{Error, Result};

/// Options of every command that computes.
#[derive(Args)]
pub struct DeviceArgs {
    /// Device to compute on: auto, cpu, cuda, cuda:N or sim. This build has the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    /// Worker threads [default: one per core]. The results do not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: Option<u16>,
}

impl DeviceArgs {
    /// Checks the device, and says in a line which one it is and why.
    ///
    /// # Errors
    /// There is no such device, or not in this build.
    pub fn choose(&self, threads: usize) -> Result<String> {
        let threads = match threads {
            0 => cores(),
            n => n,
        };
        let plural = if threads == 1 { "" } else { "s" };
        let cpu = format!("device: cpu ({}, {threads} thread{plural})", Isa::detect());
        match self.device.as_str() {
            "auto" => Ok(format!("{cpu}: no GPU backend in this build")),
            "cpu" => Ok(cpu),
            name if is_absent(name) => Err(Error::Usage(format!(
                "--device {name}: this build has no CUDA backend, nor its simulator; use --device cpu (or leave it out)"
            ))),
            name => Err(Error::Usage(format!("--device {name:?}: expected auto, cpu, cuda, cuda:N or sim"))),
        }
    }

    /// Worker threads: those of `--threads`, else `workers`; 0 is one per core.
    pub fn threads(&self, workers: usize) -> usize {
        self.threads.map_or(workers, usize::from)
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A device of the family that this build does not have.
fn is_absent(name: &str) -> bool {
    matches!(name, "cuda" | "sim") || name.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok())
}
