// attention_2_shared.cu: rung 1 with keys and values of a head in shared memory.
//
// idea   bring once, use 64 times. A block makes 64 rows of one head, and copies k and v of the head first: 64 KB. Rows in shared memory are 16 bytes
//        longer than d numbers. Without that, rows of 128 bytes would put all keys' first 16 bytes into the same 4 banks; with it 8
//        neighbouring keys lie in 8 different groups of banks, and a load of 32 times 16 bytes takes the 4 accesses that it must.
// math   s[i,j] = scale q[i] . k[j]    p = exp(s - max) / sum    y[i] = sum_j p[i,j] v[j]
// shapes qkv [N,T,3,heads,d], y [N,T,heads,d] bfloat16
// map    a block 64 queries of an (image, head); its 8 warps 8 each, one after the other, as rung 1 makes one.
// num    as rung 1, and its bits.
// predicted (H200, 64 images, 256 tokens, 4 heads of 64) 0.25 ms, 3 times faster: a row takes 256 accesses for the keys, 128 for the query, 512
//        for the values and their weights. At 75 KB three blocks share a multiprocessor.
// next   a multiply-add of a lane needs a number from shared memory, or a shuffle. Tensor cores load a matrix and use it 16 times.
// ref    src/ops/attention/reference.rs; tests/ladder.rs
// limit  T at most 256; d a multiple of 8, at most 64; qkv at a multiple of 16 bytes; N heads T below 2^31.
#include "attention_args.cuh"
#include "ptx.cuh"

static constexpr int LADDER_ATTENTION_QUERIES = 64;  // rust
static constexpr int LADDER_ATTENTION_PAD = 8;       // rust

extern "C" __global__ void __launch_bounds__(256) ladder_attention_2(const __grid_constant__ LadderAttentionArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ __align__(16) float queries[8][64];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pitch = (int)a.d + LADDER_ATTENTION_PAD, units = (int)a.d / 8;
  __nv_bfloat16* keys = reinterpret_cast<__nv_bfloat16*>(smem);
  __nv_bfloat16* values = keys + a.t * pitch;
  const uint32_t tiles = (a.t + LADDER_ATTENTION_QUERIES - 1) / LADDER_ATTENTION_QUERIES, pair = blockIdx.x / tiles;
  for (int i = threadIdx.x; i < (int)a.t * units; i += 256) {
    const int token = i / units, c = i % units * 8;
    cp_async16(smem_addr(keys + token * pitch + c), row_of(a, 1, pair, token) + c);
    cp_async16(smem_addr(values + token * pitch + c), row_of(a, 2, pair, token) + c);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // keys and values are there

  float* query = queries[warp];
  const bool live = 2 * lane < (int)a.d;
  for (int turn = 0; turn < LADDER_ATTENTION_QUERIES / 8; turn++) {
    const uint32_t token = blockIdx.x % tiles * LADDER_ATTENTION_QUERIES + turn * 8 + warp;
    if (token >= a.t) break;  // a whole warp; no barrier follows
    const __nv_bfloat16* q = row_of(a, 0, pair, token);
    __syncwarp();  // the last query is read
    for (uint32_t c = lane; c < a.d; c += 32) query[c] = to_float(q[c]) * (a.scale * LADDER_LOG2_E);
    __syncwarp();  // the query is there

    float p[8], largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int key = i * 32 + lane;
      p[i] = -INFINITY;
      if (key < (int)a.t) {
        p[i] = 0.0f;
        for (int c = 0; c < (int)a.d; c += 8) {
          float v[8];
          load(keys + key * pitch + c, v);
#pragma unroll
          for (int e = 0; e < 8; e++) p[i] = fmaf(query[c + e], v[e], p[i]);
        }
      }
      largest = fmaxf(largest, p[i]);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
#pragma unroll
    for (int i = 0; i < 8; i++) p[i] = ex2_approx(p[i] - largest), sum += p[i];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);

    float y[2] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int count = min(32, (int)a.t - i * 32);
      for (int j = 0; j < count; j++) {
        const float weight = __shfl_sync(0xffffffffu, p[i], j);
        float v0, v1;
        unpack_bf16(*word_at<const uint32_t>(values + (i * 32 + j) * pitch + (live ? 2 * lane : 0)), v0, v1);
        y[0] = fmaf(weight, v0, y[0]), y[1] = fmaf(weight, v1, y[1]);
      }
    }
    if (live) *word_at<uint32_t>(result_of(a, pair, token) + 2 * lane) = pack_bf16(y[0] / sum, y[1] / sum);
  }
}
