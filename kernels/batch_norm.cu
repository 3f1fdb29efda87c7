// batch_norm.cu: batch norm as coefficients, in training and evaluation, and the backward of (batch norm, then convolution).
//
// math   Training. Image n left mean m_n and sum of squared deviations s_n of its P pixels, channel by channel. Over N images
//          m = sum_n m_n / N        M v = sum_n s_n + P sum_n (m_n - m)^2        M = N P
//        (Chan's merge for equal counts), and with r = 1/sqrt(v + eps) the rows of the coefficients are
//          m, r, scale = gamma r, shift = beta - m gamma r, xhat_shift = -m r
//          running_mean += momentum (m - running_mean)      running_var += momentum (v M/max(M-1, 1) - running_var)
//        Evaluation takes the running statistics for m and v.
//        Backward, with W the convolution's filter, D its weight gradient against xhat and B the border sums (ops/batch_norm/mod.rs):
//          S1[c] = sum_{t,k} W[t,c,k] B[t,k]      S2[c] = sum_{t,k} W[t,c,k] D[t,c,k]
//          dW += gamma D + beta B      dgamma += S2      dbeta += S1
//          a = -scale r S2 / M         b = -scale S1 / M + scale r m S2 / M
// shape  statistics [N, C0, 2] and [N, C1, 2] (a concatenation), coefficients [5, C], filters [T, C, K], B [T, K], ab [2, C]; all float.
// map    Training: a block has 16 channels by 16 images at a time; a thread adds up every 16th image of its channel.
//        Evaluation: a thread for a channel. Backward: a block for an input channel; its threads go along K, for all taps, four
//        elements at once where K and the addresses allow it.
// num    Statistics and coefficients in double, as are S1 and S2: products of floats are exact there. All sums in one order that
//        depends on the extents alone. dW is float.
// bytes  training 8 N C; backward 16 T C K (W, D and dW read, dW written), B from L2.
// ref    src/ops/batch_norm/reference.rs; tests/gpu_norm.rs
// limits T C K below 2^31.
#include "elements.cuh"
#include "reduce.cuh"

static constexpr int BATCH_NORM_CHANNELS = 16;          // rust
static constexpr int BATCH_NORM_IMAGES = 16;            // rust
static constexpr int BATCH_NORM_EVAL_THREADS = 128;     // rust
static constexpr int BATCH_NORM_BACKWARD_THREADS = 128; // rust

struct BatchNormArgs {
  const float* stats0;  // [N, C0, 2]
  const float* stats1;  // [N, C1, 2], or null
  const float* gamma;
  const float* beta;
  float* running_mean;  // evaluation reads them
  float* running_var;
  float* coefficients;  // [5, C]
  double eps;
  double momentum;
  uint32_t n, pixels, c0, c1;
};
static_assert(sizeof(BatchNormArgs) == 88, "BatchNormArgs is mirrored in src/ops/batch_norm/gpu.rs");

struct BatchNormBackwardArgs {
  const float* w;             // [T, C, K]
  const float* dw_hat;        // [T, C, K]
  const float* border_sums;   // [T, K]
  const float* coefficients;  // [5, C]
  const float* gamma;
  const float* beta;
  float* dw;                  // [T, C, K], accumulates
  float* dgamma;              // accumulates
  float* dbeta;               // accumulates
  float* ab;                  // [2, C]
  double count;               // pixels of the batch
  uint32_t c, k, taps;
  uint32_t vector;            // four elements at once
};
static_assert(sizeof(BatchNormBackwardArgs) == 104, "BatchNormBackwardArgs is mirrored in src/ops/batch_norm/gpu.rs");

// Rows of the coefficients, as `row` of src/ops/batch_norm/mod.rs.
static constexpr int MEAN = 0, RSTD = 1, SCALE = 2, SHIFT = 3, XHAT_SHIFT = 4;

// Writes the coefficients of channel i.
static __device__ __forceinline__ void write_coefficients(const BatchNormArgs& a, uint32_t i, double mean, double var) {
  const uint32_t c = a.c0 + a.c1;
  const double rstd = 1.0 / sqrt(var + a.eps), gamma = a.gamma[i], beta = a.beta[i];
  a.coefficients[MEAN * c + i] = (float)mean;
  a.coefficients[RSTD * c + i] = (float)rstd;
  a.coefficients[SCALE * c + i] = (float)(gamma * rstd);
  a.coefficients[SHIFT * c + i] = (float)(beta - mean * gamma * rstd);
  a.coefficients[XHAT_SHIFT * c + i] = (float)(-mean * rstd);
}

extern "C" __global__ void __launch_bounds__(BATCH_NORM_CHANNELS * BATCH_NORM_IMAGES) batch_norm_train_f32(const __grid_constant__ BatchNormArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  double* shared = reinterpret_cast<double*>(smem);
  const uint32_t channel = blockIdx.x * BATCH_NORM_CHANNELS + threadIdx.x;
  const bool inside = channel < a.c0 + a.c1, second = channel >= a.c0;
  const float* stats = second ? a.stats1 + (size_t)2 * (channel - a.c0) : a.stats0 + (size_t)2 * channel;
  const size_t stride = 2 * (size_t)(second ? a.c1 : a.c0);
  // All threads of the block take part in the sums.
  const uint32_t images = inside ? a.n : 0;
  double sum = 0.0;
  for (uint32_t image = threadIdx.y; image < images; image += BATCH_NORM_IMAGES) sum += stats[image * stride];
  const double mean = sum_rows(sum, shared) / a.n;
  double m2 = 0.0, between = 0.0;
  for (uint32_t image = threadIdx.y; image < images; image += BATCH_NORM_IMAGES) {
    const double delta = stats[image * stride] - mean;
    m2 += stats[image * stride + 1];
    between += delta * delta;
  }
  m2 = sum_rows(m2 + a.pixels * between, shared);
  if (!inside || threadIdx.y > 0) return;
  const double count = (double)a.pixels * a.n;
  const double unbiased = m2 / fmax(count - 1.0, 1.0), keep = 1.0 - a.momentum;
  a.running_mean[channel] = (float)(a.running_mean[channel] * keep + mean * a.momentum);
  a.running_var[channel] = (float)(a.running_var[channel] * keep + unbiased * a.momentum);
  write_coefficients(a, channel, mean, m2 / count);
}

extern "C" __global__ void __launch_bounds__(BATCH_NORM_EVAL_THREADS) batch_norm_eval_f32(const __grid_constant__ BatchNormArgs a) {
  const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel < a.c0 + a.c1) write_coefficients(a, channel, a.running_mean[channel], a.running_var[channel]);
}

// Adds W B and W D of this thread's elements of a channel, V at once, and their gamma D + beta B to dW.
template <int V>
static __device__ __forceinline__ void backward_channel(const BatchNormBackwardArgs& a, uint32_t channel, double& s1, double& s2) {
  const float gamma = a.gamma[channel], beta = a.beta[channel];
  const uint32_t per_tap = a.k / V;
  for (uint32_t i = threadIdx.x; i < a.taps * per_tap; i += BATCH_NORM_BACKWARD_THREADS) {
    const uint32_t tap = i / per_tap, k = i % per_tap * V;
    const size_t at = ((size_t)tap * a.c + channel) * a.k + k;
    float w[V], hat[V], border[V], dw[V];
    load(a.w + at, w), load(a.dw_hat + at, hat), load(a.border_sums + (size_t)tap * a.k + k, border), load(a.dw + at, dw);
#pragma unroll
    for (int j = 0; j < V; j++) {
      s1 += (double)w[j] * border[j];
      s2 += (double)w[j] * hat[j];
      dw[j] += fmaf(gamma, hat[j], beta * border[j]);
    }
    store(a.dw + at, dw);
  }
}

extern "C" __global__ void __launch_bounds__(BATCH_NORM_BACKWARD_THREADS) batch_norm_bwd_f32(const __grid_constant__ BatchNormBackwardArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  double* shared = reinterpret_cast<double*>(smem);  // [2, warps]
  constexpr int WARPS = BATCH_NORM_BACKWARD_THREADS / 32;
  const uint32_t channel = blockIdx.x, warp = threadIdx.x / 32;
  double s1 = 0.0, s2 = 0.0;
  if (a.vector) {
    backward_channel<4>(a, channel, s1, s2);
  } else {
    backward_channel<1>(a, channel, s1, s2);
  }
  s1 = sum_warp(s1);
  s2 = sum_warp(s2);
  if (threadIdx.x % 32 == 0) {
    shared[warp] = s1;
    shared[WARPS + warp] = s2;
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  s1 = s2 = 0.0;
  for (int i = 0; i < WARPS; i++) {
    s1 += shared[i];
    s2 += shared[WARPS + i];
  }
  const double mean = a.coefficients[MEAN * a.c + channel], rstd = a.coefficients[RSTD * a.c + channel];
  const double scale = a.coefficients[SCALE * a.c + channel], slope = scale * rstd * s2 / a.count;
  a.dbeta[channel] += (float)s1;
  a.dgamma[channel] += (float)s2;
  a.ab[channel] = (float)-slope;
  a.ab[a.c + channel] = (float)(slope * mean - scale * s1 / a.count);
}
