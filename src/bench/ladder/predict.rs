//! What a rung should take on an H200, before anyone has measured it.
//!
//! A kernel asks for bytes of main memory and of L2, for accesses of the first-level cache and shared memory, for instructions, for products; each
//! has a rate, and whichever takes longest is the prediction. That is a floor with names: nothing overlaps badly, nobody waits for
//! the first byte. The rates are assumptions to be replaced by measured ones; none of them has been measured here.

/// Rates of an H200.
pub mod h200 {
    /// Bytes a second of main memory, by a copy.
    pub const MEMORY: f64 = 4.3e12;
    /// Bytes a second from L2.
    pub const L2: f64 = 5.5e12;
    /// Multiprocessors.
    pub const MULTIPROCESSORS: f64 = 132.0;
    /// Cycles a second: what 60 TFLOP/s of float32 on 128 lanes of 132 multiprocessors amount to.
    pub const CLOCK: f64 = 1.78e9;
    /// Accesses of up to 128 bytes a second of all first-level caches, which are shared memory too: one a clock.
    pub const ACCESSES: f64 = MULTIPROCESSORS * CLOCK;
    /// Instructions of warps a second: four a clock and multiprocessor.
    pub const INSTRUCTIONS: f64 = 4.0 * MULTIPROCESSORS * CLOCK;
    /// FLOP/s in float32, ordinary instructions.
    pub const FFMA: f64 = 60e12;
    /// FLOP/s of bfloat16 products by `mma.sync`.
    pub const MMA_SYNC: f64 = 498e12;
    /// Seconds from asking main memory to having it.
    pub const LATENCY: f64 = 0.6e-6;
    /// Seconds that a kernel adds to a graph, however little it does: gap and ramp.
    pub const KERNEL: f64 = 1.9e-6;
}

/// What a rung asks for, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes of main memory.
    pub memory: f64,
    /// Bytes through L2.
    pub l2: f64,
    /// Accesses of first-level caches and shared memory: 128 bytes, or one line, or one group of banks that conflict.
    pub accesses: f64,
    /// Instructions of warps, where there are more of them than of anything else.
    pub instructions: f64,
    /// FLOP of ordinary multiply-adds.
    pub ffma: f64,
    /// FLOP of tensor cores.
    pub mma: f64,
    /// Seconds of one thing after the other: loads that wait for each other, passes that a barrier keeps apart, the start of a kernel.
    pub waits: f64,
}

impl Cost {
    /// Seconds at least, and what takes them.
    pub fn seconds(&self) -> (f64, &'static str) {
        let of = [
            (self.memory / h200::MEMORY, "memory"),
            (self.l2 / h200::L2, "L2"),
            (self.accesses / h200::ACCESSES, "accesses"),
            (self.instructions / h200::INSTRUCTIONS, "instructions"),
            (self.ffma / h200::FFMA, "FFMA"),
            (self.mma / h200::MMA_SYNC, "mma.sync"),
            (self.waits, "waiting"),
        ];
        of.into_iter().fold((0.0, "nothing"), |most, this| if this.0 > most.0 { this } else { most })
    }
}

#[cfg(test)]
mod tests {
    use super::Cost;

    #[test]
    fn the_longest_is_predicted() {
        let cost = Cost { memory: 4.3e12, l2: 11e12, waits: 1.0, ..Cost::default() };
        assert_eq!(cost.seconds(), (2.0, "L2"));
        assert_eq!(Cost::default().seconds(), (0.0, "nothing"));
    }
}
