// ptx.cuh: every PTX instruction that the kernels use, as a function. The only file with inline assembly.
//
// On the device each function is one instruction; under the simulator (SIMT is defined) it calls the emulation of the same name.
// Shared-memory operands are 32-bit addresses of the shared window (`smem_t`), made by `smem_addr`.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

typedef uint32_t smem_t;

#ifdef SIMT
#define PTX_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()

static inline smem_t smem_addr(const void* p) { return simt::smem_u32(p); }

// d (16x8, f32) += a (16x16, bf16, row) * b (16x8, bf16, column). PTX ISA "mma.m16n8k16", fragments as there.
static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PTX_SITE) {
  simt::MmaData x{d, a, b, d};
  simt::collective(simt::K_MMA, 0xffffffffu, &x, simt::mma_m16n8k16_bf16_exec, file_, line_);
}
// d (16x8, f32) += a (16x8, tf32, row) * b (8x8, tf32, column). The low 13 bits of each operand are ignored.
static inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PTX_SITE) {
  simt::MmaData x{d, a, b, d};
  simt::collective(simt::K_MMA, 0xffffffffu, &x, simt::mma_m16n8k8_tf32_exec, file_, line_);
}
// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i%8 of matrix i/8 (16 bytes, 16-byte aligned).
// As 32-bit elements the same instruction loads 8x4 matrices: lane i receives element (i/4, i%4).
static inline void ldmatrix_x4(uint32_t (&r)[4], smem_t a, PTX_SITE) {
  simt::LdmData x{r, simt::smem_ptr(a), 4, false};
  simt::collective(simt::K_LDMATRIX, 0xffffffffu, &x, simt::ldmatrix_exec, file_, line_);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], smem_t a, PTX_SITE) {
  simt::LdmData x{r, simt::smem_ptr(a), 4, true};
  simt::collective(simt::K_LDMATRIX, 0xffffffffu, &x, simt::ldmatrix_exec, file_, line_);
}
// Two 8x8 matrices; lanes 0..15 give the addresses (those of the other lanes are not used but must be valid).
static inline void ldmatrix_x2(uint32_t (&r)[2], smem_t a, PTX_SITE) {
  simt::LdmData x{r, simt::smem_ptr(a), 2, false};
  simt::collective(simt::K_LDMATRIX, 0xffffffffu, &x, simt::ldmatrix_exec, file_, line_);
}
static inline void ldmatrix_x2_trans(uint32_t (&r)[2], smem_t a, PTX_SITE) {
  simt::LdmData x{r, simt::smem_ptr(a), 2, true};
  simt::collective(simt::K_LDMATRIX, 0xffffffffu, &x, simt::ldmatrix_exec, file_, line_);
}
// 16 bytes from global to shared memory, asynchronously; zeros where `pred` is false (src is not read then).
static inline void cp_async16(smem_t dst, const void* src, bool pred = true, PTX_SITE) {
  simt::cp_async(simt::smem_ptr(dst), src, 16, pred ? 16 : 0, file_, line_);
}
// 4 bytes likewise.
static inline void cp_async4(smem_t dst, const void* src, bool pred = true, PTX_SITE) {
  simt::cp_async(simt::smem_ptr(dst), src, 4, pred ? 4 : 0, file_, line_);
}
static inline void cp_async_commit() { simt::cp_async_commit(); }
// Waits until at most N groups of this thread are in flight.
template <int N> static inline void cp_async_wait() { simt::cp_async_wait(N); }
// 2^x and 1/x to about two units in the last place, numbers below the normal range taken as 0: one instruction each.
static inline float ex2_approx(float x) { return exp2f(x); }
static inline float rcp_approx(float x) { return 1.0f / x; }
#else
#define PTX static __device__ __forceinline__

PTX smem_t smem_addr(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PTX void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PTX void ldmatrix_x4(uint32_t (&r)[4], smem_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
PTX void ldmatrix_x4_trans(uint32_t (&r)[4], smem_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
PTX void ldmatrix_x2(uint32_t (&r)[2], smem_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}
PTX void ldmatrix_x2_trans(uint32_t (&r)[2], smem_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(a)
               : "memory");
}
PTX void cp_async16(smem_t dst, const void* src, bool pred = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(pred ? 16 : 0) : "memory");
}
PTX void cp_async4(smem_t dst, const void* src, bool pred = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(dst), "l"(src), "r"(pred ? 4 : 0) : "memory");
}
PTX void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N> PTX void cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }
PTX float ex2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
PTX float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
#endif
