// attention_args.cuh: the parameter of the ladder's attentions. Every rung computes the same thing, per image and head, rows i and j of t:
//
//   s[i,j] = scale q[i] . k[j]        p = softmax of s along j        y[i] = sum_j p[i,j] v[j]
#pragma once
#include "elements.cuh"

struct LadderAttentionArgs {
  const __nv_bfloat16* qkv;  // [n, t, 3, heads, d]: q, k and v of a token side by side, as one product writes them
  __nv_bfloat16* y;          // [n, t, heads, d]
  float* s;                  // rung 0: [n, heads, t, t]
  uint32_t n, t, heads, d;
  float scale;
  uint32_t unused;
};
static_assert(sizeof(LadderAttentionArgs) == 48, "LadderAttentionArgs is mirrored in src/bench/ladder/attention.rs");

static constexpr float LADDER_LOG2_E = 1.44269504f;

// Row of q (0), k (1) or v (2) of a token; `pair` counts (image, head).
static __device__ __forceinline__ const __nv_bfloat16* row_of(const LadderAttentionArgs& a, int which, uint32_t pair, uint32_t token) {
  const uint32_t image = pair / a.heads, head = pair % a.heads;
  return a.qkv + ((((size_t)image * a.t + token) * 3 + which) * a.heads + head) * a.d;
}
static __device__ __forceinline__ __nv_bfloat16* result_of(const LadderAttentionArgs& a, uint32_t pair, uint32_t token) {
  const uint32_t image = pair / a.heads, head = pair % a.heads;
  return a.y + (((size_t)image * a.t + token) * a.heads + head) * a.d;
}
