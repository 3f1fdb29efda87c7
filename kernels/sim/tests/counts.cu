// counts.cu: kernels whose accesses are known, for the checker's counters (kernels/sim/count.cpp); tests/sim_counts.rs
// says what each must give, and why. All are launched with whole warps.
#include "args.cuh"

// option 0: 16 bytes a thread, copied as they are; 1: each component changed; 2: the components one at a time, of an
// array of which the compiler knows nothing.
extern "C" __global__ void sim_test_count_copy(const __grid_constant__ SimTestArgs a) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (a.option == 0) out<uint4>(a)[i] = in<uint4>(a)[i];
  if (a.option == 1) {
    const uint4& v = in<uint4>(a)[i];
    out<uint4>(a)[i] = make_uint4(v.x + 1, v.y + 2, v.z + 3, v.w + 4);
  }
  if (a.option == 2) {
    for (int e = 0; e < (int)a.n; e++) out<uint32_t>(a)[i * 4 + e] = in<uint32_t>(a)[i * 4 + e];
  }
}

// Words at this distance, gathered. n: words from the begin.
extern "C" __global__ void sim_test_count_stride(const __grid_constant__ SimTestArgs a) {
  out<uint32_t>(a)[threadIdx.x] = in<uint32_t>(a)[a.n + threadIdx.x * a.option];
}

// 32 x 32 words through shared memory whose rows are `option` words apart, written by rows and read by columns, one at
// a time.
extern "C" __global__ void sim_test_count_transpose(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  uint32_t* tile = reinterpret_cast<uint32_t*>(smem);
  const int lane = threadIdx.x, pitch = a.option;
  for (int row = 0; row < 32; row++) tile[row * pitch + lane] = in<uint32_t>(a)[row * 32 + lane];
  __syncwarp();
  for (int row = 0; row < 32; row++) {
    out<uint32_t>(a)[row * 32 + lane] = tile[lane * pitch + row];
    __syncwarp();
  }
}

// Shared memory by vectors that are `n` bytes apart. option: bytes of a vector, 32 of them in a loop over words.
extern "C" __global__ void sim_test_count_vectors(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  unsigned char* at = smem + threadIdx.x * a.n;
  if (a.option == 2) *reinterpret_cast<uint16_t*>(at) = 1;
  if (a.option == 4) *reinterpret_cast<uint32_t*>(at) = 1;
  if (a.option == 8) *reinterpret_cast<uint2*>(at) = make_uint2(1, 2);
  if (a.option == 16) *reinterpret_cast<uint4*>(at) = make_uint4(1, 2, 3, 4);
  if (a.option == 32) {
    for (int i = 0; i < 8; i++) reinterpret_cast<uint32_t*>(at)[i] = i;
  }
}

// Every lane reads the same word of shared and of global memory.
extern "C" __global__ void sim_test_count_broadcast(const __grid_constant__ SimTestArgs a) {
  __shared__ uint32_t word;
  if (threadIdx.x == 0) word = 5;
  __syncwarp();
  out<uint32_t>(a)[threadIdx.x] = word + *in<uint32_t>(a);
}

// 16 bytes a lane by an asynchronous copy to rows that are `option` bytes apart, then four matrices of these rows.
extern "C" __global__ void sim_test_count_matrices(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  const smem_t row = smem_addr(smem + threadIdx.x * a.option);
  cp_async16(row, in<uint4>(a) + threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, row);
  out<uint4>(a)[threadIdx.x] = make_uint4(r[0], r[1], r[2], r[3]);
}

// The lower half of the lanes sits out the first round. option: 1 if the lanes meet after each.
extern "C" __global__ void sim_test_count_rounds(const __grid_constant__ SimTestArgs a) {
  uint32_t sum = 0;
  for (uint32_t round = 0; round < a.n; round++) {
    if (round > 0 || threadIdx.x >= 16) sum += in<uint32_t>(a)[round * 32 + threadIdx.x];
    if (a.option == 1) __syncwarp();
  }
  out<uint32_t>(a)[threadIdx.x] = sum;
}

// Words that are updated, words that are written and then read by others, and a counter.
extern "C" __global__ void sim_test_count_again(const __grid_constant__ SimTestArgs a) {
  uint32_t* extra = static_cast<uint32_t*>(a.extra);
  out<uint32_t>(a)[threadIdx.x] += 1;
  extra[32 + threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (a.option == 1) out<uint32_t>(a)[threadIdx.x] += extra[32 + blockDim.x - 1 - threadIdx.x];
  atomicAdd(extra, 1u);
}
