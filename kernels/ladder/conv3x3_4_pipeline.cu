// conv3x3_4_pipeline.cu: rung 3 with copies under way while it multiplies, and without bank conflicts.
//
// idea   time overlaps. `cp.async` sends 16 bytes from global to shared memory and does not wait; there are two buffers, and while the
//        tensor cores work on one, the next chunk travels to the other. One barrier a chunk is left. And the tile is turned round:
//        [unit][pixel][16 bytes], so that the 8 rows of a matrix, neighbouring pixels, are 128 contiguous bytes: all banks once. The distance
//        between units, 182 pixels, is 2 modulo 4, so that 8 neighbouring threads, which copy 4 units of 2 pixels, write to all banks too.
// math   y[p,k] = sum_{t,c} x[p+t,c] W[t,c,k]                                                            0 outside the picture
// shapes as rung 3
// map    as rung 3; 60,160 bytes of shared memory a block, so three blocks a multiprocessor.
// num    as rung 3, and its bits.
// predicted (H200, 64 pictures of 64x64, 64 to 32 channels) 25 us, 1.6 times faster, now by L2: each block reads the whole filter, 75 MB in all,
//        beside 47 MB of pixels and 17 MB of results. Close behind: shared memory (21 us: 13 accesses of 128 bytes a step and what the copies
//        write) and mma.sync (19 us).
// next   larger tiles read the filter less often; and the norm before and the statistics behind, which are passes of their own here
//        (19 us of memory), can ride along: that is the engine's conv.cu.
// ref    src/ops/conv/reference.rs; tests/ladder.rs
// limit  as rung 3.
#include "conv3x3_args.cuh"
#include "products.cuh"

static constexpr int LADDER_CONV3X3_4_SHARED = 60160;  // rust

extern "C" __global__ void __launch_bounds__(128) ladder_conv3x3_4(const __grid_constant__ LadderConvArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  constexpr int ROWS = 8, COLS = 16, ROW = COLS + 2, HALO = (ROWS + 2) * ROW, PITCH = HALO + 2, CHUNK = 32;
  constexpr int UNIT_BYTES = PITCH * 16, TAP_BYTES = 4 * 32 * 16, PIXELS_BYTES = 4 * UNIT_BYTES, STAGE = PIXELS_BYTES + 9 * TAP_BYTES;
  static_assert(PITCH % 4 == 2, "units of neighbouring pixels in different banks");
  static_assert(2 * STAGE == LADDER_CONV3X3_4_SHARED, "two buffers");

  const uint32_t tiles_x = (a.width + COLS - 1) / COLS, tiles_y = (a.height + ROWS - 1) / ROWS;
  const int left = (int)(blockIdx.x % tiles_x) * COLS, top = (int)(blockIdx.x / tiles_x % tiles_y) * ROWS;
  const size_t image = blockIdx.x / tiles_x / tiles_y;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunks = (int)(a.c + CHUNK - 1) / CHUNK;
  const uint4* packed = word_at<const uint4>(a.w) + (size_t)blockIdx.y * chunks * (9 * TAP_BYTES / 16);

  // Starts the copies of a chunk. Where nothing is to be read, cp.async writes zeros.
  auto start = [&](int chunk) {
    const smem_t to = smem_addr(smem) + chunk % 2 * STAGE;
    for (int i = threadIdx.x; i < HALO * 4; i += 128) {
      const int p = i / 4, y = top - 1 + p / ROW, x = left - 1 + p % ROW;
      const uint32_t channel = chunk * CHUNK + i % 4 * 8;
      const bool inside = y >= 0 && y < (int)a.height && x >= 0 && x < (int)a.width && channel < a.c;
      cp_async16(to + i % 4 * UNIT_BYTES + p * 16, a.x + (inside ? ((image * a.height + y) * a.width + x) * a.c + channel : 0), inside);
    }
    for (int i = threadIdx.x; i < 9 * TAP_BYTES / 16; i += 128)
      cp_async16(to + PIXELS_BYTES + i * 16, packed + chunk * (9 * TAP_BYTES / 16) + i);
    cp_async_commit();
  };

  const int own_pixel = lane / 16 * UNIT_BYTES + (warp * 2 * ROW + lane % 16) * 16;
  const int own_filter = PIXELS_BYTES + (lane / 8 % 2 * 32 + lane / 16 * 8 + lane % 8) * 16;

  float acc[2][4][4] = {};
  start(0);
  for (int chunk = 0; chunk < chunks; chunk++) {
    cp_async_wait<0>();
    __syncthreads();  // this chunk has arrived for all, and nobody reads the other buffer any more
    if (chunk + 1 < chunks) start(chunk + 1);
    const smem_t buffer = smem_addr(smem) + chunk % 2 * STAGE;
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
#pragma unroll
      for (int step = 0; step < 2; step++) {
        uint32_t x[2][4], w[4][2];
#pragma unroll
        for (int i = 0; i < 2; i++)
          ldmatrix_x4(x[i], buffer + own_pixel + ((i + tap / 3) * ROW + tap % 3) * 16 + step * 2 * UNIT_BYTES);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint32_t r[4];
          ldmatrix_x4(r, buffer + own_filter + tap * TAP_BYTES + (step * 2 * 32 + j * 8) * 16);
          w[j][0] = r[0], w[j][1] = r[1], w[j + 1][0] = r[2], w[j + 1][1] = r[3];
        }
        Bf16::multiply(acc, x, w);
      }
    }
  }

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
