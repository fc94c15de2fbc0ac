#pragma once
#include <cstdint>
#include <limits>

#include "ops/cpu/simd_math.h"

namespace margay::kernels::landmark {

/// Vector j / size of a row of n scores times `scale`; lanes behind the row hold the lowest number, whose exp is 0.
template <class T>
[[gnu::always_inline]] inline simd::Vec<T> scaled(const T* scores, int64_t j, int64_t n, T scale) {
  using Vec = simd::Vec<T>;
  if (j + Vec::size <= n) return Vec::load(scores + j) * scale;
  return select(Vec::iota() < Vec(static_cast<T>(n - j)), Vec::load(scores + j, n - j) * scale,
                std::numeric_limits<T>::lowest());
}

template <class T>
struct RowSoftmax {
  T maximum, sum;
};

/// Turns a row of scores into exp(scale score - maximum); the maximum, and their sum.
template <class T>
RowSoftmax<T> soften(T* scores, int64_t n, T scale) {
  using Vec = simd::Vec<T>;
  Vec top(std::numeric_limits<T>::lowest()), total(T(0));
  for (int64_t j = 0; j < n; j += Vec::size) top = max(top, scaled(scores, j, n, scale));
  const T maximum = reduce_max(top);
  for (int64_t j = 0; j < n; j += Vec::size) {
    const Vec weight = exp(scaled(scores, j, n, scale) - maximum);
    total += weight;
    weight.store(scores + j, n - j);
  }
  return {maximum, reduce_add(total)};
}

}  // namespace margay::kernels::landmark
