#include "ops/rms_norm.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"rms_norm", [] {
              const auto call = [](const Tensors& in) { return Tensors{rms_norm(in[0], in[1], 1e-3)}; };
              return Samples{{.inputs = {real({2, 3, 8}), real({8})}, .call = call},
                             {.inputs = {real({5, 37}), real({37})}, .call = call, .name = "odd width"},
                             {.inputs = {real({600, 3}), real({3})}, .call = call, .name = "several pieces"},
                             {.inputs = {real({4, 1}), real({1})}, .call = call, .name = "width 1"},
                             {.inputs = {real({0, 4}), real({4})}, .call = call, .name = "no rows"}};
            }};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1, "x", x, "at least 1-D");
  op.require_like("weight", weight, "x", x);
  op.require(weight.shape() == Shape{x.dim(-1)}, "weight", weight, "[C], C = last axis of x {}", x);
  const int64_t C = x.dim(-1), rows = C ? x.numel() / C : 0;
  const Tensor input = x.contiguous(), scale = weight.contiguous();
  const Tensor y = empty_like(x), inv_rms = empty({rows}, acc_dtype(x.dtype()), x.device());
  op.launch<kernels::RmsNormFwd>(x, [&]<class T>(kernels::RmsNormFwd<T>& a) {
    a = {input.data<T>(), scale.data<T>(), y.data<T>(), inv_rms.data<acc_t<T>>(), rows, C, eps};
  });
  return op.record(y, {x, weight}, [x = Saved(input), weight = Saved(scale), inv_rms, rows, C](const Tensor& dy) {
    const Tensor dx = empty_like(x), dweight = empty_like(weight);
    const Tensor workspace = empty({kernels::RmsNormBwd<float>::pieces(rows), C}, acc_dtype(x->dtype()), x->device());
    op.launch<kernels::RmsNormBwd>(x, [&]<class T>(kernels::RmsNormBwd<T>& a) {
      a = {x->data<T>(),
           weight->data<T>(),
           dy.data<T>(),
           inv_rms.data<acc_t<T>>(),
           dx.data<T>(),
           dweight.data<T>(),
           workspace.data<acc_t<T>>(),
           rows,
           C};
    });
    return Tensors{dx, dweight};
  });
}

}  // namespace margay
