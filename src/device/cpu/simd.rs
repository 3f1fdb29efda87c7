//! Vectors of `f32` behind one trait, and the choice between AVX-512, AVX2 with FMA, and portable code at run time.
//!
//! A kernel implements `Kernel` once, generic over `Simd`; `dispatch` runs it compiled for the chosen instruction set. The
//! generic body is inlined into a function that has the features enabled, which is why every method here is `inline(always)`.
//! Kernels use no closures and no calls that are not `inline(always)`: those would be compiled without the features, and each
//! intrinsic in them would become a function call (measured: 100 times slower).

use std::fmt;

use half::bf16;

use super::Products;

/// Instruction set of the CPU kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F: 16 lanes, 32 registers.
    Avx512,
    /// AVX2 and FMA: 8 lanes, 16 registers.
    Avx2,
    /// Whatever the compiler makes of arrays of 8: any machine.
    Portable,
}

impl Isa {
    /// All of them, best first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The best that this machine has. `DDIM_ISA=avx2` or `portable` forces a lesser one.
    pub fn detect() -> Isa {
        let wanted = std::env::var("DDIM_ISA").unwrap_or_default();
        let least = Isa::ALL.iter().position(|i| i.to_string().eq_ignore_ascii_case(&wanted)).unwrap_or(0);
        Isa::ALL[least..].iter().copied().find(|i| i.available()).unwrap_or(Isa::Portable)
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => is_x86_feature_detected!("avx512f") && Isa::Avx2.available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Pixels in the register block of the convolution: as many as the registers hold with two vectors of output channels.
    pub(crate) fn block_pixels(self) -> usize {
        match self {
            Isa::Avx512 => 8,
            Isa::Avx2 => 6,
            Isa::Portable => 2,
        }
    }

    /// Lanes of a vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Avx512 => 16,
            Isa::Avx2 | Isa::Portable => 8,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "AVX512",
            Isa::Avx2 => "AVX2",
            Isa::Portable => "portable",
        })
    }
}

/// A vector of `f32`. Only used inside [`Kernel::run`], reached through [`dispatch`].
///
/// # Safety
/// The methods of an implementor may only run where its instruction set is available; `load` and `store` read and write
/// `LANES` elements at the pointer, with no need for alignment.
pub(crate) unsafe trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Output pixels in the register block of the convolution (chosen by the number of registers).
    const PIXELS: usize;
    /// The vector.
    type V: Copy;
    /// All lanes equal to `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// All lanes equal to `p[i]`, by a broadcasting load.
    ///
    /// Not `splat(*p.add(i))`: the compiler gathers neighbouring scalars into one vector load and spreads them with shuffles,
    /// which run on a port that the multiply-adds need.
    unsafe fn broadcast(p: *const f32, i: usize) -> Self::V;
    /// `LANES` elements from `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// `LANES` elements to `p`.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// a * b + c; fused where the instruction set fuses.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// 1 / a for a in [1, 1e38], relative error below 2e-7: an estimate and a Newton step where there is one, since a division
    /// keeps its unit busy for 16 cycles.
    unsafe fn recip(a: Self::V) -> Self::V;
    /// Of lanes that hold a bfloat16 in each half: the first of each pair, in the low half, as `f32`.
    unsafe fn first_of_pair(a: Self::V) -> Self::V;
    /// The second of each pair.
    unsafe fn second_of_pair(a: Self::V) -> Self::V;
    /// acc + a.second * b.second + a.first * b.first, in this order, of pairs of bfloat16. The products are exact; both sums round.
    #[inline(always)]
    unsafe fn dot(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let acc = Self::fma(Self::second_of_pair(a), Self::second_of_pair(b), acc);
            Self::fma(Self::first_of_pair(a), Self::first_of_pair(b), acc)
        }
    }
    /// Rounds to bfloat16 and stores pairs of neighbours: `LANES / 2` elements to `p`.
    #[inline(always)]
    unsafe fn store_pairs(p: *mut f32, a: Self::V) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: 16 elements are enough for any vector; the caller vouches for the elements at `p`.
        unsafe {
            Self::store(lanes.as_mut_ptr(), a);
            for (i, pair) in lanes[..Self::LANES].chunks_exact(2).enumerate() {
                p.add(i).write_unaligned(pair_of(pair[0], pair[1]));
            }
        }
    }
    /// Lane-wise smaller.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise larger.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// 2^n for integral n in [-126, 127], given as floats.
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;

    /// exp(x), relative error below 2e-7; inputs are clamped to [-87, 87].
    ///
    /// Cody-Waite reduction by ln 2 and a polynomial of degree 6 on [-ln2/2, ln2/2].
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let x = Self::min(Self::max(x, Self::splat(-87.0)), Self::splat(87.0));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 720.0);
            for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::mul(p, Self::pow2(n))
        }
    }

    /// 1 / (1 + exp(-x)).
    #[inline(always)]
    unsafe fn sigmoid(x: Self::V) -> Self::V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::recip(Self::add(Self::splat(1.0), Self::exp(Self::sub(Self::splat(0.0), x)))) }
    }

    /// x * sigmoid(x).
    #[inline(always)]
    unsafe fn silu(x: Self::V) -> Self::V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { Self::mul(x, Self::sigmoid(x)) }
    }

    /// d silu / dx = s (1 + x (1 - s)), s = sigmoid(x).
    #[inline(always)]
    unsafe fn silu_grad(x: Self::V) -> Self::V {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (one, s) = (Self::splat(1.0), Self::sigmoid(x));
            Self::mul(s, Self::fma(x, Self::sub(one, s), one))
        }
    }
}

/// A vector whose first lanes are `src`, the rest 0.
///
/// # Safety
/// The instruction set of `S` must be available; `src` holds at most `LANES` elements.
#[inline(always)]
pub(crate) unsafe fn load_part<S: Simd>(src: &[f32]) -> S::V {
    let mut lanes = [0.0f32; 16];
    lanes[..src.len()].copy_from_slice(src);
    // SAFETY: 16 elements are enough for any vector.
    unsafe { S::load(lanes.as_ptr()) }
}

/// Stores the first lanes of a vector to `dst`.
///
/// # Safety
/// The instruction set of `S` must be available; `dst` holds at most `LANES` elements.
#[inline(always)]
pub(crate) unsafe fn store_part<S: Simd>(v: S::V, dst: &mut [f32]) {
    let mut lanes = [0.0f32; 16];
    // SAFETY: 16 elements are enough for any vector.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    dst.copy_from_slice(&lanes[..dst.len()]);
}

/// A computation that is generic over the vector.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it. Must be `#[inline(always)]`, like everything it calls, to be compiled with the features of `S`.
    ///
    /// # Safety
    /// The instruction set of `S` must be available.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs `kernel` with the instruction set `isa`, which must be available (as [`super::Cpu::with_isa`] ensures).
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is only made with an instruction set that the machine has.
        Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
        // SAFETY: the portable vector needs nothing.
        _ => unsafe { kernel.run::<Portable>() },
    }
}

/// Two numbers rounded to bfloat16 (nearest, ties to even), the first in the low half, in the bits of an `f32`.
#[inline(always)]
pub(crate) fn pair_of(first: f32, second: f32) -> f32 {
    let half = |x| u32::from(bf16::from_f32(x).to_bits());
    f32::from_bits(half(first) | half(second) << 16)
}

/// As [`dispatch`], with `vdpbf16ps` for [`Simd::dot`] where `products` says so (then this machine has it with `isa`, as
/// [`super::Cpu::with_products`] ensures).
#[inline]
pub(crate) fn dispatch_products<K: Kernel>(isa: Isa, products: Products, kernel: K) -> K::Output {
    match products {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` is only made with products that the machine has.
        Products::Bf16 => unsafe { x86::run_avx512_bf16(kernel) },
        _ => dispatch(isa, kernel),
    }
}

/// Arrays of 8, for any machine. No fused multiply-add: without hardware it would be a library call.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY: plain Rust; load and store touch 8 elements.
unsafe impl Simd for Portable {
    const LANES: usize = 8;
    const PIXELS: usize = 2;
    type V = [f32; 8];
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const f32, i: usize) -> [f32; 8] {
        // SAFETY: the caller vouches for the element.
        [unsafe { *p.add(i) }; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller vouches for 8 elements.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller vouches for 8 elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn recip(a: [f32; 8]) -> [f32; 8] {
        a.map(|a| 1.0 / a)
    }
    #[inline(always)]
    unsafe fn first_of_pair(a: [f32; 8]) -> [f32; 8] {
        a.map(|a| f32::from_bits(a.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn second_of_pair(a: [f32; 8]) -> [f32; 8] {
        a.map(|a| f32::from_bits(a.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn pow2(n: [f32; 8]) -> [f32; 8] {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn round(a: [f32; 8]) -> [f32; 8] {
        // Adding and subtracting 1.5 * 2^23 rounds to an integer (|a| < 2^22 here); a call to `round_ties_even` would not
        // vectorise without SSE4.1.
        a.map(|a| (a + 12_582_912.0) - 12_582_912.0)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX-512F, AVX2 and FMA must be available.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the features are enabled here.
        unsafe { kernel.run::<Avx512>() }
    }

    /// # Safety
    /// AVX-512F, BW and BF16, AVX2 and FMA must be available.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma")]
    pub(super) unsafe fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the features are enabled here.
        unsafe { kernel.run::<Avx512Bf16>() }
    }

    /// # Safety
    /// AVX2 and FMA must be available.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the features are enabled here.
        unsafe { kernel.run::<Avx2>() }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;
    /// AVX-512 with `vdpbf16ps`.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Bf16;
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// Defines a broadcasting load that the optimiser cannot take apart; see [`Simd::broadcast`].
    macro_rules! broadcasting_load {
        ($name:ident, $feature:literal, $class:ident, $v:ty) => {
            /// # Safety
            /// The feature must be available; `p + i` must be readable.
            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn $name(p: *const f32, i: usize) -> $v {
                let v: $v;
                // SAFETY: reads the one element that the caller vouches for and writes a register.
                unsafe {
                    std::arch::asm!("vbroadcastss {v}, dword ptr [{p} + 4*{i}]", v = lateout($class) v, p = in(reg) p,
                        i = in(reg) i, options(pure, readonly, nostack, preserves_flags));
                }
                v
            }
        };
    }
    broadcasting_load!(broadcast512, "avx512f", zmm_reg, __m512);
    broadcasting_load!(broadcast256, "avx2", ymm_reg, __m256);

    /// The methods that are one intrinsic each.
    macro_rules! intrinsics {
        ($v:ty; $($name:ident($($arg:ident: $t:ty),*) $(-> $r:ty)? = $body:expr;)*) => {$(
            #[inline(always)]
            unsafe fn $name($($arg: $t),*) $(-> $r)? {
                // SAFETY: the caller vouches for the instruction set and for LANES elements behind pointers.
                unsafe { $body }
            }
        )*};
    }

    /// The vectors of AVX-512F, and what is better than the trait's own.
    macro_rules! avx512 {
        ($name:ident; $($better:tt)*) => {
            // SAFETY: intrinsics of AVX-512F; unaligned loads and stores of 16 elements.
            unsafe impl Simd for $name {
                const LANES: usize = 16;
                const PIXELS: usize = 8;
                type V = __m512;
                #[inline(always)]
                unsafe fn broadcast(p: *const f32, i: usize) -> __m512 {
                    // SAFETY: the caller vouches for the instruction set and the element.
                    unsafe { broadcast512(p, i) }
                }
                intrinsics! { __m512;
                    splat(x: f32) -> __m512 = _mm512_set1_ps(x);
                    load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
                    store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
                    fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
                    add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
                    sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
                    mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
                    div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
                    recip(a: __m512) -> __m512 = {
                        let r = _mm512_rcp14_ps(a);
                        _mm512_mul_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(2.0)))
                    };
                    first_of_pair(a: __m512) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(a)));
                    second_of_pair(a: __m512) -> __m512 = _mm512_castsi512_ps(
                        _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(-0x1_0000)));
                    min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
                    max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
                    pow2(n: __m512) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(
                        _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127))));
                    round(a: __m512) -> __m512 = _mm512_roundscale_ps::<0>(a);
                }
                $($better)*
            }
        };
    }
    avx512! { Avx512; }
    // AVX512_BF16 for pairs: like the trait's own but for denormal numbers, which count as zero.
    avx512! { Avx512Bf16;
        intrinsics! { __m512;
            dot(a: __m512, b: __m512, acc: __m512) -> __m512 = _mm512_dpbf16_ps(acc, pairs(a), pairs(b));
            store_pairs(p: *mut f32, a: __m512) = p.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(a));
        }
    }

    /// The same bits as pairs of bfloat16.
    #[inline(always)]
    fn pairs(a: __m512) -> __m512bh {
        // SAFETY: two types of the same 64 bytes, of which all patterns are allowed.
        unsafe { std::mem::transmute(a) }
    }

    // SAFETY: intrinsics of AVX2 and FMA; unaligned loads and stores of 8 elements.
    unsafe impl Simd for Avx2 {
        const LANES: usize = 8;
        const PIXELS: usize = 6;
        type V = __m256;
        #[inline(always)]
        unsafe fn broadcast(p: *const f32, i: usize) -> __m256 {
            // SAFETY: the caller vouches for the instruction set and the element.
            unsafe { broadcast256(p, i) }
        }
        intrinsics! { __m256;
            splat(x: f32) -> __m256 = _mm256_set1_ps(x);
            load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
            store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
            fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
            recip(a: __m256) -> __m256 = {
                let r = _mm256_rcp_ps(a);
                let r = _mm256_mul_ps(r, _mm256_fnmadd_ps(a, r, _mm256_set1_ps(2.0)));
                _mm256_mul_ps(r, _mm256_fnmadd_ps(a, r, _mm256_set1_ps(2.0)))
            };
            first_of_pair(a: __m256) -> __m256 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(a)));
            second_of_pair(a: __m256) -> __m256 = _mm256_castsi256_ps(
                _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(-0x1_0000)));
            min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            pow2(n: __m256) -> __m256 = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(
                _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127))));
            round(a: __m256) -> __m256 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        }
    }
}
