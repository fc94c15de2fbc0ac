#include "ops/conv1d_causal.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples();
const Op op{"conv1d_causal", samples};

Sample sample_of(const char* name, const Shape& x, const Shape& weight, bool bias = false, bool initial = false) {
  Sample sample;
  sample.name = name;
  sample.inputs = {real(x), real(weight)};
  if (bias) sample.inputs.push_back(real({x[2]}));
  if (initial) sample.inputs.push_back(real({x[0], weight[weight.ndim() - 1] - 1, x[2]}));
  sample.call = [bias, initial](const Tensors& in) {
    return Tensors{conv1d_causal(in[0], in[1], bias ? in[2] : Tensor(), initial ? in[bias ? 3 : 2] : Tensor())};
  };
  return sample;
}

Samples samples() {
  return {sample_of("depthwise", {2, 9, 6}, {6, 3}),
          sample_of("shared", {2, 9, 6}, {3}, true),
          sample_of("per head", {3, 7, 20}, {4, 4}, true),
          sample_of("initial state", {2, 5, 7}, {7, 4}, true, true),
          sample_of("initial state longer than x", {2, 3, 8}, {2, 7}, false, true),
          sample_of("filter longer than x", {1, 6, 5}, {5, 21}, true),
          sample_of("long filter", {1, 50, 3}, {3, 40}),
          sample_of("long filter, initial state", {1, 20, 17}, {17, 13}, false, true),
          sample_of("width 1", {2, 4, 3}, {3, 1}, true, true),
          sample_of("one token", {2, 1, 16}, {16, 4}, true, true),
          sample_of("many short sequences", {70, 2, 2}, {2, 2}, true),
          sample_of("several stretches of time", {1, 530, 1}, {1, 5}, true, true),
          sample_of("several vectors", {1, 10, 49}, {49, 5}, true, true),
          sample_of("no tokens", {2, 0, 4}, {4, 3}, true, true),
          sample_of("no channels", {2, 3, 0}, {3}, true, true),
          sample_of("no sequences", {0, 3, 4}, {2, 3}, true, true)};
}

// x itself where its last axis is contiguous in memory.
Tensor with_contiguous_channels(const Tensor& x) { return x.dim(2) <= 1 || x.strides()[2] == 1 ? x : x.contiguous(); }

kernels::ConvShape check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& initial) {
  op.require_float("x", x);
  op.require(x.ndim() == 3, "x", x, "[B,L,C]");
  op.require_like("weight", weight, "x", x);
  const int64_t C = x.dim(2), filters = weight.ndim() == 2 ? weight.dim(0) : 1;
  op.require(
      (weight.ndim() == 1 || weight.ndim() == 2) && weight.dim(-1) > 0 && (filters > 0 ? C % filters == 0 : C == 0),
      "weight", weight, "[W], [H,W] with C % H == 0 or [C,W], W > 0, C = last axis of x {}", x);
  const int64_t W = weight.dim(-1);
  if (bias.defined()) {
    op.require_like("bias", bias, "x", x);
    op.require(bias.shape() == Shape{C}, "bias", bias, "[C], C = last axis of x {}", x);
  }
  if (initial.defined()) {
    op.require_like("initial", initial, "x", x);
    op.require(initial.shape() == Shape{x.dim(0), W - 1, C}, "initial", initial, "[B,{},C] for x {} and weight {}",
               W - 1, x, weight);
  }
  return {x.dim(0), x.dim(1), C, W, filters};
}

struct Call {
  kernels::ConvShape shape;
  Saved x, weight, initial;
};

Tensors pull_back(const Call& call, const VjpContext& context) {
  const kernels::ConvShape& s = call.shape;
  const Tensor dy = with_contiguous_channels(context.cotangent());
  const Tensor& x = call.x;
  const auto gradient = [&](size_t input, const Shape& shape) {
    return context.wanted(input) ? empty(shape, x.dtype(), x.device()) : Tensor();
  };
  const Tensor dx = gradient(0, x.shape()), dweight = gradient(1, call.weight->shape());
  const Tensor dbias = gradient(2, {s.C}), dinitial = gradient(3, {s.B, s.W - 1, s.C});
  Tensor workspace;
  op.launch<kernels::Conv1dCausalBwd>(x, [&]<class T>(kernels::Conv1dCausalBwd<T>& a) {
    const auto pointer = [](const Tensor& t) { return t.defined() ? t.data<T>() : nullptr; };
    workspace = empty({a.workspace_size(s)}, acc_dtype(x.dtype()), x.device());
    a = {.shape = s,
         .x = x.strided<T>().data,
         .dy = dy.strided<T>().data,
         .x_batch = x.strides()[0],
         .x_row = x.strides()[1],
         .dy_batch = dy.strides()[0],
         .dy_row = dy.strides()[1],
         .weight = call.weight->data<T>(),
         .initial = pointer(call.initial),
         .dx = pointer(dx),
         .dweight = pointer(dweight),
         .dbias = pointer(dbias),
         .dinitial = pointer(dinitial),
         .workspace = workspace.data<acc_t<T>>()};
  });
  return {dx, dweight, dbias, dinitial};
}

}  // namespace

Tensor conv1d_causal(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& initial) {
  const kernels::ConvShape shape = check(x, weight, bias, initial);
  const Call call{shape, Saved(with_contiguous_channels(x)), Saved(weight.contiguous()),
                  Saved(initial.defined() ? initial.contiguous() : initial)};
  const Tensor offset = bias.defined() ? bias.contiguous() : bias;
  const Tensor y = empty_like(x);
  Tensor workspace;
  op.launch<kernels::Conv1dCausalFwd>(x, [&]<class T>(kernels::Conv1dCausalFwd<T>& a) {
    workspace = empty({a.workspace_size(shape)}, acc_dtype(x.dtype()), x.device());
    a = {.shape = shape,
         .x = call.x->strided<T>().data,
         .x_batch = call.x->strides()[0],
         .x_row = call.x->strides()[1],
         .weight = call.weight->data<T>(),
         .bias = offset.defined() ? offset.data<T>() : nullptr,
         .initial = initial.defined() ? call.initial->data<T>() : nullptr,
         .y = y.data<T>(),
         .workspace = workspace.data<acc_t<T>>()};
  });
  return op.record(
      y, {x, weight, bias, initial}, [call](const VjpContext& context) { return pull_back(call, context); },
      CotangentLayout::strided);
}

}  // namespace margay
