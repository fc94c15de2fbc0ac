#include "ops/topk.h"

#include <limits>

#include "engine/launch.h"
#include "ops/argsort.h"
#include "ops/index.h"
#include "ops/view.h"

namespace margay {
namespace {

const Op op{"topk", [] {
              const auto largest = [](int64_t k) {
                return [k](const Tensors& in) {
                  const TopK top = topk(in[0], k);
                  return Tensors{top.values, top.indices};
                };
              };
              return Samples{{.inputs = {distinct({3, 2, 11})}, .call = largest(4)},
                             {.inputs = {distinct({4, 50})}, .call = largest(40), .name = "many"},
                             {.inputs = {distinct({3, 5})}, .call = largest(5), .name = "all"},
                             {.inputs = {distinct({500, 2})}, .call = largest(1), .name = "several pieces"},
                             {.inputs = {distinct({3, 5})}, .call = largest(0), .name = "none"},
                             {.inputs = {real({0, 5})}, .call = largest(2), .name = "no rows"},
                             {.inputs = {real({2, 0})}, .call = largest(0), .name = "size 0"}};
            }};

TopK select_by_insertion(const Tensor& x, int64_t k) {
  const Tensor values = empty(x.shape().with(x.ndim() - 1, k), x.dtype(), x.device());
  const Tensor indices = empty(values.shape(), DType::i32, x.device());
  const int64_t N = x.dim(-1), rows = N ? x.numel() / N : 0;
  op.launch<kernels::TopKFwd>(x, [&]<class T>(kernels::TopKFwd<T>& a) {
    a = {x.data<T>(), values.data<T>(), indices.data<int32_t>(), rows, N, k};
  });
  return {values, indices};
}

TopK select_by_sort(const Tensor& x, int64_t k) {
  const Tensor indices = slice(argsort(x, true), -1, 0, k).contiguous();
  return {take_along(op, x, x.ndim() - 1, indices), indices};
}

}  // namespace

TopK topk(const Tensor& x, int64_t k) {
  const OpScope scope(op.name());
  op.require_float("x", x);
  op.require(x.ndim() >= 1 && x.dim(-1) <= std::numeric_limits<int32_t>::max(), "x", x,
             "at least 1-D, of at most 2^31 - 1 elements along the last axis");
  op.require(k >= 0 && k <= x.dim(-1), "k", k, "from 0 to {}, the size of the last axis of {}", x.dim(-1), x);
  const Tensor source = x.detach().contiguous();
  const TopK top = k <= kernels::TopKFwd<float>::kMaxK ? select_by_insertion(source, k) : select_by_sort(source, k);
  const Tensors recorded = op.record(
      Tensors{top.values, top.indices}, {x},
      [indices = Saved(top.indices), shape = x.shape()](const VjpContext& context) {
        const Tensor& dy = context.cotangent();
        const Tensor dx =
            context.destination(0).defined() ? context.destination(0) : zeros(shape, dy.dtype(), dy.device());
        add_along(op, dx, shape.ndim() - 1, indices, dy);
        return Tensors{dx};
      },
      CotangentLayout::strided);
  return {recorded[0], recorded[1]};
}

}  // namespace margay
