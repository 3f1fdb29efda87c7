// window_pool.cu: largest or mean value of a square window, into some of the channels of the output. Forward only.
//
// math   y[p, y_first + c] = max or mean over the window of x[.., c]; elements outside the picture are left out of the maximum and of the sum
// shapes x [n, h, w, c]; y [n, out_h, out_w, y_channels]; float32
// map    a thread an element of the output; neighbours are neighbouring channels
// num    float32, window rows then columns in order: repeatable. A value that is not a number stays one.
// cost   analytic, not measured; not run on a GPU. Kernel 3: 9 loads (most of them from L1 and L2) and a store of 4 bytes an output.
// ref    src/ops/window_pool/reference.rs, tests/ops_inception.rs
// limit  fewer than 2^31 elements of each tensor
#include <cstdint>

static constexpr int WINDOW_POOL_THREADS = 256;  // rust
static constexpr int WINDOW_POOL_MAX = 0;        // rust
static constexpr int WINDOW_POOL_INSIDE = 1;     // rust
static constexpr int WINDOW_POOL_ALL = 2;        // rust

struct WindowPoolArgs {
  const float* x;
  float* y;
  uint32_t pixels;  // n out_h out_w
  uint32_t h, w, c;
  uint32_t out_h, out_w;
  uint32_t kernel, stride, pad;
  uint32_t y_channels, y_first;
  uint32_t pooling;
};
static_assert(sizeof(WindowPoolArgs) == 64, "WindowPoolArgs is mirrored in src/ops/window_pool/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) window_pool_f32(const __grid_constant__ WindowPoolArgs a) {
  const uint32_t at = blockIdx.x * WINDOW_POOL_THREADS + threadIdx.x;
  const uint32_t pixel = at / a.c, c = at % a.c;
  if (pixel >= a.pixels) return;
  const uint32_t in_image = pixel % (a.out_h * a.out_w);
  const int top = (int)(in_image / a.out_w * a.stride) - (int)a.pad, left = (int)(in_image % a.out_w * a.stride) - (int)a.pad;
  const int first_row = max(top, 0), last_row = min(top + (int)a.kernel, (int)a.h);
  const int first_col = max(left, 0), last_col = min(left + (int)a.kernel, (int)a.w);
  const float* image = a.x + (size_t)(pixel / (a.out_h * a.out_w)) * a.h * a.w * a.c + c;
  const bool largest = a.pooling == WINDOW_POOL_MAX;
  float v = largest ? __uint_as_float(0xff800000u) : 0.0f;
  for (int row = first_row; row < last_row; row++)
    for (int col = first_col; col < last_col; col++) {
      const float x = image[((size_t)row * a.w + col) * a.c];
      if (largest) v = x > v || x != x ? x : v;
      else v += x;
    }
  if (a.pooling == WINDOW_POOL_INSIDE) v /= (float)((last_row - first_row) * (last_col - first_col));
  if (a.pooling == WINDOW_POOL_ALL) v /= (float)(a.kernel * a.kernel);
  a.y[(size_t)pixel * a.y_channels + a.y_first + c] = v;
}
