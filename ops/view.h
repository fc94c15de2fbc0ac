#pragma once
#include <initializer_list>
#include <span>

#include "engine/tensor.h"

namespace margay {

// Views of any dtype: no element is copied but by a reshape that has to. The gradient of a view is the inverse view.
// Negative axes count from the end. All throw OpError for an undefined x or an axis that x does not have.

/// The elements of x in row-major order under another shape; one size may be -1 and follows from the others
/// (none of which may be 0 then).
/// A view where x's strides permit, else a contiguous copy. Throws OpError if the number of elements differs.
Tensor reshape(const Tensor& x, const Shape& shape);

/// Axes first_axis ... last_axis (both included) as one; a 0-d x becomes [1]. A view where strides permit, else a copy.
Tensor flatten(const Tensor& x, int first_axis = 0, int last_axis = -1);

/// x without an axis of size 1. Throws OpError if its size is another.
Tensor squeeze(const Tensor& x, int axis);

/// x with a new axis of size 1 that becomes axis `axis` of the result, -x.ndim() - 1 <= axis <= x.ndim().
Tensor unsqueeze(const Tensor& x, int axis);

/// x with two axes swapped.
Tensor transpose(const Tensor& x, int axis_a, int axis_b);

/// Axis i of the result is axis axes[i] of x. Throws OpError unless every axis occurs once.
Tensor permute(const Tensor& x, std::span<const int> axes);
inline Tensor permute(const Tensor& x, std::initializer_list<int> axes) {
  return permute(x, std::span(axes.begin(), axes.size()));
}

/// Elements start, start + step, ... below `end` of an axis. Negative start and end count from the end of the axis.
/// Throws OpError unless 0 <= start <= end <= size of the axis (after that) and step >= 1.
Tensor slice(const Tensor& x, int axis, int64_t start, int64_t end, int64_t step = 1);

/// Element `index` of an axis, which is dropped; a negative index counts from the end. Throws OpError if out of range.
Tensor select(const Tensor& x, int axis, int64_t index);

/// x broadcast to `shape` as NumPy does: axes of size 1 and new leading axes are repeated, with stride 0; -1 keeps the
/// size of an axis of x. The gradient is summed over what was repeated. Throws OpError if x does not broadcast to it.
Tensor expand(const Tensor& x, const Shape& shape);

}  // namespace margay
