// images.cu: pixels to normalised floats and back.
//
// math   x = (byte / 255 - mean[c]) / std[c];   back: x = clip(x std[c] + mean[c], 0, 1)
// shapes bytes, x [pixels, C]; mean_std [2 C]: means, then deviations
// map    normalize: a block IMAGES_PIECE neighbouring elements, a thread four at a time; the 256 C possible results are a table in
//        shared memory. denormalize: a thread an element
// num    the table in float64, rounded once, as on the CPU: bit for bit the same numbers
// cost   5 bytes an element in: 3.9 MB for the seed's batch of 64, 0.9 us at 4.3 TB/s
// ref    src/ops/images/reference.rs, tests/ops_noise.rs, tests/gpu_diffusion.rs
// limit  C at most IMAGES_CHANNELS (shared memory)
#include "elements.cuh"

static constexpr int IMAGES_PIECE = 4096;   // rust
static constexpr int IMAGES_CHANNELS = 32;  // rust

struct ImagesArgs {
  const uint8_t* bytes;
  const float* mean_std;
  float* x;
  uint64_t elements;
  uint32_t channels, pad;
};
static_assert(sizeof(ImagesArgs) == 40, "ImagesArgs is mirrored in src/ops/images/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) images_normalize_f32(const __grid_constant__ ImagesArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* table = reinterpret_cast<float*>(smem);  // [256][C]
  const uint32_t c = a.channels;
  for (uint32_t i = threadIdx.x; i < 256 * c; i += blockDim.x)
    table[i] = (float)(((double)(i / c) / 255.0 - (double)a.mean_std[i % c]) / (double)a.mean_std[c + i % c]);
  __syncthreads();
  const uint64_t first = (uint64_t)blockIdx.x * IMAGES_PIECE;
  const uint32_t count = a.elements - first < IMAGES_PIECE ? (uint32_t)(a.elements - first) : IMAGES_PIECE;
  const uint32_t first_channel = (uint32_t)(first % c);
  const uint8_t* bytes = a.bytes + first;
  float* x = a.x + first;
  const bool vector = (size_t)bytes % 4 == 0 && (size_t)x % 16 == 0;
  for (uint32_t at = 4 * threadIdx.x; at < count; at += 4 * blockDim.x) {
    uint32_t channel = (first_channel + at) % c;
    const uint32_t n = count - at < 4 ? count - at : 4;
    uint32_t word = 0;
    if (vector && n == 4) {
      word = *word_at<const uint32_t>(bytes + at);
    } else {
      for (uint32_t i = 0; i < n; i++) word |= (uint32_t)bytes[at + i] << 8 * i;
    }
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[i] = table[(word >> 8 * i & 255u) * c + channel];
      channel = channel + 1 < c ? channel + 1 : 0;
    }
    if (vector && n == 4) {
      store(x + at, v);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < 4; i++)
        if (i < n) x[at + i] = v[i];
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) images_denormalize_f32(const __grid_constant__ ImagesArgs a) {
  const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.elements) return;
  const uint32_t c = (uint32_t)(i % a.channels);
  const float v = a.x[i] * a.mean_std[a.channels + c] + a.mean_std[c];
  a.x[i] = v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v;  // a NaN stays one
}
