// conv2d.cu: convolution with any window, stride and padding, forward only, into some of the channels of its output.
//
// math   y[p, y_first + k] = f( bias[k] + sum_t x[p, t] w[k, t] ), t over window rows, window columns, channels; f: identity, or max(0, .)
// shapes x [n, h, w, c]; filter [k, pitch], t within a row, zeros from kernel_h kernel_w c on; y [n, out_h, out_w, y_channels]; all float32
// map    a block makes 64 pixels by 64 output channels and goes along t by 32: both operands come to shared memory, the next while these are
//        multiplied. Four warps, each 32 by 32. A thread brings the same four rows of both tiles in every turn.
// num    products as in products.cuh: f32 as accurate as float32, tf32 with factors rounded to tf32. Sums in float32, t in order: repeatable.
// cost   analytic, not measured; not run on a GPU. 64x64x32 is 8 mma steps of 8 per warp (24 in f32) against 16 KB from L2: bound by that.
// ref    src/ops/conv2d/reference.rs, tests/ops_inception.rs
// limit  fewer than 2^31 elements of each operand; filter and x at multiples of 16 bytes, and c one of 4, for copies of 16 bytes
#include <cstdint>

#include "elements.cuh"
#include "products.cuh"
#include "ptx.cuh"

static constexpr int CONV2D_TILE = 64;       // rust
static constexpr int CONV2D_THREADS = 128;   // rust
static constexpr int CONV2D_SHARED = 36864;  // rust
static constexpr int CONV2D_DEPTH = 32;
static constexpr int CONV2D_PITCH = CONV2D_DEPTH + 4;  // eight rows of a matrix of ldmatrix lie in different banks
static constexpr int CONV2D_STAGE = 2 * CONV2D_TILE * CONV2D_PITCH;
static_assert(2 * CONV2D_STAGE * 4 == CONV2D_SHARED, "two stages of two tiles");
static_assert(CONV2D_THREADS / 8 * 4 == CONV2D_TILE, "eight threads bring a row of a tile, each thread four of them");

struct Conv2dArgs {
  const float* x;
  const float* filter;
  const float* bias;
  float* y;
  uint32_t pixels;  // n out_h out_w
  uint32_t h, w, c;
  uint32_t out_h, out_w, k;
  uint32_t kernel_h, kernel_w, stride, pad_h, pad_w;
  uint32_t y_channels, y_first, relu;
  uint32_t pitch;   // of the filter's rows
  uint32_t vector;  // four neighbouring t are 16 bytes of one input pixel, aligned
  uint32_t unused;
};
static_assert(sizeof(Conv2dArgs) == 104, "Conv2dArgs is mirrored in src/ops/conv2d/gpu.rs");

// The input pixel under the first of the window of an output pixel.
struct Conv2dRow {
  size_t image;  // element of the image's first pixel
  int row, col;
  bool inside;
};

static __device__ __forceinline__ Conv2dRow conv2d_row(const Conv2dArgs& a, uint32_t pixel) {
  const uint32_t in_image = pixel % (a.out_h * a.out_w);
  Conv2dRow r;
  r.inside = pixel < a.pixels;
  r.image = (size_t)(pixel / (a.out_h * a.out_w)) * a.h * a.w * a.c;
  r.row = (int)(in_image / a.out_w * a.stride) - (int)a.pad_h;
  r.col = (int)(in_image % a.out_w * a.stride) - (int)a.pad_w;
  return r;
}

// Offset of the input at place t of the window, or a negative number where it is a zero.
static __device__ __forceinline__ int64_t conv2d_at(const Conv2dArgs& a, const Conv2dRow& r, uint32_t t) {
  const uint32_t tap = t / a.c;
  const int row = r.row + (int)(tap / a.kernel_w), col = r.col + (int)(tap % a.kernel_w);
  const bool inside = r.inside && tap < a.kernel_h * a.kernel_w && row >= 0 && row < (int)a.h && col >= 0 && col < (int)a.w;
  return inside ? (int64_t)(r.image + ((size_t)row * a.w + col) * a.c + t % a.c) : -1;
}

// Starts to bring places t .. t + 32 of both operands to a stage.
static __device__ __forceinline__ void conv2d_bring(const Conv2dArgs& a, const Conv2dRow (&rows)[4], uint32_t first_k, uint32_t t, float* stage) {
  const uint32_t unit = threadIdx.x % 8 * 4, line = threadIdx.x / 8;
  float* to_x = stage + line * CONV2D_PITCH + unit;
  float* to_w = to_x + CONV2D_TILE * CONV2D_PITCH;
  t += unit;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float* to = to_x + i * 16 * CONV2D_PITCH;
    if (a.vector) {
      const int64_t at = conv2d_at(a, rows[i], t);
      cp_async16(smem_addr(to), a.x + (at < 0 ? 0 : at), at >= 0);
    } else {
#pragma unroll 1
      for (int e = 0; e < 4; e++) {
        const int64_t at = conv2d_at(a, rows[i], t + e);
        to[e] = at < 0 ? 0.0f : a.x[at];
      }
    }
    const uint32_t k = first_k + line + i * 16;
    const bool inside = k < a.k && t < a.pitch;
    const float* w = a.filter + (inside ? (size_t)k * a.pitch + t : 0);
    to = to_w + i * 16 * CONV2D_PITCH;
    if (a.vector) {
      cp_async16(smem_addr(to), w, inside);
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++) to[e] = inside ? w[e] : 0.0f;
    }
  }
  cp_async_commit();
}

template <int N> static __device__ __forceinline__ void conv2d_round(uint32_t (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) r[i] = __float_as_uint(round_tf32(__uint_as_float(r[i])));
}

template <class M> static __device__ __forceinline__ void conv2d_body(const Conv2dArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* stages = reinterpret_cast<float*>(smem);
  const uint32_t first_pixel = blockIdx.x * CONV2D_TILE, first_k = blockIdx.y * CONV2D_TILE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_pixel = warp / 2 * 32, warp_k = warp % 2 * 32;
  Conv2dRow rows[4];
#pragma unroll
  for (int i = 0; i < 4; i++) rows[i] = conv2d_row(a, first_pixel + threadIdx.x / 8 + i * 16);

  float acc[2][4][4] = {};
  const int turns = ((int)a.pitch + CONV2D_DEPTH - 1) / CONV2D_DEPTH;
  conv2d_bring(a, rows, first_k, 0, stages);
#pragma unroll 1
  for (int turn = 0; turn < turns; turn++) {
    cp_async_wait<0>();
    __syncthreads();  // this stage is complete, and nobody reads the other any more
    if (turn + 1 < turns) conv2d_bring(a, rows, first_k, (turn + 1) * CONV2D_DEPTH, stages + (turn + 1) % 2 * CONV2D_STAGE);
    const float* x = stages + turn % 2 * CONV2D_STAGE;
    const smem_t at_x = smem_addr(x + (warp_pixel + lane % 16) * CONV2D_PITCH + lane / 16 * 4);
    const smem_t at_w = smem_addr(x + (CONV2D_TILE + warp_k + lane / 16 * 8 + lane % 8) * CONV2D_PITCH + lane / 8 % 2 * 4);
#pragma unroll
    for (int t = 0; t < CONV2D_DEPTH; t += 8) {
      uint32_t xs[2][4], ws[4][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        ldmatrix_x4(xs[i], at_x + (i * 16 * CONV2D_PITCH + t) * 4);
        if constexpr (M::ROUND) conv2d_round(xs[i]);
      }
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t r[4];
        ldmatrix_x4(r, at_w + (j * 8 * CONV2D_PITCH + t) * 4);
        if constexpr (M::ROUND) conv2d_round(r);
        ws[j][0] = r[0], ws[j][1] = r[1], ws[j + 1][0] = r[2], ws[j + 1][1] = r[3];
      }
      M::multiply(acc, xs, ws);
    }
  }

#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t pixel = first_pixel + warp_pixel + i * 16 + half * 8 + lane / 4;
      if (pixel >= a.pixels) continue;
      float* to = a.y + (size_t)pixel * a.y_channels + a.y_first;
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const uint32_t k = first_k + warp_k + j * 8 + lane % 4 * 2 + e;
          if (k >= a.k) continue;
          const float v = acc[i][j][2 * half + e] + a.bias[k];
          to[k] = a.relu && v < 0.0f ? 0.0f : v;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) conv2d_f32(const __grid_constant__ Conv2dArgs a) { conv2d_body<Fp32>(a); }
extern "C" __global__ void __launch_bounds__(128) conv2d_tf32(const __grid_constant__ Conv2dArgs a) { conv2d_body<Tf32>(a); }
