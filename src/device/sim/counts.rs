//! What the checker counted of a launch.

use bytemuck::{Pod, Zeroable};

use crate::device::launcher::LaunchConfig;

/// What a launch asked of memory, as `kernels/sim/count.cpp` defines it. Sectors are of 32 bytes; an access is one of a warp.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counts {
    /// Distinct sectors of global memory that were read, but for those that the launch had written before.
    pub read_sectors: u64,
    /// Distinct sectors of global memory that were written.
    pub written_sectors: u64,
    /// Accesses to global memory.
    pub accesses: u64,
    /// Sectors of these accesses, added up.
    pub sectors: u64,
    /// The fewest sectors that could hold what they ask for.
    pub fewest_sectors: u64,
    /// Bytes that lanes ask for in global memory.
    pub bytes: u64,
    /// Those of accesses of 16 bytes a lane.
    pub bytes_of_16: u64,
    /// Accesses to shared memory.
    pub shared_accesses: u64,
    /// Rounds that the banks of shared memory need for them.
    pub wavefronts: u64,
    /// Rounds without a conflict of banks.
    pub fewest_wavefronts: u64,
    /// Atomic operations of lanes.
    pub atomics: u64,
}

impl Counts {
    /// Bytes of a sector.
    pub const SECTOR: u64 = 32;

    /// Bytes that must come from and go to main memory at least.
    pub fn distinct_bytes(&self) -> u64 {
        (self.read_sectors + self.written_sectors) * Self::SECTOR
    }

    /// Wavefronts that conflicts of banks add, for one without.
    pub fn extra_wavefronts(&self) -> f64 {
        (self.wavefronts - self.fewest_wavefronts) as f64 / self.fewest_wavefronts.max(1) as f64
    }

    /// Share of the bytes in global memory that accesses of 16 bytes move; 1 where there are none.
    pub fn wide_share(&self) -> f64 {
        if self.bytes == 0 { 1.0 } else { self.bytes_of_16 as f64 / self.bytes as f64 }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        let (sum, more) = (bytemuck::bytes_of_mut(self), bytemuck::bytes_of(&other));
        for (sum, more) in
            bytemuck::cast_slice_mut::<u8, u64>(sum).iter_mut().zip(bytemuck::cast_slice::<u8, u64>(more))
        {
            *sum += more;
        }
    }
}

/// A launch with its counts.
#[derive(Clone, Debug)]
pub struct CountedLaunch {
    /// Name of the kernel.
    pub kernel: String,
    /// Extents.
    pub config: LaunchConfig,
    /// What it asked of memory.
    pub counts: Counts,
}
