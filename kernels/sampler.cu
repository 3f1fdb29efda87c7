// sampler.cu: one update of any sampler in one pass; the quantiles of dynamic thresholds; the mixes around them.
//
// math   x0 = threshold(cx x + cp pred);  x <- a x + b kept + c pred + d x0 + e last_x0 + f noise;  last_x0 <- x0, kept <- the old x
//        quantile: of |cx x + cp pred| over an image, linear between the two neighbours in order, limited to [1, most]
//        combine: out = a x + b y;  blend: x <- mask x + (1 - mask) (signal known + noise_rate noise)
// shapes all [N, per image] float32; limits [N] float32; first_image [1], the bits of a number
// map    update: block (piece, image), a thread four neighbouring elements, which are one block of Philox; quantile: a block an image;
//        combine, blend: a thread four elements
// num    elementwise float32; noise bit for bit that of src/rng.rs. The quantile is exact: the bits of non-negative floats are ordered as
//        the floats are, so the number of given rank is found bit by bit, counting 31 times how many share the bits found so far
// cost   update: 16 bytes an element, 4 to 8 more for each of kept and last_x0: 12.6 MB for 64 pictures of 64x64x3, 2.9 us at 4.3 TB/s;
//        quantile: 33 passes over 8 bytes an element, out of the second-level cache
// ref    src/ops/sampler_step/reference.rs, tests/ops_sampler_step.rs
// limit  N below 65,536, an image below 2^32 elements
#include "elements.cuh"
#include "philox.cuh"

static constexpr int SAMPLER_THREADS = 256;            // rust
static constexpr int SAMPLER_QUANTILE_THREADS = 512;   // rust

struct SamplerStepArgs {
  const float* pred;
  float* x;
  float* x0;
  float* kept;                  // or null
  const float* limits;          // or null: dynamic thresholds
  const uint32_t* first_image;  // or null: no noise
  float cx, cp, a, b, c, d, e, f;
  float range;  // clamp to this; infinite for none
  uint32_t per_image, seed_low, seed_high, call, purpose, keep, pad;
};
static_assert(sizeof(SamplerStepArgs) == 112, "SamplerStepArgs is mirrored in src/ops/sampler_step/gpu.rs");

// The predicted picture before its threshold: the same bits wherever it is computed.
static __device__ __forceinline__ float predicted(float cx, float cp, float x, float pred) { return fmaf(cx, x, __fmul_rn(cp, pred)); }

// V elements from `i` of an image on; `noise` are those of the four elements.
template <int V>
static __device__ __forceinline__ void update(const SamplerStepArgs& a, size_t i, float limit, float divisor, const float* noise) {
  float p[V], x[V], image[V], y[V], other[V];
  load(a.pred + i, p), load(a.x + i, x);
#pragma unroll
  for (int k = 0; k < V; k++) {
    float plain = predicted(a.cx, a.cp, x[k], p[k]);
    plain = plain > limit ? limit : plain;  // not fminf: it would hide what is not a number
    plain = plain < -limit ? -limit : plain;
    image[k] = plain / divisor;
    y[k] = a.a * x[k] + a.c * p[k] + a.d * image[k];
  }
  if (a.b != 0.0f) {
    load(a.kept + i, other);
#pragma unroll
    for (int k = 0; k < V; k++) y[k] += a.b * other[k];
  }
  if (a.e != 0.0f) {
    load(a.x0 + i, other);
#pragma unroll
    for (int k = 0; k < V; k++) y[k] += a.e * other[k];
  }
  if (a.f != 0.0f) {
#pragma unroll
    for (int k = 0; k < V; k++) y[k] += a.f * noise[k];
  }
  if (a.keep) store(a.kept + i, x);
  store(a.x + i, y);
  store(a.x0 + i, image);
}

extern "C" __global__ void __launch_bounds__(256) sampler_step_f32(const __grid_constant__ SamplerStepArgs a) {
  const uint32_t image = blockIdx.y, block = blockIdx.x * blockDim.x + threadIdx.x, first = block * 4;
  if (first >= a.per_image) return;
  float limit = a.range, divisor = 1.0f;
  if (a.limits) limit = divisor = a.limits[image];
  float z[4] = {};
  if (a.f != 0.0f) {
    const PhiloxBlock words = philox4x32(block, *a.first_image + image, a.call, a.purpose, a.seed_low, a.seed_high);
    box_muller(words.w[0], words.w[1], z[0], z[1]);
    box_muller(words.w[2], words.w[3], z[2], z[3]);
  }
  const size_t at = (size_t)image * a.per_image + first;
  const size_t addresses = (size_t)(a.pred + at) | (size_t)(a.x + at) | (size_t)(a.x0 + at) | (a.kept ? (size_t)(a.kept + at) : 0);
  if (addresses % 16 == 0 && first + 4 <= a.per_image) {
    update<4>(a, at, limit, divisor, z);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (first + k < a.per_image) update<1>(a, at + k, limit, divisor, z + k);
}

struct SamplerQuantileArgs {
  const float* pred;
  const float* x;
  float* limits;
  float cx, cp;
  float share, most;        // of the number above in the quantile; the most that it may be
  uint32_t below, per_image;  // rank of the number below, from 0
};
static_assert(sizeof(SamplerQuantileArgs) == 48, "SamplerQuantileArgs is mirrored in src/ops/sampler_step/gpu.rs");

// The sum (or the least) over the block of a number of each thread, given to all. `shared`: one word a warp.
template <bool LEAST> static __device__ __forceinline__ uint32_t reduce_block(uint32_t value, uint32_t* shared) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = LEAST ? (other < value ? other : value) : value + other;
  }
  __syncthreads();  // the words of the reduction before have been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  uint32_t all = shared[0];
  for (int warp = 1; warp < SAMPLER_QUANTILE_THREADS / 32; warp++) all = LEAST ? (shared[warp] < all ? shared[warp] : all) : all + shared[warp];
  return all;
}

extern "C" __global__ void __launch_bounds__(512) sampler_quantile_f32(const __grid_constant__ SamplerQuantileArgs a) {
  __shared__ uint32_t words[SAMPLER_QUANTILE_THREADS / 32];
  const float *x = a.x + (size_t)blockIdx.x * a.per_image, *pred = a.pred + (size_t)blockIdx.x * a.per_image;
  const auto bits_of = [&](uint32_t i) { return __float_as_uint(predicted(a.cx, a.cp, x[i], pred[i])) & 0x7fffffffu; };
  // `found` are the upper bits of the number of rank `below`; `rank` is its rank among those that begin with them.
  uint32_t found = 0, rank = a.below;
  for (int bit = 30; bit >= 0; bit--) {
    uint32_t zeros = 0;
    for (uint32_t i = threadIdx.x; i < a.per_image; i += SAMPLER_QUANTILE_THREADS) zeros += ((bits_of(i) ^ found) >> bit) == 0;
    zeros = reduce_block<false>(zeros, words);
    if (rank >= zeros) {
      rank -= zeros;
      found |= 1u << bit;
    }
  }
  // The number above: the same again where there are more of it, else the least that is larger.
  uint32_t equal = 0, above = 0xffffffffu;
  for (uint32_t i = threadIdx.x; i < a.per_image; i += SAMPLER_QUANTILE_THREADS) {
    const uint32_t bits = bits_of(i);
    equal += bits == found;
    if (bits > found && bits < above) above = bits;
  }
  equal = reduce_block<false>(equal, words);
  above = reduce_block<true>(above, words);
  if (threadIdx.x == 0) {
    const float low = __uint_as_float(found);
    const float high = rank + 1 < equal || above == 0xffffffffu ? low : __uint_as_float(above);
    float s = low + a.share * (high - low);
    s = s < 1.0f ? 1.0f : s;
    a.limits[blockIdx.x] = s > a.most ? a.most : s;
  }
}

struct SamplerCombineArgs {
  const float* x;
  const float* y;  // or null
  float* out;
  float a, b;
  uint64_t n;
};
static_assert(sizeof(SamplerCombineArgs) == 40, "SamplerCombineArgs is mirrored in src/ops/sampler_step/gpu.rs");

template <int V> static __device__ __forceinline__ void combine(const SamplerCombineArgs& a, uint64_t i) {
  float x[V], y[V] = {};
  load(a.x + i, x);
  if (a.y) load(a.y + i, y);
#pragma unroll
  for (int k = 0; k < V; k++) x[k] = a.y ? a.a * x[k] + a.b * y[k] : a.a * x[k];
  store(a.out + i, x);
}

extern "C" __global__ void __launch_bounds__(256) sampler_combine_f32(const __grid_constant__ SamplerCombineArgs a) {
  const uint64_t first = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
  const bool vector = ((size_t)a.x | (size_t)a.y | (size_t)a.out) % 16 == 0;
  if (vector && first + 4 <= a.n) {
    combine<4>(a, first);
    return;
  }
  for (uint64_t i = first; i < first + 4 && i < a.n; i++) combine<1>(a, i);
}

struct SamplerBlendArgs {
  const float* mask;
  const float* known;
  const float* noise;
  float* x;
  float signal, noise_rate;
  uint64_t n;
};
static_assert(sizeof(SamplerBlendArgs) == 48, "SamplerBlendArgs is mirrored in src/ops/sampler_step/gpu.rs");

template <int V> static __device__ __forceinline__ void blend(const SamplerBlendArgs& a, uint64_t i) {
  float m[V], known[V], noise[V], x[V];
  load(a.mask + i, m), load(a.known + i, known), load(a.noise + i, noise), load(a.x + i, x);
#pragma unroll
  for (int k = 0; k < V; k++) x[k] = m[k] * x[k] + (1.0f - m[k]) * (a.signal * known[k] + a.noise_rate * noise[k]);
  store(a.x + i, x);
}

extern "C" __global__ void __launch_bounds__(256) sampler_blend_f32(const __grid_constant__ SamplerBlendArgs a) {
  const uint64_t first = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
  const bool vector = ((size_t)a.mask | (size_t)a.known | (size_t)a.noise | (size_t)a.x) % 16 == 0;
  if (vector && first + 4 <= a.n) {
    blend<4>(a, first);
    return;
  }
  for (uint64_t i = first; i < first + 4 && i < a.n; i++) blend<1>(a, i);
}
