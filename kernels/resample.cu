// resample.cu: 2x2 average pooling, bilinear upsampling by 2, doubling of pixels and keeping of every fourth, forward and backward, and
// the merge of their statistics.
//
// math   With x of the large side, y of the small side, channel by channel:
//          pool forward       y[i,j]        = (x[2i,2j] + x[2i,2j+1] + x[2i+1,2j] + x[2i+1,2j+1]) / 4
//          pool backward      dx[2i+a,2j+b] = dy[i,j] / 4 + add[2i+a,2j+b]      (add: gradient of the tensor's other use, optional)
//        Upsampling in one dimension, with the index of x clamped to the picture; in two dimensions the product of both:
//          forward            y[2i] = x[i-1]/4 + 3 x[i]/4        y[2i+1] = 3 x[i]/4 + x[i+1]/4
//          backward           dx[i] = dy[2i-1]/4 + 3 dy[2i]/4 + 3 dy[2i+1]/4 + dy[2i+2]/4
//        The backward clamps the index of dy likewise: what the forward's clamp sent to the border comes back to it.
//        Doubling and keeping, o = 0 or 1:
//          double             y[2i+a,2j+b] = x[i,j]         dx[i,j] = sum of dy[2i+a,2j+b] + add[i,j]
//          keep               y[i,j] = x[2i+o,2j+o]         dx[2i+o,2j+o] = dy[i,j], 0 elsewhere
//        Statistics of a forward's output, per image and channel: mean, and sum of squared deviations from it.
// shape  small side [N, h, w, C], large side [N, 2h, 2w, C], NHWC; statistics [N, C, 2].
// map    A thread makes, of V neighbouring channels, four pixels of the small side (or reads them) and the four times as many of the
//        large side that belong to them. threadIdx.x counts channel groups, so that neighbours are contiguous; threadIdx.y pixels.
//        Blocks: x = image and tile of RESAMPLE_UNITS * blockDim.y small pixels, y = channels. 64x64x32 at batch 64 in bfloat16: 256
//        blocks of 256 threads. V is 16 bytes where the channels and all addresses allow it, else 1; views may begin anywhere.
// num    Sums in float, each result rounded once. Statistics are those of the rounded results: Chan's merge within a thread, then over
//        the threads of a block, then over tiles, in an order that depends on the extents alone.
// bytes  a thread's large pixels once and its small pixels once from DRAM; upsampling reads every element of its input nine times
//        (forward) or four times (backward), all but one of them from L1. With statistics: 8 bytes per tile and channel besides.
// ref    src/ops/pool/reference.rs, src/ops/upsample/reference.rs, src/ops/resize/reference.rs; tests/gpu_norm.rs, tests/gpu_unet_ops.rs
// limits N h w below 2^32; blocks of at most RESAMPLE_THREADS threads.
#include "elements.cuh"
#include "reduce.cuh"

static constexpr int RESAMPLE_THREADS = 256;         // rust
static constexpr int RESAMPLE_UNITS = 4;             // rust
static constexpr int RESAMPLE_SHARED_BYTES = 17408;  // rust
static_assert(RESAMPLE_SHARED_BYTES == RESAMPLE_THREADS * MOMENTS_FLOATS<8> * (int)sizeof(float), "room of merge_rows");

struct ResampleArgs {
  const void* x;    // what is read
  const void* add;  // gradient to add, or null
  void* y;          // what is written
  float* partials;  // [N, tiles, C, 2], or null
  uint32_t h, w;    // extents of the small side
  uint32_t c;
  uint32_t tiles;   // of an image
  uint32_t vector;  // 16 bytes at once
  uint32_t offset;  // o of keeping
};
static_assert(sizeof(ResampleArgs) == 56, "ResampleArgs is mirrored in src/ops/pool/gpu.rs");

struct MergeStatsArgs {
  const float* partials;  // [N, tiles, C, 2]
  float* stats;           // [N, C, 2]
  uint32_t n, c, tiles;
  uint32_t tile_values;   // numbers per channel behind every tile but the last
  uint32_t values;        // numbers per channel of an image
  uint32_t unused;
};
static_assert(sizeof(MergeStatsArgs) == 40, "MergeStatsArgs is mirrored in src/ops/pool/gpu.rs");

// Where a thread works: a small pixel, and the first of its channels.
struct Place {
  uint32_t image, row, column, channel;
};

// Element of the small side.
static __device__ __forceinline__ size_t small_at(const ResampleArgs& a, const Place& p, uint32_t row, uint32_t column) {
  return ((size_t)(p.image * a.h + row) * a.w + column) * a.c + p.channel;
}
// Element of the large side.
static __device__ __forceinline__ size_t large_at(const ResampleArgs& a, const Place& p, uint32_t row, uint32_t column) {
  return ((size_t)(p.image * 2 * a.h + row) * 2 * a.w + column) * a.c + p.channel;
}
static __device__ __forceinline__ uint32_t before(uint32_t i) { return i > 0 ? i - 1 : 0; }
static __device__ __forceinline__ uint32_t after(uint32_t i, uint32_t len) { return i + 1 < len ? i + 1 : len - 1; }

template <int V> static __device__ __forceinline__ uint32_t first_channel() {
  return (blockIdx.y * blockDim.x + threadIdx.x) * V;
}

// Calls `body` for every small pixel of this thread.
template <int V, class Body> static __device__ __forceinline__ void for_each_place(const ResampleArgs& a, Body body) {
  const uint32_t image = blockIdx.x / a.tiles, tile = blockIdx.x % a.tiles, channel = first_channel<V>();
  if (channel >= a.c) return;
#pragma unroll 1
  for (uint32_t unit = 0; unit < RESAMPLE_UNITS; unit++) {
    const uint32_t pixel = (tile * RESAMPLE_UNITS + unit) * blockDim.y + threadIdx.y;
    if (pixel >= a.h * a.w) break;
    body(Place{image, pixel / a.w, pixel % a.w, channel});
  }
}

// Merges the block's moments and writes them as its tile's.
template <int V> static __device__ __forceinline__ void write_partials(const ResampleArgs& a, Moments<V>& moments) {
  extern __shared__ __align__(128) unsigned char smem[];
  merge_rows(moments, reinterpret_cast<float*>(smem));
  const uint32_t channel = first_channel<V>();
  if (threadIdx.y > 0 || channel >= a.c) return;
  float* out = a.partials + ((size_t)blockIdx.x * a.c + channel) * 2;
#pragma unroll
  for (int i = 0; i < V; i++) {
    out[2 * i] = moments.mean[i];
    out[2 * i + 1] = moments.m2[i];
  }
}

template <class T, int V> static __device__ __forceinline__ void pool_forward(const ResampleArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  Moments<V> moments;
  for_each_place<V>(a, [&](const Place& p) {
    const T* top = x + large_at(a, p, 2 * p.row, 2 * p.column);
    const T* bottom = top + (size_t)2 * a.w * a.c;
    float t0[V], t1[V], b0[V], b1[V], mean[V];
    load(top, t0), load(top + a.c, t1), load(bottom, b0), load(bottom + a.c, b1);
#pragma unroll
    for (int i = 0; i < V; i++) mean[i] = ((t0[i] + t1[i]) + (b0[i] + b1[i])) * 0.25f;
    store(y + small_at(a, p, p.row, p.column), mean);
    if (a.partials) moments.add(mean);
  });
  if (a.partials) write_partials(a, moments);
}

template <class T, int V> static __device__ __forceinline__ void pool_backward(const ResampleArgs& a) {
  const T* dy = static_cast<const T*>(a.x);
  const T* add = static_cast<const T*>(a.add);
  T* dx = static_cast<T*>(a.y);
  for_each_place<V>(a, [&](const Place& p) {
    float quarter[V];
    load(dy + small_at(a, p, p.row, p.column), quarter);
#pragma unroll
    for (int i = 0; i < V; i++) quarter[i] *= 0.25f;
#pragma unroll
    for (uint32_t corner = 0; corner < 4; corner++) {
      const size_t at = large_at(a, p, 2 * p.row + corner / 2, 2 * p.column + corner % 2);
      float v[V] = {};
      if (add) load(add + at, v);
#pragma unroll
      for (int i = 0; i < V; i++) v[i] += quarter[i];
      store(dx + at, v);
    }
  });
}

template <class T, int V> static __device__ __forceinline__ void upsample_forward(const ResampleArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  Moments<V> moments;
  for_each_place<V>(a, [&](const Place& p) {
    const uint32_t rows[3] = {before(p.row), p.row, after(p.row, a.h)};
    const uint32_t columns[3] = {before(p.column), p.column, after(p.column, a.w)};
    // Down the columns: two rows of the large side at each of three columns of the small one.
    float upper[3][V], lower[3][V];
#pragma unroll
    for (int j = 0; j < 3; j++) {
      float above[V], here[V], below[V];
      load(x + small_at(a, p, rows[0], columns[j]), above);
      load(x + small_at(a, p, rows[1], columns[j]), here);
      load(x + small_at(a, p, rows[2], columns[j]), below);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const float near = 0.75f * here[i];
        upper[j][i] = fmaf(0.25f, above[i], near);
        lower[j][i] = fmaf(0.25f, below[i], near);
      }
    }
    // Then along the rows.
    float v00[V], v01[V], v10[V], v11[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float near_upper = 0.75f * upper[1][i], near_lower = 0.75f * lower[1][i];
      v00[i] = fmaf(0.25f, upper[0][i], near_upper), v01[i] = fmaf(0.25f, upper[2][i], near_upper);
      v10[i] = fmaf(0.25f, lower[0][i], near_lower), v11[i] = fmaf(0.25f, lower[2][i], near_lower);
    }
    T* top = y + large_at(a, p, 2 * p.row, 2 * p.column);
    T* bottom = top + (size_t)2 * a.w * a.c;
    store(top, v00), store(top + a.c, v01), store(bottom, v10), store(bottom + a.c, v11);
    if (a.partials) moments.add(v00, v01, v10, v11);
  });
  if (a.partials) write_partials(a, moments);
}

template <class T, int V> static __device__ __forceinline__ void upsample_backward(const ResampleArgs& a) {
  const T* dy = static_cast<const T*>(a.x);
  T* dx = static_cast<T*>(a.y);
  for_each_place<V>(a, [&](const Place& p) {
    const uint32_t i = 2 * p.row, j = 2 * p.column;
    const uint32_t rows[4] = {before(i), i, i + 1, after(i + 1, 2 * a.h)};
    const uint32_t columns[4] = {before(j), j, j + 1, after(j + 1, 2 * a.w)};
    float sum[V] = {};
#pragma unroll
    for (int column = 0; column < 4; column++) {
      float v[4][V];
#pragma unroll
      for (int row = 0; row < 4; row++) load(dy + large_at(a, p, rows[row], columns[column]), v[row]);
      const float weight = column == 0 || column == 3 ? 0.25f : 0.75f;
#pragma unroll
      for (int i = 0; i < V; i++) {
        sum[i] = fmaf(weight, fmaf(0.25f, v[0][i] + v[3][i], 0.75f * (v[1][i] + v[2][i])), sum[i]);
      }
    }
    store(dx + small_at(a, p, p.row, p.column), sum);
  });
}

template <class T, int V> static __device__ __forceinline__ void double_forward(const ResampleArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  Moments<V> moments;
  for_each_place<V>(a, [&](const Place& p) {
    float v[V];
    load(x + small_at(a, p, p.row, p.column), v);
#pragma unroll
    for (uint32_t corner = 0; corner < 4; corner++) store(y + large_at(a, p, 2 * p.row + corner / 2, 2 * p.column + corner % 2), v);
    const float zeros[V] = {};
    if (a.partials) moments.merge(4.0f, v, zeros);
  });
  if (a.partials) write_partials(a, moments);
}

template <class T, int V> static __device__ __forceinline__ void double_backward(const ResampleArgs& a) {
  const T* dy = static_cast<const T*>(a.x);
  const T* add = static_cast<const T*>(a.add);
  T* dx = static_cast<T*>(a.y);
  for_each_place<V>(a, [&](const Place& p) {
    const T* top = dy + large_at(a, p, 2 * p.row, 2 * p.column);
    const T* bottom = top + (size_t)2 * a.w * a.c;
    float t0[V], t1[V], b0[V], b1[V], sum[V] = {};
    load(top, t0), load(top + a.c, t1), load(bottom, b0), load(bottom + a.c, b1);
    if (add) load(add + small_at(a, p, p.row, p.column), sum);
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] += (t0[i] + t1[i]) + (b0[i] + b1[i]);
    store(dx + small_at(a, p, p.row, p.column), sum);
  });
}

template <class T, int V> static __device__ __forceinline__ void keep_forward(const ResampleArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  Moments<V> moments;
  for_each_place<V>(a, [&](const Place& p) {
    float v[V];
    load(x + large_at(a, p, 2 * p.row + a.offset, 2 * p.column + a.offset), v);
    store(y + small_at(a, p, p.row, p.column), v);
    if (a.partials) moments.add(v);
  });
  if (a.partials) write_partials(a, moments);
}

template <class T, int V> static __device__ __forceinline__ void keep_backward(const ResampleArgs& a) {
  const T* dy = static_cast<const T*>(a.x);
  T* dx = static_cast<T*>(a.y);
  for_each_place<V>(a, [&](const Place& p) {
    float v[V], zeros[V] = {};
    load(dy + small_at(a, p, p.row, p.column), v);
#pragma unroll
    for (uint32_t corner = 0; corner < 4; corner++) {
      T* to = dx + large_at(a, p, 2 * p.row + corner / 2, 2 * p.column + corner % 2);
      corner == 3 * a.offset ? store(to, v) : store(to, zeros);
    }
  });
}

extern "C" __global__ void __launch_bounds__(256) avg_pool_fwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? pool_forward<float, 4>(a) : pool_forward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) avg_pool_fwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? pool_forward<__nv_bfloat16, 8>(a) : pool_forward<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) avg_pool_bwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? pool_backward<float, 4>(a) : pool_backward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) avg_pool_bwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? pool_backward<__nv_bfloat16, 8>(a) : pool_backward<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) upsample_fwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? upsample_forward<float, 4>(a) : upsample_forward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) upsample_fwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? upsample_forward<__nv_bfloat16, 8>(a) : upsample_forward<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) upsample_bwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? upsample_backward<float, 4>(a) : upsample_backward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256, 3) upsample_bwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? upsample_backward<__nv_bfloat16, 8>(a) : upsample_backward<__nv_bfloat16, 1>(a);
}

extern "C" __global__ void __launch_bounds__(256) resize_double_fwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? double_forward<float, 4>(a) : double_forward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_double_fwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? double_forward<__nv_bfloat16, 8>(a) : double_forward<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_double_bwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? double_backward<float, 4>(a) : double_backward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_double_bwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? double_backward<__nv_bfloat16, 8>(a) : double_backward<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_keep_fwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? keep_forward<float, 4>(a) : keep_forward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_keep_fwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? keep_forward<__nv_bfloat16, 8>(a) : keep_forward<__nv_bfloat16, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_keep_bwd_f32(const __grid_constant__ ResampleArgs a) {
  a.vector ? keep_backward<float, 4>(a) : keep_backward<float, 1>(a);
}
extern "C" __global__ void __launch_bounds__(256) resize_keep_bwd_bf16(const __grid_constant__ ResampleArgs a) {
  a.vector ? keep_backward<__nv_bfloat16, 8>(a) : keep_backward<__nv_bfloat16, 1>(a);
}

// Statistics of images from those of their tiles: a thread for an image and channel, tiles in order.
extern "C" __global__ void __launch_bounds__(256) resample_merge_stats_f32(const __grid_constant__ MergeStatsArgs a) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= a.n * a.c) return;
  const float* part = a.partials + ((size_t)(index / a.c) * a.tiles * a.c + index % a.c) * 2;
  Moments<1> moments;
  for (uint32_t tile = 0; tile < a.tiles; tile++, part += (size_t)a.c * 2) {
    const float mean[1] = {part[0]}, m2[1] = {part[1]};
    moments.merge((float)min(a.tile_values, a.values - tile * a.tile_values), mean, m2);
  }
  a.stats[2 * (size_t)index] = moments.mean[0];
  a.stats[2 * (size_t)index + 1] = moments.m2[0];
}
