// conv_wgrad.cu: gradients of the weights of a 3x3 or 1x1 convolution.
//
//   dW[t,c,k] = sum_p z[p+t,c] dy[p,k]          z = silu?(scale x + shift), 0 outside the picture AFTER the norm
//   S[t,k]    = sum_p [p+t inside] dy[p,k]      border sums; the centre tap's is the gradient of the bias
#include "ptx.cuh"

static constexpr int WGRAD_X1_CONSTANT = 1;  // rust
static constexpr int WGRAD_SILU = 2;         // rust
static constexpr int WGRAD_SUMS = 4;         // rust
static constexpr int WGRAD_X0_F32 = 8;       // rust
static constexpr int WGRAD_X1_F32 = 16;      // rust
static constexpr int WGRAD_DY_F32 = 32;      // rust
static constexpr int WGRAD_X0_VEC = 64;      // rust
static constexpr int WGRAD_X1_VEC = 128;     // rust
static constexpr int WGRAD_DY_VEC = 256;     // rust

struct ConvWgradArgs {
  const void* x0;      // [N, H, W, C0]
  const void* x1;      // [N, H, W, C1] or [N, C1]; null where C1 = 0
  const float* scale;  // [C0 + C1] or null
  const float* shift;
  const void* dy;      // [N, H, W, K]
  float* partial;      // [slices][stride]: rows (t, c), then rows t of the border sums, of K elements each
  uint32_t n, h, w, c0, c1, k;
  uint32_t tile_w_log, tile_h_log;      // extents of a tile
  uint32_t tiles_x, tiles_y, tiles;     // tiles of a picture; tiles in all
  uint32_t flags;
  uint32_t stride;
  uint32_t pad;
};
static_assert(sizeof(ConvWgradArgs) == 104, "ConvWgradArgs is mirrored in src/ops/conv/gpu/wgrad.rs");

enum class Product { bf16, tf32, fp32 };

// Extents of a block's work. WARP_C, WARP_K: channels of a warp's product; PG: groups of warps that share the pixels of a tile.
template <class T_, Product PRODUCT_, int TAPS_, int CT_, int KT_, int WARP_C_, int PG_> struct WgradShape {
  using T = T_;
  static constexpr Product PRODUCT = PRODUCT_;
  static constexpr int TAPS = TAPS_, CT = CT_, KT = KT_, PG = PG_;
  static constexpr int HALO = TAPS == 9 ? 1 : 0;
  static constexpr int WARP_TAPS = TAPS == 9 ? 3 : 1;
  static constexpr int MB = WARP_C_ / 16, NB = 4;
  static constexpr int WARPS_C = CT / WARP_C_, WARPS_K = KT / 32;
  static constexpr int WARPS = TAPS / WARP_TAPS * WARPS_C * WARPS_K * PG;
  static constexpr int THREADS = WARPS * 32;
  static constexpr int V = 16 / sizeof(T);
  static constexpr int KSTEP = 32 / sizeof(T);
  static constexpr int PIXELS = 8 * KSTEP, PIXELS_LOG = sizeof(T) == 2 ? 7 : 6;
  static constexpr int STEPS = 8;
  static constexpr int MAX_HALO_PIXELS = TAPS == 9 ? PIXELS / 16 * 36 : PIXELS;
  static constexpr int PITCH_Z = CT + 8, PITCH_DY = KT + 8;
  static constexpr int TABLES = MAX_HALO_PIXELS * 4 + 2 * PIXELS * 2 + 2 * CT * 4;
  static_assert(KT / 8 <= WARPS && STEPS % PG == 0, "");
};

static __device__ __forceinline__ float wgrad_element(const void* p, size_t i, bool f32) {
  return f32 ? static_cast<const float*>(p)[i] : __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
}
static __device__ __forceinline__ void wgrad_set(float& d, float v) { d = v; }
static __device__ __forceinline__ void wgrad_set(__nv_bfloat16& d, float v) { d = __float2bfloat16(v); }
static __device__ __forceinline__ float wgrad_get(float v) { return v; }
static __device__ __forceinline__ float wgrad_get(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ float wgrad_silu(float v, float) { return v / (1.0f + expf(-v)); }
static __device__ __forceinline__ float wgrad_silu(float v, __nv_bfloat16) { return __fdividef(v, 1.0f + __expf(-v)); }

// 16 bytes of elements.
template <class T> struct __align__(16) WgradChunk { T v[16 / sizeof(T)]; };

// A block's place in the picture: its first image, row and column.
struct WgradOrigin { int n, y, x; };

static __device__ __forceinline__ WgradOrigin wgrad_origin(const ConvWgradArgs& a, uint32_t tile, int images_log) {
  const uint32_t x = tile % a.tiles_x, rest = tile / a.tiles_x, y = rest % a.tiles_y, g = rest / a.tiles_y;
  return {(int)(g << images_log), (int)(y << a.tile_h_log), (int)(x << a.tile_w_log)};
}

template <class S> struct WgradBlock {
  using T = typename S::T;
  using Chunk = WgradChunk<T>;
  const ConvWgradArgs& a;
  uint32_t* rel;      // of each halo pixel: image, row and column in the tile
  uint16_t* inside;   // [2][PIXELS]: bit t says that tap t of the pixel is inside the picture
  float* affine;      // [2][CT]: scale, shift
  T* z;               // [2][halo pixels][PITCH_Z]
  T* dy;              // [2][PIXELS][PITCH_DY]
  int halo_pixels, halo_w, halo_h, images_log, c_first, k_first, tid;

  __device__ __forceinline__ WgradBlock(const ConvWgradArgs& args, unsigned char* smem) : a(args) {
    tid = threadIdx.x;
    halo_w = (1 << a.tile_w_log) + 2 * S::HALO;
    halo_h = (1 << a.tile_h_log) + 2 * S::HALO;
    images_log = S::PIXELS_LOG - (int)a.tile_w_log - (int)a.tile_h_log;
    halo_pixels = (halo_w * halo_h) << images_log;
    rel = reinterpret_cast<uint32_t*>(smem);
    inside = reinterpret_cast<uint16_t*>(rel + S::MAX_HALO_PIXELS);
    affine = reinterpret_cast<float*>(inside + 2 * S::PIXELS);
    z = reinterpret_cast<T*>(affine + 2 * S::CT);
    dy = z + 2 * halo_pixels * S::PITCH_Z;
    const uint32_t k_tiles = (a.k + S::KT - 1) / S::KT;
    c_first = blockIdx.x / k_tiles * S::CT;
    k_first = blockIdx.x % k_tiles * S::KT;
  }

  // What stays the same for all tiles.
  __device__ __forceinline__ void tables() {
    for (int i = tid; i < halo_pixels; i += S::THREADS) {
      const int row = i / halo_w;
      rel[i] = (uint32_t)(row / halo_h) << 16 | (uint32_t)(row % halo_h) << 8 | (uint32_t)(i % halo_w);
    }
    for (int i = tid; i < S::CT; i += S::THREADS) {
      const int c = c_first + i;
      const bool live = c < (int)(a.c0 + a.c1);
      affine[i] = !live ? 0.0f : a.scale ? a.scale[c] : 1.0f;
      affine[S::CT + i] = live && a.shift ? a.shift[c] : 0.0f;
    }
  }

  // The picture's pixel under a halo pixel; -1 outside.
  __device__ __forceinline__ int pixel(const WgradOrigin& o, int halo_pixel, int& image) const {
    const uint32_t r = rel[halo_pixel];
    image = o.n + (int)(r >> 16);
    const int y = o.y + (int)(r >> 8 & 255) - S::HALO, x = o.x + (int)(r & 255) - S::HALO;
    const bool in = image < (int)a.n && (uint32_t)y < a.h && (uint32_t)x < a.w;
    return in ? (image * (int)a.h + y) * (int)a.w + x : -1;
  }

  // Starts the copies of a tile into a stage.
  __device__ __forceinline__ void issue(const WgradOrigin& o, int stage) {
    constexpr int CHUNKS_Z = S::CT / S::V, CHUNKS_DY = S::KT / S::V;
    const bool f32 = sizeof(T) == 4;
    const bool x0_f32 = a.flags & WGRAD_X0_F32, x1_f32 = a.flags & WGRAD_X1_F32, dy_f32 = a.flags & WGRAD_DY_F32;
    const int c = c_first + tid % CHUNKS_Z * S::V, c0 = a.c0, c1 = a.c1;
    const bool second = c >= c0;
    // Whether this thread's channels are 16 aligned bytes of one operand; THREADS is a multiple of CHUNKS_Z.
    const bool vector = second ? (a.flags & WGRAD_X1_VEC) && x1_f32 == f32 && c < c0 + c1 : (a.flags & WGRAD_X0_VEC) && x0_f32 == f32;
    T* zs = z + stage * halo_pixels * S::PITCH_Z + tid % CHUNKS_Z * S::V;
    for (int p = tid / CHUNKS_Z; p < halo_pixels; p += S::THREADS / CHUNKS_Z) {
      int image;
      const int px = pixel(o, p, image);
      const size_t row0 = (size_t)(px < 0 ? 0 : px), row1 = px < 0 ? 0 : a.flags & WGRAD_X1_CONSTANT ? image : px;
      T* dst = zs + p * S::PITCH_Z;
      if (vector) {
        const T* src = second ? static_cast<const T*>(a.x1) + row1 * c1 + (c - c0) : static_cast<const T*>(a.x0) + row0 * c0 + c;
        cp_async16(smem_addr(dst), src, px >= 0);
      } else {
        Chunk chunk;
#pragma unroll
        for (int i = 0; i < S::V; i++) {
          const int ci = c + i;
          float v = 0.0f;
          if (px >= 0 && ci < c0) v = wgrad_element(a.x0, row0 * c0 + ci, x0_f32);
          else if (px >= 0 && ci < c0 + c1) v = wgrad_element(a.x1, row1 * c1 + (ci - c0), x1_f32);
          wgrad_set(chunk.v[i], v);
        }
        *reinterpret_cast<Chunk*>(dst) = chunk;
      }
    }

    const int k = k_first + tid % CHUNKS_DY * S::V;
    const bool dy_vector = (a.flags & WGRAD_DY_VEC) && dy_f32 == f32;
    T* ds = dy + stage * S::PIXELS * S::PITCH_DY + tid % CHUNKS_DY * S::V;
    const int tw = a.tile_w_log, th = a.tile_h_log;
    for (int p = tid / CHUNKS_DY; p < S::PIXELS; p += S::THREADS / CHUNKS_DY) {
      const int image = o.n + (p >> (tw + th)), y = o.y + (p >> tw & ((1 << th) - 1)), x = o.x + (p & ((1 << tw) - 1));
      const bool in = image < (int)a.n && y < (int)a.h && x < (int)a.w;
      const size_t row = in ? (size_t)((image * (int)a.h + y) * (int)a.w + x) * a.k : 0;
      T* dst = ds + p * S::PITCH_DY;
      if (dy_vector) {
        const bool read = in && k < (int)a.k;
        cp_async16(smem_addr(dst), static_cast<const T*>(a.dy) + (read ? row + k : 0), read);
      } else {
        Chunk chunk;
#pragma unroll
        for (int i = 0; i < S::V; i++)
          wgrad_set(chunk.v[i], in && k + i < (int)a.k ? wgrad_element(a.dy, row + k + i, dy_f32) : 0.0f);
        *reinterpret_cast<Chunk*>(dst) = chunk;
      }
    }

    if (S::TAPS == 9 && (a.flags & WGRAD_SUMS) && c_first == 0 && tid < S::PIXELS) {
      const int y = o.y + (tid >> tw & ((1 << th) - 1)), x = o.x + (tid & ((1 << tw) - 1));
      uint32_t bits = 0;
#pragma unroll
      for (int t = 0; t < 9; t++)
        if ((uint32_t)(y + t / 3 - 1) < a.h && (uint32_t)(x + t % 3 - 1) < a.w) bits |= 1u << t;
      inside[stage * S::PIXELS + tid] = (uint16_t)bits;
    }
  }

  // The prologue, in place, on what this thread itself has copied.
  __device__ __forceinline__ void finish(const WgradOrigin& o, int stage) {
    constexpr int CHUNKS_Z = S::CT / S::V;
    const bool silu = a.flags & WGRAD_SILU;
    if (!a.scale && !silu) return;
    const int cc = tid % CHUNKS_Z * S::V;
    T* zs = z + stage * halo_pixels * S::PITCH_Z + cc;
    for (int p = tid / CHUNKS_Z; p < halo_pixels; p += S::THREADS / CHUNKS_Z) {
      int image;
      if (pixel(o, p, image) < 0) continue;
      Chunk* at = reinterpret_cast<Chunk*>(zs + p * S::PITCH_Z);
      Chunk chunk = *at;
#pragma unroll
      for (int i = 0; i < S::V; i++) {
        float v = fmaf(affine[cc + i], wgrad_get(chunk.v[i]), affine[S::CT + cc + i]);
        if (silu) v = wgrad_silu(v, T());
        wgrad_set(chunk.v[i], v);
      }
      *at = chunk;
    }
  }

  // Halo pixel of tap (0, 0) of a tile's pixel.
  __device__ __forceinline__ int corner(int p) const {
    const int tw = a.tile_w_log, th = a.tile_h_log;
    const int image = p >> (tw + th), y = p >> tw & ((1 << th) - 1), x = p & ((1 << tw) - 1);
    return (image * halo_h + y) * halo_w + x;
  }
};

// Sums of a warp: taps, blocks of 16 input channels, blocks of 8 output channels, the fragment.
template <class S> using WgradSums = float[S::WARP_TAPS][S::MB][S::NB][4];

// Rounds to the nearest number of 10 mantissa bits (the instruction drops the rest); keeps NaN.
static __device__ __forceinline__ uint32_t wgrad_tf32(float v) {
  const uint32_t u = __float_as_uint(v);
  return (u & 0x7fffffffu) > 0x7f800000u ? u : u + 0x1000u;
}

// An operand of the float32 instruction: rounded, or its leading part and the rest.
template <Product PRODUCT> static __device__ __forceinline__ void wgrad_split(float v, uint32_t& big, uint32_t& small) {
  if (PRODUCT == Product::tf32) {
    big = wgrad_tf32(v);
  } else {
    big = __float_as_uint(v) & 0xffffe000u;
    small = __float_as_uint(v - __uint_as_float(big));
  }
}

template <class S>
static __device__ __forceinline__ void wgrad_main_bf16(const WgradBlock<S>& b, WgradSums<S>& sums, int stage, int step, int tap_row,
                                                       int c, int k, bool main) {
  const int lane = b.tid & 31;
  const int first = step * S::KSTEP;
  const __nv_bfloat16* dys = b.dy + stage * S::PIXELS * S::PITCH_DY;
  if (main) {
    uint32_t fb[S::NB][2];
    const smem_t at_b = smem_addr(dys + (first + (lane & 15)) * S::PITCH_DY + k + (lane >> 4) * 8);
#pragma unroll
    for (int j = 0; j < S::NB; j += 2) {
      uint32_t r[4];
      ldmatrix_x4_trans(r, at_b + j * 16);
      fb[j][0] = r[0], fb[j][1] = r[1], fb[j + 1][0] = r[2], fb[j + 1][1] = r[3];
    }
    const int pixel = b.corner(first + (lane & 7) + (lane >> 4) * 8) + tap_row * b.halo_w;
    const smem_t at_a = smem_addr(b.z + (stage * b.halo_pixels + pixel) * S::PITCH_Z + c + (lane >> 3 & 1) * 8);
#pragma unroll
    for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
      for (int i = 0; i < S::MB; i++) {
        uint32_t fa[4];
        ldmatrix_x4_trans(fa, at_a + (t * S::PITCH_Z + i * 16) * 2);
#pragma unroll
        for (int j = 0; j < S::NB; j++) mma_bf16(sums[t][i][j], fa, fb[j]);
      }
  }
}

template <class S> static __device__ __forceinline__ void wgrad_ones_bf16(const WgradBlock<S>& b, float (&ones)[4], int stage, int step) {
  const int lane = b.tid & 31, warp = b.tid >> 5, first = step * S::KSTEP;
  const __nv_bfloat16* dys = b.dy + stage * S::PIXELS * S::PITCH_DY;
  {
    uint32_t fb[2], fa[4] = {0, 0, 0, 0};
    ldmatrix_x2_trans(fb, smem_addr(dys + (first + (lane & 15)) * S::PITCH_DY + warp * 8));
    const uint32_t tap = lane >> 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t both = 0x00010001u;  // the bits of two neighbouring pixels
      if (S::TAPS == 9)
        both = *reinterpret_cast<const uint32_t*>(b.inside + stage * S::PIXELS + first + half * 8 + (lane & 3) * 2);
      fa[2 * half] = (both >> tap & 0x00010001u) * 0x3f80u;
      fa[2 * half + 1] = tap == 0 ? (both >> 8 & 0x00010001u) * 0x3f80u : 0u;
    }
    mma_bf16(ones, fa, fb);
  }
}

template <class S>
static __device__ __forceinline__ void wgrad_main_f32(const WgradBlock<S>& b, WgradSums<S>& sums, int stage, int step, int tap_row,
                                                      int c, int k, bool main) {
  constexpr Product PRODUCT = S::PRODUCT;
  const int lane = b.tid & 31, group = lane >> 2, quad = lane & 3;
  const int first = step * S::KSTEP;
  const float* dys = b.dy + (stage * S::PIXELS + first + quad) * S::PITCH_DY + group;
  if (main) {
    uint32_t fb[S::NB][2], fb_small[S::NB][2];
#pragma unroll
    for (int j = 0; j < S::NB; j++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        wgrad_split<PRODUCT>(dys[half * 4 * S::PITCH_DY + k + j * 8], fb[j][half], fb_small[j][half]);
    const float* zs = b.z + (stage * b.halo_pixels + tap_row * b.halo_w) * S::PITCH_Z + c + group;
    const float* at[2] = {zs + b.corner(first + quad) * S::PITCH_Z, zs + b.corner(first + 4 + quad) * S::PITCH_Z};
#pragma unroll
    for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
      for (int i = 0; i < S::MB; i++) {
        uint32_t fa[4], fa_small[4];
#pragma unroll
        for (int r = 0; r < 4; r++)
          wgrad_split<PRODUCT>(at[r >> 1][t * S::PITCH_Z + i * 16 + (r & 1) * 8], fa[r], fa_small[r]);
#pragma unroll
        for (int j = 0; j < S::NB; j++) {
          if (PRODUCT == Product::fp32) {
            mma_tf32(sums[t][i][j], fa_small, fb[j]);
            mma_tf32(sums[t][i][j], fa, fb_small[j]);
          }
          mma_tf32(sums[t][i][j], fa, fb[j]);
        }
      }
  }
}

template <class S> static __device__ __forceinline__ void wgrad_ones_f32(const WgradBlock<S>& b, float (&ones)[4], int stage, int step) {
  constexpr Product PRODUCT = S::PRODUCT;
  const int lane = b.tid & 31, warp = b.tid >> 5, group = lane >> 2, quad = lane & 3, first = step * S::KSTEP;
  const float* dys = b.dy + (stage * S::PIXELS + first + quad) * S::PITCH_DY + group;
  {
    uint32_t fb[2], fb_small[2], fa[4] = {0, 0, 0, 0};
    const uint32_t tap = group;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      wgrad_split<PRODUCT>(dys[half * 4 * S::PITCH_DY + warp * 8], fb[half], fb_small[half]);
      uint32_t bits = 1;
      if (S::TAPS == 9) bits = b.inside[stage * S::PIXELS + first + half * 4 + quad];
      fa[2 * half] = (bits >> tap & 1) * 0x3f800000u;
      fa[2 * half + 1] = tap == 0 ? (bits >> 8 & 1) * 0x3f800000u : 0u;
    }
    if (PRODUCT == Product::fp32) mma_tf32(ones, fa, fb_small);
    mma_tf32(ones, fa, fb);
  }
}

// Two neighbouring elements of a row of a partial sum.
static __device__ __forceinline__ void wgrad_store(float* row, int k, uint32_t k_all, float v0, float v1) {
  if (k_all % 2 == 0) {
    if (k < (int)k_all) *reinterpret_cast<float2*>(row + k) = make_float2(v0, v1);
  } else {
    if (k < (int)k_all) row[k] = v0;
    if (k + 1 < (int)k_all) row[k + 1] = v1;
  }
}

template <class S> static __device__ __forceinline__ void wgrad_body(const ConvWgradArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  WgradBlock<S> b(a, smem);
  const int lane = b.tid & 31, warp = b.tid >> 5;
  // Warp -> row of taps, channels, group of pixels.
  const int pg = warp % S::PG, wk = warp / S::PG % S::WARPS_K, wc = warp / (S::PG * S::WARPS_K) % S::WARPS_C;
  const int tap_row = warp / (S::PG * S::WARPS_K * S::WARPS_C);
  const int c = wc * S::MB * 16, k = wk * S::NB * 8, c_all = a.c0 + a.c1;
  const bool main = b.c_first + c < c_all && b.k_first + k < (int)a.k;
  const bool with_ones = (a.flags & WGRAD_SUMS) && b.c_first == 0 && warp < S::KT / 8;

  b.tables();
  __syncthreads();
  const uint32_t begin = (uint32_t)((uint64_t)a.tiles * blockIdx.y / gridDim.y);
  const uint32_t end = (uint32_t)((uint64_t)a.tiles * (blockIdx.y + 1) / gridDim.y);

  WgradSums<S> sums = {};
  float ones[4] = {};
  // Product::fp32: the tensor unit rounds its sums towards zero, so only a tile's products are summed there.
  constexpr bool PROMOTE = S::PRODUCT == Product::fp32;
  WgradSums<S> total = {};
  float ones_total[4] = {};

  WgradOrigin origin = wgrad_origin(a, begin, b.images_log);
  b.issue(origin, 0);
  cp_async_commit();
  int stage = 0;
  for (uint32_t tile = begin; tile < end; tile++, stage ^= 1) {
    cp_async_wait<0>();
    b.finish(origin, stage);
    __syncthreads();  // the stage is complete, and all warps are done with the other
    if (tile + 1 < end) {
      origin = wgrad_origin(a, tile + 1, b.images_log);
      b.issue(origin, stage ^ 1);
      cp_async_commit();
    }
#pragma unroll 1
    for (int step = pg; step < S::STEPS; step += S::PG) {
      if constexpr (S::PRODUCT == Product::bf16) wgrad_main_bf16<S>(b, sums, stage, step, tap_row, c, k, main);
      else wgrad_main_f32<S>(b, sums, stage, step, tap_row, c, k, main);
    }
    if (with_ones) {
#pragma unroll 1
      for (int step = 0; step < S::STEPS; step++) {
        if constexpr (S::PRODUCT == Product::bf16) wgrad_ones_bf16<S>(b, ones, stage, step);
        else wgrad_ones_f32<S>(b, ones, stage, step);
      }
    }
    if constexpr (PROMOTE) {
#pragma unroll
      for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
        for (int i = 0; i < S::MB; i++)
#pragma unroll
          for (int j = 0; j < S::NB; j++)
#pragma unroll
            for (int r = 0; r < 4; r++) total[t][i][j][r] += sums[t][i][j][r], sums[t][i][j][r] = 0.0f;
#pragma unroll
      for (int r = 0; r < 4; r++) ones_total[r] += ones[r], ones[r] = 0.0f;
    }
  }
  WgradSums<S>& result = PROMOTE ? total : sums;
  const float* ones_result = PROMOTE ? ones_total : ones;

  // The groups of pixels, added in order by the first group's warps.
  float* exchange = reinterpret_cast<float*>(smem);
  const int slot = warp / S::PG * S::WARP_TAPS * S::MB * S::NB * 4 * 32 + lane;
#pragma unroll 1
  for (int group = 1; group < S::PG; group++) {
    __syncthreads();
    if (pg == group) {
#pragma unroll
      for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
        for (int i = 0; i < S::MB; i++)
#pragma unroll
          for (int j = 0; j < S::NB; j++)
#pragma unroll
            for (int r = 0; r < 4; r++) exchange[slot + (((t * S::MB + i) * S::NB + j) * 4 + r) * 32] = result[t][i][j][r];
    }
    __syncthreads();
    if (pg == 0) {
#pragma unroll
      for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
        for (int i = 0; i < S::MB; i++)
#pragma unroll
          for (int j = 0; j < S::NB; j++)
#pragma unroll
            for (int r = 0; r < 4; r++) result[t][i][j][r] += exchange[slot + (((t * S::MB + i) * S::NB + j) * 4 + r) * 32];
    }
  }

  float* partial = a.partial + (size_t)blockIdx.y * a.stride;
  const int row = lane >> 2, column = (lane & 3) * 2;
  if (pg == 0) {
#pragma unroll
    for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
      for (int i = 0; i < S::MB; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int ci = b.c_first + c + i * 16 + half * 8 + row;
          if (ci >= c_all) continue;
          float* at = partial + (size_t)((tap_row * S::WARP_TAPS + t) * c_all + ci) * a.k;
#pragma unroll
          for (int j = 0; j < S::NB; j++)
            wgrad_store(at, b.k_first + k + j * 8 + column, a.k, result[t][i][j][2 * half], result[t][i][j][2 * half + 1]);
        }
  }
  if (with_ones) {
    float* at = partial + (size_t)S::TAPS * c_all * a.k;
    const int ki = b.k_first + warp * 8 + column;
    if (row < S::TAPS) wgrad_store(at + (size_t)row * a.k, ki, a.k, ones_result[0], ones_result[1]);
    if (S::TAPS == 9 && row == 0) wgrad_store(at + (size_t)8 * a.k, ki, a.k, ones_result[2], ones_result[3]);
  }
}

struct ConvWgradReduceArgs {
  const float* partial;  // [slices][stride]
  float* dw;             // [main], accumulates
  float* db;             // [K], accumulates, or null
  float* db_res;         // [K], accumulates, or null
  float* border_sums;    // [T, K], overwritten, or null
  uint32_t slices, stride;
  uint32_t main;         // elements of dW
  uint32_t total;        // of dW and the border sums
  uint32_t k, taps;
};
static_assert(sizeof(ConvWgradReduceArgs) == 64, "ConvWgradReduceArgs is mirrored in src/ops/conv/gpu/wgrad.rs");

// Block (32, groups): lane -> four elements, group -> every groups-th slice.
static __device__ __forceinline__ void wgrad_reduce_body(const ConvWgradReduceArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float4* part = reinterpret_cast<float4*>(smem);  // [groups][32]
  const int groups = blockDim.y, group = threadIdx.y, lane = threadIdx.x;
  const uint32_t e = (blockIdx.x * 32 + lane) * 4;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (e + 4 <= a.total) {
#pragma unroll 4
    for (uint32_t s = group; s < a.slices; s += groups) {
      const float4 v = *reinterpret_cast<const float4*>(a.partial + (size_t)s * a.stride + e);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
  } else {
    for (uint32_t s = group; s < a.slices; s += groups) {
      const float* p = a.partial + (size_t)s * a.stride;
      if (e < a.total) sum.x += p[e];
      if (e + 1 < a.total) sum.y += p[e + 1];
      if (e + 2 < a.total) sum.z += p[e + 2];
    }
  }
  part[group * 32 + lane] = sum;
  __syncthreads();
  if (group != 0) return;  // no barrier follows
  for (int g = 1; g < groups; g++) {
    const float4 v = part[g * 32 + lane];
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  if (e + 4 <= a.main && reinterpret_cast<uintptr_t>(a.dw) % 16 == 0) {
    float4* d = reinterpret_cast<float4*>(a.dw + e);
    const float4 v = *d;
    *d = make_float4(v.x + sum.x, v.y + sum.y, v.z + sum.z, v.w + sum.w);
    return;
  }
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t at = e + i;
    if (at < a.main) {
      a.dw[at] += values[i];
    } else if (at < a.total) {
      const uint32_t s = at - a.main, centre = a.taps / 2 * a.k;
      if (a.border_sums) a.border_sums[s] = values[i];
      if (s >= centre && s < centre + a.k) {
        if (a.db) a.db[s - centre] += values[i];
        if (a.db_res) a.db_res[s - centre] += values[i];
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 64, 64, 32, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 64, 32, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 32, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 9, 32, 32, 32, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(256) conv_wgrad_1x1_64x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256) conv_wgrad_1x1_32x32_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 32, 32, 32, 8>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 64, 64, 32, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_64x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 64, 32, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 32, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 9, 32, 32, 32, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(256) conv_wgrad_1x1_64x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256) conv_wgrad_1x1_32x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 1, 32, 32, 32, 8>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 9, 32, 64, 16, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 9, 32, 32, 16, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256) conv_wgrad_1x1_64x64_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256) conv_wgrad_1x1_32x32_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 1, 32, 32, 32, 8>>(a);
}
extern "C" __global__ void __launch_bounds__(512) conv_wgrad_reduce_f32(const __grid_constant__ ConvWgradReduceArgs a) {
  wgrad_reduce_body(a);
}
