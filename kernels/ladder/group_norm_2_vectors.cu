// group_norm_2_vectors.cu: neighbouring threads read neighbouring channels, 16 bytes each, and add up by shuffles.
//
// idea   walk as the numbers lie. 4 neighbouring lanes take the 32 channels of a pixel's slab, 64 contiguous bytes, a warp 8 pixels. Sums are
//        kept per channel, since a lane's 8 channels may belong to several groups; lanes with the same channels add up by `__shfl_xor_sync`, from
//        register to register, and only one number a warp and channel passes through shared memory. Channels join to groups last.
// math   m = sum x / M    v = sum (x - m)^2 / M    y = silu(gamma r (x - m) + beta)                      M = P C/G numbers
// shapes x, y [N,P,C] bfloat16; gamma, beta [C] float32
// map    a block an (image, slab of 32 channels); lane: 8 channels (lane % 4) of pixel lane / 4 of the warp's 8; 16 warps.
// num    float32: a lane's sums of P/128 numbers, 3 shuffles, 16 warps, C/G channels. Deterministic.
// predicted (H200, 64 images of 64x64, 64 channels, 32 groups) 26 us, 11 times faster: all lines are used whole. x is read three times, from
//        memory once (7.8 us) and from L2 twice, since it fits (6.1 us each), y is written once (6.1 us to L2), and barriers keep the passes
//        apart.
// next   mean and deviations can be found in one pass.
// ref    src/ops/group_norm/reference.rs; tests/ladder.rs
// limit  C a multiple of 32, and groups that divide 32 channels; x and y at multiples of 16 bytes; N P C below 2^31.
#include "group_norm_args.cuh"

// From each lane's sums of 8 channels to the sum of each channel's group, for this lane's channels. `partial`: [16][32], `totals`: [32].
static __device__ __forceinline__ void sum_groups(float (&v)[8], uint32_t width, float (*partial)[32], float* totals) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) v[i] += __shfl_xor_sync(0xffffffffu, v[i], distance);
  __syncthreads();  // nobody reads the last sums any more
  if (lane < 4)
#pragma unroll
    for (int i = 0; i < 8; i++) partial[warp][lane * 8 + i] = v[i];
  __syncthreads();  // the sums of all warps are there
  if (warp == 0) {
    float sum = 0.0f;
    for (int w = 0; w < 16; w++) sum += partial[w][lane];
    for (uint32_t distance = 1; distance < width; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, (int)distance);
    totals[lane] = sum;
  }
  __syncthreads();  // the sums of groups are there
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = totals[lane % 4 * 8 + i];
}

extern "C" __global__ void __launch_bounds__(512) ladder_group_norm_2(const __grid_constant__ LadderNormArgs a) {
  __shared__ float partial[16][32];
  __shared__ float totals[32];
  const uint32_t width = a.c / a.groups, slabs = a.c / 32, channel = blockIdx.x % slabs * 32 + threadIdx.x % 4 * 8;
  const size_t at = (size_t)(blockIdx.x / slabs) * a.pixels * a.c + channel;
  const __nv_bfloat16* x = a.x + at;
  const float count = (float)a.pixels * (float)width;

  float mean[8] = {}, squares[8] = {};
  for (uint32_t p = threadIdx.x / 4; p < a.pixels; p += 128) {
    float v[8];
    load(x + (size_t)p * a.c, v);
#pragma unroll
    for (int i = 0; i < 8; i++) mean[i] += v[i];
  }
  sum_groups(mean, width, partial, totals);
#pragma unroll
  for (int i = 0; i < 8; i++) mean[i] /= count;

  for (uint32_t p = threadIdx.x / 4; p < a.pixels; p += 128) {
    float v[8];
    load(x + (size_t)p * a.c, v);
#pragma unroll
    for (int i = 0; i < 8; i++) squares[i] = fmaf(v[i] - mean[i], v[i] - mean[i], squares[i]);
  }
  sum_groups(squares, width, partial, totals);

  float scale[8], shift[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    scale[i] = a.gamma[channel + i] * rsqrtf(squares[i] / count + a.eps);
    shift[i] = fmaf(-scale[i], mean[i], a.beta[channel + i]);
  }
  for (uint32_t p = threadIdx.x / 4; p < a.pixels; p += 128) apply8(scale, shift, x + (size_t)p * a.c, a.y + at + (size_t)p * a.c);
}
