// simt.h - compile CUDA C++ kernels with g++ and run them on CPU fibers.   g++ -x c++ -include simt.h kernels/foo.cu
#pragma once
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#define SIMT 1

// ------------------------------------------------------------------ qualifiers
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ thread_local          // block scope: static per OS thread; `extern __shared__ T smem[];` -> simt.cpp's array
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __noinline__
#define __noinline__ __attribute__((noinline))   // after all std headers: libstdc++ itself uses the token
#endif
#define __align__(n) __attribute__((aligned(n)))

// ------------------------------------------------------------------ vector types
#define SIMT_V2(T, N, A) struct __align__(A) N { T x, y; };       static inline N make_##N(T x, T y) { return {x, y}; }
#define SIMT_V3(T, N)    struct N { T x, y, z; };                 static inline N make_##N(T x, T y, T z) { return {x, y, z}; }
#define SIMT_V4(T, N, A) struct __align__(A) N { T x, y, z, w; }; static inline N make_##N(T x, T y, T z, T w) { return {x, y, z, w}; }
typedef unsigned int simt_uint; typedef unsigned char simt_uchar; typedef unsigned short simt_ushort; typedef unsigned long long simt_ull;
SIMT_V2(float, float2, 8) SIMT_V3(float, float3) SIMT_V4(float, float4, 16)
SIMT_V2(int, int2, 8) SIMT_V3(int, int3) SIMT_V4(int, int4, 16)
SIMT_V2(simt_uint, uint2, 8) SIMT_V3(simt_uint, uint3) SIMT_V4(simt_uint, uint4, 16)
SIMT_V2(simt_uchar, uchar2, 2) SIMT_V4(simt_uchar, uchar4, 4) SIMT_V2(simt_ushort, ushort2, 4) SIMT_V4(simt_ushort, ushort4, 8)
SIMT_V2(double, double2, 16) SIMT_V2(long long, longlong2, 16) SIMT_V2(simt_ull, ulonglong2, 16)
struct dim3 { unsigned x, y, z; constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {} };

// ------------------------------------------------------------------ runtime interface
namespace simt {
struct ThreadPub { uint3 tid; int lane, warp; };               // public head of the fiber record
// one per OS worker thread; __thread + constant init + initial-exec -> one fs: relative load, no TLS wrapper
extern __thread __attribute__((tls_model("initial-exec"))) struct Tls { ThreadPub* self; uint3 bid, bdim, gdim; const char* op_file; int op_line; } tls;

typedef void (*ExecFn)(void** lane_data, uint32_t mask);
enum Kind { K_SHFL, K_VOTE, K_SYNCWARP, K_MMA, K_LDMATRIX, K_REDUX, K_MATCH };
void syncthreads(const char* file, int line);
int  syncthreads_red(int op, int pred, const char* file, int line);   // 0 count 1 and 2 or
void bar_sync(int id, int nthreads, const char* file, int line);
void collective(int kind, uint32_t mask, void* data, ExecFn exec, const char* file, int line);
[[noreturn]] void fail(const char* fmt, ...);
void cp_async(void* dst, const void* src, int bytes, int src_bytes, const char* file, int line);
void cp_async_commit(); void cp_async_wait(int n);
uint32_t active_mask();
// No-ops unless this is the checker.
void hook(const void* p, size_t n, bool write, const char* file, int line);
void hook_async(const void* p, size_t n, bool done, const char* file, int line);
void hook_atomic(const void* p, size_t n, const char* file, int line);
void fence();
// 32-bit "shared window" addresses
extern bool checking;
uint32_t smem_u32(const void* p);
void* smem_ptr(uint32_t a);

template <class T> struct ShflData { T v, r; int src; };
template <class T> void shfl_exec(void** l, uint32_t m) {
  for (uint32_t b = m; b; b &= b - 1) { auto* d = (ShflData<T>*)l[__builtin_ctz(b)]; d->r = (m >> d->src & 1) ? ((ShflData<T>*)l[d->src])->v : d->v; }
}
template <class T> inline T shfl(uint32_t mask, T v, int src, const char* f, int ln) {
  ShflData<T> d{v, v, src}; collective(K_SHFL, mask, &d, shfl_exec<T>, f, ln); return d.r;
}
struct VoteData { uint32_t pred, r; };
inline void vote_exec(void** l, uint32_t m) {
  uint32_t r = 0; for (uint32_t b = m; b; b &= b - 1) { int i = __builtin_ctz(b); if (((VoteData*)l[i])->pred) r |= 1u << i; }
  for (uint32_t b = m; b; b &= b - 1) ((VoteData*)l[__builtin_ctz(b)])->r = r;
}
inline void nop_exec(void**, uint32_t) {}
}  // namespace simt

#define threadIdx (simt::tls.self->tid)
#define blockIdx  (simt::tls.bid)
#define blockDim  (simt::tls.bdim)
#define gridDim   (simt::tls.gdim)
static constexpr int warpSize = 32;

#define SIMT_SITE const char* f_ = __builtin_FILE(), int l_ = __builtin_LINE()
#define __syncthreads() simt::syncthreads(__FILE__, __LINE__)
static inline int __syncthreads_count(int p, SIMT_SITE) { return simt::syncthreads_red(0, p, f_, l_); }
static inline int __syncthreads_and(int p, SIMT_SITE) { return simt::syncthreads_red(1, p, f_, l_); }
static inline int __syncthreads_or(int p, SIMT_SITE) { return simt::syncthreads_red(2, p, f_, l_); }
static inline void __syncwarp(uint32_t m = 0xffffffffu, SIMT_SITE) { simt::collective(simt::K_SYNCWARP, m, nullptr, simt::nop_exec, f_, l_); }
template <class T> static inline T __shfl_sync(uint32_t m, T v, int src, int w = 32, SIMT_SITE) { int l = simt::tls.self->lane; return simt::shfl<T>(m, v, (l & ~(w - 1)) | (src & (w - 1)), f_, l_); }
template <class T> static inline T __shfl_xor_sync(uint32_t m, T v, int x, int w = 32, SIMT_SITE) { int l = simt::tls.self->lane, s = l ^ x; if (s >= (l & ~(w - 1)) + w) s = l; return simt::shfl<T>(m, v, s, f_, l_); }
template <class T> static inline T __shfl_down_sync(uint32_t m, T v, unsigned d, int w = 32, SIMT_SITE) { int l = simt::tls.self->lane; int s = (l & (w - 1)) + (int)d < w ? l + (int)d : l; return simt::shfl<T>(m, v, s, f_, l_); }
template <class T> static inline T __shfl_up_sync(uint32_t m, T v, unsigned d, int w = 32, SIMT_SITE) { int l = simt::tls.self->lane; int s = (l & (w - 1)) >= (int)d ? l - (int)d : l; return simt::shfl<T>(m, v, s, f_, l_); }
static inline uint32_t __ballot_sync(uint32_t m, int p, SIMT_SITE) { simt::VoteData d{(uint32_t)(p != 0), 0}; simt::collective(simt::K_VOTE, m, &d, simt::vote_exec, f_, l_); return d.r; }
static inline int __any_sync(uint32_t m, int p, SIMT_SITE) { return __ballot_sync(m, p, f_, l_) != 0; }
static inline int __all_sync(uint32_t m, int p, SIMT_SITE) { return __ballot_sync(m, !p, f_, l_) == 0; }
static inline uint32_t __activemask() { return simt::active_mask(); }

// ------------------------------------------------------------------ memory
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }
static inline void __threadfence() { simt::fence(); }
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) {}
#define __trap() simt::fail("__trap() at %s:%d", __FILE__, __LINE__)
static inline long long clock64() { return (long long)__builtin_ia32_rdtsc(); }

// atomics: real ones (several OS threads run blocks); the race checker must not see them -> no_sanitize
#define SIMT_NOTSAN __attribute__((no_sanitize("thread"), noinline))
template <class T> SIMT_NOTSAN static T simt_rmw(T* p, T (*op)(T, T), T v, const char* file, int line) {
  if (simt::checking) simt::hook_atomic(p, sizeof *p, file, line);
  T o, n;
  __atomic_load(p, &o, __ATOMIC_RELAXED);
  do {
    n = op(o, v);
  } while (!__atomic_compare_exchange(p, &o, &n, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  return o;
}
#define SIMT_ATOMIC(name, expression)                                              \
  template <class T> static inline T name(T* p, std::common_type_t<T> v, SIMT_SITE) { \
    return simt_rmw<T>(p, +[](T a, T b) { (void)a; return (T)(expression); }, v, f_, l_);    \
  }
SIMT_ATOMIC(atomicAdd, a + b)
SIMT_ATOMIC(atomicSub, a - b)
SIMT_ATOMIC(atomicMax, a > b ? a : b)
SIMT_ATOMIC(atomicMin, a < b ? a : b)
SIMT_ATOMIC(atomicExch, b)
SIMT_ATOMIC(atomicOr, a | b)
static inline unsigned atomicInc(unsigned* p, unsigned v, SIMT_SITE) {
  return simt_rmw<unsigned>(p, +[](unsigned a, unsigned b) { return a >= b ? 0u : a + 1; }, v, f_, l_);
}
template <class T> SIMT_NOTSAN static T atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v, SIMT_SITE) {
  if (simt::checking) simt::hook_atomic(p, sizeof *p, f_, l_);
  T e = c;
  __atomic_compare_exchange(p, &e, &v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return e;
}

// ------------------------------------------------------------------ math (names that glibc already declares become macros)
using std::max; using std::min;
static inline int max(int a, unsigned b) { return max((unsigned)a, b); }
static inline float max(float a, double b) { return (float)std::max((double)a, b); }
#define __expf(x) ::expf(x)
#define __exp2f(x) ::exp2f(x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __powf(x, y) ::powf(x, y)
#define __sincosf(x, s, c) ::sincosf(x, s, c)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { float r = a * b; asm("" : "+x"(r)); return r; }
static inline float __fadd_rn(float a, float b) { float r = a + b; asm("" : "+x"(r)); return r; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __saturatef(float x) { return x < 0 ? 0.f : x > 1 ? 1.f : x; }
static inline float sinpif(float x) { return sinf((float)M_PI * x); }
static inline float cospif(float x) { return cosf((float)M_PI * x); }
static inline float erfinvf(float y) { double a = 0.147, l = log(1 - (double)y * y), t = 2 / (M_PI * a) + l / 2; return (float)(copysign(1.0, y) * sqrt(sqrt(t * t - l / a) - t)); }
template <class D, class S> static inline D simt_bits(S s) { static_assert(sizeof(D) == sizeof(S), ""); D d; memcpy(&d, &s, sizeof d); return d; }
static inline unsigned __float_as_uint(float f) { return simt_bits<unsigned>(f); }
static inline int __float_as_int(float f) { return simt_bits<int>(f); }
static inline float __uint_as_float(unsigned u) { return simt_bits<float>(u); }
static inline float __int_as_float(int u) { return simt_bits<float>(u); }
static inline int __float2int_rn(float f) { return (int)nearbyintf(f); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) { return (unsigned)(((uint64_t)hi << 32 | lo) << (s & 31) >> 32); }

// ------------------------------------------------------------------ half / bfloat16 (trivial types, round-to-nearest-even)
struct __nv_bfloat16 {
  uint16_t x;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) : x(from(f)) {}
  __nv_bfloat16(double f) : x(from((float)f)) {}
  __nv_bfloat16(int f) : x(from((float)f)) {}
  operator float() const { return simt_bits<float>((uint32_t)x << 16); }
  static uint16_t from(float f) { uint32_t u = simt_bits<uint32_t>(f); if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff; return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16); }
};
struct __half {
  uint16_t x;
  __half() = default;
  __half(float f) : x(from(f)) {}
  __half(double f) : x(from((float)f)) {}
  __half(int f) : x(from((float)f)) {}
  operator float() const { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
  static uint16_t from(float f) { _Float16 h = (_Float16)f; uint16_t u; memcpy(&u, &h, 2); return u; }
};
typedef __nv_bfloat16 nv_bfloat16; typedef __half half;
static_assert(std::is_trivially_default_constructible<__half>::value && sizeof(__nv_bfloat16) == 2, "");
#define SIMT_H2(H, H2, toF, fromF, lo2, mk)                                                                                                  \
  struct __align__(4) H2 { H x, y; H2() = default; H2(H a, H b) : x(a), y(b) {} };                                                             \
  static inline H operator+(H a, H b) { return H((float)a + (float)b); } static inline H operator-(H a, H b) { return H((float)a - (float)b); }  \
  static inline H operator*(H a, H b) { return H((float)a * (float)b); } static inline H operator/(H a, H b) { return H((float)a / (float)b); }  \
  static inline H& operator+=(H& a, H b) { return a = a + b; }                                                                                 \
  static inline bool operator<(H a, H b) { return (float)a < (float)b; } static inline bool operator>(H a, H b) { return (float)a > (float)b; }  \
  static inline H __hadd(H a, H b) { return a + b; } static inline H __hsub(H a, H b) { return a - b; } static inline H __hmul(H a, H b) { return a * b; }   \
  static inline H __hfma(H a, H b, H c) { return H(fmaf((float)a, (float)b, (float)c)); }                                                      \
  static inline H __hmax(H a, H b) { return H(fmaxf((float)a, (float)b)); } static inline H __hmin(H a, H b) { return H(fminf((float)a, (float)b)); }       \
  static inline H2 __hadd2(H2 a, H2 b) { return {a.x + b.x, a.y + b.y}; } static inline H2 __hmul2(H2 a, H2 b) { return {a.x * b.x, a.y * b.y}; }         \
  static inline H2 __hfma2(H2 a, H2 b, H2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }                                        \
  static inline float toF(H h) { return (float)h; } static inline H fromF(float f) { return H(f); } static inline H fromF##_rn(float f) { return H(f); } \
  static inline float __low2float(H2 h) { return (float)h.x; } static inline float __high2float(H2 h) { return (float)h.y; }                   \
  static inline H2 mk(float a, float b) { return {H(a), H(b)}; }
SIMT_H2(__nv_bfloat16, __nv_bfloat162, __bfloat162float, __float2bfloat16, __low2bfloat16, __floats2bfloat162_rn)
SIMT_H2(__half, __half2, __half2float, __float2half, __low2half, __floats2half2_rn)
typedef __nv_bfloat162 nv_bfloat162; typedef __half2 half2;
static inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {(float)h.x, (float)h.y}; }
static inline float2 __half22float2(__half2 h) { return {(float)h.x, (float)h.y}; }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {__nv_bfloat16(f.x), __nv_bfloat16(f.y)}; }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
static inline __half2 __half2half2(__half a) { return {a, a}; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { __nv_bfloat16 h; h.x = u; return h; }

// ------------------------------------------------------------------ emulated PTX (called by kernels/ptx.cuh)
namespace simt {
struct MmaData { float* d; const uint32_t *a, *b; const float* c; };
void mma_m16n8k16_bf16_exec(void**, uint32_t); void mma_m16n8k16_f16_exec(void**, uint32_t); void mma_m16n8k8_tf32_exec(void**, uint32_t);
struct LdmData { uint32_t* r; const void* row; int n; bool trans; };
void ldmatrix_exec(void**, uint32_t);

// ------------------------------------------------------------------ registry
struct Kernel { const char* name; void (*invoke)(void** args); int nparams; const uint32_t* psize; int max_threads; Kernel* next; };
void register_kernel(Kernel*);
template <class F> struct Sig;
template <class... A> struct Sig<void (*)(A...)> {
  static constexpr int n = sizeof...(A);
  static constexpr uint32_t sizes[] = {(uint32_t)sizeof(A)..., 0};
  template <void (*K)(A...), size_t... I> __attribute__((no_sanitize("thread"))) static void call(void** a, std::index_sequence<I...>) { K(*(std::remove_const_t<A>*)a[I]...); }
  template <void (*K)(A...)> __attribute__((no_sanitize("thread"))) static void invoke(void** a) { call<K>(a, std::make_index_sequence<n>()); }
};
}  // namespace simt
#define SIMT_KERNEL(k) do { static simt::Kernel k_{#k, &simt::Sig<decltype(&k)>::template invoke<&k>, simt::Sig<decltype(&k)>::n, simt::Sig<decltype(&k)>::sizes, 0, nullptr}; simt::register_kernel(&k_); } while (0)
