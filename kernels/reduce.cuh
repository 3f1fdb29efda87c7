// reduce.cuh: sums and moments over the threads of a block, each in one fixed order, so that results repeat bit for bit.
//
// math  Chan, Golub and LeVeque 1983: sets of n and m numbers with means a and b and sums of squared deviations A and B have together
//       mean a + d m/(n+m) and A + B + d^2 n m/(n+m), d = b - a.
// num   No difference of large sums appears anywhere: a mean that is large beside the spread costs no digits of the spread.
#pragma once
#include <cstdint>

// Count, mean and sum of squared deviations of V channels that were seen equally often.
template <int V> struct Moments {
  float count = 0.0f;
  float mean[V] = {};
  float m2[V] = {};

  // Adds a set of `n` numbers per channel, n > 0.
  __device__ __forceinline__ void merge(float n, const float (&other_mean)[V], const float (&other_m2)[V]) {
    const float total = count + n, share = n / total, weight = count * share;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float delta = other_mean[i] - mean[i];
      mean[i] = fmaf(delta, share, mean[i]);
      m2[i] += fmaf(delta * delta, weight, other_m2[i]);
    }
    count = total;
  }

  // Adds one number per channel.
  __device__ __forceinline__ void add(const float (&v)[V]) {
    const float zeros[V] = {};
    merge(1.0f, v, zeros);
  }

  // Adds four numbers per channel.
  __device__ __forceinline__ void add(const float (&v0)[V], const float (&v1)[V], const float (&v2)[V], const float (&v3)[V]) {
    float four_mean[V], four_m2[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
      four_mean[i] = 0.25f * ((v0[i] + v1[i]) + (v2[i] + v3[i]));
      const float d0 = v0[i] - four_mean[i], d1 = v1[i] - four_mean[i], d2 = v2[i] - four_mean[i], d3 = v3[i] - four_mean[i];
      four_m2[i] = fmaf(d0, d0, d1 * d1) + fmaf(d2, d2, d3 * d3);
    }
    merge(4.0f, four_mean, four_m2);
  }
};

// Floats of shared memory that `merge_rows` needs for a thread.
template <int V> static constexpr int MOMENTS_FLOATS = 2 * V + 1;

// Merges the moments of the threads with equal threadIdx.x into the one with threadIdx.y = 0: halves onto halves. All threads of
// the block call it. `shared`: MOMENTS_FLOATS<V> for each thread.
template <int V> static __device__ __forceinline__ void merge_rows(Moments<V>& moments, float* shared) {
  const int threads = blockDim.x * blockDim.y, rows = blockDim.y;
  const int row = threadIdx.y, thread = row * blockDim.x + threadIdx.x;
  int half = 1;
  while (2 * half < rows) half *= 2;
  for (int bound = rows; half > 0; bound = half, half /= 2) {
    if (row >= half && row < bound) {
      shared[thread] = moments.count;
#pragma unroll
      for (int i = 0; i < V; i++) {
        shared[(1 + i) * threads + thread] = moments.mean[i];
        shared[(1 + V + i) * threads + thread] = moments.m2[i];
      }
    }
    __syncthreads();
    if (row < half && row + half < bound) {
      const int other = thread + half * blockDim.x;
      const float n = shared[other];
      if (n > 0.0f) {
        float mean[V], m2[V];
#pragma unroll
        for (int i = 0; i < V; i++) {
          mean[i] = shared[(1 + i) * threads + other];
          m2[i] = shared[(1 + V + i) * threads + other];
        }
        moments.merge(n, mean, m2);
      }
    }
  }
}

// Sum over the threads with equal threadIdx.x, in the order of threadIdx.y, given to all of them. All threads of the block call it.
// `shared`: one double for each thread.
static __device__ __forceinline__ double sum_rows(double value, double* shared) {
  shared[threadIdx.y * blockDim.x + threadIdx.x] = value;
  __syncthreads();
  double sum = 0.0;
  for (int row = 0; row < (int)blockDim.y; row++) sum += shared[row * blockDim.x + threadIdx.x];
  __syncthreads();
  return sum;
}

// Sum over the warp, given to all its lanes.
static __device__ __forceinline__ double sum_warp(double value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}
