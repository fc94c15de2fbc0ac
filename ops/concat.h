#pragma once
#include <array>
#include <initializer_list>
#include <span>

#include "engine/op.h"

namespace margay {

/// Tensors of any dtype joined along an existing axis: [.., n_0, ..], [.., n_1, ..] ... -> [.., n_0 + n_1 + ..., ..],
/// contiguous. Throws OpError for no tensors, or if dtypes, devices or the other sizes differ.
Tensor concat(std::span<const Tensor> tensors, int axis);
inline Tensor concat(std::initializer_list<Tensor> tensors, int axis) {
  return concat(std::span(tensors.begin(), tensors.size()), axis);
}

/// n tensors of one shape joined along a new axis of size n that becomes axis `axis` of the result, contiguous;
/// negative axes count from the end of the result. Throws OpError for no tensors, or if shapes, dtypes or devices
/// differ.
Tensor stack(std::span<const Tensor> tensors, int axis);
inline Tensor stack(std::initializer_list<Tensor> tensors, int axis) {
  return stack(std::span(tensors.begin(), tensors.size()), axis);
}

/// x cut along an axis into views of the given sizes, one after the other. One recorded op: its gradient is one buffer
/// into which all cotangents are copied. Throws OpError unless the sizes sum to that of the axis.
Tensors split(const Tensor& x, int axis, std::span<const int64_t> sizes);
inline Tensors split(const Tensor& x, int axis, std::initializer_list<int64_t> sizes) {
  return split(x, axis, std::span(sizes.begin(), sizes.size()));
}

/// split() into n >= 1 equal parts. Throws OpError if n does not divide the size of the axis.
Tensors chunk(const Tensor& x, int axis, int64_t n);

namespace kernels {

/// Row r of y [rows, sum of lengths] is row r of all parts, one behind the other. The rows of a part are contiguous and
/// `stride` elements apart.
template <class T>
struct JoinRows {
  using dtypes = AllTypes;
  struct Part {
    const T* data;
    int64_t length, stride;
  };
  static constexpr size_t kMaxParts = 8;
  std::array<Part, kMaxParts> parts;
  size_t count;
  T* y;
  int64_t rows, row_length;
};
template <class T>
void run(Cpu, const JoinRows<T>&);
template <class T>
void run(Cuda, const JoinRows<T>&);

}  // namespace kernels
}  // namespace margay
