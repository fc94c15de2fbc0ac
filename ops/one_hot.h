#pragma once
#include "engine/op.h"

namespace margay {

/// y[..., c] = 1 where ids[...] = c, else 0: ids [...] i32 -> y [..., classes] of any dtype, contiguous, without a
/// gradient. Throws OpError for an id outside of [0, classes), naming the first.
Tensor one_hot(const Tensor& ids, int64_t classes, DType dtype = DType::f32);

namespace kernels {

template <class T>
struct OneHot {
  using dtypes = AllTypes;
  const int32_t* ids;
  T* y;
  int64_t rows, classes;
};
template <class T>
void run(Cpu, const OneHot<T>&);
template <class T>
void run(Cuda, const OneHot<T>&);

}  // namespace kernels
}  // namespace margay
