#include "ops/linear.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"linear", [] {
              const auto with_bias = [](const Tensors& in) { return Tensors{linear(in[0], in[1], in[2])}; };
              const auto without_bias = [](const Tensors& in) { return Tensors{linear(in[0], in[1])}; };
              return Samples{
                  {.inputs = {real({2, 3, 8}), real({5, 8}), real({5})}, .call = with_bias},
                  {.inputs = {real({13, 37}), real({35, 37})}, .call = without_bias, .name = "odd sizes, no bias"},
                  {.inputs = {real({7}), real({4, 7}), real({4})}, .call = with_bias, .name = "a vector"},
                  {.inputs = {real({1, 1}), real({1, 1}), real({1})}, .call = with_bias, .name = "size 1"},
                  {.inputs = {real({520, 2}), real({3, 2}), real({3})}, .call = with_bias, .name = "several groups"},
                  {.inputs = {real({21, 130}), real({2, 130}), real({2})}, .call = with_bias, .name = "deep"},
                  {.inputs = {real({0, 4}), real({3, 4}), real({3})}, .call = with_bias, .name = "no rows"},
                  {.inputs = {real({3, 0}), real({2, 0}), real({2})}, .call = with_bias, .name = "no columns"},
                  {.inputs = {real({3, 2}), real({0, 2}), real({0})}, .call = with_bias, .name = "no outputs"}};
            }};

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1, "x", x, "at least 1-D");
  op.require_like("weight", weight, "x", x);
  op.require(weight.ndim() == 2 && weight.dim(1) == x.dim(-1), "weight", weight, "[N, K], K = last axis of x {}", x);
  const int64_t N = weight.dim(0), K = weight.dim(1);
  if (bias.defined()) {
    op.require_like("bias", bias, "x", x);
    op.require(bias.shape() == Shape{N}, "bias", bias, "[N], N = first axis of weight {}", weight);
  }
  const Shape shape = x.shape().with(x.ndim() - 1, N);
  const int64_t rows = x.shape().without(x.ndim() - 1).numel();
  const Tensor input = x.contiguous(), matrix = weight.contiguous(), addend = bias.defined() ? bias.contiguous() : bias;
  const Tensor y = empty(shape, x.dtype(), x.device());
  const Precision precision = product_precision();
  op.launch<kernels::LinearFwd>(x, [&]<class T>(kernels::LinearFwd<T>& a) {
    const T* const start = addend.defined() ? addend.data<T>() : nullptr;
    a = {input.data<T>(), matrix.data<T>(), start, y.data<T>(), rows, N, K, precision};
  });
  const auto vjp = [x = Saved(input), weight = Saved(matrix), rows, N, K, precision](const VjpContext& context) {
    const Shape shapes[] = {x->shape(), weight->shape(), {N}};
    Tensors gradients(3);
    for (size_t i = 0; i < 3; ++i) {
      if (!context.wanted(i)) continue;
      gradients[i] = context.destination(i);
      if (!gradients[i].defined()) gradients[i] = empty(shapes[i], x->dtype(), x->device());
    }
    const int64_t scratch = kernels::LinearBwd<float>::workspace_size(rows, N, K);
    const Tensor workspace = empty({context.wanted(1) ? scratch : 0}, acc_dtype(x->dtype()), x->device());
    op.launch<kernels::LinearBwd>(*x, [&]<class T>(kernels::LinearBwd<T>& a) {
      const auto out = [&](size_t i) { return gradients[i].defined() ? gradients[i].data<T>() : nullptr; };
      const auto add = [&](size_t i) { return context.destination(i).defined(); };
      a = {x->data<T>(),
           weight->data<T>(),
           context.cotangent().data<T>(),
           out(0),
           out(1),
           out(2),
           add(0),
           add(1),
           add(2),
           workspace.data<acc_t<T>>(),
           rows,
           N,
           K,
           precision};
    });
    return gradients;
  };
  return op.record(y, {x, weight, bias}, vjp);
}

}  // namespace margay
