#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "ops/cpu/gemm_kernel.h"

// C = A B^T where A has few rows, as when a model makes its next token: B, the weight, passes by once and is not worth
// packing. Sums run along the rows of both, a register of lanes each, and what the sum of an element is added in does
// not depend on the sizes of the other axes.

namespace margay::blas {

/// Up to so many rows it beats packing.
inline constexpr int64_t kFewRows = 8;

/// Lane i: the sum of the lanes of v[i]. Each round adds halves of two registers, and so joins register i and i + half
/// of them: after the last, the bits of a lane's number are those of the register's. v is used up.
template <class T>
Lanes<T> sum_lanes(Lanes<T>* v) {
  constexpr int n = kLanes<T>;
  const auto join = [&]<int... I>(Lanes<T> x, Lanes<T> y, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, y, (I / 2 + I % 2 * n)...) +
           __builtin_shufflevector(x, y, (I / 2 + n / 2 + I % 2 * n)...);
  };
#pragma GCC unroll 4
  for (int half = n / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) v[i] = join(v[i], v[i + half], std::make_integer_sequence<int, n>());
  return v[0];
}

// R rows of A against kLanes / R rows of B at a time; beyond the last row, that row again.
template <class T, int R>
void few_rows_of(const Product<T>& p) {
  constexpr int columns = kLanes<T> / R;
  for (int64_t column = 0; column < p.n; column += columns) {
    const T* b[columns];
    for (int j = 0; j < columns; ++j) b[j] = p.b + std::min(column + j, p.n - 1) * p.ldb;
    for (int64_t row = 0; row < p.m; row += R) {
      const T* a[R];
      for (int i = 0; i < R; ++i) a[i] = p.a + std::min(row + i, p.m - 1) * p.lda;
      Lanes<T> sum[R * columns];
#pragma GCC unroll 16
      for (int s = 0; s < R * columns; ++s) sum[s] = Lanes<T>{};
      const auto add = [&](const auto& load) {
        Lanes<T> x[R];
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) x[i] = load(a[i]);
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) {
          const Lanes<T> y = load(b[j]);
#pragma GCC unroll 4
          for (int i = 0; i < R; ++i) sum[i * columns + j] += x[i] * y;
        }
      };
      int64_t k = 0;
      for (; k + kLanes<T> <= p.k; k += kLanes<T>) add([k](const T* row) { return load(row + k); });
      if (k < p.k) add([&](const T* row) { return load_some(row + k, p.k - k); });
      T sums[R * columns];
      store<T>(sum_lanes<T>(sum), sums);
      for (int64_t i = 0; i < std::min<int64_t>(R, p.m - row); ++i) {
        const Addend<T> start = p.start.at(row + i, column);
        T* const c = p.c + (row + i) * p.ldc + column;
        for (int64_t j = 0; j < std::min<int64_t>(columns, p.n - column); ++j) {
          const T value = p.alpha * sums[i * columns + j];
          c[j] = start.scale != T(0) ? value + start.scale * start.data[j] : value;
        }
      }
    }
  }
}

/// C = alpha A B^T + start.
template <class T>
void few_rows(const Product<T>& p) {
  if (p.m == 1) {
    few_rows_of<T, 1>(p);
  } else if (p.m == 2 || kLanes<T> < 4) {
    few_rows_of<T, 2>(p);
  } else {
    few_rows_of<T, 4>(p);
  }
}

}  // namespace margay::blas
