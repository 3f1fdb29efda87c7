// group_norm.cu: group norm forward: coefficients from the statistics of its producers, and its application where no convolution does it.
//
// math   Image n left mean m_c and sum of squared deviations s_c of P pixels, channel by channel. Over the w channels of a group
//          m = sum_c m_c / w        M v = sum_c s_c + P sum_c (m_c - m)^2        M = w P        r = 1 / sqrt(v + eps)
//        and with the modulation (s, t), where given, the rows of the coefficients are
//          scale = gamma r (1 + s)        shift = (beta - gamma r m) (1 + s) + t        and (m, r)
//        Application: y = drop(silu?(scale x + shift)).
// shapes statistics [N, C0, 2] and [N, C1, 2] (a concatenation, whose border groups may cross), modulation [N, 2C], coefficients scale [N, C],
//        shift [N, C], (m, r) [N, G, 2]; x [N, P, C0] and [N, P, C1], y [N, P, C].
// map    coefficients: a warp for a group of an image. Application: a thread for V neighbouring channels (16 bytes where channels and
//        addresses allow it, else 1) of GROUP_NORM_UNITS pixels; threadIdx.x counts channels, threadIdx.y pixels; blocks: x = image
//        and tile of pixels, y = channels.
// num    coefficients in double, lanes in a fixed order. Application in float, rounded once.
// bytes  coefficients 8 N C read, 8 N C written. Application: x once, y once, which is the least.
// ref    src/ops/group_norm/reference.rs; tests/gpu_group_norm.rs
// limit  P C below 2^32.
#include "group_norm.cuh"
#include "reduce.cuh"

struct GroupNormCoefficientsArgs {
  const float* stats0;      // [n, c0, 2]
  const float* stats1;      // [n, c1, 2], or null
  const float* gamma;       // [c]
  const float* beta;        // [c]
  const float* modulation;  // [n, 2 c], or null
  float* coefficients;
  double eps;
  uint32_t n, pixels, c0, c1, groups, unused;
};
static_assert(sizeof(GroupNormCoefficientsArgs) == 80, "GroupNormCoefficientsArgs is mirrored in src/ops/group_norm/gpu.rs");

extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS) group_norm_coefficients_f32(const __grid_constant__ GroupNormCoefficientsArgs a) {
  const uint32_t place = blockIdx.x * (GROUP_NORM_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (place >= a.n * a.groups) return;  // a whole warp; no barrier follows
  const uint32_t image = place / a.groups, c = a.c0 + a.c1, width = c / a.groups, first = place % a.groups * width;
  const auto stats = [&](uint32_t channel) {
    return channel < a.c0 ? a.stats0 + 2 * ((size_t)image * a.c0 + channel) : a.stats1 + 2 * ((size_t)image * a.c1 + (channel - a.c0));
  };
  double sum = 0.0;
  for (uint32_t i = lane; i < width; i += 32) sum += stats(first + i)[0];
  const double mean = sum_warp(sum) / width;
  double m2 = 0.0;
  for (uint32_t i = lane; i < width; i += 32) {
    const float* of = stats(first + i);
    const double delta = of[0] - mean;
    m2 += of[1] + a.pixels * delta * delta;
  }
  const double var = sum_warp(m2) / ((double)width * a.pixels), r = 1.0 / sqrt(var + a.eps);
  float* scale = a.coefficients + (size_t)image * c;
  float* shift = scale + (size_t)a.n * c;
  for (uint32_t i = lane; i < width; i += 32) {
    const uint32_t channel = first + i;
    const float* row = a.modulation ? a.modulation + (size_t)image * 2 * c + channel : nullptr;
    const double one = row ? 1.0 + row[0] : 1.0, t = row ? row[c] : 0.0, gamma = a.gamma[channel], beta = a.beta[channel];
    scale[channel] = (float)(gamma * r * one);
    shift[channel] = (float)((beta - gamma * r * mean) * one + t);
  }
  if (lane > 0) return;
  float* moments = a.coefficients + (size_t)2 * a.n * c + 2 * (size_t)place;
  moments[0] = (float)mean;
  moments[1] = (float)r;
}

template <class T, int V> static __device__ __forceinline__ void group_norm_apply(const GroupNormArgs& a) {
  const NormChannels<T, V> channels(a);
  if (!channels.live) return;
  const uint32_t step = a.step ? *a.step : 0;
  T* y = static_cast<T*>(a.out0);
  for_each_pixel(a, [&](uint32_t pixel) {
    float v[V];
    load(channels.x + channels.own_at(a, pixel), v);
#pragma unroll
    for (int i = 0; i < V; i++) {
      v[i] = fmaf(channels.scale[i], v[i], channels.shift[i]);
      if (a.silu) v[i] = silu_of<T>(v[i]);
    }
    if (a.step) dropped(a, step, channels.image, pixel * channels.c + channels.channel, v);
    store(y + channels.at(a, pixel), v);
  });
}

extern "C" __global__ void __launch_bounds__(256) group_norm_apply_f32(const __grid_constant__ GroupNormArgs a) {
  a.vector ? group_norm_apply<float, 4>(a) : group_norm_apply<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_apply_bf16(const __grid_constant__ GroupNormArgs a) {
  a.vector ? group_norm_apply<__nv_bfloat16, 8>(a) : group_norm_apply<__nv_bfloat16, 1>(a);
}
