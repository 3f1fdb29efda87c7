// schedule.cu: times to rates, and the sinusoidal embedding of the squared rate.
//
// math   src/ops/schedule/mod.rs. cosine: angle = start + t (end - start); linear: alpha-bar[floor(999 t)], a running product
//        emb = [sin(w_i v) | cos(w_i v)], w_i = 2 pi f_i rounded to float32 where PyTorch rounds
// shapes times [N], rates [N, 2], embedding [N, E] of T, stats [N, E, 2] = (value as stored, 0)
// map    a block an image; thread 0 makes the rates, then a thread a frequency
// num    float64, as the angles reach 2 pi 1000; with `single` the schedule rounds to float32 where PyTorch's sampler does. sin and cos of
//        the device differ from the CPU's by less than an ulp of float64
// cost   a few numbers an image: latency only
// ref    src/ops/schedule/reference.rs, tests/ops_diffusion.rs
// limit  E even
#include <cuda_bf16.h>
#include <stdint.h>

struct ScheduleArgs {
  const float* times;
  float* rates;
  void* embedding;
  float* stats;
  double start, span;  // cosine: first angle and last minus first
  double min_bar, max_bar;
  uint32_t e, linear, embed_signal, single;
};
static_assert(sizeof(ScheduleArgs) == 80, "ScheduleArgs is mirrored in src/ops/schedule/gpu.rs");

// Product of 1 - beta over the first index + 1 of linspace(1e-4, 0.02, 1000).
static __device__ __forceinline__ double alpha_bar(int index) {
  const double step = (0.02 - 1e-4) / 999.0;
  double product = 1.0;
  for (int i = 0; i <= index; i++) product *= 1.0 - (1e-4 + step * (double)i);
  return product;
}

static __device__ __forceinline__ void schedule_rates(const ScheduleArgs& a, float t, double& signal, double& noise) {
  if (!a.linear) {
    if (a.single) {
      const double angle = (double)__fadd_rn((float)a.start, __fmul_rn(t, (float)a.span));
      signal = (double)(float)cos(angle);
      noise = (double)(float)sin(angle);
      return;
    }
    const double angle = a.start + (double)t * a.span;
    signal = cos(angle);
    noise = sin(angle);
    return;
  }
  const int index = (int)floorf(__fmul_rn(t, 999.0f));
  double bar = alpha_bar(index < 999 ? index : 999);
  bar = bar < a.min_bar ? a.min_bar : bar > a.max_bar ? a.max_bar : bar;
  if (a.single) {
    const float b = (float)bar;
    signal = (double)__fsqrt_rn(b);
    noise = (double)__fsqrt_rn(__fadd_rn(1.0f, -b));
    return;
  }
  signal = sqrt(bar);
  noise = sqrt(1.0 - bar);
}

// 2 pi f_i: PyTorch keeps these numbers as a float32 buffer, and at angles of thousands the last bit of a frequency shows. Its linspace
// goes up from the start in its first half and down from the end in its second.
static __device__ __forceinline__ double angular_speed(uint32_t i, uint32_t half) {
  const float last = 6.907755278982137f;  // ln 1000
  const float step = __fdiv_rn(last, (float)((half < 2 ? 2 : half) - 1));
  const bool first_half = i < half / 2 || half == 1;
  const float x = first_half ? __fmul_rn(step, (float)i) : __fadd_rn(last, -__fmul_rn(step, (float)(half - 1 - i)));
  return (double)__fmul_rn((float)exp((double)x), 6.283185307179586f);
}

static __device__ __forceinline__ float stored(float* at, double v) { return *at = (float)v; }
static __device__ __forceinline__ float stored(__nv_bfloat16* at, double v) {
  const __nv_bfloat16 rounded = __float2bfloat16((float)v);
  *at = rounded;
  return __bfloat162float(rounded);
}

template <class T> static __device__ __forceinline__ void schedule_body(const ScheduleArgs& a) {
  __shared__ double v;
  const uint32_t image = blockIdx.x, half = a.e / 2;
  if (threadIdx.x == 0) {
    double signal, noise;
    schedule_rates(a, a.times[image], signal, noise);
    a.rates[2 * image] = (float)signal;
    a.rates[2 * image + 1] = (float)noise;
    const double rate = a.embed_signal ? signal : noise;
    v = a.single ? (double)__fmul_rn((float)rate, (float)rate) : rate * rate;
  }
  __syncthreads();
  T* embedding = static_cast<T*>(a.embedding) + (size_t)image * a.e;
  float* stats = a.stats + (size_t)image * a.e * 2;
  for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
    const double angle = angular_speed(i, half) * v;
    stats[2 * i] = stored(embedding + i, sin(angle));
    stats[2 * i + 1] = 0.0f;
    stats[2 * (half + i)] = stored(embedding + half + i, cos(angle));
    stats[2 * (half + i) + 1] = 0.0f;
  }
}

extern "C" __global__ void __launch_bounds__(64) schedule_fwd_f32(const __grid_constant__ ScheduleArgs a) { schedule_body<float>(a); }
extern "C" __global__ void __launch_bounds__(64) schedule_fwd_bf16(const __grid_constant__ ScheduleArgs a) {
  schedule_body<__nv_bfloat16>(a);
}
