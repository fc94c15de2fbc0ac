#include "ops/unary.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples(const std::function<Tensor(const Tensor&)>& function, double low, double high) {
  const auto call = [function](const Tensors& in) { return Tensors{function(in[0])}; };
  return {{.inputs = {real({3, 1, 17}, low, high)}, .call = call},
          {.inputs = {real({}, low, high)}, .call = call, .name = "one element"},
          {.inputs = {real({2, 0}, low, high)}, .call = call, .name = "empty"}};
}

Tensor apply(const Op& op, const Tensor& x, functors::Unary functor) {
  op.require_float("x", x);
  const Tensor input = x.contiguous(), y = empty_like(x);
  op.launch<kernels::UnaryFwd>(x, [&]<class T>(kernels::UnaryFwd<T>& a) {
    a = {input.data<T>(), y.data<T>(), x.numel(), functor};
  });
  if (!op.no_gradient_reason().empty()) return y;
  const auto saves = std::visit([](const auto& f) { return f.saves; }, functor);
  const Tensor kept = saves == functors::Saves::input ? input : saves == functors::Saves::output ? y : Tensor();
  return op.record(y, {x}, [&op, saved = Saved(kept), functor](const VjpContext& context) {
    const Tensor& dy = context.cotangent();
    const bool accumulate = context.destination(0).defined();
    const Tensor dx = accumulate ? context.destination(0) : empty_like(dy);
    op.launch<kernels::UnaryBwd>(dy, [&]<class T>(kernels::UnaryBwd<T>& a) {
      const Tensor& kept = *saved;
      a = {kept.defined() ? kept.data<T>() : nullptr, dy.data<T>(), dx.data<T>(), dy.numel(), accumulate, functor};
    });
    return Tensors{dx};
  });
}

const Op neg_op{"neg", [] { return samples(neg, -2, 2); }};
const Op square_op{"square", [] { return samples(square, -2, 2); }};
const Op sqrt_op{"sqrt", [] { return samples(sqrt, 0.1, 4); }};
const Op rsqrt_op{"rsqrt", [] { return samples(rsqrt, 0.2, 4); }};
const Op reciprocal_op{"reciprocal", [] { return samples(reciprocal, -3, -0.3); }};
const Op exp_op{"exp", [] { return samples(exp, -3, 3); }};
const Op expm1_op{"expm1", [] { return samples(expm1, -3, 3); }};
const Op log_op{"log", [] { return samples(log, 0.1, 5); }};
const Op log1p_op{"log1p", [] { return samples(log1p, -0.8, 4); }};
const Op sin_op{"sin", [] { return samples(sin, -9, 9); }};
const Op cos_op{"cos", [] { return samples(cos, -9, 9); }};
const Op tanh_op{"tanh", [] { return samples(tanh, -3, 3); }};
const Op abs_op{"abs", [] { return samples(abs, -2, 2); }};
const Op sign_op{"sign", no_grad("its derivative is 0 wherever it exists"), [] { return samples(sign, -2, 2); }};
const Op sigmoid_op{"sigmoid", [] { return samples(sigmoid, -6, 6); }};
const Op logsigmoid_op{"logsigmoid", [] { return samples(logsigmoid, -20, 20); }};
const Op softplus_op{"softplus", [] { return samples(softplus, -20, 20); }};
const Op relu_op{"relu", [] { return samples(relu, -2, 2); }};
const Op elu_op{"elu", [] { return samples([](const Tensor& x) { return elu(x, 1.5); }, -3, 3); }};
const Op gelu_op{"gelu", [] { return samples(gelu, -4, 4); }};
const Op silu_op{"silu", [] { return samples(silu, -6, 6); }};
const Op pow_op{"pow", [] {
                  Samples all = samples([](const Tensor& x) { return pow(x, 2.5); }, 0.2, 3);
                  for (const double exponent : {-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0}) {
                    Sample sample = samples([=](const Tensor& x) { return pow(x, exponent); }, 0.5, 2)[0];
                    sample.name = fmt::format("exponent {}", exponent);
                    all.push_back(sample);
                  }
                  return all;
                }};
const Op clamp_op{"clamp", [] { return samples([](const Tensor& x) { return clamp(x, -0.5, 0.7); }, -2, 2); }};

}  // namespace

Tensor neg(const Tensor& x) { return apply(neg_op, x, functors::Neg{}); }
Tensor square(const Tensor& x) { return apply(square_op, x, functors::Square{}); }
Tensor sqrt(const Tensor& x) { return apply(sqrt_op, x, functors::Sqrt{}); }
Tensor rsqrt(const Tensor& x) { return apply(rsqrt_op, x, functors::Rsqrt{}); }
Tensor reciprocal(const Tensor& x) { return apply(reciprocal_op, x, functors::Reciprocal{}); }
Tensor exp(const Tensor& x) { return apply(exp_op, x, functors::Exp{}); }
Tensor expm1(const Tensor& x) { return apply(expm1_op, x, functors::Expm1{}); }
Tensor log(const Tensor& x) { return apply(log_op, x, functors::Log{}); }
Tensor log1p(const Tensor& x) { return apply(log1p_op, x, functors::Log1p{}); }
Tensor sin(const Tensor& x) { return apply(sin_op, x, functors::Sin{}); }
Tensor cos(const Tensor& x) { return apply(cos_op, x, functors::Cos{}); }
Tensor tanh(const Tensor& x) { return apply(tanh_op, x, functors::Tanh{}); }
Tensor abs(const Tensor& x) { return apply(abs_op, x, functors::Abs{}); }
Tensor sign(const Tensor& x) { return apply(sign_op, x, functors::Sign{}); }
Tensor sigmoid(const Tensor& x) { return apply(sigmoid_op, x, functors::Sigmoid{}); }
Tensor logsigmoid(const Tensor& x) { return apply(logsigmoid_op, x, functors::LogSigmoid{}); }
Tensor softplus(const Tensor& x) { return apply(softplus_op, x, functors::Softplus{}); }
Tensor relu(const Tensor& x) { return apply(relu_op, x, functors::Relu{}); }
Tensor elu(const Tensor& x, double alpha) {
  elu_op.require(alpha >= 0, "alpha", alpha, "at least 0");
  return apply(elu_op, x, functors::Elu{alpha});
}
Tensor gelu(const Tensor& x) { return apply(gelu_op, x, functors::Gelu{}); }
Tensor silu(const Tensor& x) { return apply(silu_op, x, functors::Silu{}); }
Tensor pow(const Tensor& x, double exponent) {
  // The exact and fast forms of frequent exponents.
  if (exponent == 2) return apply(pow_op, x, functors::Square{});
  if (exponent == 0.5) return apply(pow_op, x, functors::Sqrt{});
  if (exponent == -0.5) return apply(pow_op, x, functors::Rsqrt{});
  if (exponent == -1) return apply(pow_op, x, functors::Reciprocal{});
  return apply(pow_op, x, functors::Pow{exponent});
}
Tensor clamp(const Tensor& x, double low, double high) {
  clamp_op.require(low <= high, "low", low, "at most high = {}", high);
  return apply(clamp_op, x, functors::Clamp{low, high});
}

}  // namespace margay
