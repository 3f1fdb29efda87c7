// attention_bwd.cu: gradients of attention with respect to queries, keys and values.
//
// math   with p[i,j] = exp(s[i,j] - lse[i]) of attention.cu and delta[i] = sum_c do[i,c] o[i,c]:
//          dp[i,j] = do[i] . v[j]        ds = p (dp - delta)
//          dq[i] = scale sum_j ds[i,j] k[j]        dk[j] = scale sum_i ds[i,j] q[i]        dv[j] = sum_i p[i,j] do[i]
// shapes as attention.cu; do like o, dq, dk, dv like q, with a distance of rows of their own; lse, delta [N, heads, T] float32.
// map    three kernels. `delta`: a warp a row. `queries`: a block makes 64 rows of dq by 64 columns and goes through the keys; `keys`: 64
//        rows of dk and dv, and goes through the queries. Both are the same procedure with rows and columns exchanged: scores and dp of a
//        64x64 tile in registers, p and ds as operands of the next products (in float32 through shared memory). The scores are thus computed twice, and nothing
//        is added by two blocks: no atomics, bit for bit repeatable. Heads wider than 64 as in attention.cu.
// num    sums in float32; p and ds rounded to the operands' type before their products.
// cost   analytic, not measured. 14 N heads T^2 d FLOP (10 at least). Bytes at least: q, k, v, o, do read, dq, dk, dv written: 8 N T heads d
//        elements. Moved: o and do once more for delta; of the operands that a block goes through T/64 times, all but the first from L2.
// ref    src/ops/attention/reference.rs; tests/gpu_attention.rs
// limit  as attention.cu.
#include "attention_tile.cuh"

// Shared memory besides the tiles: lse and delta of 64 columns.
static constexpr int ATTENTION_COLUMN_BYTES = 512;  // rust
static_assert(ATTENTION_COLUMN_BYTES == 2 * ATTENTION_TILE * (int)sizeof(float), "lse and delta");

// KEYS: rows are keys and columns queries, out0 is dk, out1 dv. Else rows are queries, out0 is dq.
template <class M, bool KEYS> static __device__ __forceinline__ void attention_backward(const AttentionArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  using T = typename M::T;
  using S = AttentionShape<T>;
  T* row_s = reinterpret_cast<T*>(smem);       // rows' side of the scores
  T* row_p = row_s + S::ELEMENTS;              // and of dp
  T* column_s = row_p + S::ELEMENTS;           // columns' side of the scores
  T* column_p = column_s + S::ELEMENTS;        // and of dp
  T* factor = column_p + S::ELEMENTS;          // p, then ds; float32 only
  float* of_columns = reinterpret_cast<float*>(factor + (sizeof(T) == 2 ? 0 : S::ELEMENTS));  // lse in base 2, then delta, of the columns
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const uint32_t row_tiles = (a.t + ATTENTION_TILE - 1) / ATTENTION_TILE, pair = blockIdx.x / row_tiles;
  const int first_row = (int)(blockIdx.x % row_tiles) * ATTENTION_TILE, out_chunk = (int)blockIdx.y, chunks = chunks_of(a);
  const int out_width = chunk_width(a, out_chunk);
  const T* q = head_of<T>(a.q, a, pair, a.q_stride);
  const T* k = head_of<T>(a.k, a, pair, a.q_stride);
  const T* v = head_of<T>(a.v, a, pair, a.q_stride);
  const T* d_o = head_of<T>(a.d_o, a, pair, a.o_stride);
  const float *lse = a.lse + (size_t)pair * a.t, *delta = a.delta + (size_t)pair * a.t;
  const T *of_row_s = KEYS ? k : q, *of_row_p = KEYS ? v : d_o, *of_column_s = KEYS ? q : k, *of_column_p = KEYS ? d_o : v;
  const uint32_t stride_row_p = KEYS ? a.q_stride : a.o_stride, stride_column_p = KEYS ? a.o_stride : a.q_stride;
  const float to_base_2 = a.scale * LOG2_E;

  float lse_row[2], delta_row[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = min(first_row + warp_row + half * 8 + lane / 4, (int)a.t - 1);
    lse_row[half] = KEYS ? 0.0f : lse[row] * LOG2_E;
    delta_row[half] = KEYS ? 0.0f : delta[row];
  }
  float out0[8][4] = {}, out1[8][4] = {};
#pragma unroll 1
  for (int column = 0; column < (int)a.t; column += ATTENTION_TILE) {
    const int columns = min(ATTENTION_TILE, (int)a.t - column), depth = (columns + S::STEP - 1) / S::STEP * S::STEP;
    float s[8][4] = {}, dp[8][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      const int width = chunk_width(a, chunk), first = chunk * ATTENTION_TILE;
      const bool with_rows = chunks > 1 || column == 0;
      __syncthreads();  // nobody reads the tiles any more
      if (with_rows) {
        start_tile<M>(a, of_row_s, a.q_stride, first_row, first, width, row_s);
        start_tile<M>(a, of_row_p, stride_row_p, first_row, first, width, row_p);
      }
      start_tile<M>(a, of_column_s, a.q_stride, column, first, width, column_s);
      start_tile<M>(a, of_column_p, stride_column_p, column, first, width, column_p);
      cp_async_commit();
      if (KEYS && chunk == 0 && threadIdx.x < ATTENTION_TILE) {
        const int i = min(column + (int)threadIdx.x, (int)a.t - 1);
        of_columns[threadIdx.x] = lse[i] * LOG2_E;
        of_columns[ATTENTION_TILE + threadIdx.x] = delta[i];
      }
      cp_async_wait<0>();
      if (with_rows) finish_tile<M>(width, row_s), finish_tile<M>(width, row_p);
      finish_tile<M>(width, column_s), finish_tile<M>(width, column_p);
      __syncthreads();  // the tiles are complete
      multiply_tile<M, true>(s, row_s + warp_row * S::PITCH, column_s, width, columns);
      multiply_tile<M, true>(dp, row_p + warp_row * S::PITCH, column_p, width, columns);
    }
    if (chunks > 1) {
      // The columns' side of the products that follow is another chunk.
      __syncthreads();  // nobody reads the tiles any more
      start_tile<M>(a, of_column_s, a.q_stride, column, out_chunk * ATTENTION_TILE, out_width, column_s);
      if (KEYS) start_tile<M>(a, of_column_p, stride_column_p, column, out_chunk * ATTENTION_TILE, out_width, column_p);
      cp_async_commit();
      cp_async_wait<0>();
      finish_tile<M>(out_width, column_s);
      if (KEYS) finish_tile<M>(out_width, column_p);
      __syncthreads();  // the tiles are complete
    }

#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int c = j * 8 + lane % 4 * 2 + e, i = 2 * half + e;
          const float lse_here = KEYS ? of_columns[c] : lse_row[half], delta_here = KEYS ? of_columns[ATTENTION_TILE + c] : delta_row[half];
          const float p = c < columns ? exp2_of<T>(fmaf(s[j][i], to_base_2, -lse_here)) : 0.0f;
          s[j][i] = p;                              // p from now on
          dp[j][i] = p * (dp[j][i] - delta_here);  // ds from now on
        }
      }
    if (KEYS) multiply_sums<M>(out1, s, factor + warp_row * S::PITCH, column_p, depth, out_width);
    multiply_sums<M>(out0, dp, factor + warp_row * S::PITCH, column_s, depth, out_width);
  }

  const float scales[2] = {a.scale, a.scale}, ones[2] = {1.0f, 1.0f};
  write_rows<M>(a, a.out0, pair, first_row + warp_row, out_chunk * ATTENTION_TILE, out0, scales);
  if (KEYS) write_rows<M>(a, a.out1, pair, first_row + warp_row, out_chunk * ATTENTION_TILE, out1, ones);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_bwd_queries_bf16(const __grid_constant__ AttentionArgs a) { attention_backward<Bf16, false>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_bwd_keys_bf16(const __grid_constant__ AttentionArgs a) { attention_backward<Bf16, true>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_bwd_queries_tf32(const __grid_constant__ AttentionArgs a) { attention_backward<Tf32, false>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_bwd_keys_tf32(const __grid_constant__ AttentionArgs a) { attention_backward<Tf32, true>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_bwd_queries_f32(const __grid_constant__ AttentionArgs a) { attention_backward<Fp32, false>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_bwd_keys_f32(const __grid_constant__ AttentionArgs a) { attention_backward<Fp32, true>(a); }

// A warp for a row of a head: lanes along d, then over the warp.
template <class T> static __device__ __forceinline__ void attention_delta(const AttentionArgs& a) {
  const uint32_t row = blockIdx.x * (ATTENTION_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool live = row < a.n * a.heads * a.t;
  const uint32_t pair = live ? row / a.t : 0, i = live ? row % a.t : 0;
  const T* o = head_of<T>(a.o, a, pair, a.o_stride) + (size_t)i * a.o_stride;
  const T* d_o = head_of<T>(a.d_o, a, pair, a.o_stride) + (size_t)i * a.o_stride;
  float sum = 0.0f;
  for (uint32_t c = lane; c < a.d; c += 32) sum = fmaf(to_float(o[c]), to_float(d_o[c]), sum);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (live && lane == 0) a.delta[row] = sum;
}

extern "C" __global__ void __launch_bounds__(128) attention_delta_bf16(const __grid_constant__ AttentionArgs a) { attention_delta<__nv_bfloat16>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_delta_f32(const __grid_constant__ AttentionArgs a) { attention_delta<float>(a); }
