// conv_epilogue.cuh: from the sums of a tile in shared memory to the outputs and their statistics; see conv.cu for the mathematics.
//
// Sums pass through shared memory so that a thread holds neighbouring channels of one pixel: every global access of the epilogue is
// then one unit of 16 bytes, and a warp's accesses are contiguous.
#pragma once
#include "conv_tile.cuh"

// Floats between the rows of a tile's results.
template <int N> static constexpr int RESULT_PITCH = N + CONV_RESULT_PAD;

// The epilogue of `results` [M][N + pad]: channels first_k .. first_k + N of the pixels `where`, V channels at a time. A thread keeps its
// channels and goes through the pixels. Where there are statistics, what was stored replaces the sums in `results`.
template <class T, int V, int M, int N, int THREADS>
static __device__ __forceinline__ void finish_outputs(const ConvArgs& a, const int2* where, int first_k, float* results) {
  const int groups = min(N, (int)a.k - first_k) / V;  // of V channels
  int log_lanes = 0;                                  // threads of a pixel
  while (1 << log_lanes < groups) log_lanes++;
  const int group = threadIdx.x & ((1 << log_lanes) - 1), channel = first_k + group * V;
  if (group >= groups) return;  // no barrier in this function
  const bool second = channel >= (int)a.k0;
  const int stride = (int)(second ? a.k - a.k0 : a.k0), offset = second ? channel - (int)a.k0 : channel;
  const T* h = static_cast<const T*>(a.h);
  const T* v = static_cast<const T*>(second ? a.v1 : a.v0);
  const T* add = static_cast<const T*>(second ? a.add1 : a.add0);
  T* y = static_cast<T*>(second ? a.y1 : a.y0);
  float bias[V], slope[V], shift[V];
  int known = -1;  // the row that the bias is of; pixels come image by image
#pragma unroll
  for (int j = 0; j < V; j++) {
    slope[j] = a.a ? __ldg(a.a + channel + j) : 0.0f;
    shift[j] = a.a ? __ldg(a.b + channel + j) : 0.0f;
  }
#pragma unroll 1
  for (int p = threadIdx.x >> log_lanes; p < M; p += THREADS >> log_lanes) {
    const int2 at = where[p];
    const int pixel = at.x, row = a.bias_images != 0 ? at.y : 0;
    if (pixel < 0) continue;
    float* result = results + p * RESULT_PITCH<N> + group * V;
    if (row != known) {
      known = row;
      const float* main = row_of(a.bias, a.bias_images & 1 ? row : 0, (int)a.k) + channel;
      const float* residual = row_of(a.bias_res, a.bias_images & 2 ? row : 0, (int)a.k) + channel;
#pragma unroll
      for (int j = 0; j < V; j++) bias[j] = (a.bias ? __ldg(main + j) : 0.0f) + (a.bias_res ? __ldg(residual + j) : 0.0f);
    }
    float u[V], t[V];
#pragma unroll
    for (int j = 0; j < V; j++) u[j] = result[j] + bias[j];
    if (h) {
      load_elements<V>(row_of(h, pixel, (int)a.k) + channel, V > 1, t);
#pragma unroll
      for (int j = 0; j < V; j++) u[j] *= silu_slope<T>(t[j]);
    }
    if (v) {
      load_elements<V>(row_of(v, pixel, stride) + offset, V > 1, t);
#pragma unroll
      for (int j = 0; j < V; j++) u[j] += fmaf(slope[j], t[j], shift[j]);
    }
    if (add) {
      load_elements<V>(row_of(add, pixel, stride) + offset, V > 1, t);
#pragma unroll
      for (int j = 0; j < V; j++) u[j] += t[j];
    }
    T* out = row_of(y, pixel, stride) + offset;
    if constexpr (V > 1) {
      const uint4 packed = pack(u);
      __stcg(reinterpret_cast<uint4*>(out), packed);
      unpack(packed, u);
    } else {
      const T rounded = from_float<T>(u[0]);
      *out = rounded;
      u[0] = to_float(rounded);
    }
    if (a.stats) {
#pragma unroll
      for (int j = 0; j < V; j++) result[j] = u[j];
    }
  }
}

// Mean and sum of squared deviations per (image, channel) over the tile's pixels of that image, in two passes over shared memory.
// A thread belongs to one channel; the threads of a channel share the images, or each image's pixels, so that the order of the sums
// depends on the tile's geometry alone. `sums`: 2 x [CONV_STAT_SLOTS][N].
template <int M, int N, int THREADS>
static __device__ __forceinline__ void tile_statistics(const ConvArgs& a, const Tile& tile, const int2* where, int first_k,
                                                       const float* results, float* sums) {
  constexpr int PARTS = THREADS / N;  // threads of a channel
  static_assert(PARTS >= 1 && PARTS <= CONV_STAT_SLOTS && THREADS % N == 0, "slots hold one partial sum per thread of a channel");
  const int local = threadIdx.x % N, part = threadIdx.x / N;
  // 2^log_share threads share an image where there are more threads than images.
  const int log_images = LOG2<M> - (int)(a.log_rows + a.log_cols), log_share = max(0, LOG2<PARTS> - log_images);
  const int share = 1 << log_share, first_image = part >> log_share, sub = part & (share - 1), step = PARTS >> log_share;
  const int images = first_k + local < (int)a.k ? tile.images : 0;  // none for a channel beyond the last
  const int pixels = tile.rows * tile.cols;
  const int rows = min(tile.rows, (int)a.height - tile.y), cols = min(tile.cols, (int)a.width - tile.x);
  const float count = (float)(rows * cols);
  float* deviations = sums + CONV_STAT_SLOTS * N;
  for (int image = first_image; image < images; image += step) {
    float sum = 0.0f;
    for (int p = image * pixels + sub; p < (image + 1) * pixels; p += share)
      if (where[p].x >= 0) sum += results[p * RESULT_PITCH<N> + local];
    sums[(image * share + sub) * N + local] = sum;
  }
  __syncthreads();  // all parts of the sums are there
  for (int image = first_image; image < images; image += step) {
    float mean = 0.0f, m2 = 0.0f;
    for (int i = 0; i < share; i++) mean += sums[(image * share + i) * N + local];
    mean /= count;
    for (int p = image * pixels + sub; p < (image + 1) * pixels; p += share) {
      if (where[p].x < 0) continue;
      const float d = results[p * RESULT_PITCH<N> + local] - mean;
      m2 = fmaf(d, d, m2);
    }
    deviations[(image * share + sub) * N + local] = m2;
  }
  __syncthreads();  // all parts of the deviations are there
  if (sub != 0) return;  // no barrier follows
  const uint32_t tiles = a.tiles_x * a.tiles_y;
  const uint32_t place = (uint32_t)(tile.y >> a.log_rows) * a.tiles_x + (uint32_t)(tile.x >> a.log_cols);
  for (int image = first_image; image < images && tile.image + image < (int)a.n; image += step) {
    float mean = 0.0f, m2 = 0.0f;
    for (int i = 0; i < share; i++) {
      mean += sums[(image * share + i) * N + local];
      m2 += deviations[(image * share + i) * N + local];
    }
    float* out = a.stats + (((size_t)(tile.image + image) * tiles + place) * a.k + first_k + local) * 2;
    out[0] = mean / count;
    out[1] = m2;
  }
}

// Everything after the sums. `results` and `sums` as above; the caller has put a barrier between writing `results` and this.
template <class T, int M, int N, int THREADS>
static __device__ __forceinline__ void write_tile(const ConvArgs& a, const Tile& tile, const int2* where, int first_k,
                                                  float* results, float* sums) {
  constexpr int V = VECTOR<T>;
  const bool vector = a.k % V == 0 && a.k0 % V == 0 && aligned16(a.y0) && aligned16(a.y1) && aligned16(a.h) && aligned16(a.v0) &&
                      aligned16(a.v1) && aligned16(a.add0) && aligned16(a.add1);
  if (vector) {
    finish_outputs<T, V, M, N, THREADS>(a, where, first_k, results);
  } else {
    finish_outputs<T, 1, M, N, THREADS>(a, where, first_k, results);
  }
  if (a.stats) {  // uniform
    __syncthreads();  // what was stored is in `results`
    tile_statistics<M, N, THREADS>(a, tile, where, first_k, results, sums);
  }
}
