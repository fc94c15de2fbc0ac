#pragma once
#include "ops/cpu/simd_math.h"

namespace margay::kernels {

/// What elementwise kernels compute with: vectors of f32, but one f64 at a time. f64 serves gradient checks, where the
/// accuracy of the standard library counts and speed does not.
template <class T>
struct Lanes {
  using Type = T;
  static constexpr int size = 1;
  static T load(const T* p, int64_t) { return *p; }
  static void store(T* p, int64_t, T value) { *p = value; }
};
template <>
struct Lanes<float> {
  using Type = simd::Vec<float>;
  static constexpr int size = Type::size;
  static Type load(const float* p, int64_t n) { return Type::load(p, n); }
  static void store(float* p, int64_t n, Type value) { value.store(p, n); }
};

}  // namespace margay::kernels
