// loss.cu: the training loss with its gradient, the two metrics, and the split of a prediction.
//
// math   src/ops/loss/mod.rs. Per element: d = p - target; value and slope of mae, mse or huber; |pred_noise - noise|, |pred_image - image|
// shapes pred, noisy, images, noise, dp [N, per image] float32; rates [N, 2]; weights [N] or null; out [3] = loss, noise_loss, image_loss
// map    loss_fwd: block (piece, image), a thread four neighbouring elements at a time; loss_reduce: one block over all pieces
// num    per element float32, sums float64: threads in order, then a tree over the block, then over pieces: the same every time
// cost   20 bytes an element with dp: the seed's batch of 64 15.7 MB, 3.7 us at 4.3 TB/s
// ref    src/ops/loss/reference.rs, tests/ops_diffusion.rs, tests/gpu_diffusion.rs
// limit  N below 65,536
#include "elements.cuh"
#include "prediction.cuh"

static constexpr int LOSS_PIECE = 2048;  // rust
static constexpr int LOSS_THREADS = 256;  // rust

struct LossArgs {
  const float* pred;
  const float* noisy;
  const float* images;
  const float* noise;
  const float* rates;
  const float* weights;  // or null
  float* dp;          // or null
  double* partial;    // [pieces][3]
  float* out;         // [3]
  uint32_t per_image, of, pieces, predict, loss;  // of: images that the means are over
  float slope_scale;  // 1 / elements
  uint32_t add, pad;  // add: to what out holds
};
static_assert(sizeof(LossArgs) == 104, "LossArgs is mirrored in src/ops/loss/gpu.rs");

// Sums of three numbers over a block, in thread 0; the same order every time.
static __device__ __forceinline__ void loss_block_sums(double (&s)[3]) {
  __shared__ double room[LOSS_THREADS][3];
  const int t = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 3; i++) room[t][i] = s[i];
  for (int half = LOSS_THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half)
#pragma unroll
      for (int i = 0; i < 3; i++) room[t][i] += room[t + half][i];
  }
  if (t == 0)
#pragma unroll
    for (int i = 0; i < 3; i++) s[i] = room[0][i];
}

// Rates and kinds of an image.
struct LossTerms {
  float signal, noise_rate;
  uint32_t predict, loss;

  // Adds an element to the sums; returns its slope.
  __device__ __forceinline__ float element(float p, float noisy, float clean, float noise, double (&sums)[3]) const {
    const Prediction split = split_prediction(predict, p, noisy, signal, noise_rate);
    const float target = predict == 0 ? noise : predict == 1 ? clean : signal * noise - noise_rate * clean;
    const float d = p - target, size = fabsf(d);
    float value, slope;
    if (loss == 0) {
      value = size;
      slope = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d * 0.0f;  // the subgradient at 0 is 0; NaN stays NaN
    } else if (loss == 1) {
      value = d * d;
      slope = 2.0f * d;
    } else {
      value = size < 1.0f ? 0.5f * d * d : size - 0.5f;
      slope = size < 1.0f ? d : d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
    }
    sums[0] += (double)value;
    sums[1] += (double)fabsf(split.noise - noise);
    sums[2] += (double)fabsf(split.image - clean);
    return slope;
  }
};

extern "C" __global__ void __launch_bounds__(LOSS_THREADS) loss_fwd_f32(const __grid_constant__ LossArgs a) {
  const uint32_t image = blockIdx.y, first = blockIdx.x * LOSS_PIECE;
  const uint32_t end = first + LOSS_PIECE < a.per_image ? first + LOSS_PIECE : a.per_image;
  const LossTerms terms = {a.rates[2 * image], a.rates[2 * image + 1], a.predict, a.loss};
  const size_t base = (size_t)image * a.per_image;
  const float *pred = a.pred + base, *noisy = a.noisy + base, *images = a.images + base, *noise = a.noise + base;
  float* dp = a.dp ? a.dp + base : nullptr;
  const float weight = a.weights ? a.weights[image] : 1.0f, slope_scale = a.slope_scale * weight;
  const bool vector = ((size_t)pred | (size_t)noisy | (size_t)images | (size_t)noise | (size_t)dp) % 16 == 0;
  double sums[3] = {0.0, 0.0, 0.0};
  // The same elements in the same order, whether four at once or one by one: sums do not depend on addresses.
  for (uint32_t i = first + 4 * threadIdx.x; i < end; i += 4 * LOSS_THREADS) {
    if (vector && i + 4 <= end) {
      float p[4], x[4], clean[4], e[4], slope[4];
      load(pred + i, p), load(noisy + i, x), load(images + i, clean), load(noise + i, e);
#pragma unroll
      for (int j = 0; j < 4; j++) slope[j] = terms.element(p[j], x[j], clean[j], e[j], sums) * slope_scale;
      if (dp) store(dp + i, slope);
      continue;
    }
    for (uint32_t j = i; j < i + 4 && j < end; j++) {
      const float slope = terms.element(pred[j], noisy[j], images[j], noise[j], sums) * slope_scale;
      if (dp) dp[j] = slope;
    }
  }
  loss_block_sums(sums);
  if (threadIdx.x == 0) {
    sums[0] *= (double)weight;
    double* partial = a.partial + ((size_t)image * gridDim.x + blockIdx.x) * 3;
#pragma unroll
    for (int i = 0; i < 3; i++) partial[i] = sums[i];
  }
}

extern "C" __global__ void __launch_bounds__(LOSS_THREADS) loss_reduce_f32(const __grid_constant__ LossArgs a) {
  double sums[3] = {0.0, 0.0, 0.0};
  for (uint32_t piece = threadIdx.x; piece < a.pieces; piece += LOSS_THREADS)
#pragma unroll
    for (int i = 0; i < 3; i++) sums[i] += a.partial[(size_t)piece * 3 + i];
  loss_block_sums(sums);
  if (threadIdx.x == 0) {
    const double elements = (double)a.of * (double)a.per_image;
#pragma unroll
    for (int i = 0; i < 3; i++) {
      const float mean = (float)(sums[i] / elements);
      a.out[i] = a.add ? a.out[i] + mean : mean;
    }
  }
}

struct SplitArgs {
  const float* pred;
  const float* noisy;
  const float* rates;
  float* pred_noise;
  float* pred_image;
  uint32_t per_image, predict;
};
static_assert(sizeof(SplitArgs) == 48, "SplitArgs is mirrored in src/ops/loss/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) loss_split_f32(const __grid_constant__ SplitArgs a) {
  const uint32_t image = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.per_image) return;
  const size_t at = (size_t)image * a.per_image + i;
  const Prediction split = split_prediction(a.predict, a.pred[at], a.noisy[at], a.rates[2 * image], a.rates[2 * image + 1]);
  a.pred_noise[at] = split.noise;
  a.pred_image[at] = split.image;
}
