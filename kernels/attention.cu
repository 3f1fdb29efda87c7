// attention.cu: attention of several heads over the pixels of an image, forward.
//
// math   per image and head, rows i, j of t:  s[i,j] = scale q[i] . k[j]      p = softmax of s along j      o[i] = sum_j p[i,j] v[j]
//        lse[i] = log sum_j exp s[i,j], kept for the backward, which needs no maximum and no sum then.
// shapes q, k, v, o [N, T, heads, d], rows any distance apart (so q, k, v may lie in one tensor); lse [N, heads, T] float32. T and d any.
// map    a block makes 64 queries of one (image, head) by 64 columns of o; its 4 warps make 16 queries each. It goes through the keys
//        by 64: scores in registers over chunks of 64 columns, maximum and sum of every row kept up, exponentials as the operand of the
//        product with v: from the same registers in bfloat16, by way of shared memory in float32. For d <= 64 the queries are brought once; each further 64 columns of o are a block
//        that computes the scores anew. grid: x = (image, head, queries), y = columns.
// num    sums and softmax in float32, rows complete; exponentials in base 2 (`ex2.approx` in bfloat16). p is rounded to the operands'
//        type before its product, the row's sum is of what was not rounded. A fixed order of sums: bit for bit repeatable.
// cost   analytic, not measured. 4 N heads T^2 d FLOP. Bytes at least: 4 N T heads d elements and 4 N heads T. Moved: q and o once,
//        k and v T/64 times, all but the first from L2: at T = 256 k and v of a head are 64 KB in bfloat16. For d > 64 everything but
//        o ceil(d / 64) times.
// ref    src/ops/attention/reference.rs; tests/gpu_attention.rs
// limit  N heads ceil(T / 64) below 2^31; rows of a head that are no multiples of 16 bytes take loads and stores of single elements.
#include "attention_tile.cuh"

template <class M> static __device__ __forceinline__ void attention_forward(const AttentionArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  using T = typename M::T;
  using S = AttentionShape<T>;
  T* q_tile = reinterpret_cast<T*>(smem);
  T* k_tile = q_tile + S::ELEMENTS;
  T* v_tile = k_tile + S::ELEMENTS;
  T* p_tile = v_tile + S::ELEMENTS;  // float32 only
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const uint32_t row_tiles = (a.t + ATTENTION_TILE - 1) / ATTENTION_TILE, pair = blockIdx.x / row_tiles;
  const int first_row = (int)(blockIdx.x % row_tiles) * ATTENTION_TILE, out_chunk = (int)blockIdx.y, chunks = chunks_of(a);
  const int out_width = chunk_width(a, out_chunk);
  const T* q = head_of<T>(a.q, a, pair, a.q_stride);
  const T* k = head_of<T>(a.k, a, pair, a.q_stride);
  const T* v = head_of<T>(a.v, a, pair, a.q_stride);
  const float to_base_2 = a.scale * LOG2_E;

  float o[8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};  // of rows lane / 4 and 8 below; the sum of this lane's columns
#pragma unroll 1
  for (int key = 0; key < (int)a.t; key += ATTENTION_TILE) {
    const int keys = min(ATTENTION_TILE, (int)a.t - key), key_width = (keys + S::STEP - 1) / S::STEP * S::STEP;
    float s[8][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      const int width = chunk_width(a, chunk), first = chunk * ATTENTION_TILE;
      const bool with_q = chunks > 1 || key == 0, with_v = chunk == chunks - 1;
      __syncthreads();  // nobody reads the tiles any more
      if (with_q) start_tile<M>(a, q, a.q_stride, first_row, first, width, q_tile);
      start_tile<M>(a, k, a.q_stride, key, first, width, k_tile);
      if (with_v) start_tile<M>(a, v, a.q_stride, key, out_chunk * ATTENTION_TILE, out_width, v_tile);
      cp_async_commit();
      cp_async_wait<0>();
      if (with_q) finish_tile<M>(width, q_tile);
      finish_tile<M>(width, k_tile);
      if (with_v) finish_tile<M>(out_width, v_tile);
      __syncthreads();  // the tiles are complete
      multiply_tile<M, true>(s, q_tile + warp_row * S::PITCH, k_tile, width, keys);
    }

    // Softmax so far: what was summed under a smaller maximum shrinks.
    float higher[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const bool live = j * 8 + lane % 4 * 2 + e % 2 < keys;
        s[j][e] = live ? s[j][e] * to_base_2 : -INFINITY;
        higher[e / 2] = fmaxf(higher[e / 2], s[j][e]);
      }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      higher[half] = fmaxf(higher[half], __shfl_xor_sync(0xffffffffu, higher[half], 1));
      higher[half] = fmaxf(higher[half], __shfl_xor_sync(0xffffffffu, higher[half], 2));
      const float shrink = exp2_of<T>(largest[half] - higher[half]);
      largest[half] = higher[half];
      sum[half] *= shrink;
#pragma unroll
      for (int j = 0; j < 8; j++) o[j][2 * half] *= shrink, o[j][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[j][e] = exp2_of<T>(s[j][e] - largest[e / 2]);  // p from now on
        sum[e / 2] += s[j][e];
      }
    multiply_sums<M>(o, s, p_tile + warp_row * S::PITCH, v_tile, key_width, out_width);
  }

  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    factors[half] = 1.0f / sum[half];
    const int row = first_row + warp_row + half * 8 + lane / 4;
    if (a.lse && out_chunk == 0 && lane % 4 == 0 && row < (int)a.t)
      a.lse[(size_t)pair * a.t + row] = largest[half] / LOG2_E + logf(sum[half]);
  }
  write_rows<M>(a, a.out0, pair, first_row + warp_row, out_chunk * ATTENTION_TILE, o, factors);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_fwd_bf16(const __grid_constant__ AttentionArgs a) { attention_forward<Bf16>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_fwd_tf32(const __grid_constant__ AttentionArgs a) { attention_forward<Tf32>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_fwd_f32(const __grid_constant__ AttentionArgs a) { attention_forward<Fp32>(a); }
