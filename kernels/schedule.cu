// schedule.cu: times to rates, and the sinusoidal embedding of the squared rate.
//
// math   src/ops/schedule/mod.rs. cosine: angle = start + t (end - start); linear: alpha-bar[floor(999 t)], a running product
//        emb = [sin(w_i v) | cos(w_i v)], w_i = 2 pi f_i rounded to float32 where PyTorch rounds
// shapes times [N], rates [N, 2], embedding [N, E], stats [N, E, 2] = (embedding, 0); all float32 whatever the
//        activations are: times that differ by less than a rounding to bfloat16 must stay apart
// map    a warp an image; every thread makes the rates for itself, then its frequencies
// num    float64, as the angles reach 2 pi 1000; with `single` the schedule rounds to float32 where PyTorch's sampler does. Sine and
//        cosine by a reduction and polynomials of our own: the library's keep a table in local memory for arguments beyond 10^5. They,
//        and the order of the running product, differ from the CPU's by a few ulps of float64.
// cost   a few numbers an image: latency only. The product of up to 1000 factors is one of 32 by each thread.
// ref    src/ops/schedule/reference.rs, tests/ops_diffusion.rs, tests/gpu_diffusion.rs
// limit  E even
#include <stdint.h>

static constexpr int SCHEDULE_THREADS = 32;  // rust

struct ScheduleArgs {
  const float* times;
  float* rates;
  float* embedding;
  float* stats;
  double start, span;  // cosine: first angle and last minus first
  double min_bar, max_bar;
  uint32_t e, linear, embed_signal, single;
};
static_assert(sizeof(ScheduleArgs) == 80, "ScheduleArgs is mirrored in src/ops/schedule/gpu.rs");

// Sine and cosine of an angle of at most some thousands, to an ulp or so of float64: the remainder of a division by pi/2 in two parts,
// then the polynomials of Sun's fdlibm (k_sin.c, k_cos.c).
static __device__ __forceinline__ void sin_cos(double angle, double& sine, double& cosine) {
  const double quarters = rint(angle * 0.63661977236758134308);
  double r = fma(quarters, -1.57079632679489655800, angle);
  r = fma(quarters, -6.12323399573676603587e-17, r);
  const double z = r * r;
  double s = fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08);
  s = fma(z, s, 2.75573137070700676789e-06);
  s = fma(z, s, -1.98412698298579493134e-04);
  s = fma(z, s, 8.33333333332248946124e-03);
  s = fma(z, s, -1.66666666666666324348e-01);
  s = fma(r * z, s, r);
  double c = fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09);
  c = fma(z, c, -2.75573143513906633035e-07);
  c = fma(z, c, 2.48015872894767294178e-05);
  c = fma(z, c, -1.38888888888741095749e-03);
  c = fma(z, c, 4.16666666666666019037e-02);
  c = fma(z * z, c, fma(z, -0.5, 1.0));
  const int quarter = (int)quarters & 3;
  sine = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
  cosine = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
}

// Product of 1 - beta over the first index + 1 of linspace(1e-4, 0.02, 1000), by all threads of the warp, given to all.
static __device__ __forceinline__ double alpha_bar(int index) {
  constexpr int SHARE = (1000 + SCHEDULE_THREADS - 1) / SCHEDULE_THREADS;
  const double step = (0.02 - 1e-4) / 999.0;
  double product = 1.0;
  const int first = (int)threadIdx.x * SHARE;
  for (int i = first; i < first + SHARE && i <= index; i++) product *= 1.0 - (1e-4 + step * (double)i);
#pragma unroll
  for (int distance = 1; distance < SCHEDULE_THREADS; distance *= 2) product *= __shfl_xor_sync(0xffffffffu, product, distance);
  return product;
}

static __device__ __forceinline__ void schedule_rates(const ScheduleArgs& a, float t, double& signal, double& noise) {
  if (!a.linear) {
    const double angle =
        a.single ? (double)__fadd_rn((float)a.start, __fmul_rn(t, (float)a.span)) : a.start + (double)t * a.span;
    sin_cos(angle, noise, signal);
    if (a.single) {
      signal = (double)(float)signal;
      noise = (double)(float)noise;
    }
    return;
  }
  const int index = (int)floorf(__fmul_rn(t, 999.0f));
  double bar = alpha_bar(index < 0 ? 0 : index < 999 ? index : 999);
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

// Writes an element of the embedding and its statistics.
static __device__ __forceinline__ void write_element(float* embedding, float* stats, uint32_t i, double value) {
  embedding[i] = (float)value;
  stats[2 * i] = (float)value;
  stats[2 * i + 1] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(SCHEDULE_THREADS) schedule_fwd_f32(const __grid_constant__ ScheduleArgs a) {
  const uint32_t image = blockIdx.x, half = a.e / 2;
  double signal, noise;
  schedule_rates(a, a.times[image], signal, noise);
  if (threadIdx.x == 0) {
    a.rates[2 * image] = (float)signal;
    a.rates[2 * image + 1] = (float)noise;
  }
  const double rate = a.embed_signal ? signal : noise;
  const double v = a.single ? (double)__fmul_rn((float)rate, (float)rate) : rate * rate;
  float* embedding = a.embedding + (size_t)image * a.e;
  float* stats = a.stats + (size_t)image * a.e * 2;
  for (uint32_t i = threadIdx.x; i < half; i += SCHEDULE_THREADS) {
    double sine, cosine;
    sin_cos(angular_speed(i, half) * v, sine, cosine);
    write_element(embedding, stats, i, sine);
    write_element(embedding, stats, half + i, cosine);
  }
}
