// conv_wgrad_tile.cuh: the operands of conv_wgrad.cu on their way into shared memory: extents, copies, prologue.
#pragma once
#include "elements.cuh"
#include "ptx.cuh"

static constexpr int WGRAD_X1_CONSTANT = 1;   // rust
static constexpr int WGRAD_SILU = 2;          // rust
static constexpr int WGRAD_SUMS = 4;          // rust
static constexpr int WGRAD_X0_F32 = 8;        // rust
static constexpr int WGRAD_X1_F32 = 16;       // rust
static constexpr int WGRAD_DY_F32 = 32;       // rust
static constexpr int WGRAD_X0_VECTORS = 64;   // rust
static constexpr int WGRAD_X1_VECTORS = 128;  // rust
static constexpr int WGRAD_DY_VECTORS = 256;  // rust
static constexpr int WGRAD_AFFINE_IMAGES = 512; // rust
static constexpr int WGRAD_AFFINE_VECTORS = 1024; // rust
static constexpr int WGRAD_STAGES = 3;        // rust
static constexpr int WGRAD_PAD = 8;           // rust
static constexpr int WGRAD_STEPS = 8;         // rust
static constexpr int WGRAD_THREADS_3X3 = 384; // rust
static constexpr int WGRAD_THREADS_1X1 = 256; // rust

struct ConvWgradArgs {
  const void* x0;                    // [N, H, W, C0]
  const void* x1;                    // [N, H, W, C1] or [N, C1]; null where C1 = 0
  const float* scale;                // [C0 + C1], [N, C0 + C1] with WGRAD_AFFINE_IMAGES, or null
  const float* shift;                // likewise
  const void* dy;                    // [N, H, W, K]
  float* partial;                    // [slices][stride]; rows of K: (t, c), then t of the border sums
  float* partial_sums;               // the border sums of the first slice
  uint32_t n, h, w, c0, c1, k;
  uint32_t tile_w_log, tile_h_log;   // extents of a tile: powers of two
  uint32_t tiles_x, tiles_y, tiles;  // tiles of a picture's row and column, and of all pictures
  uint32_t stride;                   // elements of a slice
  uint32_t flags;                    // WGRAD_*
  uint32_t unused;
};
static_assert(sizeof(ConvWgradArgs) == 112, "ConvWgradArgs is mirrored in src/ops/conv/gpu/wgrad.rs");

enum class Product { bf16, tf32, fp32 };

// Work of a block: CT input channels by KT output channels; a warp has a column of taps by WARP_C by 32 channels; PG groups of
// warps share the pixels of a tile.
template <class T_, Product PRODUCT_, int TAPS_, int CT_, int KT_, int WARP_C, int PG_> struct WgradShape {
  using T = T_;
  static constexpr Product PRODUCT = PRODUCT_;
  static constexpr int TAPS = TAPS_, CT = CT_, KT = KT_, PG = PG_;
  static constexpr int HALO = TAPS == 9 ? 1 : 0;
  static constexpr int WARP_TAPS = TAPS == 9 ? 3 : 1;
  static constexpr int MB = WARP_C / 16, NB = 4;  // fragments of a warp
  static constexpr int WARPS_C = CT / WARP_C, WARPS_K = KT / 32;
  static constexpr int THREADS = TAPS / WARP_TAPS * WARPS_C * WARPS_K * PG * 32;
  static constexpr int V = 16 / sizeof(T);  // elements of a vector
  static constexpr int KSTEP = 32 / sizeof(T);
  static constexpr int PIXELS = WGRAD_STEPS * KSTEP, PIXELS_LOG = sizeof(T) == 2 ? 7 : 6;
  static constexpr int MAX_HALO_PIXELS = TAPS == 9 ? PIXELS / 16 * 36 : 0;  // 4x4 pictures with a halo each
  static constexpr int PITCH_Z = CT + WGRAD_PAD, PITCH_DY = KT + WGRAD_PAD;
  static_assert(THREADS == (TAPS == 9 ? WGRAD_THREADS_3X3 : WGRAD_THREADS_1X1), "");
  static_assert(KT / 8 * 32 <= THREADS && PIXELS <= THREADS && THREADS % (CT / V) == 0 && THREADS % (KT / V) == 0, "");
};

static __device__ __forceinline__ float wgrad_element(const void* p, size_t i, bool f32) {
  return f32 ? static_cast<const float*>(p)[i] : to_float(static_cast<const __nv_bfloat16*>(p)[i]);
}
// v / (1 + exp(-v)). For float32 a Newton step refines the reciprocal, where an exact division would be a function call that costs
// registers. It needs a finite divisor: below -87 the result is some -1e-35 instead of less.
static __device__ __forceinline__ float wgrad_silu(float v, float) {
  const float d = 1.0f + expf(fminf(-v, 87.0f)), r = rcp_approx(d);
  return v * fmaf(r, fmaf(-d, r, 1.0f), r);
}
static __device__ __forceinline__ float wgrad_silu(float v, __nv_bfloat16) {
  return v * rcp_approx(1.0f + ex2_approx(v * -1.44269504f));  // log2(e)
}

// First of the pixels that a thread copies, where VECTORS threads share a pixel. Eight threads write at once: with four to a pixel
// they take pixels four apart, whose pitch of 80 bytes puts them into different banks.
template <int VECTORS> static __device__ __forceinline__ int wgrad_first() {
  const int i = threadIdx.x / VECTORS;
  return VECTORS == 4 ? (i & ~7) | (i & 1) << 2 | (i >> 1 & 3) : i;
}

// A tile's first image, row and column.
struct WgradTile { int n, y, x; };

template <class S> struct WgradBlock {
  using T = typename S::T;
  const ConvWgradArgs& a;
  uint32_t* place;   // of each pixel: image, row and column in the tile
  uint32_t* halo;    // of each halo pixel likewise
  uint16_t* inside;  // [stages][PIXELS]: bit t says that tap t of the pixel lies inside the picture
  float* affine;     // see affine_at
  T* z;              // [stages][halo pixels][PITCH_Z]
  T* dy;             // [stages][PIXELS][PITCH_DY]
  int halo_w, halo_h, halo_pixels, c_first, k_first;

  __device__ __forceinline__ WgradBlock(const ConvWgradArgs& args, unsigned char* smem) : a(args) {
    halo_w = (1 << a.tile_w_log) + 2 * S::HALO;
    halo_h = (1 << a.tile_h_log) + 2 * S::HALO;
    halo_pixels = (halo_w * halo_h) << images_log();
    place = reinterpret_cast<uint32_t*>(smem);
    halo = S::TAPS == 9 ? place + S::PIXELS : place;
    inside = reinterpret_cast<uint16_t*>(place + S::PIXELS + S::MAX_HALO_PIXELS);
    affine = reinterpret_cast<float*>(inside + WGRAD_STAGES * S::PIXELS);
    z = reinterpret_cast<T*>(affine + 2 * S::CT);
    dy = z + WGRAD_STAGES * halo_pixels * S::PITCH_Z;
    c_first = blockIdx.z * S::CT;
    k_first = blockIdx.x * S::KT;
  }

  __device__ __forceinline__ int images_log() const { return S::PIXELS_LOG - (int)(a.tile_w_log + a.tile_h_log); }

  __device__ __forceinline__ WgradTile tile(uint32_t index) const {
    const uint32_t rest = index / a.tiles_x, group = rest / a.tiles_y;
    return {(int)(group << images_log()), (int)((rest - group * a.tiles_y) << a.tile_h_log),
            (int)((index - rest * a.tiles_x) << a.tile_w_log)};
  }

  // What stays the same for all tiles. Pixels are counted in octets along a row (in tiles of width 4: along the rows of two
  // images), octets down four rows, and these blocks of 8x4 in the order column, row, image.
  __device__ __forceinline__ void tables() {
    if (threadIdx.x < S::PIXELS) {
      const uint32_t i = threadIdx.x;
      uint32_t x = i & 7, y = i >> 3 & 3, image = i >> 5;
      if (a.tile_w_log == 4) x |= (image & 1) << 3, image >>= 1;
      if (a.tile_h_log == 3) y |= (image & 1) << 2, image >>= 1;
      if (a.tile_w_log == 2) image = image << 1 | x >> 2, x &= 3;
      place[i] = image << 16 | y << 8 | x;
    }
    for (int i = threadIdx.x; S::TAPS == 9 && i < halo_pixels; i += S::THREADS) {
      const int row = i / halo_w, image = row / halo_h;
      halo[i] = (uint32_t)image << 16 | (uint32_t)(row - image * halo_h) << 8 | (uint32_t)(i - row * halo_w);
    }
    for (int i = threadIdx.x; a.scale && !(a.flags & WGRAD_AFFINE_IMAGES) && i < S::CT; i += S::THREADS) {
      const int c = c_first + i;
      const bool live = c < (int)(a.c0 + a.c1);
      affine_at(0, i) = live ? a.scale[c] : 0.0f;
      affine_at(1, i) = live ? a.shift[c] : 0.0f;
    }
  }

  // The picture's pixel at a place, whose coordinates begin `border` before the tile's; -1 outside.
  __device__ __forceinline__ int pixel(const WgradTile& at, uint32_t place, int border, int& image) const {
    image = at.n + (int)(place >> 16);
    const int y = at.y + (int)(place >> 8 & 255) - border, x = at.x + (int)(place & 255) - border;
    const bool in = image < (int)a.n && (uint32_t)y < a.h && (uint32_t)x < a.w;
    return in ? (image * (int)a.h + y) * (int)a.w + x : -1;
  }

  // Halo pixel of tap (0, 0) of a pixel.
  __device__ __forceinline__ int corner(int i) const {
    const uint32_t p = place[i];
    return ((int)(p >> 16) * halo_h + (int)(p >> 8 & 255)) * halo_w + (int)(p & 255);
  }

  // Starts the copies of a tile. A thread keeps to its channels: the vectors of a pixel divide the threads.
  __device__ __forceinline__ void issue(const WgradTile& at, int stage) {
    issue_z(at, z + stage * halo_pixels * S::PITCH_Z);
    issue_dy(at, dy + stage * S::PIXELS * S::PITCH_DY);
    if (S::TAPS == 9 && (a.flags & WGRAD_SUMS) && c_first == 0 && threadIdx.x < S::PIXELS) {
      const uint32_t p = place[threadIdx.x];
      const int y = at.y + (int)(p >> 8 & 255), x = at.x + (int)(p & 255);
      uint32_t bits = 0;
#pragma unroll
      for (int t = 0; t < 9; t++)
        if ((uint32_t)(y + t / 3 - 1) < a.h && (uint32_t)(x + t % 3 - 1) < a.w) bits |= 1u << t;
      inside[stage * S::PIXELS + threadIdx.x] = (uint16_t)bits;
    }
  }

  // The vector at channel c is 16 bytes of one operand in memory, others at other pixels.
  __device__ __forceinline__ bool copies_z(int c) const {
    const int c0 = a.c0, c1 = a.c1;
    if (c < c0) return a.flags & WGRAD_X0_VECTORS;
    return c < c0 + c1 && (a.flags & (WGRAD_X1_VECTORS | WGRAD_X1_CONSTANT)) == WGRAD_X1_VECTORS;
  }

  __device__ __forceinline__ void issue_z(const WgradTile& at, T* zs) const {
    constexpr int VECTORS = S::CT / S::V, PIXELS_AT_ONCE = S::THREADS / VECTORS;
    const int v = threadIdx.x % VECTORS * S::V, first = wgrad_first<VECTORS>();
    const int c = c_first + v, c0 = a.c0, c1 = a.c1;
    zs += v;
    if (copies_z(c)) {
      const T* src = c < c0 ? static_cast<const T*>(a.x0) + c : static_cast<const T*>(a.x1) + (c - c0);
      const size_t pitch = c < c0 ? c0 : c1;
#pragma unroll 1
      for (int i = first; i < halo_pixels; i += PIXELS_AT_ONCE) {
        int image;
        const int p = pixel(at, halo[i], S::HALO, image);
        cp_async16(smem_addr(zs + i * S::PITCH_Z), src + (p < 0 ? 0 : p * pitch), p >= 0);
      }
      return;
    }
    // Element by element, with the prologue before the one rounding: a constant operand is float32, and what distinguishes its images
    // may be less than a rounding to T. After an image's first pixel it is only copied.
    const bool constant = a.flags & WGRAD_X1_CONSTANT;
    const T* known = nullptr;
    int known_image = -1;
#pragma unroll 1
    for (int i = first; i < halo_pixels; i += PIXELS_AT_ONCE) {
      int image;
      const int p = pixel(at, halo[i], S::HALO, image);
      T* here = zs + i * S::PITCH_Z;
      if (p < 0) {
        *reinterpret_cast<uint4*>(here) = make_uint4(0, 0, 0, 0);
      } else if (known_image == image) {
        *reinterpret_cast<uint4*>(here) = *reinterpret_cast<const uint4*>(known);
      } else {
#pragma unroll 1
        for (int j = 0; j < S::V; j++) here[j] = from_float<T>(z_element(v + j, p, constant ? image : p, image));
        if (constant && c >= c0) known = here, known_image = image;
      }
    }
  }

  // z of a channel of the block, from rows of x0 and x1; 0 behind the last channel.
  __device__ __forceinline__ float z_element(int v, int row0, int row1, int image) const {
    const int c = c_first + v, c0 = a.c0, c1 = a.c1;
    float value = 0.0f;
    if (c < c0) value = wgrad_element(a.x0, (size_t)row0 * c0 + c, a.flags & WGRAD_X0_F32);
    else if (c < c0 + c1) value = wgrad_element(a.x1, (size_t)row1 * c1 + (c - c0), a.flags & WGRAD_X1_F32);
    if (a.scale && (a.flags & WGRAD_AFFINE_IMAGES)) {
      const size_t i = (size_t)image * (c0 + c1) + c;
      if (c < c0 + c1) value = fmaf(__ldg(a.scale + i), value, __ldg(a.shift + i));
    } else if (a.scale) {
      value = fmaf(affine_at(0, v), value, affine_at(1, v));
    }
    return a.flags & WGRAD_SILU ? wgrad_silu(value, T()) : value;
  }

  __device__ __forceinline__ void issue_dy(const WgradTile& at, T* dys) const {
    constexpr int VECTORS = S::KT / S::V, PIXELS_AT_ONCE = S::THREADS / VECTORS;
    const int v = threadIdx.x % VECTORS * S::V, first = wgrad_first<VECTORS>(), k = k_first + v, k_all = a.k;
    dys += v;
    if (a.flags & WGRAD_DY_VECTORS) {
      const T* src = static_cast<const T*>(a.dy);
#pragma unroll 1
      for (int i = first; i < S::PIXELS; i += PIXELS_AT_ONCE) {
        int image;
        const int p = pixel(at, place[i], 0, image);
        const bool read = p >= 0 && k < k_all;
        cp_async16(smem_addr(dys + i * S::PITCH_DY), src + (read ? (size_t)p * k_all + k : 0), read);
      }
      return;
    }
    const bool f32 = a.flags & WGRAD_DY_F32;
#pragma unroll 1
    for (int i = first; i < S::PIXELS; i += PIXELS_AT_ONCE) {
      int image;
      const int p = pixel(at, place[i], 0, image);
#pragma unroll 1
      for (int j = 0; j < S::V; j++)
        dys[i * S::PITCH_DY + j] =
            from_float<T>(p >= 0 && k + j < k_all ? wgrad_element(a.dy, (size_t)p * k_all + k + j, f32) : 0.0f);
    }
  }

  // Scale (0) or shift (1) of a channel: the same quarter of all vectors side by side, so that a warp reads without conflicts.
  __device__ __forceinline__ float& affine_at(int which, int c) const {
    return affine[((which * (S::V / 4) + c % S::V / 4) * (S::CT / S::V) + c / S::V) * 4 + c % 4];
  }

  // The prologue, in place, on what this thread itself copied. Pixels outside the picture stay zero.
  __device__ __forceinline__ void prologue(const WgradTile& at, int stage) const {
    const bool silu = a.flags & WGRAD_SILU;
    if (a.scale && (a.flags & WGRAD_AFFINE_IMAGES)) prologue_of<2, true>(at, stage);
    else if (a.scale && silu) prologue_of<1, true>(at, stage);
    else if (a.scale) prologue_of<1, false>(at, stage);
    else if (silu) prologue_of<0, true>(at, stage);
  }

  // Four neighbouring numbers of an image's row of scale or shift, from L1: the images of a tile share no row.
  __device__ __forceinline__ float4 affine_of_image(const float* table, size_t i) const {
    if (a.flags & WGRAD_AFFINE_VECTORS) return __ldg(reinterpret_cast<const float4*>(table + i));
    return make_float4(__ldg(table + i), __ldg(table + i + 1), __ldg(table + i + 2), __ldg(table + i + 3));
  }

  // AFFINE: 0 none, 1 scale and shift for all images, 2 a row of them for each. SILU with 2: perhaps, as the flags say.
  template <int AFFINE, bool SILU> __device__ __forceinline__ void prologue_of(const WgradTile& at, int stage) const {
    constexpr int VECTORS = S::CT / S::V, PIXELS_AT_ONCE = S::THREADS / VECTORS;
    const int v = threadIdx.x % VECTORS * S::V;
    if (!copies_z(c_first + v)) return;
    T* zs = z + stage * halo_pixels * S::PITCH_Z + v;
#pragma unroll 1
    for (int i = wgrad_first<VECTORS>(); i < halo_pixels; i += PIXELS_AT_ONCE) {
      int image;
      if (pixel(at, halo[i], S::HALO, image) < 0) continue;
      float values[S::V];
      load<S::V>(zs + i * S::PITCH_Z, values);
      if (AFFINE == 2) {
        const size_t row = (size_t)image * (a.c0 + a.c1) + c_first + v;
#pragma unroll
        for (int j = 0; j < S::V; j += 4) {
          const float4 scale = affine_of_image(a.scale, row + j), shift = affine_of_image(a.shift, row + j);
          values[j] = fmaf(scale.x, values[j], shift.x), values[j + 1] = fmaf(scale.y, values[j + 1], shift.y);
          values[j + 2] = fmaf(scale.z, values[j + 2], shift.z), values[j + 3] = fmaf(scale.w, values[j + 3], shift.w);
        }
      }
      const bool silu = AFFINE == 2 ? (a.flags & WGRAD_SILU) != 0 : SILU;
#pragma unroll
      for (int j = 0; j < S::V; j++) {
        if (AFFINE == 1) values[j] = fmaf(affine_at(0, v + j), values[j], affine_at(1, v + j));
        if (silu) values[j] = wgrad_silu(values[j], T());
      }
      store<S::V>(zs + i * S::PITCH_Z, values);
    }
  }
};
