#include "ops/cross_entropy.h"

#include "engine/launch.h"
#include "ops/label_rows.h"

namespace margay {
namespace {

const Op op{"cross_entropy", [] {
              const auto call = [](const Tensors& in) {
                const CrossEntropy result = cross_entropy(in[0], in[1]);
                return Tensors{result.loss, result.nll, result.argmax};
              };
              const auto ignoring = [](const Tensors& in) {
                const std::vector<int32_t> ids = in[1].to_vector<int32_t>();
                std::vector<int32_t> targets;
                for (const int32_t id : ids) targets.push_back(id % 3 == 0 ? kIgnoredTarget : id);
                const CrossEntropy result = cross_entropy(in[0], from_values(targets, in[1].shape(), in[1].device()));
                return Tensors{result.loss, result.nll, result.argmax};
              };
              return Samples{
                  {.inputs = {real({5, 7}, -3, 3), ids({5}, 0, 7)}, .call = call},
                  {.inputs = {real({9, 35}, -3, 3), ids({9}, 0, 35)}, .call = ignoring, .name = "ignored rows"},
                  {.inputs = {real({3, 4}, -30, 30), ids({3}, 0, 4)}, .call = call, .name = "peaked"},
                  {.inputs = {real({3, 1}), ids({3}, 0, 1)}, .call = call, .name = "one class"},
                  {.inputs = {real({2, 1100}, -3, 3), ids({2}, 0, 1100)}, .call = call, .name = "many classes"},
                  {.inputs = {real({3, 4}), ids({3}, 0, 1)}, .call = ignoring, .name = "no labels"},
                  {.inputs = {real({0, 4}), ids({0}, 0, 4)}, .call = call, .name = "no rows"},
                  {.inputs = {real({0, 0}), ids({0}, 0, 1)}, .call = call, .name = "no classes"}};
            }};

}  // namespace

CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets) {
  op.require_float("logits", logits);
  op.require(logits.ndim() == 2, "logits", logits, "[R, V]");
  const int64_t R = logits.dim(0), V = logits.dim(1);
  op.require(targets.defined() && targets.dtype() == DType::i32 && targets.shape() == Shape{R} &&
                 targets.device() == logits.device(),
             "targets", targets, "i32 [R] on the same device, R = first axis of logits {}", logits);
  const Tensor rows = label_rows(op, targets, V), ids = targets.contiguous(), input = logits.contiguous();
  const int64_t n = rows.dim(0);
  const auto make = [&](const Shape& shape, DType dtype) { return empty(shape, dtype, logits.device()); };
  const DType dtype = logits.dtype(), acc = acc_dtype(dtype);
  const Tensor loss = make({}, dtype), nll = make({R}, dtype), row_max = make({n}, acc), inv_sum = make({n}, acc);
  const Tensor argmax = empty({R}, DType::i32, logits.device());
  op.launch<kernels::CrossEntropyFwd>(logits, [&]<class T>(kernels::CrossEntropyFwd<T>& a) {
    a = {input.data<T>(),
         ids.data<int32_t>(),
         rows.data<int32_t>(),
         loss.data<T>(),
         nll.data<T>(),
         row_max.data<acc_t<T>>(),
         inv_sum.data<acc_t<T>>(),
         argmax.data<int32_t>(),
         R,
         V,
         n};
  });
  const auto vjp = [logits = Saved(input), targets = Saved(ids), rows, row_max, inv_sum](const VjpContext& context) {
    const Tensor &dloss = context.cotangent(0), &dnll = context.cotangent(1);
    const Tensor dlogits = empty_like(logits);
    op.launch<kernels::CrossEntropyBwd>(*logits, [&]<class T>(kernels::CrossEntropyBwd<T>& a) {
      a = {logits->data<T>(),
           targets->data<int32_t>(),
           rows.data<int32_t>(),
           row_max.data<acc_t<T>>(),
           inv_sum.data<acc_t<T>>(),
           dloss.defined() ? dloss.data<T>() : nullptr,
           dnll.defined() ? dnll.data<T>() : nullptr,
           dlogits.data<T>(),
           logits->dim(0),
           logits->dim(1),
           rows.dim(0)};
    });
    return Tensors{dlogits, {}};
  };
  op.record(Tensors{loss, nll, argmax}, {logits, targets}, vjp);
  return {loss, nll, argmax};
}

}  // namespace margay
