#pragma once
#include <cstdint>

#include "engine/autograd.h"

/// The few ops on f64 tensors that the engine's own tests need: it knows none, and its tests should not need any
/// either.
namespace margay::test::tape {

/// A leaf that collects gradients.
inline Tensor leaf(std::initializer_list<double> values) {
  Tensor tensor = from_values(values, {static_cast<int64_t>(values.size())});
  return tensor.set_requires_grad();
}

/// The result `y` of an op with the inputs and VJP.
template <class VjpFunction>
Tensor record(const char* op, Tensor y, const Tensors& inputs, VjpFunction vjp) {
  if (Graph::recording(inputs)) Graph::record(op, std::span(&y, 1), inputs, vjp);
  return y;
}

/// f(a[i], b[i]) for tensors of one shape.
template <class Function>
Tensor zip(const Tensor& a, const Tensor& b, const Function& f) {
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  std::vector<double> z(x.size());
  for (size_t i = 0; i < z.size(); ++i) z[i] = f(x[i], y[i]);
  return from_values(z, a.shape());
}

/// a + b; the VJP returns its cotangent twice.
inline Tensor add(const Tensor& a, const Tensor& b) {
  return record("add", zip(a, b, [](double x, double y) { return x + y; }), {a, b}, [](const VjpContext& context) {
    return Tensors{context.cotangent(), context.cotangent()};
  });
}

/// a * b, element by element; saves both.
inline Tensor multiply(const Tensor& a, const Tensor& b) {
  const auto product = [](double x, double y) { return x * y; };
  return record("multiply", zip(a, b, product), {a, b},
                [a = Saved(a), b = Saved(b), product](const VjpContext& context) {
                  const Tensor& dy = context.cotangent();
                  return Tensors{zip(dy, b, product), zip(dy, a, product)};
                });
}

/// factor * x; saves nothing.
inline Tensor scale(const Tensor& x, double factor) {
  const auto scaled = [factor](const Tensor& t) {
    return zip(t, t, [factor](double v, double) { return v * factor; });
  };
  return record("scale", scaled(x), {x},
                [scaled](const VjpContext& context) { return Tensors{scaled(context.cotangent())}; });
}

/// Sum of all elements; the VJP returns a view whose elements all lie in one place.
inline Tensor sum(const Tensor& x) {
  double total = 0;
  for (const double value : x.to_vector<double>()) total += value;
  Shape all_zero = x.shape();
  for (int i = 0; i < all_zero.ndim(); ++i) all_zero[i] = 0;
  return record("sum", from_values({total}, {}), {x}, [shape = x.shape(), all_zero](const VjpContext& context) {
    return Tensors{context.cotangent().view(shape, all_zero)};
  });
}

}  // namespace margay::test::tape
