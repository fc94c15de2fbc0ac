#pragma once
#include <cstdint>

#include "engine/host_device.h"
#include "engine/strided.h"

namespace margay::cuda {

/// A StridedLoop over N operands as plain data that kernels take by value: from the number of an element, in row-major
/// order, to its offset in each operand.
template <int N>
struct Nest {
  int64_t count = 0;  // of elements
  int64_t size[kMaxDims] = {};
  int64_t stride[N][kMaxDims] = {};
  int ndim = 0;

  explicit Nest(const StridedLoop<N>& loop) : count(loop.shape().numel()), ndim(loop.shape().ndim()) {
    for (int axis = 0; axis < ndim; ++axis) {
      size[axis] = loop.shape()[axis];
      for (int operand = 0; operand < N; ++operand) stride[operand][axis] = loop.strides(operand)[axis];
    }
  }

  bool contiguous() const {
    bool all = ndim == 1;
    for (int operand = 0; operand < N; ++operand) all = all && (stride[operand][0] == 1 || size[0] <= 1);
    return all;
  }

  /// Whether an operand has one element for all of a row, a row being what differs in the index of the last axis alone.
  HOST_DEVICE bool repeats(int operand) const { return stride[operand][ndim - 1] == 0; }
  /// Whether its rows are contiguous and start at multiples of n elements.
  bool has_rows_of(int operand, int64_t n) const {
    bool all = stride[operand][ndim - 1] == 1;
    for (int axis = 0; axis + 1 < ndim; ++axis) all = all && stride[operand][axis] % n == 0;
    return all;
  }

  HOST_DEVICE void offsets(int64_t index, int64_t (&at)[N]) const {
    // Division of 64-bit numbers takes a GPU several times as long.
    if (count <= int64_t{0xffffffff}) {
      split(static_cast<uint32_t>(index), at);
    } else {
      split(index, at);
    }
  }
  /// The offset of the only operand.
  HOST_DEVICE int64_t offset(int64_t index) const {
    static_assert(N == 1);
    int64_t at[N];
    offsets(index, at);
    return at[0];
  }

 private:
  template <class Index>
  HOST_DEVICE void split(Index index, int64_t (&at)[N]) const {
    for (int operand = 0; operand < N; ++operand) at[operand] = 0;
    for (int axis = ndim - 1; axis >= 0; --axis) {
      const auto length = static_cast<Index>(size[axis]);
      const Index rest = axis > 0 ? index / length : 0;
      const auto digit = static_cast<int64_t>(index - rest * length);
      for (int operand = 0; operand < N; ++operand) at[operand] += digit * stride[operand][axis];
      index = rest;
    }
  }
};

}  // namespace margay::cuda
