// conv.cu: convolution 3x3 (zero padding 1) or 1x1 on tensor cores, fused with what stands before and after it.
//
// math   z[p,c]  = silu?(scale[c] x[p,c] + shift[c])                     0 outside the picture, after the norm; scale and shift of the
//                                                                       pixel's image where there is a row of them for each (group norm)
//        u[p,k]  = sum_{t,c} z[p+t,c] W[t,c,k] + sum_r res[p,r] R[r,k]
//        y[p,k]  = (u + bias + bias_res) silu'(h) + a v + b + add        each only where given, in this order; the bias likewise
//        stats   = per (image, channel) mean and sum of squared deviations of the stored y
//        The gradient of the input is the same product with the filter turned round by conv_pack.
// shapes x, res [N,H,W,C] as one or two tensors concatenated along C; y [N,H,W,K] likewise split at k0; filter packed by conv_pack.
// map    a block makes M pixels (rows x cols of one image, or several small images) by N output channels. Per chunk of 4 units of
//        input channels it brings the tile with its halo to shared memory once, applies the prologue there once per element, and
//        runs over the nine taps by moving the address: every tap reads the same chunk. A warp makes WM x WN; per step of two units
//        it loads A (pixels) and B (filter) by ldmatrix and multiplies by mma.sync. While a row of the filter is used, the next row
//        and the next chunk are on their way.
// types  bfloat16: m16n8k16. float32: m16n8k8 in tf32; ldmatrix of 16-byte rows gives the fragments of both. `tf32` rounds operands
//        to nearest before; `f32` splits each operand into a part of 11 bits and the exact rest and adds three products, which
//        has the accuracy of float32.
// num    float32 sums, over chunks, taps, units in this order whatever the tile: an image's y depends neither on the batch nor on the
//        tile. Statistics in two passes per tile, tiles merged in a fixed order. No atomics: bit for bit repeatable. In `f32` an
//        infinite operand gives NaN (its rest is infinity minus infinity). Tensor cores round their sums towards zero, which the
//        simulator does not do: on a GPU a sum of 256 * 9 terms in `f32` (864 products) may be small by up to 5e-5.
// cost   analytic, not measured. 2 P (T C + R) K FLOP for P pixels; bytes: P (C + R + K) elements, those of the epilogue's tensors, and
//        the filter. From L2 again: the halo (1.27 of the pixels at 16x16, 1.41 at 8x16), and the input once per N output channels.
//        Shared memory: per step a warp of 64x32 reads 3 KiB for 32,768 multiply-adds (bfloat16), 1365 per clock at 128 bytes per
//        clock, about what mma.sync does: that is the limit of this design. A 64x64 layer of the seed, 32 to 32 channels, batch
//        64: 4.8 GFLOP, 33.6 MB in bfloat16, 7.8 us at 4.3 TB/s; reads and writes of shared memory alone take about twice that.
// ref    src/ops/conv/reference.rs; tests/gpu_conv.rs
// limit  indices of pixels are 32 bits; the packed filter lies at a multiple of 16 bytes. Channel counts that are no multiple of a
//        unit, and views not at a multiple of 16 bytes, take slower loads and stores of single elements. Tiles 4 pixels wide (pictures
//        up to 4x4) read A with two-way bank conflicts: eight pixels of a matrix are then two rows of the halo.
#include "conv_epilogue.cuh"

// Bytes of one tap of a chunk for CONV_PACK_CHANNELS output channels.
static constexpr int TAP_BYTES = CONV_CHUNK_UNITS * CONV_PACK_CHANNELS * CONV_UNIT_BYTES;

// One row of the filter on one chunk: TAPS taps of two steps each. `pixels[i]`: byte address, in the chunk, of this lane's row of the
// i-th A matrix at the first tap; `w`: of this lane's row of B. `unit`: bytes from a unit of pixels to the next.
template <class Math, int TAPS, int MI, int NI>
static __device__ __forceinline__ void multiply_row(float (&acc)[MI][NI][4], const smem_t (&pixels)[MI], smem_t w, int unit) {
#pragma unroll
  for (int tap = 0; tap < TAPS; tap++) {
#pragma unroll
    for (int step = 0; step < CONV_CHUNK_UNITS; step += 2) {
      uint32_t x[MI][4], b[NI][2];
#pragma unroll
      for (int i = 0; i < MI; i++) ldmatrix_x4(x[i], pixels[i] + tap * CONV_UNIT_BYTES + step * unit);
#pragma unroll
      for (int j = 0; j < NI; j += 2) {
        uint32_t r[4];
        ldmatrix_x4(r, w + tap * TAP_BYTES + (step * CONV_PACK_CHANNELS + j * 8) * CONV_UNIT_BYTES);
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
      Math::multiply(acc, x, b);
    }
  }
}

template <class Math, int M, int N, int WM, int WN> static __device__ __forceinline__ void conv_tile(const ConvArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  typedef typename Math::T T;
  constexpr int WARPS_M = M / WM, THREADS = WARPS_M * (N / WN) * 32, MI = WM / 16, NI = WN / 8;
  constexpr int CHUNK = CONV_CHUNK_UNITS * VECTOR<T>, PACKS = N / CONV_PACK_CHANNELS;
  static_assert(CONV_PACK_CHANNELS % WN == 0 && NI % 2 == 0, "a warp's channels lie in one pack");

  const int side = (int)a.side, pad = side / 2, taps = side * side;
  const uint32_t channel_tiles = (a.k + N - 1) / N;
  const int first_k = (int)(blockIdx.x % channel_tiles) * N;
  const Tile tile = tile_of<M>(a, blockIdx.x / channel_tiles);
  const int row_pixels = tile.cols + 2 * pad, image_pixels = (tile.rows + 2 * pad) * row_pixels;
  const int halo = tile.images * image_pixels;           // pixels of the main operand's chunk
  const int halo_pitch = halo + ((2 - halo) & 3), plain_pitch = M + 2;  // 2 modulo 4

  // Shared memory: where the pixels are, with and without halo; then the pipeline: two rows of the filter, one or two chunks of pixels.
  // Over the pipeline, later, the results.
  int2* plain = reinterpret_cast<int2*>(smem);
  int2* haloed = plain + M;
  unsigned char* pipeline = smem + ((M + halo_pitch) * (int)sizeof(int2) + 127) / 128 * 128;
  const int row_bytes = PACKS * side * TAP_BYTES, chunk_bytes = halo_pitch * CONV_CHUNK_UNITS * CONV_UNIT_BYTES;
  unsigned char* chunk_buffers = pipeline + 2 * row_bytes;
  locate_pixels<THREADS>(a, tile, 0, plain);
  locate_pixels<THREADS>(a, tile, pad, haloed);
  __syncthreads();  // the tables are complete

  const int main_chunks = ((int)(a.c0 + a.c1) + CHUNK - 1) / CHUNK;
  const int chunks = main_chunks + ((int)(a.r0 + a.r1) + CHUNK - 1) / CHUNK;
  const size_t pack_bytes = (size_t)(main_chunks * taps + chunks - main_chunks) * TAP_BYTES;
  const unsigned char* filter = static_cast<const unsigned char*>(a.w) + first_k / CONV_PACK_CHANNELS * pack_bytes;

  auto buffer_of = [&](int chunk) { return chunk_buffers + (a.stages > 1 ? chunk & 1 : 0) * chunk_bytes; };
  // A chunk of pixels on its way: `start` begins to copy, else what was copied is prepared.
  auto move_pixels = [&](int chunk, bool start) {
    const bool main = chunk < main_chunks;
    const Source<T> source = main ? Source<T>(a.x0, a.x1, a.c0, a.c1, a.x1_constant != 0, a.scale, a.shift, a.affine_images != 0, a.silu != 0)
                                  : Source<T>(a.res0, a.res1, a.r0, a.r1, a.res1_constant != 0, nullptr, nullptr, false, false);
    const int first = (main ? chunk : chunk - main_chunks) * CHUNK;
    const int2* where = main ? haloed : plain;
    const int count = main ? halo : M, pitch = main ? halo_pitch : plain_pitch;
    if (start) {
      start_chunk<T, Math::ROUND, THREADS>(source, first, where, count, buffer_of(chunk), pitch);
    } else {
      finish_chunk<T, Math::ROUND, THREADS>(source, first, where, count, buffer_of(chunk), pitch);
    }
  };
  // Starts the copy of row `step` of the filter: `side` rows of `side` taps for a main chunk, one tap for a residual one.
  auto start_filter = [&](int step) {
    const int residual_step = step - main_chunks * side;
    const int bytes = (residual_step < 0 ? side : 1) * TAP_BYTES;
    const unsigned char* from = filter + (size_t)(residual_step < 0 ? step * side : main_chunks * taps + residual_step) * TAP_BYTES;
    unsigned char* to = pipeline + (step & 1) * row_bytes;
#pragma unroll
    for (int pack = 0; pack < PACKS; pack++) {
      const bool present = first_k + pack * CONV_PACK_CHANNELS < (int)a.k;
      for (int i = threadIdx.x * 16; i < bytes; i += THREADS * 16)
        cp_async16(smem_addr(to + pack * bytes + i), from + (present ? pack * pack_bytes + i : 0), present);
    }
  };

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % WARPS_M * WM, warp_n = warp / WARPS_M * WN;
  // This lane's rows of the A matrices: pixels lane % 16 of each group of 16, in the first or second unit of a step.
  int haloed_row[MI];
#pragma unroll
  for (int i = 0; i < MI; i++) {
    const int p = warp_m + i * 16 + lane % 16;
    const int image = p >> (a.log_rows + a.log_cols), y = p >> a.log_cols & (tile.rows - 1), x = p & (tile.cols - 1);
    haloed_row[i] = (image * image_pixels + y * row_pixels + x + lane / 16 * halo_pitch) * CONV_UNIT_BYTES;
  }
  const int plain_row = (warp_m + lane % 16 + lane / 16 * plain_pitch) * CONV_UNIT_BYTES;
  // Of B: output channel lane % 8 of the first or second eight (lane / 16), in the first or second unit (lane / 8 % 2).
  const int filter_row = (lane / 8 % 2 * CONV_PACK_CHANNELS + warp_n % CONV_PACK_CHANNELS + lane / 16 * 8 + lane % 8) * CONV_UNIT_BYTES;

  float acc[MI][NI][4];
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int j = 0; j < NI; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;

  start_filter(0);
  move_pixels(0, true);
  cp_async_commit();
  int step = 0;  // rows of the filter so far
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    const bool main = chunk < main_chunks;
    const int rows = main ? side : 1;
    const smem_t base = smem_addr(buffer_of(chunk));
    smem_t pixels[MI];
#pragma unroll
    for (int i = 0; i < MI; i++) pixels[i] = base + (main ? haloed_row[i] : plain_row + i * 16 * CONV_UNIT_BYTES);
#pragma unroll 1
    for (int row = 0; row < rows; row++, step++) {
      cp_async_wait<0>();
      if (row == 0) move_pixels(chunk, false);
      // This row of the filter and this chunk are complete, and nobody reads the buffers of the next ones any more.
      __syncthreads();
      if (row + 1 < rows || chunk + 1 < chunks) start_filter(step + 1);
      if (row == 0 && chunk + 1 < chunks) move_pixels(chunk + 1, true);
      cp_async_commit();

      const int pack_row = (main ? side : 1) * TAP_BYTES;
      const smem_t w = smem_addr(pipeline) + (step & 1) * row_bytes + warp_n / CONV_PACK_CHANNELS * pack_row + filter_row;
      if (main && side == 3) {
        multiply_row<Math, 3>(acc, pixels, w, halo_pitch * CONV_UNIT_BYTES);
#pragma unroll
        for (int i = 0; i < MI; i++) pixels[i] += row_pixels * CONV_UNIT_BYTES;
      } else {
        multiply_row<Math, 1>(acc, pixels, w, (main ? halo_pitch : plain_pitch) * CONV_UNIT_BYTES);
      }
    }
  }
  __syncthreads();  // the results take the place of the pipeline

  float* results = reinterpret_cast<float*>(pipeline);
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int j = 0; j < NI; j++) {
      float* r = results + (warp_m + i * 16 + lane / 4) * RESULT_PITCH<N> + warp_n + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(r) = make_float2(acc[i][j][0], acc[i][j][1]);
      *reinterpret_cast<float2*>(r + 8 * RESULT_PITCH<N>) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
  __syncthreads();  // the results are complete
  write_tile<T, M, N, THREADS>(a, tile, plain, first_k, results, results + M * RESULT_PITCH<N>);
}

// M pixels by N channels; all have 4 warps.
extern "C" __global__ void __launch_bounds__(128, 3) conv_fwd_m256n32_bf16(const __grid_constant__ ConvArgs a) { conv_tile<Bf16, 256, 32, 64, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) conv_fwd_m128n64_bf16(const __grid_constant__ ConvArgs a) { conv_tile<Bf16, 128, 64, 64, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) conv_fwd_m64n64_bf16(const __grid_constant__ ConvArgs a) { conv_tile<Bf16, 64, 64, 32, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) conv_fwd_m64n32_bf16(const __grid_constant__ ConvArgs a) { conv_tile<Bf16, 64, 32, 32, 16>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) conv_fwd_m256n32_tf32(const __grid_constant__ ConvArgs a) { conv_tile<Tf32, 256, 32, 64, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) conv_fwd_m128n64_tf32(const __grid_constant__ ConvArgs a) { conv_tile<Tf32, 128, 64, 64, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) conv_fwd_m64n64_tf32(const __grid_constant__ ConvArgs a) { conv_tile<Tf32, 64, 64, 32, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) conv_fwd_m64n32_tf32(const __grid_constant__ ConvArgs a) { conv_tile<Tf32, 64, 32, 32, 16>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) conv_fwd_m256n32_f32(const __grid_constant__ ConvArgs a) { conv_tile<Fp32, 256, 32, 64, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) conv_fwd_m128n64_f32(const __grid_constant__ ConvArgs a) { conv_tile<Fp32, 128, 64, 64, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) conv_fwd_m64n64_f32(const __grid_constant__ ConvArgs a) { conv_tile<Fp32, 64, 64, 32, 32>(a); }
extern "C" __global__ void __launch_bounds__(128, 4) conv_fwd_m64n32_f32(const __grid_constant__ ConvArgs a) { conv_tile<Fp32, 64, 32, 32, 16>(a); }
