#include "ops/glu.h"

#include "engine/launch.h"

namespace margay {
namespace {

Samples samples(Tensor (*function)(const Tensor&)) {
  const auto sample = [function](const Shape& shape, std::string name) {
    const auto call = [function](const Tensors& in) { return Tensors{function(in[0])}; };
    return Sample{.inputs = {real(shape, -4, 4)}, .call = call, .name = std::move(name)};
  };
  return {sample({2, 3, 8}, ""), sample({3, 74}, "odd width"), sample({5, 2}, "width 1"), sample({0, 4}, "no rows"),
          sample({3, 0}, "no columns")};
}

const Op swiglu_op{"swiglu", [] { return samples(swiglu); }};
const Op glu_op{"glu", [] { return samples(glu); }};

Tensor apply(const Op& op, const Tensor& x, functors::Gated functor) {
  op.require_float("x", x);
  op.require(x.ndim() >= 1 && x.dim(-1) % 2 == 0, "x", x, "of an even last axis");
  const int64_t m = x.dim(-1) / 2, rows = m ? x.numel() / (2 * m) : 0;
  const Tensor input = x.contiguous();
  const Tensor y = empty(x.shape().with(x.ndim() - 1, m), x.dtype(), x.device());
  op.launch<kernels::GluFwd>(x, [&]<class T>(kernels::GluFwd<T>& a) {
    a = {input.data<T>(), y.data<T>(), rows, m, functor};
  });
  return op.record(y, {x}, [&op, x = Saved(input), rows, m, functor](const Tensor& dy) {
    const Tensor dx = empty_like(x);
    op.launch<kernels::GluBwd>(
        x, [&]<class T>(kernels::GluBwd<T>& a) { a = {x->data<T>(), dy.data<T>(), dx.data<T>(), rows, m, functor}; });
    return Tensors{dx};
  });
}

}  // namespace

Tensor swiglu(const Tensor& x) { return apply(swiglu_op, x, functors::SwiGlu{}); }
Tensor glu(const Tensor& x) { return apply(glu_op, x, functors::Glu{}); }

}  // namespace margay
