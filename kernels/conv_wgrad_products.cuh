// conv_wgrad_products.cuh: the products of conv_wgrad.cu, from shared memory into the registers of a warp.
#pragma once
#include "conv_wgrad_tile.cuh"

// Sums of a warp: taps, blocks of 16 input channels, blocks of 8 output channels, the fragment.
template <class S> using WgradSums = float[S::WARP_TAPS][S::MB][S::NB][4];

// Calls f(t, i, j, r) for every element of WgradSums.
template <class S, class F> static __device__ __forceinline__ void wgrad_for_each(F f) {
#pragma unroll
  for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
    for (int i = 0; i < S::MB; i++)
#pragma unroll
      for (int j = 0; j < S::NB; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) f(t, i, j, r);
}

// The tf32 instruction drops the low 13 bits of its operands. Product::tf32 rounds them to the nearest (NaN stays NaN) ...
static __device__ __forceinline__ float wgrad_round(float v) {
  const uint32_t bits = __float_as_uint(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? v : __uint_as_float(bits + 0x1000u);
}
// ... and Product::fp32 takes the part that is kept, exactly, and the rest.
static __device__ __forceinline__ void wgrad_split(float v, uint32_t& big, uint32_t& small) {
  big = __float_as_uint(v) & 0xffffe000u;
  small = __float_as_uint(v - __uint_as_float(big));
}

// Where a warp works: column of taps, first channels within the block's, group of pixels.
struct WgradWarp { int tap_column, c, k, pg; };

// Fragments of dy over 16 pixels from `first`: [pixel][channel] in memory, so transposed on the way.
template <class S>
static __device__ __forceinline__ void wgrad_load_dy(const WgradBlock<S>& b, uint32_t (&f)[S::NB][2], int first, int k) {
  const int lane = threadIdx.x & 31;
  const smem_t at = smem_addr(b.dy + (first + (lane & 15)) * S::PITCH_DY + k + (lane >> 4) * 8);
#pragma unroll
  for (int j = 0; j < S::NB; j += 2) {
    uint32_t r[4];
    ldmatrix_x4_trans(r, at + j * 16);
    f[j][0] = r[0], f[j][1] = r[1], f[j + 1][0] = r[2], f[j + 1][1] = r[3];
  }
}

// sums += z dy over a stage. 3x3: the warp's three taps lie in one column, so that going down an 8x4 block of pixels in steps of
// two rows, what tap (2, s) reads is what tap (0, s) reads in the next step, and tap (1, s) reads the half of each.
template <class S>
static __device__ __forceinline__ void wgrad_products_bf16(const WgradBlock<S>& b, WgradSums<S>& sums, const WgradWarp& warp,
                                                           int stage) {
  const int lane = threadIdx.x & 31, lane_c = warp.c + (lane >> 3 & 1) * 8;
  uint32_t fb[S::NB][2];
  if constexpr (S::TAPS == 1) {
#pragma unroll 1
    for (int step = warp.pg; step < WGRAD_STEPS; step += S::PG) {
      const int first = stage * S::PIXELS + step * 16;
      wgrad_load_dy<S>(b, fb, first, warp.k);
      const smem_t at = smem_addr(b.z + (first + (lane & 7) + (lane >> 4) * 8) * S::PITCH_Z + lane_c);
#pragma unroll
      for (int i = 0; i < S::MB; i++) {
        uint32_t fa[4];
        ldmatrix_x4_trans(fa, at + i * 32);
#pragma unroll
        for (int j = 0; j < S::NB; j++) mma_bf16(sums[0][i][j], fa, fb[j]);
      }
    }
  } else {
#pragma unroll 1
    for (int block = warp.pg; block < S::PIXELS / 32; block += S::PG) {
      const int pixel = b.corner(block * 32 + (lane & 7)) + (lane >> 4) * b.halo_w + warp.tap_column;
      const smem_t two_rows = b.halo_w * (2 * S::PITCH_Z * 2);
      smem_t at = smem_addr(b.z + (stage * b.halo_pixels + pixel) * S::PITCH_Z + lane_c);
      uint32_t upper[S::MB][4], lower[S::MB][4];
#pragma unroll
      for (int i = 0; i < S::MB; i++) ldmatrix_x4_trans(upper[i], at + i * 32);
#pragma unroll
      for (int step = 0; step < 2; step++) {
        at += two_rows;
        wgrad_load_dy<S>(b, fb, stage * S::PIXELS + block * 32 + step * 16, warp.k);
#pragma unroll
        for (int i = 0; i < S::MB; i++) {
          ldmatrix_x4_trans(lower[i], at + i * 32);
          const uint32_t middle[4] = {upper[i][2], upper[i][3], lower[i][0], lower[i][1]};
#pragma unroll
          for (int j = 0; j < S::NB; j++) mma_bf16(sums[0][i][j], upper[i], fb[j]);
#pragma unroll
          for (int j = 0; j < S::NB; j++) mma_bf16(sums[1][i][j], middle, fb[j]);
#pragma unroll
          for (int j = 0; j < S::NB; j++) mma_bf16(sums[2][i][j], lower[i], fb[j]);
#pragma unroll
          for (int r = 0; r < 4; r++) upper[i][r] = lower[i][r];
        }
      }
    }
  }
}

// Eight output channels of the border sums: row t of the first operand is 1 where tap t lies inside.
template <class S>
static __device__ __forceinline__ void wgrad_ones_bf16(const WgradBlock<S>& b, float (&ones)[4], int stage, int step) {
  const int lane = threadIdx.x & 31, k = threadIdx.x / 32 * 8, first = stage * S::PIXELS + step * S::KSTEP;
  const uint32_t tap = lane >> 2;
  uint32_t fb[2], fa[4];
  ldmatrix_x2_trans(fb, smem_addr(b.dy + (first + (lane & 15)) * S::PITCH_DY + k));
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t pair = 0x00010001u;  // the bits of two neighbouring pixels
    if (S::TAPS == 9) {
      const uint16_t* bits = b.inside + first + half * 8 + (lane & 3) * 2;
      pair = (uint32_t)bits[0] | (uint32_t)bits[1] << 16;
    }
    fa[2 * half] = (pair >> tap & 0x00010001u) * 0x3f80u;
    fa[2 * half + 1] = tap == 0 ? (pair >> 8 & 0x00010001u) * 0x3f80u : 0u;
  }
  mma_bf16(ones, fa, fb);
}

// A fragment in one or two parts.
template <int N> struct WgradParts { uint32_t big[N], small[N]; };

// sums += z dy for one fragment of z: 16 channels over two times 4 pixels, tf32 already rounded.
template <class S>
static __device__ __forceinline__ void wgrad_products(float (&sums)[S::NB][4], const float (&z)[4],
                                                      const WgradParts<2> (&fb)[S::NB]) {
  WgradParts<4> fa;
#pragma unroll
  for (int r = 0; r < 4; r++) {
    fa.big[r] = __float_as_uint(z[r]);
    if (S::PRODUCT == Product::fp32) wgrad_split(z[r], fa.big[r], fa.small[r]);
  }
#pragma unroll
  for (int j = 0; j < S::NB; j++) {
    if (S::PRODUCT == Product::fp32) {
      mma_tf32(sums[j], fa.small, fb[j].big);
      mma_tf32(sums[j], fa.big, fb[j].small);
    }
    mma_tf32(sums[j], fa.big, fb[j].big);
  }
}

// Fragments of dy over 8 pixels from `first`.
template <class S>
static __device__ __forceinline__ void wgrad_load_dy(const WgradBlock<S>& b, WgradParts<2> (&f)[S::NB], int first, int k) {
  const float* at = b.dy + (first + (threadIdx.x & 3)) * S::PITCH_DY + k + (threadIdx.x >> 2 & 7);
#pragma unroll
  for (int j = 0; j < S::NB; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float v = at[half * 4 * S::PITCH_DY + j * 8];
      if (S::PRODUCT == Product::fp32) wgrad_split(v, f[j].big[half], f[j].small[half]);
      else f[j].big[half] = __float_as_uint(wgrad_round(v));
    }
}

template <class S> static __device__ __forceinline__ void wgrad_load_z(float (&f)[4], const float* left, const float* right) {
#pragma unroll
  for (int r = 0; r < 4; r++) {
    const float v = (r >> 1 ? right : left)[(r & 1) * 8];
    f[r] = S::PRODUCT == Product::fp32 ? v : wgrad_round(v);
  }
}

// sums += z dy over a stage. 3x3: going down two rows of 8 pixels, a row of z serves the taps of the warp's column in turn.
template <class S>
static __device__ __forceinline__ void wgrad_products_f32(const WgradBlock<S>& b, WgradSums<S>& sums, const WgradWarp& warp,
                                                          int stage) {
  const int quad = threadIdx.x & 3;
  const float* z = b.z + warp.c + (threadIdx.x >> 2 & 7);
  WgradParts<2> fb[S::NB];
  if constexpr (S::TAPS == 1) {
#pragma unroll 1
    for (int step = warp.pg; step < WGRAD_STEPS; step += S::PG) {
      const int first = stage * S::PIXELS + step * 8;
      wgrad_load_dy<S>(b, fb, first, warp.k);
      const float* at = z + (first + quad) * S::PITCH_Z;
#pragma unroll
      for (int i = 0; i < S::MB; i++) {
        float fa[4];
        wgrad_load_z<S>(fa, at + i * 16, at + i * 16 + 4 * S::PITCH_Z);
        wgrad_products<S>(sums[0][i], fa, fb);
      }
    }
  } else {
#pragma unroll 1
    for (int block = warp.pg; block < S::PIXELS / 16; block += S::PG) {
      const float* at = z + (stage * b.halo_pixels + warp.tap_column) * S::PITCH_Z;
      const float *left = at + b.corner(block * 16 + quad) * S::PITCH_Z, *right = at + b.corner(block * 16 + 4 + quad) * S::PITCH_Z;
      const int row = b.halo_w * S::PITCH_Z;
      float fa[4][S::MB][4];
#pragma unroll
      for (int y = 0; y < 4; y++) {
#pragma unroll
        for (int i = 0; i < S::MB; i++) wgrad_load_z<S>(fa[y][i], left + y * row + i * 16, right + y * row + i * 16);
        if (y < 2) continue;
        wgrad_load_dy<S>(b, fb, stage * S::PIXELS + block * 16 + (y - 2) * 8, warp.k);
#pragma unroll
        for (int t = 0; t < 3; t++)
#pragma unroll
          for (int i = 0; i < S::MB; i++) wgrad_products<S>(sums[t][i], fa[y - 2 + t][i], fb);
      }
    }
  }
}

template <class S>
static __device__ __forceinline__ void wgrad_ones_f32(const WgradBlock<S>& b, float (&ones)[4], int stage, int step) {
  const int lane = threadIdx.x & 31, quad = lane & 3, k = threadIdx.x / 32 * 8, first = stage * S::PIXELS + step * S::KSTEP;
  const uint32_t tap = lane >> 2;
  const float* dys = b.dy + (first + quad) * S::PITCH_DY + k + (lane >> 2);
  uint32_t fb[2], fb_small[2], fa[4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float v = dys[half * 4 * S::PITCH_DY];
    if (S::PRODUCT == Product::fp32) wgrad_split(v, fb[half], fb_small[half]);
    else fb[half] = __float_as_uint(wgrad_round(v));
    const uint32_t bits = S::TAPS == 9 ? b.inside[first + half * 4 + quad] : 1;
    fa[2 * half] = (bits >> tap & 1) * 0x3f800000u;
    fa[2 * half + 1] = tap == 0 ? (bits >> 8 & 1) * 0x3f800000u : 0u;
  }
  if (S::PRODUCT == Product::fp32) mma_tf32(ones, fa, fb_small);
  mma_tf32(ones, fa, fb);
}
