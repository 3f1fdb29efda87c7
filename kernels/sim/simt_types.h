// simt_types.h: CUDA's vector types and bfloat16, for the simulator.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define SIMT_VECTOR2(name, T, alignment)        \
  struct __align__(alignment) name { T x, y; }; \
  static inline name make_##name(T x, T y) { return {x, y}; }
#define SIMT_VECTOR3(name, T) \
  struct name {               \
    T x, y, z;                \
  };                          \
  static inline name make_##name(T x, T y, T z) { return {x, y, z}; }
#define SIMT_VECTOR4(name, T, alignment)              \
  struct __align__(alignment) name { T x, y, z, w; }; \
  static inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR2(float2, float, 8)
SIMT_VECTOR3(float3, float)
SIMT_VECTOR4(float4, float, 16)
SIMT_VECTOR2(int2, int, 8)
SIMT_VECTOR3(int3, int)
SIMT_VECTOR4(int4, int, 16)
SIMT_VECTOR2(uint2, unsigned, 8)
SIMT_VECTOR3(uint3, unsigned)
SIMT_VECTOR4(uint4, unsigned, 16)
SIMT_VECTOR2(uchar2, unsigned char, 2)
SIMT_VECTOR4(uchar4, unsigned char, 4)
SIMT_VECTOR2(ushort2, unsigned short, 4)
SIMT_VECTOR4(ushort4, unsigned short, 8)
SIMT_VECTOR2(double2, double, 16)
SIMT_VECTOR2(longlong2, long long, 16)
SIMT_VECTOR2(ulonglong2, unsigned long long, 16)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

template <class To, class From>
static inline To simt_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float f) { return simt_bits<unsigned>(f); }
static inline int __float_as_int(float f) { return simt_bits<int>(f); }
static inline float __uint_as_float(unsigned u) { return simt_bits<float>(u); }
static inline float __int_as_float(int i) { return simt_bits<float>(i); }

// ---------------------------------------------------------------- bfloat16: conversions round to nearest even;
// arithmetic in float32

struct __nv_bfloat16 {
  uint16_t x;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) : x(from(f)) {}
  __nv_bfloat16(double f) : x(from((float)f)) {}
  __nv_bfloat16(int i) : x(from((float)i)) {}
  operator float() const { return simt_bits<float>((uint32_t)x << 16); }
  static uint16_t from(float f) {
    const uint32_t u = simt_bits<uint32_t>(f);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;  // not a number
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
};
struct __align__(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) : x(a), y(b) {}
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
static_assert(std::is_trivially_default_constructible<__nv_bfloat162>::value, "may lie in shared memory");
static_assert(sizeof(__nv_bfloat16) == 2, "");

static inline __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a + (float)b; }
static inline __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a - (float)b; }
static inline __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a * (float)b; }
static inline __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a / (float)b; }
static inline float __bfloat162float(__nv_bfloat16 h) { return (float)h; }
static inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
static inline float __low2float(__nv_bfloat162 h) { return (float)h.x; }
static inline float __high2float(__nv_bfloat162 h) { return (float)h.y; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {(float)h.x, (float)h.y}; }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {__nv_bfloat16(f.x), __nv_bfloat16(f.y)}; }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) {
  __nv_bfloat16 h;
  h.x = u;
  return h;
}
