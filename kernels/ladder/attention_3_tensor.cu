// attention_3_tensor.cu: both products on tensor cores, whole rows of scores in registers.
//
// idea   a warp makes 16 rows at once. q k^T is a product of matrices: 16 queries by 256 keys are 32 matrices of 8 columns, 128 registers a lane.
//        There they stay: the softmax works on them in place, and two neighbouring 16x8 results, rounded to bfloat16, are just the 16x16
//        operand that the product with v wants. Nothing passes through memory between the two products.
// math   s[i,j] = scale q[i] . k[j]    p = exp(s - max)    y[i] = sum_j p[i,j] v[j] / sum_j p[i,j]
// shapes qkv [N,T,3,heads,d], y [N,T,heads,d] bfloat16
// map    a block 64 queries of an (image, head), its 4 warps 16 each; q, k and v in shared memory, rows 16 bytes apart from conflicts, as in rung 2.
//        A lane holds columns 2 (lane % 4) and the next of every matrix, of rows lane / 4 and 8 further: a row is 4 lanes.
// num    float32 sums and softmax, complete rows; p rounded to bfloat16 before its product, its sum before that. Deterministic.
// predicted (H200, 64 images, 256 tokens, 4 heads of 64) 15 us, 16 times faster: what the blocks bring from L2, k and v of a head once for 64 queries,
//        84 MB. Shared memory 12 us, mma.sync 8.6 us, exponentials 4.5 us (16 a clock and multiprocessor). But 83 KB leave room for two
//        blocks, 8 warps, and each waits for all of k and v before its first product.
// next   go through the keys in pieces.
// ref    src/ops/attention/reference.rs; tests/ladder.rs
// limit  T at most 256; d a multiple of 8, at most 64; qkv at a multiple of 16 bytes; N heads T below 2^31.
#include "attention_args.cuh"
#include "ptx.cuh"

static constexpr int LADDER_ATTENTION_PITCH = 72;  // rust

extern "C" __global__ void __launch_bounds__(128) ladder_attention_3(const __grid_constant__ LadderAttentionArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  constexpr int QUERIES = 64, PITCH = LADDER_ATTENTION_PITCH;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int rows = ((int)a.t + 15) / 16 * 16, width = ((int)a.d + 15) / 16 * 16;  // as products want them: whole steps of 16
  __nv_bfloat16* queries = reinterpret_cast<__nv_bfloat16*>(smem);
  __nv_bfloat16* keys = queries + QUERIES * PITCH;
  __nv_bfloat16* values = keys + rows * PITCH;
  const uint32_t tiles = (a.t + QUERIES - 1) / QUERIES, pair = blockIdx.x / tiles;
  const int first = (int)(blockIdx.x % tiles) * QUERIES;

  // Zeros beyond the last token and channel: 0 times whatever lay there before could be not a number.
  auto bring = [&](int which, int first_token, int count, __nv_bfloat16* to) {
    for (int i = threadIdx.x; i < count * (width / 8); i += 128) {
      const int r = i / (width / 8), c = i % (width / 8) * 8, token = first_token + r;
      const bool inside = token < (int)a.t && c < (int)a.d;
      cp_async16(smem_addr(to + r * PITCH + c), row_of(a, which, pair, inside ? token : 0) + (inside ? c : 0), inside);
    }
  };
  bring(0, first, QUERIES, queries);
  bring(1, 0, rows, keys);
  bring(2, 0, rows, values);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // q, k and v are there

  float s[32][4] = {};
  const smem_t own_query = smem_addr(queries + (warp * 16 + lane % 16) * PITCH + lane / 16 * 8);
  const smem_t own_key = smem_addr(keys + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8);
  const smem_t own_value = smem_addr(values + lane % 16 * PITCH + lane / 16 * 8);
#pragma unroll 1
  for (int c = 0; c < width; c += 16) {
    uint32_t q[4], k[4];
    ldmatrix_x4(q, own_query + c * 2);
#pragma unroll
    for (int j = 0; j < 32; j += 2) {
      if (j * 8 >= rows) break;
      ldmatrix_x4(k, own_key + (j * 8 * PITCH + c) * 2);
      mma_bf16(s[j], q, {k[0], k[1]});
      mma_bf16(s[j + 1], q, {k[2], k[3]});
    }
  }

  const float to_base_2 = a.scale * LADDER_LOG2_E;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int j = 0; j < 32; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      s[j][e] = j * 8 + lane % 4 * 2 + e % 2 < (int)a.t ? s[j][e] * to_base_2 : -INFINITY;
      largest[e / 2] = fmaxf(largest[e / 2], s[j][e]);
    }
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffffu, largest[half], distance));
#pragma unroll
  for (int j = 0; j < 32; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) s[j][e] = ex2_approx(s[j][e] - largest[e / 2]), sum[e / 2] += s[j][e];
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], distance);

  float y[8][4] = {};
#pragma unroll
  for (int j = 0; j < 32; j += 2) {
    if (j * 8 >= rows) break;
    const uint32_t p[4] = {pack_bf16(s[j][0], s[j][1]), pack_bf16(s[j][2], s[j][3]), pack_bf16(s[j + 1][0], s[j + 1][1]), pack_bf16(s[j + 1][2], s[j + 1][3])};
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      if (c * 8 >= width) break;
      uint32_t v[4];
      ldmatrix_x4_trans(v, own_value + (j * 8 * PITCH + c * 8) * 2);
      mma_bf16(y[c], p, {v[0], v[1]});
      mma_bf16(y[c + 1], p, {v[2], v[3]});
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int token = first + warp * 16 + half * 8 + lane / 4;
    if (token >= (int)a.t) continue;
#pragma unroll
    for (int c = 0; c < 8; c++) {
      const int channel = c * 8 + lane % 4 * 2;
      if (channel < (int)a.d)
        *word_at<uint32_t>(result_of(a, pair, token) + channel) = pack_bf16(y[c][2 * half] / sum[half], y[c][2 * half + 1] / sum[half]);
    }
  }
}
