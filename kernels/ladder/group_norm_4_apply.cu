// group_norm_4_apply.cu: the statistics come from who made x; what is left is a scale and a shift.
//
// idea   do not read what was in a register. The convolution that wrote x knew every number of a tile when it stored it: its epilogue leaves mean
//        and squared deviations per (image, channel) (conv_epilogue.cuh), 8 bytes for a channel of an image. Every block here makes scale and
//        shift of its image's channels from them, again and again, which costs less than reading a table that a kernel would have to write first.
// math   M v = sum_c s_c + P sum_c (m_c - m)^2, m = mean of m_c      scale = gamma r      shift = beta - gamma r m      y = silu(scale x + shift)
// shapes x, y [N,P,C] bfloat16; gamma, beta [C] float32; statistics [N,C,2] float32
// map    a block has 256 threads and 2048 vectors of 8 channels of one image; neighbouring threads have neighbouring vectors. grid: x = part
//        of the image, y = image.
// num    float32; the variance is of deviations, as before. Deterministic.
// predicted (H200, 64 images of 64x64, 64 channels, 32 groups) 16 us, 1.3 times faster: x once, y once, nothing waits for anything, and
//        1024 blocks instead of 128 fill the GPU evenly. This is the floor of a kernel that reads x and writes y.
// next   only not having this kernel is faster.
// ref    src/ops/group_norm/reference.rs; tests/ladder.rs
// limit  C a multiple of 8, at most 1024; G divides C; x and y at multiples of 16 bytes; N P C below 2^31, N below 65536.
#include "group_norm_args.cuh"

static constexpr int LADDER_GROUP_NORM_4_VECTORS = 2048;  // rust

extern "C" __global__ void __launch_bounds__(256) ladder_group_norm_4(const __grid_constant__ LadderNormArgs a) {
  __shared__ __align__(16) float scales[1024], shifts[1024];
  const uint32_t width = a.c / a.groups;
  const size_t image = blockIdx.y;
  for (uint32_t c = threadIdx.x; c < a.c; c += 256) {
    const float* of_group = a.stats + 2 * (image * a.c + c / width * width);
    float mean = 0.0f, m2 = 0.0f;
    for (uint32_t i = 0; i < width; i++) mean += of_group[2 * i];
    mean /= (float)width;
    for (uint32_t i = 0; i < width; i++) {
      const float d = of_group[2 * i] - mean;
      m2 += fmaf((float)a.pixels * d, d, of_group[2 * i + 1]);
    }
    const float r = rsqrtf(m2 / ((float)a.pixels * (float)width) + a.eps);
    scales[c] = a.gamma[c] * r;
    shifts[c] = fmaf(-scales[c], mean, a.beta[c]);
  }
  __syncthreads();  // scale and shift are there

  const uint32_t of_pixel = a.c / 8, vectors = a.pixels * of_pixel;
  const uint32_t first = blockIdx.x * LADDER_GROUP_NORM_4_VECTORS, last = min(vectors, first + LADDER_GROUP_NORM_4_VECTORS);
  const size_t at = image * a.pixels * a.c;
  for (uint32_t i = first + threadIdx.x; i < last; i += 256) {
    const uint32_t channel = i % of_pixel * 8;
    float scale[8], shift[8];
#pragma unroll
    for (int j = 0; j < 8; j++) scale[j] = scales[channel + j], shift[j] = shifts[channel + j];
    apply8(scale, shift, a.x + at + (size_t)i * 8, a.y + at + (size_t)i * 8);
  }
}
