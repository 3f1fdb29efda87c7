// group_norm.cuh: what the kernels of group norm share: the parameter of those that go over pixels, the way of threads over them, dropout.
#pragma once
#include "elements.cuh"
#include "philox.cuh"
#include "silu.cuh"

static constexpr int GROUP_NORM_THREADS = 256;  // rust
static constexpr int GROUP_NORM_UNITS = 8;      // rust

// Element types by position: T is float or bfloat16, as the kernel's name says. Null: absent.
struct GroupNormArgs {
  const void* x0;             // [n, pixels, c0]
  const void* x1;             // [n, pixels, c1]
  const void* g;              // [n, pixels, c]: gradient of y; backward
  const float* coefficients;  // scale [n, c], shift [n, c], mean and 1 / sqrt(v + eps) [n, groups, 2]
  const float* means;         // [n, groups, 2]: r a and r r b of group_norm_bwd.cu; its dx
  const void* to0_first;      // [n, pixels, c0]: added to dx0
  const void* to0_second;     // likewise
  const void* to1;            // [n, pixels, c1]: added to dx1
  void* out0;                 // y [n, pixels, c]; backward dx0
  void* out1;                 // backward dx1
  float* partials;            // [n, tiles, 3, c]: sums of group_norm_bwd.cu
  const uint32_t* step;       // [1]: number of the step for dropout; null: no dropout
  uint32_t n, pixels, c0, c1, groups;
  uint32_t silu;
  uint32_t tiles;             // of an image
  uint32_t vector;            // 16 bytes at once
  uint32_t seed_low, seed_high, purpose, first_image;
  float p;                    // probability of zero
  float kept;                 // 1 / (1 - p)
};
static_assert(sizeof(GroupNormArgs) == 152, "GroupNormArgs is mirrored in src/ops/group_norm/gpu.rs");

// What V neighbouring channels of an image are multiplied with. They lie in one of the two inputs.
template <class T, int V> struct NormChannels {
  uint32_t image, channel, c, own_c, own_channel;  // `own`: of the input that they lie in
  bool live, second;
  const T* x;
  float scale[V], shift[V];

  __device__ __forceinline__ explicit NormChannels(const GroupNormArgs& a) {
    image = blockIdx.x / a.tiles;
    channel = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    c = a.c0 + a.c1;
    live = channel < c;
    second = channel >= a.c0;
    own_c = second ? a.c1 : a.c0;
    own_channel = second ? channel - a.c0 : channel;
    x = static_cast<const T*>(second ? a.x1 : a.x0);
    if (!live) return;
    const float* scales = a.coefficients + (size_t)image * c + channel;
    const float* shifts = scales + (size_t)a.n * c;
#pragma unroll
    for (int i = 0; i < V; i++) scale[i] = scales[i], shift[i] = shifts[i];
  }
  // First element of a pixel of the input that the channels lie in, and of one with all channels.
  __device__ __forceinline__ size_t own_at(const GroupNormArgs& a, uint32_t pixel) const {
    return ((size_t)image * a.pixels + pixel) * own_c + own_channel;
  }
  __device__ __forceinline__ size_t at(const GroupNormArgs& a, uint32_t pixel) const {
    return ((size_t)image * a.pixels + pixel) * c + channel;
  }
  // Two numbers of the channels' groups, of a table [n, groups, 2].
  __device__ __forceinline__ void of_groups(const GroupNormArgs& a, const float* table, float (&first)[V], float (&second_of)[V]) const {
    const uint32_t width = c / a.groups;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float* pair = table + 2 * ((size_t)image * a.groups + (channel + i) / width);
      first[i] = pair[0], second_of[i] = pair[1];
    }
  }
  __device__ __forceinline__ const float* moments(const GroupNormArgs& a) const { return a.coefficients + (size_t)2 * a.n * c; }
};

// Calls `body` for every pixel of this thread: GROUP_NORM_UNITS of them, blockDim.y apart.
template <class Body> static __device__ __forceinline__ void for_each_pixel(const GroupNormArgs& a, Body body) {
  const uint32_t first = blockIdx.x % a.tiles * GROUP_NORM_UNITS * blockDim.y + threadIdx.y;
#pragma unroll 1
  for (uint32_t unit = 0; unit < GROUP_NORM_UNITS; unit++) {
    const uint32_t pixel = first + unit * blockDim.y;
    if (pixel >= a.pixels) break;
    body(pixel);
  }
}

// Dropout of V neighbouring elements, `e` the first within its image: zeros, or 1 / (1 - p). The numbers of a Philox block serve four
// elements, so that forward and backward, and any V, see the same.
template <int V>
static __device__ __forceinline__ void dropped(const GroupNormArgs& a, uint32_t step, uint32_t image, uint32_t e, float (&v)[V]) {
  static_assert(V == 1 || V % 4 == 0, "whole Philox blocks, or one element");
#pragma unroll
  for (int i = 0; i < (V + 3) / 4; i++) {
    const PhiloxBlock words = philox4x32(e / 4 + i, a.first_image + image, step, a.purpose, a.seed_low, a.seed_high);
    if constexpr (V == 1) {
      const uint32_t low = e & 1 ? words.w[1] : words.w[0], high = e & 1 ? words.w[3] : words.w[2];
      v[0] *= uniform_of(e & 2 ? high : low) >= a.p ? a.kept : 0.0f;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) v[4 * i + j] *= uniform_of(words.w[j]) >= a.p ? a.kept : 0.0f;
    }
  }
}
