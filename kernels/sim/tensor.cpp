// tensor.cpp: mma.sync and ldmatrix, with the fragments of the PTX manual. Sums are taken in float32 in the order of k;
// the hardware's order is its own, so results are compared with a tolerance, never to the bit.
#include "runtime.h"

namespace simt {
uint32_t smem_u32(const void* p) { return (uint32_t)((const char*)p - (const char*)::smem); }
void* smem_ptr(uint32_t address) { return (char*)::smem + (int32_t)address; }

static float half_word(uint32_t word, int high) { return simt_bits<float>(high ? word & 0xffff0000u : word << 16); }
static float tf32(uint32_t word) { return simt_bits<float>(word & 0xffffe000u); }

typedef float Row8 __attribute__((vector_size(32), aligned(4)));

template <int K>
static void multiply(const float (&a)[16][K], const float (&b)[K][8], float (&c)[16][8]) {
  Row8 sum[16];
  for (int m = 0; m < 16; m++) sum[m] = *(const Row8*)c[m];
  for (int k = 0; k < K; k++) {
    const Row8 row = *(const Row8*)b[k];
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) sum[m] += a[m][k] * row;
  }
  for (int m = 0; m < 16; m++) *(Row8*)c[m] = sum[m];
}

static void load_sums(void** lanes, float (&c)[16][8]) {
  for (int i = 0; i < WARP; i++) {
    const float* from = ((MmaData*)lanes[i])->c;
    const int row = i / 4, column = i % 4 * 2;
    for (int e = 0; e < 4; e++) c[row + e / 2 * 8][column + e % 2] = from[e];
  }
}
static void store_sums(void** lanes, const float (&c)[16][8]) {
  for (int i = 0; i < WARP; i++) {
    float* to = ((MmaData*)lanes[i])->d;
    const int row = i / 4, column = i % 4 * 2;
    for (int e = 0; e < 4; e++) to[e] = c[row + e / 2 * 8][column + e % 2];
  }
}

void mma_m16n8k16_bf16_exec(void** lanes, uint32_t mask) {
  if (mask != 0xffffffffu) fail("mma at %s:%d needs a full warp (mask %08x)", tls.op_file, tls.op_line, mask);
  float a[16][16], b[16][8], c[16][8];
  for (int i = 0; i < WARP; i++) {
    const MmaData& x = *(MmaData*)lanes[i];
    const int row = i / 4, column = i % 4 * 2;
    for (int h = 0; h < 2; h++) {
      a[row][column + h] = half_word(x.a[0], h);
      a[row + 8][column + h] = half_word(x.a[1], h);
      a[row][column + 8 + h] = half_word(x.a[2], h);
      a[row + 8][column + 8 + h] = half_word(x.a[3], h);
      b[column + h][row] = half_word(x.b[0], h);
      b[column + 8 + h][row] = half_word(x.b[1], h);
    }
  }
  load_sums(lanes, c);
  multiply(a, b, c);
  store_sums(lanes, c);
}

void mma_m16n8k8_tf32_exec(void** lanes, uint32_t mask) {
  if (mask != 0xffffffffu) fail("mma at %s:%d needs a full warp (mask %08x)", tls.op_file, tls.op_line, mask);
  float a[16][8], b[8][8], c[16][8];
  for (int i = 0; i < WARP; i++) {
    const MmaData& x = *(MmaData*)lanes[i];
    const int row = i / 4, column = i % 4;
    a[row][column] = tf32(x.a[0]);
    a[row + 8][column] = tf32(x.a[1]);
    a[row][column + 4] = tf32(x.a[2]);
    a[row + 8][column + 4] = tf32(x.a[3]);
    b[column][row] = tf32(x.b[0]);
    b[column + 4][row] = tf32(x.b[1]);
  }
  load_sums(lanes, c);
  multiply(a, b, c);
  store_sums(lanes, c);
}

void ldmatrix_exec(void** lanes, uint32_t mask) {
  if (mask != 0xffffffffu) fail("ldmatrix at %s:%d needs a full warp (mask %08x)", tls.op_file, tls.op_line, mask);
  const LdmData& first = *(LdmData*)lanes[0];
  ThreadPub* const me = tls.self;
  for (int matrix = 0; matrix < first.n; matrix++) {
    for (int r = 0; r < 8; r++) {
      const int lane = matrix * 8 + r;
      const char* row = (const char*)((LdmData*)lanes[lane])->row;
      if ((uintptr_t)row % 16) {
        fail("MISALIGNED row of ldmatrix at %s:%d: lane %d, shared memory + %u", tls.op_file, tls.op_line, lane,
             smem_u32(row));
      }
      if (checking) {  // the lane that gave the address reads the row
        tls.self = &worker->threads[me->warp * WARP + lane];
        hook(row, 16, false, tls.op_file, tls.op_line);
        tls.self = me;
      }
      if (!first.trans) {
        for (int c = 0; c < 4; c++) memcpy(&((LdmData*)lanes[r * 4 + c])->r[matrix], row + 4 * c, 4);
        continue;
      }
      for (int c = 0; c < 8; c++) {
        uint16_t element;
        memcpy(&element, row + 2 * c, 2);
        uint32_t& word = ((LdmData*)lanes[c * 4 + r / 2])->r[matrix];
        word = r % 2 ? (word & 0xffff) | (uint32_t)element << 16 : (word & 0xffff0000u) | element;
      }
    }
  }
}
}  // namespace simt
