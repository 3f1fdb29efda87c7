// conv3x3_0_naive.cu: the definition, a thread an output.
//
// idea   none yet: three loops and a guard. It is short, and it is right; everything after it is about who reads what, and when.
// math   y[p,k] = sum_{t,c} x[p+t,c] W[t,c,k]                                                            0 outside the picture
// shapes x [N,H,W,C], W [9,C,K], y [N,H,W,K], all bfloat16
// map    a thread makes output channel blockIdx.y of one pixel; neighbouring threads are neighbouring pixels.
// num    float32 sums over taps, then channels; rounded once. Deterministic.
// predicted (H200, 64 pictures of 64x64, 64 to 32 channels: 9.7 GFLOP, 50 MB, floor 12 us) 21 ms. Neighbouring threads read addresses
//        2 C bytes apart: a load of a warp touches 32 lines, and the first-level cache gives out one line a clock. 33 lines (32 of x, 1 of W)
//        for 32 multiply-adds, 1.5e8 times, at 0.235e12 lines/s of all multiprocessors.
// next   turns the map round: neighbouring threads become neighbouring channels, which is how the numbers lie in memory.
// ref    src/ops/conv/reference.rs; tests/ladder.rs
// limit  N H W and 9 C K below 2^31, K below 65536.
#include "conv3x3_args.cuh"

extern "C" __global__ void __launch_bounds__(256) ladder_conv3x3_0(const __grid_constant__ LadderConvArgs a) {
  const uint32_t p = blockIdx.x * 256 + threadIdx.x, k = blockIdx.y;
  if (p >= a.n * a.height * a.width) return;
  const int col = (int)(p % a.width), row = (int)(p / a.width % a.height);
  float sum = 0.0f;
  for (int tap = 0; tap < 9; tap++) {
    const int down = tap / 3 - 1, right = tap % 3 - 1;
    if (row + down < 0 || row + down >= (int)a.height || col + right < 0 || col + right >= (int)a.width) continue;
    const __nv_bfloat16* x = a.x + (size_t)((int)p + down * (int)a.width + right) * a.c;
    const __nv_bfloat16* w = a.w + (size_t)tap * a.c * a.k + k;
    for (uint32_t c = 0; c < a.c; c++) sum = fmaf(to_float(x[c]), to_float(w[(size_t)c * a.k]), sum);
  }
  a.y[(size_t)p * a.k + k] = from_float<__nv_bfloat16>(sum);
}
