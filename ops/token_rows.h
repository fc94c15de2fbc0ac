#pragma once
#include <cstdint>

#include "engine/tensor.h"

namespace margay {

/// x itself where its last axis is contiguous in memory, else a copy; undefined if x is.
inline Tensor with_contiguous_rows(const Tensor& x) {
  return !x.defined() || x.dim(-1) <= 1 || x.strides()[x.ndim() - 1] == 1 ? x : x.contiguous();
}

namespace kernels {

/// Rows of a [B,L,..] tensor whose last axis is contiguous; distances in elements.
template <class T>
struct TokenRows {
  T* data;
  int64_t batch_stride, row_stride;
  T* at(int64_t batch, int64_t token) const { return data + batch * batch_stride + token * row_stride; }
};

/// Of a tensor that is defined, or null.
template <class T>
TokenRows<const T> token_rows(const Tensor& x) {
  if (!x.defined()) return {};
  return {x.strided<T>().data, x.strides()[0], x.strides()[1]};
}

}  // namespace kernels
}  // namespace margay
