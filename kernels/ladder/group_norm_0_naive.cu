// group_norm_0_naive.cu: the definition, a thread an (image, group).
//
// idea   none yet: a thread goes over its group three times, for the mean, for the deviations from it, and to write.
// math   m = sum x / M    v = sum (x - m)^2 / M    y = silu(gamma r (x - m) + beta)                      M = P C/G numbers
// shapes x, y [N,P,C] bfloat16; gamma, beta [C] float32
// map    a thread an (image, group); 128 threads a block.
// num    float32 sums, one after the other: with M numbers the error of a sum may reach M/2 units in the last place. The variance is of
//        deviations from the mean. The shortcut E[x^2] - m^2 needs one pass less and is a trap: with a mean of 100 and a deviation of
//        1 it is a difference of two numbers near 10,000 that float32 knows to 0.001 each at best.
// predicted (H200, 64 images of 64x64, 64 channels, 32 groups: 67 MB at least, floor 15.6 us) 7.4 ms, 470 times the floor. 2048 threads are 64
//        warps for 132 multiprocessors. A warp that waits for each line of 128 bytes, 0.6 us, before it asks for the next reads 3 x 4096 of them
//        one after the other; all warps together, 14 GB/s. (Loads that the compiler brings forward may make it half of that.)
// next   a block a group: 256 threads share the walk and add up what they found.
// ref    src/ops/group_norm/reference.rs; tests/ladder.rs
// limit  N P C below 2^31; G divides C.
#include "group_norm_args.cuh"

extern "C" __global__ void __launch_bounds__(128) ladder_group_norm_0(const __grid_constant__ LadderNormArgs a) {
  const uint32_t place = blockIdx.x * 128 + threadIdx.x;
  if (place >= a.n * a.groups) return;
  const uint32_t width = a.c / a.groups, first = place % a.groups * width;
  const size_t image = (size_t)(place / a.groups) * a.pixels * a.c;
  const __nv_bfloat16* x = a.x + image;
  __nv_bfloat16* y = a.y + image;
  const float count = (float)a.pixels * (float)width;

  float sum = 0.0f;
  for (uint32_t p = 0; p < a.pixels; p++)
    for (uint32_t c = first; c < first + width; c++) sum += to_float(x[(size_t)p * a.c + c]);
  const float mean = sum / count;

  float squares = 0.0f;
  for (uint32_t p = 0; p < a.pixels; p++)
    for (uint32_t c = first; c < first + width; c++) {
      const float d = to_float(x[(size_t)p * a.c + c]) - mean;
      squares = fmaf(d, d, squares);
    }
  const float r = rsqrtf(squares / count + a.eps);

  for (uint32_t p = 0; p < a.pixels; p++)
    for (uint32_t c = first; c < first + width; c++) {
      const size_t i = (size_t)p * a.c + c;
      y[i] = from_float<__nv_bfloat16>(silu_of<__nv_bfloat16>(fmaf(a.gamma[c] * r, to_float(x[i]) - mean, a.beta[c])));
    }
}
