// conv_pack.cu: brings a filter into the order that the convolution kernels read, in their element type.
//
// math   forward: packed(t, c, k) = W[t][c][k], residual R[c][k]. dgrad: packed(t, c, k) = scale[k] W[T-1-t][k][c], residual R[k][c]:
//        turned by 180 degrees, channels exchanged; `scale` (per input channel of the forward) is for the main filter only.
// shapes W [T, C, K] float32, R [R, K] float32 in the forward's terms; packed
//        [tile of 32 output channels][chunk, then tap][unit of the chunk][32 output channels][16 bytes], the residual's chunks (one
//        tap) behind the main ones, zeros beyond the last channel. It is the image that a block keeps in shared memory: eight output
//        channels of a unit are 128 contiguous bytes, which ldmatrix reads without bank conflicts.
// map    one thread per unit of 16 bytes; neighbouring threads are neighbouring output channels.
// num    bfloat16 and tf32 rounded to nearest; scale is multiplied in float32 before.
// ref    src/ops/conv/reference.rs; tests/gpu_conv.rs
#include "conv_tile.cuh"

struct ConvPackArgs {
  const float* w;
  const float* w_res;  // null: no residual
  const float* scale;  // null: 1
  void* packed;
  uint32_t c, r, k;    // channels of the product: input, residual, output
  uint32_t taps;
  uint32_t forward_c;  // dgrad: input channels of the forward filter
  uint32_t dgrad;
};
static_assert(sizeof(ConvPackArgs) == 56, "ConvPackArgs is mirrored in src/ops/conv/gpu/pack.rs");

static constexpr int CONV_PACK_THREADS = 128;  // rust

template <class T, bool ROUND> static __device__ __forceinline__ void pack_filter(const ConvPackArgs& a) {
  constexpr int E = VECTOR<T>, CHUNK = CONV_CHUNK_UNITS * E;
  const uint32_t main_taps = (a.c + CHUNK - 1) / CHUNK * a.taps, all_taps = main_taps + (a.r + CHUNK - 1) / CHUNK;
  const uint32_t units = (a.k + CONV_PACK_CHANNELS - 1) / CONV_PACK_CHANNELS * all_taps * CONV_CHUNK_UNITS * CONV_PACK_CHANNELS;
  const uint32_t i = blockIdx.x * CONV_PACK_THREADS + threadIdx.x;
  if (i >= units) return;
  uint32_t rest = i / CONV_PACK_CHANNELS;
  const uint32_t unit = rest % CONV_CHUNK_UNITS;
  rest /= CONV_CHUNK_UNITS;
  const uint32_t at = rest % all_taps, k = rest / all_taps * CONV_PACK_CHANNELS + i % CONV_PACK_CHANNELS;
  const bool main = at < main_taps;
  const uint32_t tap = main ? at % a.taps : 0, channels = main ? a.c : a.r;
  const uint32_t c = (main ? at / a.taps : at - main_taps) * CHUNK + unit * E;
  const float* source = main ? a.w : a.w_res;
  // Element c of the unit is source[start + c * stride].
  size_t start, stride;
  if (a.dgrad) {
    start = ((size_t)(main ? a.taps - 1 - tap : 0) * a.forward_c + k) * channels;
    stride = 1;
  } else {
    start = (size_t)tap * channels * a.k + k;
    stride = a.k;
  }
  const float factor = a.scale && main && k < a.k ? a.scale[k] : 1.0f;
  float f[E];
#pragma unroll
  for (int j = 0; j < E; j++) {
    f[j] = k < a.k && c + j < channels ? source[start + (c + j) * stride] * factor : 0.0f;
    if (ROUND) f[j] = round_tf32(f[j]);
  }
  static_cast<uint4*>(a.packed)[i] = pack(f);
}

extern "C" __global__ void __launch_bounds__(128) conv_pack_f32(const __grid_constant__ ConvPackArgs a) { pack_filter<float, false>(a); }
extern "C" __global__ void __launch_bounds__(128) conv_pack_tf32(const __grid_constant__ ConvPackArgs a) { pack_filter<float, true>(a); }
extern "C" __global__ void __launch_bounds__(128) conv_pack_bf16(const __grid_constant__ ConvPackArgs a) { pack_filter<__nv_bfloat16, false>(a); }
