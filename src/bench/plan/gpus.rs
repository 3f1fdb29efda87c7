//! GPUs as tables of figures, and how many blocks of a kernel a multiprocessor of theirs holds.

use crate::device::gpu::Arithmetic;
use crate::error::{Error, Result};

/// A GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpec {
    /// As `--gpu` has it.
    pub name: &'static str,
    /// What the driver calls it.
    pub title: &'static str,
    /// Which of the compiled images it runs.
    pub arch: &'static str,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// FLOP/s in bf16 with float32 sums that `mma.sync` reaches.
    pub bf16: f64,
    /// Bytes a second of memory that a copy reaches.
    pub bandwidth: f64,
    /// Bytes of shared memory of a multiprocessor.
    pub shared: u32,
    /// Bytes of it that a block may have.
    pub shared_block: u32,
    /// Threads of a multiprocessor.
    pub threads: u32,
    /// Blocks of it.
    pub blocks: u32,
}

/// Multiprocessors, shared memory, threads and blocks: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and NVIDIA's
/// data sheets. `mma.sync` on Hopper reaches 63 % of what `wgmma` does (arXiv:2501.12084), 498 TFLOP/s; elsewhere the published dense
/// peak times 0.95 is assumed. Bandwidth: nine tenths of the published one, which a copy reached on an H200 (4.3 of 4.8 TB/s).
pub const GPUS: [GpuSpec; 4] = [
    GpuSpec {
        name: "h200",
        title: "H200",
        arch: "sm_90a",
        multiprocessors: 132,
        bf16: 498e12,
        bandwidth: 4.3e12,
        shared: 228 << 10,
        shared_block: 227 << 10,
        threads: 2048,
        blocks: 32,
    },
    GpuSpec {
        name: "h100",
        title: "H100 SXM",
        arch: "sm_90a",
        multiprocessors: 132,
        bf16: 498e12,
        bandwidth: 3.0e12,
        shared: 228 << 10,
        shared_block: 227 << 10,
        threads: 2048,
        blocks: 32,
    },
    GpuSpec {
        name: "a100",
        title: "A100 SXM 80 GB",
        arch: "sm_80",
        multiprocessors: 108,
        bf16: 296e12,
        bandwidth: 1.83e12,
        shared: 164 << 10,
        shared_block: 163 << 10,
        threads: 2048,
        blocks: 32,
    },
    GpuSpec {
        name: "rtx4090",
        title: "RTX 4090",
        arch: "sm_80",
        multiprocessors: 128,
        bf16: 157e12,
        bandwidth: 0.91e12,
        shared: 100 << 10,
        shared_block: 99 << 10,
        threads: 1536,
        blocks: 24,
    },
];

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65_536;
/// A warp gets its registers in pieces of so many.
const REGISTER_PIECE: u32 = 256;
/// Shared memory that the system keeps for itself, a block.
const SHARED_OF_SYSTEM: u32 = 1 << 10;

/// What bounds the number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Blocks that a multiprocessor holds; 0 where one does not fit.
    pub blocks: u32,
    /// What there is not enough of for another.
    pub bound: &'static str,
}

impl GpuSpec {
    /// The GPU called `name`.
    ///
    /// # Errors
    /// There is no such line in [`GPUS`].
    pub fn named(name: &str) -> Result<&'static GpuSpec> {
        GPUS.iter().find(|gpu| gpu.name == name).ok_or_else(|| {
            let names: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).collect();
            Error::Usage(format!("--gpu {name}: expected one of {}", names.join(", ")))
        })
    }

    /// FLOP/s of products in this arithmetic: tf32 has half the rate of bf16, fp32 is three tf32 products.
    pub fn flops(&self, arithmetic: Arithmetic) -> f64 {
        match arithmetic {
            Arithmetic::Bf16 => self.bf16,
            Arithmetic::Tf32 => self.bf16 / 2.0,
            Arithmetic::Fp32 => self.bf16 / 6.0,
        }
    }

    /// Blocks of `threads` with so many registers a thread and bytes of shared memory, static and dynamic, that fit into a multiprocessor.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        let of_registers = REGISTERS / ((registers.max(1) * 32).next_multiple_of(REGISTER_PIECE) * warps);
        let of_shared = self.shared / (shared + SHARED_OF_SYSTEM);
        let of_threads = self.threads / (warps * 32);
        let bounds =
            [("registers", of_registers), ("shared", of_shared), ("threads", of_threads), ("blocks", self.blocks)];
        let (bound, blocks) = bounds.into_iter().min_by_key(|&(_, blocks)| blocks).unwrap_or(("blocks", 0));
        Occupancy { blocks, bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_multiprocessor() {
        let h200 = GpuSpec::named("h200").unwrap();
        // 164 registers of 128 threads: 4 warps of 5,376, three blocks.
        assert_eq!(h200.occupancy(128, 164, 0), Occupancy { blocks: 3, bound: "registers" });
        assert_eq!(h200.occupancy(128, 32, 70 << 10), Occupancy { blocks: 3, bound: "shared" });
        assert_eq!(h200.occupancy(1024, 32, 0), Occupancy { blocks: 2, bound: "registers" });
        assert_eq!(h200.occupancy(1024, 16, 0), Occupancy { blocks: 2, bound: "threads" });
        assert_eq!(h200.occupancy(32, 16, 0), Occupancy { blocks: 32, bound: "blocks" });
        assert_eq!(h200.occupancy(384, 200, 0).blocks, 0);
        assert!(GpuSpec::named("h300").unwrap_err().to_string().contains("h200"));
    }

    #[test]
    fn rates() {
        let a100 = GpuSpec::named("a100").unwrap();
        assert_eq!(a100.flops(Arithmetic::Fp32) * 6.0, a100.flops(Arithmetic::Bf16));
        assert!(GPUS.iter().all(|gpu| gpu.shared_block < gpu.shared));
    }
}
