#include "ops/view.h"

#include <fmt/ranges.h>

#include <array>
#include <utility>

#include "engine/op.h"

namespace margay {
namespace {

template <class Call>
Sample sample(const SampleInput& input, Call call, const char* name = "") {
  return {.inputs = {input}, .call = [call](const Tensors& in) { return Tensors{call(in[0])}; }, .name = name};
}

const Op reshape_op{"reshape", [] {
                      const auto rows = [](const Tensor& x) { return reshape(x, {4, -1}); };
                      return Samples{sample(real({2, 3, 4}), rows),
                                     sample(
                                         real({2, 4, 3}),
                                         [](const Tensor& x) {
                                           return reshape(transpose(x, 1, 2), {4, 6});
                                         },
                                         "copy"),
                                     sample(
                                         real({6, 4}),
                                         [](const Tensor& x) {
                                           return reshape(x, {2, 1, 3, 2, 2, 1});
                                         },
                                         "axes split"),
                                     sample(
                                         real({1}), [](const Tensor& x) { return reshape(x, {}); }, "to 0-d"),
                                     sample(
                                         real({3, 0, 4}),
                                         [](const Tensor& x) {
                                           return reshape(x, {0, 5});
                                         },
                                         "empty"),
                                     sample(ids({8, 2}, 0, 9), rows, "integers"),
                                     sample(mask({8, 2}), rows, "booleans")};
                    }};

const Op flatten_op{"flatten", [] {
                      const auto middle = [](const Tensor& x) { return flatten(x, 1, -2); };
                      return Samples{sample(real({2, 3, 4}), [](const Tensor& x) { return flatten(x); }),
                                     sample(real({2, 3, 2, 3}), middle, "inner axes"),
                                     sample(
                                         real({}), [](const Tensor& x) { return flatten(x); }, "0-d"),
                                     sample(real({2, 0, 3, 2}), middle, "empty"),
                                     sample(ids({2, 2, 2, 3}, 0, 9), middle, "integers")};
                    }};

const Op squeeze_op{"squeeze", [] {
                      const auto call = [](const Tensor& x) { return squeeze(x, -2); };
                      return Samples{sample(real({3, 1, 4}), call), sample(real({1, 1}), call, "size 1"),
                                     sample(real({0, 1, 2}), call, "empty"), sample(mask({2, 1, 3}), call, "booleans")};
                    }};

const Op unsqueeze_op{"unsqueeze", [] {
                        const auto last = [](const Tensor& x) { return unsqueeze(x, -1); };
                        return Samples{sample(real({3, 4}), [](const Tensor& x) { return unsqueeze(x, 1); }),
                                       sample(real({3, 4}), last, "last"), sample(real({}), last, "0-d"),
                                       sample(real({0, 2}), last, "empty"),
                                       sample(ids({2, 3}, 0, 9), last, "integers")};
                      }};

const Op transpose_op{"transpose", [] {
                        const auto call = [](const Tensor& x) { return transpose(x, 0, -1); };
                        return Samples{sample(real({2, 3, 4}), call), sample(real({1, 5}), call, "size 1"),
                                       sample(real({3}), call, "with itself"), sample(real({3, 0}), call, "empty"),
                                       sample(ids({2, 3}, 0, 9), call, "integers")};
                      }};

const Op permute_op{"permute", [] {
                      const auto call = [](const Tensor& x) { return permute(x, {2, 0, -2}); };
                      return Samples{sample(real({2, 3, 4}), call), sample(real({1, 3, 1}), call, "size 1"),
                                     sample(
                                         real({}), [](const Tensor& x) { return permute(x, {}); }, "0-d"),
                                     sample(real({0, 3, 2}), call, "empty"), sample(mask({2, 3, 2}), call, "booleans")};
                    }};

const Op slice_op{"slice", [] {
                    const auto inner = [](const Tensor& x) { return slice(x, 1, 1, -1); };
                    return Samples{sample(real({3, 5, 2}), inner),
                                   sample(
                                       real({7, 2}), [](const Tensor& x) { return slice(x, 0, 1, 7, 3); }, "steps"),
                                   sample(
                                       real({4, 3}), [](const Tensor& x) { return slice(x, -1, 3, 3); }, "nothing"),
                                   sample(real({0, 4}), inner, "empty"), sample(ids({3, 5}, 0, 9), inner, "integers")};
                  }};

const Op select_op{"select", [] {
                     const auto call = [](const Tensor& x) { return select(x, 1, -1); };
                     return Samples{sample(real({3, 5, 2}), call), sample(real({2, 1}), call, "size 1"),
                                    sample(
                                        real({4}), [](const Tensor& x) { return select(x, 0, 2); }, "to 0-d"),
                                    sample(real({0, 4}), call, "empty"), sample(mask({3, 5}), call, "booleans")};
                   }};

const Op expand_op{"expand", [] {
                     const auto call = [](const Tensor& x) { return expand(x, {2, -1, 4, 3}); };
                     return Samples{sample(real({5, 1, 3}), call), sample(real({5, 4, 1}), call, "last axis"),
                                    sample(
                                        real({}),
                                        [](const Tensor& x) {
                                          return expand(x, {2, 3});
                                        },
                                        "0-d"),
                                    sample(
                                        real({3, 1}),
                                        [](const Tensor& x) {
                                          return expand(x, {3, 0});
                                        },
                                        "to nothing"),
                                    sample(ids({5, 1, 3}, 0, 9), call, "integers")};
                   }};
// Strides under which the elements of `shape` and `strides` are read in row-major order as `target`, a shape of as many
// elements; false if there are none. The axes of `shape` are first merged into runs of evenly spaced elements; then
// each run, innermost first, has to divide into axes of `target`.
bool view_strides(const Shape& shape, const Shape& strides, const Shape& target, Shape& out) {
  out = contiguous_strides(target);
  if (target.numel() == 0) return true;
  Shape run_sizes, run_strides;  // innermost first
  for (int axis = shape.ndim() - 1; axis >= 0; --axis) {
    if (shape[axis] == 1) continue;
    const int last = run_sizes.ndim() - 1;
    if (last >= 0 && strides[axis] == run_strides[last] * run_sizes[last]) {
      run_sizes[last] *= shape[axis];
    } else {
      run_sizes.push_back(shape[axis]);
      run_strides.push_back(strides[axis]);
    }
  }
  int next_run = 0;
  int64_t left = 1, stride = 1;  // of the current run
  for (int axis = target.ndim() - 1; axis >= 0; --axis) {
    if (target[axis] == 1) continue;
    if (left == 1) {
      left = run_sizes[next_run];
      stride = run_strides[next_run++];
    }
    if (left % target[axis] != 0) return false;
    out[axis] = stride;
    stride *= target[axis];
    left /= target[axis];
  }
  return true;
}

void require_defined(const Op& op, const Tensor& x) { op.require(x.defined(), "x", x, "a tensor"); }

// x's elements under another shape of as many elements, with x's history.
Tensor reshaped(const Op& op, const Tensor& x, const Shape& shape) {
  const OpScope scope(op.name());
  Shape strides;
  const bool viewable = view_strides(x.shape(), x.strides(), shape, strides);
  const Tensor y = viewable ? x.view(shape, strides) : x.clone().view(shape, contiguous_strides(shape));
  return op.record(
      y, {x}, [shape = x.shape()](const Tensor& dy) { return Tensors{reshape(dy, shape)}; }, CotangentLayout::strided);
}

// The view `part(x)` of a part of x, with x's history. Its gradient is dy in that part and zeros around it.
template <class Part>
Tensor part_of(const Op& op, const Tensor& x, const Part& part) {
  return op.record(
      part(x), {x},
      [shape = x.shape(), part](const VjpContext& context) {
        const Tensor &dy = context.cotangent(), &destination = context.destination(0);
        if (destination.defined()) {
          backend(dy.device()).accumulate(part(destination).region(), dy.region());
          return Tensors{destination};
        }
        const Tensor dx = zeros(shape, dy.dtype(), dy.device());
        part(dx).copy_from(dy);
        return Tensors{dx};
      },
      CotangentLayout::strided);
}

}  // namespace

Tensor reshape(const Tensor& x, const Shape& shape) {
  require_defined(reshape_op, x);
  Shape target = shape;
  int inferred = -1;
  int64_t known = 1;
  bool fits = true;
  for (int axis = 0; axis < shape.ndim(); ++axis) {
    if (shape[axis] == -1 && inferred < 0) {
      inferred = axis;
    } else {
      fits = fits && shape[axis] >= 0 && !__builtin_mul_overflow(known, shape[axis], &known);
    }
  }
  const int64_t count = x.numel();
  fits = fits && (inferred < 0 ? known == count : known > 0 && count % known == 0);
  reshape_op.require(fits, "shape", to_string(shape), "a shape (with at most one -1) of the {} elements of x {}", count,
                     x);
  if (inferred >= 0) target[inferred] = count / known;
  return reshaped(reshape_op, x, target);
}

Tensor flatten(const Tensor& x, int first_axis, int last_axis) {
  require_defined(flatten_op, x);
  if (x.ndim() == 0) return reshaped(flatten_op, x, {1});
  const int first = flatten_op.axis(first_axis, x), last = flatten_op.axis(last_axis, x);
  flatten_op.require(first <= last, "last_axis", last_axis, "at or behind axis {} of {}", first_axis, x);
  Shape shape;
  for (int axis = 0; axis < x.ndim(); ++axis) {
    if (axis <= first || axis > last) {
      shape.push_back(x.dim(axis));
    } else {
      shape[first] *= x.dim(axis);
    }
  }
  return reshaped(flatten_op, x, shape);
}

Tensor squeeze(const Tensor& x, int axis) {
  require_defined(squeeze_op, x);
  const int index = squeeze_op.axis(axis, x);
  squeeze_op.require(x.dim(index) == 1, "axis", axis, "an axis of size 1 of {}", x);
  return reshaped(squeeze_op, x, x.shape().without(index));
}

Tensor unsqueeze(const Tensor& x, int axis) {
  require_defined(unsqueeze_op, x);
  const int ndim = x.ndim() + 1, index = axis < 0 ? axis + ndim : axis;
  unsqueeze_op.require(ndim <= kMaxDims, "x", x, "of less than {} axes", kMaxDims);
  unsqueeze_op.require(index >= 0 && index < ndim, "axis", axis, "from {} to {} for {}", -ndim, ndim - 1, x);
  Shape shape;
  for (int i = 0; i < ndim; ++i) shape.push_back(i == index ? 1 : x.dim(i < index ? i : i - 1));
  return reshaped(unsqueeze_op, x, shape);
}

Tensor transpose(const Tensor& x, int axis_a, int axis_b) {
  require_defined(transpose_op, x);
  const int a = transpose_op.axis(axis_a, x), b = transpose_op.axis(axis_b, x);
  Shape shape = x.shape(), strides = x.strides();
  std::swap(shape[a], shape[b]);
  std::swap(strides[a], strides[b]);
  return transpose_op.record(
      x.view(shape, strides), {x}, [a, b](const Tensor& dy) { return Tensors{transpose(dy, a, b)}; },
      CotangentLayout::strided);
}

Tensor permute(const Tensor& x, std::span<const int> axes) {
  require_defined(permute_op, x);
  const int ndim = x.ndim();
  std::array<int, kMaxDims> inverse;
  inverse.fill(-1);
  Shape shape, strides;
  bool each_once = static_cast<int>(axes.size()) == ndim;
  for (int i = 0; i < ndim && each_once; ++i) {
    const int wanted = axes[static_cast<size_t>(i)], axis = wanted < 0 ? wanted + ndim : wanted;
    each_once = axis >= 0 && axis < ndim && inverse[static_cast<size_t>(axis)] < 0;
    if (!each_once) break;
    inverse[static_cast<size_t>(axis)] = i;
    shape.push_back(x.dim(axis));
    strides.push_back(x.strides()[axis]);
  }
  permute_op.require(each_once, "axes", fmt::format("[{}]", fmt::join(axes, ",")), "each axis of {} once", x);
  return permute_op.record(
      x.view(shape, strides), {x},
      [inverse, ndim](const Tensor& dy) {
        return Tensors{permute(dy, std::span(inverse).first(static_cast<size_t>(ndim)))};
      },
      CotangentLayout::strided);
}

Tensor slice(const Tensor& x, int axis, int64_t start, int64_t end, int64_t step) {
  require_defined(slice_op, x);
  const int index = slice_op.axis(axis, x);
  const int64_t size = x.dim(index), first = start < 0 ? start + size : start, last = end < 0 ? end + size : end;
  slice_op.require(first >= 0 && first <= size, "start", start, "in the {} elements of axis {} of {}", size, axis, x);
  slice_op.require(last >= first && last <= size, "end", end, "from start {} to {}, the size of axis {} of {}", start,
                   size, axis, x);
  slice_op.require(step >= 1, "step", step, "at least 1");
  const int64_t count = last == first ? 0 : (last - first - 1) / step + 1;
  const int64_t stride_factor = count > 1 ? step : 1;  // a step beyond the end could overflow
  const auto part = [index, first, count, stride_factor](const Tensor& tensor) {
    const int64_t stride = tensor.strides()[index];
    return tensor.view(tensor.shape().with(index, count), tensor.strides().with(index, stride * stride_factor),
                       stride * first);
  };
  return part_of(slice_op, x, part);
}

Tensor select(const Tensor& x, int axis, int64_t index) {
  require_defined(select_op, x);
  const int a = select_op.axis(axis, x);
  const int64_t size = x.dim(a), element = index < 0 ? index + size : index;
  select_op.require(element >= 0 && element < size, "index", index, "one of the {} elements of axis {} of {}", size,
                    axis, x);
  const auto part = [a, element](const Tensor& tensor) {
    return tensor.view(tensor.shape().without(a), tensor.strides().without(a), tensor.strides()[a] * element);
  };
  return part_of(select_op, x, part);
}

Tensor expand(const Tensor& x, const Shape& shape) {
  require_defined(expand_op, x);
  Shape target = shape;
  const int lead = shape.ndim() - x.ndim();
  bool fits = lead >= 0;
  for (int axis = 0; axis < shape.ndim() && fits; ++axis) {
    const int64_t size = axis < lead ? 1 : x.dim(axis - lead);
    if (shape[axis] == -1 && axis >= lead) target[axis] = size;
    fits = target[axis] >= 0 && (size == target[axis] || size == 1);
  }
  expand_op.require(fits, "shape", to_string(shape), "a shape to which x {} broadcasts", x);
  return expand_op.record(
      x.view(target, broadcast_strides(x.shape(), x.strides(), target)), {x},
      [](const Tensor& dy) { return Tensors{dy}; }, CotangentLayout::strided);
}

}  // namespace margay
