#include "ops/rms_norm_gated.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{
    "rms_norm_gated", [] {
      const auto call = [](const Tensors& in) { return Tensors{rms_norm_gated(in[0], in[1], in[2], 1e-3)}; };
      const auto sample = [&](const Shape& x, std::string name) {
        return Sample{
            .inputs = {real(x), real(x, -4, 4), real({x[x.ndim() - 1]})}, .call = call, .name = std::move(name)};
      };
      return Samples{sample({2, 3, 8}, ""),     sample({5, 37}, "odd width"), sample({200, 3}, "several pieces"),
                     sample({4, 1}, "width 1"), sample({0, 4}, "no rows"),    sample({3, 0}, "no columns")};
    }};

}  // namespace

Tensor rms_norm_gated(const Tensor& x, const Tensor& z, const Tensor& weight, double eps) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1, "x", x, "at least 1-D");
  op.require_like("z", z, "x", x);
  op.require(z.shape() == x.shape(), "z", z, "of the shape of x {}", x);
  op.require_like("weight", weight, "x", x);
  op.require(weight.shape() == Shape{x.dim(-1)}, "weight", weight, "[C], C = last axis of x {}", x);
  const int64_t C = x.dim(-1), rows = C ? x.numel() / C : 0;
  const Tensor input = x.contiguous(), gate = z.contiguous(), scale = weight.contiguous();
  const Tensor y = empty_like(x), inv_rms = empty({rows}, acc_dtype(x.dtype()), x.device());
  op.launch<kernels::RmsNormGatedFwd>(x, [&]<class T>(kernels::RmsNormGatedFwd<T>& a) {
    a = {input.data<T>(), gate.data<T>(), scale.data<T>(), y.data<T>(), inv_rms.data<acc_t<T>>(), rows, C, eps};
  });
  return op.record(y, {x, z, weight},
                   [x = Saved(input), z = Saved(gate), weight = Saved(scale), inv_rms, rows, C](const Tensor& dy) {
                     const Tensor dx = empty_like(x), dz = empty_like(x), dweight = empty_like(weight);
                     const int64_t pieces = kernels::RmsNormGatedBwd<float>::pieces(rows);
                     const Tensor workspace = empty({pieces, C}, acc_dtype(x->dtype()), x->device());
                     op.launch<kernels::RmsNormGatedBwd>(x, [&]<class T>(kernels::RmsNormGatedBwd<T>& a) {
                       a = {x->data<T>(),
                            z->data<T>(),
                            weight->data<T>(),
                            dy.data<T>(),
                            inv_rms.data<acc_t<T>>(),
                            dx.data<T>(),
                            dz.data<T>(),
                            dweight.data<T>(),
                            workspace.data<acc_t<T>>(),
                            rows,
                            C};
                     });
                     return Tensors{dx, dz, dweight};
                   });
}

}  // namespace margay
