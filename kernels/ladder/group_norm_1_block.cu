// group_norm_1_block.cu: a block an (image, group), sums by a tree in shared memory.
//
// idea   work together. 256 threads take every 256th pixel each, and add their sums in halves: thread i adds that of thread i + 128, then of
//        i + 64, and so on, a barrier between any two. 8 steps instead of 256, always in the same order, so results repeat bit for bit.
// math   m = sum x / M    v = sum (x - m)^2 / M    y = silu(gamma r (x - m) + beta)                      M = P C/G numbers
// shapes x, y [N,P,C] bfloat16; gamma, beta [C] float32
// map    a block an (image, group); neighbouring threads are neighbouring pixels.
// num    float32: sums of M/256 numbers, then a tree: errors grow with M/256 + 8. Deterministic.
// predicted (H200, 64 images of 64x64, 64 channels, 32 groups) 0.29 ms, 26 times faster. Now all multiprocessors work, but neighbouring
//        threads read 2 channels at addresses 128 bytes apart: 32 lines for a load of a warp, and 2 loads and 2 stores of 2 bytes a
//        pixel. 6.7e7 lines in all, at 0.235e12/s.
// next   neighbouring threads are to be neighbouring channels again, 16 bytes at once, even though that puts several groups into a warp.
// ref    src/ops/group_norm/reference.rs; tests/ladder.rs
// limit  N P C below 2^31; G divides C.
#include "group_norm_args.cuh"

// Sum over the block's 256 threads, given to all of them.
static __device__ __forceinline__ float sum_block(float value, float* shared) {
  __syncthreads();  // nobody reads the last sum any more
  shared[threadIdx.x] = value;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();  // the sums of 2 * half threads are there
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();  // the sum is complete
  return shared[0];
}

extern "C" __global__ void __launch_bounds__(256) ladder_group_norm_1(const __grid_constant__ LadderNormArgs a) {
  __shared__ float shared[256];
  const uint32_t width = a.c / a.groups, first = blockIdx.x % a.groups * width;
  const size_t image = (size_t)(blockIdx.x / a.groups) * a.pixels * a.c;
  const __nv_bfloat16* x = a.x + image;
  __nv_bfloat16* y = a.y + image;
  const float count = (float)a.pixels * (float)width;

  float sum = 0.0f;
  for (uint32_t p = threadIdx.x; p < a.pixels; p += 256)
    for (uint32_t c = first; c < first + width; c++) sum += to_float(x[(size_t)p * a.c + c]);
  const float mean = sum_block(sum, shared) / count;

  float squares = 0.0f;
  for (uint32_t p = threadIdx.x; p < a.pixels; p += 256)
    for (uint32_t c = first; c < first + width; c++) {
      const float d = to_float(x[(size_t)p * a.c + c]) - mean;
      squares = fmaf(d, d, squares);
    }
  const float r = rsqrtf(sum_block(squares, shared) / count + a.eps);

  for (uint32_t p = threadIdx.x; p < a.pixels; p += 256)
    for (uint32_t c = first; c < first + width; c++) {
      const size_t i = (size_t)p * a.c + c;
      y[i] = from_float<__nv_bfloat16>(silu_of<__nv_bfloat16>(fmaf(a.gamma[c] * r, to_float(x[i]) - mean, a.beta[c])));
    }
}
