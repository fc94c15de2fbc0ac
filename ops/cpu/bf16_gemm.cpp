#include "ops/cpu/bf16_gemm.h"

#include "ops/precision.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

// Blocks of A and B are rounded and packed into tiles of 16 x 32, 1 kB each, in the form that both units read: a tile
// of A has 16 rows of 16 pairs (a pair is two neighbours along k), a tile of B 16 pairs of rows with 16 columns. Blocks
// of 32 x 32 of C stay in registers while their tiles pass by. The functions carry their instruction sets as
// attributes, so that the file compiles for any CPU and the choice is made at run time.

namespace margay::blas {
namespace {

constexpr int64_t kSide = 16, kDepth = 32, kTile = kSide * kDepth;
// A block of A, one of B and one of C fit the second-level cache.
constexpr int64_t kBlockRows = 256, kBlockColumns = 512, kBlockDepth = 512;

typedef int Pairs __attribute__((vector_size(64)));

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A factor as strips of 16 rows of A or columns of B: line i of a strip at depth p is data[i * ld + p] where `deep`,
/// else data[p * ld + i].
struct Factor {
  const float* data;
  int64_t ld;
  bool deep;
  const float* at(int64_t line, int64_t depth) const { return data + (deep ? line * ld + depth : depth * ld + line); }
};

/// Part of a strip that becomes a tile; what exceeds it is filled with zeros.
struct TilePart {
  const float* from;
  int64_t ld, lines, depth;
};

[[gnu::target("avx512f")]] inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// rows[i] = the 16 pairs of line i.
[[gnu::target("avx512f,avx512bw,avx512bf16"), gnu::always_inline]] inline void load_deep(const TilePart& part,
                                                                                         Pairs (&rows)[kSide]) {
  const __mmask16 low = first_lanes(part.depth), high = first_lanes(part.depth - 16);
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) {
    rows[i] = Pairs{};
    if (i >= part.lines) continue;
    const float* const from = part.from + i * part.ld;
    rows[i] = (Pairs)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, from + 16), _mm512_maskz_loadu_ps(low, from));
  }
}

// rows[p] = pair p of the 16 lines.
[[gnu::target("avx512f,avx512bw,avx512bf16"), gnu::always_inline]] inline void load_across(const TilePart& part,
                                                                                           Pairs (&rows)[kSide]) {
  alignas(64) static constexpr int16_t interleaved[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(interleaved);
  const __mmask16 lanes = first_lanes(part.lines);
#pragma GCC unroll 16
  for (int p = 0; p < kSide; ++p) {
    rows[p] = Pairs{};
    if (2 * p >= part.depth) continue;
    const float* const from = part.from + 2 * p * part.ld;
    const __m512 even = _mm512_maskz_loadu_ps(lanes, from);
    const __m512 odd = 2 * p + 1 < part.depth ? _mm512_maskz_loadu_ps(lanes, from + part.ld) : _mm512_setzero_ps();
    rows[p] = (Pairs)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
  }
}

// Shuffles of the transposition, on each 128-bit quarter or of whole ones. (GCC 12 warns about its intrinsics for
// them.)
[[gnu::target("avx512f"), gnu::always_inline]] inline Pairs low_halves(const Pairs& x, const Pairs& y) {
  return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
[[gnu::target("avx512f"), gnu::always_inline]] inline Pairs high_halves(const Pairs& x, const Pairs& y) {
  return __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
[[gnu::target("avx512f"), gnu::always_inline]] inline Pairs even_quarters(const Pairs& x, const Pairs& y) {
  return __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
[[gnu::target("avx512f"), gnu::always_inline]] inline Pairs odd_quarters(const Pairs& x, const Pairs& y) {
  return __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// Transposes 16 x 16 pairs: first each block of 4 x 4, then the blocks.
[[gnu::target("avx512f"), gnu::always_inline]] inline void transpose(Pairs (&rows)[kSide]) {
#pragma GCC unroll 4
  for (int i = 0; i < kSide; i += 4) {
    const Pairs a = low_halves(rows[i], rows[i + 2]), b = high_halves(rows[i], rows[i + 2]);
    const Pairs c = low_halves(rows[i + 1], rows[i + 3]), d = high_halves(rows[i + 1], rows[i + 3]);
    rows[i] = low_halves(a, c);
    rows[i + 1] = high_halves(a, c);
    rows[i + 2] = low_halves(b, d);
    rows[i + 3] = high_halves(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Pairs a = even_quarters(rows[i], rows[i + 4]), b = odd_quarters(rows[i], rows[i + 4]);
    const Pairs c = even_quarters(rows[i + 8], rows[i + 12]), d = odd_quarters(rows[i + 8], rows[i + 12]);
    rows[i] = even_quarters(a, c);
    rows[i + 4] = even_quarters(b, d);
    rows[i + 8] = odd_quarters(a, c);
    rows[i + 12] = odd_quarters(b, d);
  }
}

template <bool deep, bool transposed>
[[gnu::target("avx512f,avx512bw,avx512bf16")]] void pack_tile(const TilePart& part, uint16_t* to) {
  Pairs rows[kSide];
  if constexpr (deep) {
    load_deep(part, rows);
  } else {
    load_across(part, rows);
  }
  if constexpr (transposed) transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) _mm512_store_si512(to + i * kDepth, (__m512i)rows[i]);
}

// Packs `lines` x `depth` of a factor: its strips one after the other, their tiles in the order of k.
template <bool is_a>
void pack(const Factor& factor, int64_t lines, int64_t depth, uint16_t* to) {
  const int64_t strips = ceil_div(lines, kSide), steps = ceil_div(depth, kDepth);
  const auto tile = [&](int64_t strip, int64_t step) {
    const int64_t line = strip * kSide, p = step * kDepth;
    const TilePart part{factor.at(line, p), factor.ld, lines - line, depth - p};
    uint16_t* const at = to + (strip * steps + step) * kTile;
    factor.deep ? pack_tile<true, !is_a>(part, at) : pack_tile<false, is_a>(part, at);
  };
  if (factor.deep) {  // along the rows of memory
    for (int64_t strip = 0; strip < strips; ++strip)
      for (int64_t step = 0; step < steps; ++step) tile(strip, step);
  } else {
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t strip = 0; strip < strips; ++strip) tile(strip, step);
  }
}

/// R strips of packed A times Q strips of packed B: C [16 R, 16 Q] = start (zeros if null) + their product.
struct Strips {
  const uint16_t *a, *b;
  int64_t steps;
  const float* start;
  int64_t start_ld;
  float* c;
  int64_t ldc;
};

template <int R, int Q>
[[gnu::target("amx-tile,amx-bf16")]] void amx_strips(const Strips& s) {
  asm volatile("" ::: "memory");  // the loads of tiles do not tell the compiler that they read memory
  if (s.start) {
    const int64_t ld = s.start_ld * 4;
    _tile_loadd(0, s.start, ld);
    if constexpr (Q > 1) _tile_loadd(1, s.start + kSide, ld);
    if constexpr (R > 1) _tile_loadd(2, s.start + kSide * s.start_ld, ld);
    if constexpr (R > 1 && Q > 1) _tile_loadd(3, s.start + kSide * s.start_ld + kSide, ld);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const int64_t strip = s.steps * kTile;
  for (int64_t step = 0; step < s.steps; ++step) {
    const uint16_t *const a = s.a + step * kTile, *const b = s.b + step * kTile;
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Q > 1) {
      _tile_loadd(7, b + strip, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R > 1) {
      _tile_loadd(5, a + strip, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (R > 1 && Q > 1) _tile_dpbf16ps(3, 5, 7);
  }
  const int64_t ld = s.ldc * 4;
  _tile_stored(0, s.c, ld);
  if constexpr (Q > 1) _tile_stored(1, s.c + kSide, ld);
  if constexpr (R > 1) _tile_stored(2, s.c + kSide * s.ldc, ld);
  if constexpr (R > 1 && Q > 1) _tile_stored(3, s.c + kSide * s.ldc + kSide, ld);
}

template <int R, int Q>
[[gnu::target("avx512f,avx512bw,avx512bf16")]] void avx512_strips(const Strips& s) {
  constexpr int rows = 8;  // two vectors for each are half of the registers
  const int64_t strip = s.steps * kTile;
  for (int row = 0; row < R * kSide; row += rows) {
    __m512 sum[rows][Q];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int q = 0; q < Q; ++q)
        sum[i][q] = s.start ? _mm512_loadu_ps(s.start + (row + i) * s.start_ld + q * kSide) : _mm512_setzero_ps();
    const uint16_t* a = s.a + row / kSide * strip + row % kSide * kDepth;
    const uint16_t* b = s.b;
    for (int64_t step = 0; step < s.steps; ++step, a += kTile, b += kTile) {
      for (int pair = 0; pair < kSide; ++pair) {
        __m512bh columns[Q];
#pragma GCC unroll 2
        for (int q = 0; q < Q; ++q) columns[q] = (__m512bh)_mm512_load_si512(b + q * strip + pair * kDepth);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
          int factors;
          __builtin_memcpy(&factors, a + i * kDepth + 2 * pair, sizeof(factors));
          const __m512bh factor = (__m512bh)_mm512_set1_epi32(factors);
#pragma GCC unroll 2
          for (int q = 0; q < Q; ++q) sum[i][q] = _mm512_dpbf16_ps(sum[i][q], factor, columns[q]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int q = 0; q < Q; ++q) _mm512_storeu_ps(s.c + (row + i) * s.ldc + q * kSide, sum[i][q]);
  }
}

using StripsKernel = void (*)(const Strips&);

/// Kernels of a unit for one or two strips of A and of B.
constexpr StripsKernel kAmx[2][2] = {{amx_strips<1, 1>, amx_strips<1, 2>}, {amx_strips<2, 1>, amx_strips<2, 2>}};
constexpr StripsKernel kAvx512[2][2] = {{avx512_strips<1, 1>, avx512_strips<1, 2>},
                                        {avx512_strips<2, 1>, avx512_strips<2, 2>}};

// A block of at most 32 x 32 of C.
void block_of_c(const StripsKernel (&kernels)[2][2], const Product<float>& p, Strips strips) {
  constexpr int64_t side = 2 * kSide;
  const StripsKernel kernel = kernels[p.m > kSide][p.n > kSide];
  const bool whole = p.m % kSide == 0 && p.n % kSide == 0;
  if (whole && p.alpha == 1 && (p.start.scale == 0 || p.start.scale == 1)) {
    strips.start = p.start.scale == 0 ? nullptr : p.start.data;
    strips.start_ld = p.start.ld;
    strips.c = p.c;
    strips.ldc = p.ldc;
    return kernel(strips);
  }
  alignas(64) float sums[side * side];
  strips.start = nullptr;
  strips.c = sums;
  strips.ldc = side;
  kernel(strips);
  for (int64_t i = 0; i < p.m; ++i) {
    const float* const start = p.start.data + i * p.start.ld;
    for (int64_t j = 0; j < p.n; ++j) {
      const float result = sums[i * side + j] * p.alpha;
      p.c[i * p.ldc + j] = p.start.scale == 0 ? result : result + start[j] * p.start.scale;
    }
  }
}

// A block of C from packed blocks of A and B.
void block_product(const StripsKernel (&kernels)[2][2], const Product<float>& p, const uint16_t* a, const uint16_t* b) {
  constexpr int64_t side = 2 * kSide;
  const int64_t steps = ceil_div(p.k, kDepth);
  for (int64_t row = 0; row < p.m; row += side) {
    for (int64_t column = 0; column < p.n; column += side) {
      Product<float> part = p;
      part.m = p.m - row < side ? p.m - row : side;
      part.n = p.n - column < side ? p.n - column : side;
      part.c = p.c + row * p.ldc + column;
      part.start = p.start.at(row, column);
      if (p.fetch_c && column + 2 * side <= p.n) fetch_rows<true>(part.c + side, part.m, p.ldc, side);
      block_of_c(kernels, part, {a + row * steps * kDepth, b + column * steps * kDepth, steps, nullptr, 0, nullptr, 0});
    }
  }
}

/// Too much for the stack of a small thread: each thread that multiplies keeps its own.
struct PackedBlocks {
  alignas(64) uint16_t rows[kBlockRows * kBlockDepth], columns[kBlockColumns * kBlockDepth];
};

void multiply(const StripsKernel (&kernels)[2][2], const Factor& a, const Factor& b, const Product<float>& p) {
  thread_local const auto packed = std::make_unique<PackedBlocks>();
  uint16_t *const rows = packed->rows, *const columns = packed->columns;
  const auto part = [](int64_t begin, int64_t end, int64_t size) { return end - begin < size ? end - begin : size; };
  for (int64_t column = 0; column < p.n; column += kBlockColumns) {
    for (int64_t depth = 0; depth < p.k; depth += kBlockDepth) {
      Product<float> block = p;
      block.n = part(column, p.n, kBlockColumns);
      block.k = part(depth, p.k, kBlockDepth);
      pack<false>({b.at(column, depth), b.ld, b.deep}, block.n, block.k, columns);
      for (int64_t row = 0; row < p.m; row += kBlockRows) {
        block.m = part(row, p.m, kBlockRows);
        pack<true>({a.at(row, depth), a.ld, a.deep}, block.m, block.k, rows);
        block.c = p.c + row * p.ldc + column;
        block.fetch_c = p.fetch_c && depth == 0;
        block.start = depth == 0 ? p.start.at(row, column) : Addend<float>{block.c, p.ldc, 1};
        block_product(kernels, block, rows, columns);
      }
    }
  }
}

/// All eight tiles with 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) constexpr TileConfig kTileConfig;

[[gnu::target("amx-tile")]] void amx_multiply(const Factor& a, const Factor& b, const Product<float>& p) {
  _tile_loadconfig(&kTileConfig);
  multiply(kAmx, a, b, p);
  _tile_release();
}

bool may_use_amx() {
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & amx_bf16) || !(d & amx_tile)) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

Bf16Unit bf16_unit() {
  static const Bf16Unit unit = [] {
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512bf16")) return Bf16Unit::none;
    return may_use_amx() ? Bf16Unit::amx : Bf16Unit::avx512;
  }();
  return unit;
}

void bf16_multiply(Bf16Unit unit, bool trans_a, bool trans_b, const Product<float>& product) {
  const Factor a{product.a, product.lda, !trans_a}, b{product.b, product.ldb, trans_b};
  if (unit == Bf16Unit::amx) {
    amx_multiply(a, b, product);
  } else if (unit == Bf16Unit::avx512) {
    multiply(kAvx512, a, b, product);
  }
}

}  // namespace margay::blas

#else

namespace margay::blas {

Bf16Unit bf16_unit() { return Bf16Unit::none; }

void bf16_multiply(Bf16Unit, bool, bool, const Product<float>&) {}

}  // namespace margay::blas

#endif

namespace margay {

bool cpu_has_bf16_products() { return blas::bf16_unit() != blas::Bf16Unit::none; }

}  // namespace margay
