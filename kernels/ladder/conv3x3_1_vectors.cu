// conv3x3_1_vectors.cu: neighbouring threads read neighbouring numbers, sixteen bytes at once.
//
// idea   turn the map round. In NHWC the channels of a pixel lie together, so the 32 lanes of a warp become 32 output channels of one pixel:
//        a row of W and the row of y are 64 contiguous bytes, and x is the same for all lanes, one 16-byte load for 8 channels.
// math   y[p,k] = sum_{t,c} x[p+t,c] W[t,c,k]                                                            0 outside the picture
// shapes x [N,H,W,C], W [9,C,K], y [N,H,W,K], all bfloat16
// map    a warp makes 32 output channels (blockIdx.y) of one pixel, a lane each; a block, 8 pixels that follow each other.
// num    as before, and the same sums in the same order: the bits of rung 0.
// predicted (H200, 64 pictures of 64x64, 64 to 32 channels) 0.72 ms, 29 times faster than rung 0. 8 multiply-adds of a warp now ask for
//        9 lines (8 rows of W, 1 of x) instead of 264.
// next   the same number of W still travels from cache to register for every multiply-add. A thread that makes several pixels uses it
//        several times, and a tile in shared memory feeds it.
// ref    src/ops/conv/reference.rs; tests/ladder.rs
// limit  C a multiple of 8 and x at a multiple of 16 bytes; N H W and 9 C K below 2^31.
#include "conv3x3_args.cuh"

extern "C" __global__ void __launch_bounds__(256) ladder_conv3x3_1(const __grid_constant__ LadderConvArgs a) {
  const uint32_t p = blockIdx.x * 8 + threadIdx.x / 32, k = blockIdx.y * 32 + threadIdx.x % 32;
  if (p >= a.n * a.height * a.width || k >= a.k) return;
  const int col = (int)(p % a.width), row = (int)(p / a.width % a.height);
  float sum = 0.0f;
  for (int tap = 0; tap < 9; tap++) {
    const int down = tap / 3 - 1, right = tap % 3 - 1;
    if (row + down < 0 || row + down >= (int)a.height || col + right < 0 || col + right >= (int)a.width) continue;
    const __nv_bfloat16* x = a.x + (size_t)((int)p + down * (int)a.width + right) * a.c;
    const __nv_bfloat16* w = a.w + (size_t)tap * a.c * a.k + k;
    for (uint32_t c = 0; c < a.c; c += 8) {
      float v[8];
      load(x + c, v);
#pragma unroll
      for (int i = 0; i < 8; i++) sum = fmaf(v[i], to_float(w[(size_t)(c + i) * a.k]), sum);
    }
  }
  a.y[(size_t)p * a.k + k] = from_float<__nv_bfloat16>(sum);
}
