// clean.cu: correct kernels of the forms that the crate uses, about which the checker must say nothing.
#include "args.cuh"

// Sums n tiles of a block's threads through two buffers of asynchronous copies; every thread reads what its neighbour
// copied.
extern "C" __global__ void sim_test_clean_pipeline(const __grid_constant__ SimTestArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float* buffers = reinterpret_cast<float*>(smem);
  const int t = (int)threadIdx.x, threads = (int)blockDim.x;
  auto start = [&](int tile) {
    cp_async4(smem_addr(buffers + (tile & 1) * threads + t), in<float>(a) + tile * threads + t);
    cp_async_commit();
  };
  start(0);
  float sum = 0.0f;
  for (int tile = 0; tile < (int)a.n; tile++) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is complete, and nobody reads the other buffer any more
    if (tile + 1 < (int)a.n) start(tile + 1);
    sum += buffers[(tile & 1) * threads + (t + 1) % threads];
  }
  out<float>(a)[t] = sum;
}

// A sum over a block: within warps by shuffles, across them through shared memory; then a value around the warp by
// __syncwarp.
extern "C" __global__ void sim_test_clean_reduce(const __grid_constant__ SimTestArgs a) {
  __shared__ float partial[32], shared[1024];
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  float sum = in<float>(a)[threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  sum = 0.0f;
  for (int i = 0; i < (int)blockDim.x / 32; i++) sum += partial[i];
  for (int step = 0; step < 3; step++) {
    shared[threadIdx.x] = sum + (float)lane;
    __syncwarp();
    sum = shared[warp * 32 + (lane + 1) % 32] - (float)((lane + 1) % 32);
    __syncwarp();
  }
  out<float>(a)[threadIdx.x] = sum;
}

// Each block writes its sum; the block that takes the last ticket adds them. extra: the sums of the blocks, then the
// ticket.
extern "C" __global__ void sim_test_clean_last_block(const __grid_constant__ SimTestArgs a) {
  __shared__ bool last;
  float* sums = static_cast<float*>(a.extra);
  uint32_t* ticket = static_cast<uint32_t*>(a.extra) + gridDim.x * blockDim.x;
  sums[blockIdx.x * blockDim.x + threadIdx.x] = in<float>(a)[blockIdx.x * blockDim.x + threadIdx.x] * 2.0f;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  float sum = 0.0f;
  for (uint32_t block = 0; block < gridDim.x; block++) sum += sums[block * blockDim.x + threadIdx.x];
  out<float>(a)[threadIdx.x] = sum;
}

// Neighbouring bytes are of different threads, in shared and in global memory, and so are halves of a word.
extern "C" __global__ void sim_test_clean_bytes(const __grid_constant__ SimTestArgs a) {
  __shared__ uint8_t bytes[64];
  __shared__ uint16_t halves[64];
  bytes[threadIdx.x] = (uint8_t)(threadIdx.x * 3);
  halves[threadIdx.x] = (uint16_t)(threadIdx.x * 5);
  __syncthreads();
  out<uint8_t>(a)[threadIdx.x] = bytes[63 - threadIdx.x];
  out<uint8_t>(a)[64 + threadIdx.x] = (uint8_t)halves[63 - threadIdx.x];
}
