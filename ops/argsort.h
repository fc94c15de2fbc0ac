#pragma once
#include "engine/op.h"

namespace margay {

/// The indices (i32) that sort the last axis, ascending or descending; stable, so equal elements stay in their order.
/// A NaN counts as larger than every number. x [..., N] float -> [..., N], contiguous.
Tensor argsort(const Tensor& x, bool descending = false);

namespace kernels {

template <class T>
struct ArgSort {
  const T* x;
  int32_t* y;
  int32_t* workspace;  // [rows, N]
  int64_t rows, N;
  bool descending;
};
template <class T>
void run(Cpu, const ArgSort<T>&);

}  // namespace kernels
}  // namespace margay
