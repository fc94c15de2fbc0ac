#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/op.h"
#include "ops/precision.h"

namespace margay {

/// Matrix product with NumPy's rules: a [..., m, k], b [..., k, n] -> [..., m, n], contiguous; the leading axes
/// broadcast. A 1-D a is a row, a 1-D b a column, and their axis is left out of the result. Views whose matrices are
/// stored by rows or by columns (transposed, sliced, expanded) are read where they lie.
/// Throws OpError if the sizes do not fit.
Tensor matmul(const Tensor& a, const Tensor& b);

namespace kernels {

/// C[i] = sum over j of op(A[i, j]) op(B[i, j]), added to C[i] where `add`: i over the axes `batch`, j over `summed`.
template <class T>
struct Matmul {
  /// Matrices in one of the forms of a BLAS: `ld` is the distance of rows, or of columns if `transposed`.
  struct Factor {
    const T* data;
    int64_t ld;
    bool transposed;
    Shape batch_strides, summed_strides;
  };
  Factor a, b;
  T* c;  // [batch..., m, n]
  int64_t m, n, k;
  Shape batch, summed;
  bool add;
  acc_t<T>* workspace;
  Precision precision = Precision::f32;  // of products of floats

  /// Pieces of k that are multiplied apart: more than 1 for a single small C of large depth.
  static int64_t depth_pieces(const Shape& batch, const Shape& summed, int64_t m, int64_t n, int64_t k) {
    const bool deep = batch.numel() == 1 && summed.numel() == 1 && m * n <= (1 << 17);
    return deep ? std::clamp<int64_t>(k / 512, 1, 16) : 1;
  }
  /// Elements: one C for each piece.
  static int64_t workspace_size(const Shape& batch, const Shape& summed, int64_t m, int64_t n, int64_t k) {
    const int64_t pieces = depth_pieces(batch, summed, m, n, k);
    return pieces > 1 ? pieces * m * n : 0;
  }
};
template <class T>
void run(Cpu, const Matmul<T>&);
template <class T>
void run(Cuda, const Matmul<T>&);

}  // namespace kernels
}  // namespace margay
