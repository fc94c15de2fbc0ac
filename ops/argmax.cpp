#include "ops/argmax.h"

#include <limits>
#include <vector>

#include "engine/launch.h"
#include "ops/view.h"

namespace margay {
namespace {

const Op op{"argmax", no_grad("its result is integer"), [] {
              const auto along = [](int axis) {
                return [axis](const Tensors& in) { return Tensors{argmax(in[0], axis)}; };
              };
              const auto keeping = [](const Tensors& in) { return Tensors{argmax(in[0], 1, true)}; };
              return Samples{{.inputs = {distinct({5, 83})}, .call = along(-1)},
                             {.inputs = {distinct({3, 5, 4})}, .call = along(1), .name = "inner axis"},
                             {.inputs = {distinct({3, 5, 4})}, .call = keeping, .name = "axis kept"},
                             {.inputs = {constant({3, 40}, 0, 0)}, .call = along(-1), .name = "ties"},
                             {.inputs = {distinct({2, 1100})}, .call = along(-1), .name = "long rows"},
                             {.inputs = {constant({700, 1})}, .call = along(-1), .name = "size 1, several pieces"},
                             {.inputs = {constant({0, 3})}, .call = along(-1), .name = "empty"}};
            }};

Tensor with_axis_last(const Tensor& x, int axis) {
  std::vector<int> axes;
  for (int i = 0; i < x.ndim(); ++i)
    if (i != axis) axes.push_back(i);
  axes.push_back(axis);
  return permute(x, axes);
}

}  // namespace

Tensor argmax(const Tensor& x, int axis, bool keepdim) {
  const OpScope scope(op.name());
  op.require_float("x", x);
  const int a = op.axis(axis, x);
  op.require(x.dim(a) >= 1 && x.dim(a) <= std::numeric_limits<int32_t>::max(), "x", x,
             "of 1 to 2^31 - 1 elements along axis {}", axis);
  const Tensor rows = with_axis_last(x.detach(), a).contiguous();
  Tensor y = empty(keepdim ? x.shape().with(a, 1) : x.shape().without(a), DType::i32, x.device());
  op.launch<kernels::ArgMax>(rows, [&]<class T>(kernels::ArgMax<T>& args) {
    args = {rows.data<T>(), y.data<int32_t>(), y.numel(), x.dim(a)};
  });
  return y;
}

}  // namespace margay
