#pragma once
#include "engine/op.h"

namespace margay {

/// Index (i32) of the largest element along an axis, the lowest of equals; a NaN counts as larger than every number.
/// x [.., N, ..] float -> [.., ..], or [.., 1, ..] with keepdim. Throws OpError for an axis of size 0.
Tensor argmax(const Tensor& x, int axis, bool keepdim = false);

namespace kernels {

/// y[r] = argmax of x[r, :].
template <class T>
struct ArgMax {
  const T* x;
  int32_t* y;
  int64_t rows, N;
};
template <class T>
void run(Cpu, const ArgMax<T>&);
template <class T>
void run(Cuda, const ArgMax<T>&);

}  // namespace kernels
}  // namespace margay
