// Products in bf16 through the ops that read the setting.

#include "ops/precision.h"

#include <doctest/doctest.h>

#include <functional>
#include <vector>

#include "engine/parallel.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/matmul.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

struct OpCase {
  const char* name;
  std::vector<Shape> inputs;
  std::function<Tensor(const Tensors&)> call;
};

std::vector<OpCase> op_cases() {
  const auto loss = [](const Tensors& in) {
    std::vector<int32_t> targets;
    for (int32_t i = 0; i < in[0].dim(0); ++i) targets.push_back(i % 7 == 3 ? -100 : i * 5 % 97);
    return linear_cross_entropy(in[0], in[1], from_values(targets, {in[0].dim(0)})).nll;
  };
  const auto product = [](const Tensors& in) { return matmul(in[0], in[1]); };
  const auto layer = [](const Tensors& in) { return linear(in[0], in[1]); };
  return {{"linear", {{40, 64}, {96, 64}}, layer},
          {"linear, several groups", {{1100, 33}, {70, 33}}, layer},
          {"matmul", {{70, 45}, {45, 50}}, product},
          {"matmul, batch", {{3, 40, 36}, {3, 36, 40}}, product},
          {"matmul, deep", {{40, 1500}, {1500, 40}}, product},
          {"linear_cross_entropy", {{130, 40}, {97, 40}}, loss},
          {"linear_cross_entropy, groups of words", {{50, 40}, {600, 40}}, loss}};
}

// The result and the gradients of all inputs; the gradients are made when the precision is f32 again.
Tensors run(const OpCase& op, Precision precision, DType dtype = DType::f32) {
  Tensors inputs;
  for (size_t i = 0; i < op.inputs.size(); ++i)
    inputs.push_back(random_uniform(op.inputs[i], i + 1, -1, 1, dtype).set_requires_grad());
  Tensor y;
  {
    const PrecisionScope scope(precision);
    y = op.call(inputs);
  }
  y.backward(random_uniform(y.shape(), 9, -1, 1, dtype));
  Tensors results{y.detach()};
  for (const Tensor& input : inputs) results.push_back(input.grad());
  return results;
}

}  // namespace

TEST_CASE("precision: scopes nest and end") {
  CHECK(product_precision() == Precision::f32);
  {
    const PrecisionScope outer(Precision::bf16);
    CHECK(product_precision() == Precision::bf16);
    {
      const PrecisionScope inner(Precision::f32);
      CHECK(product_precision() == Precision::f32);
    }
    CHECK(product_precision() == Precision::bf16);
  }
  CHECK(product_precision() == Precision::f32);
}

TEST_CASE("precision: bf16 products and their gradients are close to those in f32, and not them") {
  for (const OpCase& op : op_cases()) {
    CAPTURE(op.name);
    const Tensors exact = run(op, Precision::f32), rounded = run(op, Precision::bf16);
    for (size_t i = 0; i < exact.size(); ++i) {
      CAPTURE(i);
      CHECK(difference_relative_to_max(rounded[i], exact[i], 1e-2) == "");
      CHECK(same_bits(rounded[i], exact[i]) == !cpu_has_bf16_products());
      if (cpu_has_bf16_products()) CHECK(difference_relative_to_max(rounded[i], exact[i], 1e-5) != "");
    }
  }
  if (!cpu_has_bf16_products()) MESSAGE("this CPU does not multiply bf16: products were made in f32");
}

TEST_CASE("precision: products of doubles are never rounded") {
  for (const OpCase& op : op_cases()) {
    CAPTURE(op.name);
    const Tensors exact = run(op, Precision::f32, DType::f64), same = run(op, Precision::bf16, DType::f64);
    for (size_t i = 0; i < exact.size(); ++i) CHECK(same_bits(same[i], exact[i]));
  }
}

TEST_CASE("precision: bf16 gives the same bits for any number of threads") {
  const int before = num_threads();
  for (const OpCase& op : op_cases()) {
    CAPTURE(op.name);
    set_num_threads(1);
    const Tensors expected = run(op, Precision::bf16);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run(op, Precision::bf16);
      for (size_t i = 0; i < expected.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

}  // namespace margay::test
