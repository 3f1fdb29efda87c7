// planted.cu: kernels with one fault each. The comment `BUG` stands on the line that the report must name;
// tests/simulator.rs looks it up. Blocks of 64 threads; n elements in `in` and `out`.
#include "args.cuh"

extern "C" __global__ void sim_test_divergent_barrier(const __grid_constant__ SimTestArgs a) {
  for (uint32_t i = 0; i <= threadIdx.x / 32; i++) __syncthreads();  // BUG divergent_barrier
}

extern "C" __global__ void sim_test_exit_before_barrier(const __grid_constant__ SimTestArgs a) {
  if (threadIdx.x == 5) return;
  __syncthreads();  // BUG exit_before_barrier
}

extern "C" __global__ void sim_test_two_barriers(const __grid_constant__ SimTestArgs a) {
  if (threadIdx.x < 32) {
    __syncthreads();  // BUG two_barriers
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void sim_test_shuffle_missing_lanes(const __grid_constant__ SimTestArgs a) {
  int value = (int)threadIdx.x;
  if (threadIdx.x % 2 == 0) {
    value = __shfl_xor_sync(0xffffffffu, value, 2);  // BUG shuffle_missing_lanes
  } else {
    __syncwarp();
  }
  out<int>(a)[threadIdx.x] = value;
}

extern "C" __global__ void sim_test_shuffle_exited_lanes(const __grid_constant__ SimTestArgs a) {
  if (threadIdx.x % 32 == 7) return;
  out<int>(a)[threadIdx.x] = __shfl_down_sync(0xffffffffu, (int)threadIdx.x, 1);  // BUG shuffle_exited_lanes
}

extern "C" __global__ void sim_test_shuffle_outside_mask(const __grid_constant__ SimTestArgs a) {
  out<int>(a)[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 0);  // BUG shuffle_outside_mask
}

extern "C" __global__ void sim_test_deadlock(const __grid_constant__ SimTestArgs a) {
  if (threadIdx.x % 32 == 0) __syncwarp();  // BUG deadlock
  __syncthreads();
}

extern "C" __global__ void sim_test_global_read(const __grid_constant__ SimTestArgs a) {
  out<float>(a)[threadIdx.x] = in<float>(a)[threadIdx.x + 1];  // BUG global_read
}

extern "C" __global__ void sim_test_global_write(const __grid_constant__ SimTestArgs a) {
  out<float>(a)[(int)threadIdx.x - 1] = 1.0f;  // BUG global_write
}

extern "C" __global__ void sim_test_global_far(const __grid_constant__ SimTestArgs a) {
  out<float>(a)[threadIdx.x * 1024] = 1.0f;  // BUG global_far
}

extern "C" __global__ void sim_test_global_atomic(const __grid_constant__ SimTestArgs a) {
  atomicAdd(out<int>(a) + threadIdx.x + 1, 1);  // BUG global_atomic
}

extern "C" __global__ void sim_test_dynamic_shared(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* values = reinterpret_cast<float*>(smem);
  values[threadIdx.x + 1] = 1.0f;  // BUG dynamic_shared
}

extern "C" __global__ void sim_test_static_shared(const __grid_constant__ SimTestArgs a) {
  __shared__ float values[64];
  values[threadIdx.x + a.n / 64] = 1.0f;  // BUG static_shared
  __syncthreads();
  out<float>(a)[threadIdx.x] = values[threadIdx.x];
}

// On one line: the stack may end at the call, in the frame or at its first use.
// clang-format off
static __device__ __noinline__ int deep(volatile int* at, int depth) { volatile int frame[64]; for (int i = 0; i < 64; i++) frame[i] = depth; return depth == 0 ? *at : deep(frame, depth - 1) + frame[depth % 64]; }  // BUG stack_overflow
// clang-format on
extern "C" __global__ void sim_test_stack_overflow(const __grid_constant__ SimTestArgs a) {
  int depth = (int)a.n * 1000;
  out<int>(a)[threadIdx.x] = deep(&depth, depth);
}

extern "C" __global__ void sim_test_uninitialised(const __grid_constant__ SimTestArgs a) {
  __shared__ float values[65];
  values[threadIdx.x] = 1.0f;
  __syncthreads();
  out<float>(a)[threadIdx.x] = values[threadIdx.x + 1];  // BUG uninitialised
}

extern "C" __global__ void sim_test_read_after_write(const __grid_constant__ SimTestArgs a) {
  __shared__ float values[64];
  values[threadIdx.x] = 0.0f;
  __syncthreads();
  values[threadIdx.x] = 1.0f;
  out<float>(a)[threadIdx.x] = values[threadIdx.x ^ 32];  // BUG read_after_write
}

extern "C" __global__ void sim_test_write_after_read(const __grid_constant__ SimTestArgs a) {
  __shared__ float values[64];
  values[threadIdx.x] = 1.0f;
  __syncthreads();
  const float other = values[threadIdx.x ^ 32];
  values[threadIdx.x] = other + 1.0f;  // BUG write_after_read
}

extern "C" __global__ void sim_test_write_after_write(const __grid_constant__ SimTestArgs a) {
  __shared__ float values[64];
  values[threadIdx.x / 2] = (float)threadIdx.x;  // BUG write_after_write
  __syncthreads();
  out<float>(a)[threadIdx.x] = values[threadIdx.x / 2];
}

extern "C" __global__ void sim_test_missing_syncwarp(const __grid_constant__ SimTestArgs a) {
  __shared__ float values[64];
  values[threadIdx.x] = 1.0f;
  const int lane = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);  // a shuffle does not order memory
  out<float>(a)[threadIdx.x] = values[lane];                           // BUG missing_syncwarp
}

extern "C" __global__ void sim_test_global_race(const __grid_constant__ SimTestArgs a) {
  out<float>(a)[threadIdx.x] = 1.0f;
  out<float>(a)[threadIdx.x ^ 1] += 1.0f;  // BUG global_race
}

extern "C" __global__ void sim_test_blocks_race(const __grid_constant__ SimTestArgs a) {
  out<float>(a)[threadIdx.x] = (float)blockIdx.x;  // BUG blocks_race
}

// As sim_test_clean_last_block, without the fence.
extern "C" __global__ void sim_test_ticket_without_fence(const __grid_constant__ SimTestArgs a) {
  __shared__ bool last;
  float* sums = out<float>(a);
  sums[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(static_cast<uint32_t*>(a.extra), 1u) == gridDim.x - 1;
  __syncthreads();
  if (last) sums[threadIdx.x] += sums[blockDim.x + threadIdx.x];  // BUG ticket_without_fence
}

extern "C" __global__ void sim_test_read_before_wait(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* values = reinterpret_cast<float*>(smem);
  cp_async4(smem_addr(values + threadIdx.x), in<float>(a) + threadIdx.x);
  cp_async_commit();
  out<float>(a)[threadIdx.x] = values[threadIdx.x];  // BUG read_before_wait
  cp_async_wait<0>();
}

// A wait is for the copies of this thread only: those of others need a barrier too.
extern "C" __global__ void sim_test_wait_without_barrier(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* values = reinterpret_cast<float*>(smem);
  cp_async4(smem_addr(values + threadIdx.x), in<float>(a) + threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  out<float>(a)[threadIdx.x] = values[threadIdx.x ^ 32];  // BUG wait_without_barrier
}

extern "C" __global__ void sim_test_stage_overwritten(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* values = reinterpret_cast<float*>(smem);
  float sum = 0.0f;
  for (int i = 0; i < 2; i++) {
    cp_async4(smem_addr(values + threadIdx.x), in<float>(a) + threadIdx.x);  // BUG stage_overwritten
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    sum += values[threadIdx.x ^ 32];
  }
  out<float>(a)[threadIdx.x] = sum;
}

extern "C" __global__ void sim_test_exit_outstanding(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  cp_async4(smem_addr(smem + threadIdx.x * 4), in<float>(a) + threadIdx.x);  // BUG exit_outstanding
  cp_async_commit();
}

extern "C" __global__ void sim_test_ldmatrix_uninitialised(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  uint32_t r[4];
  ldmatrix_x4(r, smem_addr(smem + threadIdx.x % 32 * 16));  // BUG ldmatrix_uninitialised
  out<uint32_t>(a)[threadIdx.x] = r[0];
}

extern "C" __global__ void sim_test_misaligned(const __grid_constant__ SimTestArgs a) {
  const float4* vectors = reinterpret_cast<const float4*>(in<float>(a) + 1);
  if (threadIdx.x < 8) out<float4>(a)[threadIdx.x] = vectors[threadIdx.x];  // BUG misaligned
}

extern "C" __global__ void sim_test_trap(const __grid_constant__ SimTestArgs a) {
  if (threadIdx.x == 3) __trap();  // BUG trap
}

extern "C" __global__ void sim_test_bytes_race(const __grid_constant__ SimTestArgs a) {
  out<uint8_t>(a)[threadIdx.x / 2] = (uint8_t)threadIdx.x;  // BUG bytes_race
}

extern "C" __global__ void sim_test_division_by_zero(const __grid_constant__ SimTestArgs a) {
  out<int>(a)[threadIdx.x] = (int)threadIdx.x / (int)(a.n - 64);  // BUG division_by_zero
}
