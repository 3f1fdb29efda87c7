// levels.cu: times to the levels of a discrete schedule, from a table.
//
// math   i = min(floor(u T), T - 1); rates, timestep and weight are those of row i
// shapes table [T, 4] = signal rate, noise rate, timestep, weight; times [N] in [0, 1); rates [N, 2], timesteps, weights [N]; float32
// map    a thread an image
// num    one product in float32; the rest are copies
// cost   a few numbers an image: latency only
// ref    src/ops/levels/reference.rs, tests/ops_levels.rs
// limit  T below 2^24, N below 2^32
#include <stdint.h>

struct LevelsArgs {
  const float* table;
  const float* times;
  float* rates;
  float* timesteps;
  float* weights;
  uint32_t steps, n;
};
static_assert(sizeof(LevelsArgs) == 48, "LevelsArgs is mirrored in src/ops/levels/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) levels_gather_f32(const __grid_constant__ LevelsArgs a) {
  const uint32_t image = blockIdx.x * blockDim.x + threadIdx.x;
  if (image >= a.n) return;
  const float place = __fmul_rn(a.times[image], (float)a.steps);
  // A negative time or one that is no number becomes 0.
  const uint32_t level = place > 0.0f ? (place < (float)a.steps ? (uint32_t)place : a.steps - 1) : 0;
  const float* row = a.table + (size_t)level * 4;
  a.rates[2 * image] = row[0];
  a.rates[2 * image + 1] = row[1];
  a.timesteps[image] = row[2];
  a.weights[image] = row[3];
}
