#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "ops/cpu/simd.h"

// A matrix product on one thread for the sizes of this library: blocks of some hundred rows and columns that lie in the
// second-level cache. A panel of columns of B is packed on the stack; a tile of C stays in registers while the panel's
// rows pass by. Every element of C is summed in the order of k, whatever the sizes of the other axes.

namespace margay::blas {

/// Rows of C that stay in registers.
inline constexpr int kTileRows = simd::kVectorBytes == 64 ? 8 : simd::kVectorBytes == 32 ? 6 : 4;

/// Whether the registers of the build suffice to beat a library that chooses its kernels at run time.
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
inline constexpr bool kFastTiles = true;
#else
inline constexpr bool kFastTiles = false;
#endif

template <class T>
using Lanes = typename simd::NativeVector<T>::Lanes;
template <class T>
inline constexpr int kLanes = simd::Vec<T>::size;

template <class T>
Lanes<T> load(const T* p) {
  Lanes<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
void store(Lanes<T> v, T* p) {
  std::memcpy(p, &v, sizeof(v));
}

// The first n < kLanes elements at p, zeros in the other lanes; and the way back.
template <class T>
Lanes<T> load_some(const T* p, int64_t n) {
  return simd::load_partial(p, n, Lanes<T>{});
}
template <class T>
void store_some(Lanes<T> v, T* p, int64_t n) {
  simd::store_partial(p, n, v);
}

// The panel: kPanelDepth rows of up to kPanelVectors vectors, 16 kB where registers are widest.
inline constexpr int kPanelVectors = 2, kPanelDepth = 128;
template <class T>
inline constexpr int kPanelColumns = kPanelVectors* kLanes<T>;

/// What the product is added to: scale * data[i * ld + j]. Not read where scale is 0.
template <class T>
struct Addend {
  const T* data;
  int64_t ld;
  T scale;
  Addend at(int64_t row, int64_t column) const { return {data + row * ld + column, ld, scale}; }
};

/// C = alpha * op(A) op(B) + start, row-major; op transposes where the flag says so.
template <class T>
struct Product {
  int64_t m, n, k;
  T alpha;
  const T* a;
  int64_t lda;
  const T* b;
  int64_t ldb;
  Addend<T> start;
  T* c;
  int64_t ldc;
  bool fetch_a = false, fetch_c = false;  // ask for A and C ahead, as they are not in the cache yet
};

// Copies a square block of lanes, transposed: each round interleaves row i with row i + n / 2, which rotates the bits
// of (row, lane) by one place.
template <class T>
void transpose_block(const T* from, int64_t from_ld, T* to, int64_t to_ld) {
  constexpr int n = kLanes<T>;
  Lanes<T> rows[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) rows[i] = load(from + i * from_ld);
  const auto round = [&]<int... I>(std::integer_sequence<int, I...>) {
    Lanes<T> out[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      const Lanes<T> x = rows[i], y = rows[i + n / 2];
      out[2 * i] = __builtin_shufflevector(x, y, (I / 2 + I % 2 * n)...);
      out[2 * i + 1] = __builtin_shufflevector(x, y, (I / 2 + n / 2 + I % 2 * n)...);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = out[i];
  };
#pragma GCC unroll 4
  for (int done = 1; done < n; done *= 2) round(std::make_integer_sequence<int, n>());
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store(rows[i], to + i * to_ld);
}

// panel[p][j] = op(B)[p][j] for p < depth, j < columns; zeros up to `width` columns.
template <class T, bool trans_b>
void pack_panel(int64_t depth, int64_t columns, int64_t width, const T* b, int64_t ldb, T* panel) {
  if constexpr (!trans_b) {
    for (int64_t p = 0; p < depth; ++p) {
      const T* const row = b + p * ldb;
      T* const to = panel + p * width;
      if (columns == width) {
        for (int64_t j = 0; j < width; j += kLanes<T>) store(load(row + j), to + j);
      } else {
        for (int64_t j = 0; j < width; ++j) to[j] = j < columns ? row[j] : T(0);
      }
    }
  } else {
    for (int64_t j = 0; j < width; j += kLanes<T>) {
      const T* const from = b + j * ldb;
      T* const to = panel + j;
      int64_t p = 0;
      if (j + kLanes<T> <= columns)
        for (; p + kLanes<T> <= depth; p += kLanes<T>) transpose_block(from + p, ldb, to + p * width, width);
      for (; p < depth; ++p)
        for (int64_t i = 0; i < kLanes<T>; ++i) to[p * width + i] = j + i < columns ? from[i * ldb + p] : T(0);
    }
  }
}

// R rows of a panel's columns of C. op(A) is read where it lies: rows of A, or columns for trans_a.
template <class T, int R, int V, bool trans_a>
void tile(int64_t depth, T alpha, const T* a, int64_t lda, const T* panel, const Addend<T>& start, T* c, int64_t ldc) {
  constexpr int width = V * kLanes<T>;
  Lanes<T> sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[i][v] = Lanes<T>{};
  for (int64_t p = 0; p < depth; ++p) {
    Lanes<T> row[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) row[v] = load(panel + p * width + v * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T factor = trans_a ? a[p * lda + i] : a[i * lda + p];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      Lanes<T> result = sum[i][v] * alpha;
      if (start.scale != T(0)) result += load(start.data + i * start.ld + v * kLanes<T>) * start.scale;
      store(result, c + i * ldc + v * kLanes<T>);
    }
  }
}

// A tile whose columns do not fill the panel's: it is made in a buffer, of which the columns that exist are used.
template <class T, int R, int V, bool trans_a>
void partial_tile(int64_t columns, int64_t depth, T alpha, const T* a, int64_t lda, const T* panel,
                  const Addend<T>& start, T* c, int64_t ldc) {
  constexpr int width = V * kLanes<T>;
  T buffer[R * width];
  tile<T, R, V, trans_a>(depth, alpha, a, lda, panel, Addend<T>{}, buffer, width);
  for (int i = 0; i < R; ++i) {
    const T* const from = buffer + i * width;
    const T* const first = start.data + i * start.ld;
    T* const to = c + i * ldc;
    if (start.scale != T(0)) {
      for (int64_t j = 0; j < columns; ++j) to[j] = from[j] + first[j] * start.scale;
    } else {
      std::copy_n(from, columns, to);
    }
  }
}

// Asks for lines of the cache that the next tile needs, while this one is multiplied.
template <bool write, class T>
void fetch_rows(const T* rows, int64_t count, int64_t ld, int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < columns; j += line) __builtin_prefetch(rows + i * ld + j, write);
}

// All rows of a panel, in tiles of kTileRows and then of ever fewer rows. `p` describes the panel's part of the
// product.
template <class T, int V, bool trans_a>
void panel_rows(const Product<T>& p, const T* panel) {
  int64_t i = 0;
  const auto tiles_of = [&]<int R>(std::integral_constant<int, R>) {
    for (; i + R <= p.m; i += R) {
      const T* const a = p.a + (trans_a ? i : i * p.lda);
      if (i + 2 * R <= p.m) {
        if (p.fetch_a && !trans_a) fetch_rows<false>(a + R * p.lda, R, p.lda, p.k);
        if (p.fetch_c) fetch_rows<true>(p.c + (i + R) * p.ldc, R, p.ldc, p.n);
      }
      if (p.n == V * kLanes<T>) {
        tile<T, R, V, trans_a>(p.k, p.alpha, a, p.lda, panel, p.start.at(i, 0), p.c + i * p.ldc, p.ldc);
      } else {
        partial_tile<T, R, V, trans_a>(p.n, p.k, p.alpha, a, p.lda, panel, p.start.at(i, 0), p.c + i * p.ldc, p.ldc);
      }
    }
  };
  tiles_of(std::integral_constant<int, kTileRows>());
  tiles_of(std::integral_constant<int, 4>());
  tiles_of(std::integral_constant<int, 2>());
  tiles_of(std::integral_constant<int, 1>());
}

template <class T, bool trans_a, bool trans_b>
void multiply(const Product<T>& p) {
  // A block of C and the rows and columns that make it stay in the second-level cache.
  constexpr int64_t block_rows = 256, block_columns = 512;
  alignas(simd::kVectorBytes) T panel[kPanelDepth * kPanelColumns<T>];
  for (int64_t row = 0; row < p.m; row += block_rows) {
    for (int64_t block = 0; block < p.n; block += block_columns) {
      const int64_t block_end = std::min(p.n, block + block_columns);
      for (int64_t depth = 0; depth < p.k; depth += kPanelDepth) {
        Product<T> part = p;
        part.m = std::min(block_rows, p.m - row);
        part.k = std::min<int64_t>(kPanelDepth, p.k - depth);
        part.a = p.a + (trans_a ? depth * p.lda + row : row * p.lda + depth);
        for (int64_t column = block; column < block_end; column += kPanelColumns<T>) {
          part.n = std::min<int64_t>(kPanelColumns<T>, block_end - column);
          part.c = p.c + row * p.ldc + column;
          part.start = depth == 0 ? p.start.at(row, column) : Addend<T>{part.c, p.ldc, T(1)};
          part.fetch_a = p.fetch_a && column == block;
          part.fetch_c = p.fetch_c && depth == 0;
          const T* const b = p.b + (trans_b ? column * p.ldb + depth : depth * p.ldb + column);
          const bool narrow = part.n <= kLanes<T>;
          pack_panel<T, trans_b>(part.k, part.n, narrow ? kLanes<T> : kPanelColumns<T>, b, p.ldb, panel);
          if (narrow) {
            panel_rows<T, 1, trans_a>(part, panel);
          } else {
            panel_rows<T, 2, trans_a>(part, panel);
          }
        }
      }
    }
  }
}

}  // namespace margay::blas
