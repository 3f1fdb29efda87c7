// conv3x3_args.cuh: the parameter of the ladder's 3x3 convolutions. Every rung computes the same thing:
//
//   y[p,k] = sum over taps t and channels c of x[p+t,c] W[t,c,k], 0 outside the picture, float32 sums, bfloat16 in and out
#pragma once
#include "elements.cuh"

struct LadderConvArgs {
  const __nv_bfloat16* x;  // [n, height, width, c]
  const __nv_bfloat16* w;  // rungs 0 to 2: [9, c, k]; rungs 3 and 4: packed by conv_pack.cu
  __nv_bfloat16* y;        // [n, height, width, k]
  uint32_t n, height, width, c, k, unused;
};
static_assert(sizeof(LadderConvArgs) == 48, "LadderConvArgs is mirrored in src/bench/ladder/conv.rs");
