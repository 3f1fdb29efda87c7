// conv_wgrad.cu: gradients of the weights of a 3x3 or 1x1 convolution, and the sums of dy that ride along.
//
// Mathematics. Pixels p of all pictures, taps t, input channels c of x0 and x1 in a row, output channels k:
//
//   dW[t,c,k] += sum_p z[p+t,c] dy[p,k]         z = silu?(scale x + shift), 0 outside the picture AFTER the norm;
//                                               scale and shift for all images or a row of them for each
//   S[t,k]     = sum_p [p+t inside] dy[p,k]     border sums; the centre tap's is the gradient of the bias
//
// A matrix product of M = c, N = k for each tap, over the pixels. x [N,H,W,C0], [N,H,W,C1] or [N,C1]; dy [N,H,W,K]; any extents and
// any alignment of elements, each tensor float32 or bfloat16. Vectors of 16 bytes where addresses and channels are multiples.
//
// conv_wgrad_<side>_<c>x<k>_<product>: grid (blocks of k, slices of pixels, blocks of c). A block goes through the tiles of its
// slice and writes a partial sum; conv_wgrad_reduce_f32 adds the slices.
// - A tile is 128 pixels (bf16) or 64 of 4 to 16 columns, 4 or 8 rows and as many images as fill it. Its z, with a border of one
//   pixel for 3x3, lies in shared memory as [pixel][channel], and so does its dy: x and dy are read once for all nine taps. Pixels
//   outside have z = dy = 0. The prologue runs once per element, in place, by the thread whose cp.async brought it; operands that
//   do not come in vectors, and constant ones, pass it on their way in.
// - Three stages: the products of a tile run beside the prologue of the next and the copies of the one after, with one barrier.
// - 3x3: 12 warps are three columns of taps by four parts, which are blocks of 32x32 channels or, where a block has fewer, groups of
//   pixels. A warp keeps 3 taps x 32 x 32 sums in 96 registers. Going down its pixels, a row of z serves the three taps of the
//   column one after the other and is loaded once: 5 ldmatrix for 24 mma (8 with a row of taps). 1x1: 8 warps, one tap.
// - Border sums are one more product whose first operand is made in registers: row t is 1 where tap t lies inside. Warp i of the
//   blocks of the first c does it for 8 channels. 1 is exact, so these are plain sums of dy (as the product rounds dy).
//
// Numerics. bf16: factors bfloat16 (z rounded after the prologue), sums float32. tf32: factors rounded to the nearest tf32. f32:
// three tf32 products for one, small x big + big x small + big x big; the tensor unit rounds its sums towards zero, so it only adds
// up a tile, and tiles are added outside. Relative 2-norm against float64 2e-3, 4e-4, 8e-7 (tests/gpu_conv_wgrad.rs).
// Every sum has a fixed order: tiles in a slice, groups of pixels in a block, slices in the reduction. The cut into slices follows
// from the shape (src/ops/conv/gpu/wgrad.rs), so results repeat bit for bit, on any GPU of an architecture.
//
// Counts for the seed network, batch 64, bf16, a step: 119 GFLOP; operands once 0.79 GB, with borders and repeats for blocks of c and
// k 1.22 GB; partial sums written and read 0.47 GB. A 3x3 tile by 32x32 channels (128 pixels of 16x8): 576 mma, some 920 cycles at
// mma.sync's usual 60% of the peak; shared memory 810; issue 890; 25 KB from L2 at 24 bytes a cycle 820. Predicted for an H100: 0.58
// ms a step, a third of 600 TFLOP/s; small pictures are bound by partial sums and launches. Not measured.
//
// Shared memory is free of bank conflicts: pitches of channels + 8 elements put 8 pixels (ldmatrix), 4 pixels x 8 channels (32-bit
// loads) and 128 bytes of a copy into different banks. One block a multiprocessor for 3x3, two for 1x1.
//
// Reference: src/ops/conv/reference.rs, wgrad. Limits: fewer than 2^31 pixels and elements of dW; a picture narrower than 4 or lower
// than 4 wastes part of its tiles.
#include "conv_wgrad_products.cuh"

// Two neighbouring elements of a row of a partial sum.
static __device__ __forceinline__ void wgrad_store(float* row, int k, int k_all, float v0, float v1) {
  if (k_all % 2 == 0) {
    if (k < k_all) *reinterpret_cast<float2*>(row + k) = make_float2(v0, v1);
  } else {
    if (k < k_all) row[k] = v0;
    if (k + 1 < k_all) row[k + 1] = v1;
  }
}

template <class S> static __device__ __forceinline__ void wgrad_body(const ConvWgradArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  WgradBlock<S> b(a, smem);
  const int lane = threadIdx.x & 31, w = threadIdx.x >> 5, c_all = a.c0 + a.c1, k_all = a.k;
  const WgradWarp warp = {w / (S::PG * S::WARPS_K * S::WARPS_C), w / (S::PG * S::WARPS_K) % S::WARPS_C * S::MB * 16,
                          w / S::PG % S::WARPS_K * S::NB * 8, w % S::PG};
  const bool products = b.c_first + warp.c < c_all && b.k_first + warp.k < k_all;
  const bool with_ones = (a.flags & WGRAD_SUMS) && b.c_first == 0 && w < S::KT / 8;
  const int begin = (int)((uint64_t)a.tiles * blockIdx.y / gridDim.y);
  const int end = (int)((uint64_t)a.tiles * (blockIdx.y + 1) / gridDim.y);

  b.tables();
  WgradSums<S> sums = {};
  float ones[4] = {};

  // Three stages: the tile in work, the next one, whose prologue runs beside the products, and one whose copies are under way.
  // Of the warps of each scheduler some begin with the prologue and some with the products.
  const int prologue_first = w >> 2 & 1;
  int stage = 1, stage_next = 2, stage_after = 0;
#pragma unroll 1
  for (int tile = begin - 2; tile < end; tile++) {
    __syncthreads();  // this tile (at first the tables) is complete, and all warps are done with the one before
    if (tile + 2 < end) b.issue(b.tile(tile + 2), stage_after);
    cp_async_commit();
#pragma unroll 1
    for (int phase = 0; phase < 2; phase++) {
      if (phase != prologue_first) {
        cp_async_wait<1>();
        if (tile + 1 >= begin && tile + 1 < end) b.prologue(b.tile(tile + 1), stage_next);
        continue;
      }
      if (tile < begin) continue;
      if (products) {
        if constexpr (S::PRODUCT == Product::bf16) wgrad_products_bf16<S>(b, sums, warp, stage);
        else if constexpr (S::PRODUCT == Product::tf32) wgrad_products_f32<S>(b, sums, warp, stage);
        else {
          WgradSums<S> of_tile = {};
          wgrad_products_f32<S>(b, of_tile, warp, stage);
          wgrad_for_each<S>([&](int t, int i, int j, int r) { sums[t][i][j][r] += of_tile[t][i][j][r]; });
        }
      }
      if (with_ones) {
        float of_tile[4] = {};
        float(&to)[4] = S::PRODUCT == Product::fp32 ? of_tile : ones;
#pragma unroll 1
        for (int step = 0; step < WGRAD_STEPS; step++) {
          if constexpr (S::PRODUCT == Product::bf16) wgrad_ones_bf16<S>(b, to, stage, step);
          else wgrad_ones_f32<S>(b, to, stage, step);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) ones[r] += of_tile[r];
      }
    }
    const int done = stage;
    stage = stage_next, stage_next = stage_after, stage_after = done;
  }

  // The groups of pixels, added in order by the warps of the first.
  float* exchange = reinterpret_cast<float*>(smem) + w / S::PG * sizeof(WgradSums<S>) / 4 * 32 + lane;
  const auto slot = [&](int t, int i, int j, int r) -> float& { return exchange[(((t * S::MB + i) * S::NB + j) * 4 + r) * 32]; };
#pragma unroll 1
  for (int group = 1; group < S::PG; group++) {
    __syncthreads();
    if (warp.pg == group)
      wgrad_for_each<S>([&](int t, int i, int j, int r) { slot(t, i, j, r) = sums[t][i][j][r]; });
    __syncthreads();
    if (warp.pg == 0)
      wgrad_for_each<S>([&](int t, int i, int j, int r) { sums[t][i][j][r] += slot(t, i, j, r); });
  }

  const size_t slice = (size_t)blockIdx.y * a.stride;
  const int row = lane >> 2, column = lane % 4 * 2;
  if (warp.pg == 0) {
#pragma unroll
    for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
      for (int i = 0; i < S::MB; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int c = b.c_first + warp.c + i * 16 + half * 8 + row;
          if (c >= c_all) continue;
          float* at = a.partial + slice + (size_t)((t * S::WARP_TAPS + warp.tap_column) * c_all + c) * k_all;
#pragma unroll
          for (int j = 0; j < S::NB; j++)
            wgrad_store(at, b.k_first + warp.k + j * 8 + column, k_all, sums[t][i][j][2 * half], sums[t][i][j][2 * half + 1]);
        }
  }
  if (with_ones) {
    float* at = a.partial_sums + slice;
    const int k = b.k_first + w * 8 + column;
    if (row < S::TAPS) wgrad_store(at + row * k_all, k, k_all, ones[0], ones[1]);
    if (S::TAPS == 9 && row == 0) wgrad_store(at + 8 * k_all, k, k_all, ones[2], ones[3]);
  }
}

struct ConvWgradReduceArgs {
  const float* partial;            // [slices][stride]: dW, border sums
  const float* partial_res;        // [slices_res][stride_res]: dR; null where there is no residual
  float* dw;                       // [T, C, K], accumulates
  float* dw_res;                   // [R, K], accumulates, or null
  float* db;                       // [K], accumulates, or null
  float* db_res;                   // [K], accumulates, or null
  float* border_sums;              // [T, K], overwritten, or null
  uint32_t slices, stride;         // strides are multiples of 4
  uint32_t slices_res, stride_res;
  uint32_t main, sums, res;        // elements of dW, the border sums and dR
  uint32_t k, centre;              // channels of a border sum; element of the centre tap's first
  uint32_t unused;
};
static_assert(sizeof(ConvWgradReduceArgs) == 96, "ConvWgradReduceArgs is mirrored in src/ops/conv/gpu/wgrad.rs");

static __device__ __forceinline__ void wgrad_accumulate(const ConvWgradReduceArgs& a, uint32_t e, float v) {
  if (e < a.main) {
    a.dw[e] += v;
  } else if (e < a.main + a.sums) {
    const uint32_t s = e - a.main;
    if (a.border_sums) a.border_sums[s] = v;
    if (s >= a.centre && s < a.centre + a.k) {
      if (a.db) a.db[s - a.centre] += v;
      if (a.db_res) a.db_res[s - a.centre] += v;
    }
  }
}

// Block (32, groups): a lane has four elements, a group every groups-th slice.
static __device__ __forceinline__ void wgrad_reduce_body(const ConvWgradReduceArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float4* parts = reinterpret_cast<float4*>(smem);  // [groups][32]
  const uint32_t groups = blockDim.y, group = threadIdx.y, lane = threadIdx.x;
  const uint32_t at = (blockIdx.x * 32 + lane) * 4;
  const bool res = at >= a.stride;  // dR follows dW and the border sums
  const uint32_t e = res ? at - a.stride : at, live = res ? a.res : a.main + a.sums;
  const uint32_t stride = res ? a.stride_res : a.stride, slices = res ? a.slices_res : a.slices;
  const float* partial = (res ? a.partial_res : a.partial) + e;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (e + 4 <= live) {
#pragma unroll 4
    for (uint32_t s = group; s < slices; s += groups) {
      const float4 v = *reinterpret_cast<const float4*>(partial + (size_t)s * stride);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
  } else if (e < live) {
    for (uint32_t s = group; s < slices; s += groups) {
      const float* p = partial + (size_t)s * stride;
      sum.x += p[0];
      if (e + 1 < live) sum.y += p[1];
      if (e + 2 < live) sum.z += p[2];
    }
  }
  parts[group * 32 + lane] = sum;
  __syncthreads();
  if (group != 0) return;  // no barrier follows
  for (uint32_t g = 1; g < groups; g++) {
    const float4 v = parts[g * 32 + lane];
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  float* dst = res ? a.dw_res : a.dw;
  if (e + 4 <= (res ? a.res : a.main) && reinterpret_cast<uintptr_t>(dst) % 16 == 0) {
    float4* four = reinterpret_cast<float4*>(dst + e);
    const float4 v = *four;
    *four = make_float4(v.x + sum.x, v.y + sum.y, v.z + sum.z, v.w + sum.w);
    return;
  }
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    if (!res) wgrad_accumulate(a, e + i, values[i]);
    else if (e + i < a.res) a.dw_res[e + i] += values[i];
  }
}

extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 64, 64, 32, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 64, 32, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 32, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 32, 32, 32, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 64, 32, 32, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 32, 64, 32, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 32, 32, 32, 8>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 64, 64, 32, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 64, 32, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 32, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 32, 32, 32, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 1, 32, 32, 32, 8>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 9, 32, 64, 16, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 9, 32, 32, 16, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x64_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 1, 64, 64, 16, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x32_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 1, 32, 32, 16, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(512) conv_wgrad_reduce_f32(const __grid_constant__ ConvWgradReduceArgs a) {
  wgrad_reduce_body(a);
}
