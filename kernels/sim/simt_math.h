// simt_math.h: CUDA's mathematical functions, for the simulator. The fast approximations are the exact functions of the
// host.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

using std::max;
using std::min;
static inline int max(int a, unsigned b) { return max((unsigned)a, b); }
static inline float max(float a, double b) { return (float)std::max((double)a, b); }

// Macros, since the host's library declares these names for itself.
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
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// The empty assembly keeps the compiler from contracting a product and a sum that the kernel wants rounded apart: a
// product with a later sum, a sum with an earlier product.
static inline float simt_apart(float v) {
  asm("" : "+x"(v));
  return v;
}
static inline float __fmul_rn(float a, float b) { return simt_apart(a * b); }
static inline float __fadd_rn(float a, float b) { return simt_apart(a) + simt_apart(b); }
static inline float __fsub_rn(float a, float b) { return simt_apart(a) - simt_apart(b); }
static inline float __saturatef(float x) { return x < 0 ? 0.0f : x > 1 ? 1.0f : x; }
// Sine and cosine of pi x; whole turns are taken off exactly. Macros, as above.
static inline double simt_sinpi(double x) { return sin(M_PI * (x - 2.0 * nearbyint(0.5 * x))); }
static inline double simt_cospi(double x) { return cos(M_PI * (x - 2.0 * nearbyint(0.5 * x))); }
#define sinpi(x) simt_sinpi(x)
#define cospi(x) simt_cospi(x)
static inline float sinpif(float x) { return sinf((float)M_PI * x); }
static inline float cospif(float x) { return cosf((float)M_PI * x); }

static inline int __float2int_rn(float f) { return (int)nearbyintf(f); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
