// silu.cuh: x sigmoid(x) and its slope, for activations of a type.
#pragma once

// 1 / (1 + exp(-x)), the exponential of the library for float32 activations, the quick one for bfloat16. The quick division errs by
// 2 units in the last place; where the divisor is beyond 2^126 it gives 0 instead of a number below 2e-38.
template <class T> static __device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + (sizeof(T) == 2 ? __expf(-x) : expf(-x)));
}
template <class T> static __device__ __forceinline__ float silu_of(float x) { return x * sigmoid<T>(x); }
template <class T> static __device__ __forceinline__ float silu_slope(float x) {
  const float s = sigmoid<T>(x);
  return s + x * s * (1.0f - s);
}
