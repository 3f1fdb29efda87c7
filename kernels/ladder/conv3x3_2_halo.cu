// conv3x3_2_halo.cu: bring the tile with its halo once, use every number often.
//
// idea   reuse, at two levels. A block brings the 10x10 pixels that its 8x8 outputs need to shared memory once, and all nine taps read them
//        there: 1.56 times the input from global memory instead of 9. And a thread makes a row of 8 pixels: a weight in a register
//        serves 8 multiply-adds, and 10 pixels in registers serve the 3 taps of a filter row, 24 multiply-adds a weight row.
//        The second level is what buys the time; the first makes it possible, since the tile is where a thread finds its 10 pixels.
// why not im2col  unrolling the taps into a matrix [pixels, 9 C] gives one large product, but reads the input nine times: fed from L2 an
//        M x N tile has M N / (M + N) FLOP a byte, 26 for 128 x 32, which at 5.5 TB/s is 141 TFLOP/s however fast the arithmetic is.
// math   y[p,k] = sum_{t,c} x[p+t,c] W[t,c,k]                                                            0 outside the picture
// shapes x [N,H,W,C], W [9,C,K], y [N,H,W,K], all bfloat16
// map    a block makes 8x8 pixels by 32 output channels (blockIdx.y); warp r makes row r, a lane makes one channel of its 8 pixels. 32 input
//        channels at a time lie in shared memory: pixels as float32, so that they are unpacked once and not once a use.
// num    float32 sums over chunks, taps, channels in this order; rounded once. Deterministic.
// predicted (H200, 64 pictures of 64x64, 64 to 32 channels) 0.22 ms, 3.3 times faster. 96 multiply-adds of a warp take 22 loads, 12
//        conversions and their own 96 instructions: 1.35 instructions each at 0.94e12/s. Multiply-adds alone: 0.16 ms (60 TFLOP/s).
// next   ordinary multiply-adds end here. Tensor cores do 2048 of them for one instruction of a warp, 64 times as many.
// ref    src/ops/conv/reference.rs; tests/ladder.rs
// limit  C and K multiples of 8, x and W at multiples of 16 bytes; N H W and 9 C K below 2^31.
#include "conv3x3_args.cuh"

extern "C" __global__ void __launch_bounds__(256) ladder_conv3x3_2(const __grid_constant__ LadderConvArgs a) {
  constexpr int SIDE = 8, HALO = SIDE + 2, CHUNK = 32;
  __shared__ __align__(16) float pixels[HALO * HALO][CHUNK];
  __shared__ uint4 filter[9][CHUNK][4];  // 8 output channels each

  const uint32_t tiles_x = (a.width + SIDE - 1) / SIDE, tiles_y = (a.height + SIDE - 1) / SIDE;
  const int left = (int)(blockIdx.x % tiles_x) * SIDE, top = (int)(blockIdx.x / tiles_x % tiles_y) * SIDE;
  const size_t image = blockIdx.x / tiles_x / tiles_y;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32;
  const uint32_t first_k = blockIdx.y * 32;

  float sums[SIDE] = {};
  for (uint32_t first = 0; first < a.c; first += CHUNK) {
    __syncthreads();  // nobody reads the last chunk any more
    // The tile with its halo: a thread brings 8 channels of a pixel. Zeros outside the picture and beyond the last channel.
    for (int i = threadIdx.x; i < HALO * HALO * 4; i += 256) {
      const int p = i / 4, channel = i % 4 * 8, y = top - 1 + p / HALO, x = left - 1 + p % HALO;
      float v[8] = {};
      if (y >= 0 && y < (int)a.height && x >= 0 && x < (int)a.width && first + channel < a.c)
        load(a.x + ((image * a.height + y) * a.width + x) * a.c + first + channel, v);
      float4* to = reinterpret_cast<float4*>(&pixels[p][channel]);
      to[0] = make_float4(v[0], v[1], v[2], v[3]);
      to[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
    // The filter: 8 output channels of a row.
    for (int i = threadIdx.x; i < 9 * CHUNK * 4; i += 256) {
      const int k = i % 4 * 8, c = i / 4 % CHUNK, tap = i / 4 / CHUNK;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (first + c < a.c && first_k + k < a.k)
        v = *word_at<const uint4>(a.w + ((size_t)tap * a.c + first + c) * a.k + first_k + k);
      filter[tap][c][i % 4] = v;
    }
    __syncthreads();  // the chunk is complete

#pragma unroll 1
    for (int down = 0; down < 3; down++) {
#pragma unroll 1
      for (int c = 0; c < CHUNK; c += 4) {
        float4 v[HALO];  // 4 channels of 10 pixels: the same for all lanes, so each load is a broadcast
#pragma unroll
        for (int i = 0; i < HALO; i++) v[i] = *reinterpret_cast<const float4*>(&pixels[(row + down) * HALO + i][c]);
#pragma unroll
        for (int right = 0; right < 3; right++) {
          float w[4];
#pragma unroll
          for (int j = 0; j < 4; j++) w[j] = to_float(reinterpret_cast<const __nv_bfloat16*>(filter[down * 3 + right][c + j])[lane]);
#pragma unroll
          for (int i = 0; i < SIDE; i++) {
            sums[i] = fmaf(v[i + right].x, w[0], sums[i]);
            sums[i] = fmaf(v[i + right].y, w[1], sums[i]);
            sums[i] = fmaf(v[i + right].z, w[2], sums[i]);
            sums[i] = fmaf(v[i + right].w, w[3], sums[i]);
          }
        }
      }
    }
  }
  const uint32_t k = first_k + lane;
  if (top + row >= (int)a.height || k >= a.k) return;  // no barrier follows
#pragma unroll
  for (int i = 0; i < SIDE; i++)
    if (left + i < (int)a.width)
      a.y[((image * a.height + top + row) * a.width + left + i) * a.k + k] = from_float<__nv_bfloat16>(sums[i]);
}
