#include "ops/softmax.h"

#include <utility>

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples(Tensor (*function)(const Tensor&, int)) {
  const auto sample = [function](const Shape& shape, int axis, std::string name) {
    const auto call = [=](const Tensors& in) { return Tensors{function(in[0], axis)}; };
    return Sample{.inputs = {real(shape, -4, 4)}, .call = call, .name = std::move(name)};
  };
  return {sample({2, 3, 37}, -1, "odd width"),    sample({3, 5, 4}, 1, "middle axis"),
          sample({600, 2}, -1, "several pieces"), sample({6, 1}, -1, "width 1"),
          sample({2, 1100}, -1, "long rows"),     sample({0, 4}, -1, "no rows"),
          sample({3, 0}, 1, "no columns")};
}

const Op softmax_op{"softmax", [] { return samples(softmax); }};
const Op log_softmax_op{"log_softmax", [] { return samples(log_softmax); }};
const Op masked_softmax_op{
    "masked_softmax", [] {
      const auto call = [](const Tensors& in) { return Tensors{masked_softmax(in[0], in[1])}; };
      const auto sample = [call](const Shape& x, const Shape& mask_shape, std::string name) {
        return Sample{.inputs = {real(x, -4, 4), mask(mask_shape)}, .call = call, .name = std::move(name)};
      };
      return Samples{sample({5, 37}, {5, 37}, "own mask"),
                     sample({2, 3, 5, 5}, {5, 5}, "mask over leading axes"),
                     sample({2, 3, 4, 6}, {2, 1, 1, 6}, "mask over middle axes"),
                     sample({9, 1}, {9, 1}, "width 1"),
                     sample({4, 7}, {4, 1}, "whole rows"),
                     sample({0, 3}, {3}, "no rows")};
    }};

// The tensor with `axis` and its last axis exchanged.
Tensor exchange_axes(const Tensor& x, int axis) {
  Shape shape = x.shape(), strides = x.strides();
  std::swap(shape[axis], shape[x.ndim() - 1]);
  std::swap(strides[axis], strides[x.ndim() - 1]);
  return x.view(shape, strides);
}

Tensor apply(const Op& op, const Tensor& x, int axis, const Tensor& mask, bool log) {
  const bool last = axis == x.ndim() - 1;
  const Tensor input = exchange_axes(x, axis).contiguous(), y = empty_like(input);
  const int64_t C = input.dim(-1), rows = C ? x.numel() / C : 0;
  const int64_t mask_rows = mask.defined() && C ? mask.numel() / C : 0;
  op.launch<kernels::SoftmaxFwd>(x, [&]<class T>(kernels::SoftmaxFwd<T>& a) {
    a = {input.data<T>(), mask.defined() ? mask.data<bool>() : nullptr, y.data<T>(), rows, C, mask_rows, log};
  });
  const Tensor result = last ? y : exchange_axes(y, axis).contiguous();
  return op.record(result, {x}, [&op, y = Saved(y), axis, last, rows, C, log](const VjpContext& context) {
    const bool accumulate = last && context.destination(0).defined();
    const Tensor dy = exchange_axes(context.cotangent(), axis).contiguous();
    const Tensor dx = accumulate ? context.destination(0) : empty_like(dy);
    op.launch<kernels::SoftmaxBwd>(dy, [&]<class T>(kernels::SoftmaxBwd<T>& a) {
      a = {y->data<T>(), dy.data<T>(), dx.data<T>(), rows, C, log, accumulate};
    });
    return Tensors{last ? dx : exchange_axes(dx, axis)};
  });
}

// The mask in row-major order over the axes of `shape` along which it changes, without the leading ones along which it
// does not.
Tensor rows_of_mask(const Tensor& mask, const Shape& shape) {
  const Shape strides = broadcast_strides(mask.shape(), mask.strides(), shape);
  int first = 0;
  while (first + 1 < shape.ndim() && (strides[first] == 0 || shape[first] == 1)) ++first;
  Shape rows, row_strides;
  for (int axis = first; axis < shape.ndim(); ++axis) {
    rows.push_back(shape[axis]);
    row_strides.push_back(strides[axis]);
  }
  return mask.view(rows, row_strides).contiguous();
}

}  // namespace

Tensor softmax(const Tensor& x, int axis) {
  softmax_op.require_float("x", x);
  return apply(softmax_op, x, softmax_op.axis(axis, x), {}, false);
}

Tensor log_softmax(const Tensor& x, int axis) {
  log_softmax_op.require_float("x", x);
  return apply(log_softmax_op, x, log_softmax_op.axis(axis, x), {}, true);
}

Tensor masked_softmax(const Tensor& x, const Tensor& mask) {
  const Op& op = masked_softmax_op;
  op.require_float("x", x);
  const int last = op.axis(-1, x);
  Shape shape;
  op.require(mask.defined() && mask.dtype() == DType::boolean && mask.device() == x.device() &&
                 broadcast(mask.shape(), x.shape(), shape) && shape == x.shape(),
             "mask", mask, "bool on the device of x {} and broadcastable to it", x);
  return apply(op, x, last, rows_of_mask(mask, x.shape()), false);
}

}  // namespace margay
