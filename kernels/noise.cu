// noise.cu: random numbers on the device, and the forward diffusion.
//
// math   normal, uniform: philox.cuh, keyed by (seed, purpose, step, image, element); offset: noise += strength z[image, channel]
//        q-sample: noisy = signal image + noise_rate noise
// shapes out, images, noise, noisy [N, per image] float32; rates [N, 2]; step [1], the bits of the step's number
// map    normal: a thread makes the four numbers of a Philox block; uniform: a thread an image; offset, q-sample: a thread four elements
// num    bit for bit the numbers of src/rng.rs, whatever the cut into blocks
// cost   normal: 4 bytes written an element, about 30 operations: for the seed's batch of 64 (786,432 numbers) 3.1 MB, 0.7 us at 4.3 TB/s
//        q-sample: 12 bytes an element, 9.4 MB, 2.2 us
// ref    src/ops/noise/reference.rs, tests/ops_noise.rs, tests/gpu_diffusion.rs
// limit  an image has fewer than 2^34 elements
#include "elements.cuh"
#include "philox.cuh"

struct NoiseArgs {
  float* out;
  const uint32_t* step;
  uint32_t seed_low, seed_high, purpose, first_image;
  uint32_t per_image, images;
};
static_assert(sizeof(NoiseArgs) == 40, "NoiseArgs is mirrored in src/ops/noise/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) noise_normal_f32(const __grid_constant__ NoiseArgs a) {
  const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
  const uint32_t first = block * 4;
  if (first >= a.per_image) return;
  const PhiloxBlock words = philox4x32(block, a.first_image + image, *a.step, a.purpose, a.seed_low, a.seed_high);
  float z[4];
  box_muller(words.w[0], words.w[1], z[0], z[1]);
  box_muller(words.w[2], words.w[3], z[2], z[3]);
  float* out = a.out + (size_t)image * a.per_image + first;
  if (first + 4 <= a.per_image && (size_t)out % 16 == 0) {
    store(out, z);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (first + i < a.per_image) out[i] = z[i];
}

extern "C" __global__ void __launch_bounds__(256) noise_uniform_f32(const __grid_constant__ NoiseArgs a) {
  const uint32_t image = blockIdx.x * blockDim.x + threadIdx.x;
  if (image >= a.images) return;
  const PhiloxBlock words = philox4x32(0, a.first_image + image, *a.step, a.purpose, a.seed_low, a.seed_high);
  a.out[image] = uniform_of(words.w[0]);
}

struct OffsetArgs {
  NoiseArgs noise;  // out: added to
  uint32_t channels;
  float strength;
};
static_assert(sizeof(OffsetArgs) == 48, "OffsetArgs is mirrored in src/ops/noise/gpu.rs");

// Adds strength z[channel] to four neighbouring elements; a thread makes the Philox block of its channels for itself.
extern "C" __global__ void __launch_bounds__(256) noise_offset_f32(const __grid_constant__ OffsetArgs a) {
  const NoiseArgs& k = a.noise;
  const uint32_t image = blockIdx.y, first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  float* out = k.out + (size_t)image * k.per_image;
  uint32_t made = ~0u;
  float z[4] = {};
  for (uint32_t i = first; i < first + 4 && i < k.per_image; i++) {
    const uint32_t channel = i % a.channels;
    if (channel / 4 != made) {
      made = channel / 4;
      const PhiloxBlock words = philox4x32(made, k.first_image + image, *k.step, k.purpose, k.seed_low, k.seed_high);
      box_muller(words.w[0], words.w[1], z[0], z[1]);
      box_muller(words.w[2], words.w[3], z[2], z[3]);
    }
    const uint32_t at = channel % 4;
    const float offset = at == 0 ? z[0] : at == 1 ? z[1] : at == 2 ? z[2] : z[3];
    out[i] = __fadd_rn(out[i], __fmul_rn(a.strength, offset));
  }
}

struct QSampleArgs {
  const float* images;
  const float* noise;
  const float* rates;
  float* noisy;
  uint32_t per_image, pad;
};
static_assert(sizeof(QSampleArgs) == 40, "QSampleArgs is mirrored in src/ops/noise/gpu.rs");

// Mixes V elements.
template <int V>
static __device__ __forceinline__ void mix(const float* x, const float* noise, float* noisy, float signal, float noise_rate) {
  float v[V], e[V];
  load(x, v), load(noise, e);
#pragma unroll
  for (int i = 0; i < V; i++) v[i] = signal * v[i] + noise_rate * e[i];
  store(noisy, v);
}

extern "C" __global__ void __launch_bounds__(256) noise_q_sample_f32(const __grid_constant__ QSampleArgs a) {
  const uint32_t image = blockIdx.y;
  const float signal = a.rates[2 * image], noise_rate = a.rates[2 * image + 1];
  const size_t base = (size_t)image * a.per_image;
  const float *x = a.images + base, *noise = a.noise + base;
  float* noisy = a.noisy + base;
  const uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  const bool vector = ((size_t)x | (size_t)noise | (size_t)noisy) % 16 == 0;
  if (vector && first + 4 <= a.per_image) {
    mix<4>(x + first, noise + first, noisy + first, signal, noise_rate);
    return;
  }
  for (uint32_t i = first; i < first + 4 && i < a.per_image; i++) mix<1>(x + i, noise + i, noisy + i, signal, noise_rate);
}
