#pragma once
#include <algorithm>
#include <cstdint>

#include "ops/cpu/simd.h"

// Matrix products over a diagonal band, small enough for the caches: the inner loops of attention, where the band is
// what the causal mask and the sliding window leave.

namespace margay::kernels {

/// Row i sees k = i + low ... i + high.
struct Band {
  int64_t low, high;
  /// The other way round: the rows i that see a given k.
  Band transposed() const { return {-high, -low}; }
};

/// C[i, j] = after[i] * (before[i] * C[i, j] + sum over k of A[i, k] B[k, j]), k inside the band and 0 <= k < depth.
/// Nothing outside the band is read as a factor, so that NaN there stays there; every sum runs in the order of k.
template <class T>
struct BandProduct {
  const T* a;
  int64_t a_row;  // distance of rows of A, if it is stored by rows; of columns, if by columns
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
  int64_t rows, columns, depth;
  Band band;
  bool add = false;           // whether there is a C to begin with
  const T* before = nullptr;  // null: ones
  const T* after = nullptr;   // null: ones
};

/// How A lies in memory: rows or columns contiguous.
enum class Layout : uint8_t { rows, columns };

// R rows and V vectors of columns of C, held in registers. `lanes` counts the columns of the last vector in use.
template <class T, Layout layout, int R, int V, bool partial>
void band_block(const BandProduct<T>& p, int64_t row, int64_t column, int64_t lanes) {
  using Vec = simd::Vec<T>;
  const T* const a = p.a + (layout == Layout::rows ? row * p.a_row : row);
  const T* const b = p.b + column;
  T* const c = p.c + row * p.c_row + column;
  const auto load = [&](const T* source) { return partial ? Vec::load(source, lanes) : Vec::load(source); };
  Vec sum[R][V];
  for (int r = 0; r < R; ++r) {
    const Vec scale(p.before ? p.before[row + r] : T(1));
    for (int v = 0; v < V; ++v) sum[r][v] = p.add ? load(c + r * p.c_row + v * Vec::size) * scale : Vec(T(0));
  }
  const auto step = [&](int64_t k, const auto& sees) {
    Vec column_of_b[V];
    for (int v = 0; v < V; ++v) column_of_b[v] = load(b + k * p.b_row + v * Vec::size);
    for (int r = 0; r < R; ++r) {
      if (!sees(r)) continue;
      const Vec factor(layout == Layout::rows ? a[r * p.a_row + k] : a[k * p.a_row + r]);
      for (int v = 0; v < V; ++v) sum[r][v] += factor * column_of_b[v];
    }
  };
  // Where the band begins and ends only some of the rows take part.
  const auto edge = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      step(k, [&](int r) { return k >= row + r + p.band.low && k <= row + r + p.band.high; });
  };
  const int64_t begin = std::max<int64_t>(0, row + p.band.low);
  const int64_t end = std::min(p.depth, row + R + p.band.high);
  const int64_t full_begin = std::max(begin, std::min(end, row + R - 1 + p.band.low));
  const int64_t full_end = std::max(full_begin, std::min(end, row + 1 + p.band.high));
  edge(begin, full_begin);
  for (int64_t k = full_begin; k < full_end; ++k) step(k, [](int) { return true; });
  edge(full_end, end);
  for (int r = 0; r < R; ++r) {
    const Vec scale(p.after ? p.after[row + r] : T(1));
    for (int v = 0; v < V; ++v) {
      T* const target = c + r * p.c_row + v * Vec::size;
      const Vec result = sum[r][v] * scale;
      if constexpr (partial) {
        result.store(target, lanes);
      } else {
        result.store(target);
      }
    }
  }
}

// All rows of V vectors of columns: as many rows at once as there are registers for.
template <class T, Layout layout, int V, bool partial = false>
void band_columns(const BandProduct<T>& p, int64_t column, int64_t lanes = 0) {
  constexpr int most = V == 4 ? 6 : V == 2 ? 12 : 16, some = 4;
  int64_t row = 0;
  for (; row + most <= p.rows; row += most) band_block<T, layout, most, V, partial>(p, row, column, lanes);
  for (; row + some <= p.rows; row += some) band_block<T, layout, some, V, partial>(p, row, column, lanes);
  for (; row < p.rows; ++row) band_block<T, layout, 1, V, partial>(p, row, column, lanes);
}

template <Layout layout, class T>
void band_product(const BandProduct<T>& p) {
  constexpr int64_t size = simd::Vec<T>::size;
  int64_t column = 0;
  for (; column + 4 * size <= p.columns; column += 4 * size) band_columns<T, layout, 4>(p, column);
  for (; column + 2 * size <= p.columns; column += 2 * size) band_columns<T, layout, 2>(p, column);
  for (; column + size <= p.columns; column += size) band_columns<T, layout, 1>(p, column);
  if (column < p.columns) band_columns<T, layout, 1, true>(p, column, p.columns - column);
}

}  // namespace margay::kernels
