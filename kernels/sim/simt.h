// simt.h: CUDA C++ for g++. Included in front of every kernel file (`-x c++ -include simt.h`); what it declares is
// defined by the runtime beside it, whose overview is in runtime.h.
#pragma once
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define SIMT 1

// ---------------------------------------------------------------- qualifiers

#define __global__
#define __device__
#define __host__
#define __constant__
// In a function: one variable for each thread of the host, which runs one block at a time. `extern` ones are all the
// runtime's `smem`.
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __noinline__
#define __noinline__ __attribute__((noinline))  // behind the library's headers, which use the word themselves
#endif
#define __align__(n) __attribute__((aligned(n)))

#include "simt_math.h"
#include "simt_types.h"

// ---------------------------------------------------------------- the runtime

namespace simt {
// What kernels may know of a thread.
struct ThreadPub {
  uint3 tid;
  int lane, warp;
};
// Of a thread of the host. This model of thread-local memory makes `threadIdx` two loads.
struct Tls {
  ThreadPub* self;
  uint3 bid, bdim, gdim;
  // The warp operation being carried out.
  const char* op_file;
  int op_line;
};
extern __thread __attribute__((tls_model("initial-exec"))) Tls tls;

[[noreturn]] void fail(const char* format, ...);

enum Kind { K_SHFL, K_VOTE, K_SYNCWARP, K_MMA, K_LDMATRIX };
typedef void (*Run)(void** lane_data, uint32_t mask);
void syncthreads(const char* file, int line);
int syncthreads_reduce(int operation, int predicate, const char* file, int line);  // 0 count, 1 and, 2 or
void collective(int kind, uint32_t mask, void* data, Run run, const char* file, int line);
uint32_t active_mask();

void cp_async(void* dst, const void* src, int bytes, int src_bytes, const char* file, int line);
void cp_async_commit();
void cp_async_wait(int keep);

// 32-bit addresses of shared memory.
uint32_t smem_u32(const void* p);
void* smem_ptr(uint32_t address);

struct MmaData {
  float* d;
  const uint32_t *a, *b;
  const float* c;
};
void mma_m16n8k16_bf16_exec(void** lanes, uint32_t mask);
void mma_m16n8k8_tf32_exec(void** lanes, uint32_t mask);
struct LdmData {
  uint32_t* r;
  const void* row;
  int n;
  bool trans;
};
void ldmatrix_exec(void** lanes, uint32_t mask);

// Accesses that the compiler's instrumentation does not see. Nothing in the fast variant.
extern bool checking;
void hook(const void* p, size_t n, bool write, const char* file, int line);
void hook_async(const void* p, size_t n, bool done, const char* file, int line);
void hook_atomic(const void* p, size_t n, const char* file, int line);
void fence();

// ---------------------------------------------------------------- table of kernels

struct Kernel {
  const char* name;
  void (*invoke)(void** args);
  int nparams;
  const uint32_t* psize;
  Kernel* next;
};
void register_kernel(Kernel*);

template <class F>
struct Signature;
template <class... A>
struct Signature<void (*)(A...)> {
  static constexpr int n = sizeof...(A);
  static constexpr uint32_t sizes[] = {(uint32_t)sizeof(A)..., 0};
  // The parameters lie in memory of the host, which is not the checker's business.
  template <void (*K)(A...), size_t... I>
  __attribute__((no_sanitize("thread"))) static void call(void** args, std::index_sequence<I...>) {
    K(*(std::remove_const_t<A>*)args[I]...);
  }
  template <void (*K)(A...)>
  __attribute__((no_sanitize("thread"))) static void invoke(void** args) {
    call<K>(args, std::make_index_sequence<n>());
  }
};
}  // namespace simt
#define SIMT_KERNEL(k)                                                                \
  do {                                                                                \
    typedef simt::Signature<decltype(&k)> S;                                          \
    static simt::Kernel record{#k, &S::template invoke<&k>, S::n, S::sizes, nullptr}; \
    simt::register_kernel(&record);                                                   \
  } while (0)

#define threadIdx (simt::tls.self->tid)
#define blockIdx (simt::tls.bid)
#define blockDim (simt::tls.bdim)
#define gridDim (simt::tls.gdim)
static constexpr int warpSize = 32;

// ---------------------------------------------------------------- barriers and warp operations

#define SIMT_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()

#define __syncthreads() simt::syncthreads(__FILE__, __LINE__)
static inline int __syncthreads_count(int p, SIMT_SITE) { return simt::syncthreads_reduce(0, p, file_, line_); }
static inline int __syncthreads_and(int p, SIMT_SITE) { return simt::syncthreads_reduce(1, p, file_, line_); }
static inline int __syncthreads_or(int p, SIMT_SITE) { return simt::syncthreads_reduce(2, p, file_, line_); }

static inline void __syncwarp(uint32_t mask = 0xffffffffu, SIMT_SITE) {
  simt::collective(simt::K_SYNCWARP, mask, nullptr, [](void**, uint32_t) {}, file_, line_);
}

namespace simt {
template <class T>
struct ShuffleData {
  T value, result;
  int source;
};
template <class T>
void shuffle_exec(void** lanes, uint32_t mask) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    auto* to = (ShuffleData<T>*)lanes[__builtin_ctz(rest)];
    to->result = mask >> to->source & 1 ? ((ShuffleData<T>*)lanes[to->source])->value : to->value;
  }
}
template <class T>
inline T shuffle(uint32_t mask, T value, int source, const char* file, int line) {
  ShuffleData<T> data{value, value, source};
  collective(K_SHFL, mask, &data, shuffle_exec<T>, file, line);
  return data.result;
}
struct VoteData {
  uint32_t predicate, result;
};
inline void vote_exec(void** lanes, uint32_t mask) {
  uint32_t result = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (((VoteData*)lanes[lane])->predicate) result |= 1u << lane;
  }
  for (uint32_t rest = mask; rest; rest &= rest - 1) ((VoteData*)lanes[__builtin_ctz(rest)])->result = result;
}
}  // namespace simt

template <class T>
static inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32, SIMT_SITE) {
  const int lane = simt::tls.self->lane;
  return simt::shuffle<T>(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), file_, line_);
}
template <class T>
static inline T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, SIMT_SITE) {
  const int lane = simt::tls.self->lane, source = lane ^ bits;
  const bool later_group = source >= (lane & ~(width - 1)) + width;
  return simt::shuffle<T>(mask, value, later_group ? lane : source, file_, line_);
}
template <class T>
static inline T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32, SIMT_SITE) {
  const int lane = simt::tls.self->lane;
  const bool inside = (lane & (width - 1)) + (int)distance < width;
  return simt::shuffle<T>(mask, value, inside ? lane + (int)distance : lane, file_, line_);
}
template <class T>
static inline T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32, SIMT_SITE) {
  const int lane = simt::tls.self->lane;
  const bool inside = (lane & (width - 1)) >= (int)distance;
  return simt::shuffle<T>(mask, value, inside ? lane - (int)distance : lane, file_, line_);
}
static inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIMT_SITE) {
  simt::VoteData data{(uint32_t)(predicate != 0), 0};
  simt::collective(simt::K_VOTE, mask, &data, simt::vote_exec, file_, line_);
  return data.result;
}
static inline int __any_sync(uint32_t mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, predicate, file_, line_) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, !predicate, file_, line_) == 0;
}
static inline uint32_t __activemask() { return simt::active_mask(); }

// ---------------------------------------------------------------- memory

// Macros, so that the access stands on the kernel's line.
#define __ldg(...) (*(__VA_ARGS__))
#define __ldcs(...) (*(__VA_ARGS__))
#define __ldcg(...) (*(__VA_ARGS__))
#define __stcs(p, ...) ((void)(*(p) = (__VA_ARGS__)))
#define __stcg(p, ...) ((void)(*(p) = (__VA_ARGS__)))
static inline void __threadfence() { simt::fence(); }
static inline void __threadfence_block() {}
#define __trap() simt::fail("__trap() at %s:%d", __FILE__, __LINE__)

// Atomic operations are those of the host: blocks run on several of its threads. The checker hears of them by its hook
// alone.
#define SIMT_UNSEEN __attribute__((no_sanitize("thread"), noinline))
template <class T>
SIMT_UNSEEN static T simt_atomic(T* p, T (*operation)(T, T), T operand, const char* file, int line) {
  if (simt::checking) simt::hook_atomic(p, sizeof *p, file, line);
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do {
    after = operation(before, operand);
  } while (!__atomic_compare_exchange(p, &before, &after, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  return before;
}
#define SIMT_ATOMIC(name, expression)                                                                   \
  template <class T>                                                                                    \
  static inline T name(T* p, std::common_type_t<T> operand, SIMT_SITE) {                                \
    return simt_atomic<T>(p, [](T a, T b) { return (void)a, (T)(expression); }, operand, file_, line_); \
  }
SIMT_ATOMIC(atomicAdd, a + b)
SIMT_ATOMIC(atomicSub, a - b)
SIMT_ATOMIC(atomicMax, a > b ? a : b)
SIMT_ATOMIC(atomicMin, a < b ? a : b)
SIMT_ATOMIC(atomicExch, b)
SIMT_ATOMIC(atomicOr, a | b)
SIMT_ATOMIC(atomicInc, a >= b ? 0 : a + 1)
template <class T>
SIMT_UNSEEN static T atomicCAS(T* p, std::common_type_t<T> compare, std::common_type_t<T> value, SIMT_SITE) {
  if (simt::checking) simt::hook_atomic(p, sizeof *p, file_, line_);
  T before = compare;
  __atomic_compare_exchange(p, &before, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return before;
}
