// elements.cuh: tensor elements, float or bfloat16, read and written as float, one at a time or 16 bytes at once.
//
// num  bfloat16 is widened exactly and rounded to the nearest, ties to even.
// use  `load<V>` and `store<V>` with V = 1, or V = VECTOR<T> where the address is a multiple of 16.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>

// Elements of 16 bytes.
template <class T> static constexpr int VECTOR = 16 / (int)sizeof(T);

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T> static __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16(v); }

// Two bfloat16 of a word, the first in its low half.
static __device__ __forceinline__ void unpack_bf16(uint32_t word, float& first, float& second) {
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
}
static __device__ __forceinline__ uint32_t pack_bf16(float first, float second) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(first, second);  // one instruction; rounding them one by one takes a slow unit
  return *reinterpret_cast<const uint32_t*>(&two);
}

static __device__ __forceinline__ void unpack(const uint4& word, float (&v)[4]) {
  v[0] = __uint_as_float(word.x), v[1] = __uint_as_float(word.y);
  v[2] = __uint_as_float(word.z), v[3] = __uint_as_float(word.w);
}
static __device__ __forceinline__ void unpack(const uint4& word, float (&v)[8]) {
  unpack_bf16(word.x, v[0], v[1]), unpack_bf16(word.y, v[2], v[3]);
  unpack_bf16(word.z, v[4], v[5]), unpack_bf16(word.w, v[6], v[7]);
}
static __device__ __forceinline__ uint4 pack(const float (&v)[4]) {
  return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}
static __device__ __forceinline__ uint4 pack(const float (&v)[8]) {
  return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

// Address of a word. One that is not aligned stops the simulator, as it would stop a GPU.
template <class Word, class T> static __device__ __forceinline__ Word* word_at(T* p) {
#ifdef SIMT
  if ((size_t)p % sizeof(Word) != 0) __trap();
#endif
  return reinterpret_cast<Word*>(p);
}

// V neighbouring elements.
template <int V, class T> static __device__ __forceinline__ void load(const T* p, float (&v)[V]) {
  static_assert(V == 1 || V == VECTOR<T>, "one element or 16 bytes");
  if constexpr (V == 1) {
    v[0] = to_float(*p);
  } else {
    unpack(*word_at<const uint4>(p), v);
  }
}

// Writes V neighbouring elements; `v` becomes what a reader will find, that is, the rounded values.
template <int V, class T> static __device__ __forceinline__ void store(T* p, float (&v)[V]) {
  static_assert(V == 1 || V == VECTOR<T>, "one element or 16 bytes");
  if constexpr (V == 1) {
    const T stored = from_float<T>(v[0]);
    *p = stored;
    v[0] = to_float(stored);
  } else {
    const uint4 stored = pack(v);
    *word_at<uint4>(p) = stored;
    unpack(stored, v);
  }
}
