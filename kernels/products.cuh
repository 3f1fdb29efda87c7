// products.cuh: the tensor cores' products of a warp in the three arithmetics, from fragments to float32 sums.
//
// types  `T` is what operands are in shared memory. `ROUND`: they must have been rounded to tf32 there. MI matrices of 16 rows by NI of 8
//        columns; a step is two units of 16 bytes of each operand: 16 bfloat16 or 8 float32.
// num    Bf16 and Tf32 have one product for one. Fp32 has three tf32 ones: as accurate as float32 (see conv.cu on the rounding of sums).
#pragma once
#include "ptx.cuh"

// Nearest tf32 (10 bits of fraction), ties away from zero; the tensor core would cut the low 13 bits off.
static __device__ __forceinline__ float round_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // infinite or not a number
  return __uint_as_float((bits + 0x1000u) & 0xffffe000u);
}

struct Bf16 {
  typedef __nv_bfloat16 T;
  static constexpr bool ROUND = false;
  template <int MI, int NI>
  static __device__ __forceinline__ void multiply(float (&acc)[MI][NI][4], const uint32_t (&x)[MI][4], const uint32_t (&w)[NI][2]) {
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int j = 0; j < NI; j++) mma_bf16(acc[i][j], x[i], w[j]);
  }
};

struct Tf32 {
  typedef float T;
  static constexpr bool ROUND = true;
  template <int MI, int NI>
  static __device__ __forceinline__ void multiply(float (&acc)[MI][NI][4], const uint32_t (&x)[MI][4], const uint32_t (&w)[NI][2]) {
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int j = 0; j < NI; j++) mma_tf32(acc[i][j], x[i], w[j]);
  }
};

// Three products: with x = big + small, x w = small big + big small + big big up to 2^-22.
struct Fp32 {
  typedef float T;
  static constexpr bool ROUND = false;
  static __device__ __forceinline__ void split(uint32_t value, uint32_t& big, uint32_t& small) {
    big = value & 0xffffe000u;
    small = __float_as_uint(__uint_as_float(value) - __uint_as_float(big));
  }
  template <int MI, int NI>
  static __device__ __forceinline__ void multiply(float (&acc)[MI][NI][4], const uint32_t (&x)[MI][4], const uint32_t (&w)[NI][2]) {
    uint32_t w_big[NI][2], w_small[NI][2];
#pragma unroll
    for (int j = 0; j < NI; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) split(w[j][e], w_big[j][e], w_small[j][e]);
#pragma unroll
    for (int i = 0; i < MI; i++) {
      uint32_t big[4], small[4];
#pragma unroll
      for (int e = 0; e < 4; e++) split(x[i][e], big[e], small[e]);
#pragma unroll
      for (int j = 0; j < NI; j++) mma_tf32(acc[i][j], small, w_big[j]);
#pragma unroll
      for (int j = 0; j < NI; j++) mma_tf32(acc[i][j], big, w_small[j]);
#pragma unroll
      for (int j = 0; j < NI; j++) mma_tf32(acc[i][j], big, w_big[j]);
    }
  }
};
