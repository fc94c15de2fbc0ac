#pragma once
#include "ops/cpu/simd.h"

namespace margay::kernels {

// Sum of terms lane by lane, for short stretches.
template <class T, class Term>
[[gnu::always_inline]] inline T lane_sum(int64_t begin, int64_t end, const Term& term) {
  using Vec = simd::Vec<T>;
  Vec a(T(0)), b(T(0));
  int64_t i = begin;
  for (; i + 2 * Vec::size <= end; i += 2 * Vec::size) {
    a += term(i, Vec::size);
    b += term(i + Vec::size, Vec::size);
  }
  for (; i < end; i += Vec::size) a += term(i, end - i);
  return reduce_add(a + b);
}
template <class T>
inline constexpr int64_t kShortStretch = 32 * simd::Vec<T>::size;

template <class T, class Term>
[[gnu::noinline]] T long_sum(int64_t begin, int64_t end, Term term) {
  if (end - begin <= kShortStretch<T>) return lane_sum<T>(begin, end, term);
  const int64_t middle = begin + ((end - begin) / 2 + kShortStretch<T> - 1) / kShortStretch<T> * kShortStretch<T>;
  return long_sum<T>(begin, middle, term) + long_sum<T>(middle, end, term);
}

/// Sum over i in [begin, end) of terms that are given vector by vector: term(i, n) holds those of i, i + 1, ..., with 0
/// in all lanes from n on. Capture pointers by value: a closure whose references escape is read again after every
/// store. Short stretches are summed lane by lane, then pairwise: the error grows with log(end - begin).
template <class T, class Term>
[[gnu::always_inline]] inline T pairwise_sum(int64_t begin, int64_t end, const Term& term) {
  return end - begin <= kShortStretch<T> ? lane_sum<T>(begin, end, term) : long_sum<T>(begin, end, term);
}

/// The largest of n elements, NaN being the largest of all; -infinity for none.
template <class T>
inline T row_max(const T* x, int64_t n) {
  using Vec = simd::Vec<T>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  Vec largest(lowest);
  for (int64_t i = 0; i < n; i += Vec::size) {
    const Vec v = Vec::load(x + i, n - i, lowest);
    largest = select((v > largest) | !(v == v), v, largest);
  }
  return fold_lanes(largest, [](auto a, auto b) { return (a > b) | (a != a) ? a : b; });
}

/// Rows a piece of parallel work takes, so that it holds about 16384 elements.
inline int64_t rows_per_piece(int64_t row_length) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_length));
}

}  // namespace margay::kernels
