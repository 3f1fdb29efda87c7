//! What the factors of the CPU's largest products are: float32, or bfloat16 where the processor gains by it.
//!
//! `vdpbf16ps` (AVX512_BF16) multiplies pairs of bfloat16 and adds both products to a float32. AMD's processors that have it (Zen 4
//! and later) are said to run it at the rate of a float32 multiply-add, twice the work for the time; not measured here. On Intel's
//! Sapphire Rapids it was measured to be slower than float32: 87 against 140 GFlop/s on a core. So the choice goes by the vendor, never
//! by a measurement: the same kind of machine always gives the same numbers.

use super::Isa;
use crate::error::{Error, Result};

/// The factors of the products of 3x3 convolutions by tiles, forward and for the input's gradient. All else is float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// float32.
    Fp32,
    /// Rounded to bfloat16 (nearest, ties to even), two at a time by `vdpbf16ps`, sums in float32. With AVX-512 alone.
    Bf16,
    /// The same roundings and order of sums by instructions that every machine has: for tests, and slower than float32.
    Bf16Emulated,
}

/// The environment variable that forces one.
const VARIABLE: &str = "DDIM_BF16";

impl Products {
    /// What `--precision bf16` means with the instruction set `isa` on this machine: bfloat16 where that is faster, else float32.
    /// `DDIM_BF16=fp32` forces float32, `DDIM_BF16=dot` bfloat16, emulated where the instruction is missing.
    ///
    /// # Errors
    /// [`Error::Usage`] where `DDIM_BF16` is something else.
    pub fn for_bf16(isa: Isa) -> Result<Self> {
        let forced = std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
        Self::choose(isa, &forced, amd())
    }

    fn choose(isa: Isa, forced: &str, amd: bool) -> Result<Self> {
        let has = Products::Bf16.available(isa);
        match forced {
            "" => Ok(if has && amd { Products::Bf16 } else { Products::Fp32 }),
            "fp32" => Ok(Products::Fp32),
            "dot" => Ok(if has { Products::Bf16 } else { Products::Bf16Emulated }),
            other => Err(Error::Usage(format!(
                "{VARIABLE}={other:?}: expected fp32 or dot, or unset it for this processor's choice"
            ))),
        }
    }

    /// Whether this machine has them with the instruction set `isa`.
    pub fn available(self, isa: Isa) -> bool {
        match self {
            Products::Fp32 | Products::Bf16Emulated => true,
            #[cfg(target_arch = "x86_64")]
            Products::Bf16 => {
                isa == Isa::Avx512
                    && isa.available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Products::Bf16 => false,
        }
    }

    /// Whether factors are bfloat16, in pairs.
    pub fn paired(self) -> bool {
        self != Products::Fp32
    }

    /// What a device line says of `--precision bf16` with the instruction set `isa`.
    pub fn describe(self, isa: Isa) -> &'static str {
        match self {
            Products::Bf16 => "bf16 by vdpbf16ps in 3x3 convolutions, else fp32",
            Products::Bf16Emulated => "bf16 emulated in 3x3 convolutions, slowly, for tests (DDIM_BF16=dot), else fp32",
            Products::Fp32 if Products::Bf16.available(isa) && amd() => "bf16 computed in fp32 (DDIM_BF16=fp32)",
            Products::Fp32 => "bf16 computed in fp32: this processor has no fast bf16 dot product",
        }
    }
}

/// Whether the processor is AMD's.
#[cfg(target_arch = "x86_64")]
fn amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let bytes: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    bytes == b"AuthenticAMD"
}

/// Whether the processor is AMD's.
#[cfg(not(target_arch = "x86_64"))]
fn amd() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_goes_by_vendor_and_variable() {
        for isa in Isa::ALL {
            let has = Products::Bf16.available(isa);
            let dot = if has { Products::Bf16 } else { Products::Bf16Emulated };
            for amd in [false, true] {
                let by_table = if has && amd { Products::Bf16 } else { Products::Fp32 };
                assert_eq!(Products::choose(isa, "", amd).unwrap(), by_table);
                assert_eq!(Products::choose(isa, "fp32", amd).unwrap(), Products::Fp32);
                assert_eq!(Products::choose(isa, "dot", amd).unwrap(), dot);
            }
            let refused = Products::choose(isa, "bf16", false).unwrap_err().to_string();
            assert!(refused.contains("DDIM_BF16=\"bf16\": expected fp32 or dot"), "{refused}");
        }
        assert!(!Products::Bf16.available(Isa::Avx2) && !Products::Bf16.available(Isa::Portable));
    }
}
