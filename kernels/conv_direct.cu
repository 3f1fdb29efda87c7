// conv_direct.cu: the convolution of conv.cu in plain multiply-adds, for any channels; and the merge of its statistics.
//
// math   as conv.cu.
// use    layers with fewer than 8 input or output channels (the stem and the head), where tensor cores have nothing to do, and
//        mixtures of element types: the network's input, its prediction and that one's gradient are float32 also where
//        activations are bfloat16. It reads the same packed filter and serves as the tensor cores' oracle.
// map    a block makes 128 pixels by 32 output channels; a thread, one pixel by four channels at a time. Neighbouring threads are
//        neighbouring pixels of the same channels, so the filter's loads are broadcasts.
// num    float32 throughout; the filter is in the type that it was packed in. The prologue is applied anew for every tap.
// ref    src/ops/conv/reference.rs; tests/gpu_conv.rs
#include "conv_epilogue.cuh"

static constexpr int CONV_DIRECT_PIXELS = 128;    // rust
static constexpr int CONV_DIRECT_CHANNELS = 32;  // rust
static constexpr int CONV_DIRECT_THREADS = 128;  // rust
static_assert(CONV_DIRECT_CHANNELS == CONV_PACK_CHANNELS, "a block reads one pack");

// Adds one tap of an operand: sum over its channels of z[row, c] w[c, k], for four k. `w`: the tap of the first chunk, of this thread's
// first output channel; `chunk_bytes`: from a chunk to the next.
template <class TI, class TW>
static __device__ __forceinline__ void add_tap(float (&acc)[4], const Source<TI>& s, int pixel, int image, const unsigned char* w,
                                               size_t chunk_bytes) {
  constexpr int E = VECTOR<TW>;
  // Unit c / E of the filter for the first of the four output channels; the others follow it.
  auto row = [&](int c) {
    const int unit = c / E;
    return w + unit / CONV_CHUNK_UNITS * chunk_bytes + unit % CONV_CHUNK_UNITS * CONV_PACK_CHANNELS * CONV_UNIT_BYTES;
  };
  // A unit of the filter may be two of the input: they lie in one tensor where the border between the tensors allows it.
  if (s.vector && !s.constant && s.c0 % E == 0 && s.c1 % E == 0) {
#pragma unroll 1
    for (int c = 0; c < s.channels(); c += E) {
      float z[E];
      load_elements<E>(c < s.c0 ? row_of(s.x0 + c, pixel, s.c0) : row_of(s.x1 + (c - s.c0), pixel, s.c1), true, z);
#pragma unroll
      for (int j = 0; j < E; j++) z[j] = s.prepared(z[j], c + j, image);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        float f[E];
        unpack(__ldg(reinterpret_cast<const uint4*>(row(c)) + k), f);
#pragma unroll
        for (int j = 0; j < E; j++) acc[k] = fmaf(z[j], f[j], acc[k]);
      }
    }
    return;
  }
#pragma unroll 1
  for (int c = 0; c < s.channels(); c++) {
    const float z = s.prepared(s.element(c, make_int2(pixel, image)), c, image);
    const TW* f = reinterpret_cast<const TW*>(row(c)) + c % E;
#pragma unroll
    for (int k = 0; k < 4; k++) acc[k] = fmaf(z, to_float(__ldg(f + k * E)), acc[k]);
  }
}

template <class TI, class TO, class TW> static __device__ __forceinline__ void conv_direct(const ConvArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  constexpr int M = CONV_DIRECT_PIXELS, N = CONV_DIRECT_CHANNELS, THREADS = CONV_DIRECT_THREADS;
  constexpr int CHUNK = CONV_CHUNK_UNITS * VECTOR<TW>, TAP_BYTES = CONV_CHUNK_UNITS * CONV_PACK_CHANNELS * CONV_UNIT_BYTES;
  const int side = (int)a.side, pad = side / 2, taps = side * side;
  const uint32_t channel_tiles = (a.k + N - 1) / N;
  const int first_k = (int)(blockIdx.x % channel_tiles) * N;
  const Tile tile = tile_of<M>(a, blockIdx.x / channel_tiles);
  int2* where = reinterpret_cast<int2*>(smem);
  float* results = reinterpret_cast<float*>(where + M);
  locate_pixels<THREADS>(a, tile, 0, where);
  __syncthreads();  // the table is complete

  const Source<TI> input(a.x0, a.x1, a.c0, a.c1, a.x1_constant != 0, a.scale, a.shift, a.affine_images != 0, a.silu != 0);
  const Source<TI> residual(a.res0, a.res1, a.r0, a.r1, a.res1_constant != 0, nullptr, nullptr, false, false);
  const int main_chunks = (input.channels() + CHUNK - 1) / CHUNK, residual_chunks = (residual.channels() + CHUNK - 1) / CHUNK;
  const unsigned char* filter = static_cast<const unsigned char*>(a.w) +
                                (size_t)(first_k / N) * (main_chunks * taps + residual_chunks) * TAP_BYTES;
  const int groups = (min(N, (int)a.k - first_k) + 3) / 4;
  for (int i = threadIdx.x; i < M * groups; i += THREADS) {
    const int p = i % M, group = i / M;
    const int2 at = where[p];
    if (at.x < 0) continue;
    const int x = tile.x + (p & (tile.cols - 1)), y = tile.y + (p >> a.log_cols & (tile.rows - 1));
    const unsigned char* w = filter + group * 4 * CONV_UNIT_BYTES;
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (int tap = 0; tap <= taps; tap++) {  // the last is the residual's
      const bool main = tap < taps;
      const int dy = main ? tap / side - pad : 0, dx = main ? tap % side - pad : 0;
      if (y + dy < 0 || y + dy >= (int)a.height || x + dx < 0 || x + dx >= (int)a.width) continue;
      const Source<TI> source = main ? input : residual;
      const unsigned char* w_tap = w + (size_t)(main ? tap : main_chunks * taps) * TAP_BYTES;
      add_tap<TI, TW>(acc, source, at.x + dy * (int)a.width + dx, at.y, w_tap, (size_t)(main ? taps : 1) * TAP_BYTES);
    }
    float* result = results + p * RESULT_PITCH<N> + group * 4;
#pragma unroll
    for (int k = 0; k < 4; k++) result[k] = acc[k];
  }
  __syncthreads();  // the results are complete
  write_tile<TO, M, N, THREADS>(a, tile, where, first_k, results, results + M * RESULT_PITCH<N>);
}

extern "C" __global__ void __launch_bounds__(128, 6) conv_direct_f32(const __grid_constant__ ConvArgs a) { conv_direct<float, float, float>(a); }
extern "C" __global__ void __launch_bounds__(128, 6) conv_direct_bf16(const __grid_constant__ ConvArgs a) { conv_direct<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>(a); }
extern "C" __global__ void __launch_bounds__(128, 6) conv_direct_f32_to_bf16(const __grid_constant__ ConvArgs a) { conv_direct<float, __nv_bfloat16, __nv_bfloat16>(a); }
extern "C" __global__ void __launch_bounds__(128, 6) conv_direct_bf16_to_f32(const __grid_constant__ ConvArgs a) { conv_direct<__nv_bfloat16, float, __nv_bfloat16>(a); }

// ---------------------------------------------------------------- statistics

struct ConvStatsMergeArgs {
  const float* parts;  // [n, tiles_y tiles_x, k, 2]: mean and sum of squared deviations
  float* stats;        // [n, k, 2]
  uint32_t n, k, height, width;
  uint32_t log_rows, log_cols, tiles_x, tiles_y;
};
static_assert(sizeof(ConvStatsMergeArgs) == 48, "ConvStatsMergeArgs is mirrored in src/ops/conv/gpu/forward.rs");

static constexpr int CONV_STATS_THREADS = 64;  // rust

// Statistics of an image from those of its tiles: mean = sum n_i m_i / sum n_i, M2 = sum M2_i + n_i (m_i - mean)^2 (Chan, Golub, LeVeque
// 1979). One thread per (image, channel), tiles in order.
extern "C" __global__ void __launch_bounds__(64) conv_stats_merge_f32(const __grid_constant__ ConvStatsMergeArgs a) {
  const uint32_t i = blockIdx.x * CONV_STATS_THREADS + threadIdx.x, tiles = a.tiles_x * a.tiles_y;
  if (i >= a.n * a.k) return;
  const uint32_t image = i / a.k, channel = i % a.k;
  const float* part = a.parts + ((size_t)image * tiles * a.k + channel) * 2;
  auto count = [&](uint32_t t) {
    const uint32_t y = (t / a.tiles_x) << a.log_rows, x = (t % a.tiles_x) << a.log_cols;
    return (float)(min(1u << a.log_rows, a.height - y) * min(1u << a.log_cols, a.width - x));
  };
  float mean = 0.0f, m2 = 0.0f;
  for (uint32_t t = 0; t < tiles; t++) mean = fmaf(count(t), part[(size_t)t * a.k * 2], mean);
  mean /= (float)(a.height * a.width);
  for (uint32_t t = 0; t < tiles; t++) {
    const float d = part[(size_t)t * a.k * 2] - mean;
    m2 += fmaf(count(t) * d, d, part[(size_t)t * a.k * 2 + 1]);
  }
  a.stats[(size_t)i * 2] = mean;
  a.stats[(size_t)i * 2 + 1] = m2;
}
