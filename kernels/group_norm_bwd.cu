// group_norm_bwd.cu: gradients of group norm.
//
// math   with d = drop(g) silu'(u), u = scale x + shift, xhat = r (x - m), per image and channel A = sum d, B = sum d xhat, E = sum xhat:
//          a = sum_c gamma (1+s) A / M        b = sum_c gamma (1+s) B / M        over the group's channels, M = w P
//          dx = scale d - r a - r b xhat + gradients of other uses        ds = gamma B + beta A        dt = A
//          sums = scale A - r a P - r b E        dgamma += sum_n (1+s) B        dbeta += sum_n (1+s) A
// shapes as group_norm.cu; g [N, P, C]; partials [N, tiles, 3, C], means [N, G, 2], channel sums [N, 4, C] float.
// map    `sums`: threads as in the application; rows of a block, then tiles of an image are added in order. `groups`: a warp for a group of an
//        image adds the tiles and makes everything but dx, dgamma and dbeta; `params`: a thread a channel goes through the images. `dx`:
//        as the application.
// num    a thread's sums of at most 8 pixels and a block's in float, tiles and all that follows in double; dx in float, rounded once.
//        No atomics: bit for bit repeatable, in an order that depends on the extents alone.
// bytes  x and g twice, dx once, the other gradients once: 5 elements of each place where 3 are the least (the sums must be known before
//        the first dx); an image's x and g of the second pass come from L2 where a wave of blocks fits there. Partials: 12 bytes
//        a tile and channel written and read.
// ref    src/ops/group_norm/reference.rs; tests/gpu_group_norm.rs
// limit  P C below 2^32.
#include "group_norm.cuh"
#include "reduce.cuh"

// Bytes of shared memory of `sums`: three sums of V channels for each thread.
static constexpr int GROUP_NORM_SUMS_BYTES = 24576;  // rust
static_assert(GROUP_NORM_SUMS_BYTES == GROUP_NORM_THREADS * 3 * 8 * (int)sizeof(float), "three sums of 8 channels");

// d of V channels at a pixel: `g` becomes it.
template <class T, int V>
static __device__ __forceinline__ void through_silu(const GroupNormArgs& a, const NormChannels<T, V>& channels, uint32_t step, uint32_t pixel,
                                                    const float (&x)[V], float (&g)[V]) {
  if (a.step) dropped(a, step, channels.image, pixel * channels.c + channels.channel, g);
  if (!a.silu) return;
#pragma unroll
  for (int i = 0; i < V; i++) g[i] *= silu_slope<T>(fmaf(channels.scale[i], x[i], channels.shift[i]));
}

template <class T, int V> static __device__ __forceinline__ void group_norm_sums(const GroupNormArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* shared = reinterpret_cast<float*>(smem);  // [rows][3][columns V]
  const NormChannels<T, V> channels(a);
  float sum[3][V] = {};
  if (channels.live) {
    const T* g = static_cast<const T*>(a.g);
    const uint32_t step = a.step ? *a.step : 0;
    float mean[V], r[V];
    channels.of_groups(a, channels.moments(a), mean, r);
    for_each_pixel(a, [&](uint32_t pixel) {
      float x[V], d[V];
      load(channels.x + channels.own_at(a, pixel), x), load(g + channels.at(a, pixel), d);
      through_silu(a, channels, step, pixel, x, d);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const float centred = x[i] - mean[i];
        sum[0][i] += d[i], sum[1][i] = fmaf(d[i], centred, sum[1][i]), sum[2][i] += centred;
      }
    });
  }
  const uint32_t columns = blockDim.x * V, row_floats = 3 * columns;
#pragma unroll
  for (int which = 0; which < 3; which++)
#pragma unroll
    for (int i = 0; i < V; i++) shared[threadIdx.y * row_floats + which * columns + threadIdx.x * V + i] = sum[which][i];
  __syncthreads();
  const uint32_t first = blockIdx.y * columns, threads = blockDim.x * blockDim.y;
  for (uint32_t i = threadIdx.y * blockDim.x + threadIdx.x; i < row_floats; i += threads) {
    const uint32_t which = i / columns, channel = first + i % columns;
    if (channel >= channels.c) continue;
    float total = 0.0f;
    for (uint32_t row = 0; row < blockDim.y; row++) total += shared[row * row_floats + i];
    a.partials[((size_t)blockIdx.x * 3 + which) * channels.c + channel] = total;
  }
}

struct GroupNormGroupsArgs {
  const float* partials;      // [n, tiles, 3, c]
  const float* coefficients;  // as GroupNormArgs
  const float* gamma;         // [c]
  const float* beta;          // [c]
  const float* modulation;    // [n, 2 c], or null
  float* channel_sums;        // [n, 4, c]: (1+s) B, (1+s) A, A, E
  float* means;               // [n, groups, 2]: r a, r r b
  float* dmodulation;         // [n, 2 c], or null
  float* sums;                // [n, c], or null
  float* dgamma;              // [c], accumulates
  float* dbeta;               // [c], accumulates
  uint32_t n, pixels, c, groups, tiles, unused;
};
static_assert(sizeof(GroupNormGroupsArgs) == 112, "GroupNormGroupsArgs is mirrored in src/ops/group_norm/gpu.rs");

extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS) group_norm_bwd_groups_f32(const __grid_constant__ GroupNormGroupsArgs a) {
  const uint32_t place = blockIdx.x * (GROUP_NORM_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (place >= a.n * a.groups) return;  // a whole warp; no barrier follows
  const uint32_t image = place / a.groups, width = a.c / a.groups, first = place % a.groups * width;
  const double r = a.coefficients[(size_t)2 * a.n * a.c + 2 * (size_t)place + 1];
  float* rows = a.channel_sums + (size_t)image * 4 * a.c;
  double of_a = 0.0, of_b = 0.0;
  for (uint32_t i = lane; i < width; i += 32) {
    const uint32_t channel = first + i;
    const float* part = a.partials + (size_t)image * a.tiles * 3 * a.c + channel;
    double sum_a = 0.0, sum_b = 0.0, sum_e = 0.0;
    for (uint32_t tile = 0; tile < a.tiles; tile++, part += (size_t)3 * a.c) {
      sum_a += part[0], sum_b += part[a.c], sum_e += part[2 * (size_t)a.c];
    }
    sum_b *= r, sum_e *= r;
    const double gamma = a.gamma[channel], one = a.modulation ? 1.0 + a.modulation[(size_t)image * 2 * a.c + channel] : 1.0;
    rows[channel] = (float)(one * sum_b), rows[a.c + channel] = (float)(one * sum_a);
    rows[2 * (size_t)a.c + channel] = (float)sum_a, rows[3 * (size_t)a.c + channel] = (float)sum_e;
    of_a += gamma * one * sum_a, of_b += gamma * one * sum_b;
    if (a.dmodulation) {
      float* row = a.dmodulation + (size_t)image * 2 * a.c + channel;
      row[0] = (float)(gamma * sum_b + a.beta[channel] * sum_a), row[a.c] = (float)sum_a;
    }
  }
  const double count = (double)width * a.pixels, mean_a = sum_warp(of_a) / count, mean_b = sum_warp(of_b) / count;
  if (lane == 0) {
    a.means[2 * (size_t)place] = (float)(r * mean_a);
    a.means[2 * (size_t)place + 1] = (float)(r * r * mean_b);
  }
  if (!a.sums) return;
  // Of what this same lane wrote.
  for (uint32_t i = lane; i < width; i += 32) {
    const uint32_t channel = first + i;
    const double scale = a.coefficients[(size_t)image * a.c + channel];
    const double sum_a = rows[2 * (size_t)a.c + channel], sum_e = rows[3 * (size_t)a.c + channel];
    a.sums[(size_t)image * a.c + channel] = (float)(scale * sum_a - r * mean_a * a.pixels - r * mean_b * sum_e);
  }
}

extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS) group_norm_bwd_params_f32(const __grid_constant__ GroupNormGroupsArgs a) {
  const uint32_t channel = blockIdx.x * GROUP_NORM_THREADS + threadIdx.x;
  if (channel >= a.c) return;
  const float* row = a.channel_sums + channel;
  double gamma = 0.0, beta = 0.0;
  for (uint32_t image = 0; image < a.n; image++, row += (size_t)4 * a.c) gamma += row[0], beta += row[a.c];
  a.dgamma[channel] += (float)gamma;
  a.dbeta[channel] += (float)beta;
}

template <class T, int V> static __device__ __forceinline__ void group_norm_dx(const GroupNormArgs& a) {
  const NormChannels<T, V> channels(a);
  if (!channels.live) return;
  const T* g = static_cast<const T*>(a.g);
  const T* first = static_cast<const T*>(channels.second ? a.to1 : a.to0_first);
  const T* second = static_cast<const T*>(channels.second ? nullptr : a.to0_second);
  T* dx = static_cast<T*>(channels.second ? a.out1 : a.out0);
  const uint32_t step = a.step ? *a.step : 0;
  float mean[V], r[V], ra[V], rrb[V];
  channels.of_groups(a, channels.moments(a), mean, r);
  channels.of_groups(a, a.means, ra, rrb);
  for_each_pixel(a, [&](uint32_t pixel) {
    const size_t own = channels.own_at(a, pixel);
    float x[V], d[V];
    load(channels.x + own, x), load(g + channels.at(a, pixel), d);
    through_silu(a, channels, step, pixel, x, d);
#pragma unroll
    for (int i = 0; i < V; i++) d[i] = fmaf(channels.scale[i], d[i], -fmaf(rrb[i], x[i] - mean[i], ra[i]));
    if (first) {
      load(first + own, x);
#pragma unroll
      for (int i = 0; i < V; i++) d[i] += x[i];
    }
    if (second) {
      load(second + own, x);
#pragma unroll
      for (int i = 0; i < V; i++) d[i] += x[i];
    }
    store(dx + own, d);
  });
}

extern "C" __global__ void __launch_bounds__(256) group_norm_bwd_sums_f32(const __grid_constant__ GroupNormArgs a) {
  a.vector ? group_norm_sums<float, 4>(a) : group_norm_sums<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_bwd_sums_bf16(const __grid_constant__ GroupNormArgs a) {
  a.vector ? group_norm_sums<__nv_bfloat16, 8>(a) : group_norm_sums<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_bwd_dx_f32(const __grid_constant__ GroupNormArgs a) {
  a.vector ? group_norm_dx<float, 4>(a) : group_norm_dx<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) group_norm_bwd_dx_bf16(const __grid_constant__ GroupNormArgs a) {
  a.vector ? group_norm_dx<__nv_bfloat16, 8>(a) : group_norm_dx<__nv_bfloat16, 1>(a);
}
