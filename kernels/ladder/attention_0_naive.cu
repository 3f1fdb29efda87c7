// attention_0_naive.cu: the definition, three kernels, the scores in global memory.
//
// idea   none yet: one kernel for each line of the mathematics.
// math   s[i,j] = scale q[i] . k[j]    p = exp(s - max) / sum    y[i] = sum_j p[i,j] v[j]
// shapes qkv [N,T,3,heads,d], y [N,T,heads,d] bfloat16; s, then p in its place, [N,heads,T,T] float32
// map    scores: a thread a score; softmax: a thread a row; values: a thread an element of y. Neighbouring threads: keys, rows, channels.
// num    float32, sums in order; y rounded once. Deterministic.
// predicted (H200, 64 images, 256 tokens, 4 heads of 64: 4.3 GFLOP, 34 MB at least, floor 8 us) 5.3 ms: scores 4.7 ms (a warp's
//        load of 32 keys touches 32 lines, for 2 bytes of each), softmax 0.29 ms (rows a kilobyte apart: likewise), values 0.29 ms (2 lines
//        for a multiply-add of a warp). The scores are 67 MB, twice what the operands are, and are written, read three times,
//        written again and read again.
// next   a row of scores is 1 KB: it need not leave the registers of a warp.
// ref    src/ops/attention/reference.rs; tests/ladder.rs
// limit  N heads T T and N T heads d below 2^31.
#include "attention_args.cuh"

extern "C" __global__ void __launch_bounds__(256) ladder_attention_0_scores(const __grid_constant__ LadderAttentionArgs a) {
  const uint32_t at = blockIdx.x * 256 + threadIdx.x;
  if (at >= a.n * a.heads * a.t * a.t) return;
  const uint32_t j = at % a.t, i = at / a.t % a.t, pair = at / a.t / a.t;
  const __nv_bfloat16 *q = row_of(a, 0, pair, i), *k = row_of(a, 1, pair, j);
  float sum = 0.0f;
  for (uint32_t c = 0; c < a.d; c++) sum = fmaf(to_float(q[c]), to_float(k[c]), sum);
  a.s[at] = a.scale * sum;
}

extern "C" __global__ void __launch_bounds__(256) ladder_attention_0_softmax(const __grid_constant__ LadderAttentionArgs a) {
  const uint32_t at = blockIdx.x * 256 + threadIdx.x;
  if (at >= a.n * a.heads * a.t) return;
  float* s = a.s + (size_t)at * a.t;
  float largest = -INFINITY, sum = 0.0f;
  for (uint32_t j = 0; j < a.t; j++) largest = fmaxf(largest, s[j]);
  for (uint32_t j = 0; j < a.t; j++) sum += expf(s[j] - largest);
  for (uint32_t j = 0; j < a.t; j++) s[j] = expf(s[j] - largest) / sum;
}

extern "C" __global__ void __launch_bounds__(256) ladder_attention_0_values(const __grid_constant__ LadderAttentionArgs a) {
  const uint32_t at = blockIdx.x * 256 + threadIdx.x;
  if (at >= a.n * a.heads * a.t * a.d) return;
  const uint32_t c = at % a.d, row = at / a.d, i = row % a.t, pair = row / a.t;
  const float* p = a.s + (size_t)row * a.t;
  float sum = 0.0f;
  for (uint32_t j = 0; j < a.t; j++) sum = fmaf(p[j], to_float(row_of(a, 2, pair, j)[c]), sum);
  result_of(a, pair, i)[c] = from_float<__nv_bfloat16>(sum);
}
