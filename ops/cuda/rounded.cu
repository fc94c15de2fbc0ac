#include "ops/cuda/rounded.cuh"

#include "engine/device.h"

namespace margay::cuda {
namespace {

/// A thread rounds 8 neighbours of `from`, which start where `groups` says, or as many as are left of a row, which has
/// `row_groups` such groups, and appends zeros. `aligned`: groups start at multiples of 16 bytes.
template <class T>
__global__ void round_groups(const T* from, Nest<1> groups, int64_t row_length, int64_t row_groups, int64_t step,
                             bool aligned, bf16* to) {
  constexpr int count = 8;
  for (int64_t i = first_index(); i < groups.count; i += index_step()) {
    const T* const source = from + groups.offset(i);
    void* const destination = to + i * count;
    const int64_t left = row_length % count == 0 ? count : row_length - i % row_groups * count;
    T values[count];
    if (aligned && left >= count) {
      __builtin_memcpy(values, __builtin_assume_aligned(source, 16), sizeof(values));
    } else {
      for (int j = 0; j < count; ++j) values[j] = j < left ? source[j * step] : T(0.0f);
    }
    alignas(16) bf16 rounded[count];
    for (int j = 0; j < count; ++j) rounded[j] = bf16(float(values[j]));
    __builtin_memcpy(__builtin_assume_aligned(destination, 16), rounded, sizeof(rounded));
  }
}

}  // namespace

template <class T>
Rounded::Rounded(Cuda context, MatrixView<T> from, int64_t rows, int64_t columns, const Shape& stack,
                 const Shape& strides)
    : by_columns_(from.column != 1 && from.row == 1),
      outer_(by_columns_ ? columns : rows),
      groups_(((by_columns_ ? rows : columns) + kGroup - 1) / kGroup),
      memory_(backend(Device{DeviceType::cuda, context.index}).allocator(),
              static_cast<size_t>(stack.numel() * distance()) * sizeof(bf16)) {
  const int64_t step = by_columns_ ? from.row : from.column, outer_step = by_columns_ ? from.column : from.row;
  constexpr int64_t in_16_bytes = 16 / sizeof(T);
  bool aligned =
      reinterpret_cast<uintptr_t>(from.data) % 16 == 0 && step == 1 && (outer_ <= 1 || outer_step % in_16_bytes == 0);
  Shape sizes = stack, steps = strides;
  for (int axis = 0; axis < stack.ndim(); ++axis)
    aligned = aligned && (stack[axis] == 1 || strides[axis] % in_16_bytes == 0);
  sizes.push_back(outer_), steps.push_back(outer_step);
  sizes.push_back(groups_), steps.push_back(kGroup * step);
  const Nest<1> groups(StridedLoop<1>(sizes, {steps}));
  launch_elements(context, groups.count, round_groups<T>, from.data, groups, by_columns_ ? rows : columns, groups_,
                  step, aligned, static_cast<bf16*>(memory_.data()));
}

template Rounded::Rounded(Cuda, MatrixView<float>, int64_t, int64_t, const Shape&, const Shape&);
template Rounded::Rounded(Cuda, MatrixView<bf16>, int64_t, int64_t, const Shape&, const Shape&);

MatrixView<bf16> Rounded::view() const {
  const auto* const data = static_cast<const bf16*>(memory_.data());
  const int64_t ld = groups_ * kGroup;
  return by_columns_ ? MatrixView<bf16>{data, 1, ld} : MatrixView<bf16>{data, ld, 1};
}

}  // namespace margay::cuda
