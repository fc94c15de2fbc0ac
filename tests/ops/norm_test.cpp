// layer_norm, add_layer_norm, rms_norm_gated and l2_normalize against plain loops.

#include <doctest/doctest.h>

#include <cmath>

#include "ops/l2_normalize.h"
#include "ops/layer_norm.h"
#include "ops/rms_norm_gated.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Parameters {
  Tensor weight, bias;
};

Parameters make_parameters(int64_t C, DType dtype) {
  return {random_uniform({C}, 8, 0.5, 1.5, dtype), random_uniform({C}, 9, -1, 1, dtype)};
}

Tensor layer_norm_naively(const Tensor& x, const Parameters& parameters, double eps) {
  const Elements values(x), weight(parameters.weight), bias(parameters.bias);
  const int64_t C = x.dim(-1);
  return from_function(x.shape(), DType::f64, [&](const Index& at) {
    Index other = at;
    double mean = 0, var = 0;
    for (int64_t c = 0; c < C; ++c) mean += (other.back() = c, values(other)) / static_cast<double>(C);
    for (int64_t c = 0; c < C; ++c)
      var += (other.back() = c, (values(other) - mean) * (values(other) - mean)) / static_cast<double>(C);
    return weight({at.back()}) * (values(at) - mean) / std::sqrt(var + eps) + bias({at.back()});
  });
}

const Shape kShapes[] = {{3, 100, 64}, {5, 33}, {2, 1}, {2, 515}, {600, 7}};

}  // namespace

TEST_CASE("layer_norm equals plain loops") {
  for (const Shape& shape : kShapes) {
    CAPTURE(to_string(shape));
    const Tensor x = random_uniform(shape, 1, 1, 5, DType::f32);
    const Parameters parameters = make_parameters(x.dim(-1), DType::f32);
    const Tensor y = layer_norm(x, parameters.weight, parameters.bias);
    CHECK(difference(y, layer_norm_naively(x, parameters, 1e-5), 5e-6) == "");
    CHECK(same_bits(layer_norm(as_strided_copy(x), parameters.weight, parameters.bias), y));
  }
}

TEST_CASE("layer_norm: a large mean does not drown the variance") {
  const Tensor x = random_uniform({4, 64}, 1, 1000, 1001, DType::f32);
  const Parameters parameters = make_parameters(64, DType::f32);
  CHECK(difference(layer_norm(x, parameters.weight, parameters.bias), layer_norm_naively(x, parameters, 1e-5), 5e-4) ==
        "");
}

TEST_CASE("add_layer_norm equals the sum and its norm, to the bit, and so do its gradients") {
  for (const Shape& shape : kShapes) {
    CAPTURE(to_string(shape));
    Tensor x = random_uniform(shape, 1, -1, 1, DType::f32), residual = random_uniform(shape, 2, -1, 1, DType::f32);
    Parameters parameters = make_parameters(x.dim(-1), DType::f32);
    for (Tensor* t : {&x, &residual, &parameters.weight, &parameters.bias}) t->set_requires_grad();
    const Tensors fused = add_layer_norm(x, residual, parameters.weight, parameters.bias);
    Tensor sum = from_function(shape, DType::f32, [a = Elements(x), b = Elements(residual)](const Index& at) {
      return static_cast<float>(a(at)) + static_cast<float>(b(at));
    });
    sum.set_requires_grad();
    CHECK(same_bits(fused[0].detach(), sum.detach()));
    const Parameters copies{parameters.weight.detach().set_requires_grad(),
                            parameters.bias.detach().set_requires_grad()};
    const Tensor y = layer_norm(sum, copies.weight, copies.bias);
    CHECK(same_bits(fused[1].detach(), y.detach()));
    const Tensor dy = random_uniform(shape, 3, -1, 1, DType::f32);
    y.backward(dy);
    fused[1].backward(dy);
    CHECK(same_bits(x.grad(), sum.grad()));
    CHECK(same_bits(residual.grad(), sum.grad()));
    CHECK(same_bits(parameters.weight.grad(), copies.weight.grad()));
    CHECK(same_bits(parameters.bias.grad(), copies.bias.grad()));
  }
}

TEST_CASE("layer_norm: gradients that are not wanted are left out, others are the same") {
  const Tensor x = random_uniform({300, 5}, 1);
  const Parameters parameters = make_parameters(5, DType::f64);
  const Tensor dy = random_uniform({300, 5}, 2);
  const auto gradients = [&](std::array<bool, 3> wanted) {
    Tensors leaves{x.detach(), parameters.weight.detach(), parameters.bias.detach()};
    for (size_t i = 0; i < 3; ++i) leaves[i].set_requires_grad(wanted[i]);
    layer_norm(leaves[0], leaves[1], leaves[2]).backward(dy);
    return Tensors{leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
  };
  const Tensors all = gradients({true, true, true});
  const Tensors input = gradients({true, false, false}), bias = gradients({false, false, true});
  CHECK(same_bits(input[0], all[0]));
  CHECK_FALSE(input[1].defined());
  CHECK(same_bits(bias[2], all[2]));
  CHECK_FALSE(bias[0].defined());
}

TEST_CASE("rms_norm_gated equals plain loops") {
  for (const Shape& shape : kShapes) {
    CAPTURE(to_string(shape));
    const Tensor x = random_uniform(shape, 1, -2, 2, DType::f32), z = random_uniform(shape, 2, -6, 6, DType::f32);
    const Tensor weight = make_parameters(x.dim(-1), DType::f32).weight;
    const Elements values(x), gates(z), scales(weight);
    const int64_t C = x.dim(-1);
    const Tensor expected = from_function(shape, DType::f64, [&](const Index& at) {
      const auto u = [&](const Index& i) { return values(i) * gates(i) / (1 + std::exp(-gates(i))); };
      Index other = at;
      double squares = 0;
      for (int64_t c = 0; c < C; ++c) squares += (other.back() = c, u(other) * u(other)) / static_cast<double>(C);
      return u(at) / std::sqrt(squares + 1e-5) * scales({at.back()});
    });
    CHECK(difference(rms_norm_gated(x, z, weight), expected, 5e-6) == "");
  }
}

TEST_CASE("l2_normalize equals plain loops; small rows keep their direction and have no gradient") {
  for (const Shape& shape : kShapes) {
    const Tensor x = random_uniform(shape, 1, -2, 2, DType::f32);
    const Elements values(x);
    const Tensor expected = from_function(shape, DType::f64, [&](const Index& at) {
      Index other = at;
      double squares = 0;
      for (int64_t c = 0; c < x.dim(-1); ++c) squares += (other.back() = c, values(other) * values(other));
      return values(at) / std::sqrt(squares);
    });
    CHECK(difference(l2_normalize(x), expected, 1e-6) == "");
  }
  for (const DType dtype : {DType::f32, DType::f64}) {
    Tensor x = from_values<double>({0, 0, 3e-13, -4e-13, 3e-6, 4e-6}, {3, 2}).to(dtype);
    x.set_requires_grad();
    const Tensor y = l2_normalize(x);
    CHECK(difference(y, from_values<double>({0, 0, 0.3, -0.4, 0.6, 0.8}, {3, 2}), 1e-6) == "");
    y.backward(ones({3, 2}, dtype));
    const auto gradient = x.grad().to(DType::f64).to_vector<double>();
    for (size_t i = 0; i < 4; ++i) CHECK(gradient[i] == 0);
    // (1 - 0.6 * 1.4) / 5e-6
    CHECK(gradient[4] == doctest::Approx(0.16 / 5e-6).epsilon(1e-5));
  }
}

TEST_CASE("norms: errors name op and argument") {
  const Tensor x = zeros({2, 8}), good = zeros({8}), wrong = zeros({7});
  CHECK(op_error([&] { layer_norm(x, wrong, good); }) ==
        "layer_norm: weight must be [C], C = last axis of x f32[2,8], got f32[7]");
  CHECK(op_error([&] { layer_norm(x, good, wrong); }) ==
        "layer_norm: bias must be [C], C = last axis of x f32[2,8], got f32[7]");
  CHECK(op_error([&] { layer_norm(zeros({}), good, good); }) == "layer_norm: x must be at least 1-D, got f32[]");
  CHECK(op_error([&] { add_layer_norm(x, good, good, good); }) ==
        "add_layer_norm: residual must be of the shape of x f32[2,8], got f32[8]");
  CHECK(op_error([&] {
          add_layer_norm(x, zeros({2, 8}, DType::f64), good, good);
        }) == "add_layer_norm: residual must be of the dtype and device of x f32[2,8], got f64[2,8]");
  CHECK(op_error([&] { rms_norm_gated(x, good, good); }) ==
        "rms_norm_gated: z must be of the shape of x f32[2,8], got f32[8]");
  CHECK(op_error([&] { rms_norm_gated(x, x, wrong); }) ==
        "rms_norm_gated: weight must be [C], C = last axis of x f32[2,8], got f32[7]");
  CHECK(op_error([&] { l2_normalize(zeros({})); }) == "l2_normalize: x must be at least 1-D, got f32[]");
}

}  // namespace margay::test
