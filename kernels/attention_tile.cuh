// attention_tile.cuh: what the attention kernels (attention.cu, attention_bwd.cu) share: their parameter, tiles in shared memory, and
// products of a warp from them.
//
// A tile is 64 rows (queries or keys) by up to 64 columns, [row][column]. Rows are ATTENTION_PITCH bytes of padding longer than 64
// elements, so that eight rows of a matrix of ldmatrix lie in different banks. Columns up to the next multiple of 16 and
// rows beyond the last hold 0.
#pragma once
#include "elements.cuh"
#include "products.cuh"
#include "ptx.cuh"

static constexpr int ATTENTION_TILE = 64;      // rust
static constexpr int ATTENTION_THREADS = 128;  // rust
static constexpr int ATTENTION_PAD = 16;       // rust

// Element types by position: T is float or bfloat16, as the kernel's name says. Null: absent.
struct AttentionArgs {
  const void* q;       // [n, t, heads d], rows q_stride elements apart, as are those of k and v
  const void* k;
  const void* v;
  const void* o;       // [n, t, heads d], rows o_stride apart; backward: only read
  const void* d_o;     // likewise; backward
  void* out0;          // forward o, backward dq or dk
  void* out1;          // backward dv
  float* lse;          // [n, heads, t]: log of the sum of exponentials of a row
  float* delta;        // [n, heads, t]: sum over d of do o; backward
  uint32_t n, t, heads, d;
  uint32_t q_stride, o_stride, out_stride;
  float scale;         // of the scores
  uint32_t vector;     // every row of a head begins at a multiple of 16 bytes and has a multiple of 16 bytes
  uint32_t unused;
};
static_assert(sizeof(AttentionArgs) == 112, "AttentionArgs is mirrored in src/ops/attention/gpu.rs");

static constexpr float LOG2_E = 1.44269504f;

// 2^x, of the library for float32, the quick one for bfloat16.
template <class T> static __device__ __forceinline__ float exp2_of(float x) {
  if constexpr (sizeof(T) == 2) return ex2_approx(x);
  else return exp2f(x);
}

template <class T> struct AttentionShape {
  static constexpr int E = VECTOR<T>, STEP = 2 * E;
  static constexpr int PITCH = ATTENTION_TILE + ATTENTION_PAD / (int)sizeof(T);
  static constexpr int ELEMENTS = ATTENTION_TILE * PITCH;
};

// The tensors of one (image, head): row 0, column 0 of the head.
template <class T> static __device__ __forceinline__ const T* head_of(const void* base, const AttentionArgs& a, uint32_t pair, uint32_t stride) {
  return static_cast<const T*>(base) + (size_t)(pair / a.heads) * a.t * stride + pair % a.heads * a.d;
}

// Starts to bring rows `first_row` .. and columns `first` .. of a head to a tile. `width`: columns that a product reads, a multiple of 16.
// `finish_tile`, after the copies of this thread have landed, rounds what this same thread brought.
template <class M>
static __device__ __forceinline__ void start_tile(const AttentionArgs& a, const typename M::T* head, uint32_t stride, int first_row, int first,
                                                  int width, typename M::T* tile) {
  using T = typename M::T;
  using S = AttentionShape<T>;
  const int units = width / S::E;
  for (int i = threadIdx.x; i < ATTENTION_TILE * units; i += ATTENTION_THREADS) {
    const int r = i / units, column = i % units * S::E, row = first_row + r, c = first + column;
    T* to = tile + r * S::PITCH + column;
    if (a.vector) {
      const bool inside = row < (int)a.t && c < (int)a.d;
      cp_async16(smem_addr(to), head + (inside ? (size_t)row * stride + c : 0), inside);
    } else {
#pragma unroll 1
      for (int j = 0; j < S::E; j++)
        to[j] = row < (int)a.t && c + j < (int)a.d ? head[(size_t)row * stride + c + j] : from_float<T>(0.0f);
    }
  }
}
template <class M> static __device__ __forceinline__ void finish_tile(int width, typename M::T* tile) {
  using T = typename M::T;
  using S = AttentionShape<T>;
  if constexpr (M::ROUND) {
    const int units = width / S::E;
    for (int i = threadIdx.x; i < ATTENTION_TILE * units; i += ATTENTION_THREADS) {
      T* at = tile + i / units * S::PITCH + i % units * S::E;
      float v[S::E];
      load<S::E>(at, v);
#pragma unroll
      for (int j = 0; j < S::E; j++) v[j] = round_tf32(v[j]);
      store<S::E>(at, v);
    }
  }
}

// acc (16 x 64) += A (16 x depth) B (depth x width). A: this warp's 16 rows. B: [column][k] where COLUMNS (its rows are the columns of the
// product), else [k][column]. `depth`: a multiple of STEP; `width`: columns of which something is wanted.
template <class M, bool COLUMNS>
static __device__ __forceinline__ void multiply_tile(float (&acc)[8][4], const typename M::T* a, const typename M::T* b, int depth, int width) {
  using T = typename M::T;
  using S = AttentionShape<T>;
  const int lane = threadIdx.x % 32;
  const smem_t at_a = smem_addr(a + lane % 16 * S::PITCH + lane / 16 * S::E);
  const smem_t at_b = COLUMNS ? smem_addr(b + (lane / 16 * 8 + lane % 8) * S::PITCH + lane / 8 % 2 * S::E)
                              : smem_addr(b + lane % 16 * S::PITCH + lane / 16 * S::E);
#pragma unroll 1
  for (int k = 0; k < depth; k += S::STEP) {
    uint32_t x[1][4];
    ldmatrix_x4(x[0], at_a + k * (int)sizeof(T));
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      if (j * 8 >= width) break;
      uint32_t w[2][2];
      if constexpr (COLUMNS || sizeof(T) == 2) {
        uint32_t r[4];
        if constexpr (COLUMNS) ldmatrix_x4(r, at_b + (j * 8 * S::PITCH + k) * (int)sizeof(T));
        else ldmatrix_x4_trans(r, at_b + (k * S::PITCH + j * 8) * (int)sizeof(T));
        w[0][0] = r[0], w[0][1] = r[1], w[1][0] = r[2], w[1][1] = r[3];
      } else {
        // ldmatrix transposes 16-bit elements only.
        const T* row = b + (k + lane % 4) * S::PITCH + j * 8 + lane / 4;
#pragma unroll
        for (int i = 0; i < 2; i++)
          w[i][0] = __float_as_uint(row[i * 8]), w[i][1] = __float_as_uint(row[4 * S::PITCH + i * 8]);
      }
      float two[1][2][4];
#pragma unroll
      for (int e = 0; e < 4; e++) two[0][0][e] = acc[j][e], two[0][1][e] = acc[j + 1][e];
      M::multiply(two, x, w);
#pragma unroll
      for (int e = 0; e < 4; e++) acc[j][e] = two[0][0][e], acc[j + 1][e] = two[0][1][e];
    }
  }
}

// Two neighbouring elements of a tile, as operands of a product.
template <class M> static __device__ __forceinline__ void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = M::ROUND ? make_float2(round_tf32(first), round_tf32(second)) : make_float2(first, second);
}

// acc (16 x 64) += P (16 x depth) B (depth x width), P the sums of an earlier product of this warp, or what was made of them in place; B as
// [k][column]. In bfloat16 the layout of two 16 x 8 sums is that of one 16 x 16 operand: P stays in registers. In float32 it passes through
// `rows`, this warp's 16 rows of a tile.
template <class M>
static __device__ __forceinline__ void multiply_sums(float (&acc)[8][4], const float (&p)[8][4], typename M::T* rows, const typename M::T* b,
                                                     int depth, int width) {
  using T = typename M::T;
  using S = AttentionShape<T>;
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    const smem_t at_b = smem_addr(b + lane % 16 * S::PITCH + lane / 16 * S::E);
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
      if (k * 8 >= depth) break;
      const uint32_t x[1][4] = {{pack_bf16(p[k][0], p[k][1]), pack_bf16(p[k][2], p[k][3]), pack_bf16(p[k + 1][0], p[k + 1][1]),
                                 pack_bf16(p[k + 1][2], p[k + 1][3])}};
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        if (j * 8 >= width) break;
        uint32_t r[4];
        ldmatrix_x4_trans(r, at_b + (k * 8 * S::PITCH + j * 8) * (int)sizeof(T));
        const uint32_t w[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
        mma_bf16(acc[j], x[0], w[0]);
        mma_bf16(acc[j + 1], x[0], w[1]);
      }
    }
  } else {
    T* to = rows + lane / 4 * S::PITCH + lane % 4 * 2;
    __syncwarp();  // what was here is read
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) store_pair<M>(to + half * 8 * S::PITCH + j * 8, p[j][2 * half], p[j][2 * half + 1]);
    __syncwarp();  // this warp's rows are complete
    multiply_tile<M, false>(acc, rows, b, depth, width);
  }
}

// Writes a warp's 16 x 64 sums, times `factors` of the lane's two rows, to rows first_row .. and columns first .. of a head.
template <class M>
static __device__ __forceinline__ void write_rows(const AttentionArgs& a, void* out, uint32_t pair, int first_row, int first, const float (&acc)[8][4],
                                                  const float (&factors)[2]) {
  using T = typename M::T;
  T* head = const_cast<T*>(head_of<T>(out, a, pair, a.out_stride));
  const int lane = threadIdx.x % 32;
  const bool pairs = a.vector != 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first_row + half * 8 + lane / 4;
    if (row >= (int)a.t) continue;
    T* to = head + (size_t)row * a.out_stride;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int c = first + j * 8 + lane % 4 * 2;
      const float v0 = acc[j][2 * half] * factors[half], v1 = acc[j][2 * half + 1] * factors[half];
      if (pairs && c < (int)a.d) {
        if constexpr (sizeof(T) == 2) *word_at<uint32_t>(to + c) = pack_bf16(v0, v1);
        else *word_at<float2>(to + c) = make_float2(v0, v1);
      } else {
        if (c < (int)a.d) to[c] = from_float<T>(v0);
        if (c + 1 < (int)a.d) to[c + 1] = from_float<T>(v1);
      }
    }
  }
}

// Chunks of 64 columns of a head, and the columns of one rounded up to the 16 that a product takes at once.
static __device__ __forceinline__ int chunks_of(const AttentionArgs& a) { return ((int)a.d + ATTENTION_TILE - 1) / ATTENTION_TILE; }
static __device__ __forceinline__ int chunk_width(const AttentionArgs& a, int chunk) {
  return (min(ATTENTION_TILE, (int)a.d - chunk * ATTENTION_TILE) + 15) / 16 * 16;
}
