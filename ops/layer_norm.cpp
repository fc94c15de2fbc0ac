#include "ops/layer_norm.h"

#include "engine/launch.h"

namespace margay {
namespace {

const Op layer_norm_op{
    "layer_norm", [] {
      const auto call = [](const Tensors& in) { return Tensors{layer_norm(in[0], in[1], in[2], 1e-3)}; };
      const auto sample = [&](const Shape& x, std::string name) {
        const Shape row{x[x.ndim() - 1]};
        return Sample{.inputs = {real(x), real(row), real(row)}, .call = call, .name = std::move(name)};
      };
      return Samples{sample({2, 3, 8}, ""),          sample({5, 37}, "odd width"), sample({600, 3}, "several pieces"),
                     sample({2, 1100}, "long rows"), sample({4, 1}, "width 1"),    sample({37}, "one row"),
                     sample({0, 4}, "no rows"),      sample({3, 0}, "no columns")};
    }};

const Op add_layer_norm_op{
    "add_layer_norm", [] {
      const auto both = [](const Tensors& in) { return add_layer_norm(in[0], in[1], in[2], in[3], 1e-3); };
      const auto sum_only = [both](const Tensors& in) { return Tensors{both(in)[0]}; };
      const auto norm_only = [both](const Tensors& in) { return Tensors{both(in)[1]}; };
      const auto sample = [&](const Shape& x, std::function<Tensors(const Tensors&)> call, std::string name) {
        const Shape row{x[x.ndim() - 1]};
        return Sample{
            .inputs = {real(x), real(x, 0, 1), real(row), real(row)}, .call = std::move(call), .name = std::move(name)};
      };
      return Samples{sample({2, 3, 37}, both, "both results"), sample({4, 5}, sum_only, "only the sum is used"),
                     sample({4, 5}, norm_only, "only the norm is used"), sample({300, 2}, both, "several pieces"),
                     sample({0, 4}, both, "no rows")};
    }};

struct Normalised {
  Tensor sum, y, mean, inv_std;  // sum: what was normalised
};

// layer_norm(x), or of x + residual where that is defined.
Normalised forward(const Op& op, const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                   double eps) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1, "x", x, "at least 1-D");
  const int64_t C = x.dim(-1), rows = C ? x.numel() / C : 0;
  for (const auto& [name, parameter] : {std::pair("weight", &weight), std::pair("bias", &bias)}) {
    op.require_like(name, *parameter, "x", x);
    op.require(parameter->shape() == Shape{C}, name, *parameter, "[C], C = last axis of x {}", x);
  }
  const DType acc = acc_dtype(x.dtype());
  const Tensor input = x.contiguous(), scale = weight.contiguous(), shift = bias.contiguous();
  const Tensor added = residual.defined() ? residual.contiguous() : Tensor();
  const Normalised out{added.defined() ? empty_like(x) : input, empty_like(x), empty({rows}, acc, x.device()),
                       empty({rows}, acc, x.device())};
  op.launch<kernels::LayerNormFwd>(x, [&]<class T>(kernels::LayerNormFwd<T>& a) {
    a = {input.data<T>(),
         added.defined() ? added.data<T>() : nullptr,
         scale.data<T>(),
         shift.data<T>(),
         added.defined() ? out.sum.data<T>() : nullptr,
         out.y.data<T>(),
         out.mean.data<acc_t<T>>(),
         out.inv_std.data<acc_t<T>>(),
         rows,
         C,
         eps};
  });
  return out;
}

struct Kept {
  Saved x, weight;
  Tensor mean, inv_std;
};

struct Gradients {
  Tensor dx, dweight, dbias;
};

// Pulls dy back through the norm and adds `dresidual` to dx, in place where that is `destination`.
Gradients backward(const Op& op, const Kept& kept, const Tensor& dy, const Tensor& dresidual, const Tensor& destination,
                   bool dx_wanted, bool parameters_wanted) {
  const Tensor &x = kept.x, &weight = kept.weight;
  const int64_t C = x.dim(-1), rows = kept.mean.numel();
  Gradients gradients;
  if (dx_wanted) gradients.dx = destination.defined() ? destination : empty_like(x);
  if (parameters_wanted) {
    gradients.dweight = empty_like(weight);
    gradients.dbias = empty_like(weight);
  }
  const Tensor workspace = empty({kernels::LayerNormBwd<float>::pieces(rows), 2, C}, acc_dtype(x.dtype()), x.device());
  op.launch<kernels::LayerNormBwd>(x, [&]<class T>(kernels::LayerNormBwd<T>& a) {
    const auto pointer = [](const Tensor& t) { return t.defined() ? t.data<T>() : nullptr; };
    a = {x.data<T>(),
         weight.data<T>(),
         dy.data<T>(),
         pointer(dresidual),
         kept.mean.data<acc_t<T>>(),
         kept.inv_std.data<acc_t<T>>(),
         pointer(gradients.dx),
         pointer(gradients.dweight),
         pointer(gradients.dbias),
         workspace.data<acc_t<T>>(),
         rows,
         C};
  });
  return gradients;
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const Op& op = layer_norm_op;
  const Normalised out = forward(op, x, {}, weight, bias, eps);
  return op.record(
      out.y, {x, weight, bias},
      [&op, kept = Kept{Saved(out.sum), Saved(weight.contiguous()), out.mean, out.inv_std}](const VjpContext& context) {
        const Tensor& gathered = context.destination(0);
        const Gradients gradients = backward(op, kept, context.cotangent(), gathered, gathered, context.wanted(0),
                                             context.wanted(1) || context.wanted(2));
        return Tensors{gradients.dx, gradients.dweight, gradients.dbias};
      });
}

Tensors add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, double eps) {
  const Op& op = add_layer_norm_op;
  op.require_float("x", x);
  op.require_like("residual", residual, "x", x);
  op.require(residual.shape() == x.shape(), "residual", residual, "of the shape of x {}", x);
  const Normalised out = forward(op, x, residual, weight, bias, eps);
  return op.record(
      Tensors{out.sum, out.y}, {x, residual, weight, bias},
      [&op, kept = Kept{Saved(out.sum), Saved(weight.contiguous()), out.mean, out.inv_std}](const VjpContext& context) {
        const Tensor &dsum = context.cotangent(0), &dy = context.cotangent(1);
        if (!dy.defined()) return Tensors{dsum, dsum, {}, {}};
        const Gradients gradients = backward(op, kept, dy, dsum, {}, context.wanted(0) || context.wanted(1),
                                             context.wanted(2) || context.wanted(3));
        return Tensors{gradients.dx, gradients.dx, gradients.dweight, gradients.dbias};
      });
}

}  // namespace margay
