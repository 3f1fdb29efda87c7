// bilinear.cu: bilinear interpolation to any size, corners not aligned. Forward only.
//
// math   u = max(0, (i + 1/2) h / out_h - 1/2), i0 = floor(u), i1 = min(i0 + 1, h - 1), f = u - i0, likewise j0, j1, g;
//        y[i,j] = (1-f) ((1-g) x[i0,j0] + g x[i0,j1]) + f ((1-g) x[i1,j0] + g x[i1,j1])
// shapes x [n, h, w, c]; y [n, out_h, out_w, c]; float32
// map    a thread an element of the output
// num    places in float64, weights rounded to float32, as on the CPU
// cost   analytic, not measured; not run on a GPU. 299x299 from 64x64: 4 bytes written an output, input from L2; some 20 operations in float64
//        an output, of which most GPUs do few: 5 million outputs of 18 pictures are 0.1 G operations
// ref    src/ops/bilinear/reference.rs, tests/ops_inception.rs
// limit  fewer than 2^31 elements of each tensor
#include <cstdint>

static constexpr int BILINEAR_THREADS = 256;  // rust

struct BilinearArgs {
  const float* x;
  float* y;
  uint32_t elements;  // of y
  uint32_t h, w, c;
  uint32_t out_h, out_w;
};
static_assert(sizeof(BilinearArgs) == 40, "BilinearArgs is mirrored in src/ops/bilinear/gpu.rs");

struct BilinearPlace {
  uint32_t first, second;
  float weight;
};

static __device__ __forceinline__ BilinearPlace bilinear_place(uint32_t i, uint32_t extent, uint32_t out) {
  double at = ((double)i + 0.5) * ((double)extent / (double)out) - 0.5;
  at = at > 0.0 ? at : 0.0;
  BilinearPlace p;
  p.first = min((uint32_t)at, extent - 1);
  p.second = min(p.first + 1, extent - 1);
  p.weight = (float)(at - (double)p.first);
  return p;
}

extern "C" __global__ void __launch_bounds__(256) bilinear_f32(const __grid_constant__ BilinearArgs a) {
  const uint32_t at = blockIdx.x * BILINEAR_THREADS + threadIdx.x;
  if (at >= a.elements) return;
  const uint32_t c = at % a.c, pixel = at / a.c;
  const BilinearPlace row = bilinear_place(pixel / a.out_w % a.out_h, a.h, a.out_h), col = bilinear_place(pixel % a.out_w, a.w, a.out_w);
  const float* image = a.x + (size_t)(pixel / a.out_w / a.out_h) * a.h * a.w * a.c + c;
  const float* above = image + (size_t)row.first * a.w * a.c;
  const float* below = image + (size_t)row.second * a.w * a.c;
  const uint32_t left = col.first * a.c, right = col.second * a.c;
  const float g = col.weight, f = row.weight;
  const float over = (1.0f - g) * above[left] + g * above[right];
  const float under = (1.0f - g) * below[left] + g * below[right];
  a.y[at] = (1.0f - f) * over + f * under;
}
