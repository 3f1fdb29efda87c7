// embed.cu: embeddings of timesteps and classes, and the division by timesteps.
//
// math   timesteps, angles in turns:  positional  t f_i / 2 pi, f_i = exp(-ln(10000) i / (C/2 - freq_shift))       fourier  w_i ln(t)
//          emb = [sin | cos], halves exchanged where flip (positional only), a last 0 where C is odd
//        classes  emb[n] += table[label[n]]        dtable[k] += sum of demb[n] over the n with label k, in their order
//        over t   x[n] /= t[n]
// shapes timesteps, labels [N]; emb, demb [N,C]; table, dtable [K,C]; x [N, per image]. All float32.
// map    a thread an angle, an element of emb, of dtable (it goes through the labels) or of x.
// num    sine and cosine in float64 (`sinpi` takes whole turns off exactly), rounded once. A label outside 0..K makes its row of emb NaN. No
//        atomics: bit for bit repeatable.
// cost   analytic, not measured. Few bytes, but for dtable, 8 K C at most, and x, 8 bytes an element.
// ref    src/ops/embed/reference.rs; tests/gpu_unet_ops.rs
// limit  K C and N per image below 2^32.
#include <cstdint>

static constexpr int EMBED_THREADS = 256;  // rust
static constexpr int EMBED_FLIP = 1;       // rust

struct TimestepArgs {
  const float* timesteps;
  const float* frequencies;  // [C/2]: fourier; null: positional
  float* emb;
  uint32_t n, c, freq_shift, flags;
};
static_assert(sizeof(TimestepArgs) == 40, "TimestepArgs is mirrored in src/ops/embed/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) embed_timesteps_f32(const __grid_constant__ TimestepArgs a) {
  const uint32_t half = a.c / 2, places = (a.c + 1) / 2;  // the last place of an odd C is its zero
  const uint32_t thread = blockIdx.x * EMBED_THREADS + threadIdx.x, image = thread / places, i = thread % places;
  if (image >= a.n) return;
  float* row = a.emb + (size_t)image * a.c;
  if (i == half) {
    row[a.c - 1] = 0.0f;
    return;
  }
  const double t = a.timesteps[image];
  double turns;
  if (a.frequencies) {
    turns = a.frequencies[i] * log(t);
  } else {
    // Rounded to float32 where the libraries that trained such networks round: at t near 1000 the angle's rounding shows.
    const float exponent = __fdiv_rn(__fmul_rn(-9.21034037f, (float)i), (float)half - (float)a.freq_shift);  // ln 10000
    turns = __fmul_rn((float)t, (float)exp((double)exponent)) * 0.15915494309189533577;                        // 1 / (2 pi)
  }
  const bool flip = (a.flags & EMBED_FLIP) != 0 && !a.frequencies;
  row[flip ? half + i : i] = (float)sinpi(2.0 * turns);
  row[flip ? i : half + i] = (float)cospi(2.0 * turns);
}

struct ClassArgs {
  const float* labels;
  const float* from;  // table, or demb
  float* to;          // emb, or dtable; accumulates
  uint32_t n, c, k, unused;
};
static_assert(sizeof(ClassArgs) == 40, "ClassArgs is mirrored in src/ops/embed/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) embed_classes_f32(const __grid_constant__ ClassArgs a) {
  const uint32_t i = blockIdx.x * EMBED_THREADS + threadIdx.x;
  if (i >= a.n * a.c) return;
  const float label = a.labels[i / a.c];
  const bool known = label >= 0.0f && label < (float)a.k;
  a.to[i] += known ? a.from[(size_t)(uint32_t)label * a.c + i % a.c] : __uint_as_float(0x7fc00000u);
}

extern "C" __global__ void __launch_bounds__(256) embed_classes_bwd_f32(const __grid_constant__ ClassArgs a) {
  const uint32_t i = blockIdx.x * EMBED_THREADS + threadIdx.x;
  if (i >= a.k * a.c) return;
  const float k = (float)(i / a.c);
  float sum = a.to[i];
  bool any = false;
  for (uint32_t n = 0; n < a.n; n++) {
    if (!(a.labels[n] >= k && a.labels[n] < k + 1.0f)) continue;
    sum += a.from[(size_t)n * a.c + i % a.c];
    any = true;
  }
  if (any) a.to[i] = sum;
}

struct DivideArgs {
  const float* timesteps;
  float* x;
  uint32_t n, per_image;
};
static_assert(sizeof(DivideArgs) == 24, "DivideArgs is mirrored in src/ops/embed/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) embed_divide_f32(const __grid_constant__ DivideArgs a) {
  const uint32_t i = blockIdx.x * EMBED_THREADS + threadIdx.x;
  if (i < a.n * a.per_image) a.x[i] /= a.timesteps[i / a.per_image];
}
