// conv3x3_3_tensor.cu: the products on tensor cores, the nine taps as shifted addresses.
//
// idea   `mma.sync` multiplies a 16x16 matrix (pixels by channels) with a 16x8 one (channels by output channels) in one instruction of
//        a warp. `ldmatrix` loads such matrices from shared memory by the addresses of their rows, one a lane: a row is 8 channels of
//        a pixel, and for another tap each lane adds the same offset. No matrix of taps exists anywhere; the halo tile is read nine times
//        in place. The filter was packed so that a chunk of it is already what lies in shared memory: it is copied, not gathered.
// math   y[p,k] = sum_{t,c} x[p+t,c] W[t,c,k]                                                            0 outside the picture
// shapes x [N,H,W,C], y [N,H,W,K]; W packed: [32 output channels][chunk of 32][tap][unit of 8 channels][32 output channels][8]
// map    a block makes 8x16 pixels by 32 output channels (blockIdx.y); warp w makes rows 2w and 2w+1, each a matrix of 16 pixels, by 4
//        matrices of 8 channels: 8 products a step of 16 channels. 32 input channels at a time: 11.3 KB of pixels, 18 KB of filter.
// num    float32 sums over chunks, taps, steps in this order; rounded once. Tensor cores round their sums towards zero. Deterministic.
// predicted (H200, 64 pictures of 64x64, 64 to 32 channels) 41 us, 5.3 times faster, and 2.1 times above what mma.sync needs (19 us at
//        498 TFLOP/s). Rows of pixels are 64 bytes apart, so the 8 rows of a matrix share 2 of the 8 groups of banks: every load of pixels
//        takes 4 times as long. 29 accesses of 128 bytes a step where 13 would do (of 18 steps, 24 matrices of pixels and 36 of the
//        filter are loaded: a warp's second row under one tap is its first under the tap below). And copying and multiplying take turns.
// next   an arrangement without conflicts, and copies that travel while the tensor cores work.
// ref    src/ops/conv/reference.rs; tests/ladder.rs
// limit  C and K multiples of 8, x and W at multiples of 16 bytes; N H W below 2^31.
#include "conv3x3_args.cuh"
#include "products.cuh"

extern "C" __global__ void __launch_bounds__(128) ladder_conv3x3_3(const __grid_constant__ LadderConvArgs a) {
  constexpr int ROWS = 8, COLS = 16, PITCH = COLS + 2, HALO = (ROWS + 2) * PITCH, CHUNK = 32;
  constexpr int PIXEL_BYTES = CHUNK * 2, TAP_BYTES = 4 * 32 * 16;
  __shared__ __align__(128) unsigned char pixels[HALO * PIXEL_BYTES];  // [pixel][unit][16 bytes]
  __shared__ __align__(128) unsigned char filter[9 * TAP_BYTES];       // [tap][unit][output channel][16 bytes]

  const uint32_t tiles_x = (a.width + COLS - 1) / COLS, tiles_y = (a.height + ROWS - 1) / ROWS;
  const int left = (int)(blockIdx.x % tiles_x) * COLS, top = (int)(blockIdx.x / tiles_x % tiles_y) * ROWS;
  const size_t image = blockIdx.x / tiles_x / tiles_y;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunks = (int)(a.c + CHUNK - 1) / CHUNK;
  const uint4* packed = word_at<const uint4>(a.w) + (size_t)blockIdx.y * chunks * (9 * TAP_BYTES / 16);

  // This lane's row of a matrix of pixels: pixel lane % 16 of the warp's first row, first or second unit of a step.
  const smem_t own_pixel = smem_addr(pixels) + (warp * 2 * PITCH + lane % 16) * PIXEL_BYTES + lane / 16 * 16;
  // Of two matrices of the filter: output channel lane % 8 of the first or second eight, first or second unit of a step.
  const smem_t own_filter = smem_addr(filter) + (lane / 8 % 2 * 32 + lane / 16 * 8 + lane % 8) * 16;

  float acc[2][4][4] = {};
  for (int chunk = 0; chunk < chunks; chunk++) {
    __syncthreads();  // nobody reads the last chunk any more
    for (int i = threadIdx.x; i < HALO * 4; i += 128) {
      const int p = i / 4, y = top - 1 + p / PITCH, x = left - 1 + p % PITCH;
      const uint32_t channel = chunk * CHUNK + i % 4 * 8;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (y >= 0 && y < (int)a.height && x >= 0 && x < (int)a.width && channel < a.c)
        v = *word_at<const uint4>(a.x + ((image * a.height + y) * a.width + x) * a.c + channel);
      reinterpret_cast<uint4*>(pixels)[i] = v;
    }
    for (int i = threadIdx.x; i < 9 * TAP_BYTES / 16; i += 128)
      reinterpret_cast<uint4*>(filter)[i] = packed[chunk * (9 * TAP_BYTES / 16) + i];
    __syncthreads();  // the chunk is complete

#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
#pragma unroll
      for (int step = 0; step < 2; step++) {  // of 16 channels
        uint32_t x[2][4], w[4][2];
#pragma unroll
        for (int i = 0; i < 2; i++)
          ldmatrix_x4(x[i], own_pixel + ((i + tap / 3) * PITCH + tap % 3) * PIXEL_BYTES + step * 32);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint32_t r[4];
          ldmatrix_x4(r, own_filter + tap * TAP_BYTES + (step * 2 * 32 + j * 8) * 16);
          w[j][0] = r[0], w[j][1] = r[1], w[j + 1][0] = r[2], w[j + 1][1] = r[3];
        }
        Bf16::multiply(acc, x, w);
      }
    }
  }

  // A lane holds 2 neighbouring channels of pixels lane / 4 and 8 further.
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int y = top + warp * 2 + i, x = left + lane / 4 + half * 8;
      if (y >= (int)a.height || x >= (int)a.width) continue;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint32_t k = blockIdx.y * 32 + j * 8 + lane % 4 * 2;
        if (k < a.k)
          *word_at<uint32_t>(a.y + ((image * a.height + y) * a.width + x) * a.k + k) = pack_bf16(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
      }
    }
}
