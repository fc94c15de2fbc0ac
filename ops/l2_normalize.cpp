#include "ops/l2_normalize.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"l2_normalize", [] {
              const auto call = [](const Tensors& in) { return Tensors{l2_normalize(in[0])}; };
              return Samples{{.inputs = {real({2, 3, 8})}, .call = call},
                             {.inputs = {real({5, 37})}, .call = call, .name = "odd width"},
                             {.inputs = {real({600, 2})}, .call = call, .name = "several pieces"},
                             {.inputs = {real({4, 1})}, .call = call, .name = "width 1"},
                             {.inputs = {real({0, 4})}, .call = call, .name = "no rows"},
                             {.inputs = {real({3, 0})}, .call = call, .name = "no columns"}};
            }};

}  // namespace

Tensor l2_normalize(const Tensor& x) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1, "x", x, "at least 1-D");
  const int64_t C = x.dim(-1), rows = C ? x.numel() / C : 0;
  const Tensor input = x.contiguous(), y = empty_like(x), inv_norm = empty({rows}, acc_dtype(x.dtype()), x.device());
  op.launch<kernels::L2NormalizeFwd>(x, [&]<class T>(kernels::L2NormalizeFwd<T>& a) {
    a = {input.data<T>(), y.data<T>(), inv_norm.data<acc_t<T>>(), rows, C};
  });
  return op.record(y, {x}, [y = Saved(y), inv_norm, rows, C](const VjpContext& context) {
    const Tensor& dy = context.cotangent();
    const bool accumulate = context.destination(0).defined();
    const Tensor dx = accumulate ? context.destination(0) : empty_like(dy);
    op.launch<kernels::L2NormalizeBwd>(dy, [&]<class T>(kernels::L2NormalizeBwd<T>& a) {
      a = {y->data<T>(), dy.data<T>(), inv_norm.data<acc_t<T>>(), dx.data<T>(), rows, C, accumulate};
    });
    return Tensors{dx};
  });
}

}  // namespace margay
