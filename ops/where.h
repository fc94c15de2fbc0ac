#pragma once
#include "engine/op.h"

namespace margay {

/// y = mask ? a : b, all three broadcast against each other as in NumPy. mask is bool; a and b share any dtype. y is
/// contiguous. Throws OpError where shapes do not broadcast.
Tensor where(const Tensor& mask, const Tensor& a, const Tensor& b);

/// x with `value` (converted to x's dtype) where mask is true. mask is bool and broadcasts to the shape of x, of any
/// dtype. y is contiguous.
Tensor masked_fill(const Tensor& x, const Tensor& mask, double value);

namespace kernels {

/// y is contiguous; the strides are those of its inputs broadcast to its shape.
template <class T>
struct Where {
  using dtypes = AllTypes;
  const bool* mask;
  const T *a, *b;
  T* y;
  Shape shape, mask_strides, a_strides, b_strides;
};
template <class T>
void run(Cpu, const Where<T>&);
template <class T>
void run(Cuda, const Where<T>&);

}  // namespace kernels
}  // namespace margay
