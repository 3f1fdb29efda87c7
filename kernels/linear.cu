// linear.cu: linear layers over few rows, one for each image: forward, and gradients.
//
// math   out[i,j] = epilogue( sum_r f(a[i,r]) b[r,j] ), f = silu or identity. With x [N,C], W [C,K], dy [N,K]:
//          y  = f(x) W + bias      dW += f(x)^T dy, db[k] += sum_n dy[n,k]      dx = f'(x) (dy W^T), perhaps added to what is there
// shapes a, b by strides, so that transposes need no copies; out [rows, columns]. All float32.
// map    a block makes 32 rows by 32 columns and goes along r by 32, both operands through shared memory; a thread makes 4 rows of a
//        column. The blocks of the first rows of dW also make db.
// num    float32, r in order: bit for bit repeatable. SiLU in float32 with the library's exponential.
// cost   analytic, not measured. y of 64 images, 512 to 512: 34 MFLOP, 1.3 MB, 32 blocks: latency of 16 steps, some 10 us.
// ref    src/ops/linear/reference.rs; tests/gpu_unet_ops.rs
// limit  fewer than 2^31 elements of each operand.
#include <cstdint>

#include "silu.cuh"

static constexpr int LINEAR_TILE = 32;         // rust
static constexpr int LINEAR_THREADS = 256;     // rust
static constexpr int LINEAR_SILU = 1;          // rust
static constexpr int LINEAR_ACCUMULATE = 2;    // rust

struct LinearArgs {
  const float* a;
  const float* b;
  const float* bias;  // [columns], or null
  const float* gate;  // [rows, columns]: times silu'(gate), or null
  float* out;         // [rows, columns]
  float* sums;        // [columns]: sum_r b[r,j], accumulates, or null
  uint32_t rows, columns, depth;
  uint32_t a_row, a_depth;        // strides
  uint32_t b_depth, b_column;
  uint32_t flags;
};
static_assert(sizeof(LinearArgs) == 80, "LinearArgs is mirrored in src/ops/linear/gpu.rs");

// 32 x 32 elements to shared memory, [first][second + 1], 0 outside. Neighbouring threads are neighbours in memory.
static __device__ __forceinline__ void linear_tile(const float* from, uint32_t first, uint32_t firsts, uint32_t first_stride, uint32_t second,
                                                   uint32_t seconds, uint32_t second_stride, bool silu, float (*to)[LINEAR_TILE + 1]) {
  const bool along_second = second_stride == 1;
  for (int i = threadIdx.x; i < LINEAR_TILE * LINEAR_TILE; i += LINEAR_THREADS) {
    const uint32_t quick = i % LINEAR_TILE, slow = i / LINEAR_TILE;
    const uint32_t f = along_second ? slow : quick, s = along_second ? quick : slow;
    float v = 0.0f;
    if (first + f < firsts && second + s < seconds) v = from[(size_t)(first + f) * first_stride + (size_t)(second + s) * second_stride];
    to[f][s] = silu ? silu_of<float>(v) : v;  // silu(0) = 0
  }
}

extern "C" __global__ void __launch_bounds__(256) linear_f32(const __grid_constant__ LinearArgs a) {
  extern __shared__ __align__(128) unsigned char smem[];
  auto a_tile = reinterpret_cast<float (*)[LINEAR_TILE + 1]>(smem);  // [row][r]
  auto b_tile = a_tile + LINEAR_TILE;                               // [r][column]
  constexpr int ROWS = LINEAR_TILE * LINEAR_TILE / LINEAR_THREADS;
  const uint32_t first_row = blockIdx.y * LINEAR_TILE, first_column = blockIdx.x * LINEAR_TILE;
  const int column = threadIdx.x % LINEAR_TILE, row = threadIdx.x / LINEAR_TILE * ROWS;
  float acc[ROWS] = {}, sum = 0.0f;
  for (uint32_t r = 0; r < a.depth; r += LINEAR_TILE) {
    __syncthreads();  // nobody reads the tiles any more
    linear_tile(a.a, first_row, a.rows, a.a_row, r, a.depth, a.a_depth, (a.flags & LINEAR_SILU) != 0, a_tile);
    linear_tile(a.b, r, a.depth, a.b_depth, first_column, a.columns, a.b_column, false, b_tile);
    __syncthreads();  // the tiles are complete
#pragma unroll 8
    for (int i = 0; i < LINEAR_TILE; i++) {
      const float b = b_tile[i][column];
      sum += b;
#pragma unroll
      for (int j = 0; j < ROWS; j++) acc[j] = fmaf(a_tile[row + j][i], b, acc[j]);
    }
  }
  const uint32_t k = first_column + column;
  if (k >= a.columns) return;  // no barrier follows
  const float bias = a.bias ? a.bias[k] : 0.0f;
#pragma unroll
  for (int j = 0; j < ROWS; j++) {
    if (first_row + row + j >= a.rows) break;
    const size_t at = (size_t)(first_row + row + j) * a.columns + k;
    float v = acc[j] + bias;
    if (a.gate) v *= silu_slope<float>(a.gate[at]);
    if (a.flags & LINEAR_ACCUMULATE) v += a.out[at];
    a.out[at] = v;
  }
  if (a.sums && first_row == 0 && row == 0) a.sums[k] += sum;
}
