#pragma once
#include "engine/op.h"

namespace margay {

struct TopK {
  Tensor values, indices;
};

/// The k largest elements along the last axis, largest first, and where they stand (i32); of equals the lower index
/// comes first, and a NaN counts as larger than every number. x [..., N] float, 0 <= k <= N -> two tensors [..., k],
/// contiguous. Only the values carry a gradient: that of x is theirs at the indices and 0 elsewhere.
TopK topk(const Tensor& x, int64_t k);

namespace kernels {

/// For k <= kMaxK; longer lists come from a sort.
template <class T>
struct TopKFwd {
  const T* x;
  T* values;
  int32_t* indices;
  int64_t rows, N, k;
  static constexpr int64_t kMaxK = 32;
};
template <class T>
void run(Cpu, const TopKFwd<T>&);
template <class T>
void run(Cuda, const TopKFwd<T>&);

}  // namespace kernels
}  // namespace margay
