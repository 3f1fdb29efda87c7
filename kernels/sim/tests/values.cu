// values.cu: wrappers and intrinsics of the simulator; tests/simulator.rs compares what they give with plain
// computations.
#include "args.cuh"

// in: fragments of A, B, C, per lane 4, 2 and 4 words; out: those of D.
template <bool BF16>
static __device__ __forceinline__ void mma(const SimTestArgs& a) {
  const uint32_t* words = in<uint32_t>(a) + threadIdx.x * 10;
  uint32_t x[4], w[2];
  float d[4];
  for (int i = 0; i < 4; i++) x[i] = words[i];
  for (int i = 0; i < 2; i++) w[i] = words[4 + i];
  for (int i = 0; i < 4; i++) d[i] = __uint_as_float(words[6 + i]);
  if (BF16) {
    mma_bf16(d, x, w);
  } else {
    mma_tf32(d, x, w);
  }
  for (int i = 0; i < 4; i++) out<float>(a)[threadIdx.x * 4 + i] = d[i];
}

extern "C" __global__ void sim_test_mma_bf16(const __grid_constant__ SimTestArgs a) { mma<true>(a); }
extern "C" __global__ void sim_test_mma_tf32(const __grid_constant__ SimTestArgs a) { mma<false>(a); }

// Four matrices of 8 rows of 8 elements of 16 bits, each with its own number. option: 0 x4, 1 x4 transposed, 2 x2, 3 x2
// transposed.
extern "C" __global__ void sim_test_ldmatrix(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  uint16_t* elements = reinterpret_cast<uint16_t*>(smem);
  for (int i = threadIdx.x; i < 256; i += 32) elements[i] = (uint16_t)i;
  __syncthreads();
  const smem_t row = smem_addr(elements + threadIdx.x * 8);
  uint32_t four[4] = {0, 0, 0, 0}, two[2] = {0, 0};
  if (a.option == 0) ldmatrix_x4(four, row);
  if (a.option == 1) ldmatrix_x4_trans(four, row);
  if (a.option == 2) ldmatrix_x2(two, row);
  if (a.option == 3) ldmatrix_x2_trans(two, row);
  if (a.option >= 2) four[0] = two[0], four[1] = two[1];
  for (int i = 0; i < 4; i++) out<uint32_t>(a)[threadIdx.x * 4 + i] = four[i];
}

// Threads below n copy 16 bytes (option 16) or 4, the others fill with zeros. Out: the first word before the wait and
// after it.
extern "C" __global__ void sim_test_cp_async(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  const int each = a.option / 4, at = threadIdx.x * each;
  const bool present = threadIdx.x < a.n;
  for (int i = 0; i < each; i++) words[at + i] = 7;
  if (a.option == 16) {
    cp_async16(smem_addr(words + at), in<uint32_t>(a) + at, present);
  } else {
    cp_async4(smem_addr(words + at), in<uint32_t>(a) + at, present);
  }
  cp_async_commit();
  uint32_t* result = out<uint32_t>(a) + threadIdx.x * (1 + each);
  result[0] = words[at];
  cp_async_wait<0>();
  for (int i = 0; i < each; i++) result[1 + i] = words[at + i];
}

// Two groups in flight: waiting for all but one makes the first arrive and leaves the second.
extern "C" __global__ void sim_test_cp_async_groups(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  for (int group = 0; group < 2; group++) {
    cp_async4(smem_addr(words + group), in<uint32_t>(a) + group);
    cp_async_commit();
  }
  cp_async_wait<1>();
  out<uint32_t>(a)[0] = words[0];
  out<uint32_t>(a)[1] = words[1];
  cp_async_wait<0>();
  out<uint32_t>(a)[2] = words[1];
}

// Width in option, distance in n. Out per lane: index n, up, down, xor; of the lane's square.
extern "C" __global__ void sim_test_shuffle(const __grid_constant__ SimTestArgs a) {
  const int lane = (int)threadIdx.x % 32, width = (int)a.option, value = lane * lane;
  int* result = out<int>(a) + threadIdx.x * 4;
  result[0] = __shfl_sync(0xffffffffu, value, (int)a.n, width);
  result[1] = __shfl_up_sync(0xffffffffu, value, a.n, width);
  result[2] = __shfl_down_sync(0xffffffffu, value, a.n, width);
  result[3] = __shfl_xor_sync(0xffffffffu, value, (int)a.n, width);
}

// Lanes of the mask n vote with their bit of option. Out per lane: ballot, any, all.
extern "C" __global__ void sim_test_vote(const __grid_constant__ SimTestArgs a) {
  const uint32_t lane = threadIdx.x, mask = a.n;
  if ((mask >> lane & 1) == 0) return;
  const int vote = (int)(a.option >> lane & 1);
  uint32_t* result = out<uint32_t>(a) + lane * 3;
  result[0] = __ballot_sync(mask, vote);
  result[1] = (uint32_t)__any_sync(mask, vote);
  result[2] = (uint32_t)__all_sync(mask, vote);
}

// Threads below n say yes. Out per thread: count, and, or; then a value passed on through the other half of the warp by
// __syncwarp.
extern "C" __global__ void sim_test_barriers(const __grid_constant__ SimTestArgs a) {
  __shared__ int box[128];
  const int yes = threadIdx.x < a.n;
  int* result = out<int>(a) + threadIdx.x * 4;
  result[0] = __syncthreads_count(yes);
  result[1] = __syncthreads_and(yes) != 0;
  result[2] = __syncthreads_or(yes) != 0;
  box[threadIdx.x] = (int)threadIdx.x;
  __syncwarp();
  result[3] = box[threadIdx.x ^ 31];
}

// Every thread of every block takes part. Out: add, sub, max, min, or, inc (wraps at n), exch (the last of equal), cas
// (a product).
extern "C" __global__ void sim_test_atomics(const __grid_constant__ SimTestArgs a) {
  uint32_t* words = out<uint32_t>(a);
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(words, i);
  atomicSub(words + 1, 1u);
  atomicMax(words + 2, i ^ 5);
  atomicMin(words + 3, i ^ 5);
  atomicOr(words + 4, 1u << i % 32);
  atomicInc(words + 5, a.n);
  atomicExch(words + 6, 77u);
  uint32_t seen = 1, before;
  do {
    before = seen;
    seen = atomicCAS(words + 7, before, before * 3);
  } while (seen != before);
}

// in: n floats. Out: their bfloat16 as 16 bits, by the scalar and by the paired conversion, and back as float.
extern "C" __global__ void sim_test_bf16(const __grid_constant__ SimTestArgs a) {
  const uint32_t i = threadIdx.x;
  if (i >= a.n) return;
  const float f = in<float>(a)[i];
  const __nv_bfloat16 h = __float2bfloat16_rn(f);
  const __nv_bfloat162 pair = __floats2bfloat162_rn(f, 1.0f);
  out<uint32_t>(a)[i] = __bfloat16_as_ushort(h) | (uint32_t)__bfloat16_as_ushort(pair.x) << 16;
  static_cast<float*>(a.extra)[i] = __bfloat162float(h);
}

// in: three words per thread. Out: high half of the product of the first two; then, of all three as floats: the rounded
// product plus the third, and the fused multiply-add.
extern "C" __global__ void sim_test_arithmetic(const __grid_constant__ SimTestArgs a) {
  const uint32_t* words = in<uint32_t>(a) + threadIdx.x * 3;
  const float x = __uint_as_float(words[0]), y = __uint_as_float(words[1]), z = __uint_as_float(words[2]);
  uint32_t* result = out<uint32_t>(a) + threadIdx.x * 3;
  result[0] = __umulhi(words[0], words[1]);
  result[1] = __float_as_uint(__fmul_rn(x, y) + z);
  result[2] = __float_as_uint(fmaf(x, y, z));
}
