#pragma once
#include <array>
#include <cstdint>

#include "engine/parallel.h"
#include "engine/shape.h"

namespace margay {

/// Element offsets of N operands that are walked together.
template <int N>
using Offsets = std::array<int64_t, N>;

/// A loop nest over N strided operands of one shape, with axes of size 1 dropped and neighbouring axes merged wherever
/// every operand allows it: contiguous operands become one long row.
template <int N>
class StridedLoop {
 public:
  StridedLoop(const Shape& shape, const std::array<Shape, N>& strides) {
    for (int axis = 0; axis < shape.ndim(); ++axis) append(shape, strides, axis);
    if (shape_.ndim() == 0) {
      shape_.push_back(1);
      for (Shape& s : strides_) s.push_back(1);
    }
    rows_ = 1;
    for (int axis = 0; axis + 1 < shape_.ndim(); ++axis) rows_ *= shape_[axis];
  }

  /// Number of rows, i.e. of steps of all but the innermost axis.
  int64_t rows() const { return rows_; }
  /// Length of a row and the operands' strides along it.
  int64_t row_length() const { return shape_[shape_.ndim() - 1]; }
  int64_t row_stride(int operand) const { return strides_[static_cast<size_t>(operand)][shape_.ndim() - 1]; }
  /// Where row `row` starts in each operand.
  Offsets<N> row_offsets(int64_t row) const {
    const std::array<int64_t, kMaxDims> index = row_index(row);
    Offsets<N> offsets{};
    for (int axis = 0; axis < shape_.ndim() - 1; ++axis)
      for (size_t i = 0; i < N; ++i) offsets[i] += index[static_cast<size_t>(axis)] * strides_[i][axis];
    return offsets;
  }
  /// The loop nest itself: sizes of the merged axes, and an operand's strides along them.
  const Shape& shape() const { return shape_; }
  const Shape& strides(int operand) const { return strides_[static_cast<size_t>(operand)]; }

  /// Calls body(offsets, count) for stretches that together cover every element; the operands advance by row_stride
  /// inside a stretch. Stretches are cut by shape only and run in parallel.
  template <class Body>
  void run(Cpu cpu, const Body& body) const {
    constexpr int64_t grain = 32768;  // elements a piece: long enough to hide the cost of handing it out
    if (rows_ == 0 || row_length() == 0) return;
    if (rows_ == 1) {
      parallel_ranges(cpu, row_length(), grain, [&](int64_t begin, int64_t end) {
        Offsets<N> offsets{};
        for (size_t i = 0; i < N; ++i) offsets[i] = begin * row_stride(static_cast<int>(i));
        body(offsets, end - begin);
      });
    } else {
      const int64_t rows_per_piece = std::max<int64_t>(1, grain / row_length());
      parallel_ranges(cpu, rows_, rows_per_piece, [&](int64_t begin, int64_t end) {
        std::array<int64_t, kMaxDims> index = row_index(begin);
        Offsets<N> offsets = row_offsets(begin);
        for (int64_t row = begin; row < end; ++row, next_row(index, offsets)) body(offsets, row_length());
      });
    }
  }

 private:
  std::array<int64_t, kMaxDims> row_index(int64_t row) const {
    std::array<int64_t, kMaxDims> index{};
    for (int axis = shape_.ndim() - 2; axis >= 0; --axis) {
      index[static_cast<size_t>(axis)] = row % shape_[axis];
      row /= shape_[axis];
    }
    return index;
  }
  // Counts up like an odometer: divisions for every row would cost more than short rows do.
  void next_row(std::array<int64_t, kMaxDims>& index, Offsets<N>& offsets) const {
    for (int axis = shape_.ndim() - 2; axis >= 0; --axis) {
      int64_t& digit = index[static_cast<size_t>(axis)];
      const bool carry = ++digit == shape_[axis];
      const int64_t steps = carry ? 1 - digit : 1;
      for (size_t i = 0; i < N; ++i) offsets[i] += steps * strides_[i][axis];
      if (!carry) return;
      digit = 0;
    }
  }
  void append(const Shape& shape, const std::array<Shape, N>& strides, int axis) {
    const int64_t size = shape[axis];
    if (size == 1) return;
    const int last = shape_.ndim() - 1;
    bool merges = last >= 0;
    for (size_t i = 0; i < N && merges; ++i) merges = strides_[i][last] == strides[i][axis] * size;
    if (merges) {
      shape_[last] *= size;
      for (size_t i = 0; i < N; ++i) strides_[i][last] = strides[i][axis];
    } else {
      shape_.push_back(size);
      for (size_t i = 0; i < N; ++i) strides_[i].push_back(strides[i][axis]);
    }
  }

  Shape shape_;
  std::array<Shape, N> strides_;
  int64_t rows_ = 1;
};

}  // namespace margay
