// args.cuh: the parameter of all kernels that test the simulator.
#pragma once
#include "ptx.cuh"

struct SimTestArgs {
  const void* in;
  void* out;
  void* extra;
  uint32_t n;
  uint32_t option;
};
static_assert(sizeof(SimTestArgs) == 32, "SimTestArgs is mirrored in tests/simulator_support/mod.rs");

template <class T> static __device__ __forceinline__ const T* in(const SimTestArgs& a) { return static_cast<const T*>(a.in); }
template <class T> static __device__ __forceinline__ T* out(const SimTestArgs& a) { return static_cast<T*>(a.out); }
