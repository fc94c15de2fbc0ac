#include "ops/unary.h"

#include <doctest/doctest.h>

#include <cmath>

#include "ops/binary.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  std::string name;
  std::function<Tensor(const Tensor&)> function;
  double (*exact)(double);
  double low, high;
  double tolerance = 2e-6;  // relative
};

double softplus_exact(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
double sigmoid_exact(double x) { return 1 / (1 + std::exp(-x)); }

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"neg", neg, [](double x) { return -x; }, -5, 5},
      {"square", square, [](double x) { return x * x; }, -5, 5},
      {"sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0, 50},
      {"rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.01, 50},
      {"reciprocal", reciprocal, [](double x) { return 1 / x; }, 0.01, 50},
      {"exp", exp, [](double x) { return std::exp(x); }, -80, 5},
      {"expm1", expm1, [](double x) { return std::expm1(x); }, -3, 3},
      {"log", log, [](double x) { return std::log(x); }, 0.001, 50},
      {"log1p", log1p, [](double x) { return std::log1p(x); }, -0.99, 9},
      {"sin", sin, [](double x) { return std::sin(x); }, -300, 300},
      {"cos", cos, [](double x) { return std::cos(x); }, -300, 300},
      {"tanh", tanh, [](double x) { return std::tanh(x); }, -6, 6},
      {"abs", abs, [](double x) { return std::abs(x); }, -5, 5},
      {"sign", sign, [](double x) { return x > 0 ? 1.0 : -1.0; }, -5, 5},
      {"sigmoid", sigmoid, sigmoid_exact, -20, 20},
      {"logsigmoid", logsigmoid, [](double x) { return -softplus_exact(-x); }, -100, 100},
      {"softplus", softplus, softplus_exact, -100, 100},
      {"relu", relu, [](double x) { return std::max(x, 0.0); }, -5, 5},
      {"elu", [](const Tensor& x) { return elu(x, 0.5); }, [](double x) { return x > 0 ? x : 0.5 * std::expm1(x); }, -9,
       3},
      {"gelu", gelu, [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }, -12, 6, 2e-5},
      {"silu", silu, [](double x) { return x * sigmoid_exact(x); }, -80, 20},
      {"pow", [](const Tensor& x) { return pow(x, 1.7); }, [](double x) { return std::pow(x, 1.7); }, 0.01, 9},
      {"clamp", [](const Tensor& x) { return clamp(x, -1, 2); },
       [](double x) { return std::min(std::max(x, -1.0), 2.0); }, -5, 5},
  };
  return all;
}

double derivative_by_difference(double (*f)(double), double x) {
  const double step = 1e-5 * std::max(1.0, std::abs(x));
  return (f(x + step) - f(x - step)) / (2 * step);
}

}  // namespace

TEST_CASE("unary: values and gradients of long f32 tensors equal scalar references") {
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    Tensor x = random_uniform({70001}, 3, c.low, c.high, DType::f32);  // three pieces and a tail
    x.set_requires_grad();
    const Tensor y = c.function(x);
    const auto input = x.to_vector<float>(), output = y.to_vector<float>();
    double worst = 0;
    for (size_t i = 0; i < input.size(); ++i) {
      const double exact = c.exact(static_cast<double>(input[i]));
      worst = std::max(worst, std::abs(output[i] - exact) / (std::abs(exact) + 1e-30));
    }
    CHECK(worst < c.tolerance);
    if (!y.requires_grad()) continue;
    y.backward(ones({70001}));
    const auto gradient = x.grad().to_vector<float>();
    for (size_t i = 0; i < input.size(); i += 997) {
      CAPTURE(input[i]);
      const double exact = derivative_by_difference(c.exact, static_cast<double>(input[i]));
      CHECK(std::abs(gradient[i] - exact) <= 2e-5 + 2e-5 * std::abs(exact));
    }
  }
}

TEST_CASE("unary: forms that overflow or cancel when written plainly") {
  Tensor x = from_values<float>({-100, -30, -1e-6f, 1e-6f, 30, 100}, {6});
  x.set_requires_grad();
  const auto values = [](const Tensor& t) { return t.to_vector<float>(); };
  CHECK(values(softplus(x))[1] == doctest::Approx(std::exp(-30.0)).epsilon(1e-6));
  CHECK(values(softplus(x))[5] == 100);
  CHECK(values(logsigmoid(x))[0] == -100);
  CHECK(values(logsigmoid(x))[4] == doctest::Approx(-std::exp(-30.0)).epsilon(1e-6));
  CHECK(values(expm1(x))[2] == doctest::Approx(-1e-6).epsilon(1e-6));
  CHECK(values(log1p(x))[3] == doctest::Approx(1e-6).epsilon(1e-6));
  CHECK(values(gelu(x))[0] == 0);
  CHECK(values(gelu(from_values<float>({-8}, {1})))[0] == doctest::Approx(-8 * 6.22096057e-16).epsilon(1e-5));
  logsigmoid(x).backward(ones({6}));
  CHECK(values(x.grad())[0] == 1);
  CHECK(values(x.grad())[4] == doctest::Approx(std::exp(-30.0)).epsilon(1e-6));
}

TEST_CASE("unary: NaN passes through") {
  const Tensor x = from_values<float>({NAN, 1}, {2});
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    CHECK(std::isnan(c.function(x).to_vector<float>()[0]));
  }
}

TEST_CASE("unary: gradients at kinks") {
  Tensor x = from_values<double>({-1, 0, 2}, {3});
  x.set_requires_grad();
  abs(x).backward(ones({3}, DType::f64));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{-1, 0, 1});
  x.zero_grad();
  relu(x).backward(ones({3}, DType::f64));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{0, 0, 1});
  x.zero_grad();
  clamp(x, -1, 1).backward(ones({3}, DType::f64));
  CHECK(x.grad().to_vector<double>() == std::vector<double>{1, 1, 0});
}

TEST_CASE("unary: gradients of two uses of a tensor meet") {
  Tensor x = random_uniform({3, 50}, 1);
  x.set_requires_grad();
  const Tensor v = neg(x);
  add(exp(v), sin(v)).backward(ones({3, 50}, DType::f64));
  const Tensor expected = from_function(
      {3, 50}, DType::f64, [x = Elements(x)](const Index& at) { return -(std::exp(-x(at)) + std::cos(-x(at))); });
  CHECK(difference(x.grad(), expected, 1e-12) == "");
}

TEST_CASE("unary: errors name op and argument") {
  CHECK(op_error([] { relu(zeros({2}, DType::i32)); }) == "relu: x must be of a float dtype, got i32[2]");
  CHECK(op_error([] { gelu({}); }) == "gelu: x must be of a float dtype, got none");
  CHECK(op_error([] { elu(zeros({2}), -1); }) == "elu: alpha must be at least 0, got -1");
  CHECK(op_error([] { clamp(zeros({2}), 3, 1); }) == "clamp: low must be at most high = 1, got 3");
}

}  // namespace margay::test
