#pragma once
#include "engine/op.h"

namespace margay {

// Products inside heads: the channels of a row are heads of `head_dim` channels each. Both throw OpError for shapes or
// dtypes that do not fit.

/// The outer product of every head: y[n,h,i,j] = a[n,h,i] b[n,h,j].
/// a, b [N,C], head_dim divides C -> y [N, C * head_dim], contiguous.
Tensor head_outer(const Tensor& a, const Tensor& b, int64_t head_dim);

/// Every head as a row vector times its own matrix: y[n,h,j] = sum over i of a[n,h,i] m[n,h,i,j].
/// a [N,C], m [N, C * head_dim] -> y [N,C], contiguous.
Tensor head_product(const Tensor& a, const Tensor& m, int64_t head_dim);

namespace kernels {

/// Rows of `heads` heads; distances between rows in elements, channels are contiguous.
struct HeadShape {
  int64_t rows, heads, head_dim;
  int64_t channels() const { return heads * head_dim; }
};

/// y[n,h,i,j] = a[n,h,i] b[n,h,j]
template <class T>
struct HeadOuter {
  HeadShape shape;
  const T *a, *b;
  int64_t a_row, b_row;
  T* y;
};

/// y[n,h,j] = sum over i of a[n,h,i] m[n,h,i,j], or with `transposed` sum over i of a[n,h,i] m[n,h,j,i]; m is
/// contiguous.
template <class T>
struct HeadProduct {
  HeadShape shape;
  const T *a, *m;
  int64_t a_row;
  T* y;
  bool transposed;
};

template <class T>
void run(Cpu, const HeadOuter<T>&);
template <class T>
void run(Cuda, const HeadOuter<T>&);
template <class T>
void run(Cpu, const HeadProduct<T>&);
template <class T>
void run(Cuda, const HeadProduct<T>&);

}  // namespace kernels
}  // namespace margay
