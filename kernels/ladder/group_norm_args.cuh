// group_norm_args.cuh: the parameter of the ladder's group norms. Every rung computes the same thing:
//
//   y = silu(gamma_c r (x - m) + beta_c), m and v mean and variance of the P pixels by C/G channels of an (image, group), r = 1 / sqrt(v + eps)
#pragma once
#include "elements.cuh"
#include "silu.cuh"

struct LadderNormArgs {
  const __nv_bfloat16* x;  // [n, pixels, c]
  const float* gamma;      // [c]
  const float* beta;       // [c]
  const float* stats;      // rung 4: [n, c, 2], mean and sum of squared deviations of each channel, as a producer leaves them
  __nv_bfloat16* y;        // [n, pixels, c]
  float eps;
  uint32_t n, pixels, c, groups, unused;
};
static_assert(sizeof(LadderNormArgs) == 64, "LadderNormArgs is mirrored in src/bench/ladder/group_norm.rs");

// Eight neighbouring channels: scale, shift, SiLU.
static __device__ __forceinline__ void apply8(const float (&scale)[8], const float (&shift)[8], const __nv_bfloat16* x, __nv_bfloat16* y) {
  float v[8];
  load(x, v);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = silu_of<__nv_bfloat16>(fmaf(scale[i], v[i], shift[i]));
  store(y, v);
}
