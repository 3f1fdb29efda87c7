// philox.cuh: counter-based random numbers, to the bit those of src/rng.rs.
//
// Philox4x32-10 (Salmon et al. 2011): ten rounds over the counter [element block, image, step, purpose] with the seed as key. Normal
// numbers by Box-Muller with polynomials; every operation is a single IEEE operation (__fmul_rn and so on are never fused), so that
// device, simulator and CPU agree in every bit.
#pragma once
#include <stdint.h>

struct PhiloxBlock { uint32_t w[4]; };

static __device__ __forceinline__ PhiloxBlock philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t hi0 = __umulhi(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
    const uint32_t hi1 = __umulhi(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
    c0 = hi1 ^ c1 ^ k0;
    c1 = lo1;
    c2 = hi0 ^ c3 ^ k1;
    c3 = lo0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1), 24 bits.
static __device__ __forceinline__ float uniform_of(uint32_t w) { return __fmul_rn((float)(w >> 8), 1.0f / 16777216.0f); }

// Natural logarithm of a positive normal number.
static __device__ __forceinline__ float philox_ln(float x) {
  const uint32_t shifted = __float_as_uint(x) - 0x3F3504F3u;
  const int e = (int)shifted >> 23;
  const float m = __uint_as_float((shifted & 0x007FFFFFu) + 0x3F3504F3u);  // in [sqrt(1/2), sqrt(2))
  const float s = __fdiv_rn(__fadd_rn(m, -1.0f), __fadd_rn(m, 1.0f));
  const float z = __fmul_rn(s, s);
  float p = __fadd_rn(0.22222222f, __fmul_rn(z, 0.18181818f));
  p = __fadd_rn(0.2857143f, __fmul_rn(z, p));
  p = __fadd_rn(0.4f, __fmul_rn(z, p));
  p = __fadd_rn(0.6666667f, __fmul_rn(z, p));
  p = __fmul_rn(z, p);
  return __fadd_rn(__fmul_rn((float)e, 0.693147180559945309417232121458f),
                   __fadd_rn(__fmul_rn(2.0f, s), __fmul_rn(s, p)));
}

// Sine and cosine of w / 2^32 turns.
static __device__ __forceinline__ void sin_cos_turns(uint32_t w, float& sine, float& cosine) {
  const uint32_t quadrant = w >> 30;
  const float offset = __fadd_rn(__fmul_rn((float)((w << 2) >> 8), 1.0f / 16777216.0f), -0.5f);
  const float t = __fmul_rn(offset, 1.57079632679489661923132169163975144f);
  const float z = __fmul_rn(t, t);
  float s = __fadd_rn(-1.984127e-4f, __fmul_rn(z, 2.7557319e-6f));
  s = __fadd_rn(0.008333333f, __fmul_rn(z, s));
  s = __fadd_rn(-0.16666667f, __fmul_rn(z, s));
  s = __fmul_rn(t, __fadd_rn(1.0f, __fmul_rn(z, s)));
  float c = __fadd_rn(2.4801587e-5f, __fmul_rn(z, -2.755732e-7f));
  c = __fadd_rn(-0.0013888889f, __fmul_rn(z, c));
  c = __fadd_rn(0.041666668f, __fmul_rn(z, c));
  c = __fadd_rn(-0.5f, __fmul_rn(z, c));
  c = __fadd_rn(1.0f, __fmul_rn(z, c));
  const float h = 0.707106781186547524400844362104849039f;
  const float rs = __fmul_rn(__fadd_rn(s, c), h), rc = __fmul_rn(__fadd_rn(c, -s), h);
  sine = quadrant == 0 ? rs : quadrant == 1 ? rc : quadrant == 2 ? -rs : -rc;
  cosine = quadrant == 0 ? rc : quadrant == 1 ? -rs : quadrant == 2 ? -rc : rs;
}

// Two words to two standard normal numbers: sqrt(-2 ln u) times cosine and sine.
static __device__ __forceinline__ void box_muller(uint32_t a, uint32_t b, float& z0, float& z1) {
  const float u = __fmul_rn((float)((a >> 8) + 1u), 1.0f / 16777216.0f);
  const float r = __fsqrt_rn(__fmul_rn(-2.0f, philox_ln(u)));
  float s, c;
  sin_cos_turns(b, s, c);
  z0 = __fmul_rn(r, c);
  z1 = __fmul_rn(r, s);
}
