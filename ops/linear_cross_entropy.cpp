#include "ops/linear_cross_entropy.h"

#include <array>

#include "engine/launch.h"
#include "ops/label_rows.h"

namespace margay {
namespace {

using kernels::LinearCrossEntropyBwd;
using kernels::LinearCrossEntropyFwd;

Tensors outputs(const Tensor& h, const Tensor& weight, const Tensor& targets) {
  const LinearCrossEntropy result = linear_cross_entropy(h, weight, targets);
  return {result.loss, result.nll, result.argmax};
}

const Op op{"linear_cross_entropy", [] {
              const auto call = [](const Tensors& in) { return outputs(in[0], in[1], in[2]); };
              const auto ignoring = [](const Tensors& in) {
                std::vector<int32_t> targets = in[2].to_vector<int32_t>();
                for (size_t r = 0; r < targets.size(); ++r)
                  if (r % 3 == 0) targets[r] = kIgnoredTarget;
                return outputs(in[0], in[1], from_values(targets, in[2].shape(), in[2].device()));
              };
              return Samples{
                  {.inputs = {real({5, 3}), real({7, 3}), ids({5}, 0, 7)}, .call = call},
                  {.inputs = {real({10, 5}), real({33, 5}), ids({10}, 0, 33)}, .call = ignoring, .name = "ignored"},
                  {.inputs = {real({3, 2}), real({600, 2}), ids({3}, 0, 600)}, .call = call, .name = "groups of words"},
                  {.inputs = {real({300, 2}), real({9, 2}), ids({300}, 0, 9)}, .call = call, .name = "groups of rows"},
                  {.inputs = {real({3, 2}, 5, 9), real({4, 2}, -9, 9), ids({3}, 0, 4)}, .call = call, .name = "peaked"},
                  {.inputs = {real({2, 1}), real({1, 1}), ids({2}, 0, 1)}, .call = call, .name = "one word"},
                  {.inputs = {real({1, 3}), real({4, 3}), ids({1}, 0, 4)}, .call = ignoring, .name = "no labels"},
                  {.inputs = {real({0, 3}), real({4, 3}), ids({0}, 0, 4)}, .call = call, .name = "no rows"},
                  {.inputs = {real({2, 0}), real({4, 0}), ids({2}, 0, 4)}, .call = call, .name = "no features"}};
            }};

void check(const Tensor& h, const Tensor& weight, const Tensor& targets) {
  op.require_float("h", h);
  op.require(h.ndim() == 2, "h", h, "[R, d]");
  op.require_like("weight", weight, "h", h);
  op.require(weight.ndim() == 2 && weight.dim(1) == h.dim(1), "weight", weight, "[V, d], d = last axis of h {}", h);
  op.require(targets.defined() && targets.dtype() == DType::i32 && targets.shape() == Shape{h.dim(0)} &&
                 targets.device() == h.device(),
             "targets", targets, "i32 [R] on the same device, R = first axis of h {}", h);
}

template <class T>
kernels::KeptExponentials<T> kept_exponentials(const Tensor& kept, int64_t n, int64_t V) {
  if (!kept.defined()) return {};
  return {kept.data<T>(), kept.data<T>() + n * V};
}

}  // namespace

LinearCrossEntropy linear_cross_entropy(const Tensor& h, const Tensor& weight, const Tensor& targets) {
  check(h, weight, targets);
  const int64_t R = h.dim(0), d = h.dim(1), V = weight.dim(0);
  const Tensor rows = label_rows(op, targets, V), ids = targets.contiguous();
  const Tensor input = h.contiguous(), matrix = weight.contiguous();
  const int64_t n = rows.dim(0);
  const auto make = [&](const Shape& shape) { return empty(shape, h.dtype(), h.device()); };
  const Tensor hidden = n == R ? input : make({n, d});
  const Tensor loss = make({}), nll = make({R}), row_max = make({n}), inv_sum = make({n});
  const Tensor argmax = empty({R}, DType::i32, h.device());
  const DeviceType on = h.device().type;
  const Tensor workspace = make({LinearCrossEntropyFwd<float>::workspace_size(on, n, V, d)});
  const Tensor best = empty({LinearCrossEntropyFwd<float>::best_size(on, n, V, d)}, DType::i32, h.device());
  const Precision precision = product_precision();
  Tensor kept;
  op.launch<LinearCrossEntropyFwd>(h, [&]<class T>(LinearCrossEntropyFwd<T>& a) {
    const int64_t size = Graph::recording(std::array{h, weight}) ? kernels::KeptExponentials<T>::size(on, n, V, d) : 0;
    if (size > 0) kept = make({size});
    a = {input.data<T>(),
         matrix.data<T>(),
         ids.data<int32_t>(),
         rows.data<int32_t>(),
         hidden.data<T>(),
         loss.data<T>(),
         nll.data<T>(),
         row_max.data<T>(),
         inv_sum.data<T>(),
         argmax.data<int32_t>(),
         workspace.data<T>(),
         best.data<int32_t>(),
         kept_exponentials<T>(kept, n, V),
         R,
         V,
         d,
         n,
         precision};
  });
  const auto vjp = [hidden = Saved(hidden), weight = Saved(matrix), targets = Saved(ids), rows, row_max, inv_sum, kept,
                    R, precision](const VjpContext& context) {
    const int64_t n = hidden->dim(0), d = hidden->dim(1), V = weight->dim(0);
    const Tensor &dloss = context.cotangent(0), &dnll = context.cotangent(1);
    Tensor dh, dweight = context.destination(1);
    if (context.wanted(0)) dh = empty({R, d}, hidden->dtype(), hidden->device());
    if (context.wanted(1) && !dweight.defined()) dweight = empty_like(weight);
    const Tensor workspace = empty({LinearCrossEntropyBwd<float>::workspace_size(hidden->device().type, n, V, d)},
                                   hidden->dtype(), hidden->device());
    op.launch<LinearCrossEntropyBwd>(*hidden, [&]<class T>(LinearCrossEntropyBwd<T>& a) {
      const auto pointer = [](const Tensor& tensor) { return tensor.defined() ? tensor.data<T>() : nullptr; };
      a = {hidden->data<T>(),
           weight->data<T>(),
           targets->data<int32_t>(),
           rows.data<int32_t>(),
           row_max.data<T>(),
           inv_sum.data<T>(),
           pointer(dloss),
           pointer(dnll),
           pointer(dh),
           pointer(dweight),
           context.destination(1).defined(),
           workspace.data<T>(),
           kept_exponentials<T>(kept, n, V),
           R,
           V,
           d,
           n,
           precision};
    });
    return Tensors{dh, dweight, {}};
  };
  op.record(Tensors{loss, nll, argmax}, {h, weight, targets}, vjp);
  return {loss, nll, argmax};
}

}  // namespace margay
