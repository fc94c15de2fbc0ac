#pragma once
#include <algorithm>
#include <type_traits>

#include "engine/scratch.h"
#include "ops/cuda/gemm.cuh"
#include "ops/precision.h"

namespace margay::cuda {

/// Whether the factors of a product of `precision` are rounded: none of its sizes is small, nor is all of it. So the
/// products of its gradients are made from rounded factors where it is.
template <class T>
bool rounds(Precision precision, int64_t m, int64_t n, int64_t k) {
  const bool large = std::min({m, n, k}) >= 16 && m * n * k >= (1 << 15);
  return std::is_same_v<T, float> && precision == Precision::bf16 && large;
}

/// Matrices of f32 or bf16 as copies in bf16, rounded to the nearest, ties to even, in memory that they hold for as
/// long as they live. Rows, or columns where the original is stored by columns, start at multiples of 16 bytes, as
/// tensor cores want them.
class Rounded {
 public:
  /// Matrices [rows, columns] that start `strides` apart along axes of the sizes `stack`.
  template <class T>
  Rounded(Cuda context, MatrixView<T> from, int64_t rows, int64_t columns, const Shape& stack = {},
          const Shape& strides = {});

  /// The first matrix; the others follow in row-major order of the stack, each distance() after the one before.
  MatrixView<bf16> view() const;
  int64_t distance() const { return outer_ * groups_ * kGroup; }

 private:
  static constexpr int64_t kGroup = 8;  // elements that a thread rounds: 16 bytes of the copy

  bool by_columns_;
  int64_t outer_, groups_;  // rows, and groups in a row; or columns
  Scratch memory_;
};

/// A factor of products.
template <class T>
struct Matrix {
  MatrixView<T> view;
  int64_t rows, columns;
};

/// Calls body with the views of the factors as they are, or of copies of them where `rounded`, which is for f32.
template <class T, class Body, class... Rest>
void with_factors(Cuda context, bool rounded, const Body& body, const Matrix<T>& first, const Rest&... rest) {
  if constexpr (std::is_same_v<T, float>) {
    const auto copy = [&](const Matrix<T>& m) { return Rounded(context, m.view, m.rows, m.columns); };
    const auto call = [&](const auto&... copies) { body(copies.view()...); };
    if (rounded) return call(copy(first), copy(rest)...);
  }
  body(first.view, rest.view...);
}

}  // namespace margay::cuda
