// conv_tile.cuh: what the convolution kernels (conv.cu, conv_direct.cu) share: their parameter, the geometry of a tile of pixels,
// and the way of an operand from global to shared memory.
//
// A unit is 16 bytes of channels at one pixel: 8 bfloat16 or 4 float32. A chunk is 4 units. In shared memory a chunk of an operand is
// [unit][pixel][16 bytes]. The distance between units, in pixels, is 2 modulo 4: eight neighbouring threads, which hold 2 pixels by
// 4 units, then store to all 32 banks, and so do the eight rows of an 8x8 matrix of ldmatrix, which are neighbouring pixels.
#pragma once
#include "elements.cuh"
#include "products.cuh"
#include "ptx.cuh"
#include "silu.cuh"

static constexpr int CONV_CHUNK_UNITS = 4;    // rust
static constexpr int CONV_UNIT_BYTES = 16;    // rust
static constexpr int CONV_PACK_CHANNELS = 32;  // rust
// Floats behind every row of a tile's results in shared memory: rows then start 8 banks apart.
static constexpr int CONV_RESULT_PAD = 8;  // rust
// Partial sums per channel that the statistics keep in shared memory.
static constexpr int CONV_STAT_SLOTS = 16;  // rust

// Element types by position: T is float or bfloat16, as the kernel's name says. Null: absent.
struct ConvArgs {
  const void* x0;          // [n, height, width, c0]
  const void* x1;          // [n, height, width, c1], or [n, c1] where x1_constant
  const float* scale;      // [c0 + c1], prologue; [n, c0 + c1] where affine_images
  const float* shift;      // likewise
  const void* res0;        // [n, height, width, r0]
  const void* res1;        // [n, height, width, r1], or [n, r1] where res1_constant
  const void* w;           // packed filter, see conv_pack.cu
  const float* bias;       // [k], or [n, k] where bias_images has bit 0
  const float* bias_res;   // [k], or [n, k] where it has bit 1
  const void* h;           // [n, height, width, k]: times silu'(h)
  const void* v0;          // [n, height, width, k0]: plus a v + b
  const void* v1;          // [n, height, width, k - k0]
  const float* a;          // [k]
  const float* b;          // [k]
  const void* add0;        // [n, height, width, k0]
  const void* add1;        // [n, height, width, k - k0]
  void* y0;                // [n, height, width, k0]
  void* y1;                // [n, height, width, k - k0]
  float* stats;            // [n, tiles_y tiles_x, k, 2]: mean and sum of squared deviations over the part of an image in a tile
  uint32_t n, height, width;
  uint32_t c0, c1, r0, r1, k, k0;
  uint32_t side;           // 1 or 3
  uint32_t silu;           // prologue
  uint32_t x1_constant, res1_constant;
  uint32_t log_rows, log_cols;  // of a tile's part of an image; images per tile follow from the kernel's pixels
  uint32_t tiles_x, tiles_y;    // tiles of an image
  uint32_t stages;              // buffers of the pipeline, 1 or 2
  uint32_t affine_images, bias_images;  // a row for each image
};
static_assert(sizeof(ConvArgs) == 232, "ConvArgs is mirrored in src/ops/conv/gpu/forward.rs");

// ---------------------------------------------------------------- numbers

template <int N> static constexpr int LOG2 = 1 + LOG2<N / 2>;
template <> constexpr int LOG2<1> = 0;

// N consecutive elements as floats: 16-byte loads where `vector`, which asks for an aligned address, else one by one.
template <int N, class T> static __device__ __forceinline__ void load_elements(const T* p, bool vector, float (&f)[N]) {
  constexpr int E = VECTOR<T>;
  if (N % E == 0 && vector) {
#pragma unroll
    for (int i = 0; i < N / E; i++) {
      float part[E];
      unpack(__ldg(reinterpret_cast<const uint4*>(p) + i), part);
#pragma unroll
      for (int j = 0; j < E; j++) f[i * E + j] = part[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) f[i] = to_float(__ldg(p + i));
  }
}

static __device__ __forceinline__ bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// ---------------------------------------------------------------- the tile

// Pixels of a block: `images` images by `rows` by `cols`, the first at (image, y, x). A halo of `pad` pixels lies around each image.
struct Tile {
  int rows, cols, images;
  int image, y, x;
};

template <int M> static __device__ __forceinline__ Tile tile_of(const ConvArgs& a, uint32_t block) {
  Tile t;
  t.rows = 1 << a.log_rows;
  t.cols = 1 << a.log_cols;
  t.images = M >> (a.log_rows + a.log_cols);
  t.x = (int)(block % a.tiles_x) * t.cols;
  block /= a.tiles_x;
  t.y = (int)(block % a.tiles_y) * t.rows;
  t.image = (int)(block / a.tiles_y) * t.images;
  return t;
}

// Quotients of small numbers by multiplication. The reciprocal, in units of 2^-16, is too large by at most one: i / divisor comes out
// exact while i * divisor < 2^16. Here a tile and its halo have fewer than 600 pixels, and at most 66 rows or columns.
struct SmallDivisor {
  uint32_t divisor, reciprocal;
  __device__ __forceinline__ explicit SmallDivisor(int d) : divisor((uint32_t)d), reciprocal(65536u / (uint32_t)d + 1) {}
  __device__ __forceinline__ uint32_t quotient(uint32_t i) const { return i * reciprocal >> 16; }
};

// For each pixel of the tile with its halo: its index among the pixels of all images, or -1 outside the pictures; and its image.
template <int THREADS>
static __device__ __forceinline__ void locate_pixels(const ConvArgs& a, const Tile& t, int pad, int2* where) {
  const int rows = t.rows + 2 * pad, cols = t.cols + 2 * pad, count = t.images * rows * cols;
  const SmallDivisor by_rows(rows), by_cols(cols);
  for (int i = threadIdx.x; i < count; i += THREADS) {
    const int row = (int)by_cols.quotient(i), image_in_tile = (int)by_rows.quotient(row);
    const int image = t.image + image_in_tile, y = t.y - pad + row - image_in_tile * rows, x = t.x - pad + i - row * cols;
    const bool inside = image < (int)a.n && y >= 0 && y < (int)a.height && x >= 0 && x < (int)a.width;
    where[i] = make_int2(inside ? (image * (int)a.height + y) * (int)a.width + x : -1, image);
  }
}

// Element 0 of a row of `stride` elements.
template <class T> static __device__ __forceinline__ T* row_of(T* base, int row, int stride) {
  return base + (uint64_t)(uint32_t)row * (uint32_t)stride;  // one multiplication
}

// ---------------------------------------------------------------- operands

// One or two tensors that stand for their concatenation along channels, with what happens to them on the way in.
template <class T> struct Source {
  const T *x0, *x1;
  const float* constant;  // or instead of x1: [image, c1], the same at every pixel. float32, so that a norm sees it unrounded
  int c0, c1;
  bool vector;  // units never straddle two tensors and lie at multiples of 16 bytes
  const float *scale, *shift;
  bool affine_images;  // a row of scale and shift for each image (group norm), not one for all
  bool silu;

  __device__ Source(const void* x0_, const void* x1_, uint32_t c0_, uint32_t c1_, bool x1_constant, const float* scale_,
                    const float* shift_, bool affine_images_, bool silu_)
      : x0(static_cast<const T*>(x0_)), x1(x1_constant ? nullptr : static_cast<const T*>(x1_)),
        constant(x1_constant ? static_cast<const float*>(x1_) : nullptr), c0((int)c0_), c1((int)c1_), scale(scale_), shift(shift_),
        affine_images(affine_images_), silu(silu_) {
    constexpr int E = VECTOR<T>;
    vector = c0 % E == 0 && c1 % E == 0 && aligned16(x0) && aligned16(x1);
  }
  __device__ __forceinline__ int channels() const { return c0 + c1; }
  __device__ __forceinline__ bool changes() const { return scale != nullptr || silu; }
  __device__ __forceinline__ bool is_constant(int channel) const { return constant && channel >= c0; }
  // The element of a channel at a pixel, and its image.
  __device__ __forceinline__ float element(int channel, int2 at) const {
    if (channel < c0) return to_float(*row_of(x0 + channel, at.x, c0));
    if (constant) return __ldg(constant + (size_t)at.y * c1 + (channel - c0));
    return to_float(*row_of(x1 + (channel - c0), at.x, c1));
  }
  // Row of scale and shift that serves an image.
  __device__ __forceinline__ int affine_row(int image) const { return affine_images ? image : 0; }
  // The prologue of one element.
  __device__ __forceinline__ float prepared(float v, int channel, int image) const {
    if (scale) {
      const size_t i = (size_t)affine_row(image) * channels() + channel;
      v = fmaf(v, __ldg(scale + i), __ldg(shift + i));
    }
    return silu ? silu_of<T>(v) : v;
  }
};

// Brings one chunk of an operand to shared memory: unit threadIdx.x % 4 of the chunk at every fourth pixel of `where`.
// `first`: the chunk's first channel. `dst`: [unit][pitch][16 bytes]. ROUND: to tf32.
//
// With units of 16 bytes this starts asynchronous copies; `finish_chunk`, once they have landed, applies the prologue in place to
// what this same thread copied, so no barrier stands between the two. Otherwise everything is done here.
template <class T, bool ROUND, int THREADS>
static __device__ __forceinline__ void start_chunk(const Source<T>& s, int first, const int2* where, int count,
                                                   unsigned char* dst, int pitch) {
  constexpr int E = VECTOR<T>;
  const int unit = threadIdx.x % CONV_CHUNK_UNITS, channel = first + unit * E;
  dst += unit * pitch * CONV_UNIT_BYTES;
  if (s.vector && !s.is_constant(channel)) {
    const bool present = channel < s.channels(), first_tensor = channel < s.c0;
    const T* base = first_tensor || !present ? s.x0 + (present ? channel : 0) : s.x1 + (channel - s.c0);
    const int stride = first_tensor ? s.c0 : s.c1;
    for (int p = threadIdx.x / CONV_CHUNK_UNITS; p < count; p += THREADS / CONV_CHUNK_UNITS) {
      const int2 at = where[p];
      const bool inside = present && at.x >= 0;
      cp_async16(smem_addr(dst + p * CONV_UNIT_BYTES), row_of(base, inside ? at.x : 0, stride), inside);
    }
    return;
  }
  for (int p = threadIdx.x / CONV_CHUNK_UNITS; p < count; p += THREADS / CONV_CHUNK_UNITS) {
    const int2 at = where[p];
    T* out = reinterpret_cast<T*>(dst + p * CONV_UNIT_BYTES);
#pragma unroll 1
    for (int j = 0; j < E; j++) {
      float v = 0.0f;
      if (at.x >= 0 && channel + j < s.channels()) {
        v = s.prepared(s.element(channel + j, at), channel + j, at.y);
        if (ROUND) v = round_tf32(v);
      }
      out[j] = from_float<T>(v);
    }
  }
}

// The prologue of what `start_chunk` copied. Pixels outside the picture stay 0.
template <class T, bool ROUND, int THREADS>
static __device__ __forceinline__ void finish_chunk(const Source<T>& s, int first, const int2* where, int count,
                                                    unsigned char* dst, int pitch) {
  constexpr int E = VECTOR<T>;
  const int unit = threadIdx.x % CONV_CHUNK_UNITS, channel = first + unit * E;
  if (!s.vector || s.is_constant(channel) || channel >= s.channels() || !(ROUND || s.changes())) return;
  dst += unit * pitch * CONV_UNIT_BYTES;
  float scale[E], shift[E];
  int known = -1;  // the row that they are of; pixels come image by image
#pragma unroll 1
  for (int p = threadIdx.x / CONV_CHUNK_UNITS; p < count; p += THREADS / CONV_CHUNK_UNITS) {
    const int2 at = where[p];
    if (at.x < 0) continue;
    if (s.affine_row(at.y) != known) {
      known = s.affine_row(at.y);
      const size_t row = (size_t)known * s.channels() + channel;
#pragma unroll
      for (int j = 0; j < E; j++) {
        scale[j] = s.scale ? __ldg(s.scale + row + j) : 1.0f;
        shift[j] = s.scale ? __ldg(s.shift + row + j) : 0.0f;
      }
    }
    uint4* u = reinterpret_cast<uint4*>(dst + p * CONV_UNIT_BYTES);
    const uint4 raw = *u;
    float f[E];
    unpack(raw, f);
#pragma unroll
    for (int j = 0; j < E; j++) {
      f[j] = fmaf(f[j], scale[j], shift[j]);
      if (s.silu) f[j] = silu_of<T>(f[j]);
      if (ROUND) f[j] = round_tf32(f[j]);
    }
    *u = pack(f);
  }
}
