// conv_wgrad.cu: gradients of the weights of a 3x3 or 1x1 convolution, and the sums of dy that ride along.
//
//   dW[t,c,k] += sum_p z[p+t,c] dy[p,k]         z = silu?(scale x + shift), 0 outside the picture AFTER the norm
//   S[t,k]     = sum_p [p+t inside] dy[p,k]     border sums; the centre tap's is the gradient of the bias
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
static constexpr int WGRAD_STAGES = 3;        // rust
static constexpr int WGRAD_PAD = 8;           // rust
static constexpr int WGRAD_STEPS = 8;         // rust
static constexpr int WGRAD_THREADS_3X3 = 384; // rust
static constexpr int WGRAD_THREADS_1X1 = 256; // rust

struct ConvWgradArgs {
  const void* x0;                    // [N, H, W, C0]
  const void* x1;                    // [N, H, W, C1] or [N, C1]; null where C1 = 0
  const float* scale;                // [C0 + C1], or null
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
  return f32 ? static_cast<const float*>(p)[i] : __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
}
static __device__ __forceinline__ void wgrad_set(float& d, float v) { d = v; }
static __device__ __forceinline__ void wgrad_set(__nv_bfloat16& d, float v) { d = __float2bfloat16(v); }
static __device__ __forceinline__ float wgrad_get(float v) { return v; }
static __device__ __forceinline__ float wgrad_get(__nv_bfloat16 v) { return __bfloat162float(v); }
// v / (1 + exp(-v)). For float32 a Newton step refines the reciprocal, where an exact division would be a function call that costs
// registers. It needs a finite divisor: below -87 the result is some -1e-35 instead of less.
static __device__ __forceinline__ float wgrad_silu(float v, float) {
  const float d = 1.0f + expf(fminf(-v, 87.0f)), r = rcp_approx(d);
  return v * fmaf(r, fmaf(-d, r, 1.0f), r);
}
static __device__ __forceinline__ float wgrad_silu(float v, __nv_bfloat16) {
  return v * rcp_approx(1.0f + ex2_approx(v * -1.44269504f));  // log2(e)
}

template <class T> struct __align__(16) WgradVector { T v[16 / sizeof(T)]; };

// A tile's first image, row and column.
struct WgradTile { int n, y, x; };

template <class S> struct WgradBlock {
  using T = typename S::T;
  using Vector = WgradVector<T>;
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
    for (int i = threadIdx.x; a.scale && i < S::CT; i += S::THREADS) {
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

  // The vector at channel c is 16 bytes of one operand in memory.
  __device__ __forceinline__ bool copies_z(int c) const {
    const int c0 = a.c0, c1 = a.c1;
    return c >= c0 ? c < c0 + c1 && (a.flags & WGRAD_X1_VECTORS) : (a.flags & WGRAD_X0_VECTORS) != 0;
  }

  __device__ __forceinline__ void issue_z(const WgradTile& at, T* zs) const {
    constexpr int VECTORS = S::CT / S::V, PIXELS_AT_ONCE = S::THREADS / VECTORS;
    const int v = threadIdx.x % VECTORS * S::V, first = threadIdx.x / VECTORS;
    const int c = c_first + v, c0 = a.c0, c1 = a.c1;
    const bool second = c >= c0, constant = a.flags & WGRAD_X1_CONSTANT;
    zs += v;
    if (copies_z(c)) {
      const T* src = second ? static_cast<const T*>(a.x1) + (c - c0) : static_cast<const T*>(a.x0) + c;
      const size_t pitch = second ? c1 : c0;
#pragma unroll 2
      for (int i = first; i < halo_pixels; i += PIXELS_AT_ONCE) {
        int image;
        const int p = pixel(at, halo[i], S::HALO, image), row = second && constant ? image : p;
        cp_async16(smem_addr(zs + i * S::PITCH_Z), src + (p < 0 ? 0 : row * pitch), p >= 0);
      }
      return;
    }
    // Element by element, with the prologue before the one rounding: a constant operand is float32, and what distinguishes its images
    // may be less than a rounding to T.
    const bool x0_f32 = a.flags & WGRAD_X0_F32, x1_f32 = a.flags & WGRAD_X1_F32, silu = a.flags & WGRAD_SILU;
#pragma unroll 1
    for (int i = first; i < halo_pixels; i += PIXELS_AT_ONCE) {
      int image;
      const int p = pixel(at, halo[i], S::HALO, image), row = constant ? image : p;
      Vector values;
#pragma unroll
      for (int j = 0; j < S::V; j++) {
        const int cj = c + j;
        float value = 0.0f;
        if (p >= 0 && cj < c0) value = wgrad_element(a.x0, (size_t)p * c0 + cj, x0_f32);
        else if (p >= 0 && cj < c0 + c1) value = wgrad_element(a.x1, (size_t)row * c1 + (cj - c0), x1_f32);
        if (p >= 0 && a.scale) value = fmaf(affine_at(0, v + j), value, affine_at(1, v + j));
        wgrad_set(values.v[j], silu ? wgrad_silu(value, T()) : value);
      }
      *reinterpret_cast<Vector*>(zs + i * S::PITCH_Z) = values;
    }
  }

  __device__ __forceinline__ void issue_dy(const WgradTile& at, T* dys) const {
    constexpr int VECTORS = S::KT / S::V, PIXELS_AT_ONCE = S::THREADS / VECTORS;
    const int v = threadIdx.x % VECTORS * S::V, first = threadIdx.x / VECTORS, k = k_first + v, k_all = a.k;
    dys += v;
    if (a.flags & WGRAD_DY_VECTORS) {
      const T* src = static_cast<const T*>(a.dy);
#pragma unroll 2
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
      Vector values;
#pragma unroll
      for (int j = 0; j < S::V; j++)
        wgrad_set(values.v[j], p >= 0 && k + j < k_all ? wgrad_element(a.dy, (size_t)p * k_all + k + j, f32) : 0.0f);
      *reinterpret_cast<Vector*>(dys + i * S::PITCH_DY) = values;
    }
  }

  // Scale (0) or shift (1) of a channel: the same quarter of all vectors side by side, so that a warp reads without conflicts.
  __device__ __forceinline__ float& affine_at(int which, int c) const {
    return affine[((which * (S::V / 4) + c % S::V / 4) * (S::CT / S::V) + c / S::V) * 4 + c % 4];
  }

  // The prologue, in place, on what this thread itself copied. Pixels outside the picture stay zero.
  __device__ __forceinline__ void prologue(const WgradTile& at, int stage) const {
    const bool silu = a.flags & WGRAD_SILU;
    if (a.scale && silu) prologue_of<true, true>(at, stage);
    else if (a.scale) prologue_of<true, false>(at, stage);
    else if (silu) prologue_of<false, true>(at, stage);
  }

  template <bool AFFINE, bool SILU> __device__ __forceinline__ void prologue_of(const WgradTile& at, int stage) const {
    constexpr int VECTORS = S::CT / S::V, PIXELS_AT_ONCE = S::THREADS / VECTORS;
    const int v = threadIdx.x % VECTORS * S::V;
    if (!copies_z(c_first + v)) return;
    T* zs = z + stage * halo_pixels * S::PITCH_Z + v;
#pragma unroll 1
    for (int i = threadIdx.x / VECTORS; i < halo_pixels; i += PIXELS_AT_ONCE) {
      int image;
      if (pixel(at, halo[i], S::HALO, image) < 0) continue;
      Vector* here = reinterpret_cast<Vector*>(zs + i * S::PITCH_Z);
      Vector values = *here;
#pragma unroll
      for (int j = 0; j < S::V; j++) {
        float value = wgrad_get(values.v[j]);
        if (AFFINE) value = fmaf(affine_at(0, v + j), value, affine_at(1, v + j));
        wgrad_set(values.v[j], SILU ? wgrad_silu(value, T()) : value);
      }
      *here = values;
    }
  }
};

// Sums of a warp: taps, blocks of 16 input channels, blocks of 8 output channels, the fragment.
template <class S> using WgradSums = float[S::WARP_TAPS][S::MB][S::NB][4];

// Calls f(t, i, j, r) for every element of WgradSums.
template <class S, class F> static __device__ __forceinline__ void wgrad_for_each(F f) {
#pragma unroll
  for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
    for (int i = 0; i < S::MB; i++)
#pragma unroll
      for (int j = 0; j < S::NB; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) f(t, i, j, r);
}

// The tf32 instruction drops the low 13 bits of its operands. Product::tf32 rounds them to the nearest (NaN stays NaN) ...
static __device__ __forceinline__ float wgrad_round(float v) {
  const uint32_t bits = __float_as_uint(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? v : __uint_as_float(bits + 0x1000u);
}
// ... and Product::fp32 takes the part that is kept, exactly, and the rest.
static __device__ __forceinline__ void wgrad_split(float v, uint32_t& big, uint32_t& small) {
  big = __float_as_uint(v) & 0xffffe000u;
  small = __float_as_uint(v - __uint_as_float(big));
}

// Where a warp works: column of taps, first channels within the block's, group of pixels.
struct WgradWarp { int tap_column, c, k, pg; };

// Fragments of dy over 16 pixels from `first`: [pixel][channel] in memory, so transposed on the way.
template <class S>
static __device__ __forceinline__ void wgrad_load_dy(const WgradBlock<S>& b, uint32_t (&f)[S::NB][2], int first, int k) {
  const int lane = threadIdx.x & 31;
  const smem_t at = smem_addr(b.dy + (first + (lane & 15)) * S::PITCH_DY + k + (lane >> 4) * 8);
#pragma unroll
  for (int j = 0; j < S::NB; j += 2) {
    uint32_t r[4];
    ldmatrix_x4_trans(r, at + j * 16);
    f[j][0] = r[0], f[j][1] = r[1], f[j + 1][0] = r[2], f[j + 1][1] = r[3];
  }
}

// sums += z dy over a stage. 3x3: the warp's three taps lie in one column, so that going down an 8x4 block of pixels in steps of
// two rows, what tap (2, s) reads is what tap (0, s) reads in the next step, and tap (1, s) reads the half of each.
template <class S>
static __device__ __forceinline__ void wgrad_products_bf16(const WgradBlock<S>& b, WgradSums<S>& sums, const WgradWarp& warp, int stage) {
  const int lane = threadIdx.x & 31, lane_c = warp.c + (lane >> 3 & 1) * 8;
  uint32_t fb[S::NB][2];
  if constexpr (S::TAPS == 1) {
#pragma unroll 1
    for (int step = warp.pg; step < WGRAD_STEPS; step += S::PG) {
      const int first = stage * S::PIXELS + step * 16;
      wgrad_load_dy<S>(b, fb, first, warp.k);
      const smem_t at = smem_addr(b.z + (first + (lane & 7) + (lane >> 4) * 8) * S::PITCH_Z + lane_c);
#pragma unroll
      for (int i = 0; i < S::MB; i++) {
        uint32_t fa[4];
        ldmatrix_x4_trans(fa, at + i * 32);
#pragma unroll
        for (int j = 0; j < S::NB; j++) mma_bf16(sums[0][i][j], fa, fb[j]);
      }
    }
  } else {
#pragma unroll 1
    for (int block = warp.pg; block < S::PIXELS / 32; block += S::PG) {
      const int pixel = b.corner(block * 32 + (lane & 7)) + (lane >> 4) * b.halo_w + warp.tap_column;
      const smem_t two_rows = b.halo_w * (2 * S::PITCH_Z * 2);
      smem_t at = smem_addr(b.z + (stage * b.halo_pixels + pixel) * S::PITCH_Z + lane_c);
      uint32_t upper[S::MB][4], lower[S::MB][4];
#pragma unroll
      for (int i = 0; i < S::MB; i++) ldmatrix_x4_trans(upper[i], at + i * 32);
#pragma unroll
      for (int step = 0; step < 2; step++) {
        at += two_rows;
        wgrad_load_dy<S>(b, fb, stage * S::PIXELS + block * 32 + step * 16, warp.k);
#pragma unroll
        for (int i = 0; i < S::MB; i++) {
          ldmatrix_x4_trans(lower[i], at + i * 32);
          const uint32_t middle[4] = {upper[i][2], upper[i][3], lower[i][0], lower[i][1]};
#pragma unroll
          for (int j = 0; j < S::NB; j++) mma_bf16(sums[0][i][j], upper[i], fb[j]);
#pragma unroll
          for (int j = 0; j < S::NB; j++) mma_bf16(sums[1][i][j], middle, fb[j]);
#pragma unroll
          for (int j = 0; j < S::NB; j++) mma_bf16(sums[2][i][j], lower[i], fb[j]);
#pragma unroll
          for (int r = 0; r < 4; r++) upper[i][r] = lower[i][r];
        }
      }
    }
  }
}

// Eight output channels of the border sums: row t of the first operand is 1 where tap t lies inside.
template <class S>
static __device__ __forceinline__ void wgrad_ones_bf16(const WgradBlock<S>& b, float (&ones)[4], int stage, int step) {
  const int lane = threadIdx.x & 31, k = threadIdx.x / 32 * 8, first = stage * S::PIXELS + step * S::KSTEP;
  const uint32_t tap = lane >> 2;
  uint32_t fb[2], fa[4];
  ldmatrix_x2_trans(fb, smem_addr(b.dy + (first + (lane & 15)) * S::PITCH_DY + k));
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t pair = 0x00010001u;  // the bits of two neighbouring pixels
    if (S::TAPS == 9) {
      const uint16_t* bits = b.inside + first + half * 8 + (lane & 3) * 2;
      pair = (uint32_t)bits[0] | (uint32_t)bits[1] << 16;
    }
    fa[2 * half] = (pair >> tap & 0x00010001u) * 0x3f80u;
    fa[2 * half + 1] = tap == 0 ? (pair >> 8 & 0x00010001u) * 0x3f80u : 0u;
  }
  mma_bf16(ones, fa, fb);
}

// A fragment in one or two parts.
template <int N> struct WgradParts { uint32_t big[N], small[N]; };

// sums += z dy for one fragment of z: 16 channels over two times 4 pixels, tf32 already rounded.
template <class S>
static __device__ __forceinline__ void wgrad_products(float (&sums)[S::NB][4], const float (&z)[4], const WgradParts<2> (&fb)[S::NB]) {
  WgradParts<4> fa;
#pragma unroll
  for (int r = 0; r < 4; r++) {
    fa.big[r] = __float_as_uint(z[r]);
    if (S::PRODUCT == Product::fp32) wgrad_split(z[r], fa.big[r], fa.small[r]);
  }
#pragma unroll
  for (int j = 0; j < S::NB; j++) {
    if (S::PRODUCT == Product::fp32) {
      mma_tf32(sums[j], fa.small, fb[j].big);
      mma_tf32(sums[j], fa.big, fb[j].small);
    }
    mma_tf32(sums[j], fa.big, fb[j].big);
  }
}

// Fragments of dy over 8 pixels from `first`.
template <class S>
static __device__ __forceinline__ void wgrad_load_dy(const WgradBlock<S>& b, WgradParts<2> (&f)[S::NB], int first, int k) {
  const float* at = b.dy + (first + (threadIdx.x & 3)) * S::PITCH_DY + k + (threadIdx.x >> 2 & 7);
#pragma unroll
  for (int j = 0; j < S::NB; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float v = at[half * 4 * S::PITCH_DY + j * 8];
      if (S::PRODUCT == Product::fp32) wgrad_split(v, f[j].big[half], f[j].small[half]);
      else f[j].big[half] = __float_as_uint(wgrad_round(v));
    }
}

template <class S> static __device__ __forceinline__ void wgrad_load_z(float (&f)[4], const float* left, const float* right) {
#pragma unroll
  for (int r = 0; r < 4; r++) {
    const float v = (r >> 1 ? right : left)[(r & 1) * 8];
    f[r] = S::PRODUCT == Product::fp32 ? v : wgrad_round(v);
  }
}

// sums += z dy over a stage. 3x3: going down two rows of 8 pixels, a row of z serves the taps of the warp's column in turn.
template <class S>
static __device__ __forceinline__ void wgrad_products_f32(const WgradBlock<S>& b, WgradSums<S>& sums, const WgradWarp& warp, int stage) {
  const int quad = threadIdx.x & 3;
  const float* z = b.z + warp.c + (threadIdx.x >> 2 & 7);
  WgradParts<2> fb[S::NB];
  if constexpr (S::TAPS == 1) {
#pragma unroll 1
    for (int step = warp.pg; step < WGRAD_STEPS; step += S::PG) {
      const int first = stage * S::PIXELS + step * 8;
      wgrad_load_dy<S>(b, fb, first, warp.k);
      const float* at = z + (first + quad) * S::PITCH_Z;
#pragma unroll
      for (int i = 0; i < S::MB; i++) {
        float fa[4];
        wgrad_load_z<S>(fa, at + i * 16, at + i * 16 + 4 * S::PITCH_Z);
        wgrad_products<S>(sums[0][i], fa, fb);
      }
    }
  } else {
#pragma unroll 1
    for (int block = warp.pg; block < S::PIXELS / 16; block += S::PG) {
      const float* at = z + (stage * b.halo_pixels + warp.tap_column) * S::PITCH_Z;
      const float *left = at + b.corner(block * 16 + quad) * S::PITCH_Z, *right = at + b.corner(block * 16 + 4 + quad) * S::PITCH_Z;
      const int row = b.halo_w * S::PITCH_Z;
      float fa[4][S::MB][4];
#pragma unroll
      for (int y = 0; y < 4; y++) {
#pragma unroll
        for (int i = 0; i < S::MB; i++) wgrad_load_z<S>(fa[y][i], left + y * row + i * 16, right + y * row + i * 16);
        if (y < 2) continue;
        wgrad_load_dy<S>(b, fb, stage * S::PIXELS + block * 16 + (y - 2) * 8, warp.k);
#pragma unroll
        for (int t = 0; t < 3; t++)
#pragma unroll
          for (int i = 0; i < S::MB; i++) wgrad_products<S>(sums[t][i], fa[y - 2 + t][i], fb);
      }
    }
  }
}

template <class S>
static __device__ __forceinline__ void wgrad_ones_f32(const WgradBlock<S>& b, float (&ones)[4], int stage, int step) {
  const int lane = threadIdx.x & 31, quad = lane & 3, k = threadIdx.x / 32 * 8, first = stage * S::PIXELS + step * S::KSTEP;
  const uint32_t tap = lane >> 2;
  const float* dys = b.dy + (first + quad) * S::PITCH_DY + k + (lane >> 2);
  uint32_t fb[2], fb_small[2], fa[4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float v = dys[half * 4 * S::PITCH_DY];
    if (S::PRODUCT == Product::fp32) wgrad_split(v, fb[half], fb_small[half]);
    else fb[half] = __float_as_uint(wgrad_round(v));
    const uint32_t bits = S::TAPS == 9 ? b.inside[first + half * 4 + quad] : 1;
    fa[2 * half] = (bits >> tap & 1) * 0x3f800000u;
    fa[2 * half + 1] = tap == 0 ? (bits >> 8 & 1) * 0x3f800000u : 0u;
  }
  if (S::PRODUCT == Product::fp32) mma_tf32(ones, fa, fb_small);
  mma_tf32(ones, fa, fb);
}

// Two neighbouring elements of a row of a partial sum.
static __device__ __forceinline__ void wgrad_store(float* row, int k, int k_all, float v0, float v1) {
  if (k_all % 2 == 0) {
    if (k < k_all) *reinterpret_cast<float2*>(row + k) = make_float2(v0, v1);
  } else {
    if (k < k_all) row[k] = v0;
    if (k + 1 < k_all) row[k + 1] = v1;
  }
}

template <class S> static __device__ __forceinline__ void wgrad_body(const ConvWgradArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  WgradBlock<S> b(a, smem);
  const int lane = threadIdx.x & 31, w = threadIdx.x >> 5, c_all = a.c0 + a.c1, k_all = a.k;
  const WgradWarp warp = {w / (S::PG * S::WARPS_K * S::WARPS_C), w / (S::PG * S::WARPS_K) % S::WARPS_C * S::MB * 16,
                          w / S::PG % S::WARPS_K * S::NB * 8, w % S::PG};
  const bool products = b.c_first + warp.c < c_all && b.k_first + warp.k < k_all;
  const bool with_ones = (a.flags & WGRAD_SUMS) && b.c_first == 0 && w < S::KT / 8;
  const int begin = (int)((uint64_t)a.tiles * blockIdx.y / gridDim.y);
  const int end = (int)((uint64_t)a.tiles * (blockIdx.y + 1) / gridDim.y);

  b.tables();
  WgradSums<S> sums = {};
  float ones[4] = {};
  constexpr bool PROMOTE = S::PRODUCT == Product::fp32;
  WgradSums<S> total = {};
  float ones_total[4] = {};

  // Three stages: the tile in work, the next one, whose prologue runs beside the products, and one whose copies are under way.
  // Of the warps of each scheduler some begin with the prologue and some with the products.
  const int prologue_first = w >> 2 & 1;
  int stage = 1, stage_next = 2, stage_after = 0;
#pragma unroll 1
  for (int tile = begin - 2; tile < end; tile++) {
    __syncthreads();  // this tile (at first the tables) is complete, and all warps are done with the one before
    if (tile + 2 < end) b.issue(b.tile(tile + 2), stage_after);
    cp_async_commit();
#pragma unroll 1
    for (int phase = 0; phase < 2; phase++) {
      if (phase != prologue_first) {
        cp_async_wait<1>();
        if (tile + 1 >= begin && tile + 1 < end) b.prologue(b.tile(tile + 1), stage_next);
        continue;
      }
      if (tile < begin) continue;
      if (products) {
        if constexpr (S::PRODUCT == Product::bf16) wgrad_products_bf16<S>(b, sums, warp, stage);
        else wgrad_products_f32<S>(b, sums, warp, stage);
      }
      if (with_ones) {
#pragma unroll 1
        for (int step = 0; step < WGRAD_STEPS; step++) {
          if constexpr (S::PRODUCT == Product::bf16) wgrad_ones_bf16<S>(b, ones, stage, step);
          else wgrad_ones_f32<S>(b, ones, stage, step);
        }
      }
      if constexpr (PROMOTE) {
        wgrad_for_each<S>([&](int t, int i, int j, int r) { total[t][i][j][r] += sums[t][i][j][r], sums[t][i][j][r] = 0.0f; });
#pragma unroll
        for (int r = 0; r < 4; r++) ones_total[r] += ones[r], ones[r] = 0.0f;
      }
    }
    const int done = stage;
    stage = stage_next, stage_next = stage_after, stage_after = done;
  }
  WgradSums<S>& result = PROMOTE ? total : sums;
  const float(&ones_result)[4] = PROMOTE ? ones_total : ones;

  // The groups of pixels, added in order by the warps of the first.
  float* exchange = reinterpret_cast<float*>(smem) + w / S::PG * sizeof(WgradSums<S>) / 4 * 32 + lane;
#pragma unroll 1
  for (int group = 1; group < S::PG; group++) {
    __syncthreads();
    if (warp.pg == group)
      wgrad_for_each<S>([&](int t, int i, int j, int r) { exchange[(((t * S::MB + i) * S::NB + j) * 4 + r) * 32] = result[t][i][j][r]; });
    __syncthreads();
    if (warp.pg == 0)
      wgrad_for_each<S>([&](int t, int i, int j, int r) { result[t][i][j][r] += exchange[(((t * S::MB + i) * S::NB + j) * 4 + r) * 32]; });
  }

  const size_t slice = (size_t)blockIdx.y * a.stride;
  const int row = lane >> 2, column = lane % 4 * 2;
  if (warp.pg == 0) {
#pragma unroll
    for (int t = 0; t < S::WARP_TAPS; t++)
#pragma unroll
      for (int i = 0; i < S::MB; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int c = b.c_first + warp.c + i * 16 + half * 8 + row;
          if (c >= c_all) continue;
          float* at = a.partial + slice + (size_t)((t * S::WARP_TAPS + warp.tap_column) * c_all + c) * k_all;
#pragma unroll
          for (int j = 0; j < S::NB; j++)
            wgrad_store(at, b.k_first + warp.k + j * 8 + column, k_all, result[t][i][j][2 * half], result[t][i][j][2 * half + 1]);
        }
  }
  if (with_ones) {
    float* at = a.partial_sums + slice;
    const int k = b.k_first + w * 8 + column;
    if (row < S::TAPS) wgrad_store(at + row * k_all, k, k_all, ones_result[0], ones_result[1]);
    if (S::TAPS == 9 && row == 0) wgrad_store(at + 8 * k_all, k, k_all, ones_result[2], ones_result[3]);
  }
}

struct ConvWgradReduceArgs {
  const float* partial;        // [slices][stride]: dW, dR, border sums
  float* dw;                   // [T, C, K], accumulates
  float* dw_res;               // [R, K], accumulates, or null
  float* db;                   // [K], accumulates, or null
  float* db_res;               // [K], accumulates, or null
  float* border_sums;          // [T, K], overwritten, or null
  uint32_t slices, stride;
  uint32_t main, res, sums;    // elements of dW, dR and the border sums
  uint32_t k, centre;          // channels of a border sum; element of the centre tap's first
  uint32_t unused;
};
static_assert(sizeof(ConvWgradReduceArgs) == 80, "ConvWgradReduceArgs is mirrored in src/ops/conv/gpu/wgrad.rs");

static __device__ __forceinline__ void wgrad_accumulate(const ConvWgradReduceArgs& a, uint32_t e, float v) {
  if (e < a.main) {
    a.dw[e] += v;
  } else if (e < a.main + a.res) {
    a.dw_res[e - a.main] += v;
  } else if (e < a.main + a.res + a.sums) {
    const uint32_t s = e - a.main - a.res;
    if (a.border_sums) a.border_sums[s] = v;
    if (s >= a.centre && s < a.centre + a.k) {
      if (a.db) a.db[s - a.centre] += v;
      if (a.db_res) a.db_res[s - a.centre] += v;
    }
  }
}

// Block (32, groups): a lane has four elements, a group every groups-th slice.
static __device__ __forceinline__ void wgrad_reduce_body(const ConvWgradReduceArgs& a) {
  extern __shared__ __align__(128) unsigned char smem[];
  float4* parts = reinterpret_cast<float4*>(smem);  // [groups][32]
  const uint32_t groups = blockDim.y, group = threadIdx.y, lane = threadIdx.x;
  const uint32_t e = (blockIdx.x * 32 + lane) * 4, total = a.main + a.res + a.sums;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (e + 4 <= total) {
#pragma unroll 4
    for (uint32_t s = group; s < a.slices; s += groups) {
      const float4 v = *reinterpret_cast<const float4*>(a.partial + (size_t)s * a.stride + e);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
  } else {
    for (uint32_t s = group; s < a.slices; s += groups) {
      const float* p = a.partial + (size_t)s * a.stride;
      if (e < total) sum.x += p[e];
      if (e + 1 < total) sum.y += p[e + 1];
      if (e + 2 < total) sum.z += p[e + 2];
    }
  }
  parts[group * 32 + lane] = sum;
  __syncthreads();
  if (group != 0) return;  // no barrier follows
  for (uint32_t g = 1; g < groups; g++) {
    const float4 v = parts[g * 32 + lane];
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  if (e + 4 <= a.main && reinterpret_cast<uintptr_t>(a.dw) % 16 == 0) {
    float4* dst = reinterpret_cast<float4*>(a.dw + e);
    const float4 v = *dst;
    *dst = make_float4(v.x + sum.x, v.y + sum.y, v.z + sum.z, v.w + sum.w);
    return;
  }
  wgrad_accumulate(a, e, sum.x);
  wgrad_accumulate(a, e + 1, sum.y);
  wgrad_accumulate(a, e + 2, sum.z);
  wgrad_accumulate(a, e + 3, sum.w);
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
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x64_bf16(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<__nv_bfloat16, Product::bf16, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x32_bf16(const __grid_constant__ ConvWgradArgs a) {
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
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x64_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 1, 64, 64, 32, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x32_tf32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::tf32, 1, 32, 32, 32, 8>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x64_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 9, 32, 64, 16, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(384) conv_wgrad_3x3_32x32_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 9, 32, 32, 16, 2>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_64x64_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 1, 64, 64, 16, 1>>(a);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_wgrad_1x1_32x32_f32(const __grid_constant__ ConvWgradArgs a) {
  wgrad_body<WgradShape<float, Product::fp32, 1, 32, 32, 16, 4>>(a);
}
extern "C" __global__ void __launch_bounds__(512) conv_wgrad_reduce_f32(const __grid_constant__ ConvWgradReduceArgs a) {
  wgrad_reduce_body(a);
}
