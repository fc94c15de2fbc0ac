#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "engine/flop_counter.h"
#include "ops/cpu/gemm_kernel.h"

// Matrix products over a diagonal band, small enough for the caches: the inner loops of attention, where the band is
// what the causal mask and the sliding window leave.

namespace margay::kernels {

/// Row i sees k = i + low ... i + high.
struct Band {
  int64_t low, high;
  /// The other way round: the rows i that see a given k.
  Band transposed() const { return {-high, -low}; }
};
/// Every row sees every k.
inline constexpr Band kWholeBand{-(int64_t{1} << 40), int64_t{1} << 40};

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

using blas::load_some;
using blas::store_some;

// R rows and V registers of columns of C. `lanes` counts the columns of the register, if it is used in part. The band
// is at least R wide.
template <class T, Layout layout, int R, int V, bool partial>
void band_block(const BandProduct<T>& p, int64_t row, int64_t column, int64_t lanes) {
  using Lanes = blas::Lanes<T>;
  constexpr int width = blas::kLanes<T>;
  const T* const a = p.a + (layout == Layout::rows ? row * p.a_row : row);
  const T* const b = p.b + column;
  T* const c = p.c + row * p.c_row + column;
  const auto load = [&](const T* source) { return partial ? load_some(source, lanes) : blas::load(source); };
  Lanes sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Lanes{};
  // Rows `first` ... `last` - 1 see k.
  const auto step = [&]<int first, int last>(int64_t k) {
    Lanes row_of_b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row_of_b[v] = load(b + k * p.b_row + v * width);
#pragma GCC unroll 16
    for (int r = first; r < last; ++r) {
      const T factor = layout == Layout::rows ? a[r * p.a_row + k] : a[k * p.a_row + r];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += factor * row_of_b[v];
    }
  };
  const int64_t full_begin = row + R - 1 + p.band.low, full_end = row + 1 + p.band.high;
  const auto inside = [&](int64_t k) { return k >= 0 && k < p.depth; };
  // Where the band begins, one more row sees each k than the k before; where it ends, one less.
  const auto edges = [&]<int... I>(std::integer_sequence<int, I...>) {
    if (full_begin > 0)
      ((inside(full_begin - (R - 1) + I) ? step.template operator()<0, I + 1>(full_begin - (R - 1) + I) : void()), ...);
    for (int64_t k = std::max<int64_t>(0, full_begin), end = std::min(p.depth, full_end); k < end; ++k)
      step.template operator()<0, R>(k);
    if (full_end < p.depth) ((inside(full_end + I) ? step.template operator()<I + 1, R>(full_end + I) : void()), ...);
  };
  edges(std::make_integer_sequence<int, R - 1>());
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const T before = p.before ? p.before[row + r] : T(1), after = p.after ? p.after[row + r] : T(1);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* const target = c + r * p.c_row + v * width;
      if (p.add) sum[r][v] += before * load(target);
      const Lanes result = sum[r][v] * after;
      if constexpr (partial) {
        store_some(result, target, lanes);
      } else {
        blas::store(result, target);
      }
    }
  }
}

// All rows of V registers of columns, at most `most` at once.
template <class T, Layout layout, int most, int V, bool partial = false>
void band_columns(const BandProduct<T>& p, int64_t column, int64_t lanes = 0) {
  const bool wide = p.band.high - p.band.low >= most;
  int64_t row = 0;
  for (; wide && row + most <= p.rows; row += most) band_block<T, layout, most, V, partial>(p, row, column, lanes);
  for (; wide && row + 4 <= p.rows; row += 4) band_block<T, layout, 4, V, partial>(p, row, column, lanes);
  for (; row < p.rows; ++row) band_block<T, layout, 1, V, partial>(p, row, column, lanes);
}

template <class T>
int64_t flops_of(const BandProduct<T>& p) {
  int64_t factors = 0;  // of A, inside the band
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t begin = std::max<int64_t>(0, row + p.band.low), end = std::min(p.depth, row + p.band.high + 1);
    factors += std::max<int64_t>(0, end - begin);
  }
  return 2 * factors * p.columns;
}

template <Layout layout, class T>
void band_product(const BandProduct<T>& p) {
  if (FlopCounter::active()) FlopCounter::add(flops_of(p));
  constexpr int64_t width = blas::kLanes<T>;
  constexpr bool many_registers = simd::kVectorBytes == 64;  // 32, else 16: for sums, a row of B and a factor
  int64_t column = 0;
  if constexpr (many_registers)
    for (; column + 4 * width <= p.columns; column += 4 * width) band_columns<T, layout, 6, 4>(p, column);
  for (; column + 2 * width <= p.columns; column += 2 * width)
    band_columns<T, layout, many_registers ? 12 : 6, 2>(p, column);
  constexpr int most = many_registers ? 16 : 12;
  for (; column + width <= p.columns; column += width) band_columns<T, layout, most, 1>(p, column);
  if (column < p.columns) band_columns<T, layout, most, 1, true>(p, column, p.columns - column);
}

}  // namespace margay::kernels
