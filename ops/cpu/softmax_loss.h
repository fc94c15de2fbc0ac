#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/parallel.h"
#include "ops/cpu/simd.h"

// What the cross-entropies share: softmax statistics of one row of logits, and lists of labelled rows.

namespace margay::kernels {

/// Running maximum, sum of exp(logit - max) and first position of the maximum over the logits seen so far.
template <class T>
struct SoftmaxStats {
  T max = -std::numeric_limits<T>::infinity(), sum = 0;
  int32_t argmax = 0;

  /// Takes in `count` more logits, of which the first is class `first`. NaN stays: the sum becomes NaN. Leaves
  /// exp(logit - max) in `exponentials`, unless that is null.
  void add(const T* logits, int64_t count, int64_t first, T* exponentials = nullptr) {
    using Vec = simd::Vec<T>;
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    Vec largest(lowest);
    for (int64_t j = 0; j < count; j += Vec::size)
      largest = simd::max(largest, Vec::load(logits + j, count - j, lowest));
    const T top = reduce_max(largest);
    if (top > max) {
      argmax = static_cast<int32_t>(first + position_of(top, logits, count));
      if (sum > T(0)) sum *= std::exp(max - top);
      max = top;
    }
    Vec total(T(0));
    for (int64_t j = 0; j < count; j += Vec::size) {
      const Vec value = simd::exp(Vec::load(logits + j, count - j, lowest) - Vec(max));
      total += value;
      if (exponentials) value.store(exponentials + j, count - j);
    }
    sum += reduce_add(total);
  }

 private:
  // The first of the logits that equals `value`, which one of them does.
  static int64_t position_of(T value, const T* logits, int64_t count) {
    using Vec = simd::Vec<T>;
    Vec first(std::numeric_limits<T>::infinity()), position = Vec::iota();
    for (int64_t j = 0; j < count; j += Vec::size, position += Vec(T(Vec::size)))
      first = select(Vec::load(logits + j, count - j, value) == Vec(value), min(first, position), first);
    return static_cast<int64_t>(-reduce_max(-first));
  }
};

/// Rows of which only the listed ones carry a label: rows [n], ascending, below R.
struct LabelledRows {
  const int32_t* rows;
  int64_t n, R;

  /// Calls body(i) for begin <= i < end, in parallel; body fills row rows[i] of out [R, width]. The rows in front of
  /// each, and those behind the last of all, are filled with zeros.
  template <class T, class Body>
  void fill(Cpu cpu, int64_t begin, int64_t end, T* out, int64_t width, const Body& body) const {
    const auto clear = [&](int64_t from, int64_t to) { std::fill(out + from * width, out + to * width, T(0)); };
    if (n == 0) return clear(0, R);
    const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
    parallel_ranges(cpu, end - begin, grain, [&](int64_t piece_begin, int64_t piece_end) {
      for (int64_t i = begin + piece_begin; i < begin + piece_end; ++i) {
        clear(i == 0 ? 0 : rows[i - 1] + 1, rows[i]);
        body(i);
        if (i + 1 == n) clear(rows[i] + 1, R);
      }
    });
  }
};

/// Mean of nll over the labelled rows, summed in f64 in their order; 0 if there are none.
template <class T>
T mean_loss(const T* nll, const int32_t* rows, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(nll[rows[i]]);
  return n ? static_cast<T>(sum / static_cast<double>(n)) : T(0);
}

/// Weight of row `row` in the gradient: dloss / n + dnll[row]; either may be null.
template <class T>
T row_weight(const T* dloss, const T* dnll, int64_t n, int64_t row) {
  return (dloss ? *dloss / static_cast<T>(n) : T(0)) + (dnll ? dnll[row] : T(0));
}

}  // namespace margay::kernels
